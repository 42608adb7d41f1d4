//! The name server, asked over real sockets and with the tools that operators use.

#![allow(clippy::unwrap_used)]

mod cookies;
mod dnssec;
mod external;
mod hostile;
mod nearest;
mod questions;
mod records;
mod sockets;
mod support;
mod tools;
