//! The volumes of one device.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::claims::{Claims, QuarantinedClaim};
use crate::remove::Stuck;
use crate::{
    ClaimId, ClaimRecord, ClaimSpec, Handed, Projected, Taken, Tenure, VolumeError, files, name, projected, remove,
};

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
    /// Opens the store at `root` (`<data-dir>/agent/volumes`), and makes it where there is none. Finishes what was interrupted, as
    /// [`Self::recover`] does; the trash is left to [`Self::empty_trash`], which may take long.
    pub fn open(root: &Path) -> Result<Self, VolumeError> {
        // The paths of volumes outlive the caller's working directory.
        let root = &std::path::absolute(root).map_err(|error| VolumeError::io("find", root, error))?;
        // Beside the store: it stays where the store's disk goes.
        let made = root.with_extension("made");
        files::make_directory(root, 0o700)?;
        std::fs::set_permissions(root, Permissions::from_mode(0o700))
            .map_err(|error| VolumeError::io("protect", root, error))?;
        let store = Self { root: root.clone() };
        let _lock = store.lock()?;
        if !store.is_formatted()? {
            store.refuse_foreign_content()?;
            if made.symlink_metadata().is_ok() {
                let reason = format!(
                    "it is empty, and a store was made here: is its disk mounted? If its volumes are lost for good, remove {}",
                    made.display()
                );
                return Err(VolumeError::Format { path: root.clone(), reason });
            }
            for directory in ["ledger", "claims", "claims/.trash", "pods", "pods/.trash"] {
                files::make_directory(&root.join(directory), 0o755)?;
            }
            // Last: a store without it is one that was never finished.
            files::write(&root.join("format"), FormatFile {})?;
        }
        store.refuse_missing_parts()?;
        if made.symlink_metadata().is_err() {
            files::write(&made, FormatFile {})?;
        }
        for claim in store.claims().recover()? {
            tracing::error!(entry = ?claim.path, error = %Chain(&claim.error), "a claim is set aside: nothing can use it");
        }
        Ok(store)
    }

    /// Tries again to finish deletions that were interrupted, and returns the claims that are set aside: those whose deletion cannot be
    /// finished (a disk mounted over them, for example), and those whose entry in the ledger cannot be read. Mounting such a claim is an
    /// error; all other claims work.
    pub fn recover(&self) -> Result<Vec<QuarantinedClaim>, VolumeError> {
        let _lock = self.lock()?;
        self.claims().recover()
    }

    /// Frees the space of what was deleted: to be called after [`Self::open`], [`Self::delete_claim`] and [`Self::remove_pod`], on a thread
    /// that may block for as long as it takes to remove all those files.
    ///
    /// # Guarantees
    /// Holds up no other call, in this process or another. One call works at a time, and takes along what is thrown away meanwhile; the
    /// others return at once. Killed at any moment, the next call goes on. What cannot be removed does not keep the rest, and is the error.
    pub fn empty_trash(&self) -> Result<(), VolumeError> {
        let trashes = [self.claims().trash(), self.pods().join(".trash")];
        let mut stuck = [Stuck::new(), Stuck::new()];
        let mut first = Ok(());
        loop {
            let Some(turn) = self.lock_file("trash.lock", FlockOperation::NonBlockingLockExclusive)? else {
                return first;
            };
            for (trash, stuck) in trashes.iter().zip(&mut stuck) {
                first = first.and(remove::empty(trash, stuck));
            }
            drop(turn);
            // Whoever was turned away while we had the lock had thrown its own away before: so it is seen here.
            let fresh = |(trash, stuck)| remove::has_fresh(trash, stuck);
            if !trashes
                .iter()
                .map(PathBuf::as_path)
                .zip(&stuck)
                .map(fresh)
                .collect::<Result<Vec<_>, _>>()?
                .contains(&true)
            {
                return first;
            }
        }
    }

    /// Whether something that was deleted still takes room. After an [`Self::empty_trash`] without error, somebody else is at it.
    pub fn has_trash(&self) -> Result<bool, VolumeError> {
        let none = Stuck::new();
        Ok(remove::has_fresh(&self.claims().trash(), &none)? || remove::has_fresh(&self.pods().join(".trash"), &none)?)
    }

    /// The data directory of a claim, made if the claim is new.
    ///
    /// A fresh one is empty, belongs to 0:0 (container ids) and has the mode of `spec`; afterwards its owner and mode are the app's own. For a
    /// claim that is known, `spec` is not looked at, and its data must be there: a missing or another disk is an error, never a new volume.
    pub fn ensure_claim(&self, id: &ClaimId, spec: &ClaimSpec) -> Result<PathBuf, VolumeError> {
        let _lock = self.lock()?;
        self.claims().ensure(id, spec)
    }

    /// The same of a claim that moves, for one of its writers. Its data is that of the writer before, where this device has it; else it begins empty,
    /// and what the device had of an earlier one is set aside: the last one of each claim is kept until the claim is deleted here.
    ///
    /// # Errors
    /// [`VolumeError::OldEpoch`] for a writer that was superseded.
    pub fn ensure_claim_for(&self, id: &ClaimId, spec: &ClaimSpec, tenure: Tenure) -> Result<Handed, VolumeError> {
        let _lock = self.lock()?;
        self.claims().ensure_for(id, spec, tenure)
    }

    /// A claim moved away: what this device has of this writer is set aside. Returns where it is; `None` where it has none. Nobody may use it.
    pub fn retire_claim(&self, id: &ClaimId, epoch: u64) -> Result<Option<PathBuf>, VolumeError> {
        let _lock = self.lock()?;
        self.claims().retire(id, epoch)
    }

    /// Whether the data of a claim that was handed out is still there, and its file system takes writes if `writable`. A disk that went away or
    /// is another one, or was made read-only after errors, is the error. Writes nothing and holds up no other call.
    pub fn check_claim(&self, id: &ClaimId, writable: bool) -> Result<(), VolumeError> {
        self.claims().check(id, writable)
    }

    /// Deletes a claim: when this returns, it is gone for good, also after a power cut, and [`Self::empty_trash`] frees its space. A claim
    /// that is not here is no error. Interrupted, it is finished by the next [`Self::open`].
    pub fn delete_claim(&self, id: &ClaimId) -> Result<(), VolumeError> {
        let _lock = self.lock()?;
        self.claims().delete(id)
    }

    /// All claims that this device holds, by namespace and name, without those that are set aside. Whether their data is there is what [`Self::ensure_claim`] finds out.
    pub fn list_claims(&self) -> Result<Vec<ClaimRecord>, VolumeError> {
        self.claims().list()
    }

    /// Brings a ConfigMap or Secret volume of a pod to hold exactly `files` (key or relative path to content), and returns its directory.
    ///
    /// With a group, the files are its own, and it may read them.
    ///
    /// The directory stays the same one, so a running container sees the update; it sees all old files or all new ones. Nothing is written
    /// where nothing changed.
    pub fn project(
        &self,
        pod_uid: &str,
        volume: &str,
        files: &BTreeMap<String, Projected>,
        secret: bool,
        group: Option<u32>,
    ) -> Result<PathBuf, VolumeError> {
        let directory = self.pod_volume(pod_uid, if secret { "secret" } else { "config" }, volume)?;
        projected::check(volume, files)?;
        let _lock = self.lock()?;
        match group {
            None => projected::write(&directory, files, 0)?,
            Some(group) => projected::write(&directory, &projected::readable(files), group)?,
        }
        Ok(directory)
    }

    /// The empty directory `volume` of a pod, made if it is new: mode 0777 as the kubelet's, since the container may run as any user. A group
    /// is handed down to what is made in it.
    pub fn empty_dir(&self, pod_uid: &str, volume: &str, group: Option<u32>) -> Result<PathBuf, VolumeError> {
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
        if let Some(group) = group {
            crate::group::set(&fresh, group)?;
        }
        files::rename(&fresh, &directory)?;
        Ok(directory)
    }

    /// Gives a claim's data to a group, which may then do with it what its owner may (`fsGroup`). `on_root_mismatch` looks at nothing more
    /// where the directory itself is the group's already.
    ///
    /// To be called while no container uses the claim. Takes as long as there are files, and holds up no other call.
    pub fn share(&self, data: &Path, group: u32, on_root_mismatch: bool) -> Result<(), VolumeError> {
        if on_root_mismatch && crate::group::has(data, group)? {
            return Ok(());
        }
        crate::group::set(data, group)
    }

    /// What an empty directory of a pod takes of the disk; once that is more than `enough` bytes, the rest is not counted.
    ///
    /// Takes as long as there are files, writes nothing, and holds up no other call.
    pub fn usage(&self, pod_uid: &str, volume: &str, enough: u64) -> Result<Taken, VolumeError> {
        crate::taken(&self.pod_volume(pod_uid, "empty", volume)?, enough)
    }

    /// Removes a pod's projected volumes and empty directories, never a claim; [`Self::empty_trash`] frees their space. A pod without any is
    /// no error.
    pub fn remove_pod(&self, pod_uid: &str) -> Result<(), VolumeError> {
        name::check_uid("pod uid", pod_uid)?;
        let _lock = self.lock()?;
        let directory = self.pods().join(pod_uid);
        let trash = self.pods().join(".trash");
        if directory.symlink_metadata().is_ok() {
            remove::into_trash(&directory, &trash, pod_uid)?;
            files::sync_parent(&directory)?;
            files::sync(&trash)?;
        }
        Ok(())
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
            if !matches!(name.as_str(), "lock" | "trash.lock" | "ledger" | "claims" | "pods" | "format.tmp") {
                let reason = format!("it has no format file, and something else in it: {name}");
                return Err(VolumeError::Format { path: self.root.clone(), reason });
            }
            // Claims without a format file: the disk of the store itself is another one than it was.
            if matches!(name.as_str(), "ledger" | "claims")
                && files::list(&path)?.iter().any(|path| !path.ends_with(".trash") && !path.ends_with(".new"))
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
        let taken = self.lock_file("lock", FlockOperation::LockExclusive)?;
        taken.ok_or_else(|| VolumeError::io("lock", &self.root, std::io::ErrorKind::WouldBlock))
    }

    /// `None` where somebody has it and the operation does not wait.
    fn lock_file(&self, name: &str, operation: FlockOperation) -> Result<Option<Lock>, VolumeError> {
        let path = self.root.join(name);
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o600);
        let file = options.open(&path).map_err(|error| VolumeError::io("open", &path, error))?;
        loop {
            match rustix::fs::flock(&file, operation) {
                Ok(()) => return Ok(Some(Lock { _file: file })),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(VolumeError::io("lock", &path, error)),
            }
        }
    }
}
