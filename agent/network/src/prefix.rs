//! IP prefixes and the choice of the ones that pods live in. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Length of the IPv4 prefix of one instance: 15 host bits, as many as the three base32 characters of a link's name.
pub(crate) const POD_PREFIX4_LEN: u8 = 17;
/// Length of the IPv4 prefix of an instance's Services: as many aliases as pods, and as many Services.
pub(crate) const SERVICE_PREFIX4_LEN: u8 = 16;
/// Length of the IPv6 prefix of one instance.
pub(crate) const POD_PREFIX6_LEN: u8 = 64;
/// An on-link route wider than this is a VPN's way to say "everything", not a LAN: denying it would deny the internet.
const WIDEST_LAN4: u8 = 8;
/// The same for IPv6: a LAN is a /64, a routed site at most a /32.
const WIDEST_LAN6: u8 = 20;

/// A home's provider delegates it a /56 of IPv6 (RFC 6177, RIPE-690), of which the network that the host is on is one of 256.
const HOME6: u8 = 56;

/// An IP prefix in canonical form: no bits set after its length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// The prefix of `len` bits that holds `address`; `None` where `len` is too long for the family.
    pub(crate) fn new(address: IpAddr, len: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(a) if len <= 32 => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask(32, len) as u32)),
            IpAddr::V6(a) if len <= 128 => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask(128, len))),
            _ => return None,
        };
        Some(Self { address, len })
    }

    pub(crate) fn address(self) -> IpAddr {
        self.address
    }

    pub(crate) fn len(self) -> u8 {
        self.len
    }

    pub(crate) fn contains(self, address: IpAddr) -> bool {
        Self::new(address, self.len) == Some(self) && address.is_ipv4() == self.address.is_ipv4()
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        if self.len <= other.len { self.contains(other.address) } else { other.contains(self.address) }
    }

    /// First and last address, as numbers.
    pub(crate) fn range(self) -> (u128, u128) {
        let (width, first) = match self.address {
            IpAddr::V4(a) => (32, u128::from(a.to_bits())),
            IpAddr::V6(a) => (128, a.to_bits()),
        };
        let all = if width == 128 { u128::MAX } else { (1 << width) - 1 };
        (first, first | (all & !mask(width, self.len)))
    }

    /// Whether this names one host only.
    pub(crate) fn is_host(self) -> bool {
        self.len == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

/// The top `len` of `width` bits; the lowest bit of the value is the lowest of the address.
fn mask(width: u32, len: u8) -> u128 {
    let host_bits = width - u32::from(len);
    let all = if width == 128 { u128::MAX } else { (1 << width) - 1 };
    if host_bits >= 128 { 0 } else { all >> host_bits << host_bits }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl FromStr for Prefix {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, len) = text.split_once('/').ok_or(())?;
        let parsed = Self::new(address.parse().map_err(|_| ())?, len.parse().map_err(|_| ())?).ok_or(())?;
        // What is stored is canonical; anything else was not written by us.
        if parsed.to_string() == text { Ok(parsed) } else { Err(()) }
    }
}

/// Every IPv4 prefix that pods may live in, in the order to try them, which depends on `seed` so that instances differ.
fn candidates4(seed: u32) -> impl Iterator<Item = Prefix> {
    // 10.0.0.0/8 without its crowded ends (10.0, 10.1 and 10.8 are home routers' and VPNs' favourites; 10.42 and 10.43
    // are K3s's, 10.244 is flannel's, 10.255 is the top), then 172.16.0.0/12 (docker starts at 172.17).
    let ten = (64u32..240).flat_map(|second| [0, 128].map(|third| (10, second, third)));
    let docker_side = (20u32..32).flat_map(|second| [0, 128].map(|third| (172, second, third)));
    let ten: Vec<_> = ten.collect();
    let start = seed as usize % ten.len();
    let rotated: Vec<_> = ten[start..].iter().chain(&ten[..start]).copied().collect();
    rotated.into_iter().chain(docker_side).filter_map(|(first, second, third)| {
        Prefix::new(IpAddr::V4(Ipv4Addr::from_bits(first << 24 | second << 16 | third << 8)), POD_PREFIX4_LEN)
    })
}

