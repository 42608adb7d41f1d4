//! What happens before Raft starts: configuration, whose store it is, files.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hearth_state::FEATURE_LEVEL;
use hearth_types::Status;
use openraft::SnapshotPolicy;
use serde::{Deserialize, Serialize};

use crate::{
    disk::{self, Disk},
    health::Health,
    log::{LogError, LogSizes, LogStore, SEGMENT_BYTES, TAIL_BYTES, Writer},
    machine::{
        SNAPSHOT_LOG_BYTES, SNAPSHOT_LOG_ENTRIES, SNAPSHOT_RETRY, Shared, SnapshotTiming, Snapshots, SnapshotsError,
    },
    metrics::Metrics,
    sabotage::{self, Bug},
    sealed,
    watch::BOOKMARK_INTERVAL,
};

pub(crate) const IDENTITY: &str = "identity";
pub(crate) const IDENTITY_MAGIC: [u8; 8] = *b"HEARTHID";

/// Where the store is and whose.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// The directory, absolute: `<data-dir>/server/raft`. Made where it is missing.
    pub data_dir: PathBuf,
    /// The number of this server in its region; never given to another one. The first server is 1.
    pub node_id: u64,
    /// The region's name.
    pub region: String,
    /// Where others reach this server's API, as `host:port`; empty where there are no others.
    pub address: String,
    /// The highest feature level that this server knows, [`FEATURE_LEVEL`] or one before it: with less, it takes part as the release of that
    /// level does, and the region can go back to that release.
    pub feature_level: u32,
    /// What tests change.
    pub tuning: Tuning,
}

impl RaftConfig {
    /// The store of a server, tuned for production.
    pub fn new(data_dir: impl Into<PathBuf>, node_id: u64, region: impl Into<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            node_id,
            region: region.into(),
            address: String::new(),
            feature_level: FEATURE_LEVEL,
            tuning: Tuning::default(),
        }
    }
}

/// Sizes and times, so that tests can reach the rare cases.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// See [`SEGMENT_BYTES`].
    pub segment_bytes: usize,
    /// See [`TAIL_BYTES`].
    pub tail_bytes: u64,
    /// See [`SNAPSHOT_LOG_BYTES`].
    pub snapshot_log_bytes: u64,
    /// See [`SNAPSHOT_LOG_ENTRIES`].
    pub snapshot_log_entries: u64,
    /// Entries that stay in the log after a snapshot has them, for servers that are a little behind.
    pub entries_kept: u64,
    /// See [`BOOKMARK_INTERVAL`].
    pub bookmark_interval: Duration,
    /// See [`SNAPSHOT_RETRY`].
    pub snapshot_retry: Range<Duration>,
    /// See [`HEARTBEAT`].
    pub heartbeat: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES,
            tail_bytes: TAIL_BYTES,
            snapshot_log_bytes: SNAPSHOT_LOG_BYTES,
            snapshot_log_entries: SNAPSHOT_LOG_ENTRIES,
            entries_kept: 1_000,
            bookmark_interval: BOOKMARK_INTERVAL,
            snapshot_retry: SNAPSHOT_RETRY,
            heartbeat: HEARTBEAT,
        }
    }
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum RaftStoreError {
    /// The directory cannot be made or read.
    #[error("cannot {what} the store's directory {path}", path = path.display())]
    Directory {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("the store {path} is in use by another process; stop it first", path = .0.display())]
    InUse(PathBuf),
    /// It belongs to another server or region.
    #[error(
        "the store {path} belongs to server {found_id} of the region {found_region}, not to server {node_id} of {region}; pass another \
         data directory, or the name that it was made with",
        path = path.display()
    )]
    Identity {
        /// The directory.
        path: PathBuf,
        /// What is written there.
        found_id: u64,
        /// What is written there.
        found_region: String,
        /// What was asked for.
        node_id: u64,
        /// What was asked for.
        region: String,
    },
    /// The file that says whose store it is cannot be read.
    #[error("the file {path} is damaged: {why}; restore it or the whole store from a backup", path = path.display())]
    IdentityDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The snapshots.
    #[error(transparent)]
    Snapshots(#[from] SnapshotsError),
    /// The state is of a newer program.
    #[error(
        "the store is at feature level {found}, this server knows levels up to {known}; run the version that wrote it, or a newer one"
    )]
    FeatureLevel {
        /// What it is.
        found: u32,
        /// What this server knows.
        known: u32,
    },
    /// A metric of the name is there already.
    #[error("cannot register the store's metrics")]
    Metrics(#[source] prometheus::Error),
    /// Raft did not start.
    #[error("Raft did not start: {0}")]
    Raft(String),
    /// The first command did not get through.
    #[error("the store could not be given its identity: {0}")]
    Incarnation(Status),
    /// It could not be closed.
    #[error("the store was not closed properly: {0}")]
    Shutdown(String),
}

/// Whose store it is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) node_id: u64,
    pub(crate) region: String,
}

/// What was opened before Raft starts.
pub(crate) struct Opened {
    pub(crate) log: LogStore,
    pub(crate) writer: Writer,
    pub(crate) shared: Arc<Shared>,
    pub(crate) lock: Box<dyn Send + Sync>,
}

