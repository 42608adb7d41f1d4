//! The region's loops over the real state machine in memory, with devices that speak the session over gRPC.

#![allow(clippy::unwrap_used)]

mod apps;
mod certificates;
mod group;
mod placement;
mod recovery;
mod reports;
mod sessions;
mod support;
