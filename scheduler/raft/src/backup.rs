//! Backups of a region: one file with all that a region is, taken from a running store or from the files of a stopped one.
//!
//! # Format, version 1
//! Integers are little-endian.
//! ```text
//! "HEARTHBK" | version u32 | length u32, head (JSON) | length u32, keys (JSON) | state, as hearth_state writes it |
//! length of the state u64 | SHA-256 of everything before it
//! ```
//! The keys are those of the region's CA and of its tunnels: without them no device and no client would know the restored
//! region again. So a backup is as secret as they are.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::StreamExt as _;
use hearth_state::{Command, FEATURE_LEVEL, Response, State, apply};
use hearth_types::{
    GroupKind, Incarnation, Object, RequestId, Revision, Status, Timestamp, Uid,
    restores::{self, Restore},
    store::{Expect, Op, Txn},
};
use openraft::{
    Membership,
    storage::{RaftLogReader as _, RaftLogStorage as _, RaftStateMachine as _},
};
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN, digest};
use serde::{Deserialize, Serialize};

use crate::{
    RaftConfig, RaftStore, RaftStoreError,
    disk::{self, Disk, MemoryDisk, RealDisk, TEMPORARY},
    health::Health,
    log::{LogError, LogSizes, LogStore},
    machine::{Snapshots, SnapshotsError, StateMachine},
    metrics::Metrics,
    open::{IDENTITY, Identity, Opened, open_files},
    types::{SnapshotMeta, StoredMembership, Vote, log_id},
};

const MAGIC: [u8; 8] = *b"HEARTHBK";
/// The version that this program writes, and the only one it reads.
const VERSION: u32 = 1;
const HEAD: usize = 12;
const TAIL: usize = 8 + SHA256_OUTPUT_LEN;
/// The server that a restored group begins with.
const FIRST_SERVER: u64 = 1;
/// Bytes that go out at once.
const CHUNK: usize = 256 << 10;

/// Why a backup cannot be made, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something else.
    #[error("it is no backup of a region")]
    Magic,
    /// Of another program.
    #[error(
        "it has format version {0}, and this program reads version {VERSION}; use the version of Hearth that wrote it, or a newer one"
    )]
    Version(u32),
    /// Changed or cut off.
    #[error("it is cut off or damaged: it does not have its checksum. Use another backup")]
    Checksum,
    /// Intact, and not what this program writes.
    #[error("it contradicts itself: {0}")]
    Inconsistent(String),
    /// Its state is of a newer program.
    #[error(
        "its state is at feature level {found}, this program knows {FEATURE_LEVEL}; restore it with the version of Hearth that it is of, or a newer one"
    )]
    FeatureLevel {
        /// What it is.
        found: u32,
    },
    /// There is nothing to back up.
    #[error("there is no region's data in {path}", path = .0.display())]
    NoRegion(PathBuf),
    /// Its server runs.
    #[error("the store {path} is in use by a running server: back up through it (without --data-dir), or stop it first", path = .0.display())]
    InUse(PathBuf),
    /// There is a store already.
    #[error("{path} holds a store already", path = .0.display())]
    Occupied(PathBuf),
    /// The disk failed.
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store's files cannot be read.
    #[error(transparent)]
    Store(#[from] RaftStoreError),
    /// The log cannot be read or made.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The snapshots cannot be read or made.
    #[error(transparent)]
    Snapshots(#[from] SnapshotsError),
    /// A running store could not answer.
    #[error("{0}")]
    Unavailable(Status),
}

/// What stands at the beginning of a backup. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupHead {
    /// The region's name.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// The identity of its data.
    pub incarnation: Incarnation,
    /// The revision that the backup has everything of.
    pub revision: Revision,
    /// The state's feature level.
    pub feature_level: u32,
    /// How many objects there are.
    pub objects: usize,
    /// When it was taken.
    pub taken: Timestamp,
    /// SHA-256 of `ca.pem`, in hexadecimal.
    pub ca_sha256: String,
}

