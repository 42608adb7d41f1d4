//! Snapshots on disk.
//!
//! A file `snapshot-<index>-<number>.snap` is a sealed head (see [`crate::sealed`]) that says up to which entry it goes
//! and who was a member then, and the state as [`hearth_state::snapshot`] writes it. Before both stands the length of the
//! head (u32, little-endian). Files are written under another name and renamed once they are durable.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hearth_state::State;
use openraft::{Membership, impls::BasicNode};
use serde::{Deserialize, Serialize};

use crate::{
    disk::{self, Disk, TEMPORARY},
    sealed,
    types::{LogId, SnapshotMeta, StoredMembership, log_id},
};

const MAGIC: [u8; 8] = *b"HEARTHSN";
/// Snapshots kept: the newest, and the one before, which is of use as long as the log reaches back to it.
const KEPT: usize = 2;
/// What is handed to the disk at once.
const CHUNK: usize = 1 << 20;
/// Bytes that a snapshot leaves free for the log: thousands of writes, until it is written and the log is cut.
const LOG_ROOM: u64 = 4 << 20;

/// Why the snapshots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotsError {
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
    /// A file is damaged and nothing replaces it.
    #[error(
        "the snapshot {path} cannot be read: {why}, and the log does not reach back to an older one. Nothing was changed. Restore the \
         region from a backup, or, where other servers have its data, remove this server's raft folder and join it anew",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A snapshot on disk: where it is. The bytes are read when they are needed.
#[derive(Clone)]
pub(crate) struct SnapshotFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl std::fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl SnapshotFile {
    /// The name of its file.
    pub(crate) fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// How many bytes it has.
    pub(crate) async fn size(&self) -> io::Result<u64> {
        let (disk, path) = (Arc::clone(&self.disk), self.path.clone());
        disk::call(&self.disk, move || disk.size(&path)).await
    }

    /// At most `length` bytes of it, from `offset` on; an error where there are none.
    pub(crate) async fn part(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let (disk, path) = (Arc::clone(&self.disk), self.path.clone());
        let bytes = disk::call(&self.disk, move || disk.read_part(&path, offset, length)).await?;
        if bytes.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }

    /// Reads it.
    pub(crate) fn load(&self) -> io::Result<(SnapshotMeta, State, u64)> {
        let bytes = self.disk.read(&self.path)?;
        let (meta, state) = read(&bytes).map_err(|why| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot {}: {why}", self.path.display()))
        })?;
        Ok((meta, state, bytes.len() as u64))
    }
}

/// What the head says, as JSON.
#[derive(Serialize, Deserialize)]
struct Head {
    last_log_id: Option<EntryId>,
    last_membership: Members,
}

#[derive(Serialize, Deserialize)]
struct Members {
    log_id: Option<EntryId>,
    membership: Membership<u64, BasicNode>,
}

#[derive(Serialize, Deserialize)]
struct EntryId {
    leader_id: Leader,
    index: u64,
}

#[derive(Serialize, Deserialize)]
struct Leader {
    term: u64,
}

impl From<&SnapshotMeta> for Head {
    fn from(meta: &SnapshotMeta) -> Self {
        let id = |id: &LogId| EntryId { leader_id: Leader { term: id.leader_id.term }, index: id.index };
        let members = &meta.last_membership;
        let log_id = members.log_id().as_ref().map(id);
        let last_membership = Members { log_id, membership: members.membership().clone() };
        Self { last_log_id: meta.last_log_id.as_ref().map(id), last_membership }
    }
}

impl From<Head> for SnapshotMeta {
    fn from(head: Head) -> Self {
        let id = |id: EntryId| log_id(id.leader_id.term, id.index);
        let Members { log_id, membership } = head.last_membership;
        let last_membership = StoredMembership::new(log_id.map(id), membership);
        Self { last_log_id: head.last_log_id.map(id), last_membership }
    }
}

/// The snapshots of a directory.
#[derive(Clone)]
pub(crate) struct Snapshots {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

/// The newest snapshot that could be read.
pub(crate) struct Newest {
    pub(crate) meta: SnapshotMeta,
    pub(crate) file: SnapshotFile,
    pub(crate) state: State,
    pub(crate) bytes: u64,
    /// A newer one that could not be.
    pub(crate) skipped: Option<(PathBuf, String)>,
}

impl Snapshots {
    /// The snapshots of a directory; what was not finished is removed.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, SnapshotsError> {
        let all = Self { disk, dir: dir.to_owned() };
        for name in all.names("list")? {
            if name.starts_with("snapshot-") && name.ends_with(TEMPORARY) {
                let path = dir.join(name);
                all.disk.remove(&path).map_err(|source| SnapshotsError::Io { what: "remove", path, source })?;
            }
        }
        Ok(all)
    }

