//! Claims: durable directories, and the books that say where they must be.
//!
//! Three things must agree before a claim is handed out: the ledger of the store, the marker `claim.json` beside the data, and the attribute
//! `trusted.hearth.claim` on the data directory itself, which tells the right directory from a mount point whose disk is missing and from
//! another disk mounted over it. File systems without such attributes are recorded as such, and do without the third.

use std::ffi::OsStr;
use std::fmt;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{VolumeError, files, name, remove};

const ATTRIBUTE: &str = "trusted.hearth.claim";

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
    /// What it asked for when it was made.
    pub spec: ClaimSpec,
    /// Its data directory.
    pub path: PathBuf,
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ({})", self.namespace, self.name, self.uid)
    }
}

/// How far a claim has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    /// Never handed out yet: there is no data to lose.
    Creating,
    /// Handed out: it must be there.
    Ready,
    /// To be removed, whatever of it is still there.
    Deleting,
}

/// What the ledger has about a claim.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LedgerEntry {
    id: ClaimId,
    spec: ClaimSpec,
    stage: Stage,
    /// Of a claim that moves: which writer's the data is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
}

/// Which writer of a claim that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenure {
    /// The present one.
    pub epoch: u64,
    /// The one before, if there was one: whoever has its data goes on with it.
    pub before: Option<u64>,
}

/// A claim as it is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    /// Its data directory.
    pub path: PathBuf,
    /// It begins empty here although it had data elsewhere; with what this device itself had of an earlier writer, set aside.
    pub began_empty: Option<Option<PathBuf>>,
}

/// What is beside the data: `claim.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    id: ClaimId,
    /// Whether the data directory carries the attribute.
    attribute: bool,
}

/// The claims of a store. Whoever calls a method that changes something holds the store's lock.
pub(crate) struct Claims<'a> {
    pub(crate) root: &'a Path,
}

/// A claim that is set aside: nothing can use it until a person saw to it, and all others work.
#[derive(Debug)]
pub struct QuarantinedClaim {
    /// Which claim, where its entry in the ledger can be read.
    pub id: Option<ClaimId>,
    /// Its entry in the ledger.
    pub path: PathBuf,
    /// What is wrong.
    pub error: VolumeError,
}

