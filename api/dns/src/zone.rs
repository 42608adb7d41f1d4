//! The zone's data: which names exist, and what they have. Pure.

use std::{net::IpAddr, sync::Arc, time::Duration};

use hearth_types::{
    Timestamp,
    acme::CHALLENGE,
    dns::{
        keys::{DNSKEY_TTL, wire_name},
        record::{RecordKind, ZoneRecord},
    },
    external::is_global,
    lan::{LABEL as LAN, is_private_use},
    relay,
    routes::RouteLookup,
};
use hickory_proto::rr::{LowerName, Name};

use crate::{
    Answering, DnsConfig, DnsError, Gateway, Keys, limits,
    rrset::{RrSet, code, wire},
};

/// The label of the name server's own name.
const NAME_SERVER: &str = "ns1";
/// The label of the region's API.
const API: &str = "api";
/// The label of the page that shows owners what they have; the API has it.
const STATUS: &str = "status";
/// The label of relays, below the API's.
const RELAY: &str = "relay";
/// The label of the SOA's mailbox (RFC 2142 section 7).
const MAILBOX: &str = "hostmaster";

/// A zone whose every name has the gateways' addresses, and what owners set beside them.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The apex' labels in lower case.
    labels: Vec<Box<[u8]>>,
    /// The apex on the wire, in lower case.
    apex: Vec<u8>,
    /// In lower case, without a dot at the end.
    text: String,
    gateways: Arc<[Gateway]>,
    ttl: u32,
    negative_ttl: u32,
}

/// What an answer is made of, as it is now.
pub(crate) struct Facts<'a> {
    pub(crate) routes: &'a dyn RouteLookup,
    /// Which devices were found at their public addresses.
    pub(crate) answering: &'a Answering,
    /// The addresses of the gateways nearest to who asks.
    pub(crate) near: Vec<IpAddr>,
    /// The addresses of all gateways.
    pub(crate) all: Vec<IpAddr>,
    /// Where the zone is signed.
    pub(crate) keys: Option<&'a Keys>,
    pub(crate) now: Timestamp,
}

/// Whether a name has the gateways' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    No,
    /// Those of the nearest.
    Near,
    /// Those of all: the name servers' own names.
    All,
    /// This one, if a gateway has it: the name of a relay at its port.
    One(IpAddr),
}

/// A name that exists.
#[derive(Debug)]
struct Node {
    apex: bool,
    reach: Reach,
    /// Addresses inside the home.
    lan: Vec<IpAddr>,
    /// Public addresses of the device that answers at the name, in the place of gateways.
    external: Vec<IpAddr>,
    records: Arc<[ZoneRecord]>,
}

impl Node {
    fn host(reach: Reach) -> Self {
        Self { apex: false, reach, lan: Vec::new(), external: Vec::new(), records: Arc::from([]) }
    }

    /// Whether the device's own addresses are the answer to a question for addresses. One that has none of IPv4 leaves the gateways to those who have no
    /// IPv6. One that has none of IPv6 has no AAAA: with both, clients would prefer the gateways, and those without IPv4 reach it by NAT64 (RFC 6147).
    fn is_direct(&self, kind: u16) -> bool {
        !self.external.is_empty() && (kind == code::AAAA || self.external.iter().any(IpAddr::is_ipv4))
    }

    /// A name with an owner's records alone: a CNAME is alone at its name (RFC 1034 section 3.6.2).
    fn holds(&self, kind: RecordKind) -> bool {
        let has = |kind| self.records.iter().any(|record| record.kind == kind);
        match kind {
            RecordKind::A | RecordKind::Aaaa if self.reach != Reach::No => false,
            RecordKind::Cname => {
                self.reach == Reach::No && has(kind) && self.records.iter().all(|record| record.kind == kind)
            }
            _ => has(kind),
        }
    }
}

/// What does not exist: a name, or a type of a name.
#[derive(Debug)]
pub(crate) struct Missing {
    /// The name on the wire.
    pub(crate) owner: Vec<u8>,
    /// Whether there is no such name, nor a name below it.
    pub(crate) name: bool,
    /// The types that the name has.
    pub(crate) types: Vec<u16>,
}

