//! Images on a device: load, verify, unpack, list, build.
//!
//! An [`ImageStore`] is one directory of a device. It takes images from OCI image layouts (directories), OCI archives and docker archives
//! (tar files, also compressed), verifies every blob by digest and size, unpacks every layer once, and hands out the directories that an
//! overlay file system is mounted from.
//!
//! Everything that comes from outside is held to be hostile: see [`Limits`] for the bounds, [`ImageError`] for what is refused, and
//! `unpack` for how a layer is kept inside its directory.
//!
//! All calls block (disk); an async caller runs them on a blocking thread.

mod blob;
pub mod build;
mod choice;
mod digest;
pub mod document {
    //! The documents of an image, for whoever fetches one from elsewhere: read here, so that both hold the same things to be valid.
    pub use crate::choice::{Choice, check_layers, check_platform};
    pub use crate::spec::{
        ConfigDocument, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Manifest, OCI_INDEX, OCI_MANIFEST, REF_NAME, Target,
        parse_config, parse_index, parse_manifest,
    };
}
mod error;
mod inherit;
pub mod limits;
mod platform;
mod reference;
mod select;
mod source;
mod spec;
mod store;
mod tarball;
mod unpack;

pub use digest::{Digest, DigestError};
pub use error::{EntryProblem, ImageError};
pub use limits::Limits;
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
pub use spec::ImageConfig;
pub use store::{Garbage, Hold, Image, ImageRecord, ImageStore, ImportOptions};
