//! The system's clock: the one place of the binary that reads it.

use std::time::{SystemTime, UNIX_EPOCH};

use hearth_types::{Clock, Timestamp};

/// Wall-clock time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}
