//! The directory that is filled: an OCI image layout, and beside its blobs what is still being downloaded.
//!
//! ```text
//! lock                    flock of the pull that fills it
//! partial/<hex>.partial   the beginning of a blob, nothing about it verified
//! blobs/sha256/<hex>      a blob, verified and on the disk before it has this name
//! oci-layout, index.json  written last, when all blobs are there
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_image::Digest;
use hearth_image::document::Descriptor;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::PullError;

/// How often a pull looks whether another one that fills the same directory has ended.
const LOCK_POLL: Duration = Duration::from_millis(100);
/// Bytes that are read at a time to be hashed.
const READ_BYTES: usize = 128 * 1024;

/// A layout that is locked for one pull. Cheap to clone; the lock ends with the last clone, so that a write which goes on after its pull was
/// dropped is over before another pull begins.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    _lock: File,
}

/// The beginning of a blob on the disk, and the hash so far. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Partial {
    inner: Arc<Mutex<PartialInner>>,
}

#[derive(Debug)]
struct PartialInner {
    layout: Layout,
    digest: Digest,
    path: PathBuf,
    file: File,
    hasher: Sha256,
    written: u64,
}

/// Runs what blocks where it may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is shutting down cancels blocking work, and then nobody polls this again.
            Err(_) => std::future::pending().await,
        },
    }
}