impl Claims<'_> {
    /// Finishes what was interrupted. What cannot be finished, or read at all, is set aside and reported: one bad claim is no reason for the
    /// others not to work.
    pub(crate) fn recover(&self) -> Result<Vec<QuarantinedClaim>, VolumeError> {
        self.discard_unfinished()?;
        let mut quarantined = Vec::new();
        for (path, entry) in self.ledger()? {
            match entry {
                Ok(entry) if entry.stage == Stage::Deleting => {
                    if let Err(error) = self.finish_deletion(&entry.id) {
                        quarantined.push(QuarantinedClaim { id: Some(entry.id), path, error });
                    }
                }
                Ok(_) => {}
                Err(error) => quarantined.push(QuarantinedClaim { id: None, path, error }),
            }
        }
        Ok(quarantined)
    }

    /// Claims that were being made when the agent died were never handed out: they are made from the beginning.
    fn discard_unfinished(&self) -> Result<(), VolumeError> {
        for path in files::list(&self.unfinished())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            remove::into_trash(&path, &self.trash(), &format!("new-{name}"))?;
        }
        Ok(())
    }

    pub(crate) fn ensure(&self, id: &ClaimId, spec: &ClaimSpec) -> Result<PathBuf, VolumeError> {
        check_id(id)?;
        let directory = self.directory(id);
        match self.entry(id)? {
            Some(entry) if entry.stage == Stage::Ready => check_data(id, &directory)?,
            Some(entry) if entry.stage == Stage::Creating => self.create(id, &entry.spec, None, &directory)?,
            Some(_) => return Err(VolumeError::BeingDeleted { claim: id.to_string() }),
            None => {
                if directory.symlink_metadata().is_ok() {
                    let reason = "the ledger of this device does not know it".into();
                    return Err(VolumeError::ForeignData { claim: id.to_string(), path: directory, reason });
                }
                if !self.trash().is_dir() {
                    // Part of every store: without it, the disk of all claims is away.
                    return Err(VolumeError::MissingData { claim: id.to_string(), path: self.trash() });
                }
                self.record(id, spec, Stage::Creating, None)?;
                self.create(id, spec, None, &directory)?;
            }
        }
        Ok(directory.join("data"))
    }

    /// The same of a claim that moves, for one of its writers.
    pub(crate) fn ensure_for(&self, id: &ClaimId, spec: &ClaimSpec, tenure: Tenure) -> Result<Handed, VolumeError> {
        check_id(id)?;
        let (directory, epoch) = (self.directory(id), Some(tenure.epoch));
        let mut aside = None;
        match self.entry(id)? {
            Some(entry) if entry.stage == Stage::Deleting => {
                return Err(VolumeError::BeingDeleted { claim: id.to_string() });
            }
            Some(entry) if entry.epoch > epoch => {
                let (has, asked) = (entry.epoch.unwrap_or_default(), tenure.epoch);
                return Err(VolumeError::OldEpoch { claim: id.to_string(), has, asked });
            }
            Some(entry) if entry.stage == Stage::Ready && (entry.epoch == epoch || entry.epoch == tenure.before) => {
                check_data(id, &directory)?;
                if entry.epoch != epoch {
                    self.record(id, &entry.spec, Stage::Ready, epoch)?;
                }
                return Ok(Handed { path: directory.join("data"), began_empty: None });
            }
            Some(entry) if entry.stage == Stage::Ready => aside = self.set_aside(id, &entry)?,
            _ => {}
        }
        if !self.trash().is_dir() {
            return Err(VolumeError::MissingData { claim: id.to_string(), path: self.trash() });
        }
        if self.entry(id)?.is_none() && directory.symlink_metadata().is_ok() {
            let reason = "the ledger of this device does not know it".into();
            return Err(VolumeError::ForeignData { claim: id.to_string(), path: directory, reason });
        }
        self.record(id, spec, Stage::Creating, epoch)?;
        self.create(id, spec, epoch, &directory)?;
        Ok(Handed { path: directory.join("data"), began_empty: tenure.before.map(|_| aside) })
    }

    /// Sets the data of an earlier writer aside, out of the way of a later one, and forgets it. `None`: there is none.
    pub(crate) fn retire(&self, id: &ClaimId, epoch: u64) -> Result<Option<PathBuf>, VolumeError> {
        check_id(id)?;
        match self.entry(id)? {
            Some(entry) if entry.stage == Stage::Ready && entry.epoch == Some(epoch) => self.set_aside(id, &entry),
            _ => Ok(None),
        }
    }

    fn set_aside(&self, id: &ClaimId, entry: &LedgerEntry) -> Result<Option<PathBuf>, VolumeError> {
        let directory = self.directory(id);
        let place = self.aside().join(format!("{}.{}", id.uid, entry.epoch.unwrap_or_default()));
        if directory.symlink_metadata().is_err() && place.symlink_metadata().is_ok() {
            // Interrupted before the ledger forgot it.
            self.forget(&id.uid)?;
            return Ok(Some(place.join("data")));
        }
        // Not to forget data whose disk is only away.
        check_data(id, &directory)?;
        files::make_directory(&self.aside(), 0o700)?;
        // The last one alone is kept, or a volume that goes back and forth fills the disk.
        self.drop_aside(&id.uid)?;
        files::rename(&directory, &place)?;
        files::sync(&self.aside())?;
        files::sync_parent(&directory)?;
        self.forget(&id.uid)?;
        Ok(Some(place.join("data")))
    }

    /// What was set aside of a claim goes.
    fn drop_aside(&self, uid: &str) -> Result<(), VolumeError> {
        for path in files::list(&self.aside())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.rsplit_once('.').is_some_and(|(of, _)| of == uid) {
                remove::into_trash(&path, &self.trash(), &format!("aside-{name}"))?;
            }
        }
        Ok(())
    }

    fn forget(&self, uid: &str) -> Result<(), VolumeError> {
        let path = self.ledger_path(uid);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", &path, error)),
            _ => files::sync_parent(&path),
        }
    }

    /// Whether a claim that is handed out is still there as it was.
    pub(crate) fn check(&self, id: &ClaimId, writable: bool) -> Result<(), VolumeError> {
        check_id(id)?;
        let directory = self.directory(id);
        check_data(id, &directory)?;
        let data = directory.join("data");
        let found = rustix::fs::statvfs(&data).map_err(|error| VolumeError::io("look at", &data, error))?;
        if writable && found.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(VolumeError::ReadOnly { claim: id.to_string(), path: data });
        }
        Ok(())
    }

    pub(crate) fn delete(&self, id: &ClaimId) -> Result<(), VolumeError> {
        check_id(id)?;
        self.drop_aside(&id.uid)?;
        let directory = self.directory(id);
        let (spec, epoch) = match self.entry(id)? {
            Some(entry) if entry.stage == Stage::Ready => (entry.spec, entry.epoch),
            Some(_) => return self.finish_deletion(id),
            // Never made here, or deleted before and nobody heard of it: there is nothing to do.
            None if directory.symlink_metadata().is_err() => return Ok(()),
            None => (ClaimSpec::default(), None),
        };
        // Not to forget a claim whose disk is only away, and not to remove what is somebody else's.
        check_data(id, &directory)?;
        self.record(id, &spec, Stage::Deleting, epoch)?;
        self.finish_deletion(id)
    }

    pub(crate) fn list(&self) -> Result<Vec<ClaimRecord>, VolumeError> {
        let ready = self.ledger()?.into_iter().filter_map(|(_, entry)| entry.ok()).filter(|e| e.stage == Stage::Ready);
        let mut records: Vec<_> = ready
            .map(|entry| ClaimRecord { path: self.directory(&entry.id).join("data"), id: entry.id, spec: entry.spec })
            .collect();
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    /// Makes the directory aside, complete, and renames it; then the ledger says that it is there.
    fn create(&self, id: &ClaimId, spec: &ClaimSpec, epoch: Option<u64>, directory: &Path) -> Result<(), VolumeError> {
        if directory.symlink_metadata().is_ok() {
            // Interrupted between the rename and the ledger.
            check_data(id, directory)?;
            return self.record(id, spec, Stage::Ready, epoch);
        }
        let namespace = directory.parent().unwrap_or(self.root);
        files::make_directory(namespace, 0o755)?;
        let fresh = self.unfinished().join(&id.uid);
        let data = fresh.join("data");
        files::make_directory(&data, 0o755)?;
        let mode = Permissions::from_mode(spec.mode & 0o7777);
        std::fs::set_permissions(&data, mode).map_err(|error| VolumeError::io("set the mode of", &data, error))?;
        let attribute = match rustix::fs::setxattr(&data, ATTRIBUTE, id.uid.as_bytes(), XattrFlags::empty()) {
            Ok(()) => true,
            Err(Errno::OPNOTSUPP) => false,
            Err(error) => return Err(VolumeError::io("mark", &data, error)),
        };
        files::write(&fresh.join("claim.json"), Marker { id: id.clone(), attribute })?;
        files::sync(&data)?;
        files::rename(&fresh, directory)?;
        files::sync(namespace)?;
        files::sync_parent(namespace)?;
        self.record(id, spec, Stage::Ready, epoch)
    }

    /// Out of its place by one rename; the ledger forgets it only then.
    fn finish_deletion(&self, id: &ClaimId) -> Result<(), VolumeError> {
        let directory = self.directory(id);
        if directory.symlink_metadata().is_ok() {
            let trash = self.trash();
            remove::into_trash(&directory, &trash, &format!("gone-{}", id.uid))?;
            files::sync_parent(&directory)?;
            files::sync(&trash)?;
        }
        self.forget(&id.uid)?;
        if let Some(namespace) = directory.parent() {
            // Only where it is empty.
            let _ = std::fs::remove_dir(namespace);
        }
        Ok(())
    }

    fn entry(&self, id: &ClaimId) -> Result<Option<LedgerEntry>, VolumeError> {
        match read_entry(&self.ledger_path(&id.uid))? {
            Some(entry) if entry.id != *id => {
                Err(VolumeError::OtherName { claim: id.to_string(), had: entry.id.to_string() })
            }
            other => Ok(other),
        }
    }

    /// Every entry, and where it cannot be read, why.
    #[expect(clippy::type_complexity, reason = "a name for it would say less")]
    fn ledger(&self) -> Result<Vec<(PathBuf, Result<LedgerEntry, VolumeError>)>, VolumeError> {
        let paths = files::list(&self.root.join("ledger"))?.into_iter();
        let entries = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        // One that is gone by now was deleted meanwhile.
        Ok(entries.filter_map(|path| read_entry(&path).transpose().map(|entry| (path, entry))).collect())
    }

    fn record(&self, id: &ClaimId, spec: &ClaimSpec, stage: Stage, epoch: Option<u64>) -> Result<(), VolumeError> {
        let entry = LedgerEntry { id: id.clone(), spec: spec.clone(), stage, epoch };
        let path = self.ledger_path(&id.uid);
        if epoch.is_some() { files::write_as(&path, files::WITH_EPOCH, entry) } else { files::write(&path, entry) }
    }

    fn ledger_path(&self, uid: &str) -> PathBuf {
        self.root.join("ledger").join(format!("{uid}.json"))
    }

    fn directory(&self, id: &ClaimId) -> PathBuf {
        self.root.join("claims").join(&id.namespace).join(name::claim_directory(&id.name, &id.uid))
    }

    /// Where claims are made, to appear in their place complete.
    fn unfinished(&self) -> PathBuf {
        self.root.join("claims").join(".new")
    }

    /// What earlier writers left of claims that moved, beside the claims.
    fn aside(&self) -> PathBuf {
        self.root.join("claims").join(".aside")
    }

    /// Beside the claims, to be on their file system.
    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("claims").join(".trash")
    }
}

