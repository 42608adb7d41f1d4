//! Bugs that are put back are found, within the seeds that CI runs.

#![allow(clippy::unwrap_used)] // a test may panic

use hearth_raft::sabotage::Bug;
use hearth_sim::{CI_RUNS, run_with};

/// Not to be met in a short run: the history holds 20,000 changes. `scheduler/raft/tests/it/watch.rs` has a watcher that falls behind.
const BEYOND: [Bug; 1] = [Bug::WatcherSkips];

fn find(bug: Bug) {
    let found = (0..CI_RUNS).find(|seed| !run_with(bug, *seed).unwrap().violations.is_empty());
    assert!(found.is_some(), "{bug:?} is not found within {CI_RUNS} seeds");
}

macro_rules! found {
    ($($name:ident: $bug:ident,)*) => {
        $(
            #[test]
            fn $name() {
                find(Bug::$bug);
            }
        )*

        #[test]
        fn every_bug_is_looked_for() {
            let looked_for = [$(Bug::$bug,)*];
            let missing = Bug::ALL.iter().find(|bug| !looked_for.contains(bug) && !BEYOND.contains(bug));
            assert_eq!(missing, None);
        }
    };
}

found! {
    vote_not_saved: VoteNotSaved,
    acknowledged_before_sync: AcknowledgedBeforeSync,
    failed_sync_ignored: FailedSyncIgnored,
    truncation_not_written: TruncationNotWritten,
    snapshot_not_synced: SnapshotNotSynced,
    snapshot_without_membership: SnapshotWithoutMembership,
    snapshot_not_installed: SnapshotNotInstalled,
    stale_leader_read: StaleLeaderRead,
    stale_follower_read: StaleFollowerRead,
    read_before_applied: ReadBeforeApplied,
    leader_restored: LeaderRestored,
    duplicates_applied: DuplicatesApplied,
    applied_twice_after_restart: AppliedTwiceAfterRestart,
    retried_under_another_id: RetriedUnderAnotherId,
    watch_resumes_late: WatchResumesLate,
}
