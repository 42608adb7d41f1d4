//! What a name server is told.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::limits;

/// The configuration of a [`crate::DnsServer`].
#[derive(Clone, PartialEq, Eq)]
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
    /// Answers a second over UDP to such a network for one name.
    pub udp_answers_per_name: u64,
    /// Answers over UDP for one name that such a network may get at once.
    pub udp_name_burst: u64,
    /// Makes the cookies (RFC 7873) by which clients show that they are where they say. Servers of one zone have the same.
    pub cookie_secret: [u8; 32],
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
    pub fn new(listen: SocketAddr, zone: &str, gateway: Vec<IpAddr>, cookie_secret: [u8; 32]) -> Self {
        Self {
            listen,
            zone: zone.to_owned(),
            gateway,
            ttl: limits::TTL,
            negative_ttl: limits::NEGATIVE_TTL,
            udp_answers_per_second: limits::UDP_ANSWERS_PER_SECOND,
            udp_burst: limits::UDP_BURST,
            udp_answers_per_name: limits::UDP_ANSWERS_PER_NAME,
            udp_name_burst: limits::UDP_NAME_BURST,
            cookie_secret,
            limit_loopback: false,
            tcp_connections: limits::TCP_CONNECTIONS,
            tcp_connections_per_client: limits::TCP_CONNECTIONS_PER_CLIENT,
            tcp_idle: limits::TCP_IDLE,
            tcp_transfer: limits::TCP_TRANSFER,
        }
    }
}

/// Without the secret.
impl std::fmt::Debug for DnsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsConfig").field("listen", &self.listen).field("zone", &self.zone).finish_non_exhaustive()
    }
}
