//! How often a request took how long, to 1.6 percent, in fixed memory.

use std::time::Duration;

/// Buckets for each doubling: a value is known to one part in as many.
const FINE: u64 = 64;
const FINE_BITS: u32 = FINE.ilog2();

pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    longest: Duration,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        let buckets = index(u64::MAX) + 1;
        Self {
            counts: vec![0; buckets],
            total: 0,
            longest: Duration::ZERO,
        }
    }

    pub(crate) fn add(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.counts[index(nanos)] += 1;
        self.total += 1;
        self.longest = self.longest.max(took);
    }

    /// To the nanosecond.
    pub(crate) fn longest_ms(&self) -> f64 {
        self.longest.as_secs_f64() * 1e3
    }

    /// The value that `part` of all stay at or below, in milliseconds; 0 when there are none.
    pub(crate) fn quantile_ms(&self, part: f64) -> f64 {
        let wanted = (self.total as f64 * part).ceil().max(1.0);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen as f64 >= wanted {
                return middle(index) / 1e6;
            }
        }
        0.0
    }
}

/// The first `FINE` buckets hold one value each; then each doubling has as many.
fn index(nanos: u64) -> usize {
    if nanos < FINE {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - FINE_BITS;
    (u64::from(shift + 1) * FINE + (nanos >> shift) - FINE) as usize
}

fn middle(index: usize) -> f64 {
    let index = index as u64;
    if index < FINE {
        return index as f64;
    }
    let (shift, within) = (index / FINE - 1, index % FINE);
    ((FINE + within) as f64 + 0.5) * (1_u64 << shift) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_found_again_to_one_percent() {
        for nanos in [0, 1, 63, 64, 65, 1_000, 123_456, 999_999_999, u64::MAX / 3] {
            let back = middle(index(nanos));
            let off = (back - nanos as f64).abs();
            assert!(off <= nanos as f64 * 0.01, "{nanos} became {back}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile_ms(0.99), 0.0);
        for millis in 1..=1000 {
            histogram.add(Duration::from_millis(millis));
        }
        for (part, expected) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            let found = histogram.quantile_ms(part);
            assert!((found / expected - 1.0_f64).abs() < 0.01, "{part}: {found}");
        }
        assert_eq!(histogram.longest_ms(), 1000.0);
    }
}
