//! The names of Services, as the relay answers them (Kubernetes' DNS-based service discovery, version 1.1.0). Pure but for the lock.
//!
//! A pod is told of the Services that it may use; others do not exist for it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Numbers, Range, Service, ServiceProtocol};
use crate::dns::message::{NOERROR, NXDOMAIN, Query};

/// What the names of a cluster end with, as everybody expects it.
const DOMAIN: [&str; 2] = ["cluster", "local"];
/// What names of Services have before it.
const SERVICES: &str = "svc";
/// Seconds for which an answer may be kept: pods come and go.
const TTL: u32 = 5;
/// The longest answer over UDP to a program that does not say how much it takes (RFC 1035 section 2.3.4); more goes over TCP.
const MAX_UDP: usize = 512;
/// The longest answer at all: its length has two bytes.
const MAX_TCP: usize = 65_535;
/// A pointer to the name of the question (RFC 1035 section 4.1.4).
const QUESTION_NAME: [u8; 2] = [0xc0, 12];
const AUTHORITATIVE: u8 = 0x04;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_SRV: u16 = 33;
const TYPE_ANY: u16 = 255;

/// All names, by who asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    services: Vec<Entry>,
    /// Which of them a pod may use, by its number.
    of_pod: HashMap<u16, Vec<usize>>,
}

#[derive(Clone, Debug)]
struct Entry {
    namespace: String,
    name: String,
    headless: bool,
    /// Where its name leads: one address, or those of its ready pods.
    hosts: Vec<Host>,
    ports: Vec<Port>,
}

#[derive(Clone, Copy, Debug)]
struct Host {
    v4: IpAddr,
    v6: IpAddr,
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    protocol: ServiceProtocol,
    /// At each of the hosts, in their order; where that has it.
    numbers: Vec<Option<u16>>,
}

impl Book {
    pub(crate) fn new(
        services: &[Service],
        numbers: &Numbers,
        range: Range,
        number: impl Fn(&str) -> Option<u16>,
    ) -> Self {
        let mut book = Self::default();
        let host = |number| Host { v4: range.address4(number), v6: range.address6(number) };
        for service in services {
            let own = numbers.of(&service.uid).filter(|_| !service.headless);
            let ready = service.pods.iter().filter(|pod| pod.ready && service.headless);
            let ready: Vec<_> = ready.filter_map(|pod| Some((number(&pod.uid)?, pod))).collect();
            let hosts = own.into_iter().chain(ready.iter().map(|(number, _)| *number)).map(host).collect();
            let named = service.ports.iter().enumerate().filter_map(|(at, port)| {
                let target = |pod: &super::ServicePod| pod.targets.get(at).copied().flatten();
                let numbers = own.map(|_| Some(port.port)).into_iter();
                let numbers = numbers.chain(ready.iter().map(|(_, pod)| target(pod))).collect();
                Some(Port { name: port.name.clone()?, protocol: port.protocol, numbers })
            });
            let at = book.services.len();
            book.services.push(Entry {
                namespace: service.namespace.clone(),
                name: service.name.clone(),
                headless: service.headless,
                hosts,
                ports: named.collect(),
            });
            for client in service.clients.iter().filter_map(|uid| number(uid)) {
                book.of_pod.entry(client).or_default().push(at);
            }
        }
        book
    }

    /// What the pod of a number is told; `None` where the question is none of a Service's.
    fn answer(&self, query: &Query, pod: u16, ipv6: bool, max: usize) -> Option<Vec<u8>> {
        let labels = query.labels();
        let labels: Vec<&str> = labels.iter().map(|label| std::str::from_utf8(label)).collect::<Result<_, _>>().ok()?;
        let (name, within) = match labels.strip_suffix(&DOMAIN) {
            Some(rest) => (rest, true),
            None => (labels.as_slice(), false),
        };
        // Outside of the domain, what is nobody's here may be somebody's there.
        let unknown = || within.then(|| query.failure(NXDOMAIN));
        let (name, qualified) = match name.strip_suffix(&[SERVICES]) {
            Some(rest) => (rest, true),
            None if within => return unknown(),
            None => (name, false),
        };
        let own = self.of_pod.get(&pod).into_iter().flatten().filter_map(|at| self.services.get(*at));
        let mut own = own.filter_map(|entry| Some((entry, entry.below(name, qualified)?)));
        let Some((entry, below)) = own.next() else { return unknown() };
        let Some(records) = entry.records(below, query.kind(), ipv6) else { return Some(query.failure(NXDOMAIN)) };
        let mut answer = query.failure(NOERROR);
        answer[2] |= AUTHORITATIVE;
        answer[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap_or(u16::MAX).to_be_bytes());
        answer.extend(records.concat());
        Some(if answer.len() > max { query.truncated() } else { answer })
    }
}

