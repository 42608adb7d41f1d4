#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use hearth_pod::Phase;
use hearth_types::{
    GroupKind, Object, ObjectKey, Timestamp,
    external::ALPN,
    kinds::Pod,
    tunnel::{
        IngressHeader,
        datagram::{self, Datagrams},
        proxy::ProxyHeader,
    },
};
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    net::{TcpListener, UdpSocket},
    sync::{Barrier, watch},
    task::JoinSet,
    time::timeout,
};

use super::{certs::tests::Ca, *};
use crate::{
    Paths,
    container::Places,
    shared::{PodEntry, Snapshot},
};

const HOST: &str = "photos.alice.test";
/// Of the device's key.
const SEED: [u8; 32] = [5; 32];
const CALLER: &str = "203.0.113.9:50000";
const BOUND: Duration = Duration::from_secs(20);

/// An ingress with one route, its pod being a server in this process.
struct House {
    ingress: Ingress,
    ca: Ca,
    pods: Arc<Pods>,
    objects: Objects,
    _dir: tempfile::TempDir,
}

fn route(hostname: &str, port: u16, stopped: bool) -> Object {
    Object::from_value(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Route",
        "metadata": {"name": hostname, "namespace": "alice", "uid": hostname},
        "spec": {"hostname": hostname, "stopped": stopped,
            "target": {"selector": {"app": "photos"}, "port": port}}}))
    .unwrap()
}

/// The test's pods are servers of this process, so that sockets towards them are its own.
fn sockets() -> Sockets {
    Arc::new(|_, to| {
        Box::pin(async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await?;
            socket.connect(to).await?;
            Ok(socket)
        })
    })
}

impl House {
    fn new(port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pods = Arc::new(Pods::default());
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let prover = hearth_client::device::DeviceIdentity::from_seed(&SEED).unwrap().prover(ALPN).unwrap();
        let ingress = Ingress::open(dir.path().to_owned(), Arc::clone(&pods), sockets(), prover, metrics).unwrap();
        let mut house = Self { ingress, ca: Ca::new(), pods, objects: Objects::new(), _dir: dir };
        house.add(&route(HOST, port, false));
        house.certify();
        house
    }

    fn add(&mut self, object: &Object) {
        self.objects.insert(object.key().clone(), object.clone());
        self.ingress.routes_changed(&self.objects);
    }

    fn certify(&self) {
        let now = Timestamp(1_800_000_000_000);
        for request in self.ingress.certificates().requests(now) {
            let names: Vec<&str> = request.names.iter().map(String::as_str).collect();
            self.ingress.certificates().answer(&self.ca.sign(&request, &names), now);
        }
    }

    fn pod(&self, ready: bool, status: Value) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "labels": {"app": "photos"}},
            "spec": {"containers": [{"name": "c"}]}}))
        .unwrap();
        let snapshot = Snapshot {
            pod: Arc::new(pod),
            phase: Phase::Running,
            ready,
            stopping: false,
            waits_for_image: false,
            addresses: vec!["127.0.0.1".parse().unwrap()],
            status,
            sandbox: None,
        };
        let (sender, snapshot) = watch::channel(snapshot);
        // The channel outlives the test.
        std::mem::forget(sender);
        self.pods.insert(Arc::new(PodEntry {
            key: ObjectKey::new(GroupKind::POD, "alice", "p"),
            uid: "u".into(),
            places: Places {
                paths: Paths::new(std::path::Path::new("/nowhere")),
                namespace: "alice".into(),
                pod: "p".into(),
                uid: "u".into(),
            },
            snapshot,
        }));
    }

    /// A user's connection, through the gateway's header and TLS.
    async fn connect(&self, sni: &str, alpn: &[u8]) -> std::io::Result<tokio_rustls::client::TlsStream<DuplexStream>> {
        self.connect_with(&proxied(sni), sni, alpn).await
    }

    async fn connect_with(
        &self,
        header: &[u8],
        sni: &str,
        alpn: &[u8],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<DuplexStream>> {
        let (mut user, device) = duplex(256 << 10);
        let ingress = self.ingress.clone();
        tokio::spawn(async move { ingress.serve(device).await });
        user.write_all(header).await?;
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, user).await
    }

    async fn get(&self, request: Request<Empty<Bytes>>) -> (StatusCode, http::HeaderMap, String) {
        let version = request.version();
        let alpn: &[u8] = if version == Version::HTTP_2 { b"h2" } else { b"http/1.1" };
        let io = TokioIo::new(timeout(BOUND, self.connect(HOST, alpn)).await.unwrap().unwrap());
        let response = if version == Version::HTTP_2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            timeout(BOUND, sender.send_request(request)).await.unwrap().unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            timeout(BOUND, sender.send_request(request)).await.unwrap().unwrap()
        };
        let (head, body) = response.into_parts();
        let body = timeout(BOUND, body.collect()).await.unwrap().unwrap().to_bytes();
        (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
    }
}

