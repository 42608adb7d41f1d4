//! A token bucket.

use std::time::Duration;

use tokio::time::Instant;

/// Lets `burst` through at once, and one more every `interval`.
#[derive(Debug)]
pub(super) struct TokenBucket {
    burst: u32,
    interval: Duration,
    tokens: u32,
    /// The time up to which tokens were handed out.
    filled: Instant,
}

impl TokenBucket {
    pub(super) fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self { burst, interval, tokens: burst, filled: now }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.filled).as_nanos() / self.interval.as_nanos().max(1);
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        if due >= self.burst - self.tokens {
            self.tokens = self.burst;
            self.filled = now;
        } else {
            self.tokens += due;
            self.filled += self.interval * due;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_an_interval() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(3, Duration::from_secs(1), start);
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!([0, 0, 0, 0].map(|millis| bucket.take(at(millis))), [true, true, true, false]);
        assert_eq!(
            [999, 1000, 1001, 1999, 2000].map(|millis| bucket.take(at(millis))),
            [false, true, false, false, true]
        );
        assert_eq!([60_000; 4].map(|millis| bucket.take(at(millis))), [true, true, true, false]);
    }

    proptest! {
        #[test]
        fn no_more_than_the_burst_and_the_rate_pass(steps in proptest::collection::vec(0u64..3000, 1..200)) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(5, Duration::from_secs(1), start);
            let (mut now, mut passed) = (start, 0u64);
            for step in steps {
                now += Duration::from_millis(step);
                passed += u64::from(bucket.take(now));
                prop_assert!(passed <= 5 + (now - start).as_secs());
            }
        }
    }
}
