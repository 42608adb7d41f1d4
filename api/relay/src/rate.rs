//! How much an owner may send.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

/// Bytes that are let through: a burst at once, and then so many a second. Everybody who draws from one shares it.
#[derive(Debug)]
pub(crate) struct Allowance {
    per_second: u64,
    burst: u64,
    /// When everything that was let through so far has been earned.
    earned: Mutex<Instant>,
}

impl Allowance {
    pub(crate) fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        Self { per_second: per_second.max(1), burst, earned: Mutex::new(now) }
    }

    /// Takes bytes that have arrived already. `Some`: no more are to be read before then.
    pub(crate) fn take(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let cost = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        let burst = Duration::from_secs_f64(self.burst as f64 / self.per_second as f64);
        // A panic cannot leave the time half written.
        let mut earned = self.earned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *earned = (*earned).max(now) + cost;
        let ready = *earned - burst.min(earned.saturating_duration_since(now));
        (ready > now).then_some(ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_what_is_above_waits_for_the_rate() {
        let start = Instant::now();
        let allowance = Allowance::new(1000, 500, start);
        assert_eq!(allowance.take(500, start), None);
        assert_eq!(allowance.take(100, start), Some(start + Duration::from_millis(100)));
        assert_eq!(allowance.take(100, start), Some(start + Duration::from_millis(200)), "it is shared");
        assert_eq!(allowance.take(0, start + Duration::from_secs(2)), None);
        assert_eq!(allowance.take(500, start + Duration::from_secs(2)), None);
        assert!(allowance.take(1, start + Duration::from_secs(2)).is_some());
    }
}
