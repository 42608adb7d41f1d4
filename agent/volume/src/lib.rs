//! Volumes of pods: claims, config maps, secrets and empty directories on a device's disk.
//!
//! A [`VolumeStore`] is one directory of a device:
//!
//! ```text
//! format                                  magic and version
//! lock                                    flock of whoever changes the store
//! ../<store>.made                         beside the store: there was one here
//! trash.lock                              flock of whoever empties the trash
//! ledger/<uid>.json                       which claims must be here
//! claims/<namespace>/<name>.<uid>/        one claim: claim.json (its marker) and data/
//! claims/.new/<uid>/                      a claim being made
//! claims/.aside/<uid>.<epoch>/            what a claim that moved away had here, the last time of each
//! claims/.trash/                          deleted claims, whose space is freed later
//! pods/<pod uid>/empty/<volume>/          empty directories
//! pods/<pod uid>/config/<volume>/         files of ConfigMaps, replaced as the kubelet does
//! pods/<pod uid>/secret/<volume>/         files of Secrets: a folder of their own, to be left out of backups
//! pods/.trash/                            volumes of removed pods, likewise
//! ```
//!
//! # Guarantees
//! - The data of a claim is never taken for lost and made anew: what the ledger, the marker and the data directory say must agree, so that a
//!   disk that is not mounted, or another one in its place, is an error and not an empty volume.
//! - A claim's directory appears under its name complete, and leaves it by one rename. Removing files, which takes as long as there are many,
//!   happens apart and holds up nothing.
//! - A claim that cannot be read or deleted is set aside, with an error of its own, and the others work.
//! - Removing follows no link and crosses no mount point, whatever a container left there.
//!
//! Ids on disk are container ids: the runtime maps them where it mounts the volume, so a fresh volume belongs to 0:0. The directory is for
//! root alone (0700), since what containers write may be set-user-id. All calls block; an async caller runs them on a blocking thread.

mod claims;
mod error;
mod files;
mod group;
mod name;
mod projected;
mod remove;
mod store;
mod usage;

pub use claims::{ClaimId, ClaimRecord, ClaimSpec, Handed, QuarantinedClaim, Tenure};
pub use error::VolumeError;
pub use name::NameError;
pub use projected::Projected;
pub use store::VolumeStore;
pub use usage::{Taken, taken};
