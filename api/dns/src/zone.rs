//! The zone's data: which names exist, and what they have. Pure.

use std::{net::IpAddr, time::Duration};

use hearth_types::routes::RouteLookup;
use hickory_proto::rr::{
    LowerName, Name, RData, Record, RecordType,
    rdata::{A, AAAA, NS, SOA},
};

use crate::{DnsConfig, DnsError, limits};

/// The label of the name server's own name.
const NAME_SERVER: &str = "ns1";
/// The label of the region's API.
const API: &str = "api";
/// The label of the SOA's mailbox (RFC 2142 section 7).
const MAILBOX: &str = "hostmaster";

/// A zone whose every name has the gateway's addresses.
#[derive(Clone, Debug)]
pub struct Zone {
    apex: Name,
    /// The apex' labels in lower case.
    labels: Vec<Box<[u8]>>,
    /// `.<zone>` in lower case, without a dot at the end.
    suffix: String,
    name_server: Name,
    mailbox: Name,
    ipv4: Vec<RData>,
    ipv6: Vec<RData>,
    ttl: u32,
    negative_ttl: u32,
}

/// What a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    /// The zone's own name.
    Apex,
    /// A name with the gateway's addresses.
    Host,
    /// Without records itself, but with names below it.
    EmptyNonTerminal,
}

/// What a question gets.
#[derive(Debug)]
pub(crate) enum Found {
    /// Records of that name and type.
    Records {
        /// The RRset.
        answers: Vec<Record>,
        /// Records that save a further question.
        additionals: Vec<Record>,
    },
    /// The name exists, the type does not.
    NoData,
    /// The name does not exist.
    NoName,
    /// Not this zone's.
    OutOfZone,
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
        let mailbox = apex.prepend_label(MAILBOX).map_err(too_long)?;
        let mut zone = Self {
            labels: apex.iter().map(Box::from).collect(),
            suffix: format!(".{text}"),
            name_server: apex.prepend_label(NAME_SERVER).map_err(too_long)?,
            apex,
            mailbox,
            ipv4: Vec::new(),
            ipv6: Vec::new(),
            ttl: seconds(config.ttl)?,
            negative_ttl: seconds(config.negative_ttl)?,
        };
        for address in &config.gateway {
            zone.add_gateway(*address)?;
        }
        if zone.ipv4.is_empty() && zone.ipv6.is_empty() {
            return Err(DnsError::NoGateway);
        }
        Ok(zone)
    }

    fn add_gateway(&mut self, address: IpAddr) -> Result<(), DnsError> {
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_multicast() {
            return Err(DnsError::Gateway(address));
        }
        let (family, data) = match address {
            IpAddr::V4(ip) => (&mut self.ipv4, RData::A(A(ip))),
            IpAddr::V6(ip) => (&mut self.ipv6, RData::AAAA(AAAA(ip))),
        };
        // An RRset has no duplicates (RFC 2181 section 5).
        if !family.contains(&data) {
            family.push(data);
        }
        Ok(())
    }

    /// What a question of class IN gets. `name` is the question's, `owner` the same with its case as it was sent.
    pub(crate) fn find(&self, name: &LowerName, owner: &Name, kind: RecordType, routes: &dyn RouteLookup) -> Found {
        if !self.holds(name) {
            return Found::OutOfZone;
        }
        let Some(node) = self.node(name, routes) else {
            return Found::NoName;
        };
        let mut additionals = Vec::new();
        let answers = match (node, kind) {
            (Node::Apex, RecordType::SOA) => vec![self.soa_at(owner, self.ttl, routes)],
            (Node::Apex, RecordType::NS) => {
                additionals = self.addresses(&self.name_server, &self.ipv4);
                additionals.extend(self.addresses(&self.name_server, &self.ipv6));
                vec![Record::from_rdata(owner.clone(), self.ttl, RData::NS(NS(self.name_server.clone())))]
            }
            (Node::Apex | Node::Host, RecordType::A) => self.addresses(owner, &self.ipv4),
            (Node::Apex | Node::Host, RecordType::AAAA) => self.addresses(owner, &self.ipv6),
            (Node::Apex | Node::Host, RecordType::ANY) => {
                let one = if self.ipv4.is_empty() { &self.ipv6 } else { &self.ipv4 };
                self.addresses(owner, one)
            }
            _ => Vec::new(),
        };
        if answers.is_empty() { Found::NoData } else { Found::Records { answers, additionals } }
    }

    /// The SOA for the authority section of a negative answer: its TTL is how long that answer may be cached
    /// (RFC 2308 section 3).
    pub(crate) fn negative_soa(&self, routes: &dyn RouteLookup) -> Record {
        self.soa_at(&self.apex, self.negative_ttl.min(self.ttl), routes)
    }

    fn soa_at(&self, owner: &Name, ttl: u32, routes: &dyn RouteLookup) -> Record {
        let soa = SOA::new(
            self.name_server.clone(),
            self.mailbox.clone(),
            routes.serial(),
            limits::SOA_REFRESH,
            limits::SOA_RETRY,
            limits::SOA_EXPIRE,
            self.negative_ttl,
        );
        Record::from_rdata(owner.clone(), ttl, RData::SOA(soa))
    }

    fn addresses(&self, owner: &Name, family: &[RData]) -> Vec<Record> {
        family.iter().map(|data| Record::from_rdata(owner.clone(), self.ttl, data.clone())).collect()
    }

    /// Whether a name is the apex or below it. Compares labels: `Name::zone_of` does not count a leading `*`.
    fn holds(&self, name: &LowerName) -> bool {
        let count = name.iter().count();
        count >= self.labels.len()
            && name.iter().skip(count - self.labels.len()).eq(self.labels.iter().map(|label| &**label))
    }

    fn node(&self, name: &LowerName, routes: &dyn RouteLookup) -> Option<Node> {
        let below = name.iter().count() - self.labels.len();
        if below == 0 {
            return Some(Node::Apex);
        }
        let hostname = self.hostname(name, below)?;
        if below == 1
            && [NAME_SERVER, API].iter().any(|label| hostname[..hostname.len() - self.suffix.len()] == **label)
        {
            return Some(Node::Host);
        }
        if routes.lookup(&hostname).is_some() {
            return Some(Node::Host);
        }
        routes.has_names_below(&hostname).then_some(Node::EmptyNonTerminal)
    }

    /// A name of the zone as text, or None if no hostname can be like it: labels may hold any bytes, also dots, which
    /// must not be taken for the ends of labels.
    fn hostname(&self, name: &LowerName, below: usize) -> Option<String> {
        let mut text = String::with_capacity(name.len());
        for label in name.iter().take(below) {
            if !text.is_empty() {
                text.push('.');
            }
            for byte in label {
                if !(byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')) {
                    return None;
                }
                text.push(char::from(*byte));
            }
        }
        text.push_str(&self.suffix);
        Some(text)
    }
}

fn seconds(ttl: Duration) -> Result<u32, DnsError> {
    if ttl > limits::MAX_TTL {
        return Err(DnsError::Ttl(ttl));
    }
    u32::try_from(ttl.as_secs()).map_err(|_| DnsError::Ttl(ttl))
}
