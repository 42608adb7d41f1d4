//! The store of a device: a directory with unpacked layers, image records and one index of names.
//!
//! ```text
//! format                         magic and version
//! lock                           flock of whoever changes the store
//! current -> index-<n>.json      the names; n is the store's generation
//! images/<manifest hex>.json     what an image is: configuration, layers, platform
//! layers/<diff id hex>/fs        an unpacked layer (for the rare other names see `inherit`)
//! layers/<diff id hex>/layer.json
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

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Digest, ImageConfig, ImageError, Limits, Platform, Reference};
use disk::Disk;

/// The images of one device, in one directory. Cheap to clone; all methods may be called from any thread and process at once.
#[derive(Debug, Clone)]
pub struct ImageStore {
    disk: Disk,
    limits: Limits,
}

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Name of the image; `None` takes the names that the source carries. Where the source holds several images, it says which one.
    pub name: Option<String>,
    /// The platform to choose, and to insist on.
    pub platform: Platform,
}

impl Default for ImportOptions {
    /// The source's own names, for the platform of this machine.
    fn default() -> Self {
        Self { name: None, platform: Platform::host() }
    }
}

/// One name in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// `name:tag`, normalised.
    pub reference: String,
    /// Digest of the image's manifest.
    pub digest: Digest,
    /// Bytes of the files of all layers, unpacked. Layers that images share count in each.
    pub size: u64,
    /// When the image was made, as its configuration says (RFC 3339), if it says.
    pub created: Option<String>,
    /// The platform it is for.
    pub platform: Platform,
}

/// An image that is ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What was asked for, normalised.
    pub reference: String,
    /// Digest of the image's manifest: what [`ImageStore::collect_garbage`] wants while a pod uses the image.
    pub manifest_digest: Digest,
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

impl ImageStore {
    /// Opens the store at `root` (`<data-dir>/agent/images`), and makes it where there is none. Removes what interrupted imports left, unless
    /// one is under way in another process.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        let disk = Disk::open(root)?;
        Ok(Self { disk, limits: Limits::default() })
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
        index.names.iter().map(|(reference, digest)| Ok(self.disk.image(digest)?.record(reference, digest))).collect()
    }

    /// The image of a name (`name[:tag]`, tag `latest` where there is none), of `name@sha256:…`, or of a bare `sha256:…`.
    ///
    /// A digest is that of the manifest, or of an index through which the image was chosen. It alone decides: the name beside it may be any,
    /// and an image whose name has moved on or was removed is still found until it is collected.
    pub fn resolve(&self, reference: &str) -> Result<Image, ImageError> {
        let parsed: Reference = reference.parse().map_err(ImageError::Reference)?;
        let shown = parsed.to_string();
        let not_found = || ImageError::NotFound { reference: shown.clone() };
        let (digest, image) = match &parsed {
            Reference::Tag { .. } => {
                let digest = *self.disk.index()?.names.get(&parsed).ok_or_else(not_found)?;
                (digest, self.disk.image(&digest)?)
            }
            Reference::Digest { digest, .. } => self.disk.image_by_digest(digest)?.ok_or_else(not_found)?,
        };
        let layers = self.disk.layer_directories(&image)?;
        Ok(Image { reference: shown, manifest_digest: digest, config: image.config, layers })
    }

    /// Removes a name; for a digest, all names of that image. Its layers stay until [`Self::collect_garbage`].
    pub fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let parsed: Reference = reference.parse().map_err(ImageError::Reference)?;
        let lock = self.disk.lock()?;
        let mut index = self.disk.index()?;
        let before = index.names.len();
        match &parsed {
            Reference::Tag { .. } => drop(index.names.remove(&parsed)),
            Reference::Digest { digest, .. } => {
                let found = self.disk.image_by_digest(digest)?.map(|(digest, _)| digest);
                index.names.retain(|_, had| Some(*had) != found);
            }
        }
        if index.names.len() == before {
            return Err(ImageError::NotFound { reference: parsed.to_string() });
        }
        self.disk.replace_index(&lock, index)
    }

    /// Removes the images that have no name and whose manifest digest is not in `in_use`, and the layers that only they had.
    ///
    /// The caller names every image that a pod runs from or is about to run from.
    pub fn collect_garbage(&self, in_use: &HashSet<Digest>) -> Result<Garbage, ImageError> {
        let lock = self.disk.lock()?;
        self.disk.clean(&lock)?;
        let named: HashSet<Digest> = self.disk.index()?.names.into_values().collect();
        let (mut live_layers, mut dead_images) = (HashSet::new(), Vec::new());
        for digest in self.disk.images()? {
            if named.contains(&digest) || in_use.contains(&digest) {
                live_layers.extend(self.disk.image(&digest)?.layers);
            } else {
                dead_images.push(digest);
            }
        }
        let mut garbage = Garbage::default();
        // Images first: no record ever names a layer that is gone.
        for digest in &dead_images {
            self.disk.discard(&lock, &self.disk.image_path(digest))?;
            garbage.images += 1;
        }
        for digest in self.disk.layers()?.into_iter().filter(|digest| !live_layers.contains(digest)) {
            garbage.bytes += self.disk.layer(&digest).map_or(0, |layer| layer.bytes);
            self.disk.discard(&lock, &self.disk.layer_path(&digest))?;
            garbage.layers += 1;
        }
        self.disk.clean(&lock)?;
        Ok(garbage)
    }

    /// A number that grows whenever an import finishes or a name is removed. One system call: to be asked for often.
    pub fn generation(&self) -> Result<u64, ImageError> {
        self.disk.generation()
    }
}
