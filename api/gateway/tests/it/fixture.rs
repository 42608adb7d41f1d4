//! A gateway on port 0, the devices behind it, and their callers.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hearth_gateway::{Gateway, GatewayConfig, GatewayError, Limits};
use hearth_types::{
    BoxFuture, DeviceName,
    routes::{PublicPort, RouteEntry, RouteLookup, Transport},
    tunnel::{
        DialError, Dialer, HeaderVersion, IngressHeader, StreamKind,
        proxy::{self, ProxyHeader},
    },
};
use prometheus::Registry;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A name that a device serves.
pub(crate) const NAME: &str = "notes.alice.hearth.internal";

/// Longer than anything here may take on a busy machine: who waits longer hangs.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// Waits, but not for ever.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(BOUND, future).await.unwrap_or_else(|_| panic!("{what} did not happen within {BOUND:?}"))
}

/// How a device behaves when it is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// Ends TLS, says who called, and echoes.
    Serves,
    /// Has no session.
    Away,
    /// Is dialled for ever.
    Hangs,
    /// Takes the stream and says nothing.
    Silent,
    /// Drops the first stream and serves the second, as a device whose tunnel died unnoticed.
    BreaksOnce,
    /// Drops every stream.
    Breaks,
    /// Serves, and reads the header of the release before alone; then all devices of the gateway do.
    Old,
}

/// The device that ends no TLS: what comes to [`RAW_NAME`]'s port.
pub(crate) const RAW: &str = "raw";
pub(crate) const RAW_NAME: &str = "git.alice.hearth.internal";

/// An in-memory dialer.
pub(crate) struct Devices {
    behaviour: HashMap<&'static str, Device>,
    acceptor: TlsAcceptor,
    /// The devices dialled, in order.
    pub(crate) dialled: Mutex<Vec<String>>,
    /// The PROXY headers that they got.
    pub(crate) headers: Arc<Mutex<Vec<ProxyHeader>>>,
    /// Connections that are being served.
    pub(crate) serving: Arc<AtomicUsize>,
}

impl Dialer for Devices {
    type Stream = DuplexStream;