/// What a question gets.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The sets, in the order in which CNAMEs lead from one to the next.
    pub(crate) answers: Vec<RrSet>,
    /// Sets that save a further question.
    pub(crate) additionals: Vec<RrSet>,
    /// What the last name that was asked for lacks.
    pub(crate) missing: Option<Missing>,
    /// Whether some of it depends on where the client is.
    pub(crate) tailored: bool,
    /// The name, in lower case on the wire, that the answer counts for: that of a wildcard, and of names that do not exist the zone's.
    pub(crate) about: Vec<u8>,
}

impl Zone {
    /// The zone of a configuration, checked.
    pub fn new(config: &DnsConfig) -> Result<Self, DnsError> {
        let text = config.zone.strip_suffix('.').unwrap_or(&config.zone).to_ascii_lowercase();
        let refused = |why: &str| DnsError::Zone { zone: config.zone.clone(), why: why.to_owned() };
        hearth_types::names::dns_subdomain(&text).map_err(refused)?;
        let too_long = |error: hickory_proto::ProtoError| refused(&error.to_string());
        let apex = Name::from_labels(text.split('.').map(str::as_bytes)).map_err(too_long)?;
        // The longest label that is put before the apex: a zone in which it has no room is too long.
        apex.prepend_label(MAILBOX).map_err(too_long)?;
        let mut gateways: Vec<Gateway> = Vec::new();
        for address in &config.gateway {
            let gateway = Gateway::new(*address);
            if !gateway.is_usable() {
                return Err(DnsError::Gateway(gateway.address));
            }
            gateways.push(gateway);
        }
        if gateways.is_empty() {
            return Err(DnsError::NoGateway);
        }
        Ok(Self {
            labels: apex.iter().map(Box::from).collect(),
            apex: wire(&apex),
            text,
            gateways: gateways.into(),
            ttl: seconds(config.ttl)?,
            negative_ttl: seconds(config.negative_ttl)?,
        })
    }

    /// Its name on the wire.
    pub(crate) fn apex(&self) -> &[u8] {
        &self.apex
    }

    /// The gateways of the configuration.
    pub(crate) fn gateways(&self) -> &Arc<[Gateway]> {
        &self.gateways
    }

    /// How long the absence of something may be cached (RFC 2308 section 3, RFC 9077).
    pub(crate) fn negative_ttl(&self) -> u32 {
        self.negative_ttl.min(self.ttl)
    }

    /// What a question of class IN gets; `None` where it is of another zone. `name` is the question's, `owner` the same with its case as it was
    /// sent.
    pub(crate) fn find(&self, name: &LowerName, owner: &Name, kind: u16, facts: &Facts<'_>) -> Option<Answer> {
        let labels: Vec<&[u8]> = name.iter().collect();
        let mut below = self.below(&labels)?;
        let mut target = wire(owner);
        let mut answer =
            Answer { answers: Vec::new(), additionals: Vec::new(), missing: None, tailored: false, about: Vec::new() };
        // Of names that CNAMEs lead to; the first is the question's.
        let mut followed: Vec<Vec<Box<[u8]>>> = Vec::new();
        loop {
            let here: Vec<&[u8]> = match followed.last() {
                Some(labels) => labels.iter().map(|label| &**label).collect(),
                None => labels.clone(),
            };
            let found = self.look(&here, below, facts);
            if followed.is_empty() {
                let wildcard = |encloser: &[u8]| [b"\x01*", encloser].concat();
                answer.about = match &found {
                    (Some(_), Some(encloser)) => wildcard(encloser),
                    (Some(_), None) => target.to_ascii_lowercase(),
                    (None, _) => self.apex.clone(),
                };
            }
            let Some(node) = found.0 else {
                answer.missing = Some(Missing { owner: target, name: true, types: Vec::new() });
                return Some(answer);
            };
            let sets = self.sets(&node, &target, kind, facts);
            if !sets.is_empty() {
                let near = node.reach == Reach::Near && !node.is_direct(kind);
                answer.tailored |= near && matches!(kind, code::A | code::AAAA | code::ANY);
                if node.apex && kind == code::NS {
                    self.beside_name_server(&mut answer, facts);
                }
                answer.answers.extend(sets);
                return Some(answer);
            }
            let alias = self.set(&node, &target, code::CNAME, facts);
            let Some((alias, next)) = alias.and_then(|set| Some((set.clone(), set.data.first()?.clone()))) else {
                let types = self.types(&node, facts);
                answer.missing = Some(Missing { owner: target, name: false, types });
                return Some(answer);
            };
            answer.answers.push(alias);
            let next_labels = split(&next);
            let borrowed: Vec<&[u8]> = next_labels.iter().map(|label| &**label).collect();
            match self.below(&borrowed) {
                Some(depth) if followed.len() < limits::CNAMES && !followed.contains(&next_labels) => below = depth,
                // Elsewhere, or in a circle: the client sees for itself.
                _ => return Some(answer),
            }
            followed.push(next_labels);
            target = next;
        }
    }

