//! What a person should know about the host's network.

use std::fmt;

/// Something on this host that may keep pods from the network, or protects them less than it could. The text says what, and
/// what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Notice {
    /// Another program's firewall drops what it does not know: docker's where it enabled forwarding, ufw's, firewalld's.
    ForeignFirewall {
        /// Family, table and chain.
        chain: String,
        /// The links of pods, as a pattern.
        links: String,
    },
    /// The host has IPv6 disabled: pods have IPv4 only.
    NoIpv6,
    /// The host joined a network that overlaps the pods' addresses while there were pods.
    Overlap {
        /// The host's.
        host: String,
        /// The pods'.
        pods: String,
    },
    /// The kernel cannot count connections: one pod may use up the room of all.
    ConnectionsNotCounted,
}

impl Notice {
    /// One word for a condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ForeignFirewall { .. } => "ForeignFirewall",
            Self::NoIpv6 => "NoIPv6",
            Self::Overlap { .. } => "AddressOverlap",
            Self::ConnectionsNotCounted => "ConnectionsNotCounted",
        }
    }

    /// Whether pods may be cut off, as opposed to missing something.
    pub fn cuts_pods_off(&self) -> bool {
        matches!(self, Self::ForeignFirewall { .. } | Self::Overlap { .. })
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignFirewall { chain, links } => write!(
                f,
                "the firewall chain `{chain}` of another program drops what it does not know, which may cut pods off: allow \
                 forwarding and UDP and TCP port 53 from links \"{links}\" there (docker: chain DOCKER-USER)"
            ),
            Self::NoIpv6 => f.write_str("IPv6 is disabled on this host: pods have IPv4 only"),
            Self::Overlap { host, pods } => write!(
                f,
                "the host's network {host} overlaps the pods' {pods}; stop all pods and start again to move the pods"
            ),
            Self::ConnectionsNotCounted => f.write_str(
                "this kernel cannot count connections (CONFIG_NFT_CONNLIMIT, CONFIG_NFT_LIMIT): one pod may use up the host's connection \
                 table or the name relay",
            ),
        }
    }
}