/// Opens log and snapshots, and checks that they fit each other. Blocks.
pub(crate) fn open_files(
    disk: &Arc<dyn Disk>,
    config: &RaftConfig,
    health: &Health,
    metrics: &Metrics,
) -> Result<Opened, RaftStoreError> {
    let dir = &config.data_dir;
    let directory = |what| move |source| RaftStoreError::Directory { what, path: dir.clone(), source };
    disk.create_dir_all(dir).map_err(directory("make"))?;
    let lock = disk.lock(dir).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => RaftStoreError::InUse(dir.clone()),
        _ => directory("lock")(error),
    })?;
    check_identity(&**disk, config)?;
    let snapshots = Snapshots::open(Arc::clone(disk), dir)?;
    let newest = snapshots.newest()?;
    let Tuning { segment_bytes, tail_bytes, .. } = config.tuning;
    let sizes = LogSizes { segment_bytes, tail_bytes };
    let (log, writer) = LogStore::open(disk, dir, sizes, newest.is_some(), health, metrics)?;
    let reached = newest.as_ref().and_then(|newest| newest.meta.last_log_id);
    if log.purged().map(|id| id.index) > reached.map(|id| id.index) {
        let skipped = newest.and_then(|newest| newest.skipped);
        let (path, why) = skipped.unwrap_or_else(|| (dir.join("snapshot-*"), "it is missing".into()));
        return Err(SnapshotsError::Damaged { path, why }.into());
    }
    let timing = SnapshotTiming {
        log_bytes: config.tuning.snapshot_log_bytes,
        log_entries: config.tuning.snapshot_log_entries,
        retry: config.tuning.snapshot_retry.clone(),
    };
    let shared = Shared::new(snapshots, newest, timing, config.feature_level, health.clone(), metrics.clone());
    Ok(Opened { log, writer, shared, lock })
}

impl Identity {
    /// Reads the bytes of the file at `path`.
    pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<Self, RaftStoreError> {
        let damaged = |why: String| RaftStoreError::IdentityDamaged { path: path.to_owned(), why };
        let json = sealed::open(IDENTITY_MAGIC, bytes).map_err(|error| damaged(error.to_string()))?;
        serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))
    }

    /// The bytes of the file.
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        Ok(sealed::seal(IDENTITY_MAGIC, &serde_json::to_vec(self)?))
    }
}

/// Checks whose store it is, and writes it down where it is new.
fn check_identity(disk: &dyn Disk, config: &RaftConfig) -> Result<(), RaftStoreError> {
    let path = config.data_dir.join(IDENTITY);
    let wanted = Identity { node_id: config.node_id, region: config.region.clone() };
    let failed = |what| {
        let path = path.clone();
        move |source| RaftStoreError::Directory { what, path, source }
    };
    let bytes = match disk.read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let bytes = wanted.encode().map_err(failed("describe"))?;
            return disk::replace(disk, &path, &bytes).map_err(failed("write to"));
        }
        Err(error) => return Err(failed("read")(error)),
    };
    let found = Identity::decode(&path, &bytes)?;
    if found == wanted {
        return Ok(());
    }
    Err(RaftStoreError::Identity {
        path: config.data_dir.clone(),
        found_id: found.node_id,
        found_region: found.region,
        node_id: wanted.node_id,
        region: wanted.region,
    })
}

/// Whether a directory holds a store, whole or not, so that what belongs to its data must be there too.
pub fn exists(data_dir: &Path) -> bool {
    // One that cannot be read is not taken for empty: opening it says why.
    match std::fs::read_dir(data_dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// How often the leader is heard of, and within what time its calls have to be answered: so the round trip between servers has to be
/// below it. A leader counts as lost after 5 of them, and then the others wait 3 to 5 more before one stands for election: with 75 ms,
/// writes go on 0.6 to 0.8 s after a leader's death. On links with round trips above 35 ms, it is set to twice the round trip, at all servers.
pub const HEARTBEAT: Duration = Duration::from_millis(75);
/// The shortest and the longest wait before an election, in heartbeats. The longest is also how long a leader is believed in.
const ELECTION: Range<u64> = 3..5;
/// Entries that travel at once at most; their bytes are bounded before that.
const ENTRIES_AT_ONCE: u64 = 4_096;

/// Raft's settings. `alone`: nobody else votes.
pub(crate) fn raft_config(config: &RaftConfig, alone: bool) -> Result<openraft::Config, RaftStoreError> {
    let heartbeat = config.tuning.heartbeat.as_millis() as u64;
    let raft = openraft::Config {
        cluster_name: config.region.clone(),
        heartbeat_interval: heartbeat,
        election_timeout_min: heartbeat * ELECTION.start,
        election_timeout_max: heartbeat * ELECTION.end,
        max_payload_entries: ENTRIES_AT_ONCE,
        // The store asks for snapshots itself, by bytes.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: config.tuning.entries_kept,
        enable_pre_vote: Some(true),
        // What was committed is not on disk. A server alone knows it all the same; another has to be elected to know.
        enable_leader_restore: Some(alone || sabotage::has(Bug::LeaderRestored)),
        ..openraft::Config::default()
    };
    raft.validate().map_err(|error| RaftStoreError::Raft(error.to_string()))
}
