//! How long to wait before trying again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The first wait of a container that ended again soon after its restart, as the kubelet has it.
pub const CONTAINER_BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// The longest wait of a container, as the kubelet has it.
pub const CONTAINER_BACKOFF_MAX: Duration = Duration::from_mins(5);
/// A container that ran this long starts again without a wait, as the kubelet has it (twice the longest wait).
pub const CONTAINER_BACKOFF_RESET: Duration = Duration::from_mins(10);

/// The first wait after a failed step on the device: disk, network and the like often recover at once.
const STEP_FIRST: Duration = Duration::from_secs(1);
/// The longest wait after a failed step: a person who repaired something should not wait long for it to be seen.
const STEP_MAX: Duration = Duration::from_mins(1);

/// The wait after `tries` failures of a step in a row.
pub(crate) fn step(tries: u32) -> Duration {
    let doubled = STEP_FIRST.saturating_mul(1_u32.checked_shl(tries.saturating_sub(1).min(16)).unwrap_or(u32::MAX));
    doubled.min(STEP_MAX)
}

/// The wait after `tries` failed pulls of an image in a row, as the kubelet has it.
pub(crate) fn pull(tries: u32) -> Duration {
    let doubled = CONTAINER_BACKOFF_FIRST.saturating_mul(1 << tries.saturating_sub(1).min(16));
    doubled.min(CONTAINER_BACKOFF_MAX)
}

/// The waits of a container between an end and the next start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerBackoff {
    /// What the next end will wait, in milliseconds: 0 at first, so that the first restart is immediate.
    next_millis: u64,
}

impl ContainerBackoff {
    /// The wait after a container ended that ran for so long.
    pub(crate) fn ended(&mut self, ran: Duration) -> Duration {
        if ran >= CONTAINER_BACKOFF_RESET {
            self.next_millis = 0;
        }
        let wait = Duration::from_millis(self.next_millis);
        let next = if wait.is_zero() { CONTAINER_BACKOFF_FIRST } else { wait.saturating_mul(2) };
        self.next_millis = next.min(CONTAINER_BACKOFF_MAX).as_millis() as u64;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_waits_as_under_the_kubelet() {
        let mut backoff = ContainerBackoff::default();
        let mut waits = || backoff.ended(Duration::from_secs(1)).as_secs();
        assert_eq!(
            [waits(), waits(), waits(), waits(), waits(), waits(), waits(), waits()],
            [0, 10, 20, 40, 80, 160, 300, 300]
        );
        assert_eq!(backoff.ended(CONTAINER_BACKOFF_RESET), Duration::ZERO);
        assert_eq!(backoff.ended(Duration::ZERO), CONTAINER_BACKOFF_FIRST);
    }

    #[test]
    fn a_pull_waits_as_under_the_kubelet() {
        assert_eq!([1, 2, 3, 5, 6, 40].map(|tries| pull(tries).as_secs()), [10, 20, 40, 160, 300, 300]);
    }

    #[test]
    fn a_step_waits_a_minute_at_most() {
        assert_eq!([1, 2, 3, 7, 40].map(|tries| step(tries).as_secs()), [1, 2, 4, 60, 60]);
    }
}
