//! What ends a pod whose lease is over. It lives where the pod's processes do, and asks nobody.

use super::{Deadline, MAX_LEASE, Moment};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing before [`Watchdog::next`].
    Nothing,
    /// The programs are asked to end: the lease is nearly over.
    Warn,
    /// Everything is killed, and again until nothing is left.
    Kill,
}

/// Watches over one lease, by a clock that counts suspend.
///
/// # Guarantees
/// Once the deadline has passed it is over for good, whether or not anybody looked: a renewal that comes later is refused.
#[derive(Clone, Debug)]
pub struct Watchdog {
    deadline: Deadline,
    warned: bool,
    over: bool,
}

impl Watchdog {
    /// Of a lease. One that reaches too far is cut.
    pub fn new(deadline: Deadline, now: Moment) -> Self {
        Self { deadline: cut(deadline, now), warned: false, over: false }
    }

    /// The deadline.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Whether the lease is over, so that nothing may be begun.
    pub fn is_over(&mut self, now: Moment) -> bool {
        self.over |= now >= self.deadline.end;
        self.over
    }

    /// A later deadline; an earlier one changes nothing. `false` where the lease is over.
    pub fn renew(&mut self, deadline: Deadline, now: Moment) -> bool {
        let over = self.is_over(now);
        let deadline = cut(deadline, now);
        if !over && deadline > self.deadline {
            self.deadline = deadline;
            self.warned &= now >= deadline.warn;
        }
        !over
    }

    /// What is to be done now.
    pub fn act(&mut self, now: Moment) -> Act {
        if self.is_over(now) {
            Act::Kill
        } else if now >= self.deadline.warn && !self.warned {
            self.warned = true;
            Act::Warn
        } else {
            Act::Nothing
        }
    }

    /// When to look next.
    pub fn next(&self) -> Moment {
        if self.warned { self.deadline.end } else { self.deadline.warn }
    }
}

fn cut(deadline: Deadline, now: Moment) -> Deadline {
    let end = deadline.end.min(now.plus(MAX_LEASE));
    Deadline { end, warn: deadline.warn.min(end) }
}
