//! The name server, asked over real sockets and with the tools that operators use.

#![allow(clippy::unwrap_used)]

mod hostile;
mod questions;
mod sockets;
mod support;
mod tools;
