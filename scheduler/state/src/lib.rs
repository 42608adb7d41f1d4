//! The replicated state machine of a region: apply, revisions, watch history, snapshots. Pure.
//!
//! [`apply`] takes a [`State`] one [`Command`] further and reads neither clock nor randomness: what it needs travels in
//! the command, so that every server that applies the same commands holds the same bytes.
//!
//! | module | what it answers |
//! |---|---|
//! | [`command`] | what an entry of the log says, and its bytes |
//! | [`state`] | the state, and the step |
//! | [`history`] | what changed since a revision, as a watcher sees it |
//! | [`list`] | pages of a list that all show one revision |
//! | [`snapshot`] | the state as bytes: magic, version, checksum |
//!
//! A [`State`] is cheap to clone (its collections share structure), so that a snapshot or a long list is made of a clone
//! while writes go on.

mod bind;
pub mod command;
mod duplicates;
pub mod history;
pub mod list;
mod ops;
pub mod snapshot;
pub mod state;

pub use command::{Command, Refusal, check_txn};
pub use duplicates::{DUPLICATES_KEPT, DUPLICATES_MAX_AGE, DUPLICATES_MAX_BYTES, DUPLICATES_MAX_COUNT};
pub use history::{Change, Expired, HISTORY_MAX_BYTES, HISTORY_MAX_CHANGES, History};
pub use list::ListError;
pub use ops::STAMP_BYTES;
pub use snapshot::SnapshotError;
pub use state::{Applied, FEATURE_LEVEL, Response, State, apply};
