//! The routes by hostname, for DNS and gateway: fed by the Route cache, visible at once.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use hearth_types::{
    BoxFuture, DeviceName, GroupKind, Object, ObjectKey, Revision, acme,
    dns::record::{RecordKind, ZoneRecord},
    domains::is_custom,
    external::External,
    lan::{MAX_ADDRESSES, is_private_use},
    routes::{PortClaim, RouteEntry, RouteLookup},
};
use serde_json::Value;
use tokio::sync::watch;

/// Routes, DNSEndpoints, Certificates and Devices are known.
const KINDS: u32 = 15;

#[derive(Default)]
struct Table {
    /// By hostname, and where two Routes have the same one, the first by key answers.
    entries: HashMap<Box<str>, BTreeMap<ObjectKey, Arc<RouteEntry>>>,
    /// How many hostnames lie below a name.
    above: HashMap<Box<str>, usize>,
    hostnames: HashMap<ObjectKey, Box<str>>,
    /// Owners' records by name, and where several objects have some of one name, all of them.
    records: HashMap<Box<str>, BTreeMap<ObjectKey, Vec<ZoneRecord>>>,
    names: HashMap<ObjectKey, Vec<Box<str>>>,
    /// Who wants which port: of the claims of one port the first has it.
    ports: BTreeMap<PortClaim, Arc<RouteEntry>>,
    /// Devices whose owners let their addresses inside the home be told.
    lan: HashMap<DeviceName, Lan>,
    /// Devices whose owners let public addresses of them be told.
    external: BTreeMap<DeviceName, Arc<External>>,
    claims: HashMap<ObjectKey, PortClaim>,
}

/// What a device's names inside the home have.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lan {
    owner: String,
    addresses: Vec<IpAddr>,
}

/// Hostnames and the devices behind them.
#[derive(Default)]
pub(crate) struct RouteTable {
    /// Hostnames outside of it are routed once their owner has shown that they are theirs. Empty in tests: there all are.
    zone: Box<str>,
    table: RwLock<Table>,
    serial: watch::Sender<u32>,
    /// Which of the kinds that it is fed by are known, a bit each.
    primed: AtomicU32,
}

impl RouteTable {
    pub(crate) fn new(zone: &str) -> Self {
        Self { zone: zone.into(), ..Self::default() }
    }

    /// All objects of a kind that there are were set.
    pub(crate) fn set_primed(&self, kind: &GroupKind) {
        let bit = match kind {
            kind if *kind == GroupKind::ROUTE => 1,
            kind if *kind == GroupKind::DNS_ENDPOINT => 2,
            kind if *kind == GroupKind::CERTIFICATE => 4,
            _ => 8,
        };
        self.primed.fetch_or(bit, Ordering::Release);
    }

    /// A Route is this now, or is gone. `revision` is that of the change.
    pub(crate) fn set(&self, key: &ObjectKey, route: Option<&Object>, revision: Revision) {
        let value = route.map(Object::value);
        let entry = value.as_ref().and_then(entry).filter(|entry| {
            let verified = value.as_ref().and_then(|value| value.pointer("/status/domain/verifiedSince"));
            !is_custom(&entry.hostname, &self.zone) || verified.is_some()
        });
        let claim = value.as_ref().and_then(PortClaim::of).filter(|_| entry.is_some());
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let same = match (&entry, table.hostnames.get(key)) {
            (None, None) => true,
            (Some(new), Some(hostname)) => {
                table.entries.get(hostname).and_then(|routes| routes.get(key)).is_some_and(|old| **old == *new)
            }
            _ => false,
        } && table.claims.get(key) == claim.as_ref();
        if same {
            return;
        }
        table.remove(key);
        if let Some(entry) = entry {
            table.insert(key, entry, claim);
        }
        drop(table);
        self.raise(revision);
    }

    /// The records of a DNSEndpoint are these now, or are gone. `revision` is that of the change.
    pub(crate) fn set_records(&self, key: &ObjectKey, object: Option<&Object>, revision: Revision) {
        self.set_named(key, object.map(|object| records(&object.value())).unwrap_or_default(), revision);
    }

