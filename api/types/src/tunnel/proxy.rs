//! The header that a gateway puts before a user's bytes: the PROXY protocol, version 2 ("The PROXY protocol, versions 1 & 2", HAProxy,
//! section 2.2), with the TLVs for the name asked for and a checksum.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::BadHeader;
use crate::{
    names::{MAX_SUBDOMAIN, dns_subdomain},
    routes::Transport,
};

/// The first bytes of every header (section 2.2). None of them begins a TLS record or the older text header.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The longest header that is read, in bytes: the longest one written here has 324, and newer gateways may add fields.
pub const MAX_BYTES: usize = 1024;

/// The bytes that say how long a header is.
pub const PREFIX: usize = 16;

/// Version 2, command PROXY. LOCAL, by which a proxy checks its server, is written by nobody here.
const VERSION_AND_COMMAND: u8 = 0x21;
const IPV4: u8 = 0x10;
const IPV6: u8 = 0x20;
/// SOCK_STREAM.
const STREAM: u8 = 0x01;
/// SOCK_DGRAM.
const DGRAM: u8 = 0x02;
const TYPE_AUTHORITY: u8 = 0x02;
const TYPE_CRC32C: u8 = 0x03;
const TLV_HEADER: usize = 3;
const CRC_BYTES: usize = 4;

/// Who called whom, as the gateway saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// What the caller sends.
    pub transport: Transport,
    /// The caller's address.
    pub caller: SocketAddr,
    /// The gateway's address that was called.
    pub called: SocketAddr,
    /// The name that was asked for, in lower case and without a dot at the end: the server name of a ClientHello, or the
    /// hostname of the Route that has the port.
    pub authority: Option<String>,
}

impl ProxyHeader {
    /// The bytes to send: at most [`MAX_BYTES`]. An authority longer than a DNS name is left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        out.push(VERSION_AND_COMMAND);
        let transport = match self.transport {
            Transport::Tcp => STREAM,
            Transport::Udp => DGRAM,
        };
        match (self.caller.ip().to_canonical(), self.called.ip().to_canonical()) {
            (IpAddr::V4(caller), IpAddr::V4(called)) => {
                out.extend([IPV4 | transport, 0, 0]);
                out.extend(caller.octets());
                out.extend(called.octets());
            }
            (caller, called) => {
                out.extend([IPV6 | transport, 0, 0]);
                out.extend(as_ipv6(caller).octets());
                out.extend(as_ipv6(called).octets());
            }
        }
        out.extend(self.caller.port().to_be_bytes());
        out.extend(self.called.port().to_be_bytes());
        if let Some(name) = self.authority.as_deref().filter(|name| name.len() <= MAX_SUBDOMAIN) {
            tlv(&mut out, TYPE_AUTHORITY, name.as_bytes());
        }
        let crc_at = out.len() + TLV_HEADER;
        tlv(&mut out, TYPE_CRC32C, &[0; CRC_BYTES]);
        let length = (out.len() - PREFIX) as u16;
        out[PREFIX - 2..PREFIX].copy_from_slice(&length.to_be_bytes());
        // Over the whole header, with zeros in its own place (section 2.2.3).
        let sum = crc32c::crc32c(&out);
        out[crc_at..].copy_from_slice(&sum.to_be_bytes());
        out
    }

    /// How many bytes the header has in all, from its first [`PREFIX`].
    pub fn length(prefix: &[u8; PREFIX]) -> Result<usize, BadHeader> {
        let length = PREFIX + usize::from(u16::from_be_bytes([prefix[14], prefix[15]]));
        let known = prefix.starts_with(&SIGNATURE)
            && prefix[12] == VERSION_AND_COMMAND
            && matches!(prefix[13] & 0xf0, IPV4 | IPV6)
            && matches!(prefix[13] & 0x0f, STREAM | DGRAM);
        if known && length <= MAX_BYTES { Ok(length) } else { Err(BadHeader) }
    }

    /// Reads a whole header.
    ///
    /// Guarantees: pure, never panics, and strict: version 2, command PROXY, TCP or UDP, a checksum that is there and right, no field twice, an
    /// authority that is a DNS name in lower case, no byte too many. Fields of unknown types are passed over, as section 2.2 asks for.
    /// An IPv4 address in the form of IPv6 is an IPv4 address.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let prefix = bytes.first_chunk().ok_or(BadHeader)?;
        if Self::length(prefix)? != bytes.len() {
            return Err(BadHeader);
        }
        let mut rest = Reader(&bytes[PREFIX..]);
        let transport = if prefix[13] & 0x0f == STREAM { Transport::Tcp } else { Transport::Udp };
        let (caller, called) = if prefix[13] & 0xf0 == IPV4 {
            (IpAddr::from(Ipv4Addr::from(rest.array::<4>()?)), IpAddr::from(Ipv4Addr::from(rest.array::<4>()?)))
        } else {
            (IpAddr::from(Ipv6Addr::from(rest.array::<16>()?)), IpAddr::from(Ipv6Addr::from(rest.array::<16>()?)))
        };
        let ports = [u16::from_be_bytes(rest.array()?), u16::from_be_bytes(rest.array()?)];
        let (mut authority, mut crc_at) = (None, None);
        while !rest.0.is_empty() {
            let [kind] = rest.array()?;
            let length = usize::from(u16::from_be_bytes(rest.array()?));
            let at = bytes.len() - rest.0.len();
            let value = rest.take(length)?;
            let twice = match kind {
                TYPE_AUTHORITY => authority.replace(name(value)?).is_some(),
                TYPE_CRC32C if value.len() == CRC_BYTES => crc_at.replace(at).is_some(),
                TYPE_CRC32C => true,
                _ => false,
            };
            if twice {
                return Err(BadHeader);
            }
        }
        if !sum_is_right(bytes, crc_at.ok_or(BadHeader)?) {
            return Err(BadHeader);
        }
        let address = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
        Ok(Self { transport, caller: address(caller, ports[0]), called: address(called, ports[1]), authority })
    }
}

