//! The region's loops over the real state machine in memory, with devices that speak the session over gRPC.

#![allow(clippy::unwrap_used)]

mod apps;
mod group;
mod placement;
mod recovery;
mod sessions;
mod support;