    /// What the zone answers because of an object is this now. `revision` is that of the change.
    pub(crate) fn set_named(&self, key: &ObjectKey, records: BTreeMap<Box<str>, Vec<ZoneRecord>>, revision: Revision) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let before: BTreeMap<Box<str>, Vec<ZoneRecord>> = table
            .names
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|name| Some((name.clone(), table.records.get(name)?.get(key)?.clone())))
            .collect();
        if before == records {
            return;
        }
        table.remove_records(key);
        table.insert_records(key, records);
        drop(table);
        self.raise(revision);
    }

    /// A Device is this now, or is gone. `revision` is that of the change.
    pub(crate) fn set_device(&self, key: &ObjectKey, object: Option<&Object>, revision: Revision) {
        let (name, device) = (DeviceName::from(&*key.name), object.map(Object::value));
        let (lan, external) = (device.as_ref().and_then(lan), device.as_ref().and_then(External::of).map(Arc::new));
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.lan.get(&name) == lan.as_ref() && table.external.get(&name) == external.as_ref() {
            return;
        }
        match lan {
            Some(lan) => drop(table.lan.insert(name.clone(), lan)),
            None => drop(table.lan.remove(&name)),
        }
        match external {
            Some(external) => drop(table.external.insert(name, external)),
            None => drop(table.external.remove(&name)),
        }
        drop(table);
        self.raise(revision);
    }

    /// The zone is another.
    fn raise(&self, revision: Revision) {
        // The revision rises with every change and is the same on every server; its low bits do for a serial (RFC 1982).
        let wanted = u32::try_from(revision.0 & u64::from(u32::MAX)).unwrap_or_default();
        self.serial.send_modify(|serial| {
            let ahead = wanted.wrapping_sub(*serial);
            *serial = if ahead == 0 || ahead > u32::MAX / 2 { serial.wrapping_add(1) } else { wanted };
        });
    }
}

fn entry(route: &Value) -> Option<RouteEntry> {
    let hostname = route.pointer("/spec/hostname")?.as_str()?;
    let mut devices: Vec<DeviceName> = Vec::new();
    for endpoint in route.pointer("/status/endpoints").and_then(Value::as_array).into_iter().flatten() {
        let device = DeviceName::from(endpoint["device"].as_str().unwrap_or_default());
        if !device.as_str().is_empty() && !devices.contains(&device) {
            devices.push(device);
        }
    }
    let owner = route.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    let port = PortClaim::of(route).map(|claim| claim.port);
    Some(RouteEntry { hostname: hostname.to_owned(), owner: owner.to_owned(), port, devices })
}

/// The addresses of a Device that may be told; `None` where there are none.
fn lan(device: &Value) -> Option<Lan> {
    let is_told = device.pointer("/spec/publish/lan") == Some(&Value::Bool(true));
    let list = device.pointer("/status/addresses").filter(|_| is_told)?.as_array()?;
    let addresses = list.iter().filter_map(|one| one["address"].as_str()?.parse().ok());
    let addresses: Vec<IpAddr> = addresses.filter(|ip| is_private_use(*ip)).take(MAX_ADDRESSES).collect();
    let owner = device.pointer("/spec/owner")?.as_str()?.to_owned();
    (!addresses.is_empty()).then_some(Lan { owner, addresses })
}

