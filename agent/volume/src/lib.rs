//! Volumes of pods: claims, config maps, secrets and empty directories on a device's disk.

mod error;
mod store;

pub use error::VolumeError;
pub use store::{ClaimId, ClaimRecord, ClaimSpec, Projected, VolumeStore};
