//! Who makes a request, as the door found out, and who signs certificates.

use crate::{BoxFuture, DeviceKey, DeviceName, Status};

/// The group whose members may do everything, as in Kubernetes.
pub const ADMINS: &str = "system:masters";

/// The organisation in the certificates of a region's servers.
pub const SERVERS: &str = "hearth:servers";

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
    /// Nobody that the region knows; the Ed25519 key that it proved, if it presented one.
    Stranger {
        /// The key.
        key: Option<DeviceKey>,
    },
}

impl Identity {
    /// Whether it may do everything.
    pub fn is_admin(&self) -> bool {
        self.is_in(ADMINS)
    }

    /// Whether it is a server of the region.
    pub fn is_server(&self) -> bool {
        self.is_in(SERVERS)
    }

    fn is_in(&self, wanted: &str) -> bool {
        matches!(self, Self::User { groups, .. } if groups.iter().any(|group| group == wanted))
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User { name, .. } => write!(f, "user {name:?}"),
            Self::Device { name, .. } => write!(f, "device {:?}", name.as_str()),
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