fn as_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn tlv(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    out.extend((value.len() as u16).to_be_bytes());
    out.extend(value);
}

fn name(value: &[u8]) -> Result<String, BadHeader> {
    let text = std::str::from_utf8(value).map_err(|_| BadHeader)?;
    dns_subdomain(text).map_err(|_| BadHeader)?;
    Ok(text.to_owned())
}

/// `at` is where the sum stands.
fn sum_is_right(bytes: &[u8], at: usize) -> bool {
    let (before, rest) = bytes.split_at(at);
    let (sum, after) = rest.split_at(CRC_BYTES);
    let computed = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), &[0; CRC_BYTES]), after);
    sum == computed.to_be_bytes()
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], BadHeader> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(BadHeader)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadHeader> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(BadHeader)?;
        self.0 = rest;
        Ok(*taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(caller: &str, called: &str, authority: Option<&str>) -> ProxyHeader {
        ProxyHeader {
            transport: Transport::Tcp,
            caller: caller.parse().expect("an address"),
            called: called.parse().expect("an address"),
            authority: authority.map(str::to_owned),
        }
    }

    /// A header with these fields after the addresses, and the right sum over all of it.
    fn with_fields(fields: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = header("192.0.2.1:1", "192.0.2.2:2", None).encode();
        bytes.truncate(PREFIX + 12);
        for (kind, value) in fields {
            tlv(&mut bytes, *kind, value);
        }
        let length = (bytes.len() - PREFIX) as u16;
        bytes[14..16].copy_from_slice(&length.to_be_bytes());
        if let Some(at) = bytes.windows(7).position(|some| some == [TYPE_CRC32C, 0, 4, 0, 0, 0, 0]) {
            let sum = crc32c::crc32c(&bytes);
            bytes[at + TLV_HEADER..at + TLV_HEADER + CRC_BYTES].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let bytes = header("192.0.2.1:50000", "198.51.100.7:443", Some("a.b")).encode();
        let expected = [
            b"\r\n\r\n\0\r\nQUIT\n".as_slice(),
            &[0x21, 0x11, 0, 12 + 6 + 7],
            &[192, 0, 2, 1, 198, 51, 100, 7, 0xc3, 0x50, 1, 0xbb],
            &[2, 0, 3, b'a', b'.', b'b'],
            &[3, 0, 4],
        ]
        .concat();
        assert_eq!(bytes[..bytes.len() - 4], expected);
        let zeroed = [&expected[..], &[0; 4]].concat();
        assert_eq!(bytes[bytes.len() - 4..], crc32c::crc32c(&zeroed).to_be_bytes());
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let long = [["a"; 63].concat(), ["b"; 63].concat(), ["c"; 63].concat(), ["d"; 61].concat()].join(".");
        for (caller, called) in [("192.0.2.1:1", "198.51.100.1:443"), ("[2001:db8::1]:65535", "[2001:db8::2]:0")] {
            for name in [None, Some("photos.alice.example"), Some(long.as_str())] {
                let header = header(caller, called, name);
                let bytes = header.encode();
                assert!(bytes.len() <= MAX_BYTES, "{}", bytes.len());
                assert_eq!(ProxyHeader::length(bytes.first_chunk().expect("a prefix")), Ok(bytes.len()));
                assert_eq!(ProxyHeader::decode(&bytes), Ok(header));
            }
        }
    }

    #[test]
    fn addresses_of_both_families_come_through_as_what_they_are() {
        let mapped = header("[::ffff:192.0.2.1]:1", "[::ffff:198.51.100.1]:2", None);
        assert_eq!(ProxyHeader::decode(&mapped.encode()), Ok(header("192.0.2.1:1", "198.51.100.1:2", None)));
        let mixed = header("192.0.2.1:1", "[2001:db8::1]:2", None);
        assert_eq!(ProxyHeader::decode(&mixed.encode()), Ok(mixed));
    }

    #[test]
    fn fields_that_are_not_known_are_passed_over_and_others_are_taken_strictly() {
        let sum = (TYPE_CRC32C, &[0; 4][..]);
        let name = (TYPE_AUTHORITY, &b"a.b"[..]);
        let good: [&[(u8, &[u8])]; 4] =
            [&[sum], &[(0x04, &[0; 40]), sum, (0xe0, b"?")], &[name, sum], &[sum, (0x01, b"h2"), (0x01, b"h2"), name]];
        for fields in good {
            assert!(ProxyHeader::decode(&with_fields(fields)).is_ok(), "{fields:?}");
        }
        let bad: [&[(u8, &[u8])]; 9] = [
            &[],
            &[name],
            &[sum, sum],
            &[sum, name, name],
            &[(TYPE_CRC32C, &[0; 3])],
            &[sum, (TYPE_AUTHORITY, b"")],
            &[sum, (TYPE_AUTHORITY, b"A.B")],
            &[sum, (TYPE_AUTHORITY, b"a.b\r\nx: y")],
            &[sum, (TYPE_AUTHORITY, &[0xff])],
        ];
        for fields in bad {
            assert_eq!(ProxyHeader::decode(&with_fields(fields)), Err(BadHeader), "{fields:?}");
        }
    }

    #[test]
    fn other_versions_commands_and_protocols_are_refused() {
        let bytes = header("192.0.2.1:1", "192.0.2.2:2", None).encode();
        // LOCAL, version 1, neither stream nor datagram, unix sockets, unspecified.
        for (at, value) in [(12, 0x20), (12, 0x11), (13, 0x13), (13, 0x31), (13, 0x00)] {
            let mut other = bytes.clone();
            other[at] = value;
            assert_eq!(ProxyHeader::length(other.first_chunk().expect("a prefix")), Err(BadHeader), "{at} {value}");
        }
        let mut long = bytes;
        long[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        assert_eq!(ProxyHeader::length(long.first_chunk().expect("a prefix")), Err(BadHeader));
    }

    #[test]
    fn no_byte_can_be_changed_left_out_or_added() {
        let bytes = header("192.0.2.1:1", "192.0.2.2:2", Some("a.b")).encode();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[at] ^= 1 << bit;
                assert_eq!(ProxyHeader::decode(&other), Err(BadHeader), "bit {bit} of byte {at}");
            }
            assert_eq!(ProxyHeader::decode(&bytes[..at]), Err(BadHeader));
        }
        assert_eq!(ProxyHeader::decode(&[&bytes[..], &[0]].concat()), Err(BadHeader));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same_way(kind in prop::sample::select(vec![0x11_u8, 0x21]), rest in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = SIGNATURE.to_vec();
            bytes.extend([VERSION_AND_COMMAND, kind, 0, rest.len() as u8]);
            bytes.extend(&rest);
            if let Ok(header) = ProxyHeader::decode(&bytes) {
                prop_assert_eq!(ProxyHeader::decode(&header.encode()), Ok(header));
            }
            let _ = ProxyHeader::decode(&rest);
        }
    }
}