impl Layout {
    /// Makes the directory where there is none, and waits for other pulls into it.
    pub(crate) async fn open(root: &Path) -> Result<Self, PullError> {
        loop {
            let path = root.to_owned();
            if let Some(layout) = blocking(move || Self::try_open(&path)).await? {
                return Ok(layout);
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    fn try_open(root: &Path) -> Result<Option<Self>, PullError> {
        for directory in ["blobs/sha256", "partial"].map(|name| root.join(name)) {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(|error| PullError::io("create", &directory, error))?;
        }
        let path = root.join("lock");
        let lock = create(&path)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { inner: Arc::new(Inner { root: root.to_owned(), _lock: lock }) })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(PullError::io("lock", &path, error)),
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("blobs/sha256").join(digest.hex())
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("partial").join(format!("{}.partial", digest.hex()))
    }

    /// Whether a blob is there and whole. It is read and hashed: one that the disk has damaged is removed, to be downloaded again.
    pub(crate) async fn has(&self, digest: &Digest, size: u64) -> Result<bool, PullError> {
        let (layout, digest) = (self.clone(), *digest);
        blocking(move || {
            let path = layout.blob_path(&digest);
            let io = |error| PullError::io("read", &path, error);
            let Some(mut file) = open(&path).map_err(io)? else { return Ok(false) };
            let mut hasher = Sha256::new();
            let is_whole = file.metadata().map_err(io)?.len() == size
                && hash(&mut file, &mut hasher, u64::MAX).map_err(io)? == size
                && is(hasher, &digest);
            if !is_whole {
                fs::remove_file(&path).map_err(|error| PullError::io("remove", &path, error))?;
            }
            Ok(is_whole)
        })
        .await
    }

    /// A document that is there, whole and of `limit` bytes at most.
    pub(crate) async fn document(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, PullError> {
        let (layout, digest) = (self.clone(), *digest);
        blocking(move || {
            let path = layout.blob_path(&digest);
            let io = |error| PullError::io("read", &path, error);
            let Some(file) = open(&path).map_err(io)? else { return Ok(None) };
            let mut bytes = Vec::new();
            file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
            Ok(Some(bytes).filter(|bytes| Digest::of(bytes) == digest))
        })
        .await
    }

    /// Keeps a verified document.
    pub(crate) async fn keep(&self, digest: &Digest, bytes: Vec<u8>) -> Result<(), PullError> {
        let (layout, digest) = (self.clone(), *digest);
        blocking(move || replace(&layout.partial_path(&digest), &layout.blob_path(&digest), &bytes)).await
    }

    /// Bytes that are free for this process on the disk of the layout.
    pub(crate) async fn free_bytes(&self) -> Result<u64, PullError> {
        let layout = self.clone();
        blocking(move || {
            let root = &layout.inner.root;
            let stat = rustix::fs::statvfs(root).map_err(|error| PullError::io("look at the disk of", root, error))?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        })
        .await
    }

    /// Bytes of a blob that an earlier try left.
    pub(crate) async fn begun(&self, descriptor: &Descriptor) -> Result<u64, PullError> {
        let (path, size) = (self.partial_path(&descriptor.digest), descriptor.size);
        blocking(move || match fs::symlink_metadata(&path) {
            Ok(found) => Ok(if found.len() <= size { found.len() } else { 0 }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(PullError::io("look at", &path, error)),
        })
        .await
    }

    pub(crate) fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Writes the two files that make a layout of the blobs, once all of them are there. What was begun and is part of no blob that this pull
    /// needed goes.
    pub(crate) async fn finish(&self, index: Vec<u8>) -> Result<(), PullError> {
        let layout = self.clone();
        blocking(move || {
            let root = &layout.inner.root;
            sync_directory(&root.join("blobs/sha256"))?;
            let partial = root.join("partial");
            let version = root.join("oci-layout");
            replace(&partial.join("oci-layout"), &version, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            replace(&partial.join("index.json"), &root.join("index.json"), &index)?;
            sync_directory(root)?;
            fs::remove_dir_all(&partial).map_err(|error| PullError::io("remove", &partial, error))
        })
        .await
    }
}

/// Removes a layout, unless a pull fills it at this moment; whether it is gone. Blocks.
pub fn remove_unused(root: &Path) -> io::Result<bool> {
    let Some(lock) = open(&root.join("lock"))? else { return fs::remove_dir_all(root).map(|()| true) };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => fs::remove_dir_all(root).map(|()| true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Partial {
    /// Opens what an earlier try left of a blob, or begins it. More than `size` bytes cannot be part of it, and are dropped.
    pub(crate) async fn open(layout: &Layout, digest: &Digest, size: u64) -> Result<Self, PullError> {
        let (layout, digest) = (layout.clone(), *digest);
        blocking(move || {
            let path = layout.partial_path(&digest);
            let io = |error| PullError::io("read", &path, error);
            let mut file = create(&path)?;
            let mut hasher = Sha256::new();
            let mut written = file.metadata().map_err(io)?.len();
            if written > size {
                file.set_len(0).map_err(io)?;
                written = 0;
            }
            let hashed = hash(&mut file, &mut hasher, written).map_err(io)?;
            debug_assert_eq!(hashed, written, "the layout is locked: nobody else changes the file");
            let inner = PartialInner { layout, digest, path: path.clone(), file, hasher, written };
            Ok(Self { inner: Arc::new(Mutex::new(inner)) })
        })
        .await
    }

    pub(crate) fn written(&self) -> u64 {
        self.lock().written
    }

    /// Appends, and gives the buffer back empty.
    pub(crate) async fn append(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>, PullError> {
        self.change("write", move |inner| {
            inner.file.write_all(&bytes)?;
            inner.hasher.update(&bytes);
            inner.written += bytes.len() as u64;
            bytes.clear();
            Ok(bytes)
        })
        .await
    }

    /// Drops all that was written.
    pub(crate) async fn reset(&self) -> Result<(), PullError> {
        self.change("empty", |inner| {
            inner.file.set_len(0)?;
            io::Seek::rewind(&mut inner.file)?;
            inner.hasher.reset();
            inner.written = 0;
            Ok(())
        })
        .await
    }

    /// Whether what was written is the blob. If so it is on the disk and has its name in `blobs`.
    pub(crate) async fn finish(&self) -> Result<bool, PullError> {
        self.change("write to disk", |inner| {
            if !is(inner.hasher.clone(), &inner.digest) {
                return Ok(false);
            }
            inner.file.sync_all()?;
            fs::rename(&inner.path, inner.layout.blob_path(&inner.digest))?;
            Ok(true)
        })
        .await
    }

    async fn change<T: Send + 'static>(
        &self,
        action: &'static str,
        change: impl FnOnce(&mut PartialInner) -> io::Result<T> + Send + 'static,
    ) -> Result<T, PullError> {
        let this = self.clone();
        blocking(move || {
            let mut inner = this.lock();
            change(&mut inner).map_err(|error| PullError::io(action, &inner.path, error))
        })
        .await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, PartialInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a file for reading and writing, never through a link.
fn create(path: &Path) -> Result<File, PullError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(OFlags::NOFOLLOW.bits() as i32);
    options.open(path).map_err(|error| PullError::io("open", path, error))
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Hashes up to `limit` bytes from where the file stands; how many there were.
fn hash(file: &mut File, hasher: &mut Sha256, limit: u64) -> io::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut total = 0;
    loop {
        let want = buffer.len().min(usize::try_from(limit - total).unwrap_or(usize::MAX));
        let count = file.read(&mut buffer[..want])?;
        if count == 0 {
            return Ok(total);
        }
        hasher.update(&buffer[..count]);
        total += count as u64;
    }
}

fn is(hasher: Sha256, digest: &Digest) -> bool {
    hex::encode(hasher.finalize()) == digest.hex()
}

fn replace(scratch: &Path, path: &Path, bytes: &[u8]) -> Result<(), PullError> {
    let io = |error| PullError::io("write", path, error);
    let mut file = create(scratch)?;
    file.set_len(0).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(scratch, path).map_err(io)
}

fn sync_directory(path: &Path) -> Result<(), PullError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| PullError::io("write to disk", path, error))
}
