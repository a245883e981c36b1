//! When the next request for a certificate is due.

use std::time::{Duration, SystemTime};

/// No certificate is renewed more often, whatever its dates say.
const SOONEST: Duration = Duration::from_secs(1);

/// How long after `now` to renew a certificate that is to be renewed at `refresh_at` and ends at `not_after`.
/// `jitter` is about 1 and spreads nodes and pods that started together.
///
/// The CA dates certificates back, so the middle of a very short one may be past already. Then a quarter of what
/// is left is waited for instead of asking again at once, forever. And where the dates make no sense, the middle may
/// be past the end, which is not waited out.
pub(super) fn renew_in(
    now: SystemTime,
    refresh_at: SystemTime,
    not_after: SystemTime,
    jitter: f64,
) -> Duration {
    let until = |at: SystemTime| at.duration_since(now).unwrap_or_default();
    let due = until(refresh_at).max(until(not_after) / 4);
    due.mul_f64(jitter).min(until(not_after)).max(SOONEST)
}

/// How long after `now` to ask again after a failure. `delay` is what the backoff says. The certificate that still
/// serves ends at `serves_until`: one try is made when it does, however long the backoff has grown.
pub(super) fn retry_in(
    now: SystemTime,
    delay: Duration,
    serves_until: Option<SystemTime>,
) -> Duration {
    let left = serves_until.map(|end| end.duration_since(now).unwrap_or_default());
    left.map_or(delay, |left| delay.min(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    fn check(refresh_at: i64, not_after: i64, jitter: f64, expected: u64) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs((1_000_000 + seconds).try_into().unwrap())
        };
        assert_eq!(
            renew_in(now, at(refresh_at), at(not_after), jitter).as_secs(),
            expected
        );
    }

    #[test]
    fn renewal_is_due_at_the_middle() {
        check(43_140, 86_400, 1.0, 43_140);
        check(43_140, 86_400, 0.9, 38_826);
    }

    #[test]
    fn dates_that_make_no_sense_do_not_put_it_off_beyond_the_end() {
        check(600, 300, 1.1, 300); // The middle is past the end.
        check(300, 300, 1.1, 300);
        check(-600, -300, 1.0, 1);
        let end_of_time: i64 = 253_402_300_799 - 1_000_000; // The last second of the year 9999.
        check(end_of_time / 2, end_of_time, 1.0, 126_700_650_399);
    }

    #[test]
    fn a_retry_is_not_later_than_the_end_of_what_serves() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let retry = |left: Option<u64>| {
            let end = left.map(|left| now + Duration::from_secs(left));
            retry_in(now, Duration::from_secs(150), end).as_secs()
        };
        assert_eq!(retry(None), 150);
        assert_eq!(retry(Some(24 * HOUR)), 150);
        assert_eq!(retry(Some(20)), 20);
        assert_eq!(retry(Some(0)), 0);
        assert_eq!(
            retry_in(
                now,
                Duration::from_secs(150),
                Some(now - Duration::from_secs(5))
            )
            .as_secs(),
            0
        );
    }

    #[test]
    fn certificate_that_is_past_its_middle_is_not_renewed_in_a_loop() {
        check(-30, 60, 1.0, 15);
        check(-30, 2, 1.0, 1);
        check(-30, -10, 1.0, 1);
        check(-(HOUR as i64), 0, 1.0, 1);
    }
}