    /// The disk that they are on.
    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk)
    }

    /// The newest one that is intact.
    pub(crate) fn newest(&self) -> Result<Option<Newest>, SnapshotsError> {
        let mut skipped = None;
        for (_, path) in self.sorted()?.into_iter().rev() {
            let bytes = match self.disk.read(&path) {
                Ok(bytes) => bytes,
                Err(source) => return Err(SnapshotsError::Io { what: "read", path, source }),
            };
            match read(&bytes) {
                Ok((meta, state)) => {
                    let file = SnapshotFile { disk: Arc::clone(&self.disk), path };
                    return Ok(Some(Newest { meta, file, state, bytes: bytes.len() as u64, skipped }));
                }
                Err(why) => {
                    tracing::error!(path = %path.display(), why, "a snapshot cannot be read, trying the one before");
                    skipped.get_or_insert((path, why));
                }
            }
        }
        match skipped {
            Some((path, why)) => Err(SnapshotsError::Damaged { path, why }),
            None => Ok(None),
        }
    }

    /// Gives a snapshot that another server sent, whole and durable, a name of its own, where it can be read. Removes it otherwise.
    pub(crate) fn adopt(&self, from: &Path) -> io::Result<(SnapshotMeta, SnapshotFile)> {
        let checked = SnapshotFile { disk: Arc::clone(&self.disk), path: from.to_owned() }.load();
        let (meta, _, _) = checked.inspect_err(|_| drop(self.disk.remove(from)))?;
        let path = self.next_path(&meta);
        self.disk.rename(from, &path)?;
        self.disk.sync_dir(&self.dir)?;
        Ok((meta, SnapshotFile { disk: Arc::clone(&self.disk), path }))
    }

    /// The path of a new snapshot: no other has had it.
    fn next_path(&self, meta: &SnapshotMeta) -> PathBuf {
        let index = meta.last_log_id.map_or(0, |id| id.index);
        let highest = self.sorted().ok().and_then(|all| all.iter().map(|(order, _)| order.1).max());
        let number = highest.map_or(1, |highest| highest + 1);
        self.dir.join(format!("snapshot-{index:020}-{number:010}.snap"))
    }

    /// Writes a snapshot; durable on return. Returns it with its size.
    pub(crate) fn write(&self, meta: &SnapshotMeta, state: &State) -> io::Result<(SnapshotFile, u64)> {
        let path = self.next_path(meta);
        let json = serde_json::to_vec(&Head::from(meta)).map_err(io::Error::other)?;
        let head = sealed::seal(MAGIC, &json);
        self.check_room(state)?;
        let mut size = 4 + head.len() as u64;
        disk::write_whole(&*self.disk, &path, |file| {
            file.append(&(head.len() as u32).to_le_bytes())?;
            file.append(&head)?;
            let out = Appending { file, size: &mut size };
            state.write_snapshot(io::BufWriter::with_capacity(CHUNK, out))
        })?;
        Ok((SnapshotFile { disk: Arc::clone(&self.disk), path }, size))
    }

    /// Whether a snapshot fits beside the log that goes on meanwhile: one that fills the disk would stop the log.
    fn check_room(&self, state: &State) -> io::Result<()> {
        let mut counted = Counting(LOG_ROOM);
        state.write_snapshot(&mut counted)?;
        // A disk that does not say is tried.
        let free = self.disk.free(&self.dir).unwrap_or(u64::MAX);
        if free >= counted.0 {
            return Ok(());
        }
        let why = format!(
            "{free} bytes are free in {}, a snapshot and the log beside it need {}",
            self.dir.display(),
            counted.0
        );
        Err(io::Error::new(io::ErrorKind::StorageFull, why))
    }

    /// Removes all but the newest ones.
    pub(crate) fn prune(&self) -> io::Result<()> {
        let all = self.sorted().map_err(io::Error::other)?;
        let old = all.len().saturating_sub(KEPT);
        for (_, path) in &all[..old] {
            self.disk.remove(path)?;
        }
        if old > 0 { self.disk.sync_dir(&self.dir) } else { Ok(()) }
    }

    /// The files, oldest first.
    fn sorted(&self) -> Result<Vec<(Order, PathBuf)>, SnapshotsError> {
        let names = self.names("list")?;
        let mut all: Vec<_> = names.iter().filter_map(|name| Some((order_of(name)?, self.dir.join(name)))).collect();
        all.sort_unstable();
        Ok(all)
    }

    fn names(&self, what: &'static str) -> Result<Vec<String>, SnapshotsError> {
        self.disk.list(&self.dir).map_err(|source| SnapshotsError::Io { what, path: self.dir.clone(), source })
    }
}