/// The region's secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Keys {
    /// The CA's key, PEM.
    pub ca_key: String,
    /// The CA's certificate, PEM.
    pub ca_certificate: String,
    /// The seed of the tunnels' key; without it a new one is made.
    pub tunnel_key: Option<Vec<u8>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// Whose backup it is: what the store does not know of itself.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The region's name.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Its secrets.
    pub keys: Keys,
}

/// A backup in memory. Its state shares memory with the store that it was taken of.
#[derive(Clone, Debug)]
pub struct Backup {
    head: BackupHead,
    keys: Keys,
    state: State,
}

impl Backup {
    fn of(state: State, owner: Owner, taken: Timestamp) -> Option<Self> {
        let head = BackupHead {
            region: owner.region,
            zone: owner.zone,
            incarnation: state.incarnation()?.clone(),
            revision: state.revision(),
            feature_level: state.feature_level(),
            objects: state.len(),
            taken,
            ca_sha256: hex_sha256(owner.keys.ca_certificate.as_bytes()),
        };
        Some(Self { head, keys: owner.keys, state })
    }

    /// The beginning of a region's data, as if it were a backup: with an identity, and with these objects alone.
    pub fn of_nothing(
        owner: Owner,
        incarnation: Incarnation,
        objects: Vec<Object>,
        now: Timestamp,
    ) -> Result<Self, BackupError> {
        let mut state = State::default();
        let request_id = RequestId::from(format!("first-{incarnation}"));
        apply(&mut state, &Command::Initialize { incarnation, now });
        let ops = objects.into_iter().map(|object| Op::Create { object }).collect();
        let answer = apply(&mut state, &Command::Txn(Txn { request_id, atomic: true, ops, now })).response;
        match answer {
            Response::Txn(outcome) if outcome.outcomes.iter().all(Result::is_ok) => {
                Self::of(state, owner, now).ok_or_else(|| BackupError::Inconsistent("it has no identity".to_owned()))
            }
            other => Err(BackupError::Inconsistent(format!("its first objects cannot be stored: {other:?}"))),
        }
    }

    /// What it says of itself.
    pub fn head(&self) -> &BackupHead {
        &self.head
    }

    /// The region's secrets.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// How many objects it has of each kind.
    pub fn kinds(&self) -> BTreeMap<GroupKind, usize> {
        self.state.kinds()
    }

    /// Writes it. Blocks.
    pub fn write(&self, out: impl io::Write) -> io::Result<()> {
        let mut out =
            Hashing { out: io::BufWriter::with_capacity(CHUNK, out), hash: Context::new(&SHA256), written: 0 };
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        for part in [serde_json::to_vec(&self.head), serde_json::to_vec(&self.keys)] {
            let part = part.map_err(io::Error::other)?;
            let length = u32::try_from(part.len()).map_err(io::Error::other)?;
            out.write_all(&length.to_le_bytes())?;
            out.write_all(&part)?;
        }
        let before = out.written;
        self.state.write_snapshot(&mut out)?;
        let length = out.written - before;
        out.write_all(&length.to_le_bytes())?;
        let Hashing { mut out, hash, .. } = out;
        out.write_all(hash.finish().as_ref())?;
        out.flush()
    }

    /// Reads one, whole, and checks it. Never panics, whatever the bytes.
    pub fn read(bytes: &[u8]) -> Result<Self, BackupError> {
        let cut_off = BackupError::Checksum;
        if bytes.get(..MAGIC.len()) != Some(&MAGIC) {
            return Err(BackupError::Magic);
        }
        match bytes.get(MAGIC.len()..HEAD).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes) {
            Some(VERSION) => {}
            Some(other) => return Err(BackupError::Version(other)),
            None => return Err(cut_off),
        }
        if bytes.len() < HEAD + TAIL {
            return Err(cut_off);
        }
        let (signed, sum) = bytes.split_at(bytes.len() - SHA256_OUTPUT_LEN);
        if digest(&SHA256, signed).as_ref() != sum {
            return Err(cut_off);
        }
        let inconsistent = |why: &str| BackupError::Inconsistent(why.to_owned());
        let (body, length) = signed[HEAD..].split_at(signed.len() - HEAD - 8);
        let (head, rest) = part(body).ok_or_else(|| inconsistent("its head is cut off"))?;
        let (keys, state) = part(rest).ok_or_else(|| inconsistent("its keys are cut off"))?;
        if length != (state.len() as u64).to_le_bytes() {
            return Err(inconsistent("its state has another length"));
        }
        let json = |what: &'static str| move |error| BackupError::Inconsistent(format!("its {what}: {error}"));
        let head: BackupHead = serde_json::from_slice(head).map_err(json("head"))?;
        let keys: Keys = serde_json::from_slice(keys).map_err(json("keys"))?;
        let state = State::decode(state).map_err(|error| BackupError::Inconsistent(error.to_string()))?;
        let owner = Owner { region: head.region.clone(), zone: head.zone.clone(), keys };
        match Self::of(state, owner, head.taken) {
            Some(read) if read.head == head => Ok(read),
            _ => Err(inconsistent("its head is not that of its state")),
        }
    }
}

