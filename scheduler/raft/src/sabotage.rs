//! Known bugs that a test can put back, to see that it is found. They are there only with the feature `sabotage`, which no program
//! that serves anybody is built with; without it every question here is a constant `false`.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A vote is kept in memory and never written, so that a server may vote twice in a term.
    VoteNotSaved,
    /// Entries are acknowledged when they were handed to the disk, not when they are durable.
    AcknowledgedBeforeSync,
    /// A sync that failed counts as one that succeeded.
    FailedSyncIgnored,
    /// Entries that were cut from the log come back after a restart.
    TruncationNotWritten,
    /// A snapshot is given its name, and the log is cut, before its bytes are durable.
    SnapshotNotSynced,
    /// A snapshot forgets who belongs to the group.
    SnapshotWithoutMembership,
    /// A snapshot of another server moves the position and leaves the state as it was.
    SnapshotNotInstalled,
    /// A leader answers reads without asking the others whether it still leads.
    StaleLeaderRead,
    /// A follower answers reads from what it has.
    StaleFollowerRead,
    /// A read does not wait until what it has to see is applied.
    ReadBeforeApplied,
    /// A leader that restarts goes on as the leader, not knowing what was committed.
    LeaderRestored,
    /// A write that is sent again is applied again.
    DuplicatesApplied,
    /// The first entry after a restart is applied twice.
    AppliedTwiceAfterRestart,
    /// A server that sends a write again does so under another request id.
    RetriedUnderAnotherId,
    /// A watcher that fell behind the history goes on at the present, without being told.
    WatcherSkips,
    /// A watch that resumes begins one revision late.
    WatchResumesLate,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::VoteNotSaved,
        Self::AcknowledgedBeforeSync,
        Self::FailedSyncIgnored,
        Self::TruncationNotWritten,
        Self::SnapshotNotSynced,
        Self::SnapshotWithoutMembership,
        Self::SnapshotNotInstalled,
        Self::StaleLeaderRead,
        Self::StaleFollowerRead,
        Self::ReadBeforeApplied,
        Self::LeaderRestored,
        Self::DuplicatesApplied,
        Self::AppliedTwiceAfterRestart,
        Self::RetriedUnderAnotherId,
        Self::WatcherSkips,
        Self::WatchResumesLate,
    ];
}

#[cfg(feature = "sabotage")]
thread_local! {
    static PUT_BACK: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Puts a bug back on this thread, for all stores that run on it; `None` takes it out again.
#[cfg(feature = "sabotage")]
pub fn put_back(bug: Option<Bug>) {
    PUT_BACK.set(bug);
}

/// Whether a bug is put back.
#[cfg(feature = "sabotage")]
pub(crate) fn has(bug: Bug) -> bool {
    PUT_BACK.get() == Some(bug)
}

/// Whether a bug is put back: never.
#[cfg(not(feature = "sabotage"))]
pub(crate) const fn has(_: Bug) -> bool {
    false
}
