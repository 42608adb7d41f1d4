//! The store of a device: a directory with unpacked layers, image records and one index of names.
//!
//! ```text
//! format                         magic and version
//! lock                           flock of whoever changes the store
//! current -> index-<n>.json      the names; n is the store's generation
//! images/<manifest hex>.json     what an image is: configuration, layers, platform
//! layers/<diff id hex>/fs        an unpacked layer (for the rare other names see `inherit`)
//! layers/<diff id hex>/layer.json
//! in-use.json                    images that pods use, as the agent said last
//! tmp/                           imports and removals under way
//! ```
//!
//! # Guarantees
//! - A layer or record appears under its name only once it is complete, verified and on the disk; both are named by content and never change.
//! - All names of one import appear at once, with the replacement of `current`.
//! - Readers take no lock. Whoever changes the store holds `lock`, so imports, removals and collections of several processes take turns.
//! - What was interrupted is in `tmp/`, where nobody looks for images, and goes at the next opening or import.
//!
//! The directory is for root alone (0700): layers hold programs that are set-user-id root.

mod disk;
mod import;
mod pressure;
mod uses;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{Digest, ImageConfig, ImageError, Limits, Platform, Reference};
use disk::{Disk, Lock};
pub use uses::Hold;
use uses::{Collected, Holds};

/// The images of one device, in one directory. Cheap to clone; all methods may be called from any thread and process at once.
#[derive(Debug, Clone)]
pub struct ImageStore {
    disk: Disk,
    limits: Limits,
    holds: Holds,
    collected: Arc<Mutex<Option<Collected>>>,
}

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Name of the image; `None` takes the names that the source carries. Where the source holds several images, it says which one.
    pub name: Option<String>,
    /// The platform to choose, and to insist on.
    pub platform: Platform,
    /// The source was filled by a pull of `name` from a registry. It may lack layers that the store has, which were verified when they came;
    /// `name` may be a digest; and since the image can be had again, [`ImageStore::make_room`] may remove it.
    pub pulled: bool,
}

impl Default for ImportOptions {
    /// The source's own names, for the platform of this machine.
    fn default() -> Self {
        Self { name: None, platform: Platform::host(), pulled: false }
    }
}

/// One name in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// `name:tag`, or `name@sha256:…` of an image that was pulled by its digest; normalised.
    pub reference: String,
    /// Digest of the image's manifest.
    pub digest: Digest,
    /// Bytes of the files of all layers, unpacked. Layers that images share count in each.
    pub size: u64,
    /// When the image was made, as its configuration says (RFC 3339), if it says.
    pub created: Option<String>,
    /// The platform it is for.
    pub platform: Platform,
    /// Whether it was pulled from a registry, and can be again.
    pub pulled: bool,
}

/// An image that is ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What was asked for, normalised.
    pub reference: String,
    /// Digest of the image's manifest: what [`ImageStore::collect_garbage`] wants while a pod uses the image.
    pub manifest_digest: Digest,
    /// Whether what was asked for is a name under which the owner brought it to the device by hand.
    pub imported: bool,
    /// How to run it.
    pub config: ImageConfig,
    /// Root directories of its layers, bottom first, no directory twice. Read-only: other pods use them too.
    pub layers: Vec<PathBuf>,
}

/// What a garbage collection removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Garbage {
    /// Images.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Bytes of the files of those layers.
    pub bytes: u64,
}

impl std::ops::AddAssign for Garbage {
    fn add_assign(&mut self, more: Self) {
        self.images += more.images;
        self.layers += more.layers;
        self.bytes += more.bytes;
    }
}

