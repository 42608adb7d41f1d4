//! Both ends over real QUIC on loopback.

#![allow(clippy::unwrap_used)]

mod region;
mod reach;
mod rpc;
mod streams;