/// The header of a gateway.
fn proxied(name: &str) -> Vec<u8> {
    let (caller, called) = (CALLER.parse().unwrap(), "198.51.100.1:443".parse().unwrap());
    ProxyHeader { transport: Transport::Tcp, caller, called, authority: Some(name.to_owned()) }.encode()
}

fn request(version: Version, host: &str) -> http::request::Builder {
    let builder = Request::builder().version(version);
    if version == Version::HTTP_2 {
        builder.uri(format!("https://{host}/a?b=c"))
    } else {
        builder.uri("/a?b=c").header("host", host)
    }
}

fn empty(builder: http::request::Builder) -> Request<Empty<Bytes>> {
    builder.body(Empty::new()).unwrap()
}

/// An app that tells what it was asked.
async fn app() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
                Ok::<_, std::convert::Infallible>(tell(request).await)
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service).with_upgrades());
        }
    });
    port
}

async fn tell(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.headers().contains_key("upgrade") {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgraded.await.unwrap());
            let mut buffer = [0; 5];
            io.read_exact(&mut buffer).await.unwrap();
            io.write_all(&buffer.map(|byte| byte.to_ascii_uppercase())).await.unwrap();
        });
        return Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(Full::default())
            .unwrap();
    }
    let headers: BTreeMap<String, String> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
        .collect();
    let uri = request.uri().to_string();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let told = json!({"uri": uri, "headers": headers, "bytes": body.len()});
    Response::builder()
        .header("x-app", "1")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("set-cookie", "session=1; Domain=alice.test; Secure")
        .body(Full::new(told.to_string().into()))
        .unwrap()
}

#[tokio::test]
async fn both_versions_of_http_reach_the_app_with_the_callers_address() {
    let house = House::new(app().await);
    house.pod(true, json!({}));
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let asked = request(version, HOST)
            .header("x-forwarded-for", "6.6.6.6")
            .header("forwarded", "for=6.6.6.6")
            .header("x-forwarded-proto", "http");
        let (status, headers, body) = house.get(empty(asked)).await;
        assert_eq!(status, 200);
        assert_eq!(headers["x-app"], "1");
        assert!(!headers.contains_key("x-private"), "of the app's connection alone");
        let told: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(told["uri"], "/a?b=c");
        assert_eq!(told["headers"]["x-forwarded-for"], "203.0.113.9", "{version:?}");
        assert_eq!(told["headers"]["x-forwarded-proto"], "https");
        assert_eq!(told["headers"]["x-forwarded-host"], HOST);
        assert_eq!(told["headers"]["host"], HOST);
        assert_eq!(told["headers"]["forwarded"], format!("for=203.0.113.9;host={HOST};proto=https"));
    }
}

