//! Pulls images from OCI registries into OCI image layouts.
//!
//! A [`Puller`] speaks the OCI Distribution Specification 1.1 (Docker's Registry HTTP API v2) to registries and their mirrors, and fills a
//! directory that `hearth_image::ImageStore::import` then verifies again and unpacks.
//!
//! Registries, token servers and mirrors are held to be hostile: every byte is verified by a digest that the image's name or a verified
//! document gave, every answer is bounded in length and time, and secrets go to the host they are for and into no message. See
//! [`PullLimits`] for the bounds and [`PullError`] for what is refused.
//!
//! Proxies of the environment are not used. Images of Docker's schema 1, layers kept outside of their registry, and digests other than SHA-256
//! are not supported.

mod addresses;
mod attempts;
mod blob;
mod challenge;
mod config;
mod credentials;
pub mod decoders;
mod documents;
mod door;
mod error;
mod file;
mod http;
mod layout;
mod name;
mod progress;
mod puller;
mod token;

pub use config::{Config, ConfigError, PullLimits, Reach};
pub use credentials::{Credentials, CredentialsError};
pub use error::PullError;
pub use file::{FileError, Registries};
pub use layout::remove_unused;
pub use progress::{Progress, Transferred};
pub use puller::{Known, Pulled, Puller};
