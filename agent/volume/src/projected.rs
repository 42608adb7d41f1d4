//! Files of ConfigMaps and Secrets, replaced all at once while a container reads them (Kubernetes, pkg/volume/util/atomic_writer.go).
//!
//! ```text
//! <volume>/..hearth-Xa3f9k/key      the files
//! <volume>/..data -> ..hearth-Xa3f9k
//! <volume>/key -> ..data/key        what the container opens
//! ```
//!
//! An update writes a new directory and renames a new `..data` over the old one: a reader sees all old files or all new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::{VolumeError, files, name, remove};

/// Bytes of all files of a volume: a ConfigMap or Secret has at most 1 MiB, and a projected volume may join several.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Files of a volume.
const MAX_FILES: usize = 4096;
const DATA: &str = "..data";
const NEXT_DATA: &str = "..data_tmp";

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

/// Refuses names that climb, too much content, and a file that is also a directory.
pub(crate) fn check(volume: &str, files: &BTreeMap<String, Projected>) -> Result<(), VolumeError> {
    let too_large = |had, limit, unit| Err(VolumeError::TooLarge { volume: volume.into(), had, limit, unit });
    if files.len() > MAX_FILES {
        return too_large(files.len(), MAX_FILES, "entries");
    }
    let bytes = files.values().fold(0, |sum: usize, file| sum.saturating_add(file.bytes.len()));
    if bytes > MAX_BYTES {
        return too_large(bytes, MAX_BYTES, "bytes");
    }
    for path in files.keys() {
        name::check_projected(path)?;
        let ancestors = path.match_indices('/').map(|(at, _)| &path[..at]);
        if let Some(ancestor) = ancestors.into_iter().find(|ancestor| files.contains_key(*ancestor)) {
            return Err(VolumeError::FileInTheWay { volume: volume.into(), path: ancestor.into() });
        }
    }
    Ok(())
}

/// The files with what their group needs to read them, as the kubelet gives it.
pub(crate) fn readable(files: &BTreeMap<String, Projected>) -> BTreeMap<String, Projected> {
    let readable = |file: &Projected| Projected { bytes: file.bytes.clone(), mode: file.mode | 0o440 };
    files.iter().map(|(path, file)| (path.clone(), readable(file))).collect()
}

/// Brings the directory to hold exactly `files`. Nothing is written where it does already.
pub(crate) fn write(directory: &Path, files: &BTreeMap<String, Projected>, group: u32) -> Result<(), VolumeError> {
    let failed = |path: &Path, error| VolumeError::io("write", path, error);
    files::make_directory(directory, 0o755)?;
    open_to_all(directory)?;
    let old = std::fs::read_link(directory.join(DATA)).ok();
    if old.as_deref().is_none_or(|old| !is_current(&directory.join(old), files, group)) {
        let fresh = write_payload(directory, files, group)?;
        let link = directory.join(NEXT_DATA);
        remove_file(&link)?;
        let target = fresh.file_name().unwrap_or_default();
        std::os::unix::fs::symlink(target, &link).map_err(|error| failed(&link, error))?;
        files::rename(&link, &directory.join(DATA))?;
    }
    link_names(directory, files)?;
    files::sync(directory)?;
    remove_leftovers(directory, files)
}

/// Removes what an update leaves, or left when it was interrupted: older directories, and names that are no longer there.
fn remove_leftovers(directory: &Path, files: &BTreeMap<String, Projected>) -> Result<(), VolumeError> {
    let current =
        std::fs::read_link(directory.join(DATA)).map_err(|error| VolumeError::io("read", directory, error))?;
    let wanted = first_components(files);
    for path in files::list(directory)? {
        let name = path.file_name().unwrap_or_default();
        if name == DATA || name == current.as_os_str() || name.to_str().is_some_and(|name| wanted.contains(name)) {
            continue;
        }
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            remove::empty(&path, &mut remove::Stuck::new())?;
            std::fs::remove_dir(&path).map_err(|error| VolumeError::io("remove", &path, error))?;
        } else {
            remove_file(&path)?;
        }
    }
    Ok(())
}

fn write_payload(directory: &Path, files: &BTreeMap<String, Projected>, group: u32) -> Result<PathBuf, VolumeError> {
    let fresh = tempfile::Builder::new()
        .prefix("..hearth-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(directory)
        .map_err(|error| VolumeError::io("create a directory in", directory, error))?;
    open_to_all(fresh.path())?;
    for (path, file) in files {
        let path = fresh.path().join(path);
        let mut missing: Vec<_> = path.ancestors().skip(1).take_while(|above| !above.exists()).collect();
        while let Some(above) = missing.pop() {
            std::fs::create_dir(above).map_err(|error| VolumeError::io("create", above, error))?;
            open_to_all(above)?;
        }
        let failed = |error| VolumeError::io("write", &path, error);
        // Closed to others until it has its content and its own mode, which the umask does not touch.
        let mut new = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        new.write_all(&file.bytes).map_err(failed)?;
        fchown(&new, None, Some(group)).map_err(failed)?;
        new.set_permissions(Permissions::from_mode(file.mode & 0o777)).map_err(failed)?;
        new.sync_all().map_err(failed)?;
    }
    files::sync(fresh.path())?;
    Ok(fresh.keep())
}

fn link_names(directory: &Path, files: &BTreeMap<String, Projected>) -> Result<(), VolumeError> {
    for name in first_components(files) {
        let (link, target) = (directory.join(name), Path::new(DATA).join(name));
        if std::fs::read_link(&link).is_ok_and(|had| had == target) {
            continue;
        }
        remove_file(&link)?;
        std::os::unix::fs::symlink(&target, &link).map_err(|error| VolumeError::io("create", &link, error))?;
    }
    Ok(())
}

fn first_components(files: &BTreeMap<String, Projected>) -> BTreeSet<&str> {
    files.keys().map(|path| path.split('/').next().unwrap_or(path)).collect()
}

/// Whether a payload directory holds exactly these files, contents and modes.
fn is_current(payload: &Path, files: &BTreeMap<String, Projected>, group: u32) -> bool {
    let mut found = 0;
    let mut directories = vec![payload.to_owned()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { return false };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let key = path.strip_prefix(payload).ok().map(Path::as_os_str).and_then(OsStr::to_str);
            let Some(file) = key.and_then(|key| files.get(key)) else { return false };
            if !holds(&path, file, group) {
                return false;
            }
            found += 1;
        }
    }
    found == files.len()
}

fn holds(path: &Path, file: &Projected, group: u32) -> bool {
    let same = || -> io::Result<bool> {
        let had = File::open(path)?;
        let metadata = had.metadata()?;
        let length = metadata.len() == file.bytes.len() as u64;
        if !length || metadata.gid() != group || metadata.permissions().mode() & 0o777 != file.mode & 0o777 {
            return Ok(false);
        }
        let mut bytes = Vec::with_capacity(file.bytes.len());
        had.take(MAX_BYTES as u64).read_to_end(&mut bytes)?;
        Ok(bytes == file.bytes)
    };
    same().unwrap_or(false)
}

/// The container's programs run as any user: the store's own directory keeps the rest of the device out.
fn open_to_all(path: &Path) -> Result<(), VolumeError> {
    std::fs::set_permissions(path, Permissions::from_mode(0o755))
        .map_err(|error| VolumeError::io("set the mode of", path, error))
}

fn remove_file(path: &Path) -> Result<(), VolumeError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", path, error)),
        _ => Ok(()),
    }
}