impl Entry {
    /// What stands before the Service's own name, where it is this one's.
    fn below<'a, 'b>(&self, name: &'a [&'b str], qualified: bool) -> Option<&'a [&'b str]> {
        match name {
            [below @ .., service, namespace] if *service == self.name && *namespace == self.namespace => Some(below),
            // The short name, as a program asks it that knows no search list.
            [service] if !qualified && *service == self.name => Some(&[]),
            _ => None,
        }
    }

    /// The records of a name; `None` where there is no such name.
    fn records(&self, below: &[&str], kind: u16, ipv6: bool) -> Option<Vec<Vec<u8>>> {
        match below {
            [] => Some(self.hosts.iter().flat_map(|host| host.records(kind, ipv6)).collect()),
            // Of one of the pods.
            [label] if self.headless => {
                let host = self.hosts.iter().find(|host| host.labels().contains(&(*label).to_owned()))?;
                Some(host.records(kind, ipv6))
            }
            [port, protocol] => {
                let protocol = match *protocol {
                    "_tcp" => ServiceProtocol::Tcp,
                    "_udp" => ServiceProtocol::Udp,
                    _ => return None,
                };
                let name = port.strip_prefix('_')?;
                let port = self.ports.iter().find(|one| one.name == name && one.protocol == protocol)?;
                if kind != TYPE_SRV && kind != TYPE_ANY {
                    return Some(Vec::new());
                }
                let hosts = self.hosts.iter().zip(&port.numbers);
                Some(hosts.filter_map(|(host, number)| Some(self.service_record(*host, (*number)?))).collect())
            }
            _ => None,
        }
    }

    /// An SRV record (RFC 2782).
    fn service_record(&self, host: Host, port: u16) -> Vec<u8> {
        // Priority, weight, port.
        let mut data = vec![0, 0, 0, 100];
        data.extend(port.to_be_bytes());
        let [label, _] = host.labels();
        let own = self.headless.then_some(label.as_str());
        for label in own.into_iter().chain([self.name.as_str(), self.namespace.as_str(), SERVICES]).chain(DOMAIN) {
            data.push(label.len() as u8);
            data.extend_from_slice(label.as_bytes());
        }
        data.push(0);
        record(TYPE_SRV, &data)
    }
}

impl Host {
    fn records(self, kind: u16, ipv6: bool) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        if let (TYPE_A | TYPE_ANY, IpAddr::V4(v4)) = (kind, self.v4) {
            records.push(record(TYPE_A, &v4.octets()));
        }
        if let (TYPE_AAAA | TYPE_ANY, IpAddr::V6(v6), true) = (kind, self.v6, ipv6) {
            records.push(record(TYPE_AAAA, &v6.octets()));
        }
        records
    }

    /// What it is called below a headless Service, by either of its addresses.
    fn labels(self) -> [String; 2] {
        [self.v4.to_string().replace('.', "-"), self.v6.to_string().replace(':', "-")]
    }
}

