//! Why a name server does not start, or ends.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Why a name server does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The zone's name.
    #[error("{zone:?} cannot be a zone: {why}; give a name such as \"hearth.internal\"")]
    Zone {
        /// The name.
        zone: String,
        /// What is wrong with it.
        why: String,
    },
    /// No address to answer with.
    #[error("the zone has no gateway address to answer with; give at least one")]
    NoGateway,
    /// An address that nobody can connect to.
    #[error("the gateway address {0} cannot be connected to; give the address at which others reach the gateway")]
    Gateway(IpAddr),
    /// A TTL that does not fit.
    #[error("a TTL of {0:?} cannot be told in DNS; give at most 2^31 - 1 seconds (RFC 2181)")]
    Ttl(Duration),
    /// The UDP socket.
    #[error("cannot listen for DNS on UDP {listen}; is the port in use, or the address another machine's?")]
    BindUdp {
        /// The address.
        listen: SocketAddr,
        /// What the socket said.
        #[source]
        source: io::Error,
    },
    /// The TCP socket.
    #[error("cannot listen for DNS on TCP {listen}; is the port in use, or the address another machine's?")]
    BindTcp {
        /// The address.
        listen: SocketAddr,
        /// What the socket said.
        #[source]
        source: io::Error,
    },
    /// The metrics.
    #[error("cannot register the name server's metrics; are two name servers in one registry?")]
    Metrics(#[from] prometheus::Error),
    /// TLS towards devices.
    #[error("cannot set up TLS to ask devices at their public addresses")]
    Tls(#[source] rustls::Error),
    /// A task that serves died.
    #[error("the task that serves {0} died; this is a defect of the server, restart it")]
    Died(&'static str),
}

/// Keeps the socket's own error, whose kind says what to tell the person; others become text.
impl From<DnsError> for io::Error {
    fn from(error: DnsError) -> Self {
        match error {
            DnsError::BindUdp { source, .. } | DnsError::BindTcp { source, .. } => source,
            DnsError::Zone { .. } | DnsError::NoGateway | DnsError::Gateway(_) | DnsError::Ttl(_) => {
                Self::new(io::ErrorKind::InvalidInput, error)
            }
            DnsError::Metrics(_) | DnsError::Tls(_) | DnsError::Died(_) => Self::other(error),
        }
    }
}
