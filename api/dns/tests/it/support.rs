//! A name server with a few routes, and a small client.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use hearth_dns::{Answerer, DnsConfig, DnsServer, Keys};
use hearth_types::{
    Clock, Timestamp,
    dns::{
        keys::{KeySet, NewKey},
        record::{RecordKind, ZoneRecord},
    },
    external::External,
    routes::{RouteEntry, RouteLookup},
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{DNSClass, Name, RecordType},
};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

pub(crate) const ZONE: &str = "hearth.internal";
/// How long anything on loopback may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Routes in memory, which tests change.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    names: Mutex<BTreeSet<String>>,
    records: Mutex<BTreeMap<String, Vec<ZoneRecord>>>,
    /// Addresses inside homes, by hostname.
    pub(crate) lan: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    /// Devices with public addresses, by hostname.
    pub(crate) external: Mutex<BTreeMap<String, Arc<External>>>,
    serial: AtomicU32,
    /// Whether they are not known yet.
    pub(crate) unknown: AtomicBool,
}

impl Routes {
    pub(crate) fn of(names: &[&str]) -> Arc<Self> {
        let routes = Self::default();
        for name in names {
            routes.add(name);
        }
        Arc::new(routes)
    }

    pub(crate) fn add(&self, name: &str) {
        self.names.lock().unwrap().insert(name.to_owned());
        self.serial.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets a record beside those that the name has, from its text.
    pub(crate) fn record(&self, name: &str, kind: &str, text: &str) {
        let kind = RecordKind::of_label(kind).unwrap();
        let record = ZoneRecord { kind, ttl: None, data: kind.parse(text).unwrap().into() };
        self.records.lock().unwrap().entry(name.to_owned()).or_default().push(record);
        self.serial.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.names.lock().unwrap().remove(name);
        self.serial.fetch_add(1, Ordering::Relaxed);
    }
}

impl RouteLookup for Routes {
    fn lookup(&self, hostname: &str) -> Option<Arc<RouteEntry>> {
        let names = self.names.lock().unwrap();
        let entry =
            || RouteEntry { hostname: hostname.to_owned(), owner: "alice".into(), port: None, devices: Vec::new() };
        names.contains(hostname).then(|| Arc::new(entry()))
    }

    fn has_names_below(&self, name: &str) -> bool {
        let below = format!(".{name}");
        let (names, records) = (self.names.lock().unwrap(), self.records.lock().unwrap());
        names.iter().chain(records.keys()).any(|one| one.ends_with(&below))
    }

    fn records(&self, name: &str) -> Arc<[ZoneRecord]> {
        self.records.lock().unwrap().get(name).cloned().unwrap_or_default().into()
    }

    fn lan_addresses(&self, hostname: &str) -> Vec<IpAddr> {
        self.lan.lock().unwrap().get(hostname).cloned().unwrap_or_default()
    }

    fn external(&self, hostname: &str) -> Option<Arc<External>> {
        self.external.lock().unwrap().get(hostname).cloned()
    }

    fn externals(&self) -> Vec<Arc<External>> {
        self.external.lock().unwrap().values().cloned().collect()
    }

    fn primed(&self) -> bool {
        !self.unknown.load(Ordering::Relaxed)
    }

    fn serial(&self) -> u32 {
        self.serial.load(Ordering::Relaxed)
    }
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The zone of most tests: two families, routes of two owners.
pub(crate) fn config() -> DnsConfig {
    DnsConfig::new(loopback(), ZONE, addresses(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]), [7; 32])
}

/// This machine's clock.
#[derive(Debug)]
pub(crate) struct Now;

impl Clock for Now {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Timestamp(i64::try_from(since.as_millis()).unwrap())
    }
}

pub(crate) fn routes() -> Arc<Routes> {
    Routes::of(&["photos.alice.hearth.internal", "notes.alice.hearth.internal", "deep.er.bob.hearth.internal"])
}

/// A running server, ended when dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) routes: Arc<Routes>,
    pub(crate) registry: prometheus::Registry,
    pub(crate) shutdown: CancellationToken,
    pub(crate) ended: tokio::task::JoinHandle<Result<(), hearth_dns::DnsError>>,
}

impl Running {
    pub(crate) async fn start(config: DnsConfig) -> Self {
        Self::start_with(config, |answerer| answerer).await
    }

    /// With more that answers are made of.
    pub(crate) async fn start_with(config: DnsConfig, with: impl FnOnce(Answerer) -> Answerer) -> Self {
        let (routes, registry, shutdown) = (routes(), prometheus::Registry::new(), CancellationToken::new());
        let answerer = with(Answerer::new(&config, routes.clone()).expect("a good configuration"));
        let bound = DnsServer::bind_with(config, answerer, Arc::new(Now), &registry).await;
        let server = bound.expect("a port of loopback");
        let address = server.local_addr();
        let ended = tokio::spawn(server.run(shutdown.clone()));
        Self { address, routes, registry, shutdown, ended }
    }

    /// The value of a metric whose labels contain all of these.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let families = self.registry.gather();
        let of_name = families
            .iter()
            .filter(|family| family.name() == name)
            .flat_map(prometheus::proto::MetricFamily::get_metric);
        of_name
            .filter(|one| labels.iter().all(|label| one.get_label().iter().any(|pair| pair.value() == *label)))
            .map(|one| one.get_counter().get_value() + one.get_gauge().get_value())
            .sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) fn question(name: &str, kind: RecordType) -> Message {
    // Not `parse`, which makes names lower case.
    question_of(Name::from_ascii(name).unwrap(), kind, DNSClass::IN)
}

pub(crate) fn question_of(name: Name, kind: RecordType, class: DNSClass) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    let mut query = Query::query(name, kind);
    query.set_query_class(class);
    message.add_query(query);
    message
}

pub(crate) fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.edns = Some(edns);
    message
}

/// Asks over UDP and gives the answer's bytes.
pub(crate) async fn ask_udp(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    socket.send_to(bytes, server).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let (length, from) =
        tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await.expect("an answer").unwrap();
    assert_eq!(from, server);
    buffer.truncate(length);
    buffer
}

/// Sends one message on a connection.
pub(crate) async fn send_tcp(stream: &mut TcpStream, bytes: &[u8]) {
    let mut framed = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await.unwrap();
}

/// Reads one message from a connection.
pub(crate) async fn receive_tcp(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let reading = async {
        let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut bytes).await?;
        Ok(bytes)
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("an answer or an end")
}

/// Asks over a TCP connection of its own.
pub(crate) async fn ask_tcp(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    send_tcp(&mut stream, bytes).await;
    receive_tcp(&mut stream).await.unwrap()
}

/// A new key, sealed by nothing.
pub(crate) fn new_key() -> NewKey {
    let random = ring::rand::SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
    NewKey { public: pair.public_key().as_ref()[1..].try_into().unwrap(), sealed: pkcs8.as_ref().to_vec() }
}

/// The first keys of a zone, made at a time.
pub(crate) fn first_keys(made: Timestamp) -> KeySet {
    KeySet::first(&new_key(), &new_key(), made)
}

/// Feeds the keys of a set.
pub(crate) fn keys(set: &KeySet) -> (watch::Sender<Arc<Keys>>, watch::Receiver<Arc<Keys>>) {
    watch::channel(ready(set))
}

/// A set ready to sign.
pub(crate) fn ready(set: &KeySet) -> Arc<Keys> {
    Arc::new(Keys::new(set, |key| key.sealed_bytes().ok_or_else(|| "no key".to_owned())).unwrap())
}
