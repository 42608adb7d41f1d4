//! What pods may not reach, in one place: the firewalls and the name relay ask here. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, PoisonError, RwLock};

use crate::prefix::Prefix;

/// IPv4 that is not the public internet: IANA's special-purpose registry (RFC 6890 and its updates), multicast, class E.
pub(crate) const DENIED4: [&str; 16] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/5",
    "248.0.0.0/5",
];

/// The only IPv6 that can be the public internet: global unicast (RFC 4291) and NAT64's well-known prefix (RFC 6052), the
/// internet of IPv6-only homes. Unique local, link-local, multicast, mapped and compatible addresses are outside.
pub(crate) const GLOBAL6: [&str; 2] = ["2000::/3", "64:ff9b::/96"];

/// What of it is not: protocol assignments with Teredo (RFC 2928, RFC 4380), documentation (RFC 3849, RFC 9637), and 6to4
/// (RFC 3056), whose addresses embed IPv4 ones.
const DENIED6: [&str; 4] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

/// What of [`GLOBAL6`] is denied: [`DENIED6`], and the NAT64 form of [`DENIED4`].
pub(crate) fn denied6() -> impl Iterator<Item = String> {
    DENIED6.iter().map(ToString::to_string).chain(DENIED4.iter().filter_map(|d| nat64(d)))
}

/// The NAT64 form of an IPv4 prefix (RFC 6052 section 2.2).
fn nat64(prefix: &str) -> Option<String> {
    let prefix: Prefix = prefix.parse().ok()?;
    let IpAddr::V4(v4) = prefix.address() else { return None };
    let [a, b, c, d] = v4.octets();
    let embedded = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Prefix::new(embedded.into(), 96 + prefix.len()).map(|p| p.to_string())
}

/// First and last address of a range, as numbers.
pub(crate) type Range = (u128, u128);

/// Everything that pods may not reach: ranges of each family, in order and apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    v4: Vec<Range>,
    v6: Vec<Range>,
}

impl Denied {
    /// What nobody's pods may reach, and the home of this host.
    pub(crate) fn new(home: &BTreeSet<Prefix>) -> Self {
        let parse = |text: &str| text.parse::<Prefix>().ok().map(Prefix::range);
        let home = |v4: bool| home.iter().filter(move |p| p.address().is_ipv4() == v4).map(|p| p.range());
        let global6 = merge(GLOBAL6.iter().filter_map(|p| parse(p)));
        Self {
            v4: merge(DENIED4.iter().filter_map(|p| parse(p)).chain(home(true))),
            v6: merge(outside(&global6).into_iter().chain(denied6().filter_map(|p| parse(&p))).chain(home(false))),
        }
    }

    pub(crate) fn v4(&self) -> &[Range] {
        &self.v4
    }

    pub(crate) fn v6(&self) -> &[Range] {
        &self.v6
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        Prefix::new(address, if address.is_ipv4() { 32 } else { 128 }).is_some_and(|host| self.covers(host))
    }

    /// Whether every address of a prefix is denied.
    pub(crate) fn covers(&self, prefix: Prefix) -> bool {
        let ranges = if prefix.address().is_ipv4() { &self.v4 } else { &self.v6 };
        let (first, last) = prefix.range();
        let at = ranges.partition_point(|(begin, _)| *begin <= first);
        at.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, end)| last <= *end)
    }
}

/// Puts ranges in order and joins those that touch or overlap.
fn merge(ranges: impl IntoIterator<Item = Range>) -> Vec<Range> {
    let mut ranges: Vec<Range> = ranges.into_iter().collect();
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// The IPv6 numbers that are in none of `ranges`, which are in order and apart.
fn outside(ranges: &[Range]) -> Vec<Range> {
    let mut gaps = Vec::new();
    let mut next = Some(0u128);
    for (first, last) in ranges {
        if let Some(begin) = next.filter(|begin| begin < first) {
            gaps.push((begin, first - 1));
        }
        next = last.checked_add(1);
    }
    gaps.extend(next.map(|begin| (begin, u128::MAX)));
    gaps
}

/// What is denied now: it changes when the host joins another network.
#[derive(Clone, Debug)]
pub(crate) struct SharedDenied(Arc<RwLock<Arc<Denied>>>);

impl SharedDenied {
    pub(crate) fn new(denied: Denied) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(denied))))
    }

    pub(crate) fn get(&self) -> Arc<Denied> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set(&self, denied: Denied) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(denied);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn home(prefixes: &[&str]) -> BTreeSet<Prefix> {
        prefixes.iter().map(|p| p.parse().unwrap()).collect()
    }

    #[test]
    fn every_denied_prefix_is_canonical() {
        for prefix in DENIED4.iter().chain(&DENIED6).chain(&GLOBAL6) {
            assert!(prefix.parse::<Prefix>().is_ok(), "{prefix}");
        }
    }

    #[test]
    fn private_addresses_are_denied_in_their_nat64_form_too() {
        assert_eq!(nat64("10.0.0.0/8").unwrap(), "64:ff9b::a00:0/104");
        assert_eq!(nat64("192.168.0.0/16").unwrap(), "64:ff9b::c0a8:0/112");
        assert!(denied6().any(|p| p == "64:ff9b::a9fe:0/112"));
    }

    #[test]
    fn what_is_not_the_public_internet_is_denied() {
        let denied = Denied::new(&home(&["45.1.2.0/24", "2a00:77::/56"]));
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.255.255",
            "192.168.1.1",
            "224.0.0.251",
            "239.255.255.250",
            "255.255.255.255",
            "45.1.2.3",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "fe80::1",
            "fd00::1",
            "fc00::1",
            "ff02::fb",
            "2001:db8::1",
            "2002:c0a8:101::1",
            "64:ff9b::c0a8:101",
            "64:ff9b:1::1",
            "2a00:77:0:ff::1",
        ] {
            assert!(denied.contains(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "45.1.3.1",
            "172.32.0.1",
            "100.128.0.1",
            "223.255.255.255",
            "2a00:77:0:100::1",
            "2600::1",
            "64:ff9b::808:808",
        ] {
            assert!(!denied.contains(address.parse().unwrap()), "{address}");
        }
        assert!(denied.covers("192.168.0.0/16".parse().unwrap()) && !denied.covers("192.0.0.0/8".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn merged_ranges_are_apart_in_order_and_hold_the_same(ranges in proptest::collection::vec((0u128..300, 0u128..20), 0..20), top in any::<bool>()) {
            let mut ranges: Vec<Range> = ranges.into_iter().map(|(first, len)| (first, first + len)).collect();
            if top { ranges.push((u128::MAX - 3, u128::MAX)); }
            let merged = merge(ranges.clone());
            for pair in merged.windows(2) {
                prop_assert!(pair[0].1 + 1 < pair[1].0);
            }
            let gaps = outside(&merged);
            for n in (0..330).chain([u128::MAX - 4, u128::MAX - 3, u128::MAX]) {
                let within = |ranges: &[Range]| ranges.iter().any(|(first, last)| (*first..=*last).contains(&n));
                prop_assert_eq!(within(&ranges), within(&merged));
                prop_assert_eq!(within(&merged), !within(&gaps));
            }
        }
    }
}
