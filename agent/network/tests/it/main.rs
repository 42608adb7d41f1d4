//! Pods in a small world of real network namespaces: a home with a LAN neighbour and a router, and an internet behind it.

#![allow(clippy::unwrap_used, missing_docs)]

mod bandwidth;
mod lifecycle;
mod names;
mod packets;
mod protection;
mod services;
mod world;
