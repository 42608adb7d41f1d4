//! The bounds on everything that an image from outside makes a device do.

/// Bytes of an `index.json`, a manifest list or a manifest: what registries accept at most (OCI distribution spec, "Pushing Manifests").
pub const MAX_MANIFEST_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes of an image configuration. Real ones are a few KiB; the history of a long Dockerfile reaches some hundred.
pub const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;
/// Layers of an image. Docker stops at 127, and overlayfs at 500.
pub const MAX_LAYERS: usize = 128;
/// Descriptors in one index: a multi-platform image has about twenty.
pub const MAX_INDEX_ENTRIES: usize = 1024;
/// How deep indexes may nest: `index.json`, a multi-platform index and one more.
pub const MAX_INDEX_DEPTH: usize = 3;
/// Images that one archive may bring.
pub const MAX_IMAGES: usize = 64;
/// Bytes of one layer once unpacked, padding and headers included.
pub const MAX_LAYER_BYTES: u64 = 32 * 1024 * 1024 * 1024;
/// Bytes of all layers of one image once unpacked.
pub const MAX_IMAGE_BYTES: u64 = 64 * 1024 * 1024 * 1024;
/// Entries of one layer: a full desktop distribution has about 400,000 files.
pub const MAX_ENTRIES: u64 = 1_000_000;
/// How much larger than its blob a layer may become. Text compresses ten times, a database of zeros more than a thousand times, as a bomb does.
pub const MAX_RATIO: u64 = 200;
/// Bytes that any layer may become whatever its ratio, so that small layers of zeros pass.
pub const RATIO_FREE_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of an entry's path: PATH_MAX of Linux without its NUL.
pub const MAX_PATH_BYTES: usize = 4095;
/// Bytes of one component of a path: NAME_MAX of Linux.
pub const MAX_NAME_BYTES: usize = 255;
/// Components of an entry's path. Deep trees cost a file descriptor a level to remove.
pub const MAX_PATH_DEPTH: usize = 256;
/// Bytes of the PAX or GNU extension in front of an entry: it holds two paths and some attributes.
pub const MAX_EXTENSION_BYTES: u64 = 1024 * 1024;
/// Bytes of one extended attribute: XATTR_SIZE_MAX of Linux.
pub const MAX_XATTR_BYTES: usize = 65_536;
/// Extended attributes of one entry.
pub const MAX_XATTRS: usize = 64;
/// Bytes of the paths of directories whose times are set once a layer is complete: they are held in memory.
pub const MAX_DIRECTORY_PATHS_BYTES: usize = 16 * 1024 * 1024;
/// Entries of an OCI or docker archive: its blobs, and a directory for each layer in older ones.
pub const MAX_ARCHIVE_ENTRIES: usize = 4096;
/// Bytes of an archive that has to be decompressed to disk before its blobs can be found.
pub const MAX_ARCHIVE_BYTES: u64 = MAX_IMAGE_BYTES;
/// Largest zstd window, as a power of two: 32 MiB, what level 20 writes. It is held in memory.
pub const MAX_ZSTD_WINDOW_LOG: u32 = 25;

/// The bounds that a store holds its imports to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one layer once unpacked; [`MAX_LAYER_BYTES`].
    pub layer_bytes: u64,
    /// Bytes of all layers of an image once unpacked; [`MAX_IMAGE_BYTES`].
    pub image_bytes: u64,
    /// Entries of one layer; [`MAX_ENTRIES`].
    pub entries: u64,
    /// How many times larger than its blob a layer may become; [`MAX_RATIO`].
    pub ratio: u64,
    /// Bytes that a layer may become whatever its ratio; [`RATIO_FREE_BYTES`].
    pub ratio_free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: MAX_LAYER_BYTES,
            image_bytes: MAX_IMAGE_BYTES,
            entries: MAX_ENTRIES,
            ratio: MAX_RATIO,
            ratio_free_bytes: RATIO_FREE_BYTES,
        }
    }
}
