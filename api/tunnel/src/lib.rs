//! On-demand tunnels to devices by their key, over iroh.
//!
//! A tunnel is one QUIC connection (RFC 9000) that a device dials outwards to a gateway when its session asks it
//! to; both ends prove themselves by their Ed25519 keys (RFC 7250 raw public keys, as iroh does it). The gateway's
//! end, [`TunnelHub`], opens streams on it: it implements [`Dialer`](hearth_types::tunnel::Dialer). The device's end,
//! [`DeviceTunnel`], dials and hands out the streams that arrive. A tunnel without streams closes by itself.
//!
//! Everything is offline and direct: no relay, no discovery, no port mapping.

mod device;
mod hub;
mod limits;
mod metrics;
mod quic;
mod stream;

pub use device::{DeviceDialError, DeviceTunnel, DeviceTunnelConfig, GatewayCheck, IncomingStream, IncomingStreams};
pub use hub::{HubConfig, TunnelHub};
pub use limits::*;
pub use quic::StartError;
pub use stream::{StreamPeer, TunnelStream};
