//! Records on disk that outlive the shim: who the pod is, and what became of each container.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::model::{ContainerState, ContainerStatus, IdMap};

/// Version of both kinds of record. Fields that are added have a default and need no other version.
const VERSION: u32 = 1;
const POD_MAGIC: &str = "hearth-pod";
const CONTAINER_MAGIC: &str = "hearth-container";
/// Larger files are not records of ours.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A newer release wrote it and may mean what this one does not know of: it is left alone, with all that it names.
    #[error(
        "{path:?} is of version {theirs}, this release knows {VERSION}: use the release that wrote it, or a later one"
    )]
    Newer {
        /// File.
        path: PathBuf,
        /// Its version.
        theirs: u32,
    },
    /// It is not there, damaged, or something else.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

/// What every version of a record begins with.
#[derive(Deserialize)]
struct Head {
    magic: String,
    version: u32,
}

/// `pods/<uid>/pod.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    magic: String,
    version: u32,
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) id_map: IdMap,
    /// Pid of its shim, and when that began, in clock ticks since the machine did; 0 in records of older releases.
    #[serde(default)]
    pub(crate) shim_pid: u32,
    #[serde(default)]
    pub(crate) shim_started: u64,
}

impl PodRecord {
    /// Of the pod whose shim calls this.
    pub(crate) fn new(uid: &str, namespace: &str, name: &str, id_map: IdMap) -> Self {
        Self {
            magic: POD_MAGIC.to_owned(),
            version: VERSION,
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            id_map,
            shim_pid: std::process::id(),
            shim_started: started(std::process::id()).unwrap_or(0),
        }
    }

    pub(crate) fn write(&self, pod_dir: &Path) -> io::Result<()> {
        replace(&pod_dir.join("pod.json"), self, false)
    }

    pub(crate) fn read(pod_dir: &Path) -> Result<Self, RecordError> {
        read(&pod_dir.join("pod.json"), POD_MAGIC)
    }
}

/// When a process began, in clock ticks since the machine did (proc_pid_stat(5)): with its pid, its identity.
pub(crate) fn started(pid: u32) -> Option<u64> {
    const STARTTIME: usize = 22;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may contain spaces and parentheses; the third follows the last parenthesis.
    stat.rsplit_once(')')?.1.split_whitespace().nth(STARTTIME - 3)?.parse().ok()
}

/// `pods/<uid>/c/<name>.<attempt>.json`: written when the container runs, replaced when it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    magic: String,
    version: u32,
    pub(crate) status: ContainerStatus,
    /// Its writable layer, to be deleted with it.
    pub(crate) scratch: PathBuf,
}

impl ContainerRecord {
    pub(crate) fn new(status: ContainerStatus, scratch: PathBuf) -> Self {
        Self { magic: CONTAINER_MAGIC.to_owned(), version: VERSION, status, scratch }
    }

    /// Replaces the record. That of an exit is on disk when this returns; that of a start need not be, since a power
    /// cut ends the container anyway.
    pub(crate) fn write(&self, pod_dir: &Path) -> io::Result<()> {
        let durable = matches!(self.status.state, ContainerState::Exited { .. });
        replace(&path(pod_dir, &self.status.name, self.status.attempt), self, durable)
    }

    pub(crate) fn remove(pod_dir: &Path, name: &str, attempt: u32) {
        let _ = fs::remove_file(path(pod_dir, name, attempt));
    }

    /// All records of a pod that can be read.
    ///
    /// # Errors
    /// [`RecordError::Newer`]; what is damaged is passed over.
    pub(crate) fn read_all(pod_dir: &Path) -> Result<Vec<Self>, RecordError> {
        let Ok(entries) = fs::read_dir(pod_dir.join("c")) else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|x| x == "json")) {
            match read::<Self>(&path, CONTAINER_MAGIC) {
                Ok(record) => all.push(record),
                Err(RecordError::Unreadable(_)) => {}
                Err(newer @ RecordError::Newer { .. }) => return Err(newer),
            }
        }
        all.sort_by(|a, b| (&a.status.name, a.status.attempt).cmp(&(&b.status.name, b.status.attempt)));
        Ok(all)
    }
}

fn path(pod_dir: &Path, name: &str, attempt: u32) -> PathBuf {
    pod_dir.join("c").join(format!("{name}.{attempt}.json"))
}

fn read<T: DeserializeOwned>(path: &Path, magic: &str) -> Result<T, RecordError> {
    let invalid = |what: &str| RecordError::Unreadable(io::Error::new(io::ErrorKind::InvalidData, what));
    if fs::metadata(path)?.len() > MAX_RECORD_BYTES {
        return Err(invalid("record too large"));
    }
    let bytes = fs::read(path)?;
    let head: Head = serde_json::from_slice(&bytes).map_err(io::Error::from)?;
    if head.magic != magic {
        return Err(invalid("not a record of this kind"));
    }
    if head.version > VERSION {
        return Err(RecordError::Newer { path: path.to_path_buf(), theirs: head.version });
    }
    Ok(serde_json::from_slice(&bytes).map_err(io::Error::from)?)
}

/// Write, sync, rename, sync the directory.
fn replace<T: Serialize>(path: &Path, value: &T, durable: bool) -> io::Result<()> {
    let tmp = path.with_extension("tmp");
    let mut file = File::create(&tmp)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&tmp, path)?;
    if durable && let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_dir(pod: &str, container: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(dir.path().join("c")).expect("makes a directory");
        fs::write(dir.path().join("pod.json"), pod).expect("writes");
        fs::write(dir.path().join("c/web.3.json"), container).expect("writes");
        dir
    }

    /// Bytes as the first release wrote them.
    const POD_1: &str = r#"{"magic":"hearth-pod","version":1,"uid":"u","namespace":"alice","name":"web-0","id_map":{"host_base":65536,"size":65536}}"#;
    const CONTAINER_1: &str = r#"{"magic":"hearth-container","version":1,"status":{"name":"web","attempt":3,"state":{"Running":{"pid":7,"started_at":{"secs_since_epoch":1,"nanos_since_epoch":0}}}},"scratch":"/s"}"#;

    #[test]
    fn records_of_the_first_release_are_read() {
        let dir = pod_dir(POD_1, CONTAINER_1);
        let pod = PodRecord::read(dir.path()).expect("reads");
        assert_eq!((pod.name.as_str(), pod.shim_pid), ("web-0", 0));
        let all = ContainerRecord::read_all(dir.path()).expect("reads");
        assert_eq!(all.iter().map(|r| r.status.attempt).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn records_of_a_newer_release_are_told_from_damaged_ones() {
        // Nothing but the head need be as it was.
        let dir = pod_dir(
            r#"{"magic":"hearth-pod","version":2,"identity":{"uid":"u"}}"#,
            r#"{"magic":"hearth-container","version":9,"layers":[]}"#,
        );
        let error = PodRecord::read(dir.path()).expect_err("is newer");
        assert!(matches!(error, RecordError::Newer { theirs: 2, .. }), "{error}");
        let error = ContainerRecord::read_all(dir.path()).expect_err("is newer");
        assert!(error.to_string().contains("version 9, this release knows 1"), "{error}");

        for bad in ["", "{", r#"{"magic":"other","version":2}"#, r#"{"magic":"hearth-pod","version":1}"#] {
            let dir = pod_dir(bad, bad);
            assert!(matches!(PodRecord::read(dir.path()), Err(RecordError::Unreadable(_))), "{bad}");
            assert!(ContainerRecord::read_all(dir.path()).expect("passes it over").is_empty(), "{bad}");
        }
    }
}