/// What orders snapshots: the index of the last entry, and a number that rises.
type Order = (u64, u64);

fn order_of(name: &str) -> Option<Order> {
    let (index, number) = name.strip_prefix("snapshot-")?.strip_suffix(".snap")?.split_once('-')?;
    Some((index.parse().ok()?, number.parse().ok()?))
}

/// Reads the bytes of a snapshot. Never panics, whatever they are.
fn read(bytes: &[u8]) -> Result<(SnapshotMeta, State), String> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or("it is cut off")?;
    let (head, state) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or("it is cut off")?;
    let json = sealed::open(MAGIC, head).map_err(|error| error.to_string())?;
    let meta = serde_json::from_slice::<Head>(json).map_err(|error| error.to_string())?.into();
    let state = State::decode(state).map_err(|error| error.to_string())?;
    Ok((meta, state))
}

/// Reads the bytes of a snapshot and lets go of what they say.
pub(crate) fn decode(bytes: &[u8]) {
    let _ = read(bytes);
}

/// The bytes of a snapshot with a head (JSON) and the fields of a state, whatever those are.
pub(crate) fn seal(head: &[u8], fields: &[u8]) -> Vec<u8> {
    let head = sealed::seal(MAGIC, head);
    [&(head.len() as u32).to_le_bytes()[..], &head, &hearth_state::snapshot::seal(fields)].concat()
}

/// Counts the bytes that a snapshot would have.
struct Counting(u64);

impl io::Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Appending<'a> {
    file: &'a mut dyn disk::DiskFile,
    size: &'a mut u64,
}

impl io::Write for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.append(bytes)?;
        *self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::{Fault, MemoryDisk};

    #[test]
    fn what_is_sealed_for_fuzzing_is_a_snapshot() {
        let state = State::default().encode();
        let fields = &state[12..state.len() - 12];
        let head = serde_json::to_vec(&Head::from(&SnapshotMeta::default())).expect("JSON");
        read(&seal(&head, fields)).expect("intact");
        read(&seal(&head, &fields[1..])).expect_err("other fields");
    }

    #[test]
    fn the_newest_intact_snapshot_counts() {
        let disk = MemoryDisk::new();
        let dir = Path::new("/raft");
        let all = Snapshots::open(Arc::new(disk.clone()), dir).expect("opens");
        assert!(all.newest().expect("none").is_none());
        let mut state = State::default();
        let mut paths = Vec::new();
        for number in 1..4_u64 {
            let command = hearth_state::Command::Initialize {
                incarnation: "i".into(),
                now: hearth_types::Timestamp(number as i64),
            };
            hearth_state::apply(&mut state, &command);
            paths.push(all.write(&SnapshotMeta::default(), &state).expect("written").0.path);
        }
        all.prune().expect("pruned");
        assert_eq!(disk.list(dir).expect("listed").len(), KEPT);
        let newest = all.newest().expect("read").expect("there");
        assert_eq!(newest.file.path, paths[2]);
        assert_eq!(newest.state.encode(), state.encode());
        disk.tamper(&paths[2], |bytes| bytes[60] ^= 1);
        let newest = all.newest().expect("read").expect("there");
        assert_eq!((newest.file.path, newest.skipped.expect("told").0), (paths[1].clone(), paths[2].clone()));
        disk.tamper(&paths[1], |bytes| bytes.truncate(30));
        assert!(matches!(all.newest(), Err(SnapshotsError::Damaged { path, .. }) if path == paths[2]));
    }

    #[test]
    fn a_snapshot_that_fails_leaves_nothing_behind() {
        let disk = MemoryDisk::new();
        let dir = Path::new("/raft");
        let all = Snapshots::open(Arc::new(disk.clone()), dir).expect("opens");
        let state = State::default();
        // Not worth beginning.
        disk.inject(Fault::Full { capacity: 1 << 20 });
        let error = all.write(&SnapshotMeta::default(), &state).expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.changes(), 0);
        // Begun, and failed at every later step but the last, which is of the directory.
        disk.heal();
        disk.inject(Fault::Sync { after: 0 });
        all.write(&SnapshotMeta::default(), &state).expect_err("no sync");
        assert_eq!(disk.list(dir).expect("listed"), Vec::<String>::new());
        disk.inject(Fault::Full { capacity: 30 });
        disk::replace(&disk, &dir.join("x"), &[7; 100]).expect_err("no room");
        disk::replace(&disk, &dir.join("x"), &[7; 30]).expect("the room is free again");
        assert_eq!(disk.list(dir).expect("listed"), ["x"]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), length in 0_u32..40) {
            let mut file = length.to_le_bytes().to_vec();
            file.extend(bytes);
            let _ = read(&file);
        }
    }
}
