//! The replicated state machine of a region: apply, revisions, watch history, snapshots. Pure.
