//! The files of a store: formats, lock, atomic replacement.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ImageRecord;
use crate::inherit::Inherited;
use crate::limits::MAX_CONFIG_BYTES;
use crate::unpack::Unpacked;
use crate::{Digest, ImageConfig, ImageError, Platform, Reference};

const MAGIC: &str = "hearth-images";
const VERSION: u32 = 1;
/// Bytes of a file of the store: an image record holds what a configuration does; an index of ten thousand names is 2 MiB.
const MAX_FILE_BYTES: u64 = 4 * MAX_CONFIG_BYTES;
/// Directories without entries that are written down for a layer. Most layers have none but the root; some have nothing else.
const MAX_IMPLICIT: usize = 256;
/// How often an index is looked for again that was replaced while it was being opened.
const INDEX_RETRIES: usize = 100;

/// The paths of a store, and what may be done with them.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    root: PathBuf,
}

/// Proof that the store is locked for changes.
pub(super) struct Lock {
    _file: File,
}

/// What every file of the store begins with.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    magic: String,
    version: u32,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize, Deserialize)]
struct FormatFile {}

/// Images that pods use, in order.
#[derive(Default, PartialEq, Eq, Serialize, Deserialize)]
struct InUseFile {
    images: Vec<Digest>,
    /// Those that pods used before, as the last of them went: the one that is unused for the longest time first.
    #[serde(default)]
    released: Vec<Digest>,
}

/// The names of the store.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Index {
    #[serde(skip)]
    generation: u64,
    pub(super) names: BTreeMap<Reference, Digest>,
    /// Those of the names that came from a registry. Absent in stores that an older release wrote.
    #[serde(default)]
    pub(super) pulled: BTreeSet<Reference>,
}

impl Index {
    /// Forgets where names came from that are gone.
    pub(super) fn forget_origins(&mut self) {
        self.pulled.retain(|name| self.names.contains_key(name));
    }
}

/// An image as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageFile {
    pub(super) platform: Platform,
    pub(super) created: Option<String>,
    /// Bytes of the files of all layers.
    pub(super) size: u64,
    /// What its layers are kept under, bottom first: diff ids, or what `inherit` makes of them.
    pub(super) layers: Vec<Digest>,
    /// Indexes through which the image was chosen.
    pub(super) indexes: Vec<Digest>,
    pub(super) config: ImageConfig,
}

/// A layer as the store keeps it, beside its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerFile {
    pub(super) bytes: u64,
    pub(super) entries: u64,
    /// Directories without entries of their own, where they are few and UTF-8; else the layer is unpacked again to find out.
    pub(super) implicit: Option<Vec<String>>,
}

impl LayerFile {
    pub(super) fn new(unpacked: &Unpacked) -> Self {
        let few = (unpacked.implicit.len() <= MAX_IMPLICIT).then_some(&unpacked.implicit);
        let implicit = few.and_then(|paths| paths.iter().map(|path| String::from_utf8(path.clone()).ok()).collect());
        Self { bytes: unpacked.bytes, entries: unpacked.entries, implicit }
    }

    /// What the layer is kept under where it lies upon `below`; `None` where that cannot be told without unpacking it. Where `below` is not
    /// known, it can be told of a layer alone that takes over nothing from there.
    pub(super) fn key(&self, diff_id: &Digest, below: Option<&[PathBuf]>) -> Result<Option<Digest>, ImageError> {
        let Some(implicit) = &self.implicit else { return Ok(None) };
        if implicit.is_empty() {
            return Ok(Some(*diff_id));
        }
        let Some(below) = below else { return Ok(None) };
        let implicit: Vec<_> = implicit.iter().map(|path| path.as_bytes().to_vec()).collect();
        Ok(Some(Inherited::find(&implicit, below)?.key(diff_id)))
    }
}

impl ImageFile {
    pub(super) fn record(&self, reference: &Reference, digest: &Digest, pulled: bool) -> ImageRecord {
        ImageRecord {
            reference: reference.to_string(),
            digest: *digest,
            size: self.size,
            created: self.created.clone(),
            platform: self.platform.clone(),
            pulled,
        }
    }
}

