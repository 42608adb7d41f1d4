//! The second firewall: one small table in each pod's own network namespace.
//!
//! The first one is the host's, which anybody who is root there can flush, and Debian's nftables service does so whenever it
//! is restarted. This one goes where the pod goes: a namespace belongs to the user namespace that made it, the host's, so
//! neither the pod nor a program that tidies up the host's rules can change it.
//!
//! # Guarantees
//! Whatever the host's rules are, what a pod sends to a denied range, to the host or by another protocol than TCP, UDP and
//! ICMP is refused before it leaves the namespace. To its gateway go questions to the name relay, TCP segments of
//! connections that the host opened, echo replies and ICMP errors; an isolated pod sends nothing further but to the range of
//! Services. There go TCP, UDP and ICMP errors: what becomes of them is for the host's rules to say, without which the range leads nowhere.
//!
//! # Caveats
//! It keeps no connections, so that a pod cannot fill a table of its own with them: therefore UDP that the host sends to a
//! pod gets no answer, and who passes datagrams on has sockets inside of the pod (`inside.rs`). What it knows of the home is
//! what was known when the pod was attached or adopted. Raw sockets below IP pass by it, which take a capability over the
//! namespace that pods do not have.

use std::net::IpAddr;

use crate::NetworkError;
use crate::denied::Denied;
use crate::netlink::nft::{Meta, Set, Step, Transaction};
use crate::netlink::route::LOOPBACK;
use crate::netlink::socket::Socket;
use crate::services::Range;

/// The name of the table. The namespace is the pod's alone, so no instance is in it.
const TABLE: &str = "hearth";
const OUTPUT: &str = "output";
const TO_GATEWAY: &str = "to_gateway";
const TO_SERVICES: &str = "to_services";
const REFUSE: &str = "refuse";
const DENIED4: Set = Set::ipv4("denied4", 1);
const DENIED6: Set = Set::ipv6("denied6", 2);

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Port 53, as it is in the packet.
const DNS: [u8; 2] = 53u16.to_be_bytes();
/// The flags FIN, SYN, RST and ACK; and SYN alone, with which connections are opened (RFC 9293).
const TCP_FLAGS: u8 = 0x17;
const TCP_SYN: u8 = 0x02;
/// Echo reply and destination unreachable, which is also "fragmentation needed" (RFC 792).
const ICMP_ANSWERS: [u8; 2] = [0, 3];
/// Destination unreachable, packet too big, echo reply (RFC 4443).
const ICMPV6_ANSWERS: [u8; 3] = [1, 2, 129];
/// Destination unreachable and, of IPv6, packet too big: what is said of a connection.
const ICMP_ERRORS: [u8; 1] = [3];
const ICMPV6_ERRORS: [u8; 2] = [1, 2];

/// Whether a namespace may have a table already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// Made just now.
    New,
    /// Of a pod that is alive. Replacing costs some 15 ms, in which the kernel waits for readers of the old table.
    Old,
}

/// What the table is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inner<'a> {
    pub(crate) gateway4: IpAddr,
    pub(crate) gateway6: Option<IpAddr>,
    pub(crate) internet: bool,
    /// Where Services have their addresses, and other pods their aliases: without the host's rules it leads nowhere.
    pub(crate) services: Range,
    pub(crate) denied: &'a Denied,
}

