//! What can go wrong with an image, in words for the person who brought it.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Digest, DigestError, Platform, ReferenceError};

/// Why an image was not imported, found, removed or built. Nothing is left half done after any of them.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A system call failed for a reason that is none of the others.
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
    /// The disk of the store is full, or its quota used up. What was unpacked so far has been removed.
    #[error("the disk is full: no space left to {action} {path:?}; free some space and import again")]
    DiskFull {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The directory of the store holds something else, or a store of a later version.
    #[error("{path:?} is not an image store that this version can use: {reason}")]
    Format {
        /// The file that says so.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A file of the store itself cannot be understood.
    #[error("the image store is damaged: {path:?}: {reason}; remove the image and import it again")]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// No image of that name or digest is here.
    #[error("image {reference:?} is not on this device: import it first")]
    NotFound {
        /// What was asked for, normalised.
        reference: String,
    },
    /// Pods run from the image, or are to.
    #[error(
        "image {reference:?} ({digest}) is in use by pods of this device: delete what runs from it first, or force its removal, after \
         which it has to be imported again before they can be started anew"
    )]
    InUse {
        /// What was asked for, normalised.
        reference: String,
        /// Its manifest.
        digest: Digest,
    },
    /// The text is not an image reference.
    #[error("{0}")]
    Reference(ReferenceError),
    /// A digest in a document of the image cannot be read.
    #[error("{document}: {reason}")]
    Digest {
        /// Which document.
        document: String,
        /// What is wrong with the digest.
        reason: DigestError,
    },
    /// The source is neither a layout, nor an OCI archive, nor a docker archive.
    #[error("{path:?} is not an image: {reason}")]
    NotAnImage {
        /// The source.
        path: PathBuf,
        /// What was missing.
        reason: String,
    },
    /// The source carries no full name, and none was given.
    #[error("{path:?} does not say how its image is called{hint}: give a name")]
    NoName {
        /// The source.
        path: PathBuf,
        /// The tag that it carries, if it carries one.
        hint: String,
    },
    /// One name was given, and the source holds several images.
    #[error("{path:?} holds several images ({found}): give the name of one of them, or none to import all")]
    Ambiguous {
        /// The source.
        path: PathBuf,
        /// The names found.
        found: String,
    },
    /// A document of the image (index, manifest, configuration) is not what the specification says.
    #[error("{document} is not valid: {reason}")]
    Document {
        /// Which document.
        document: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A document of the image is larger than any real one.
    #[error("{document} has {had} bytes: the limit is {limit}")]
    DocumentTooLarge {
        /// Which document.
        document: String,
        /// Its size in bytes.
        had: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A media type that cannot be unpacked.
    #[error("{document}: media type {media_type:?} is not supported")]
    MediaType {
        /// What has the type.
        document: String,
        /// The type.
        media_type: String,
    },
    /// The image is for another kind of machine.
    #[error("image {image} is for {had}, and this device needs {wanted}")]
    Platform {
        /// Name or digest of the image.
        image: String,
        /// What this device needs.
        wanted: Platform,
        /// What the image offers.
        had: String,
    },
    /// A blob that a document names is not there.
    #[error("blob {digest} is missing from {path:?}: the image is not complete")]
    MissingBlob {
        /// The blob.
        digest: Digest,
        /// The source.
        path: PathBuf,
    },
    /// A blob cannot be read because it is not a plain file.
    #[error("blob {digest} in {path:?} is {found}, not a file: links are not followed")]
    BlobNotAFile {
        /// The blob.
        digest: Digest,
        /// The source.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// A blob is longer or shorter than its descriptor says.
    #[error("blob {digest} has {had} bytes, and its descriptor says {wanted}: it is {}", if had < wanted { "truncated" } else { "too long" })]
    Size {
        /// The blob.
        digest: Digest,
        /// Bytes according to the descriptor.
        wanted: u64,
        /// Bytes found.
        had: u64,
    },
    /// A blob's content is not what its digest says.
    #[error("blob {wanted} is damaged or forged: the digest of its content is {had}")]
    WrongDigest {
        /// The digest asked for.
        wanted: Digest,
        /// The digest of what was found.
        had: Digest,
    },
    /// A layer's content once decompressed is not what the configuration says (`rootfs.diff_ids`).
    #[error("layer {layer} unpacks to {had}, and the image's configuration says {wanted}")]
    WrongDiffId {
        /// The layer's blob.
        layer: Digest,
        /// The diff id in the configuration.
        wanted: Digest,
        /// The digest of what was unpacked.
        had: Digest,
    },
    /// A layer cannot be decompressed, or ends early.
    #[error("layer {layer} cannot be read: {reason}")]
    LayerData {
        /// The layer's blob.
        layer: Digest,
        /// What is wrong with the stream.
        reason: String,
    },
    /// A layer grows beyond a bound.
    #[error("layer {layer} is refused at entry {entry:?}: {reason}")]
    Bomb {
        /// The layer's blob.
        layer: Digest,
        /// The entry at which the bound was reached.
        entry: String,
        /// Which bound.
        reason: String,
    },
    /// A layer holds an entry that no image needs, and that would reach out of the layer or of the container.
    #[error("layer {layer} is refused at entry {entry:?}: {problem}")]
    Entry {
        /// The layer's blob.
        layer: Digest,
        /// The path of the entry as the layer has it.
        entry: String,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// An entry of a layer cannot be created on this disk.
    #[error("layer {layer}: cannot create entry {entry:?}")]
    EntryIo {
        /// The layer's blob.
        layer: Digest,
        /// The path of the entry.
        entry: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A build was asked for what cannot work.
    #[error("cannot build image {reference:?}: {reason}")]
    Build {
        /// The name of the image.
        reference: String,
        /// Why, and what to do.
        reason: String,
    },
}

/// What is wrong with one entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// A component is `..`.
    #[error("its path has a \"..\" component")]
    DotDot,
    /// The path has a NUL, or none is there.
    #[error("its path is empty or has a NUL byte")]
    BadPath,
    /// Longer than Linux allows.
    #[error("its path has {had} bytes: the limit is {limit}")]
    PathTooLong {
        /// Bytes found.
        had: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A component is longer than Linux allows.
    #[error("a component of its path has {had} bytes: the limit is {limit}")]
    NameTooLong {
        /// Bytes found.
        had: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// More components than allowed.
    #[error("its path has {had} components: the limit is {limit}")]
    TooDeep {
        /// Components found.
        had: usize,
        /// Components allowed.
        limit: usize,
    },
    /// An earlier entry of the same layer made a symbolic link there.
    #[error("its path leads through a symbolic link of the same layer")]
    ThroughSymlink,
    /// An earlier entry of the same layer made something else than a directory there.
    #[error("its path leads through something that is not a directory")]
    ThroughFile,
    /// A hard link leads out of the layer.
    #[error("it is a hard link to {0:?}, which leads out of the layer")]
    LinkOut(String),
    /// A hard link to what is not there.
    #[error("it is a hard link to {0:?}, which is not in the layer")]
    LinkMissing(String),
    /// A hard link to a directory or a whiteout.
    #[error("it is a hard link to {0:?}, which is not a file")]
    LinkKind(String),
    /// A block or character device.
    #[error("it is a {0} device: device nodes are not allowed in images")]
    Device(&'static str),
    /// A type that is not unpacked.
    #[error("its type {0:?} is not supported")]
    Type(char),
    /// A sparse file in one of GNU tar's ways.
    #[error("it is a sparse file: repack the layer without --sparse")]
    Sparse,
    /// An empty target of a link, or one that is too long.
    #[error("its link target is empty, longer than {} bytes or has a NUL byte", crate::limits::MAX_PATH_BYTES)]
    BadTarget,
    /// A whiteout without a name, or of `.` or `..`.
    #[error("it is a whiteout of nothing, of \".\" or of \"..\"")]
    BadWhiteout,
    /// A user, group or time that Linux does not have.
    #[error("its {0} is out of range")]
    Number(&'static str),
    /// Content where there can be none.
    #[error("it has content, and its type has none")]
    UnexpectedContent,
    /// A file in place of a directory with entries in the same layer.
    #[error("it replaces a directory of the same layer that is not empty")]
    ReplacesDirectory,
    /// An extension header that cannot be read.
    #[error("its extension header is not valid: {0}")]
    Extension(String),
    /// Too many or too large extended attributes.
    #[error(
        "its extended attributes are more than {} or one is larger than {} bytes",
        crate::limits::MAX_XATTRS,
        crate::limits::MAX_XATTR_BYTES
    )]
    Xattrs,
}

impl ImageError {
    /// An I/O error on a path of the store or of a source, with a full disk told apart.
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        if is_disk_full(&source) {
            Self::DiskFull { action, path: path.to_owned() }
        } else {
            Self::Io { action, path: path.to_owned(), source }
        }
    }
}

/// ENOSPC, or EDQUOT where the owner set a quota.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
