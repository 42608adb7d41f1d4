//! Messages of rtnetlink(7): links, addresses, routes, neighbours.

use std::net::IpAddr;

use super::{Attributes, Batch, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, attributes, u32_at};
use crate::prefix::Prefix;

// include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h, veth.h
pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
pub(crate) const RTM_GETADDR: u16 = 22;
pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
pub(crate) const RTM_GETROUTE: u16 = 26;
const RTM_SETLINK: u16 = 19;
const RTM_NEWNEIGH: u16 = 28;

/// Notification groups that tell of changes to the host's addresses and routes, as a mask for `bind`.
pub(crate) const GROUPS_ADDRESSES_AND_ROUTES: u32 = 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;
const IFF_POINTOPOINT: u32 = 0x10;
const IFF_NOARP: u32 = 0x80;
/// `IF_OPER_UP` of RFC 2863.
const IF_OPER_UP: u8 = 6;
/// Length of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
/// Of IPv6; of IPv4 the same bit says that there is another one of the prefix (`IFA_F_SECONDARY`).
const IFA_F_TEMPORARY: u32 = 0x01;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
/// Length of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u32 = 255;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTN_UNREACHABLE: u8 = 7;
/// Length of `struct rtmsg`.
const RTMSG: usize = 12;
/// Marks routes as Hearth's (`ip route show proto 72`); not assigned in rtnetlink.h.
const RTPROT_HEARTH: u8 = 72;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// Loopback is the first link of every namespace (`LOOPBACK_IFINDEX`).
pub(crate) const LOOPBACK: u32 = 1;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn put_address(attributes: &mut Attributes<'_>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(a) => attributes.bytes(kind, &a.octets()),
        IpAddr::V6(a) => attributes.bytes(kind, &a.octets()),
    };
}

/// A question for the state of one link.
pub(crate) fn get_link(index: u32) -> Batch {
    let mut batch = Batch::new();
    batch.push("read a link", RTM_GETLINK, 0, &ifinfomsg(index, 0, 0), |_| {});
    batch
}

/// A question for the route that a packet to `address` would take.
pub(crate) fn get_route_to(address: IpAddr) -> Batch {
    let mut batch = Batch::new();
    let mut fixed = [0; RTMSG];
    (fixed[0], fixed[1]) = (family(address), if address.is_ipv4() { 32 } else { 128 });
    batch.push("look up a route", RTM_GETROUTE, 0, &fixed, |a| put_address(a, RTA_DST, address));
    batch
}

/// Whether a route leads to the host itself.
pub(crate) fn is_local_route(payload: &[u8]) -> Option<bool> {
    Some(*payload.get(7)? == RTN_LOCAL)
}

fn ifinfomsg(index: u32, flags: u32, change: u32) -> [u8; IFINFOMSG] {
    let mut fixed = [0; IFINFOMSG];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

/// Both ends of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VethPair<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_mac: Mac,
    /// Descriptor of the namespace the peer is born in.
    pub(crate) peer_netns: i32,
}

pub(crate) fn add_veth(batch: &mut Batch, pair: VethPair<'_>) {
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    batch.push("create a veth pair", RTM_NEWLINK, flags, &ifinfomsg(0, 0, 0), |a| {
        a.str(IFLA_IFNAME, pair.name).bytes(IFLA_ADDRESS, &pair.mac).nest(IFLA_LINKINFO, &[], |a| {
            a.str(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, &[], |a| {
                a.nest(VETH_INFO_PEER, &ifinfomsg(0, 0, 0), |a| {
                    a.str(IFLA_IFNAME, pair.peer_name)
                        .bytes(IFLA_ADDRESS, &pair.peer_mac)
                        .bytes(IFLA_NET_NS_FD, &pair.peer_netns.to_ne_bytes());
                });
            });
        });
    });
}

/// Sets group and alias of a link, and that it makes no IPv6 addresses by itself; before it is brought up.
pub(crate) fn label_link(batch: &mut Batch, name: &str, group: u32, alias: &str, ipv6: bool) {
    batch.push("label the pod's link", RTM_SETLINK, NLM_F_ACK, &ifinfomsg(0, 0, 0), |a| {
        a.str(IFLA_IFNAME, name).u32(IFLA_GROUP, group).bytes(IFLA_IFALIAS, alias.as_bytes());
        if ipv6 {
            no_own_addresses(a);
        }
    });
}