#[tokio::test]
async fn neighbours_are_other_sites_to_an_app() {
    let mut house = House::new(app().await);
    house.pod(true, json!({}));
    // Another name of the same app.
    house.add(&route("pics.alice.test", 1, false));
    for (from, cookie) in [
        ("https://evil.mallory.test", None),
        ("https://notes.alice.test", None),
        ("https://pics.alice.test", Some("session=1")),
        ("https://photos.alice.test", Some("session=1")),
    ] {
        let asked = request(Version::HTTP_2, HOST)
            .header("cookie", "session=1")
            .header("origin", from)
            .header("sec-fetch-site", "same-site")
            .header("sec-fetch-mode", "cors");
        let (status, headers, body) = house.get(empty(asked)).await;
        assert_eq!(status, 200);
        let told: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(told["headers"]["cookie"].as_str(), cookie, "{from}");
        assert_eq!(headers["set-cookie"], "session=1; Secure");
        assert_eq!(headers["origin-agent-cluster"], "?1");
    }
}

#[tokio::test]
async fn large_bodies_stream_through() {
    const CHUNKS: usize = 64;
    const CHUNK: usize = 256 << 10;
    let house = House::new(app().await);
    house.pod(true, json!({}));
    let io = TokioIo::new(house.connect(HOST, b"h2").await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let chunks = (0..CHUNKS).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![7_u8; CHUNK]))));
    let body = StreamBody::new(tokio_stream::iter(chunks));
    let request = request(Version::HTTP_2, HOST).method("POST").body(body).unwrap();
    let response = timeout(BOUND, sender.send_request(request)).await.unwrap().unwrap();
    let told = response.into_body().collect().await.unwrap().to_bytes();
    let told: Value = serde_json::from_slice(&told).unwrap();
    assert_eq!(told["bytes"], CHUNKS * CHUNK);
}