    /// How many labels a name has before the apex; `None` if it is not below it.
    fn below(&self, labels: &[&[u8]]) -> Option<usize> {
        let below = labels.len().checked_sub(self.labels.len())?;
        labels[below..].iter().zip(&self.labels).all(|(one, other)| **one == **other).then_some(below)
    }

    /// The node of a name, or of the wildcard that stands for it (RFC 4592), and then the name that is above both.
    fn look(&self, labels: &[&[u8]], below: usize, facts: &Facts<'_>) -> (Option<Node>, Option<Vec<u8>>) {
        if let Some(node) = self.node(&labels[..below], facts) {
            return (Some(node), None);
        }
        for above in 1..below {
            let rest = &labels[above..below];
            if self.node(rest, facts).is_none() {
                continue;
            }
            // The closest encloser: it alone can have a wildcard.
            let Some(text) = self.hostname(rest).filter(|_| !in_lan(rest)) else { break };
            let records = facts.routes.records(&format!("*.{text}"));
            if records.is_empty() {
                break;
            }
            return (Some(Node { records, ..Node::host(Reach::No) }), Some(wire_name(&text)));
        }
        (None, None)
    }

    /// The node of exactly these labels before the apex.
    fn node(&self, labels: &[&[u8]], facts: &Facts<'_>) -> Option<Node> {
        let routes = facts.routes;
        if labels.is_empty() {
            return Some(Node { apex: true, records: routes.records(&self.text), ..Node::host(Reach::Near) });
        }
        let hostname = self.hostname(labels)?;
        match labels {
            [label] if **label == *NAME_SERVER.as_bytes() => return Some(Node::host(Reach::All)),
            [label] if [API, STATUS].iter().any(|own| **label == *own.as_bytes()) => {
                return Some(Node::host(Reach::Near));
            }
            [label, api] if **label == *RELAY.as_bytes() && **api == *API.as_bytes() => {
                return Some(Node::host(Reach::Near));
            }
            [label, .., api] if **api == *API.as_bytes() => {
                let ip = std::str::from_utf8(label).ok().and_then(relay::address_of_label);
                let below_relay = labels.len() == 3 && *labels[1] == *RELAY.as_bytes();
                return ip.filter(|_| below_relay).map(|ip| Node::host(Reach::One(ip)));
            }
            _ if in_lan(labels) => return self.lan_node(labels, routes),
            _ => {}
        }
        let records = routes.records(&hostname);
        let reach = if routes.lookup(&hostname).is_some() { Reach::Near } else { Reach::No };
        (reach != Reach::No || !records.is_empty() || routes.has_names_below(&hostname)).then(|| Node {
            records,
            external: external(&hostname, reach, facts),
            ..Node::host(reach)
        })
    }