/// A part and what is behind it.
fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
}

fn hex_sha256(bytes: &[u8]) -> String {
    use fmt::Write as _;
    digest(&SHA256, bytes).as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Passes bytes on and keeps their hash.
struct Hashing<W> {
    out: W,
    hash: Context,
    written: u64,
}

impl<W: io::Write> io::Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl RaftStore {
    /// A backup of the store as it is now: every write that was acknowledged before is in it, none in part. Takes no time and holds nobody up;
    /// writing it out is up to the caller.
    pub async fn backup(&self, owner: Owner, now: Timestamp) -> Result<Backup, Status> {
        let state = self.frozen().await?;
        Backup::of(state, owner, now).ok_or_else(|| Status::unavailable("the store has no identity yet; try again"))
    }
}

/// A backup of the store of a server that does not run, from its files. Nothing in the directory is changed or repaired.
///
/// Every entry of the log counts, so that nothing that was acknowledged is missing: one that was written and not acknowledged may be in it.
/// `owner` is given the region's name as the store has it.
pub async fn read_stopped(
    dir: &Path,
    owner: impl FnOnce(String) -> Owner,
    now: Timestamp,
) -> Result<Backup, BackupError> {
    read_stopped_on(Arc::new(RealDisk), dir, owner, now).await
}

/// The same on a disk of the caller's.
pub async fn read_stopped_on(
    disk: Arc<dyn Disk>,
    dir: &Path,
    owner: impl FnOnce(String) -> Owner,
    now: Timestamp,
) -> Result<Backup, BackupError> {
    let io_error = |what, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => BackupError::NoRegion(path),
            io::ErrorKind::WouldBlock => BackupError::InUse(path),
            _ => BackupError::Io { what, path, source },
        }
    };
    let names = disk.list(dir).map_err(io_error("list", dir))?;
    if !names.iter().any(|name| name == IDENTITY) {
        return Err(BackupError::NoRegion(dir.to_owned()));
    }
    let _lock = disk.lock(dir).map_err(io_error("lock", dir))?;
    // A start repairs what a crash left. So this is a start over a copy in memory.
    let copy = MemoryDisk::new();
    for name in names.iter().filter(|name| !name.ends_with(TEMPORARY)) {
        let path = dir.join(name);
        let bytes = disk.read(&path).map_err(io_error("read", &path))?;
        disk::replace(&copy, &path, &bytes).map_err(io_error("copy", &path))?;
    }
    let (region, state) = replay(Arc::new(copy), dir).await?;
    Backup::of(state, owner(region), now).ok_or_else(|| BackupError::NoRegion(dir.to_owned()))
}

/// Whose store it is, and its state after the last entry of its log.
async fn replay(disk: Arc<dyn Disk>, dir: &Path) -> Result<(String, State), BackupError> {
    let path = dir.join(IDENTITY);
    let damaged = |why: String| RaftStoreError::IdentityDamaged { path: path.clone(), why };
    let bytes = disk.read(&path).map_err(|error| damaged(error.to_string()))?;
    let identity = Identity::decode(&path, &bytes)?;
    let config = RaftConfig::new(dir, identity.node_id, &identity.region);
    let opened = open_files(&disk, &config, &Health::new(), &unregistered()?)?;
    let Opened { mut log, writer, shared, lock: _lock } = opened;
    let failed = |what| move |source| BackupError::Io { what, path: dir.to_owned(), source };
    let mut machine = StateMachine(Arc::clone(&shared));
    let (applied, _) = machine.applied_state().await.map_err(failed("read the snapshot of"))?;
    let next = applied.map_or(0, |applied| applied.index + 1);
    let entries = log.entries_stream(next..).await.map(|entry| entry.map(|entry| (entry, None)));
    machine.apply(entries).await.map_err(failed("apply the log of"))?;
    drop(log);
    writer.join().await;
    let state = shared.machine().state.clone();
    Ok((identity.region, state))
}

