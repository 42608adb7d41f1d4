//! Both ends over real QUIC on loopback.

#![allow(clippy::unwrap_used)]

mod reach;
mod region;
mod rpc;
mod streams;
mod versions;
