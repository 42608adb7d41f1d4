//! How a server reaches into a device: by a tunnel that the device dials when its session asks.

pub mod datagram;
pub mod proxy;

use crate::{BoxFuture, DeviceKey, DeviceName};

/// What a stream of a tunnel is for: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StreamKind {
    /// A user's connection for the device's ingress: after the kind byte comes a [`proxy::ProxyHeader`], or the older
    /// [`IngressHeader`]: see [`HeaderVersion`].
    Ingress = 1,
    /// gRPC: the device is the server (`hearth.v1.DeviceDoor`).
    Rpc = 2,
}

impl StreamKind {
    /// The kind that a stream's first byte names.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Ingress),
            2 => Some(Self::Rpc),
            _ => None,
        }
    }
}

/// Which header a gateway puts before the bytes of an [ingress stream](StreamKind::Ingress). Ingresses read all of them and tell
/// them apart by their first byte; gateways write the newest that the other end is known to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeaderVersion {
    /// An [`IngressHeader`]: what every device reads.
    #[default]
    Text,
    /// A [`proxy::ProxyHeader`].
    Proxy,
}

/// What a gateway of the first version tells the ingress of a connection, ahead of the connection's own bytes:
/// a version byte (1), the length of the address text (1 byte), the address text (`ip:port` of the caller).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngressHeader {
    /// Who called, as the gateway saw it.
    pub caller: std::net::SocketAddr,
}

impl IngressHeader {
    /// The version that this program writes.
    pub const VERSION: u8 = 1;
    /// The longest header in bytes: two bytes and an IPv6 address with scope and port.
    pub const MAX_BYTES: usize = 2 + 255;

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let text = self.caller.to_string();
        let mut out = vec![Self::VERSION, u8::try_from(text.len()).unwrap_or(u8::MAX)];
        out.extend_from_slice(text.as_bytes());
        out
    }

    /// How many bytes the header has in all, from its first two.
    pub fn length(head: [u8; 2]) -> Result<usize, BadHeader> {
        if head[0] == Self::VERSION { Ok(2 + usize::from(head[1])) } else { Err(BadHeader) }
    }

    /// Reads a whole header.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let [version, length, text @ ..] = bytes else {
            return Err(BadHeader);
        };
        if Self::length([*version, *length])? != bytes.len() {
            return Err(BadHeader);
        }
        let text = std::str::from_utf8(text).map_err(|_| BadHeader)?;
        Ok(Self { caller: text.parse().map_err(|_| BadHeader)? })
    }
}

/// A stream's header that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream's header is malformed or of a newer version")]
pub struct BadHeader;

/// Why a device cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The region knows no such device.
    #[error("device {0} is not known to this region")]
    Unknown(DeviceName),
    /// The device has no session: it is off, or its network is.
    #[error("device {0} has no session with this region: it is switched off or without network")]
    Away(DeviceName),
    /// The device has a session but did not dial in time.
    #[error("device {device} did not open a tunnel within {seconds} s")]
    Timeout {
        /// Which one.
        device: DeviceName,
        /// How long was waited.
        seconds: u64,
    },
    /// The tunnel broke.
    #[error("tunnel to device {device}: {why}")]
    Broken {
        /// Which one.
        device: DeviceName,
        /// What happened.
        why: String,
    },
}

/// Opens streams to devices.
pub trait Dialer: Send + Sync + 'static {
    /// A bidirectional stream of bytes.
    type Stream: Send + Unpin + 'static;

    /// Opens a stream of a kind to a device, dialling a tunnel first where there is none. The kind byte
    /// has been written. Bounded in time: an unreachable device fails, it never hangs.
    fn dial<'a>(&'a self, device: &'a DeviceName, kind: StreamKind) -> BoxFuture<'a, Result<Self::Stream, DialError>>;

    /// The newest header that the other end of this stream reads.
    fn header_version(&self, _stream: &Self::Stream) -> HeaderVersion {
        HeaderVersion::default()
    }

    /// Whether the device is known to be out of reach now, without asking it: a dial would fail at once.
    fn is_away(&self, _device: &DeviceName) -> bool {
        false
    }
}

/// Where a device shall dial to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialNotice {
    /// The gateway's tunnel key (an iroh endpoint id).
    pub gateway_key: [u8; 32],
    /// Addresses to try, `ip:port`, UDP.
    pub addresses: Vec<std::net::SocketAddr>,
    /// URLs of the relays at which the gateway can be met.
    pub relays: Vec<String>,
}

/// Asks devices, through their sessions, to dial.
pub trait DialNotifier: Send + Sync + 'static {
    /// Sends the notice through the device's session. Returns the keys by which the device may answer.
    fn ask_to_dial<'a>(
        &'a self,
        device: &'a DeviceName,
        notice: DialNotice,
    ) -> BoxFuture<'a, Result<Vec<DeviceKey>, DialError>>;

    /// The device that a key belongs to, if any.
    fn device_of_key(&self, key: &DeviceKey) -> Option<DeviceName>;

    /// The number of the session that the device has now; `None` while it has none. No two sessions of a device have
    /// the same number. Another number than before says that the device may have been restarted since, so that what
    /// was open to it may lead nowhere; its connection alone may have broken as well.
    fn session_of(&self, device: &DeviceName) -> Option<u64>;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_survives_its_bytes() {
        for caller in ["192.0.2.1:443", "[2001:db8::1]:65535"] {
            let header = IngressHeader { caller: caller.parse().expect("an address") };
            let bytes = header.encode();
            assert_eq!(IngressHeader::length([bytes[0], bytes[1]]), Ok(bytes.len()));
            assert_eq!(IngressHeader::decode(&bytes), Ok(header));
        }
        assert_eq!(IngressHeader::decode(&[2, 0]), Err(BadHeader));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = IngressHeader::decode(&bytes);
        }
    }
}
