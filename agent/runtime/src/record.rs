//! Records on disk that outlive the shim: who the pod is, and what became of each container.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::model::{ContainerState, ContainerStatus, IdMap};

/// Version of both kinds of record.
const VERSION: u32 = 1;
const POD_MAGIC: &str = "hearth-pod";
const CONTAINER_MAGIC: &str = "hearth-container";
/// Larger files are not records of ours.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// `pods/<uid>/pod.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    magic: String,
    version: u32,
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) id_map: IdMap,
}

impl PodRecord {
    pub(crate) fn new(uid: &str, namespace: &str, name: &str, id_map: IdMap) -> Self {
        Self {
            magic: POD_MAGIC.to_owned(),
            version: VERSION,
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            id_map,
        }
    }

    pub(crate) fn write(&self, pod_dir: &Path) -> io::Result<()> {
        replace(&pod_dir.join("pod.json"), self, false)
    }

    pub(crate) fn read(pod_dir: &Path) -> io::Result<Self> {
        let record: Self = read(&pod_dir.join("pod.json"))?;
        check(&record.magic, POD_MAGIC)?;
        Ok(record)
    }
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
    pub(crate) fn read_all(pod_dir: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(pod_dir.join("c")) else { return Vec::new() };
        let mut all: Vec<Self> = entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|x| x == "json"))
            .filter_map(|p| read::<Self>(&p).ok())
            .filter(|r| r.magic == CONTAINER_MAGIC)
            .collect();
        all.sort_by(|a, b| (&a.status.name, a.status.attempt).cmp(&(&b.status.name, b.status.attempt)));
        all
    }
}

fn path(pod_dir: &Path, name: &str, attempt: u32) -> PathBuf {
    pod_dir.join("c").join(format!("{name}.{attempt}.json"))
}

fn check(found: &str, expected: &str) -> io::Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "not a record of this kind"))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    if fs::metadata(path)?.len() > MAX_RECORD_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "record too large"));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
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