/// The first IPv4 prefix for pods that overlaps nothing in `taken`.
pub(crate) fn choose4(seed: u32, taken: &BTreeSet<Prefix>) -> Option<Prefix> {
    candidates4(seed).find(|candidate| !taken.iter().any(|t| t.len() > 0 && t.overlaps(*candidate)))
}

/// The first IPv4 prefix for Services that overlaps nothing in `taken`.
pub(crate) fn choose_services4(seed: u32, taken: &BTreeSet<Prefix>) -> Option<Prefix> {
    let wide = candidates4(seed).filter_map(|candidate| Prefix::new(candidate.address, SERVICE_PREFIX4_LEN));
    let mut wide = wide.filter(|candidate| !taken.iter().any(|t| t.len() > 0 && t.overlaps(*candidate)));
    wide.next()
}

/// A unique local IPv6 prefix (RFC 4193 section 3.1) from 56 random bits: a global id of 40 bits and a subnet id of 16.
pub(crate) fn unique_local(random: [u8; 7]) -> Prefix {
    let mut octets = [0u8; 16];
    octets[0] = 0xfd;
    octets[1..8].copy_from_slice(&random);
    Prefix { address: IpAddr::V6(Ipv6Addr::from(octets)), len: POD_PREFIX6_LEN }
}

/// The address with host number `index` in `prefix`.
pub(crate) fn nth(prefix: Prefix, index: u16) -> IpAddr {
    match prefix.address {
        IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() | u32::from(index))),
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() | u128::from(index))),
    }
}

/// What the host says about one of its addresses or routes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbourhood {
    /// Where it leads.
    pub(crate) prefix: Prefix,
    /// Whether the link can have neighbours (Ethernet, Wi-Fi, a bridge), and is not a tunnel.
    pub(crate) shared_link: bool,
    /// True for an address of the host, false for a route.
    pub(crate) is_address: bool,
}

/// The prefixes whose addresses are neighbours of the host: pods may not reach them even where they are global (IPv6 LANs).
///
/// A route through a tunnel is left out unless the host has an address in it: a VPN that takes the whole internet says so
/// with such routes, and its private part is denied anyway.
pub(crate) fn on_link(neighbourhoods: impl IntoIterator<Item = Neighbourhood>) -> BTreeSet<Prefix> {
    neighbourhoods
        .into_iter()
        .filter(|n| n.is_address || n.shared_link)
        .map(|n| n.prefix)
        .filter(|p| p.len() >= if p.address().is_ipv4() { WIDEST_LAN4 } else { WIDEST_LAN6 })
        .filter(|p| !already_denied(*p))
        .map(home_of)
        .collect()
}

/// The home that a prefix is of: for global IPv6 what the provider delegated, so that pods are kept from the home's other
/// networks too.
pub(crate) fn home_of(prefix: Prefix) -> Prefix {
    match prefix.address {
        IpAddr::V6(a) if a.segments()[0] & 0xe000 == 0x2000 && prefix.len > HOME6 => {
            Prefix::new(prefix.address, HOME6).unwrap_or(prefix)
        }
        _ => prefix,
    }
}