impl Inner<'_> {
    /// Puts the table in place: in a new namespace, or in the place of an older one. `socket` is one of the pod's namespace for
    /// nf_tables.
    pub(crate) fn install(&self, socket: &Socket, namespace: Namespace) -> Result<(), NetworkError> {
        self.transaction(namespace).commit(socket).map_err(|(doing, error)| NetworkError::netlink(doing, error))
    }

    fn transaction(&self, namespace: Namespace) -> Transaction {
        let mut t = match namespace {
            Namespace::New => Transaction::making(TABLE),
            Namespace::Old => Transaction::replacing(TABLE),
        };
        t.chain(REFUSE);
        t.chain(TO_GATEWAY);
        t.chain(TO_SERVICES);
        t.output_chain(OUTPUT);
        if self.internet {
            t.set(&DENIED4, self.denied.v4());
            t.set(&DENIED6, self.denied.v6());
        }
        // A socket that is just sending its SYN takes a reset to heart, and an ICMP error only at the next SYN, a second later.
        t.rule(REFUSE, &[Step::Meta(Meta::Transport), Step::Equals(&[TCP]), Step::Reset]);
        t.rule(REFUSE, &[Step::Reject]);
        gateway_rules(&mut t);
        service_rules(&mut t);
        // The pod's processes among themselves.
        t.rule(OUTPUT, &[Step::Meta(Meta::OutLink), Step::Equals(&LOOPBACK.to_ne_bytes()), Step::Accept]);
        for gateway in std::iter::once(self.gateway4).chain(self.gateway6) {
            let (family, destination) = destination(gateway.is_ipv4());
            let bytes: &[u8] = match &gateway {
                IpAddr::V4(a) => &a.octets(),
                IpAddr::V6(a) => &a.octets(),
            };
            let rule = [Step::Meta(Meta::Family), Step::Equals(&family), destination, Step::Equals(bytes)];
            t.rule(OUTPUT, &[rule.as_slice(), &[Step::Goto(TO_GATEWAY)]].concat());
        }
        for prefix in std::iter::once(self.services.ipv4).chain(self.gateway6.map(|_| self.services.ipv6)) {
            let (family, start) = destination(prefix.address().is_ipv4());
            let Step::Network { offset, .. } = start else { continue };
            // Both prefixes end with a byte.
            let len = u32::from(prefix.len() / 8);
            let bytes: Vec<u8> = match prefix.address() {
                IpAddr::V4(a) => a.octets()[..len as usize].to_vec(),
                IpAddr::V6(a) => a.octets()[..len as usize].to_vec(),
            };
            let rule = [Step::Meta(Meta::Family), Step::Equals(&family), Step::Network { offset, len }];
            t.rule(OUTPUT, &[rule.as_slice(), &[Step::Equals(&bytes), Step::Goto(TO_SERVICES)]].concat());
        }
        if self.internet {
            for (v4, set) in [(true, &DENIED4), (false, &DENIED6)] {
                let (family, destination) = destination(v4);
                let rule = [Step::Meta(Meta::Family), Step::Equals(&family), destination, Step::In(set)];
                t.rule(OUTPUT, &[rule.as_slice(), &[Step::Goto(REFUSE)]].concat());
            }
            // No tunnels: inside them the rules above could not see.
            for protocol in [TCP, UDP, ICMP, ICMPV6] {
                t.rule(OUTPUT, &[Step::Meta(Meta::Transport), Step::Equals(&[protocol]), Step::Accept]);
            }
        }
        t.rule(OUTPUT, &[Step::Goto(REFUSE)]);
        t
    }
}

fn gateway_rules(t: &mut Transaction) {
    let port = Step::Transport { offset: 2, len: 2 };
    // Also of an isolated pod: the relay tells it of Services.
    for protocol in [UDP, TCP] {
        let is_protocol = [Step::Meta(Meta::Transport), Step::Equals(std::slice::from_ref(&protocol))];
        t.rule(TO_GATEWAY, &[is_protocol.as_slice(), &[port, Step::Equals(&DNS), Step::Accept]].concat());
    }
    let flags = [Step::Transport { offset: 13, len: 1 }, Step::Mask(TCP_FLAGS), Step::Differs(&[TCP_SYN])];
    let is_tcp = [Step::Meta(Meta::Transport), Step::Equals(&[TCP])];
    t.rule(TO_GATEWAY, &[is_tcp.as_slice(), &flags, &[Step::Accept]].concat());
    for (protocol, kinds) in [(ICMP, ICMP_ANSWERS.as_slice()), (ICMPV6, &ICMPV6_ANSWERS)] {
        for kind in kinds {
            let kind = Step::Equals(std::slice::from_ref(kind));
            let protocol = Step::Equals(std::slice::from_ref(&protocol));
            let kind_of_message = Step::Transport { offset: 0, len: 1 };
            t.rule(TO_GATEWAY, &[Step::Meta(Meta::Transport), protocol, kind_of_message, kind, Step::Accept]);
        }
    }
    t.rule(TO_GATEWAY, &[Step::Goto(REFUSE)]);
}

/// Connections of TCP and UDP in either direction, and what is said of them.
fn service_rules(t: &mut Transaction) {
    for protocol in [TCP, UDP] {
        t.rule(TO_SERVICES, &[Step::Meta(Meta::Transport), Step::Equals(&[protocol]), Step::Accept]);
    }
    for (protocol, kinds) in [(ICMP, ICMP_ERRORS.as_slice()), (ICMPV6, &ICMPV6_ERRORS)] {
        for kind in kinds {
            let (protocol, kind) =
                (Step::Equals(std::slice::from_ref(&protocol)), Step::Equals(std::slice::from_ref(kind)));
            let kind_of_message = Step::Transport { offset: 0, len: 1 };
            t.rule(TO_SERVICES, &[Step::Meta(Meta::Transport), protocol, kind_of_message, kind, Step::Accept]);
        }
    }
    t.rule(TO_SERVICES, &[Step::Goto(REFUSE)]);
}

/// The family as `meta nfproto` gives it, and where a packet's destination is.
fn destination(v4: bool) -> ([u8; 1], Step<'static>) {
    if v4 {
        ([libc::AF_INET as u8], Step::Network { offset: 16, len: 4 })
    } else {
        ([libc::AF_INET6 as u8], Step::Network { offset: 24, len: 16 })
    }
}
