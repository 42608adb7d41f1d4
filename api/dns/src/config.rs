//! What a name server is told.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::limits;

/// The configuration of a [`crate::DnsServer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// Where to listen, one port for UDP and TCP. Port 0 picks one that both can have.
    pub listen: SocketAddr,
    /// The zone's name, with or without a dot at the end, in any case.
    pub zone: String,
    /// The gateway's addresses: what every name of the zone has. At least one.
    pub gateway: Vec<IpAddr>,
    /// How long answers may be cached; whole seconds.
    pub ttl: Duration,
    /// How long the absence of a name or type may be cached; whole seconds.
    pub negative_ttl: Duration,
    /// Answers a second over UDP to one IPv4 /24 or IPv6 /56.
    pub udp_answers_per_second: u64,
    /// Answers over UDP that such a network may get at once.
    pub udp_burst: u64,
    /// Whether answers over UDP are limited by rate for loopback too. Nobody outside can forge such a source; tests do.
    pub limit_loopback: bool,
    /// Open TCP connections at most.
    pub tcp_connections: usize,
    /// Open TCP connections of one IPv4 address or IPv6 /64 at most.
    pub tcp_connections_per_client: usize,
    /// How long a TCP connection may wait for its next query.
    pub tcp_idle: Duration,
    /// How long one query may take to arrive from its first byte, and one answer to be taken.
    pub tcp_transfer: Duration,
}

impl DnsConfig {
    /// The configuration with every limit as in [`limits`].
    pub fn new(listen: SocketAddr, zone: &str, gateway: Vec<IpAddr>) -> Self {
        Self {
            listen,
            zone: zone.to_owned(),
            gateway,
            ttl: limits::TTL,
            negative_ttl: limits::NEGATIVE_TTL,
            udp_answers_per_second: limits::UDP_ANSWERS_PER_SECOND,
            udp_burst: limits::UDP_BURST,
            limit_loopback: false,
            tcp_connections: limits::TCP_CONNECTIONS,
            tcp_connections_per_client: limits::TCP_CONNECTIONS_PER_CLIENT,
            tcp_idle: limits::TCP_IDLE,
            tcp_transfer: limits::TCP_TRANSFER,
        }
    }
}
