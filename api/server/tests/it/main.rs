//! The API server and its client together: real TLS on a port of the system's choice, over the real state
//! machine held in memory.
#![allow(clippy::unwrap_used, missing_docs)]

mod access;
mod apply_all;
mod authority;
mod backups;
mod dnssec;
mod ephemeral;
mod group;
mod join;
mod life;
mod objects;
mod peers;
mod pods;
mod region;
mod relays;
mod servers;
mod store;
mod watches;
