//! The clocks of simulated servers: each goes with virtual time, and may be set.

use std::sync::atomic::{AtomicI64, Ordering};

use hearth_types::{Clock, Timestamp};

use super::trace::Trace;

/// When simulations begin, by everybody's clock.
const BEGIN: i64 = 1_800_000_000_000;

/// A server's clock.
pub struct SimClock {
    trace: Trace,
    /// Milliseconds that it is ahead.
    ahead: AtomicI64,
}

impl SimClock {
    /// A clock that is right.
    pub fn new(trace: Trace) -> Self {
        Self { trace, ahead: AtomicI64::new(0) }
    }

    /// Sets it so many milliseconds ahead of the right time.
    pub fn set_ahead(&self, milliseconds: i64) {
        self.ahead.store(milliseconds, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp(BEGIN + (self.trace.now() / 1_000_000) as i64 + self.ahead.load(Ordering::Relaxed))
    }
}