    /// `<name>.lan.<owner>` has the addresses inside the home of what answers at `<name>.<owner>`, and `lan.<owner>` is a name above such.
    fn lan_node(&self, labels: &[&[u8]], routes: &dyn RouteLookup) -> Option<Node> {
        match labels {
            [_, owner] => routes.has_names_below(&self.hostname(&[*owner])?).then(|| Node::host(Reach::No)),
            // Certificates are for these names too.
            [first, ..] if **first == *CHALLENGE.as_bytes() => {
                let records = routes.records(&self.hostname(labels)?);
                (!records.is_empty()).then(|| Node { records, ..Node::host(Reach::No) })
            }
            [name, _, owner] => {
                let hostname = self.hostname(&[*name, *owner])?;
                let told =
                    if routes.lookup(&hostname).is_some() { routes.lan_addresses(&hostname) } else { Vec::new() };
                let lan: Vec<_> = told.into_iter().filter(|ip| is_private_use(*ip)).collect();
                (!lan.is_empty()).then(|| Node { lan, ..Node::host(Reach::No) })
            }
            _ => None,
        }
    }

    /// Labels before the apex as a name in text, or `None` if no hostname can be like it: labels may hold any bytes, also dots, which must not be
    /// taken for the ends of labels. A first label of `*` is that of a wildcard itself.
    fn hostname(&self, labels: &[&[u8]]) -> Option<String> {
        let mut text = String::new();
        for (at, label) in labels.iter().enumerate() {
            let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
            if !(label.iter().all(plain) || (at == 0 && **label == *b"*")) {
                return None;
            }
            text.extend(label.iter().map(|byte| char::from(*byte)));
            text.push('.');
        }
        text.push_str(&self.text);
        Some(text)
    }

    /// The sets of a question's type: one at most, also for ANY (RFC 8482 section 4.1).
    fn sets(&self, node: &Node, owner: &[u8], kind: u16, facts: &Facts<'_>) -> Vec<RrSet> {
        let kinds = match kind {
            code::ANY => self.types(node, facts),
            kind => vec![kind],
        };
        kinds.into_iter().find_map(|kind| self.set(node, owner, kind, facts)).into_iter().collect()
    }

    /// The types that a name has, without those that every name of a signed zone has.
    fn types(&self, node: &Node, facts: &Facts<'_>) -> Vec<u16> {
        let apex = [code::SOA, code::NS, code::DNSKEY, code::CDS, code::CDNSKEY];
        let own = RecordKind::ALL.map(RecordKind::code).into_iter();
        let all = own.chain(apex.into_iter().filter(|_| node.apex));
        all.filter(|kind| self.set(node, &self.apex, *kind, facts).is_some()).collect()
    }

    /// The set of one type at a name.
    fn set(&self, node: &Node, owner: &[u8], kind: u16, facts: &Facts<'_>) -> Option<RrSet> {
        let (mut ttl, mut data) = (self.ttl, Vec::new());
        match (kind, facts.keys) {
            (code::A | code::AAAA, _) if node.reach != Reach::No || !node.lan.is_empty() => {
                let one: Vec<IpAddr>;
                let addresses = match node.reach {
                    Reach::No => &node.lan,
                    Reach::Near if node.is_direct(kind) => &node.external,
                    Reach::Near => &facts.near,
                    Reach::All => &facts.all,
                    Reach::One(ip) => {
                        one = facts.all.iter().copied().filter(|gateway| *gateway == ip).collect();
                        &one
                    }
                };
                for ip in addresses {
                    match ip {
                        IpAddr::V4(ip) if kind == code::A => data.push(ip.octets().to_vec()),
                        IpAddr::V6(ip) if kind == code::AAAA => data.push(ip.octets().to_vec()),
                        _ => {}
                    }
                }
            }
            (code::SOA, _) if node.apex => data.push(self.soa_data(facts.routes)),
            (code::NS, _) if node.apex => data.push(self.name_server()),
            (code::DNSKEY, Some(keys)) if node.apex => {
                (ttl, data) = (DNSKEY_TTL.as_secs() as u32, keys.dnskeys(facts.now));
            }
            (code::CDS, Some(keys)) if node.apex => data = keys.for_parent(&self.text, facts.now).0,
            (code::CDNSKEY, Some(keys)) if node.apex => data = keys.for_parent(&self.text, facts.now).1,
            _ => {
                let kind = RecordKind::ALL.into_iter().find(|known| known.code() == kind)?;
                if node.holds(kind) {
                    let records = || node.records.iter().filter(|record| record.kind == kind);
                    // One set has one TTL (RFC 2181 section 5.2).
                    let (least, most) = limits::RECORD_TTL;
                    ttl = records().filter_map(|record| record.ttl).min().unwrap_or(ttl).clamp(least, most);
                    data.extend(records().map(|record| record.data.to_vec()));
                    if kind == RecordKind::Cname {
                        data.truncate(1);
                    }
                }
            }
        }
        // A set has no duplicates (RFC 2181 section 5).
        let mut seen = std::collections::HashSet::new();
        data.retain(|one| !one.is_empty() && seen.insert(one.clone()));
        (!data.is_empty()).then(|| RrSet { owner: owner.to_vec(), kind, ttl, data })
    }

