//! A snapshot that another server sends, until it is whole.

use std::{io, path::PathBuf, sync::Arc};

use crate::disk::{Disk, DiskFile, TEMPORARY};

/// The largest snapshot that is taken in: a hundred times the state of a full region.
const MAX_BYTES: u64 = 16 << 30;

/// What has come of a snapshot. The file has a temporary name, so that an unfinished one is removed at the next start.
pub(crate) struct Incoming {
    disk: Arc<dyn Disk>,
    id: String,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    total: u64,
    received: u64,
}

impl Incoming {
    /// Begins one. Blocks.
    pub(crate) fn begin(disk: &Arc<dyn Disk>, dir: &std::path::Path, id: &str, total: u64) -> io::Result<Self> {
        if total > MAX_BYTES {
            let why = format!("a snapshot of {total} bytes; at most {MAX_BYTES} are taken in");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let free = disk.free(dir).unwrap_or(u64::MAX);
        if free < total {
            let why = format!("{free} bytes are free in {}, the snapshot has {total}", dir.display());
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        let path = dir.join(format!("snapshot-incoming{TEMPORARY}"));
        let file = disk.create(&path)?;
        Ok(Self { disk: Arc::clone(disk), id: id.to_owned(), path, file, total, received: 0 })
    }

    /// Whether it is this one.
    pub(crate) fn is(&self, id: &str, total: u64) -> bool {
        self.id == id && self.total == total
    }

    /// Bytes that are here.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Whether all are.
    pub(crate) fn is_whole(&self) -> bool {
        self.received == self.total
    }

    /// Adds a part, where it is the next one; one that was sent twice changes nothing. Blocks.
    pub(crate) fn add(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset != self.received || data.len() as u64 > self.total - self.received {
            return Ok(());
        }
        self.file.append(data)?;
        self.received += data.len() as u64;
        Ok(())
    }

    /// Makes it durable and returns where it is. Blocks.
    pub(crate) fn finish(mut self) -> io::Result<PathBuf> {
        self.file.sync()?;
        Ok(self.path)
    }

    /// Removes what has come. Blocks.
    pub(crate) fn discard(self) {
        let _ = self.disk.remove(&self.path);
    }
}