/// Whether the static rules deny the prefix anyway: link-local and multicast routes need no element of their own.
fn already_denied(prefix: Prefix) -> bool {
    match prefix.address() {
        IpAddr::V4(a) => a.is_loopback() || a.is_multicast(),
        IpAddr::V6(a) => a.is_loopback() || a.is_multicast() || (a.segments()[0] & 0xffc0 == 0xfe80),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_are_canonical_and_print_as_they_parse() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.168.1.7/32", "::/0", "fd00:1::/64", "2001:db8::1/128"] {
            assert_eq!(p(text).to_string(), text);
        }
        for text in ["10.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0.0", "x/8", "10.0.0.0/ 8", ""] {
            assert_eq!(text.parse::<Prefix>(), Err(()), "{text}");
        }
        assert_eq!(Prefix::new("10.9.8.7".parse().unwrap(), 16), Some(p("10.9.0.0/16")));
    }

    #[test]
    fn overlap_knows_families_and_nesting() {
        for (a, b, expected) in [
            ("10.0.0.0/8", "10.3.0.0/16", true),
            ("10.3.0.0/16", "10.0.0.0/8", true),
            ("10.3.0.0/16", "10.4.0.0/16", false),
            ("0.0.0.0/0", "::/0", false),
            ("fd00::/8", "fd12::/64", true),
            ("fd00::/64", "fd00:0:0:1::/64", false),
        ] {
            assert_eq!(p(a).overlaps(p(b)), expected, "{a} {b}");
        }
    }

    #[test]
    fn the_chosen_prefix_avoids_what_the_host_uses_but_not_its_default_route() {
        let first = choose4(7, &BTreeSet::new()).unwrap();
        assert_eq!(choose4(7, &BTreeSet::from([p("0.0.0.0/0")])).unwrap(), first);
        let second = choose4(7, &BTreeSet::from([first])).unwrap();
        assert!(!second.overlaps(first));
        let third = choose4(7, &BTreeSet::from([p("10.0.0.0/8")])).unwrap();
        assert!(p("172.16.0.0/12").overlaps(third));
        assert_eq!(choose4(7, &BTreeSet::from([p("10.0.0.0/8"), p("172.16.0.0/12")])), None);
    }

    #[test]
    fn lans_are_on_link_and_tunnels_to_everywhere_are_not() {
        let n = |text: &str, shared_link, is_address| Neighbourhood { prefix: p(text), shared_link, is_address };
        let found = on_link([
            n("2001:db8:1:42::/64", true, true),
            n("2001:db8:2::/48", true, true),
            n("fd00:0:0:7::/64", true, true),
            n("198.51.100.0/24", true, false),
            n("8.0.0.0/7", false, false),
            n("128.0.0.0/1", true, false),
            n("2000::/3", true, false),
            n("203.0.113.0/24", false, false),
            n("203.0.114.9/32", false, true),
            n("fe80::/64", true, false),
            n("ff00::/8", true, false),
        ]);
        let v6 = ["2001:db8:1::/56", "2001:db8:2::/48", "fd00:0:0:7::/64"];
        let v4 = ["198.51.100.0/24", "203.0.114.9/32"];
        assert_eq!(found, v6.into_iter().chain(v4).map(p).collect());
    }

    #[test]
    fn numbered_addresses_stay_inside_their_prefix() {
        assert_eq!(nth(p("10.64.128.0/17"), 0x7ffe).to_string(), "10.64.255.254");
        assert_eq!(nth(p("fd01:2:3:4::/64"), 5).to_string(), "fd01:2:3:4::5");
    }

    proptest! {
        #[test]
        fn a_chosen_prefix_never_overlaps(seed: u32, taken in proptest::collection::vec((any::<u32>(), 1u8..=32), 0..40)) {
            let taken: BTreeSet<Prefix> =
                taken.into_iter().map(|(a, l)| Prefix::new(IpAddr::V4(Ipv4Addr::from_bits(a)), l).unwrap()).collect();
            if let Some(chosen) = choose4(seed, &taken) {
                prop_assert!(taken.iter().all(|t| !t.overlaps(chosen)));
                prop_assert_eq!(chosen.len(), POD_PREFIX4_LEN);
            }
        }

        #[test]
        fn unique_local_prefixes_are_unique_local(random: [u8; 7]) {
            let prefix = unique_local(random);
            prop_assert!(p("fd00::/8").overlaps(prefix));
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }
    }
}
