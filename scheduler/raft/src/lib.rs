//! The durable store of a region: openraft with an own log and snapshots.
//!
//! [`RaftStore`] implements [`hearth_types::store::Store`] for a region of one to seven servers. Network, disk, clock and dice are behind
//! traits, so that all of it runs under simulation.
//!
//! ```text
//! write -> Raft -> log: one thread, one fdatasync for all that waits -> apply (hearth-state) -> answer, watchers wake
//!                                                                          \-> snapshot of an O(1) clone, log purged
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `backup` | backups: of a running store, of the files of a stopped one, and back |
//! | [`disk`] | the disk behind a trait; one in memory that fails and forgets |
//! | `log` | segments, records with checksums, group commit, vote |
//! | `machine` | applies entries, writes and reads snapshots |
//! | `watch` | watches that pull from the history |
//! | `open` | configuration, whose store it is, files |
//! | `store` | starts Raft, bounds requests, answers them |
//! | `core` | writes and reads that find the leader wherever it is |
//! | `reads`, `forwards` | those that wait at the same time travel together |
//! | `group` | who belongs, and what operators change about it |
//! | `leadership` | who leads, as it changes |
//! | `network` | Raft's messages to and from the other servers |

mod backup;
mod core;
pub mod decoders;
pub mod disk;
mod forwards;
mod group;
mod health;
mod leadership;
mod log;
mod machine;
mod metrics;
mod network;
mod open;
mod reads;
pub mod runtime;
pub mod sabotage;
mod sealed;
mod signal;
mod store;
mod types;
mod watch;

pub use backup::{Backup, BackupError, BackupHead, Keys, Owner, read_stopped, read_stopped_on, restore, restore_on};
pub use hearth_state::FEATURE_LEVEL;
pub use log::{LogError, SEGMENT_BYTES, TAIL_BYTES};
pub use machine::{SNAPSHOT_LOG_BYTES, SNAPSHOT_LOG_ENTRIES, SNAPSHOT_RETRY, SnapshotsError};
pub use open::{HEARTBEAT, RaftConfig, RaftStoreError, Tuning, exists};
pub use store::{
    MAX_BYTES_IN_FLIGHT, MAX_TXN_BYTES, MAX_WATCHERS, MAX_WRITES_IN_FLIGHT, REQUEST_TIMEOUT, RaftStore, Start,
};
pub use watch::BOOKMARK_INTERVAL;