    fn beside_name_server(&self, answer: &mut Answer, facts: &Facts<'_>) {
        let (node, owner) = (Node::host(Reach::All), self.name_server());
        let sets = [code::A, code::AAAA].into_iter().filter_map(|kind| self.set(&node, &owner, kind, facts));
        answer.additionals.extend(sets);
    }

    fn name_server(&self) -> Vec<u8> {
        [&[NAME_SERVER.len() as u8], NAME_SERVER.as_bytes(), &self.apex].concat()
    }

    /// The SOA for the authority section of a negative answer.
    pub(crate) fn negative_soa(&self, routes: &dyn RouteLookup) -> RrSet {
        let data = vec![self.soa_data(routes)];
        RrSet { owner: self.apex.clone(), kind: code::SOA, ttl: self.negative_ttl(), data }
    }

    /// RFC 1035 section 3.3.13.
    fn soa_data(&self, routes: &dyn RouteLookup) -> Vec<u8> {
        let mut data = self.name_server();
        data.extend([&[MAILBOX.len() as u8], MAILBOX.as_bytes(), &self.apex].concat());
        let times = [limits::SOA_REFRESH, limits::SOA_RETRY, limits::SOA_EXPIRE, self.negative_ttl];
        for number in std::iter::once(routes.serial()).chain(times) {
            data.extend(number.to_be_bytes());
        }
        data
    }
}

/// The public addresses of a name's device at which it was found. What may not be told is not, whoever says so.
fn external(hostname: &str, reach: Reach, facts: &Facts<'_>) -> Vec<IpAddr> {
    if reach != Reach::Near || facts.answering.is_empty() {
        return Vec::new();
    }
    let found = facts.routes.external(hostname).map(|device| facts.answering.of(&device)).unwrap_or_default();
    found.into_iter().filter(|ip| is_global(*ip)).collect()
}

/// Whether labels before the apex are `lan.<owner>` or below it.
fn in_lan(labels: &[&[u8]]) -> bool {
    labels.len().checked_sub(2).is_some_and(|at| *labels[at] == *LAN.as_bytes())
}

/// The labels of an uncompressed name in lower case.
fn split(name: &[u8]) -> Vec<Box<[u8]>> {
    let (mut labels, mut rest) = (Vec::new(), name);
    while let Some((length, after)) =
        rest.split_first().filter(|(length, after)| **length > 0 && after.len() > usize::from(**length))
    {
        let (label, next) = after.split_at(usize::from(*length));
        labels.push(label.into());
        rest = next;
    }
    labels
}

fn seconds(ttl: Duration) -> Result<u32, DnsError> {
    if ttl > limits::MAX_TTL {
        return Err(DnsError::Ttl(ttl));
    }
    u32::try_from(ttl.as_secs()).map_err(|_| DnsError::Ttl(ttl))
}
