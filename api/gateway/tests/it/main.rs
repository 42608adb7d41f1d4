//! The gateway between real TLS clients on loopback and devices that are TLS servers behind an in-memory dialer.

#![allow(clippy::unwrap_used)]

mod fixture;
mod flows;
mod limits;
mod own;
mod plain;
mod ports;
mod refused;
mod through;
