//! The store of a device: a directory with unpacked layers, image records and one index of names.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Digest, ImageConfig, ImageError, Limits, Platform};

/// The images of one device, in one directory. Cheap to clone; all methods may be called from any thread and process at once.
#[derive(Debug, Clone)]
pub struct ImageStore {
    root: PathBuf,
    limits: Limits,
}

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Name of the image; `None` takes the names that the source carries.
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
    /// Opens the store at `root` (`<data-dir>/agent/images`), and makes it where there is none.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        Ok(Self { root: root.to_owned(), limits: Limits::default() })
    }

    /// The same store with other bounds on what it imports.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    fn later<T>(&self) -> Result<T, ImageError> {
        let _ = &self.limits;
        Err(ImageError::Damaged { path: self.root.clone(), reason: "not written yet".into() })
    }

    /// Imports the image, or the images, of `source`.
    pub fn import(&self, _source: &Path, _options: &ImportOptions) -> Result<Vec<ImageRecord>, ImageError> {
        self.later()
    }

    /// All names, sorted.
    pub fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        self.later()
    }

    /// The image of that name or digest.
    pub fn resolve(&self, _reference: &str) -> Result<Image, ImageError> {
        self.later()
    }

    /// Removes a name (or, for a digest, all names of that image). The layers stay until [`Self::collect_garbage`].
    pub fn remove(&self, _reference: &str) -> Result<(), ImageError> {
        self.later()
    }

    /// Removes the images that have no name and whose manifest digest is not in `in_use`, and the layers that only they had.
    pub fn collect_garbage(&self, _in_use: &HashSet<Digest>) -> Result<Garbage, ImageError> {
        self.later()
    }

    /// A number that changes whenever an import finishes or a name is removed. One system call.
    pub fn generation(&self) -> Result<u64, ImageError> {
        self.later()
    }
}