/// A link makes no IPv6 addresses by itself; before it is brought up.
///
/// The kernel parameter for that (`addr_gen_mode`) has its writer try again in a loop for as long as anybody configures a network.
pub(crate) fn set_no_own_addresses(batch: &mut Batch, index: u32) {
    batch.push("have a link make no addresses", RTM_SETLINK, NLM_F_ACK, &ifinfomsg(index, 0, 0), no_own_addresses);
}

fn no_own_addresses(attributes: &mut Attributes<'_>) {
    attributes.nest(IFLA_AF_SPEC, &[], |a| {
        a.nest(libc::AF_INET6 as u16, &[], |a| {
            a.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
        });
    });
}

pub(crate) fn set_up(batch: &mut Batch, index: u32) {
    batch.push("bring a link up", RTM_SETLINK, NLM_F_ACK, &ifinfomsg(index, IFF_UP, IFF_UP), |_| {});
}

pub(crate) fn delete_link_named(batch: &mut Batch, name: &str) {
    batch.push("delete a link", RTM_DELLINK, NLM_F_ACK, &ifinfomsg(0, 0, 0), |a| {
        a.str(IFLA_IFNAME, name);
    });
}

pub(crate) fn delete_link(batch: &mut Batch, index: u32) {
    batch.push("delete a link", RTM_DELLINK, NLM_F_ACK, &ifinfomsg(index, 0, 0), |_| {});
}

fn ifaddrmsg(index: u32, address: IpAddr, len: u8, scope: u8) -> [u8; IFADDRMSG] {
    let mut fixed = [0; IFADDRMSG];
    (fixed[0], fixed[1], fixed[3]) = (family(address), len, scope);
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed
}

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressUse {
    /// An address to speak from.
    Own,
    /// The gateway's: never chosen as a source unless a route says so.
    Gateway,
}

/// Gives a link an address of its own (a /32 or /128); replaces it where it is there.
pub(crate) fn add_address(batch: &mut Batch, index: u32, address: IpAddr, used: AddressUse) {
    let len = if address.is_ipv4() { 32 } else { 128 };
    let scope = match (used, address) {
        (AddressUse::Gateway, IpAddr::V4(_)) => RT_SCOPE_LINK,
        _ => RT_SCOPE_UNIVERSE,
    };
    let fixed = ifaddrmsg(index, address, len, scope);
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    batch.push("add an address", RTM_NEWADDR, flags, &fixed, |a| {
        put_address(a, IFA_LOCAL, address);
        put_address(a, IFA_ADDRESS, address);
        if address.is_ipv6() {
            // No duplicate address detection: nobody else is on this link, and it would delay the pod by a second.
            a.u32(IFA_FLAGS, IFA_F_NODAD | IFA_F_NOPREFIXROUTE);
            if used == AddressUse::Gateway {
                // struct ifa_cacheinfo: preferred 0 (deprecated), valid for ever.
                let mut cacheinfo = [0; 16];
                cacheinfo[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
                a.bytes(IFA_CACHEINFO, &cacheinfo);
            }
        }
    });
}

pub(crate) fn delete_address(batch: &mut Batch, found: &Address) {
    let fixed = ifaddrmsg(found.index, found.local, found.prefix_len, 0);
    batch.push("delete an address", RTM_DELADDR, NLM_F_ACK, &fixed, |a| {
        put_address(a, IFA_LOCAL, found.local);
        put_address(a, IFA_ADDRESS, found.peer);
    });
}

fn rtmsg(prefix: Prefix, scope: u8, kind: u8) -> [u8; RTMSG] {
    let mut fixed = [0; RTMSG];
    (fixed[0], fixed[1]) = (family(prefix.address()), prefix.len());
    (fixed[4], fixed[5], fixed[6], fixed[7]) = (RT_TABLE_MAIN, RTPROT_HEARTH, scope, kind);
    fixed
}

/// A route out of a link: to neighbours where `via` is `None`.
pub(crate) fn add_route(batch: &mut Batch, to: Prefix, index: u32, via: Option<IpAddr>, source: Option<IpAddr>) {
    let scope = if via.is_some() || to.address().is_ipv6() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    batch.push("add a route", RTM_NEWROUTE, flags, &rtmsg(to, scope, RTN_UNICAST), |a| {
        put_address(a, RTA_DST, to.address());
        a.u32(RTA_OIF, index);
        if let Some(via) = via {
            put_address(a, RTA_GATEWAY, via);
        }
        if let Some(source) = source {
            put_address(a, RTA_PREFSRC, source);
        }
    });
}

/// Claims a prefix for an instance: packets to addresses of it that no pod has end here instead of leaving the host.
pub(crate) fn add_claim(batch: &mut Batch, prefix: Prefix, priority: u32) {
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    claim(batch, "claim a prefix for pods", RTM_NEWROUTE, flags, prefix, priority);
}

pub(crate) fn delete_claim(batch: &mut Batch, prefix: Prefix, priority: u32) {
    claim(batch, "give up a prefix", RTM_DELROUTE, NLM_F_ACK, prefix, priority);
}

fn claim(batch: &mut Batch, doing: &'static str, kind: u16, flags: u16, prefix: Prefix, priority: u32) {
    batch.push(doing, kind, flags, &rtmsg(prefix, RT_SCOPE_UNIVERSE, RTN_UNREACHABLE), |a| {
        put_address(a, RTA_DST, prefix.address());
        a.u32(RTA_PRIORITY, priority);
    });
}

/// A neighbour that is known for good, so that nobody asks for it and nobody can answer for it.
pub(crate) fn add_neighbour(batch: &mut Batch, index: u32, address: IpAddr, mac: Mac) {
    let mut fixed = [0; 12];
    fixed[0] = family(address);
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    batch.push("add a neighbour", RTM_NEWNEIGH, flags, &fixed, |a| {
        put_address(a, NDA_DST, address);
        a.bytes(NDA_LLADDR, &mac);
    });
}

/// The fixed part of a dump request: all zero but for the family, long enough for every kind of dump.
pub(crate) const DUMP_ALL: [u8; IFINFOMSG] = [0; IFINFOMSG];

/// A link as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Whether it can have neighbours: neither point-to-point nor without address resolution.
    pub(crate) shared: bool,
    /// Index of the other end, in whatever namespace that is.
    pub(crate) peer: Option<u32>,
    /// Whether the kernel has noticed that the other end is up too, and sends.
    pub(crate) operational: bool,
    /// The group that says what its pod may do, where it is a pod's.
    pub(crate) group: u32,
}

