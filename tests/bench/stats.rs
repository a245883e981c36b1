//! Medians, their spread, and how sure a ratio is.

use serde::Serialize;

/// How often the rounds are drawn anew for an interval.
const RESAMPLES: usize = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) count: usize,
}

impl Summary {
    /// None of nothing.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self {
            median: median_of_sorted(&sorted)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            count: sorted.len(),
        })
    }

    /// From the lowest to the highest, as a part of the median.
    pub(crate) fn spread(&self) -> f64 {
        if self.median == 0.0 {
            return 0.0;
        }
        (self.max - self.min) / self.median
    }
}

/// A ratio of two things measured in the same rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    /// Where the median is in 95 of 100 drawings of the rounds.
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Ratio {
    /// Of pairs, one for each round: what the machine did to a round it did to both.
    pub(crate) fn of(pairs: &[(f64, f64)]) -> Option<Self> {
        let ratios: Vec<f64> = pairs
            .iter()
            .filter(|(_, below)| *below > 0.0)
            .map(|(above, below)| above / below)
            .collect();
        let median = median_of_sorted(&sorted(&ratios))?;
        let mut random = Random(0x6c6f_6164);
        let mut drawn: Vec<f64> = (0..RESAMPLES)
            .filter_map(|_| {
                let again: Vec<f64> = ratios.iter().map(|_| random.choose(&ratios)).collect();
                median_of_sorted(&sorted(&again))
            })
            .collect();
        drawn.sort_by(f64::total_cmp);
        let at = |part: f64| drawn[((drawn.len() - 1) as f64 * part).round() as usize];
        Some(Self {
            median,
            low: at(0.025),
            high: at(0.975),
        })
    }

    /// Whether the rounds tell the two apart at all.
    pub(crate) fn is_difference(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median_of_sorted(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some((sorted[sorted.len() / 2 - 1] + upper) / 2.0)
}

/// SplitMix64, always from the same seed: the same measurements give the same report.
struct Random(u64);

impl Random {
    fn choose(&mut self, from: &[f64]) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        from[((z ^ (z >> 31)) % from.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_of_two_middles_the_mean() {
        let odd = Summary::of(&[5.0, 1.0, 3.0]).unwrap();
        assert_eq!(
            (odd.median, odd.min, odd.max, odd.count),
            (3.0, 1.0, 5.0, 3)
        );
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of(&[]), None);
        assert!((odd.spread() - 4.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        // The second round was on a machine at half speed: each round says one half, the sums would not.
        let ratio = Ratio::of(&[(10.0, 20.0), (5.0, 10.0), (11.0, 22.0)]).unwrap();
        assert_eq!((ratio.median, ratio.low, ratio.high), (0.5, 0.5, 0.5));
        assert!(ratio.is_difference());
        assert_eq!(Ratio::of(&[]), None);
        assert_eq!(Ratio::of(&[(1.0, 0.0)]), None);
    }

    #[test]
    fn rounds_that_disagree_are_no_difference() {
        let pairs = [(0.8, 1.0), (1.3, 1.0), (0.9, 1.0), (1.2, 1.0), (1.0, 1.0)];
        let ratio = Ratio::of(&pairs).unwrap();
        assert!(!ratio.is_difference(), "{ratio:?}");
        assert!(ratio.low < 1.0 && ratio.high > 1.0, "{ratio:?}");
        assert_eq!(Ratio::of(&pairs), Some(ratio));
    }
}
