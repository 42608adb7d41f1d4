//! Pulls from real and hostile registries.

#![allow(clippy::unwrap_used)] // a test may panic on what it did not expect

mod auth;
mod hostile;
mod image;
mod mirrors;
mod reach;
mod real;
mod registry;
mod resume;
mod server;
mod support;