/// An entry of the ledger whose name and content agree, and whose names can become paths.
fn read_entry(path: &Path) -> Result<Option<LedgerEntry>, VolumeError> {
    let Some(entry) = files::read_up_to::<LedgerEntry>(path, files::WITH_EPOCH)? else { return Ok(None) };
    let damaged = |reason| VolumeError::Damaged { path: path.to_owned(), reason };
    check_id(&entry.id).map_err(|error| damaged(error.to_string()))?;
    if path.file_stem() != Some(OsStr::new(&entry.id.uid)) {
        return Err(damaged(format!("it is of claim {}", entry.id)));
    }
    Ok(Some(entry))
}

fn check_id(id: &ClaimId) -> Result<(), VolumeError> {
    name::check_name("namespace", &id.namespace)?;
    name::check_name("claim", &id.name)?;
    name::check_uid("claim uid", &id.uid)
}

/// Whether a claim's directory is the claim's: marker and attribute say so.
fn check_data(id: &ClaimId, directory: &Path) -> Result<(), VolumeError> {
    let data = directory.join("data");
    let missing = || VolumeError::MissingData { claim: id.to_string(), path: data.clone() };
    let foreign = |reason: String| VolumeError::ForeignData { claim: id.to_string(), path: data.clone(), reason };
    let marker: Option<Marker> = match files::read(&directory.join("claim.json")) {
        Err(VolumeError::Damaged { reason, .. }) => return Err(foreign(format!("its claim.json: {reason}"))),
        other => other?,
    };
    let Some(marker) = marker else {
        return Err(if data.exists() { foreign("it has no claim.json".into()) } else { missing() });
    };
    if marker.id.uid != id.uid {
        return Err(foreign(format!("its claim.json is of claim {}", marker.id)));
    }
    match data.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(foreign("it is not a directory".into())),
        Err(_) => return Err(missing()),
    }
    if !marker.attribute {
        return Ok(());
    }
    let mut value = [0; 128];
    match rustix::fs::getxattr(&data, ATTRIBUTE, &mut value) {
        Ok(count) if value.get(..count) == Some(id.uid.as_bytes()) => Ok(()),
        Ok(_) | Err(Errno::RANGE) => Err(foreign(format!("its attribute {ATTRIBUTE} is of another claim"))),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Err(foreign(format!(
            "it lacks the attribute {ATTRIBUTE}: a disk that is not mounted there, or another one that is"
        ))),
        Err(error) => Err(VolumeError::io("read the mark of", &data, error)),
    }
}
