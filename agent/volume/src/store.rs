//! The volumes of one device.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::VolumeError;

/// Which claim: a PersistentVolumeClaim's namespace, name and uid. The uid is the identity; the names make it findable for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClaimId {
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub name: String,
    /// Uid of the claim: a claim that is deleted and made again under the same name is another volume.
    pub uid: String,
}

/// What a claim asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimSpec {
    /// Bytes asked for. Recorded, and not enforced.
    pub size_bytes: Option<u64>,
    /// Permission bits of the fresh directory, which belongs to 0:0 (ids on disk are container ids).
    pub mode: u32,
}

impl Default for ClaimSpec {
    fn default() -> Self {
        Self { size_bytes: None, mode: 0o755 }
    }
}

/// A claim that this device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRecord {
    /// Which claim.
    pub id: ClaimId,
    /// What it asked for.
    pub spec: ClaimSpec,
    /// Its data directory.
    pub path: PathBuf,
}

/// One file of a ConfigMap or Secret volume.
#[derive(Clone, PartialEq, Eq)]
pub struct Projected {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

impl fmt::Debug for Projected {
    /// Never the content: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Projected {{ {} bytes, mode {:o} }}", self.bytes.len(), self.mode)
    }
}

/// The volumes of one device, in one directory.
#[derive(Debug, Clone)]
pub struct VolumeStore {
    root: PathBuf,
}

impl VolumeStore {
    /// Opens the store at `root` (`<data-dir>/agent/volumes`), and makes it where there is none.
    pub fn open(root: &Path) -> Result<Self, VolumeError> {
        Ok(Self { root: root.to_owned() })
    }

    fn later<T>(&self) -> Result<T, VolumeError> {
        Err(VolumeError::io("use", &self.root, std::io::Error::other("not written yet")))
    }

    /// The data directory of a claim, made if the claim is new.
    pub fn ensure_claim(&self, _id: &ClaimId, _spec: &ClaimSpec) -> Result<PathBuf, VolumeError> {
        self.later()
    }

    /// Deletes a claim and its data.
    pub fn delete_claim(&self, _id: &ClaimId) -> Result<(), VolumeError> {
        self.later()
    }

    /// All claims that this device holds.
    pub fn list_claims(&self) -> Result<Vec<ClaimRecord>, VolumeError> {
        self.later()
    }

    /// Writes the files of a ConfigMap or Secret volume of a pod, and returns its directory.
    pub fn project(&self, _pod_uid: &str, _volume: &str, _files: &BTreeMap<String, Projected>, _secret: bool) -> Result<PathBuf, VolumeError> {
        self.later()
    }

    /// The empty directory `volume` of a pod.
    pub fn empty_dir(&self, _pod_uid: &str, _volume: &str) -> Result<PathBuf, VolumeError> {
        self.later()
    }

    /// Removes a pod's projected volumes and empty directories, never a claim.
    pub fn remove_pod(&self, _pod_uid: &str) -> Result<(), VolumeError> {
        self.later()
    }
}