pub(crate) fn parse_link(payload: &[u8]) -> Option<Link> {
    let index = u32_at(payload, 4)?;
    let flags = u32_at(payload, 8)?;
    let shared = flags & (IFF_POINTOPOINT | IFF_NOARP) == 0;
    let mut link = Link { index, name: String::new(), shared, peer: None, operational: false, group: 0 };
    for (kind, value) in attributes(payload.get(IFINFOMSG..)?) {
        match kind {
            IFLA_IFNAME => link.name = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned(),
            IFLA_LINK => link.peer = u32_at(value, 0),
            IFLA_GROUP => link.group = u32_at(value, 0).unwrap_or_default(),
            IFLA_OPERSTATE => link.operational = value == [IF_OPER_UP],
            _ => {}
        }
    }
    Some(link)
}

/// An address as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) prefix_len: u8,
    /// The host's own.
    pub(crate) local: IpAddr,
    /// The same, or the peer's on a point-to-point link (`IFA_ADDRESS`).
    pub(crate) peer: IpAddr,
    /// Whether it is to be used for some time and for callers: neither one that the kernel makes up to hide behind (RFC 8981), nor one whose time is over
    /// (RFC 4862 section 5.5.4).
    pub(crate) lasting: bool,
}

pub(crate) fn parse_address(payload: &[u8]) -> Option<Address> {
    let index = u32_at(payload, 4)?;
    let prefix_len = *payload.get(1)?;
    let (mut local, mut peer, mut flags) = (None, None, u32::from(*payload.get(2)?));
    for (kind, value) in attributes(payload.get(IFADDRMSG..)?) {
        match kind {
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => peer = ip(value),
            IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    let peer = peer.or(local)?;
    let lasting = flags & IFA_F_DEPRECATED == 0 && (peer.is_ipv4() || flags & IFA_F_TEMPORARY == 0);
    Some(Address { index, prefix_len, local: local.unwrap_or(peer), peer, lasting })
}

/// A route as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) prefix: Prefix,
    /// The link it leads out of; `None` for unreachable routes and several next hops.
    pub(crate) index: Option<u32>,
    /// Whether it leads to neighbours: no gateway.
    pub(crate) direct: bool,
    /// Whether it leads to a router among them.
    pub(crate) via_router: bool,
    /// Whether it is one of the kernel's own for the host's addresses.
    pub(crate) local_table: bool,
    /// The priority of a prefix claimed by an instance of Hearth.
    pub(crate) claim: Option<u32>,
}

pub(crate) fn parse_route(payload: &[u8]) -> Option<Route> {
    let fixed = payload.get(..RTMSG)?;
    let (len, protocol, kind) = (fixed[1], fixed[5], fixed[7]);
    let mut address: IpAddr = match i32::from(fixed[0]) {
        libc::AF_INET => std::net::Ipv4Addr::UNSPECIFIED.into(),
        libc::AF_INET6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut index, mut gateway, mut priority, mut table) = (None, false, 0, u32::from(fixed[4]));
    for (attribute, value) in attributes(&payload[RTMSG..]) {
        match attribute {
            RTA_DST => address = ip(value)?,
            RTA_OIF => index = u32_at(value, 0),
            RTA_GATEWAY | RTA_VIA | RTA_MULTIPATH => gateway = true,
            RTA_PRIORITY => priority = u32_at(value, 0)?,
            RTA_TABLE => table = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(Route {
        prefix: Prefix::new(address, len)?,
        index,
        direct: kind == RTN_UNICAST && !gateway,
        via_router: kind == RTN_UNICAST && gateway,
        local_table: table == RT_TABLE_LOCAL,
        claim: (kind == RTN_UNREACHABLE && protocol == RTPROT_HEARTH).then_some(priority),
    })
}

/// The type of a notification's payload, for those that tell of an address or a route.
pub(crate) fn changed_prefix(kind: u16, payload: &[u8]) -> Option<Prefix> {
    match kind {
        RTM_NEWADDR | RTM_DELADDR => parse_address(payload).and_then(|a| Prefix::new(a.peer, a.prefix_len)),
        RTM_NEWROUTE | RTM_DELROUTE => parse_route(payload).filter(|r| !r.local_table).map(|r| r.prefix),
        _ => None,
    }
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::netlink::{messages, u16_at};

    #[test]
    fn routes_and_claims_read_back() {
        let mut batch = Batch::new();
        add_route(&mut batch, "10.64.0.9/32".parse().unwrap(), 7, None, Some("10.64.0.1".parse().unwrap()));
        add_route(&mut batch, "::/0".parse().unwrap(), 7, Some("fd00::1".parse().unwrap()), None);
        add_claim(&mut batch, "10.64.0.0/17".parse().unwrap(), 0x4800_1234);
        let routes: Vec<_> = messages(batch.bytes()).map(|m| parse_route(m.payload).unwrap()).collect();
        assert_eq!(routes[0].prefix.to_string(), "10.64.0.9/32");
        assert_eq!((routes[0].index, routes[0].direct, routes[0].claim), (Some(7), true, None));
        assert_eq!((routes[1].prefix.to_string().as_str(), routes[1].direct), ("::/0", false));
        assert_eq!((routes[2].direct, routes[2].claim), (false, Some(0x4800_1234)));
    }

    #[test]
    fn temporary_and_deprecated_addresses_do_not_last() {
        for (address, flags, lasting) in [
            ("2a00::7", 0, true),
            ("2a00::7", IFA_F_NODAD | IFA_F_NOPREFIXROUTE, true),
            ("2a00::7", IFA_F_TEMPORARY, false),
            ("2a00::7", IFA_F_DEPRECATED, false),
            ("25.0.0.7", IFA_F_TEMPORARY, true),
            ("25.0.0.7", IFA_F_DEPRECATED, false),
        ] {
            let (address, mut batch) = (address.parse().unwrap(), Batch::new());
            let fixed = ifaddrmsg(4, address, 64, RT_SCOPE_UNIVERSE);
            batch.push("add an address", RTM_NEWADDR, 0, &fixed, |a| {
                put_address(a, IFA_ADDRESS, address);
                a.u32(IFA_FLAGS, flags);
            });
            let read = parse_address(messages(batch.bytes()).next().unwrap().payload).unwrap();
            assert_eq!(read.lasting, lasting, "{address} {flags:x}");
        }
    }

    #[test]
    fn addresses_and_links_read_back() {
        let mut batch = Batch::new();
        add_address(&mut batch, 4, "fd00::7".parse().unwrap(), AddressUse::Own);
        let read = parse_address(messages(batch.bytes()).next().unwrap().payload).unwrap();
        assert_eq!((read.index, read.prefix_len, read.local.to_string().as_str()), (4, 128, "fd00::7"));
        assert!(read.lasting);

        let mut batch = Batch::new();
        delete_link_named(&mut batch, "hearth-abcd-a2b");
        let read = parse_link(messages(batch.bytes()).next().unwrap().payload).unwrap();
        assert_eq!((read.name.as_str(), read.peer), ("hearth-abcd-a2b", None));
        assert_eq!(u16_at(batch.bytes(), 4), Some(RTM_DELLINK));
    }
}
