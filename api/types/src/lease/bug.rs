//! Known bugs that the simulation puts back, to see that it finds them. Outside of this crate's tests every question here is a constant `false`.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "put back by tests alone"))]
pub(super) enum Bug {
    /// A server with new authority does not wait for what was granted under the one before.
    AuthorityDoesNotWait,
    /// A server grants leases while it waits to release, and of another epoch while one is held.
    GrantsToAnybody,
    /// A grant is sent without asking whether the server still has authority.
    GrantUnconfirmed,
    /// A claim is released without a check of the authority.
    ReleaseUnchecked,
    /// A lease counts from when its grant arrived.
    CountedFromArrival,
    /// A lease is counted by a clock that stops in suspend.
    SuspendNotCounted,
    /// What is left of a lease is believed after a reboot.
    RebootForgotten,
    /// The region waits no longer than the lease, and the device takes all of it.
    DriftForgotten,
}

#[cfg(test)]
impl Bug {
    /// All of them.
    pub(super) const ALL: [Self; 8] = [
        Self::AuthorityDoesNotWait,
        Self::GrantsToAnybody,
        Self::GrantUnconfirmed,
        Self::ReleaseUnchecked,
        Self::CountedFromArrival,
        Self::SuspendNotCounted,
        Self::RebootForgotten,
        Self::DriftForgotten,
    ];
}

#[cfg(test)]
thread_local! {
    static PUT_BACK: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Puts a bug back on this thread; `None` takes it out again.
#[cfg(test)]
pub(super) fn put_back(bug: Option<Bug>) {
    PUT_BACK.set(bug);
}

/// Whether a bug is put back.
#[cfg(test)]
pub(super) fn has(bug: Bug) -> bool {
    PUT_BACK.get() == Some(bug)
}

/// Whether a bug is put back: never.
#[cfg(not(test))]
pub(super) const fn has(_: Bug) -> bool {
    false
}