#[tokio::test]
async fn many_requests_at_once_use_the_same_connections_to_the_app_again_and_again() {
    const AT_ONCE: usize = 64;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (accepted, together) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(AT_ONCE)));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            let together = Arc::clone(&together);
            // Nobody is answered before all have asked.
            let service = hyper::service::service_fn(move |_: Request<Incoming>| {
                let together = Arc::clone(&together);
                async move {
                    together.wait().await;
                    Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let house = House::new(port);
    house.pod(true, json!({}));
    let io = TokioIo::new(house.connect(HOST, b"h2").await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..20 {
        let mut round = JoinSet::new();
        for _ in 0..AT_ONCE {
            let mut sender = sender.clone();
            round.spawn(async move { sender.send_request(empty(request(Version::HTTP_2, HOST))).await });
        }
        while let Some(answered) = timeout(BOUND, round.join_next()).await.unwrap() {
            assert_eq!(answered.unwrap().unwrap().status(), 200);
        }
    }
    let accepted = accepted.load(Ordering::Relaxed);
    assert!(accepted <= 2 * AT_ONCE, "{accepted} connections for {AT_ONCE} requests at once");
}

#[tokio::test]
async fn a_websocket_goes_through() {
    let house = House::new(app().await);
    house.pod(true, json!({}));
    let io = TokioIo::new(house.connect(HOST, b"http/1.1").await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let asked = request(Version::HTTP_11, HOST).header("connection", "Upgrade").header("upgrade", "websocket");
    let response = timeout(BOUND, sender.send_request(empty(asked))).await.unwrap().unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "websocket");
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    timeout(BOUND, io.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HELLO");
}

#[tokio::test]
async fn names_that_are_not_served_are_refused_and_other_hosts_are_misdirected() {
    let mut house = House::new(app().await);
    house.pod(true, json!({}));
    house.add(&route("other.alice.test", 1, false));
    house.certify();
    let refused = timeout(BOUND, house.connect("nobody.test", b"h2")).await.unwrap();
    assert!(refused.is_err(), "an alert, and at once");
    for host in ["other.alice.test", "nobody.test"] {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let (status, _, _) = house.get(empty(request(version, host))).await;
            assert_eq!(status, StatusCode::MISDIRECTED_REQUEST, "{host} {version:?}");
        }
    }
    let (status, _, _) = house.get(empty(Request::builder().uri("/").header("x", "y"))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "no host");
}

#[tokio::test]
async fn an_app_that_is_down_has_a_page_that_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut house = House::new(port);
    let ask = || empty(request(Version::HTTP_2, HOST).header("accept", "application/json"));
    let reason = |body: &str| serde_json::from_str::<Value>(body).unwrap()["reason"].as_str().unwrap().to_owned();
    let (status, headers, body) = house.get(ask()).await;
    assert_eq!((status.as_u16(), reason(&body).as_str()), (503, "NotRunning"));
    assert!(headers.contains_key("retry-after"));
    let waiting = |reason: &str| {
        json!({"containerStatuses": [{"ready": false,
        "state": {"waiting": {"reason": reason}}, "lastState": {"terminated": {"exitCode": 7, "reason": "Error"}}}]})
    };
    house.pod(false, waiting("ContainerCreating"));
    assert_eq!(reason(&house.get(ask()).await.2), "Starting");
    house.pod(false, waiting("CrashLoopBackOff"));
    let (_, _, body) = house.get(ask()).await;
    assert!(body.contains("exit code 7"), "{body}");
    house.pod(true, json!({}));
    assert_eq!(reason(&house.get(ask()).await.2), "NotListening");
    house.add(&route(HOST, port, true));
    assert_eq!(reason(&house.get(ask()).await.2), "Stopped");
}

#[tokio::test]
async fn a_handshake_waits_for_the_first_certificate() {
    let mut house = House::new(app().await);
    house.pod(true, json!({}));
    house.add(&route("new.alice.test", 1, false));
    let (connected, ()) = tokio::join!(house.connect("new.alice.test", b"h2"), async {
        tokio::task::yield_now().await;
        house.certify();
    });
    connected.unwrap();
}

#[tokio::test]
async fn a_gateway_of_the_release_before_is_understood() {
    let house = House::new(app().await);
    house.pod(true, json!({}));
    let caller: SocketAddr = CALLER.parse().unwrap();
    let tls = house.connect_with(&IngressHeader { caller }.encode(), HOST, b"http/1.1").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    let response = timeout(BOUND, sender.send_request(empty(request(Version::HTTP_11, HOST)))).await.unwrap().unwrap();
    let told = response.into_body().collect().await.unwrap().to_bytes();
    let told: Value = serde_json::from_slice(&told).unwrap();
    assert_eq!(told["headers"]["x-forwarded-for"], "203.0.113.9");
}

#[tokio::test]
async fn a_gateway_that_says_another_name_than_the_client_is_refused() {
    let mut house = House::new(app().await);
    house.pod(true, json!({}));
    house.add(&route("other.alice.test", 1, false));
    house.certify();
    let refused = timeout(BOUND, house.connect_with(&proxied("other.alice.test"), HOST, b"h2")).await.unwrap();
    refused.unwrap_err();
    house.connect_with(&proxied(HOST), HOST, b"h2").await.unwrap();
}

#[tokio::test]
async fn a_port_of_a_route_carries_bytes_as_they_are_and_no_other_port_or_name_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"220 ready\n").await.unwrap();
                let (mut reads, mut writes) = stream.split();
                tokio::io::copy(&mut reads, &mut writes).await.unwrap();
            });
        }
    });
    let mut house = House::new(port);
    house.pod(true, json!({}));
    let mut raw = route(HOST, port, false).value();
    raw["metadata"]["name"] = json!("raw");
    raw["spec"]["protocol"] = json!("TCP");
    raw["spec"]["port"] = json!(2222);
    house.add(&Object::from_value(raw).unwrap());
    let dial = |name: &str, called: u16| {
        let (user, device) = duplex(4096);
        let ingress = house.ingress.clone();
        tokio::spawn(async move { ingress.serve(device).await });
        let (caller, called) = (CALLER.parse().unwrap(), SocketAddr::from(([198, 51, 100, 1], called)));
        let header =
            ProxyHeader { transport: Transport::Tcp, caller, called, authority: Some(name.to_owned()) }.encode();
        async move {
            let mut user = user;
            user.write_all(&header).await.unwrap();
            user.write_all(b"EHLO\n").await.unwrap();
            user.shutdown().await.unwrap();
            let mut got = Vec::new();
            let _ = timeout(BOUND, user.read_to_end(&mut got)).await.unwrap();
            got
        }
    };
    assert_eq!(dial(HOST, 2222).await, b"220 ready\nEHLO\n");
    // What is not that port of that name is TLS, and this is none.
    for (name, called) in [(HOST, 443), (HOST, 2223), ("other.alice.test", 2222)] {
        assert!(!dial(name, called).await.starts_with(b"220"), "{name}:{called}");
    }
    // The name's HTTPS is served beside it.
    house.connect(HOST, b"h2").await.unwrap();
}

