//! A relay: where devices and gateways meet whose networks let no direct path through, and where they learn how the
//! internet sees their addresses.
//!
//! The protocol is iroh's relay protocol (WebSocket over TLS) with QUIC address discovery beside it, so that any iroh
//! endpoint can use it. What is relayed are QUIC packets (RFC 9000): a relay sees who speaks with whom and how much,
//! and not what.
//!
//! A relay keeps no list of devices: whoever connects proves a key and shows the region's pass for it
//! ([`hearth_types::relay`]). What the holder of a pass sends is counted by owner, and has a limit.

mod gate;
mod limits;
mod metrics;
mod rate;
mod server;
mod stream;

pub use gate::{Gate, PassGate};
pub use limits::*;
pub use server::{Begun, Rates, RelayConfig, RelayServer, StartError};
