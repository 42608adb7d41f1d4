//! Who makes a request, as the door found out, and who signs certificates.

use crate::{BoxFuture, DeviceKey, DeviceName, Status};

/// The group whose members may do everything, as in Kubernetes.
pub const ADMINS: &str = "system:masters";
/// The group of the region's own servers.
pub const SERVERS: &str = "hearth:servers";
/// What the name of a server begins with; its number follows.
const SERVER_PREFIX: &str = "hearth:server:";

/// The name in the certificate by which a server proves to others which one it is.
pub fn server_user(id: u64) -> String {
    format!("{SERVER_PREFIX}{id}")
}

/// The server that a certificate's name and organisations mean, if any.
pub fn server_of(name: &str, groups: &[String]) -> Option<u64> {
    let digits = name.strip_prefix(SERVER_PREFIX).filter(|_| groups.iter().any(|group| group == SERVERS))?;
    // One spelling a number.
    digits.parse().ok().filter(|id| *id != 0 && server_user(*id) == name)
}

/// Who makes a request. Doors put it into the request's extensions; services decide by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A person or program with a client certificate of the region's CA.
    User {
        /// The certificate's common name.
        name: String,
        /// Its organisations.
        groups: Vec<String>,
    },
    /// A device that proved one of its keys.
    Device {
        /// Its name.
        name: DeviceName,
        /// Whose it is.
        owner: String,
        /// The key that it proved.
        key: DeviceKey,
    },
    /// A server of the region, by a certificate of the region's CA.
    Server {
        /// Its number.
        id: u64,
    },
    /// Nobody that the region knows; the Ed25519 key that it proved, if it presented one.
    Stranger {
        /// The key.
        key: Option<DeviceKey>,
    },
}

/// Where a request came from. Doors put it beside the [`Identity`] where they know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote(pub std::net::IpAddr);

impl Identity {
    /// Whether it may do everything.
    pub fn is_admin(&self) -> bool {
        matches!(self, Self::User { groups, .. } if groups.iter().any(|group| group == ADMINS))
    }

    /// Whether it is a server of the region.
    pub fn is_server(&self) -> bool {
        matches!(self, Self::Server { .. })
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User { name, .. } => write!(f, "user {name:?}"),
            Self::Device { name, .. } => write!(f, "device {:?}", name.as_str()),
            Self::Server { id } => write!(f, "server {id}"),
            Self::Stranger { .. } => f.write_str("an unknown client"),
        }
    }
}

/// Signs certificates for the ingresses of devices: the region's own CA, later also ACME.
pub trait CertificateSigner: Send + Sync + 'static {
    /// A certificate for `names` with the key of a PKCS #10 request (RFC 2986), as a PEM chain, leaf first.
    /// The names in the request are ignored: the caller has checked `names`.
    fn sign<'a>(&'a self, csr_der: &'a [u8], names: &'a [String]) -> BoxFuture<'a, Result<Vec<u8>, Status>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_means_one_server_or_none() {
        let servers = [SERVERS.to_owned()];
        assert_eq!(server_of(&server_user(12), &servers), Some(12));
        for name in ["hearth:server:0", "hearth:server:01", "hearth:server:+1", "hearth:server:", "hearth:admin", "1"] {
            assert_eq!(server_of(name, &servers), None, "{name}");
        }
        assert_eq!(server_of(&server_user(12), &[ADMINS.into()]), None);
    }
}