/// A record of the name that is asked for.
fn record(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = QUESTION_NAME.to_vec();
    bytes.extend(kind.to_be_bytes());
    // IN.
    bytes.extend([0, 1]);
    bytes.extend(TTL.to_be_bytes());
    bytes.extend((data.len() as u16).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// The names as they are now.
#[derive(Clone, Debug)]
pub(crate) struct SharedBook {
    book: Arc<RwLock<Arc<Book>>>,
    ipv6: bool,
}

impl SharedBook {
    /// `ipv6` says whether pods have IPv6 addresses.
    pub(crate) fn new(ipv6: bool) -> Self {
        Self { book: Arc::default(), ipv6 }
    }

    pub(crate) fn set(&self, book: Book) {
        *self.book.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(book);
    }

    /// What the pod of a number is told; `None` where somebody else is to be asked.
    pub(crate) fn answer(&self, query: &Query, pod: u16, over_udp: bool) -> Option<Vec<u8>> {
        let book = Arc::clone(&self.book.read().unwrap_or_else(PoisonError::into_inner));
        book.answer(query, pod, self.ipv6, if over_udp { MAX_UDP } else { MAX_TCP })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{ServicePod, ServicePort};
    use super::*;
    use crate::dns::message::tests::query;
    use proptest::prelude::*;

    const CLIENT: u16 = 9;

    /// `db` with an address, ports `sql` and one without a name; `peers` is headless with two ready pods of three.
    fn book() -> Book {
        let port = |name: Option<&str>, port| ServicePort {
            name: name.map(str::to_owned),
            protocol: ServiceProtocol::Tcp,
            port,
        };
        let pod = |uid: &str, ready| ServicePod { uid: uid.into(), ready, targets: vec![Some(8080)] };
        let clients = ["9".to_owned()].into();
        let db = Service {
            uid: "u".into(),
            namespace: "alice".into(),
            name: "db".into(),
            ports: vec![port(Some("sql"), 5432), port(None, 80)],
            clients,
            ..Service::default()
        };
        let peers = Service {
            name: "peers".into(),
            uid: "p".into(),
            headless: true,
            ports: vec![port(Some("http"), 80)],
            pods: vec![pod("2", true), pod("3", true), pod("4", false)],
            ..db.clone()
        };
        let mut numbers = Numbers::default();
        numbers.keep(&["u".to_owned()]).unwrap();
        let range = Range { ipv4: "10.66.0.0/16".parse().unwrap(), ipv6: "fd00:9::/64".parse().unwrap() };
        Book::new(&[db, peers], &numbers, range, |uid| uid.parse().ok())
    }

    fn ask(name: &str, kind: u16, pod: u16, ipv6: bool) -> Option<(u8, u16, Vec<u8>)> {
        let query = Query::parse(&query(name, kind)).unwrap();
        let answer = book().answer(&query, pod, ipv6, MAX_UDP)?;
        Some((answer[3] & 0xf, u16::from_be_bytes([answer[6], answer[7]]), answer[query.question_end()..].to_vec()))
    }

    #[test]
    fn a_name_leads_to_the_address_however_much_of_it_is_said() {
        for name in ["db", "DB.alice", "db.alice.svc", "db.Alice.svc.cluster.local"] {
            let (code, count, records) = ask(name, TYPE_A, CLIENT, true).unwrap();
            assert_eq!((code, count, &records[12..]), (NOERROR, 1, [10, 66, 128, 2].as_slice()), "{name}");
            let (_, count, records) = ask(name, TYPE_AAAA, CLIENT, true).unwrap();
            assert_eq!((count, &records[12..14]), (1, [0xfd, 0].as_slice()), "{name}");
            assert_eq!(ask(name, TYPE_AAAA, CLIENT, false).unwrap(), (NOERROR, 0, vec![]), "no IPv6 here");
            assert_eq!(ask(name, 16, CLIENT, true).unwrap(), (NOERROR, 0, vec![]), "no text");
        }
    }

    #[test]
    fn what_a_pod_may_not_use_does_not_exist_for_it() {
        for name in ["db.alice.svc.cluster.local", "db.bob.svc.cluster.local", "x.svc.cluster.local", "cluster.local"] {
            let pod = if name.contains("alice") { CLIENT + 1 } else { CLIENT };
            assert_eq!(ask(name, TYPE_A, pod, true).unwrap().0, NXDOMAIN, "{name}");
        }
        // The policy of the relay judges these.
        for name in ["db", "db.alice", "db.alice.svc", "example.com"] {
            assert_eq!(ask(name, TYPE_A, CLIENT + 1, true), None, "{name}");
        }
    }

    #[test]
    fn a_headless_service_leads_to_its_ready_pods() {
        let (_, count, records) = ask("peers.alice.svc.cluster.local", TYPE_A, CLIENT, true).unwrap();
        assert_eq!(
            (count, &records[12..16], &records[28..]),
            (2, [10, 66, 0, 2].as_slice(), [10, 66, 0, 3].as_slice())
        );
        let one = "10-66-0-3.peers.alice.svc.cluster.local";
        assert_eq!(&ask(one, TYPE_A, CLIENT, true).unwrap().2[12..], [10, 66, 0, 3]);
        assert_eq!(ask("10-66-0-4.peers.alice.svc.cluster.local", TYPE_A, CLIENT, true).unwrap().0, NXDOMAIN);
        let (_, count, records) = ask("_http._tcp.peers.alice.svc.cluster.local", TYPE_SRV, CLIENT, true).unwrap();
        assert_eq!((count, u16::from_be_bytes([records[16], records[17]])), (2, 8080), "the pod's own port");
        assert_eq!(&records[19..28], b"10-66-0-2");
    }

    #[test]
    fn named_ports_are_told() {
        let (code, count, records) = ask("_sql._tcp.db.alice.svc.cluster.local", TYPE_SRV, CLIENT, true).unwrap();
        assert_eq!((code, count, &records[12..18]), (NOERROR, 1, [0, 0, 0, 100, 0x15, 0x38].as_slice()));
        assert_eq!(&records[18..], b"\x02db\x05alice\x03svc\x07cluster\x05local\x00");
        for name in ["_sql._udp.db", "_no._tcp.db", "sql._tcp.db", "x.db", "a.b.c.db"] {
            let name = format!("{name}.alice.svc.cluster.local");
            assert_eq!(ask(&name, TYPE_SRV, CLIENT, true).unwrap().0, NXDOMAIN, "{name}");
        }
    }

    #[test]
    fn more_than_fits_is_asked_for_over_tcp() {
        let mut book = book();
        let host = book.services[1].hosts[0];
        book.services[1].hosts = vec![host; 40];
        let query = Query::parse(&query("peers", TYPE_A)).unwrap();
        assert!(Query::is_truncated(&book.answer(&query, CLIENT, true, MAX_UDP).unwrap()));
        assert!(!Query::is_truncated(&book.answer(&query, CLIENT, true, MAX_TCP).unwrap()));
    }

    proptest! {
        #[test]
        fn no_question_makes_it_panic(labels in proptest::collection::vec("(_?[a-z]{1,9}|db|alice|svc|cluster|local|_tcp|peers)", 0..7), kind in 1u16..250) {
            let query = Query::parse(&query(&labels.join("."), kind)).unwrap();
            if let Some(answer) = book().answer(&query, CLIENT, true, MAX_UDP) {
                prop_assert!(answer.len() <= MAX_UDP);
            }
        }
    }
}
