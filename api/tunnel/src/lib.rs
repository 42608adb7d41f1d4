//! On-demand tunnels to devices by their key, over iroh.
//!
//! A tunnel is one QUIC connection (RFC 9000) that a device dials outwards to a gateway when its session asks it
//! to; both ends prove themselves by their Ed25519 keys (RFC 7250 raw public keys, as iroh does it). The gateway's
//! end, [`TunnelHub`], opens streams on it: it implements [`Dialer`](hearth_types::tunnel::Dialer). The device's end,
//! [`DeviceTunnel`], dials and hands out the streams that arrive. A tunnel without streams closes by itself.
//!
//! Both ends are told of the region's relays, at any time ([`TunnelHub::set_relays`], [`DeviceTunnel::set_relays`]). They are used where no
//! direct path is found, and to find one where both ends are behind NATs. Without relays everything is direct. There is no other
//! discovery, and no port mapping.

mod device;
mod hub;
mod limits;
mod metrics;
mod quic;
mod relays;
mod resolver;
mod stream;

pub use device::{
    DeviceDialError, DeviceTunnel, DeviceTunnelConfig, GatewayCheck, IncomingStream, IncomingStreams, LineStatus,
    TunnelPath, TunnelStatus,
};
pub use hub::{HubConfig, TunnelHub};
pub use limits::*;
pub use quic::StartError;
pub use relays::RelaySet;
pub use stream::{StreamPeer, TunnelStream};
