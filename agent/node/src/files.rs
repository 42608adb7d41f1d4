//! Files that outlive the agent: JSON with a magic and a version, replaced by rename.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A system call failed.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{path:?} is damaged or was written by a newer version: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl FileError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, reason: impl ToString) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// What a kind of file is called and how large it may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) magic: &'static str,
    pub(crate) version: u32,
    pub(crate) max_bytes: u64,
}

#[derive(Serialize)]
struct Written<'a, T> {
    magic: &'a str,
    version: u32,
    body: &'a T,
}

#[derive(Deserialize)]
struct Header {
    magic: String,
    version: u32,
}

#[derive(Deserialize)]
struct ReadBack<T> {
    body: T,
}

impl Format {
    /// Reads a file; `None` where there is none.
    pub(crate) fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, FileError> {
        let Some(bytes) = read_bounded(path, self.max_bytes)? else { return Ok(None) };
        let header: Header = serde_json::from_slice(&bytes).map_err(|error| FileError::damaged(path, error))?;
        if header.magic != self.magic || header.version > self.version {
            let found = format!("it is {:?} version {}", header.magic, header.version);
            return Err(FileError::damaged(path, found));
        }
        let read: ReadBack<T> = serde_json::from_slice(&bytes).map_err(|error| FileError::damaged(path, error))?;
        Ok(Some(read.body))
    }

    /// Replaces a file, mode 0600. `durable`: it is on the disk when this returns.
    pub(crate) fn write<T: Serialize>(&self, path: &Path, body: &T, durable: bool) -> Result<(), FileError> {
        let written = Written { magic: self.magic, version: self.version, body };
        let bytes = serde_json::to_vec(&written).map_err(|error| FileError::damaged(path, error))?;
        replace(path, &bytes, durable)
    }
}

/// Reads a file of bounded size; `None` where there is none.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io("open", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|error| FileError::io("read", path, error))?;
    if bytes.len() as u64 > max_bytes {
        return Err(FileError::damaged(path, format!("it is larger than {max_bytes} bytes")));
    }
    Ok(Some(bytes))
}

/// Tells one version of a file from another; `None` where there is no file.
pub(crate) type Stamp = Option<(u64, u64, i64, i64)>;

/// Which version of a file is there.
pub(crate) fn stamp(file: &Path) -> Stamp {
    let found = fs::metadata(file).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

/// Replaces a file by rename, mode 0600.
pub(crate) fn replace(path: &Path, bytes: &[u8], durable: bool) -> Result<(), FileError> {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".tmp");
    let tmp = PathBuf::from(tmp);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&tmp)
        .map_err(|error| FileError::io("create", &tmp, error))?;
    file.write_all(bytes).map_err(|error| FileError::io("write", &tmp, error))?;
    if durable {
        file.sync_all().map_err(|error| FileError::io("sync", &tmp, error))?;
    }
    fs::rename(&tmp, path).map_err(|error| FileError::io("rename into", path, error))?;
    if durable && let Some(parent) = path.parent() {
        let synced = File::open(parent).and_then(|dir| dir.sync_all());
        synced.map_err(|error| FileError::io("sync the directory of", path, error))?;
    }
    Ok(())
}

/// Makes a directory for root alone, with its parents.
pub(crate) fn private_dir(path: &Path) -> Result<(), FileError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| FileError::io("make directory", path, error))
}

/// Removes a file or a directory tree; harmless where there is none.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// An error with its causes, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = Format { magic: "test", version: 2, max_bytes: 200 };

    #[test]
    fn a_file_is_read_back_and_nothing_else_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        assert!(FORMAT.read::<Vec<u8>>(&path).expect("absent").is_none());
        FORMAT.write(&path, &vec![1, 2], true).expect("written");
        assert_eq!(FORMAT.read::<Vec<u8>>(&path).expect("read"), Some(vec![1, 2]));
        let newer = Format { version: 3, ..FORMAT };
        newer.write(&path, &vec![1], false).expect("written");
        FORMAT.read::<Vec<u8>>(&path).expect_err("of a newer version");
        fs::write(&path, b"{").expect("written");
        FORMAT.read::<Vec<u8>>(&path).expect_err("damaged");
        fs::write(&path, vec![b' '; 300]).expect("written");
        FORMAT.read::<Vec<u8>>(&path).expect_err("too large");
    }
}