impl Disk {
    pub(super) fn open(root: &Path) -> Result<Self, ImageError> {
        // The paths of layers outlive the caller's working directory.
        let root = &std::path::absolute(root).map_err(|error| ImageError::io("find", root, error))?;
        let disk = Self { root: root.clone() };
        make_directory(root, true)?;
        std::fs::set_permissions(root, Permissions::from_mode(0o700))
            .map_err(|error| ImageError::io("protect", root, error))?;
        if disk.is_formatted()? {
            // Whoever holds the lock has its own work in tmp/.
            if let Some(lock) = disk.try_lock()? {
                disk.clean(&lock)?;
            }
            return Ok(disk);
        }
        disk.refuse_foreign_content()?;
        let lock = disk.lock()?;
        if !disk.is_formatted()? {
            disk.format(&lock)?;
        }
        Ok(disk)
    }

    fn is_formatted(&self) -> Result<bool, ImageError> {
        let path = self.root.join("format");
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(ImageError::io("read", &path, error)),
        };
        let format: Result<Versioned<FormatFile>, _> = serde_json::from_slice(&bytes);
        match format {
            Ok(format) if format.magic == MAGIC && format.version == VERSION => {}
            Ok(format) if format.magic == MAGIC => {
                let reason =
                    format!("it has version {} of the format, and this program knows {VERSION}", format.version);
                return Err(ImageError::Format { path, reason });
            }
            _ => {
                return Err(ImageError::Format {
                    path,
                    reason: "it does not begin with the magic of an image store".into(),
                });
            }
        }
        Ok(true)
    }

    /// A directory with other things in it is somebody's, and no place for a store.
    fn refuse_foreign_content(&self) -> Result<(), ImageError> {
        let known = |name: &str| {
            matches!(name, "in-use.json" | "lock" | "tmp" | "images" | "layers" | "current" | "index-1.json")
        };
        for entry in std::fs::read_dir(&self.root).map_err(|error| ImageError::io("list", &self.root, error))? {
            let name = entry.map_err(|error| ImageError::io("list", &self.root, error))?.file_name();
            if !name.to_str().is_some_and(known) {
                let reason = format!("it has no format file, and something else in it: {}", name.to_string_lossy());
                return Err(ImageError::Format { path: self.root.clone(), reason });
            }
        }
        Ok(())
    }

    fn format(&self, lock: &Lock) -> Result<(), ImageError> {
        for name in ["tmp", "images", "layers"] {
            make_directory(&self.root.join(name), false)?;
        }
        self.clean(lock)?;
        if self.root.join("current").symlink_metadata().is_err() {
            self.replace_index(lock, Index::default())?;
        }
        // Last: a store without it is one that was never finished.
        let path = self.root.join("tmp").join("format");
        write_file(&path, FormatFile {})?;
        rename(&path, &self.root.join("format"))?;
        sync_directory(&self.root)
    }

    /// Waits for whoever changes the store.
    pub(super) fn lock(&self) -> Result<Lock, ImageError> {
        let file = self.lock_file()?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(ImageError::io("lock", &self.root, error)),
            }
        }
    }

    pub(super) fn try_lock(&self) -> Result<Option<Lock>, ImageError> {
        let file = self.lock_file()?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(ImageError::io("lock", &self.root, error)),
        }
    }

    fn lock_file(&self) -> Result<File, ImageError> {
        let path = self.root.join("lock");
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o600);
        options.open(&path).map_err(|error| ImageError::io("open", &path, error))
    }

    /// A new directory in `tmp/`, which goes with the returned value.
    pub(super) fn scratch(&self, _lock: &Lock) -> Result<tempfile::TempDir, ImageError> {
        let tmp = self.root.join("tmp");
        tempfile::Builder::new()
            .prefix("work-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&tmp)
            .map_err(|error| ImageError::io("create a directory in", &tmp, error))
    }

    /// Removes what is in `tmp/`: under the lock, nobody works there.
    pub(super) fn clean(&self, _lock: &Lock) -> Result<(), ImageError> {
        let tmp = self.root.join("tmp");
        for entry in list(&tmp)? {
            let removed = match entry.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(&entry),
                _ => std::fs::remove_file(&entry),
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::io("remove", &entry, error));
                }
                _ => {}
            }
        }
        self.remove_old_indexes()
    }

    fn remove_old_indexes(&self) -> Result<(), ImageError> {
        let Ok(current) = std::fs::read_link(self.root.join("current")) else { return Ok(()) };
        for path in list(&self.root)? {
            let name = path.file_name().unwrap_or_default();
            if generation_of(Path::new(name)).is_some() && name != current {
                std::fs::remove_file(&path).map_err(|error| ImageError::io("remove", &path, error))?;
            }
        }
        Ok(())
    }

    /// Moves a layer or record out of sight, for [`Self::clean`] to remove: half of it is never seen.
    pub(super) fn discard(&self, _lock: &Lock, path: &Path) -> Result<(), ImageError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        rename(path, &self.root.join("tmp").join(format!("gone-{name}")))
    }

    /// What [`Self::note_in_use`] was told last; nothing where it never was.
    pub(super) fn in_use(&self) -> Result<HashSet<Digest>, ImageError> {
        Ok(self.in_use_file()?.images.into_iter().collect())
    }

    fn in_use_file(&self) -> Result<InUseFile, ImageError> {
        match read_file(&self.root.join("in-use.json")) {
            Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(InUseFile::default()),
            other => other,
        }
    }

    /// The images that pods used before, the one that is unused for the longest time first.
    pub(super) fn released(&self) -> Result<Vec<Digest>, ImageError> {
        Ok(self.in_use_file()?.released)
    }

    /// Not under the lock, so that no import holds up the agent: it is the only one who writes this file.
    pub(super) fn note_in_use(&self, in_use: &HashSet<Digest>) -> Result<(), ImageError> {
        let mut images: Vec<Digest> = in_use.iter().copied().collect();
        images.sort_unstable();
        let had = self.in_use_file();
        if had.as_ref().is_ok_and(|had| had.images == images) {
            return Ok(());
        }
        // A damaged one is written anew.
        let had = had.unwrap_or_default();
        let mut released: Vec<Digest> = had.released;
        released.extend(had.images);
        released.retain(|digest| !in_use.contains(digest) && self.image_path(digest).exists());
        let wanted = InUseFile { images, released };
        let fresh = self.root.join("in-use.json.new");
        write_file(&fresh, wanted)?;
        rename(&fresh, &self.root.join("in-use.json"))
    }

    pub(super) fn generation(&self) -> Result<u64, ImageError> {
        let path = self.root.join("current");
        let target = std::fs::read_link(&path).map_err(|error| ImageError::io("read", &path, error))?;
        generation_of(&target)
            .ok_or_else(|| ImageError::Damaged { path, reason: format!("it leads to {}", target.display()) })
    }

    pub(super) fn index(&self) -> Result<Index, ImageError> {
        let mut retries = INDEX_RETRIES;
        loop {
            let generation = self.generation()?;
            let path = self.root.join(index_name(generation));
            match read_file::<Index>(&path) {
                Ok(index) => return Ok(Index { generation, ..index }),
                // It was replaced in between.
                Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound && retries > 0 => {
                    retries -= 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn replace_index(&self, lock: &Lock, index: Index) -> Result<(), ImageError> {
        let name = index_name(index.generation + 1);
        write_file(&self.root.join(&name), index)?;
        let link = self.root.join("tmp").join("current");
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ImageError::io("remove", &link, error));
            }
            _ => {}
        }
        std::os::unix::fs::symlink(&name, &link).map_err(|error| ImageError::io("create", &link, error))?;
        // The file's own name must be on the disk before the link that leads to it.
        sync_directory(&self.root)?;
        rename(&link, &self.root.join("current"))?;
        sync_directory(&self.root)?;
        // Done from here on: an old index that stays goes with the next change.
        let _ = (lock, self.remove_old_indexes());
        Ok(())
    }

    pub(super) fn image(&self, digest: &Digest) -> Result<ImageFile, ImageError> {
        let path = self.image_path(digest);
        read_file(&path).map_err(|error| match error {
            ImageError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ImageError::Damaged { path, reason: "the record of the image is missing".into() }
            }
            other => other,
        })
    }

    /// The image whose manifest, or else one of whose indexes, has the digest.
    pub(super) fn image_by_digest(&self, digest: &Digest) -> Result<Option<(Digest, ImageFile)>, ImageError> {
        if self.image_path(digest).exists() {
            return Ok(Some((*digest, self.image(digest)?)));
        }
        for manifest in self.images()? {
            let image = self.image(&manifest)?;
            if image.indexes.contains(digest) {
                return Ok(Some((manifest, image)));
            }
        }
        Ok(None)
    }

    /// Directories of an image's layers, bottom first. Of a layer that occurs twice only the upper one is kept: it hides the same paths and
    /// brings the same files, and overlayfs refuses to have a directory twice.
    pub(super) fn layer_directories(&self, image: &ImageFile) -> Result<Vec<PathBuf>, ImageError> {
        let mut directories = Vec::with_capacity(image.layers.len());
        for (at, layer) in image.layers.iter().enumerate() {
            if image.layers[at + 1..].contains(layer) {
                continue;
            }
            let path = self.layer_path(layer).join("fs");
            if !path.is_dir() {
                return Err(ImageError::Damaged { path, reason: "the layer is missing".into() });
            }
            directories.push(path);
        }
        Ok(directories)
    }

    /// What the layer is kept under here, by [`LayerFile::key`]; `None` also where it is not.
    pub(super) fn find_layer(&self, diff_id: &Digest, below: Option<&[PathBuf]>) -> Result<Option<Digest>, ImageError> {
        if !self.layer_path(diff_id).exists() {
            return Ok(None);
        }
        let key = self.layer(diff_id)?.key(diff_id, below)?;
        Ok(key.filter(|key| self.layer_path(key).exists()))
    }

    pub(super) fn layer(&self, diff_id: &Digest) -> Result<LayerFile, ImageError> {
        read_file(&self.layer_path(diff_id).join("layer.json"))
    }

    pub(super) fn image_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", digest.hex()))
    }

    pub(super) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    /// Manifest digests of all images, named or not.
    pub(super) fn images(&self) -> Result<Vec<Digest>, ImageError> {
        self.digests("images", ".json")
    }

    /// Diff ids of all layers, used or not.
    pub(super) fn layers(&self) -> Result<Vec<Digest>, ImageError> {
        self.digests("layers", "")
    }

    fn digests(&self, directory: &str, suffix: &str) -> Result<Vec<Digest>, ImageError> {
        let digest = |path: &PathBuf| Digest::from_hex(path.file_name()?.to_str()?.strip_suffix(suffix)?);
        Ok(list(&self.root.join(directory))?.iter().filter_map(digest).collect())
    }

    /// Makes the renames into `layers/` and `images/` last.
    pub(super) fn sync_names(&self) -> Result<(), ImageError> {
        sync_directory(&self.root.join("layers"))?;
        sync_directory(&self.root.join("images"))
    }
}

