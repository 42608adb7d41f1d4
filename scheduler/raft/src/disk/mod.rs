//! The disk as the store needs it: append, sync, rename. Injected, so that the production code of log and snapshots runs
//! over a disk that fails and forgets ([`MemoryDisk`]) as it does over the real one ([`RealDisk`]).
//!
//! # What a disk guarantees
//! Bytes are durable once [`DiskFile::sync`] returned; until then a crash may keep all, some or none of them. A name
//! (created, renamed, removed) is durable once [`Disk::sync_dir`] returned. After a failed sync nothing is known about
//! what was written since the last one, and a later success says nothing about it either (fsyncgate): the store never
//! asks the same file again.

mod memory;
mod real;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use memory::{Crash, Fault, MemoryDisk};
pub use real::RealDisk;

/// A place for files. All paths are absolute.
pub trait Disk: Send + Sync + 'static {
    /// Makes a directory and those above it; harmless where it is there. Durable on return.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// The names of the files in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// The whole content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// At most `length` bytes of a file, from `offset` on; fewer only at its end.
    fn read_part(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// How many bytes a file has.
    fn size(&self, path: &Path) -> io::Result<u64>;
    /// A new file, or an existing one made empty.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file over another or none.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// How many bytes can still be written in a directory.
    fn free(&self, dir: &Path) -> io::Result<u64>;
    /// Takes a directory for this process, until the result is dropped; fails with `WouldBlock` where another has it.
    fn lock(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>>;
    /// Whether it is called in place, so that a simulation needs no threads. One that makes its callers wait is called on threads that may.
    fn in_place(&self) -> bool {
        false
    }
    /// How long the next sync of the log takes, on the runtime's clock, for a disk that is called in place: so that a simulation meets crashes
    /// between a write and its sync.
    fn pause(&self) -> Duration {
        Duration::ZERO
    }
}

/// Makes calls of a disk without holding up other tasks.
pub(crate) async fn call<T: Send + 'static>(
    disk: &Arc<dyn Disk>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if disk.in_place() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| io::Error::other(error.to_string()))?
}

/// A file that is written at its end.
pub trait DiskFile: Send {
    /// Writes all bytes at the end.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was appended durable (fdatasync).
    fn sync(&mut self) -> io::Result<()>;
}

/// Replaces a small file as a whole: temporary file, sync, rename, sync of the directory. After a crash the file is the
/// old one or the new one.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(disk, path, |file| file.append(bytes)).map(drop)
}

/// Writes a file as a whole under its name, as [`replace`] does, and returns it, to be written on. Where that fails, nothing is
/// left of it: on a full disk that room is needed.
pub(crate) fn write_whole(
    disk: &dyn Disk,
    path: &Path,
    write: impl FnOnce(&mut dyn DiskFile) -> io::Result<()>,
) -> io::Result<Box<dyn DiskFile>> {
    let temporary = temporary_of(path);
    let dir = path.parent().unwrap_or(Path::new("/"));
    let named = || {
        let mut file = disk.create(&temporary)?;
        write(&mut *file)?;
        if !(crate::sabotage::has(crate::sabotage::Bug::SnapshotNotSynced) && is_snapshot(path)) {
            file.sync()?;
        }
        disk.rename(&temporary, path)?;
        Ok(file)
    };
    let file = named().inspect_err(|_: &io::Error| {
        // What cannot be removed now is removed at the next start.
        let _ = disk.remove(&temporary).and_then(|()| disk.sync_dir(dir));
    })?;
    disk.sync_dir(dir)?;
    Ok(file)
}

fn is_snapshot(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "snap")
}

/// The name under which a file is written before it gets its own.
pub(crate) fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY);
    name.into()
}

/// The end of the names of files that were not finished: they are removed at the next start.
pub(crate) const TEMPORARY: &str = ".tmp";