fn unregistered() -> Result<Metrics, RaftStoreError> {
    Metrics::register(&prometheus::Registry::new()).map_err(RaftStoreError::Metrics)
}

/// Makes a store of a backup in a directory that is empty or missing. Durable on return; where it fails or is interrupted, the directory is of no use.
///
/// The store is that of a group of one server, number 1. It keeps its incarnation and goes on at a far higher revision (see
/// [`hearth_types::restores`]).
pub async fn restore(dir: &Path, backup: &Backup, now: Timestamp) -> Result<Restore, BackupError> {
    restore_on(Arc::new(RealDisk), dir, backup, now).await
}

/// The same on a disk of the caller's.
pub async fn restore_on(
    disk: Arc<dyn Disk>,
    dir: &Path,
    backup: &Backup,
    now: Timestamp,
) -> Result<Restore, BackupError> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| BackupError::Io { what, path, source }
    };
    let found = backup.state.feature_level();
    if found > FEATURE_LEVEL {
        return Err(BackupError::FeatureLevel { found });
    }
    disk.create_dir_all(dir).map_err(failed("make", dir))?;
    if !disk.list(dir).map_err(failed("list", dir))?.is_empty() {
        return Err(BackupError::Occupied(dir.to_owned()));
    }
    let restore = Restore::new(backup.head.revision, now);
    let state = marked(backup.state.clone().resumed(restore.resumed), restore, now)?;

    // One entry that nobody has in a log: a server that joins later gets a snapshot, never the log alone.
    let last = log_id(1, 1);
    let members = Membership::new_with_defaults(vec![[FIRST_SERVER].into()], []);
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership: StoredMembership::new(Some(last), members) };
    Snapshots::open(Arc::clone(&disk), dir)?.write(&meta, &state).map_err(failed("write a snapshot to", dir))?;
    let identity = Identity { node_id: FIRST_SERVER, region: backup.head.region.clone() };
    let bytes = identity.encode().map_err(failed("describe", dir))?;
    let path = dir.join(IDENTITY);
    disk::replace(&*disk, &path, &bytes).map_err(failed("write", &path))?;
    let (mut log, writer) = LogStore::open(&disk, dir, LogSizes::default(), false, &Health::new(), &unregistered()?)?;
    log.save_vote(&Vote::new(1, FIRST_SERVER)).await.map_err(failed("write the vote to", dir))?;
    log.purge(last).await.map_err(failed("write the log to", dir))?;
    drop(log);
    writer.join().await;
    // What was written is what a start will read.
    let (region, read) = replay(Arc::clone(&disk), dir).await?;
    if region != backup.head.region || read.encode() != state.encode() {
        return Err(BackupError::Inconsistent("what was restored does not read back as it was written".into()));
    }
    Ok(restore)
}

