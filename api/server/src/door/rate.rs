//! How often somebody may ask for what costs the region work before it knows them.

use std::{collections::HashMap, net::IpAddr, sync::Mutex, time::Duration};

use tokio::time::Instant;

use super::guests::Network;

/// Networks that are remembered at most; some 64 bytes each.
const MAX_NETWORKS: usize = 16_384;

/// A token bucket per network.
pub(crate) struct Rate {
    burst: u32,
    /// The time after which one more is allowed.
    interval: Duration,
    /// When each network's bucket will be full again.
    full_at: Mutex<HashMap<Network, Instant>>,
}

impl Rate {
    /// `burst` at once, and then one per `interval`.
    pub(crate) fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, full_at: Mutex::default() }
    }

    /// Takes one; `Err` says how long to wait for the next.
    pub(crate) fn take(&self, address: IpAddr) -> Result<(), Duration> {
        let now = Instant::now();
        let mut all = self.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if all.len() >= MAX_NETWORKS {
            all.retain(|_, full_at| *full_at > now);
            if all.len() >= MAX_NETWORKS {
                return Err(self.interval);
            }
        }
        let full_at = all.entry(Network::of(address)).or_insert(now);
        let next = (*full_at).max(now) + self.interval;
        let latest = now + self.interval * self.burst;
        if next > latest {
            return Err(next - latest);
        }
        *full_at = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_allowed_and_then_a_rate() {
        let rate = Rate::new(3, Duration::from_secs(1));
        let (one, other): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().expect("an address"), "192.0.2.2".parse().expect("an address"));
        assert_eq!([(); 4].map(|()| rate.take(one).is_ok()), [true, true, true, false]);
        assert_eq!(rate.take(one), Err(Duration::from_secs(1)));
        assert!(rate.take(other).is_ok(), "everybody has their own");
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!([(); 2].map(|()| rate.take(one).is_ok()), [true, false]);
        assert_eq!(rate.take(one), Err(Duration::from_millis(500)));
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!([(); 4].map(|()| rate.take(one).is_ok()), [true, true, true, false], "it does not grow beyond");
    }
}