/// A Route with a public port, 2222, to a port of the pod.
fn port_route(protocol: &str, port: u16, proxy: bool) -> Object {
    let mut raw = route(HOST, port, false).value();
    raw["metadata"]["name"] = json!("raw");
    raw["spec"]["protocol"] = json!(protocol);
    raw["spec"]["port"] = json!(2222);
    if proxy {
        raw["spec"]["proxyProtocol"] = json!("v2");
    }
    Object::from_value(raw).unwrap()
}

fn port_header(transport: Transport) -> ProxyHeader {
    let (caller, called) = (CALLER.parse().unwrap(), "198.51.100.1:2222".parse().unwrap());
    ProxyHeader { transport, caller, called, authority: Some(HOST.to_owned()) }
}

#[tokio::test]
async fn an_app_that_wants_to_know_who_calls_is_told_before_the_first_byte() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut house = House::new(port);
    house.pod(true, json!({}));
    for proxy in [true, false] {
        house.add(&port_route("TCP", port, proxy));
        let (mut user, device) = duplex(4096);
        let ingress = house.ingress.clone();
        tokio::spawn(async move { ingress.serve(device).await });
        let header = port_header(Transport::Tcp).encode();
        user.write_all(&header).await.unwrap();
        user.write_all(b"EHLO").await.unwrap();
        user.shutdown().await.unwrap();
        let (mut app, _) = timeout(BOUND, listener.accept()).await.unwrap().unwrap();
        let mut got = Vec::new();
        timeout(BOUND, app.read_to_end(&mut got)).await.unwrap().unwrap();
        let expected = if proxy { [header.as_slice(), b"EHLO"].concat() } else { b"EHLO".to_vec() };
        assert_eq!(got, expected);
    }
}

/// The gateway's end of a flow.
struct UserFlow {
    stream: DuplexStream,
    datagrams: Datagrams,
}

impl UserFlow {
    async fn begin(house: &House, header: &ProxyHeader) -> Self {
        let (mut stream, device) = duplex(256 << 10);
        let ingress = house.ingress.clone();
        tokio::spawn(async move { ingress.serve(device).await });
        stream.write_all(&header.encode()).await.unwrap();
        Self { stream, datagrams: Datagrams::default() }
    }

    async fn send(&mut self, datagram: &[u8]) {
        let mut bytes = Vec::new();
        assert!(datagram::push(&mut bytes, datagram));
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// The next answer; `None` at the end.
    async fn heard(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(one) = self.datagrams.next() {
                return Some(one.to_vec());
            }
            let read = self.stream.read_buf(self.datagrams.buffer());
            if timeout(BOUND, read).await.unwrap().unwrap() == 0 {
                return None;
            }
        }
    }
}