/// The state with the restore written down in it.
fn marked(mut state: State, restore: Restore, now: Timestamp) -> Result<State, BackupError> {
    let uid = uuid::Uuid::new_v4().to_string();
    let old = state.get(&restores::key()).map(Object::value);
    let object = Object::from_value(restores::record(old.as_ref(), restore, &Uid::from(uid.as_str()), now));
    let object = object.map_err(|error| BackupError::Inconsistent(error.to_string()))?;
    let op = match old {
        Some(_) => Op::Update { object, expect: Expect::default() },
        None => Op::Create { object },
    };
    let request_id = RequestId::from(format!("restore-{uid}"));
    let answer = apply(&mut state, &Command::Txn(Txn { request_id, atomic: true, ops: vec![op], now })).response;
    match answer {
        Response::Txn(outcome) if outcome.outcomes.iter().all(Result::is_ok) => Ok(state),
        other => Err(BackupError::Inconsistent(format!("the restore cannot be written down in it: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn owner(region: String) -> Owner {
        let keys = Keys { ca_key: "key".into(), ca_certificate: "certificate".into(), tunnel_key: Some(vec![7; 32]) };
        Owner { region, zone: "hearth.internal".into(), keys }
    }

    fn backup(objects: usize) -> Backup {
        let mut state = State::default();
        apply(&mut state, &Command::Initialize { incarnation: "i".into(), now: NOW });
        for number in 0..objects {
            let object = Object::from_value(serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": format!("c{number}"), "namespace": "n", "uid": format!("u{number}")}}));
            let ops = vec![Op::Create { object: object.expect("an object") }];
            let txn = Txn { request_id: RequestId::from(format!("r{number}")), atomic: true, ops, now: NOW };
            apply(&mut state, &Command::Txn(txn));
        }
        Backup::of(state, owner("home".into()), NOW).expect("it has an identity")
    }

    fn bytes(backup: &Backup) -> Vec<u8> {
        let mut out = Vec::new();
        backup.write(&mut out).expect("written");
        out
    }

    /// Puts the right checksum under bytes that were changed.
    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - SHA256_OUTPUT_LEN);
        let sum = digest(&SHA256, &bytes);
        bytes.extend_from_slice(sum.as_ref());
        bytes
    }

    #[test]
    fn a_backup_is_read_back_and_every_flipped_or_missing_byte_is_refused() {
        let written = backup(3);
        let bytes = bytes(&written);
        let read = Backup::read(&bytes).expect("intact");
        assert_eq!((read.head(), read.keys()), (written.head(), written.keys()));
        assert_eq!(read.state.encode(), written.state.encode());
        assert_eq!(read.kinds(), BTreeMap::from([(GroupKind::CONFIG_MAP, 3)]));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            Backup::read(&damaged).expect_err("damaged");
            Backup::read(&bytes[..at]).expect_err("cut off");
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(matches!(Backup::read(&longer), Err(BackupError::Checksum)));
    }

    #[test]
    fn another_file_a_newer_version_and_contradictions_are_told_apart() {
        let bytes = bytes(&backup(1));
        assert!(matches!(Backup::read(b"hello"), Err(BackupError::Magic)));
        let mut newer = bytes.clone();
        newer[8] = 2;
        let error = Backup::read(&resealed(newer)).expect_err("newer");
        assert!(matches!(error, BackupError::Version(2)) && error.to_string().contains("newer"), "{error}");
        // A head that says another revision than its state has, under a right checksum.
        let at = bytes.windows(12).position(|window| window == b"\"revision\":1").expect("the revision");
        let mut other = bytes.clone();
        other[at + 11] = b'2';
        assert!(matches!(Backup::read(&resealed(other)), Err(BackupError::Inconsistent(_))));
        let mut long = bytes;
        long[HEAD..HEAD + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Backup::read(&resealed(long)), Err(BackupError::Inconsistent(_))));
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!("{:?}", backup(0).keys());
        assert_eq!(text, "Keys { .. }");
    }

    #[tokio::test]
    async fn a_state_of_a_newer_program_is_not_restored() {
        let mut newer = backup(0);
        apply(&mut newer.state, &Command::RaiseFeatureLevel { level: FEATURE_LEVEL + 1, now: NOW });
        let restored = restore_on(Arc::new(MemoryDisk::new()), Path::new("/raft"), &newer, NOW).await;
        assert!(matches!(restored, Err(BackupError::FeatureLevel { found }) if found == FEATURE_LEVEL + 1));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..200), known in any::<bool>()) {
            let mut bytes = if known { [&MAGIC[..], &VERSION.to_le_bytes()].concat() } else { Vec::new() };
            bytes.extend(tail);
            let _ = Backup::read(&bytes);
            if bytes.len() >= HEAD + TAIL {
                let _ = Backup::read(&resealed(bytes));
            }
        }
    }
}
