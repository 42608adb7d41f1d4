//! The volumes of one device.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::claims::Claims;
use crate::{ClaimId, ClaimRecord, ClaimSpec, Projected, VolumeError, files, name, projected, remove};

/// The volumes of one device, in one directory. Cheap to clone; all methods may be called from any thread and process at once.
#[derive(Debug, Clone)]
pub struct VolumeStore {
    root: PathBuf,
}

/// Proof that the store is locked for changes.
struct Lock {
    _file: File,
}

#[derive(Serialize, Deserialize)]
struct FormatFile {}

/// An error with what caused it, for a log line.
struct Chain<'a>(&'a VolumeError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        match std::error::Error::source(self.0) {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl VolumeStore {
    /// Opens the store at `root` (`<data-dir>/agent/volumes`), and makes it where there is none. Finishes deletions that were interrupted.
    pub fn open(root: &Path) -> Result<Self, VolumeError> {
        // The paths of volumes outlive the caller's working directory.
        let root = &std::path::absolute(root).map_err(|error| VolumeError::io("find", root, error))?;
        files::make_directory(root, 0o700)?;
        std::fs::set_permissions(root, Permissions::from_mode(0o700))
            .map_err(|error| VolumeError::io("protect", root, error))?;
        let store = Self { root: root.clone() };
        let _lock = store.lock()?;
        if !store.is_formatted()? {
            store.refuse_foreign_content()?;
            for directory in ["ledger", "claims", "claims/.trash", "pods", "pods/.trash"] {
                files::make_directory(&root.join(directory), 0o755)?;
            }
            // Last: a store without it is one that was never finished.
            files::write(&root.join("format"), FormatFile {})?;
        }
        store.refuse_missing_parts()?;
        store.claims().recover()?;
        for trash in [store.claims().trash(), store.pods().join(".trash")] {
            // Nothing that is wanted is in there: no reason not to start.
            if let Err(error) = remove::empty(&trash) {
                tracing::warn!(error = %Chain(&error), "cannot empty the trash");
            }
        }
        Ok(store)
    }

    /// The data directory of a claim, made if the claim is new.
    ///
    /// A fresh one is empty, belongs to 0:0 (container ids) and has the mode of `spec`; afterwards its owner and mode are the app's own. For a
    /// claim that is known, `spec` is not looked at, and its data must be there: a missing or another disk is an error, never a new volume.
    pub fn ensure_claim(&self, id: &ClaimId, spec: &ClaimSpec) -> Result<PathBuf, VolumeError> {
        let _lock = self.lock()?;
        self.claims().ensure(id, spec)
    }

    /// Deletes a claim and its data. Interrupted, it is finished by the next [`Self::open`].
    pub fn delete_claim(&self, id: &ClaimId) -> Result<(), VolumeError> {
        let _lock = self.lock()?;
        self.claims().delete(id)
    }

    /// All claims that this device holds, by namespace and name. Whether their data is there is what [`Self::ensure_claim`] finds out.
    pub fn list_claims(&self) -> Result<Vec<ClaimRecord>, VolumeError> {
        self.claims().list()
    }

    /// Brings a ConfigMap or Secret volume of a pod to hold exactly `files` (key or relative path to content), and returns its directory.
    ///
    /// The directory stays the same one, so a running container sees the update; it sees all old files or all new ones. Nothing is written
    /// where nothing changed.
    pub fn project(
        &self,
        pod_uid: &str,
        volume: &str,
        files: &BTreeMap<String, Projected>,
        secret: bool,
    ) -> Result<PathBuf, VolumeError> {
        let directory = self.pod_volume(pod_uid, if secret { "secret" } else { "config" }, volume)?;
        projected::check(volume, files)?;
        let _lock = self.lock()?;
        projected::write(&directory, files)?;
        Ok(directory)
    }

    /// The empty directory `volume` of a pod, made if it is new: mode 0777 as the kubelet's, since the container may run as any user.
    pub fn empty_dir(&self, pod_uid: &str, volume: &str) -> Result<PathBuf, VolumeError> {
        let directory = self.pod_volume(pod_uid, "empty", volume)?;
        let _lock = self.lock()?;
        if directory.is_dir() {
            // Its mode is the container's by now.
            return Ok(directory);
        }
        // Under its name only with its mode. No volume is called so: names do not begin with a dot.
        let fresh = directory.with_file_name(format!(".new-{}", &volume[..volume.len().min(200)]));
        files::make_directory(&fresh, 0o755)?;
        std::fs::set_permissions(&fresh, Permissions::from_mode(0o777))
            .map_err(|error| VolumeError::io("set the mode of", &fresh, error))?;
        files::rename(&fresh, &directory)?;
        Ok(directory)
    }

    /// Removes a pod's projected volumes and empty directories, never a claim. A pod without any is no error.
    pub fn remove_pod(&self, pod_uid: &str) -> Result<(), VolumeError> {
        name::check_uid("pod uid", pod_uid)?;
        let _lock = self.lock()?;
        let directory = self.pods().join(pod_uid);
        let trash = self.pods().join(".trash");
        if directory.symlink_metadata().is_ok() {
            remove::into_trash(&directory, &trash, pod_uid)?;
        }
        remove::empty(&trash)
    }

    fn pod_volume(&self, pod_uid: &str, kind: &str, volume: &str) -> Result<PathBuf, VolumeError> {
        name::check_uid("pod uid", pod_uid)?;
        name::check_name("volume", volume)?;
        Ok(self.pods().join(pod_uid).join(kind).join(volume))
    }

    fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    fn claims(&self) -> Claims<'_> {
        Claims { root: &self.root }
    }

    fn is_formatted(&self) -> Result<bool, VolumeError> {
        let path = self.root.join("format");
        match files::read::<FormatFile>(&path) {
            Ok(format) => Ok(format.is_some()),
            Err(VolumeError::Damaged { reason, .. }) => Err(VolumeError::Format { path, reason }),
            Err(error) => Err(error),
        }
    }

    /// A directory with other things in it is somebody's, and no place for a store.
    fn refuse_foreign_content(&self) -> Result<(), VolumeError> {
        for path in files::list(&self.root)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !matches!(name.as_str(), "lock" | "ledger" | "claims" | "pods" | "format.tmp") {
                let reason = format!("it has no format file, and something else in it: {name}");
                return Err(VolumeError::Format { path: self.root.clone(), reason });
            }
            // Claims without a format file: the disk of the store itself is another one than it was.
            if matches!(name.as_str(), "ledger" | "claims")
                && files::list(&path)?.iter().any(|path| !path.ends_with(".trash"))
            {
                let reason = format!("it has no format file, and yet claims in {name}");
                return Err(VolumeError::Format { path: self.root.clone(), reason });
            }
        }
        Ok(())
    }

    /// A part that is gone is a disk that is gone, and not to be made anew.
    fn refuse_missing_parts(&self) -> Result<(), VolumeError> {
        for directory in ["ledger", "claims", "claims/.trash", "pods", "pods/.trash"] {
            let path = self.root.join(directory);
            if !path.is_dir() {
                let reason = "it is missing: is its disk mounted?".into();
                return Err(VolumeError::Format { path, reason });
            }
        }
        Ok(())
    }

    fn lock(&self) -> Result<Lock, VolumeError> {
        let path = self.root.join("lock");
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o600);
        let file = options.open(&path).map_err(|error| VolumeError::io("open", &path, error))?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(VolumeError::io("lock", &path, error)),
            }
        }
    }
}