#[tokio::test]
async fn a_flow_carries_datagrams_whole_from_one_sender_and_follows_its_route() {
    let app = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = app.local_addr().unwrap().port();
    let mut house = House::new(port);
    house.pod(true, json!({}));
    house.add(&port_route("UDP", port, false));
    let hear = async || {
        let mut got = vec![0; 70_000];
        let (length, from) = timeout(BOUND, app.recv_from(&mut got)).await.unwrap().unwrap();
        got.truncate(length);
        (got, from)
    };
    let mut flow = UserFlow::begin(&house, &port_header(Transport::Udp)).await;
    let mut senders = std::collections::BTreeSet::new();
    for datagram in [&b"question"[..], b"", &vec![7; 30_000]] {
        flow.send(datagram).await;
        let (got, from) = hear().await;
        assert_eq!(got, datagram);
        senders.insert(from);
        app.send_to(&[datagram, b"!"].concat(), from).await.unwrap();
        assert_eq!(flow.heard().await.unwrap(), [datagram, b"!"].concat());
    }
    assert_eq!(senders.len(), 1, "one caller, one sender");
    let mut other = UserFlow::begin(&house, &port_header(Transport::Udp)).await;
    other.send(b"x").await;
    assert!(senders.insert(hear().await.1), "another caller, another sender");

    // The app now wants to know who calls: flows that are there tell it, within the time in which they look.
    house.add(&port_route("UDP", port, true));
    let header = port_header(Transport::Udp).encode();
    timeout(BOUND, async {
        loop {
            flow.send(b"who").await;
            let (got, _) = hear().await;
            if got == [&header[..], b"who"].concat() {
                return;
            }
            assert_eq!(got, b"who");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();

    // What is none of the Route's ends at once, and the flow ends with its Route.
    let mut tcp_port = port_header(Transport::Udp);
    tcp_port.called.set_port(2223);
    assert_eq!(UserFlow::begin(&house, &tcp_port).await.heard().await, None);
    house.objects.retain(|_, object| object.name() != "raw");
    house.ingress.routes_changed(&house.objects);
    timeout(BOUND, async {
        let mut bytes = Vec::new();
        assert!(datagram::push(&mut bytes, b"gone"));
        while flow.stream.write_all(&bytes).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
}

/// Takes whatever key is shown and proved.
#[derive(Debug)]
struct AnyKey;

impl rustls::client::danger::ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature_with_raw_key(message, &key.as_ref().into(), signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn who_asks_who_is_here_is_told_at_the_devices_own_addresses_while_the_internet_is_to_reach_them() {
    let mut house = House::new(1);
    let ask = async |ingress: &Ingress, header: Option<Vec<u8>>| {
        let (mut asks, device) = duplex(64 << 10);
        let ingress = ingress.clone();
        let by_gateway = header.is_some();
        tokio::spawn(async move {
            if by_gateway {
                ingress.serve(device).await;
            } else {
                serve::direct(&ingress, device, "25.0.0.1:1000".parse().unwrap()).await;
            }
        });
        asks.write_all(&header.unwrap_or_default()).await.unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyKey))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let asked = connector.connect(ServerName::try_from(HOST).unwrap(), asks);
        let stream = timeout(BOUND, asked).await.unwrap().ok()?;
        external::key_of_spki(&stream.get_ref().1.peer_certificates()?[0])
    };
    let publish = |value: Value| {
        Object::from_value(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "metadata": {"name": "nas"},
            "spec": {"owner": "alice", "publish": value}}))
        .unwrap()
    };
    let own = hearth_client::device::DeviceIdentity::from_seed(&SEED).unwrap().key();
    house.add(&publish(json!({"lan": true})));
    assert_eq!(ask(&house.ingress, None).await, None, "it is for those at home");
    for wanted in [json!({"external": true}), json!({"externalIPs": ["25.0.0.1"]})] {
        house.add(&publish(wanted));
        assert_eq!(ask(&house.ingress, None).await, Some(own));
        assert_eq!(ask(&house.ingress, Some(proxied(HOST))).await, None, "a gateway is not the device");
    }
    house.add(&publish(json!({})));
    assert_eq!(ask(&house.ingress, None).await, None);
}

#[tokio::test]
async fn garbage_in_place_of_the_gateways_header_ends_the_connection() {
    let house = House::new(1);
    let (mut user, device) = duplex(1024);
    user.write_all(&[9; 64]).await.unwrap();
    timeout(BOUND, house.ingress.serve(device)).await.unwrap();
}