fn index_name(generation: u64) -> String {
    format!("index-{generation}.json")
}

fn generation_of(name: &Path) -> Option<u64> {
    name.to_str()?.strip_prefix("index-")?.strip_suffix(".json")?.parse().ok()
}

fn make_directory(path: &Path, parents: bool) -> Result<(), ImageError> {
    match DirBuilder::new().mode(0o700).recursive(parents).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(ImageError::io("create", path, error)),
        _ => Ok(()),
    }
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let failed = |error| ImageError::io("list", directory, error);
    std::fs::read_dir(directory).map_err(failed)?.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

/// Renames, without replacing a directory that has content.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), ImageError> {
    std::fs::rename(from, to).map_err(|error| ImageError::io("rename to", to, error))
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, ImageError> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| ImageError::io("open", path, error))
}

fn sync_directory(path: &Path) -> Result<(), ImageError> {
    rustix::fs::fsync(open_directory(path)?).map_err(|error| ImageError::io("sync", path, error))
}

/// Writes a new file with magic and version, and has it on the disk.
pub(super) fn write_file<T: Serialize>(path: &Path, content: T) -> Result<(), ImageError> {
    let damaged = |error: serde_json::Error| ImageError::Damaged { path: path.to_owned(), reason: error.to_string() };
    let versioned = Versioned { magic: MAGIC.into(), version: VERSION, content };
    let mut bytes = serde_json::to_vec(&versioned).map_err(damaged)?;
    bytes.push(b'\n');
    let failed = |error| ImageError::io("write", path, error);
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(&bytes).map_err(failed)?;
    file.sync_all().map_err(failed)
}

fn read_file<T: DeserializeOwned>(path: &Path) -> Result<T, ImageError> {
    let bytes = read_bounded(path).map_err(|error| ImageError::io("read", path, error))?;
    let damaged = |reason: String| ImageError::Damaged { path: path.to_owned(), reason };
    let file: Versioned<T> = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if file.magic != MAGIC || file.version != VERSION {
        return Err(damaged(format!(
            "it is {:?} version {}, not {MAGIC:?} version {VERSION}",
            file.magic, file.version
        )));
    }
    Ok(file.content)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}
