//! The layout of a data directory, its locks, and the reports that a starting role leaves in it.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hearth_types::InstanceId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// How long a lock may be held by somebody who only looks whether it is, or who was just killed.
const LOOK: Duration = Duration::from_secs(1);

/// The paths in a data directory.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
}

/// Which process a lock or a report belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// `hearth up`, which supervises the other two.
    Up,
    /// `hearth server`.
    Server,
    /// `hearth agent`.
    Agent,
    /// `hearth relay`.
    Relay,
}

impl Role {
    /// Its verb, and the name of its files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Server => "server",
            Self::Agent => "agent",
            Self::Relay => "relay",
        }
    }
}

/// A lock that is held for as long as this lives. Children do not inherit it.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// What a role says of its start: where it listens, or why it could not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Report<T> {
    /// It answers.
    Ready(T),
    /// It gave up.
    Failed(String),
}

/// Where a server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerReport {
    pub(crate) pid: u32,
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) api: SocketAddr,
    pub(crate) gateway: SocketAddr,
    pub(crate) dns: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) tunnel: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) relay: Option<SocketAddr>,
}

/// What an agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentReport {
    pub(crate) pid: u32,
    pub(crate) device: String,
    pub(crate) metrics: Option<SocketAddr>,
}

/// Where a relay of its own answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RelayReport {
    pub(crate) pid: u32,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) url: String,
    pub(crate) relay: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

/// How far `hearth up` is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpReport {
    pub(crate) pid: u32,
}

impl DataDir {
    /// Makes the directory where it is missing, and finds its one absolute name.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make the data directory {}", path.display()))?;
        Self::existing(path)
    }

    /// A directory that is there.
    pub(crate) fn existing(path: &Path) -> Result<Self> {
        let root = path.canonicalize().with_context(|| format!("no data directory {}", path.display()))?;
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What tells this instance's host objects from another's.
    pub(crate) fn instance(&self) -> InstanceId {
        InstanceId::of_data_dir(&self.root)
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.root.join("ca.pem")
    }

    pub(crate) fn client_config(&self) -> PathBuf {
        self.root.join("client.yaml")
    }

    pub(crate) fn server(&self) -> PathBuf {
        self.root.join("server")
    }

    /// What a relay of its own keeps.
    pub(crate) fn relay(&self) -> PathBuf {
        self.root.join("relay")
    }

    /// The store of the server.
    pub(crate) fn raft(&self) -> PathBuf {
        self.server().join("raft")
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.root.join("agent")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.agent().join("images")
    }

    /// The log of a process in the background.
    pub(crate) fn log(&self, role: Role) -> PathBuf {
        self.root.join("logs").join(format!("{}.log", role.name()))
    }

    /// Which examples were installed once: one that its owner deleted is not installed again.
    pub(crate) fn examples(&self) -> PathBuf {
        self.root.join("examples.json")
    }

    fn lock_path(&self, role: Role) -> PathBuf {
        self.root.join(format!("{}.lock", role.name()))
    }

    fn report_path(&self, role: Role) -> PathBuf {
        self.root.join(format!("{}.json", role.name()))
    }

    /// Takes a role's lock; an error where another process has it.
    pub(crate) fn lock(&self, role: Role) -> Result<Lock> {
        let path = self.lock_path(role);
        let file = open_lock(&path)?;
        let deadline = Instant::now() + LOOK;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            // It may be that somebody only looks.
            if Instant::now() < deadline {
                std::thread::sleep(LOOK / 20);
                continue;
            }
            let what = if role == Role::Up { "hearth up".to_owned() } else { format!("hearth {}", role.name()) };
            bail!(
                "{what} is running already for the data directory {} ({} is locked); \
                 see `hearth status --data-dir {0}`, stop it with `hearth down --data-dir {0}`, or choose another --data-dir",
                self.root.display(),
                path.display()
            );
        }
        Ok(Lock { _file: file })
    }

    /// Whether some process holds a role's lock.
    pub(crate) fn is_locked(&self, role: Role) -> bool {
        let path = self.lock_path(role);
        // Those who look do not see each other.
        path.exists() && open_lock(&path).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
    }

    /// What a role reported of its start; `None` before it did.
    pub(crate) fn report<T: DeserializeOwned>(&self, role: Role) -> Option<Report<T>> {
        serde_json::from_slice(&fs::read(self.report_path(role)).ok()?).ok()
    }

    /// Leaves a report.
    pub(crate) fn write_report<T: Serialize>(&self, role: Role, report: &Report<T>) -> Result<()> {
        write_atomically(&self.report_path(role), &serde_json::to_vec_pretty(report)?, 0o644)
    }

    /// Removes a role's report: it is not ready.
    pub(crate) fn clear_report(&self, role: Role) -> Result<()> {
        match fs::remove_file(self.report_path(role)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.report_path(role).display()))
            }
            _ => Ok(()),
        }
    }
}

fn open_lock(path: &Path) -> Result<File> {
    // Rust opens files close-on-exec; the zygote closes what it inherits by fork.
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open the lock {}", path.display()))
}

/// Replaces a file so that a reader, or a start after a power cut, sees the old or the new one, whole.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let temporary = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    write().with_context(|| {
        // What was written of it may be what fills the disk.
        let _ = fs::remove_file(&temporary);
        format!("cannot write {}", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_seen_by_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::create(dir.path()).expect("a data directory");
        assert!(!data.is_locked(Role::Up));
        let lock = data.lock(Role::Up).expect("the first");
        assert!(data.is_locked(Role::Up));
        let error = data.lock(Role::Up).expect_err("a second").to_string();
        assert!(error.contains("running already") && error.contains("hearth down"), "{error}");
        data.lock(Role::Server).expect("another role's lock");
        drop(lock);
        assert!(!data.is_locked(Role::Up));
        let look = open_lock(&data.lock_path(Role::Up)).expect("opened");
        flock(&look, FlockOperation::LockShared).expect("looking");
        assert!(!data.is_locked(Role::Up), "another who looks");
        let (root, waiting) = (data.clone(), Instant::now());
        let locking = std::thread::spawn(move || root.lock(Role::Up).map(drop));
        while waiting.elapsed() < LOOK / 10 {
            std::thread::yield_now();
        }
        drop(look);
        locking.join().expect("joined").expect("not taken for a second instance");
    }

    #[test]
    fn reports_are_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::create(dir.path()).expect("a data directory");
        assert_eq!(data.report::<UpReport>(Role::Up), None);
        data.write_report::<UpReport>(Role::Up, &Report::Failed("no".into())).expect("written");
        assert_eq!(data.report::<UpReport>(Role::Up), Some(Report::Failed("no".into())));
        data.clear_report(Role::Up).expect("removed");
        data.clear_report(Role::Up).expect("removed twice");
        assert_eq!(data.report::<UpReport>(Role::Up), None);
    }
}
