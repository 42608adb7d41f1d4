//! Small files of the store: magic, version, bounded, replaced by rename.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::VolumeError;

const MAGIC: &str = "hearth-volumes";
/// What every release reads.
const VERSION: u32 = 1;
/// What releases read that know of epochs: an older one must not use such a claim, since nothing would stop it.
pub(crate) const WITH_EPOCH: u32 = 2;
/// Bytes of a file of the store: they hold a few names.
const MAX_FILE_BYTES: u64 = 64 * 1024;

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    magic: String,
    version: u32,
    #[serde(flatten)]
    content: T,
}

/// Writes a file anew: complete and on the disk under its name, or not at all.
pub(crate) fn write<T: Serialize>(path: &Path, content: T) -> Result<(), VolumeError> {
    write_as(path, VERSION, content)
}

/// The same of a version.
pub(crate) fn write_as<T: Serialize>(path: &Path, version: u32, content: T) -> Result<(), VolumeError> {
    let damaged = |error: serde_json::Error| VolumeError::Damaged { path: path.to_owned(), reason: error.to_string() };
    let mut bytes = serde_json::to_vec(&Versioned { magic: MAGIC.into(), version, content }).map_err(damaged)?;
    bytes.push(b'\n');
    // Under the store's lock: one writer, so one temporary name is enough, and a leftover is written over.
    let temporary = path.with_extension("tmp");
    let failed = |error| VolumeError::io("write", &temporary, error);
    let mut file =
        File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary).map_err(failed)?;
    file.write_all(&bytes).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    rename(&temporary, path)?;
    sync_parent(path)
}

/// Reads a file; `None` where there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, VolumeError> {
    read_up_to(path, VERSION)
}

/// The same of versions up to this one.
pub(crate) fn read_up_to<T: DeserializeOwned>(path: &Path, newest: u32) -> Result<Option<T>, VolumeError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(VolumeError::io("read", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| VolumeError::io("read", path, error))?;
    let damaged = |reason: String| VolumeError::Damaged { path: path.to_owned(), reason };
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(damaged(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    parse(&bytes, newest).map(Some).map_err(damaged)
}

/// Reads the bytes of a file of the store.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], newest: u32) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Head {
        magic: String,
        version: u32,
    }
    // The head first: a later version may have other fields.
    let head: Head = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if head.magic != MAGIC || !(VERSION..=newest).contains(&head.version) {
        return Err(format!(
            "it is {:?} version {}, and this program knows {MAGIC:?} version {newest} here",
            head.magic, head.version
        ));
    }
    let file: Versioned<T> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok(file.content)
}

pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), VolumeError> {
    match DirBuilder::new().mode(mode).recursive(true).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(VolumeError::io("create", path, error)),
        _ => Ok(()),
    }
}

pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), VolumeError> {
    std::fs::rename(from, to).map_err(|error| VolumeError::io("rename to", to, error))
}

pub(crate) fn sync(path: &Path) -> Result<(), VolumeError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| VolumeError::io("sync", path, error))
}

pub(crate) fn sync_parent(path: &Path) -> Result<(), VolumeError> {
    sync(path.parent().unwrap_or(path))
}

pub(crate) fn list(directory: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let failed = |error| VolumeError::io("list", directory, error);
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}