/// A DNSEndpoint's records by name. What this release does not know is left out.
fn records(object: &Value) -> BTreeMap<Box<str>, Vec<ZoneRecord>> {
    let mut all: BTreeMap<Box<str>, Vec<ZoneRecord>> = BTreeMap::new();
    for one in object.pointer("/spec/endpoints").and_then(Value::as_array).into_iter().flatten() {
        let Some((name, kind)) = one["dnsName"].as_str().zip(one["recordType"].as_str().and_then(RecordKind::of_label))
        else {
            continue;
        };
        let ttl = one["recordTTL"].as_u64().and_then(|ttl| u32::try_from(ttl).ok()).filter(|ttl| *ttl > 0);
        let targets = one["targets"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let data = targets.filter_map(|target| kind.parse(target).ok());
        let records: Vec<_> = data.map(|data| ZoneRecord { kind, ttl, data: data.into() }).collect();
        if !records.is_empty() {
            all.entry(name.into()).or_default().extend(records);
        }
    }
    all
}

/// What an order of a Certificate has the zone answer, and what the settings of orders do.
pub(crate) fn of_orders(object: Option<&Object>, zone: &str) -> BTreeMap<Box<str>, Vec<ZoneRecord>> {
    let mut all: BTreeMap<Box<str>, Vec<ZoneRecord>> = BTreeMap::new();
    let Some(object) = object else { return all };
    if *object.kind() == GroupKind::CERTIFICATE {
        for (name, record) in acme::challenge_records(&object.value(), zone) {
            all.entry(name.into()).or_default().push(record);
        }
    } else if let Ok(settings) = acme::Settings::read(&object.value()) {
        let records = settings.caa_records();
        if !records.is_empty() {
            all.insert(zone.into(), records);
        }
    }
    all
}

/// The names above a hostname: `b.c` and `c` of `a.b.c`.
fn names_above(hostname: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(hostname.split_once('.').map(|(_, rest)| rest), |name| {
        name.split_once('.').map(|(_, rest)| rest)
    })
}

impl Table {
    fn insert(&mut self, key: &ObjectKey, entry: RouteEntry, claim: Option<PortClaim>) {
        let entry = Arc::new(entry);
        if let Some(claim) = claim {
            self.ports.insert(claim.clone(), Arc::clone(&entry));
            self.claims.insert(key.clone(), claim);
        }
        let hostname: Box<str> = entry.hostname.as_str().into();
        self.hostnames.insert(key.clone(), hostname.clone());
        let routes = self.entries.entry(hostname.clone()).or_default();
        let first = routes.is_empty();
        routes.insert(key.clone(), entry);
        if first {
            self.count_above(&hostname);
        }
    }

    /// A name is there that was not.
    fn count_above(&mut self, name: &str) {
        for name in names_above(name) {
            *self.above.entry(name.into()).or_default() += 1;
        }
    }

    /// A name is there no longer.
    fn discount_above(&mut self, name: &str) {
        for name in names_above(name) {
            if let Some(count) = self.above.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.above.remove(name);
                }
            }
        }
    }

    fn insert_records(&mut self, key: &ObjectKey, records: BTreeMap<Box<str>, Vec<ZoneRecord>>) {
        let names: Vec<Box<str>> = records.keys().cloned().collect();
        for (name, records) in records {
            let there = self.records.entry(name.clone()).or_default();
            let first = there.is_empty();
            there.insert(key.clone(), records);
            if first {
                self.count_above(&name);
            }
        }
        if !names.is_empty() {
            self.names.insert(key.clone(), names);
        }
    }

    fn remove_records(&mut self, key: &ObjectKey) {
        for name in self.names.remove(key).into_iter().flatten() {
            let Some(there) = self.records.get_mut(&name) else { continue };
            there.remove(key);
            if there.is_empty() {
                self.records.remove(&name);
                self.discount_above(&name);
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        if let Some(claim) = self.claims.remove(key) {
            self.ports.remove(&claim);
        }
        let Some(hostname) = self.hostnames.remove(key) else {
            return;
        };
        let Some(routes) = self.entries.get_mut(&hostname) else {
            return;
        };
        routes.remove(key);
        if !routes.is_empty() {
            return;
        }
        self.entries.remove(&hostname);
        self.discount_above(&hostname);
    }
}

impl RouteLookup for RouteTable {
    fn lookup(&self, hostname: &str) -> Option<Arc<RouteEntry>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let routes = table.entries.get(hostname)?;
        // A Route with a port of its own may share the name of one for HTTPS, which is found by the name alone.
        let https = routes.values().find(|route| route.port.is_none());
        https.or_else(|| routes.values().next()).cloned()
    }

    fn has_names_below(&self, name: &str) -> bool {
        self.table.read().unwrap_or_else(PoisonError::into_inner).above.contains_key(name)
    }

    fn records(&self, name: &str) -> Arc<[ZoneRecord]> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.records.get(name).into_iter().flat_map(BTreeMap::values).flatten().cloned().collect()
    }

    /// Those of the first of its devices that has some: where a ready pod is, if there is one. A device that is lent is in another's home.
    fn lan_addresses(&self, hostname: &str) -> Vec<IpAddr> {
        let Some(route) = self.lookup(hostname).filter(|route| route.port.is_none()) else { return Vec::new() };
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let told = route.devices.iter().filter_map(|device| table.lan.get(device)).find(|lan| lan.owner == route.owner);
        told.map(|lan| lan.addresses.clone()).unwrap_or_default()
    }

    /// The first of its devices, where a gateway would lead, too. A lent one is in another's home; and a name that has a port at the gateways, too,
    /// keeps their addresses, since a name has the same for all ports.
    fn external(&self, hostname: &str) -> Option<Arc<External>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let routes = table.entries.get(hostname)?;
        let route = routes.values().next().filter(|_| routes.values().all(|route| route.port.is_none()))?;
        table.external.get(route.devices.first()?).filter(|external| external.owner == route.owner).cloned()
    }

    fn externals(&self) -> Vec<Arc<External>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).external.values().cloned().collect()
    }

    fn primed(&self) -> bool {
        self.primed.load(Ordering::Acquire) == KINDS
    }

    fn serial(&self) -> u32 {
        *self.serial.borrow()
    }

    fn by_port(&self) -> Vec<Arc<RouteEntry>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<Arc<RouteEntry>> = Vec::new();
        for route in table.ports.values() {
            if found.last().is_none_or(|last| last.port != route.port) {
                found.push(Arc::clone(route));
            }
        }
        found
    }

    fn changed(&self, serial: u32) -> BoxFuture<'_, ()> {
        let mut serials = self.serial.subscribe();
        Box::pin(async move {
            // The sender lives as long as this table.
            let _ = serials.wait_for(|now| *now != serial).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn route(name: &str, hostname: &str, devices: &[&str]) -> Object {
        let endpoints: Vec<_> = devices.iter().map(|device| json!({"device": device})).collect();
        Object::from_value(
            json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Route", "metadata": {"name": name, "namespace": "n"},
            "spec": {"hostname": hostname}, "status": {"endpoints": endpoints}}),
        )
        .expect("an object")
    }

    #[test]
    fn lookups_follow_the_routes_and_the_serial_rises_with_changes_alone() {
        let table = RouteTable::default();
        let key = |name: &str| ObjectKey::new(GroupKind::ROUTE, "n", name);
        let notes = route("notes", "notes.alice.zone", &["nas", "pi", "nas"]);
        table.set(&key("notes"), Some(&notes), Revision(7));
        assert_eq!(table.serial(), 7);
        table.set(&key("notes"), Some(&notes), Revision(8));
        assert_eq!(table.serial(), 7, "nothing that anybody sees changed");
        let found = table.lookup("notes.alice.zone").expect("there");
        assert_eq!(found.devices, [DeviceName::from("nas"), DeviceName::from("pi")]);
        assert!(table.has_names_below("alice.zone") && table.has_names_below("zone"));
        assert!(!table.has_names_below("notes.alice.zone") && !table.has_names_below("bob.zone"));
        table.set(&key("other"), Some(&route("other", "notes.alice.zone", &["x"])), Revision(9));
        assert_eq!(table.lookup("notes.alice.zone"), Some(found), "the first by name answers");
        table.set(&key("notes"), None, Revision(9));
        assert_eq!(table.serial(), 10, "two changes of one revision");
        assert_eq!(table.lookup("notes.alice.zone").expect("the other").devices, [DeviceName::from("x")]);
        table.set(&key("other"), Some(&route("other", "b.zone", &[])), Revision(11));
        assert!(table.lookup("notes.alice.zone").is_none() && !table.has_names_below("alice.zone"));
        table.set(&key("other"), None, Revision(12));
        assert!(!table.has_names_below("zone"));
    }

    #[test]
    fn a_domain_is_routed_while_it_is_shown_to_be_its_owners() {
        let table = RouteTable::new("zone");
        let key = ObjectKey::new(GroupKind::ROUTE, "n", "shop");
        let mut shop = route("shop", "shop.example", &["nas"]).value();
        for (revision, since, there) in
            [(1, json!(null), false), (2, json!("2026-01-01T00:00:00Z"), true), (3, json!(null), false)]
        {
            shop["status"]["domain"] = if since.is_null() { json!({}) } else { json!({"verifiedSince": since}) };
            table.set(&key, Some(&Object::from_value(shop.clone()).expect("an object")), Revision(revision));
            assert_eq!(table.lookup("shop.example").is_some(), there);
        }
    }

    #[test]
    fn records_follow_their_objects_and_those_of_several_come_together() {
        let table = RouteTable::default();
        let key = |name: &str| ObjectKey::new(GroupKind::DNS_ENDPOINT, "alice", name);
        let object = |name: &str, endpoints: Value| {
            Object::from_value(json!({"apiVersion": "externaldns.k8s.io/v1alpha1", "kind": "DNSEndpoint",
                "metadata": {"name": name, "namespace": "alice"}, "spec": {"endpoints": endpoints}}))
            .expect("an object")
        };
        let one = |name: &str, kind: &str, target: &str| json!({"dnsName": name, "recordType": kind, "targets": [target], "recordTTL": 30});
        let set = |name: &str, endpoints: Option<Value>, revision| {
            let object = endpoints.map(|endpoints| object(name, endpoints));
            table.set_records(&key(name), object.as_ref(), Revision(revision));
        };
        let first = json!([
            one("a.alice.zone", "TXT", "x"),
            one("*.alice.zone", "CNAME", "b.zone"),
            one("a.alice.zone", "MX", "0 b")
        ]);
        set("first", Some(first.clone()), 5);
        assert_eq!(
            (table.serial(), table.records("a.alice.zone").len(), table.records("*.alice.zone").len()),
            (5, 1, 1)
        );
        assert_eq!(
            table.records("a.alice.zone")[0],
            ZoneRecord { kind: RecordKind::Txt, ttl: Some(30), data: [1, b'x'].into() }
        );
        assert!(table.has_names_below("alice.zone") && !table.has_names_below("a.alice.zone"));
        set("first", Some(first), 6);
        assert_eq!(table.serial(), 5, "nothing changed");
        set("second", Some(json!([one("a.alice.zone", "TXT", "y")])), 7);
        assert_eq!(table.records("a.alice.zone").len(), 2);
        set("first", Some(json!([])), 8);
        assert_eq!((table.records("a.alice.zone").len(), table.records("*.alice.zone").len()), (1, 0));
        assert!(table.has_names_below("alice.zone"));
        set("second", None, 9);
        assert!(!table.has_names_below("alice.zone") && table.records("a.alice.zone").is_empty());
        assert!(!table.primed());
        table.set_primed(&GroupKind::ROUTE);
        assert!(!table.primed(), "records are not known yet");
        table.set_primed(&GroupKind::DNS_ENDPOINT);
        assert!(!table.primed(), "certificates and devices are not known yet");
        table.set_primed(&GroupKind::CERTIFICATE);
        assert!(!table.primed(), "devices are not known yet");
        table.set_primed(&GroupKind::DEVICE);
        assert!(table.primed());
    }

    #[test]
    fn addresses_inside_the_home_are_told_of_the_owners_device_while_the_owner_wants_it() {
        let table = RouteTable::default();
        let key = ObjectKey::new(GroupKind::DEVICE, "", "nas");
        let told = |owner: &str, publish: bool, addresses: &[&str], revision: u64| {
            let list: Vec<_> = addresses.iter().map(|one| json!({"type": "InternalIP", "address": one})).collect();
            let object = Object::from_value(
                json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "metadata": {"name": "nas"},
                "spec": {"owner": owner, "publish": {"lan": publish}}, "status": {"addresses": list}}),
            )
            .expect("an object");
            table.set_device(&key, Some(&object), Revision(revision));
            table.lan_addresses("notes.n.zone").iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        table.set(
            &ObjectKey::new(GroupKind::ROUTE, "n", "notes"),
            Some(&route("notes", "notes.n.zone", &["away", "nas"])),
            Revision(1),
        );
        assert_eq!(told("n", true, &["192.168.1.2", "fd00::2"], 2), ["192.168.1.2", "fd00::2"]);
        assert_eq!(table.serial(), 2);
        assert_eq!(told("n", true, &["8.8.8.8", "127.0.0.1", "x", "192.168.1.3"], 3), ["192.168.1.3"]);
        assert!(told("n", false, &["192.168.1.3"], 4).is_empty(), "not wanted");
        assert!(told("other", true, &["192.168.1.3"], 5).is_empty(), "in another's home");
        assert!(!told("n", true, &["192.168.1.3"], 6).is_empty());
        assert!(table.lan_addresses("other.n.zone").is_empty());
        table.set_device(&key, None, Revision(7));
        assert!(table.lan_addresses("notes.n.zone").is_empty());
    }

    #[test]
    fn a_name_leads_to_its_owners_own_device_where_they_want_it_and_no_port_of_the_gateways_has_the_name() {
        let table = RouteTable::default();
        let set = |name: &str, object: &Object, revision: u64| {
            table.set(&ObjectKey::new(GroupKind::ROUTE, "n", name), Some(object), Revision(revision));
        };
        let device = |owner: &str, publish: Value, revision: u64| {
            let object = Object::from_value(
                json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "metadata": {"name": "nas"},
                "spec": {"owner": owner, "keys": ["ab".repeat(32)], "publish": publish},
                "status": {"addresses": [{"type": "ExternalIP", "address": "2a00::1"}, {"type": "InternalIP", "address": "10.0.0.1"}]}}),
            )
            .expect("an object");
            table.set_device(&ObjectKey::new(GroupKind::DEVICE, "", "nas"), Some(&object), Revision(revision));
        };
        let told = || {
            let external = table.external("notes.n.zone")?;
            Some(external.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        set("notes", &route("notes", "notes.n.zone", &["nas", "away"]), 1);
        device("n", json!({"lan": true}), 2);
        assert_eq!((told(), table.externals().len()), (None, 0), "another opt-in");
        device("n", json!({"external": true, "externalIPs": ["25.0.0.1", "192.168.0.1"]}), 3);
        assert_eq!((told().as_deref(), table.serial()), (Some("25.0.0.1 2a00::1"), 3));
        assert_eq!(table.externals(), [table.external("notes.n.zone").expect("there")]);
        assert!(table.external("other.n.zone").is_none());
        set("notes", &route("notes", "notes.n.zone", &["away", "nas"]), 4);
        assert_eq!(told(), None, "served elsewhere first");
        set("notes", &route("notes", "notes.n.zone", &["nas"]), 5);
        device("other", json!({"external": true}), 6);
        assert_eq!(told(), None, "a guest in another's home");
        device("n", json!({"external": true}), 7);
        assert_eq!(told().as_deref(), Some("2a00::1"));
        let mut git = route("git", "notes.n.zone", &["nas"]).value();
        (git["spec"]["protocol"], git["spec"]["port"]) = (json!("TCP"), json!(2222));
        set("git", &Object::from_value(git).expect("an object"), 8);
        assert_eq!(told(), None, "the name has a port at the gateways");
        table.set(&ObjectKey::new(GroupKind::ROUTE, "n", "git"), None, Revision(9));
        assert!(told().is_some());
        device("n", json!({}), 10);
        assert_eq!((told(), table.externals().len(), table.serial()), (None, 0, 10), "no longer wanted");
    }

    #[tokio::test]
    async fn a_port_is_the_oldest_routes_and_goes_to_the_next_when_that_one_goes() {
        let table = Arc::new(RouteTable::default());
        let key = |name: &str| ObjectKey::new(GroupKind::ROUTE, "n", name);
        let tcp = |name: &str, created: &str, port: u16| {
            let mut value = route(name, "git.n.zone", &["nas"]).value();
            value["metadata"]["creationTimestamp"] = json!(created);
            value["spec"]["protocol"] = json!("TCP");
            value["spec"]["port"] = json!(port);
            value["status"]["endpoints"][0]["device"] = json!(name);
            Object::from_value(value).expect("an object")
        };
        let number = |route: &RouteEntry| route.port.map(|port| port.number);
        let has = |table: &RouteTable| -> Vec<(Option<u16>, String)> {
            table.by_port().iter().map(|route| (number(route), route.devices[0].to_string())).collect()
        };
        table.set(&key("young"), Some(&tcp("young", "2026-01-02T00:00:00Z", 2222)), Revision(1));
        table.set(&key("other"), Some(&tcp("other", "2026-01-03T00:00:00Z", 99)), Revision(2));
        assert_eq!(has(&table), [(Some(99), "other".into()), (Some(2222), "young".into())]);
        let (watcher, seen) = (Arc::clone(&table), table.serial());
        let changed = tokio::spawn(async move { watcher.changed(seen).await });
        table.set(&key("old"), Some(&tcp("old", "2026-01-01T00:00:00Z", 2222)), Revision(3));
        changed.await.expect("told");
        assert_eq!(has(&table), [(Some(99), "other".into()), (Some(2222), "old".into())]);
        // The name is found for DNS, and for HTTPS only once a Route for that has it.
        assert_eq!(table.lookup("git.n.zone").as_deref().and_then(number), Some(2222));
        table.set(&key("web"), Some(&route("web", "git.n.zone", &["nas"])), Revision(4));
        assert_eq!(table.lookup("git.n.zone").expect("there").port, None);
        table.set(&key("old"), None, Revision(5));
        assert_eq!(has(&table), [(Some(99), "other".into()), (Some(2222), "young".into())]);
        table.set(&key("young"), Some(&tcp("young", "2026-01-02T00:00:00Z", 22)), Revision(6));
        assert_eq!(has(&table), [(Some(22), "young".into()), (Some(99), "other".into())]);
    }
}
