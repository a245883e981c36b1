//! Which of the connections that ended well are told about, when there are too many of them to tell about all.

use std::cell::Cell;
use std::str::FromStr;

/// All, in the steps that a share may have.
const WHOLE: u32 = 100_000;
/// Digits after the point of a percentage.
const DECIMALS: usize = 3;

/// A share of all connections that ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    pub const ALL: Self = Self(WHOLE);
}

/// No share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a percentage from 0 to 100 with at most {DECIMALS} decimals")]
pub struct BadShare;

/// Of a percentage, such as `5` or `0.1`.
impl FromStr for Share {
    type Err = BadShare;

    fn from_str(text: &str) -> Result<Self, BadShare> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let plain = |digits: &str| {
            !digits.is_empty()
                && digits.len() <= DECIMALS
                && digits.bytes().all(|b| b.is_ascii_digit())
        };
        if !plain(whole) || !plain(decimals) {
            return Err(BadShare);
        }
        let digits = format!("{whole}{decimals:0<DECIMALS$}");
        let share = digits.parse().map_err(|_| BadShare)?;
        if share > WHOLE {
            return Err(BadShare);
        }
        Ok(Self(share))
    }
}

/// Takes its share of the connections it is asked about, at even distances. Of one pod on one thread.
#[derive(Debug)]
pub struct Sampler {
    share: Share,
    /// What the next one is short of being taken.
    credit: Cell<u32>,
}

impl Sampler {
    /// `random` says where in its course it begins, so that pods with few connections get their share as well: no
    /// more, and no less.
    #[must_use]
    pub const fn new(share: Share, random: u32) -> Self {
        let credit = Cell::new(random % WHOLE);
        Self { share, credit }
    }

    /// Whether it takes this one.
    #[must_use]
    pub fn takes(&self) -> bool {
        let credit = self.credit.get() + self.share.0;
        let takes = credit >= WHOLE;
        self.credit.set(if takes { credit - WHOLE } else { credit });
        takes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(text: &str) -> Share {
        text.parse().unwrap()
    }

    #[test]
    fn percentages_are_read_and_nothing_else() {
        assert_eq!(share("100"), Share::ALL);
        assert_eq!(share("100.000"), Share::ALL);
        assert_eq!(share("0"), Share(0));
        assert_eq!(share("2.5"), Share(2_500));
        assert_eq!(share("0.001"), Share(1));
        for bad in [
            "", ".", "5.", ".5", "-1", "+1", "101", "100.001", "0.0001", "1e2", "5%", "nan", "٣",
        ] {
            assert_eq!(bad.parse::<Share>(), Err(BadShare), "{bad}");
        }
    }

    #[test]
    fn its_share_is_taken_wherever_it_begins() {
        for (text, taken) in [("100", 10_000), ("0", 0), ("10", 1_000), ("33.333", 3_333)] {
            for random in [0, 1, 49_999, u32::MAX] {
                let sampler = Sampler::new(share(text), random);
                let count = (0..10_000).filter(|_| sampler.takes()).count();
                assert!(
                    count.abs_diff(taken) <= 1,
                    "{count} for {text} from {random}"
                );
            }
        }
        // At even distances.
        let sampler = Sampler::new(share("25"), 0);
        let takes: Vec<_> = (0..8).map(|_| sampler.takes()).collect();
        assert_eq!(takes, [false, false, false, true].repeat(2));
    }

    #[test]
    fn of_many_pods_with_one_connection_each_the_same_share_is_taken() {
        let pods = (0..WHOLE).step_by(10);
        let count = pods.filter(|random| Sampler::new(share("5"), *random).takes());
        assert_eq!(count.count(), 500);
    }
}