impl ImageStore {
    /// Opens the store at `root` (`<data-dir>/agent/images`), and makes it where there is none. Removes what interrupted imports left, unless
    /// one is under way in another process.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        let disk = Disk::open(root)?;
        Ok(Self { disk, limits: Limits::default(), holds: Holds::default(), collected: Arc::default() })
    }

    /// The same store with other bounds on what it imports.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Imports the image, or the images, of `source`: an OCI image layout directory, an OCI archive or a docker archive (tar, also gzip or
    /// zstd). A name that is there already moves to the new image.
    ///
    /// All or nothing: names appear once every blob is verified, every layer unpacked, and all of it on the disk. Waits for imports of
    /// other processes.
    pub fn import(&self, source: &Path, options: &ImportOptions) -> Result<Vec<ImageRecord>, ImageError> {
        import::import(&self.disk, &self.limits, source, options)
    }

    /// All names, sorted.
    pub fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        let index = self.disk.index()?;
        let record = |(reference, digest): (&Reference, &Digest)| {
            let pulled = index.pulled.contains(reference);
            Ok(self.disk.image(digest)?.record(reference, digest, pulled))
        };
        index.names.iter().map(record).collect()
    }

    /// The image of a name (`name[:tag]`, tag `latest` where there is none), of `name@sha256:…`, or of a bare `sha256:…`.
    ///
    /// A digest is that of the manifest, or of an index through which the image was chosen. It alone decides: the name beside it may be any,
    /// and an image whose name has moved on or was removed is still found until it is collected.
    pub fn resolve(&self, reference: &str) -> Result<Image, ImageError> {
        let parsed: Reference = reference.parse().map_err(ImageError::Reference)?;
        let shown = parsed.to_string();
        let not_found = || ImageError::NotFound { reference: shown.clone() };
        let index = self.disk.index()?;
        let imported = index.names.contains_key(&parsed) && !index.pulled.contains(&parsed);
        let (digest, image) = match &parsed {
            Reference::Tag { .. } => {
                let digest = *index.names.get(&parsed).ok_or_else(not_found)?;
                (digest, self.disk.image(&digest)?)
            }
            Reference::Digest { digest, .. } => self.disk.image_by_digest(digest)?.ok_or_else(not_found)?,
        };
        let layers = self.disk.layer_directories(&image)?;
        Ok(Image { reference: shown, manifest_digest: digest, imported, config: image.config, layers })
    }

    /// As [`Self::resolve`], and holds the image: no collection of this process takes its layers away while the caller has the hold.
    pub fn resolve_and_hold(&self, reference: &str) -> Result<(Image, Hold), ImageError> {
        self.holds.hold(|| self.resolve(reference))
    }

    /// Which of an image's layers, given by their diff ids bottom first, an import would find here: a pull need not fetch them.
    ///
    /// A layer that was kept under another name, since it takes over something of those below it, counts as missing above the first that is.
    pub fn known_layers(&self, diff_ids: &[Digest]) -> Result<Vec<bool>, ImageError> {
        let (mut below, mut whole) = (Vec::new(), true);
        let known = diff_ids.iter().map(|diff_id| {
            let key = self.disk.find_layer(diff_id, whole.then_some(below.as_slice()))?;
            whole &= key.is_some();
            below.extend(key.map(|key| self.disk.layer_path(&key).join("fs")));
            Ok(key.is_some())
        });
        known.collect()
    }

    /// Writes down which images pods run from or are about to: until this is said again, [`Self::remove`] refuses to take away the last
    /// name of one of them, also in another process. Nothing is written where nothing changed.
    pub fn note_in_use(&self, in_use: &HashSet<Digest>) -> Result<(), ImageError> {
        self.disk.note_in_use(in_use)
    }

    /// Removes a name; for a digest, all names of that image. Its layers stay until [`Self::collect_garbage`].
    ///
    /// # Errors
    /// [`ImageError::InUse`] where it is the last name of an image that pods use: they could not be started again.
    pub fn remove(&self, reference: &str) -> Result<(), ImageError> {
        self.remove_names(reference, false)
    }

    /// As [`Self::remove`], whether pods use it or not: those that run go on, and their layers are kept as long.
    pub fn force_remove(&self, reference: &str) -> Result<(), ImageError> {
        self.remove_names(reference, true)
    }

    fn remove_names(&self, reference: &str, force: bool) -> Result<(), ImageError> {
        let parsed: Reference = reference.parse().map_err(ImageError::Reference)?;
        let lock = self.disk.lock()?;
        let mut index = self.disk.index()?;
        let before = index.names.len();
        let removed = match &parsed {
            Reference::Tag { .. } => index.names.remove(&parsed),
            Reference::Digest { digest, .. } => {
                let found = self.disk.image_by_digest(digest)?.map(|(digest, _)| digest);
                index.names.retain(|_, had| Some(*had) != found);
                found.filter(|_| index.names.len() < before)
            }
        };
        index.forget_origins();
        let Some(digest) = removed else { return Err(ImageError::NotFound { reference: parsed.to_string() }) };
        let is_last = !index.names.values().any(|other| *other == digest);
        if is_last && !force && self.disk.in_use()?.contains(&digest) {
            return Err(ImageError::InUse { reference: parsed.to_string(), digest });
        }
        self.disk.replace_index(&lock, index)
    }

    /// Removes the images that have no name and whose manifest digest is not in `in_use`, and the layers that only they had.
    ///
    /// The caller names every image that a pod runs from or is about to run from; those on [`Hold`] are kept too. Waits for an import that
    /// is under way: see [`Self::try_collect_garbage`].
    ///
    /// # Guarantees
    /// Where names and use are as after this process's last collection, it costs one system call. Interrupted at any moment, every image
    /// that is left is whole, and the next collection goes on.
    ///
    /// # Assumptions
    /// Only the process that runs pods collects: it alone knows what is held.
    pub fn collect_garbage(&self, in_use: &HashSet<Digest>) -> Result<Garbage, ImageError> {
        if self.has_nothing_to_collect(in_use)? {
            return Ok(Garbage::default());
        }
        self.collect(&self.disk.lock()?, in_use)
    }

    /// As [`Self::collect_garbage`]; `None` where an import or a removal is under way, for which it does not wait.
    pub fn try_collect_garbage(&self, in_use: &HashSet<Digest>) -> Result<Option<Garbage>, ImageError> {
        if self.has_nothing_to_collect(in_use)? {
            return Ok(Some(Garbage::default()));
        }
        self.disk.try_lock()?.map(|lock| self.collect(&lock, in_use)).transpose()
    }

    fn has_nothing_to_collect(&self, in_use: &HashSet<Digest>) -> Result<bool, ImageError> {
        let collected = self.collected.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(collected) = collected.as_ref() else { return Ok(false) };
        let needed = |held: &dyn Fn(&Digest) -> bool| collected.kept.iter().all(|d| in_use.contains(d) || held(d));
        Ok(self.disk.generation()? == collected.generation && self.holds.still(needed))
    }

    fn collect(&self, lock: &Lock, in_use: &HashSet<Digest>) -> Result<Garbage, ImageError> {
        self.disk.clean(lock)?;
        let generation = self.disk.generation()?;
        // Renames only: nobody who looks an image up waits for files to be removed.
        let (garbage, kept) = self.holds.still(|held| self.discard_unused(lock, &|d| in_use.contains(d) || held(d)))?;
        self.disk.clean(lock)?;
        *self.collected.lock().unwrap_or_else(PoisonError::into_inner) = Some(Collected { generation, kept });
        Ok(garbage)
    }

    /// Moves away what is not needed; also the images that have no name and are needed all the same.
    fn discard_unused(
        &self,
        lock: &Lock,
        is_used: &dyn Fn(&Digest) -> bool,
    ) -> Result<(Garbage, HashSet<Digest>), ImageError> {
        let named: HashSet<Digest> = self.disk.index()?.names.into_values().collect();
        let (mut live_layers, mut dead_images, mut kept) = (HashSet::new(), Vec::new(), HashSet::new());
        for digest in self.disk.images()? {
            if !named.contains(&digest) {
                if !is_used(&digest) {
                    dead_images.push(digest);
                    continue;
                }
                kept.insert(digest);
            }
            live_layers.extend(self.disk.image(&digest)?.layers);
        }
        let mut garbage = Garbage::default();
        // Images first: no record ever names a layer that is gone.
        for digest in &dead_images {
            self.disk.discard(lock, &self.disk.image_path(digest))?;
            garbage.images += 1;
        }
        for digest in self.disk.layers()?.into_iter().filter(|digest| !live_layers.contains(digest)) {
            garbage.bytes += self.disk.layer(&digest).map_or(0, |layer| layer.bytes);
            self.disk.discard(lock, &self.disk.layer_path(&digest))?;
            garbage.layers += 1;
        }
        Ok((garbage, kept))
    }

    /// A number that grows whenever an import finishes or a name is removed. One system call: to be asked for often.
    pub fn generation(&self) -> Result<u64, ImageError> {
        self.disk.generation()
    }
}