    fn dial<'a>(&'a self, device: &'a DeviceName, kind: StreamKind) -> BoxFuture<'a, Result<DuplexStream, DialError>> {
        assert_eq!(kind, StreamKind::Ingress);
        let before = {
            let mut dialled = self.dialled.lock().unwrap();
            dialled.push(device.to_string());
            dialled.iter().filter(|name| *name == device.as_str()).count() - 1
        };
        let behaviour = self.behaviour.get(device.as_str()).copied();
        Box::pin(async move {
            let (near, far) = duplex(16 * 1024);
            match behaviour {
                None => return Err(DialError::Unknown(device.clone())),
                Some(Device::Away) => return Err(DialError::Away(device.clone())),
                Some(Device::Hangs) => std::future::pending().await,
                Some(Device::Breaks) => drop(far),
                Some(Device::BreaksOnce) if before == 0 => drop(far),
                Some(Device::Silent) => {
                    tokio::spawn(async move {
                        let mut far = far;
                        tokio::io::copy(&mut far, &mut tokio::io::sink()).await
                    });
                }
                Some(Device::Serves | Device::BreaksOnce | Device::Old) => {
                    let (acceptor, serving) = (self.acceptor.clone(), Arc::clone(&self.serving));
                    let (headers, tls_ends) = (Arc::clone(&self.headers), device.as_str() != RAW);
                    let version = reads(behaviour);
                    tokio::spawn(async move {
                        serving.fetch_add(1, Ordering::SeqCst);
                        // How it ends is the caller's to judge.
                        let _ = echo(far, acceptor, (version, tls_ends), &headers).await;
                        serving.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
            Ok(near)
        })
    }

    fn header_version(&self, _: &DuplexStream) -> HeaderVersion {
        reads(self.behaviour.values().copied().find(|one| *one == Device::Old))
    }

    fn is_away(&self, device: &DeviceName) -> bool {
        self.behaviour.get(device.as_str()).is_none_or(|one| *one == Device::Away)
    }
}

fn reads(device: Option<Device>) -> HeaderVersion {
    if device == Some(Device::Old) { HeaderVersion::Text } else { HeaderVersion::Proxy }
}

/// The ingress of a device: first the caller's address as a line, then everything back.
async fn echo(
    mut stream: DuplexStream,
    acceptor: TlsAcceptor,
    (reads, tls_ends): (HeaderVersion, bool),
    headers: &Mutex<Vec<ProxyHeader>>,
) -> io::Result<()> {
    let (caller, transport) = match reads {
        HeaderVersion::Text => {
            let mut header = vec![0; 2];
            stream.read_exact(&mut header).await?;
            header.resize(IngressHeader::length([header[0], header[1]]).expect("a header"), 0);
            stream.read_exact(&mut header[2..]).await?;
            (IngressHeader::decode(&header).expect("a header").caller, Transport::Tcp)
        }
        HeaderVersion::Proxy => {
            let mut header = vec![0; proxy::PREFIX];
            stream.read_exact(&mut header).await?;
            header.resize(ProxyHeader::length(header.first_chunk().expect("a prefix")).expect("a header"), 0);
            stream.read_exact(&mut header[proxy::PREFIX..]).await?;
            let header = ProxyHeader::decode(&header).expect("a header");
            headers.lock().unwrap().push(header.clone());
            (header.caller, header.transport)
        }
    };
    if transport == Transport::Udp {
        // Every datagram comes back as it is in the stream.
        let (mut reads, mut writes) = tokio::io::split(stream);
        return tokio::io::copy(&mut reads, &mut writes).await.map(drop);
    }
    if !tls_ends {
        stream.write_all(format!("{caller}\n").as_bytes()).await?;
        let (mut reads, mut writes) = tokio::io::split(stream);
        tokio::io::copy(&mut reads, &mut writes).await?;
        return writes.shutdown().await;
    }
    let mut tls = acceptor.accept(stream).await?;
    tls.write_all(format!("{caller}\n").as_bytes()).await?;
    let (mut reads, mut writes) = tokio::io::split(tls);
    tokio::io::copy(&mut reads, &mut writes).await?;
    writes.shutdown().await
}

struct Routes {
    names: HashMap<String, Arc<RouteEntry>>,
    primed: Arc<AtomicBool>,
    ports: watch::Receiver<(u32, Vec<Arc<RouteEntry>>)>,
}

impl RouteLookup for Routes {
    fn lookup(&self, hostname: &str) -> Option<Arc<RouteEntry>> {
        self.names.get(hostname).cloned()
    }

    fn has_names_below(&self, _: &str) -> bool {
        false
    }

    fn primed(&self) -> bool {
        self.primed.load(Ordering::Relaxed)
    }

    fn serial(&self) -> u32 {
        self.ports.borrow().0
    }

    fn by_port(&self) -> Vec<Arc<RouteEntry>> {
        self.ports.borrow().1.clone()
    }

    fn changed(&self, serial: u32) -> BoxFuture<'_, ()> {
        let mut ports = self.ports.clone();
        Box::pin(async move {
            if ports.wait_for(|(now, _)| *now != serial).await.is_err() {
                std::future::pending().await
            }
        })
    }
}

/// A running gateway; it stops when dropped.
pub(crate) struct Fixture {
    pub(crate) address: SocketAddr,
    pub(crate) devices: Arc<Devices>,
    pub(crate) registry: Registry,
    /// Whether the routes are known.
    pub(crate) primed: Arc<AtomicBool>,
    ports: watch::Sender<(u32, Vec<Arc<RouteEntry>>)>,
    certificate: CertificateDer<'static>,
    running: Option<JoinHandle<Result<(), GatewayError>>>,
    shutdown: CancellationToken,
    _stop: DropGuard,
}

/// A gateway with one device that serves [`NAME`].
pub(crate) async fn gateway() -> Fixture {
    gateway_with(&[("one", Device::Serves)], |_| {}).await
}

/// A gateway with these devices behind [`NAME`], in this order.
pub(crate) async fn gateway_with(devices: &[(&'static str, Device)], adjust: impl FnOnce(&mut Limits)) -> Fixture {
    gateway_on("127.0.0.1:0", devices, adjust).await
}

/// The same, listening there.
pub(crate) async fn gateway_on(
    listen: &str,
    devices: &[(&'static str, Device)],
    adjust: impl FnOnce(&mut Limits),
) -> Fixture {
    gateway_of(listen, devices, |config| adjust(&mut config.limits)).await
}

/// The same, with anything of its configuration changed.
pub(crate) async fn gateway_of(
    listen: &str,
    devices: &[(&'static str, Device)],
    adjust: impl FnOnce(&mut GatewayConfig),
) -> Fixture {
    let key = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
    let certificate = key.cert.der().clone();
    let secret = PrivateKeyDer::try_from(key.signing_key.serialize_der()).expect("a key");
    let server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], secret)
        .expect("a server");
    let route = RouteEntry {
        hostname: NAME.to_owned(),
        owner: "alice".into(),
        port: None,
        devices: devices.iter().map(|(name, _)| DeviceName::from(*name)).collect(),
    };
    // A name whose Route has a port of its own is none for HTTPS.
    let names =
        [route, raw(Transport::Tcp, 1)].into_iter().map(|route| (route.hostname.clone(), Arc::new(route))).collect();
    let raw = devices.iter().find(|(_, one)| *one == Device::Old).map_or(Device::Serves, |(_, one)| *one);
    let devices = Arc::new(Devices {
        behaviour: devices.iter().copied().chain([(RAW, raw)]).collect(),
        headers: Arc::default(),
        acceptor: TlsAcceptor::from(Arc::new(server)),
        dialled: Mutex::default(),
        serving: Arc::default(),
    });
    let primed = Arc::new(AtomicBool::new(true));
    let (ports, watched) = watch::channel((1, Vec::new()));
    let routes = Routes { names, primed: Arc::clone(&primed), ports: watched };
    let registry = Registry::new();
    let mut config = GatewayConfig::new(listen.parse().expect("an address"));
    config.ports = Some(2..=u16::MAX);
    adjust(&mut config);
    let gateway = Gateway::bind(config, Arc::new(routes), Arc::clone(&devices), &registry).await.expect("a free port");
    let address = gateway.local_addr();
    let shutdown = CancellationToken::new();
    let running = Some(tokio::spawn(gateway.run(shutdown.clone())));
    let stop = shutdown.clone().drop_guard();
    Fixture { address, devices, registry, primed, ports, certificate, running, shutdown, _stop: stop }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Fixture {
    pub(crate) async fn tcp(&self) -> TcpStream {
        let stream = soon("connecting", TcpStream::connect(self.address)).await.expect("a listener");
        stream.set_nodelay(true).expect("a socket");
        stream
    }

    /// A TLS client that trusts the devices.
    pub(crate) fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a certificate");
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }

    /// A TLS connection over this stream.
    pub(crate) async fn tls_over<S>(&self, stream: S, name: &str) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let connector = TlsConnector::from(self.client(rustls::ALL_VERSIONS));
        soon("the handshake", connector.connect(name, stream)).await
    }

    pub(crate) async fn tls(&self, name: &str) -> io::Result<TlsStream<TcpStream>> {
        self.tls_over(self.tcp().await, name).await
    }

    /// A connection that has said and heard something, so that its handshake is over.
    pub(crate) async fn established(&self) -> TlsStream<TcpStream> {
        let mut tls = self.tls(NAME).await.expect("through");
        caller_line(&mut tls).await;
        ping(&mut tls).await.expect("an echo");
        tls
    }

    /// A whole hello for this name, as bytes.
    pub(crate) fn hello(&self, name: &str) -> Vec<u8> {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let mut client = rustls::ClientConnection::new(self.client(rustls::ALL_VERSIONS), name).expect("a client");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("a hello");
        hello
    }

    /// How many connections ended with this outcome.
    pub(crate) fn outcomes(&self, outcome: &str) -> u64 {
        self.metric("hearth_gateway_connections_total", outcome)
    }

    /// A metric's value: with this label value, or without labels.
    pub(crate) fn metric(&self, name: &str, label: &str) -> u64 {
        let families = self.registry.gather();
        let metrics = families
            .iter()
            .filter(|family| family.name() == name)
            .flat_map(prometheus::proto::MetricFamily::get_metric);
        let values = metrics.filter(|metric| metric.get_label().iter().all(|pair| pair.value() == label));
        values.map(|metric| metric.get_counter().get_value() as u64 + metric.get_gauge().get_value() as u64).sum()
    }

    /// Waits for a number of connections that ended with this outcome.
    pub(crate) async fn wait_outcomes(&self, outcome: &str, count: u64) {
        until(outcome, || self.outcomes(outcome) == count).await;
    }

    /// These TCP ports are those of Routes now, all to the device [`RAW`].
    pub(crate) fn set_ports(&self, ports: &[u16]) {
        self.set_routes(ports.iter().map(|port| raw(Transport::Tcp, *port)).collect());
    }

    /// The Routes that have ports now.
    pub(crate) fn set_routes(&self, routes: Vec<RouteEntry>) {
        let routes = routes.into_iter().map(Arc::new).collect();
        self.ports.send_modify(|(serial, all)| (*serial, *all) = (*serial + 1, routes));
    }

    pub(crate) fn stop(&self) {
        self.shutdown.cancel();
    }

    /// Drops the gateway without telling it to stop.
    pub(crate) fn abort(&self) {
        self.running.as_ref().expect("it runs").abort();
    }

    /// Waits for the end of the gateway.
    pub(crate) async fn stopped(&mut self) {
        let running = self.running.take().expect("not waited for before");
        soon("the end", running).await.expect("no panic").expect("a proper end");
    }
}

/// A Route of a port, to the device [`RAW`].
pub(crate) fn raw(transport: Transport, number: u16) -> RouteEntry {
    RouteEntry {
        hostname: RAW_NAME.to_owned(),
        owner: "alice".into(),
        port: Some(PublicPort { transport, number }),
        devices: vec![DeviceName::from(RAW)],
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let polled = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon(what, polled).await;
}

/// The first line that a device sends: who it thinks calls.
pub(crate) async fn caller_line(stream: &mut (impl AsyncRead + Unpin)) -> SocketAddr {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(soon("the caller's line", stream.read_u8()).await.expect("a line"));
    }
    std::str::from_utf8(&line).expect("text").trim().parse().expect("an address")
}

/// Sends something and waits for it to come back.
pub(crate) async fn ping(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(b"ping").await?;
    stream.flush().await?;
    let mut got = [0; 4];
    soon("the echo", stream.read_exact(&mut got)).await?;
    assert_eq!(&got, b"ping");
    Ok(())
}

/// Everything until the end; a reset counts as one.
pub(crate) async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut got = Vec::new();
    let _ = soon("the end of the connection", stream.read_to_end(&mut got)).await;
    got
}

/// A stream whose every write is of one byte, and so a segment of its own.
pub(crate) struct SingleBytes(pub(crate) TcpStream);

impl AsyncRead for SingleBytes {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for SingleBytes {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let first = bytes.len().min(1);
        Pin::new(&mut self.0).poll_write(cx, &bytes[..first])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
