//! A region that does as a test says: over TLS, gRPC and tunnels as a real one.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_core::Stream;
use hearth_proto::v1::{
    self,
    device_message::Message as Up,
    devices_server::{Devices, DevicesServer},
    enrollment_server::{Enrollment, EnrollmentServer},
    region_message::Message as Down,
};
use hearth_tunnel::{HubConfig, TunnelHub};
use hearth_types::{
    BoxFuture, DeviceKey, DeviceName, Object,
    token::JoinToken,
    tunnel::{DialError, DialNotice, DialNotifier, Dialer as _, StreamKind},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, PublicKeyData as _,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Endpoint, Server, Uri},
};

type Outgoing = mpsc::Sender<Result<v1::RegionMessage, Status>>;

/// What was heard of devices.
#[derive(Default)]
pub struct Heard {
    pub hellos: Vec<v1::DeviceHello>,
    pub statuses: BTreeMap<String, (Value, bool)>,
    pub heartbeats: u64,
    pub events: Vec<v1::DeviceEvent>,
}

pub struct Shared {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    pub heard: Mutex<Heard>,
    changed: watch::Sender<u64>,
    /// What is desired: sent in full when a session begins.
    objects: Mutex<Vec<v1::Object>>,
    pub revision: AtomicU64,
    pub incarnation: Mutex<String>,
    pub acknowledge: AtomicBool,
    session: Mutex<Option<Outgoing>>,
    /// The server that leads, by its place in `servers`.
    pub leads: AtomicUsize,
    pub servers: Mutex<Vec<String>>,
    dials: AtomicU64,
    key: Mutex<Option<DeviceKey>>,
}

pub struct Region {
    pub shared: Arc<Shared>,
    pub address: SocketAddr,
    pub hub: TunnelHub,
    pub ca: rustls::pki_types::CertificateDer<'static>,
    token: JoinToken,
    acceptor: tokio_rustls::TlsAcceptor,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Region {
    fn drop(&mut self) {
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Region {
    pub async fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test region");
        let ca = params.self_signed(&key).unwrap();
        let spki = key.subject_public_key_info();
        let ca_hash = ring::digest::digest(&ring::digest::SHA256, &spki).as_ref().try_into().unwrap();
        let issuer = Issuer::new(params, key);
        let server_key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec!["api.test".to_owned()]).unwrap();
        let server = server.signed_by(&server_key, &issuer).unwrap();

        let shared = Arc::new(Shared {
            issuer,
            ca_pem: ca.pem(),
            heard: Mutex::default(),
            changed: watch::channel(0).0,
            objects: Mutex::default(),
            revision: AtomicU64::new(10),
            incarnation: Mutex::new("one".into()),
            acknowledge: AtomicBool::new(true),
            session: Mutex::default(),
            leads: AtomicUsize::new(0),
            servers: Mutex::default(),
            dials: AtomicU64::new(0),
            key: Mutex::default(),
        });
        let mut tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![server.der().clone(), ca.der().clone()],
                rustls::pki_types::PrivateKeyDer::Pkcs8(server_key.serialize_der().into()),
            )
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let hub = HubConfig::new([7; 32], "127.0.0.1:0".parse().unwrap(), Vec::new());
        let notifier = Arc::new(Notifier(Arc::clone(&shared)));
        let hub = TunnelHub::start(hub, notifier, &prometheus::Registry::new()).await.unwrap();
        let mut servers = Vec::new();
        let address = serve(&shared, &acceptor, &mut servers).await;
        let token = JoinToken {
            addresses: vec![address.to_string()],
            server_name: "api.test".into(),
            ca_hash,
            secret: "id.secret".into(),
        };
        Self { shared, address, hub, ca: ca.der().clone(), token, acceptor, servers }
    }

    /// Starts another server of the region, and gives its address.
    pub async fn another(&mut self) -> SocketAddr {
        serve(&self.shared, &self.acceptor, &mut self.servers).await
    }

    /// Kills a server.
    pub fn stop(&self, server: usize) {
        self.servers[server].abort();
    }

    /// Another server leads from now on, and the one that did is gone with all its connections; or it says goodbye.
    pub async fn lead(&mut self, server: usize, killed: bool) {
        let old = self.shared.leads.swap(server, Ordering::SeqCst);
        let session = self.shared.session.lock().unwrap().take();
        if killed {
            self.stop(old);
        } else if let Some(session) = session {
            let _ = session.send(Ok(down(Down::Goodbye(self.shared.goodbye())))).await;
        }
    }

    pub fn token(&self) -> String {
        self.token.to_string()
    }

    /// Sets what is desired, and tells the device where it has a session.
    pub async fn desire(&self, objects: Vec<Value>) {
        let revision = self.shared.revision.fetch_add(1, Ordering::SeqCst) + 1;
        let objects = objects.into_iter().map(envelope).collect();
        *self.shared.objects.lock().unwrap() = objects;
        let session = self.shared.session.lock().unwrap().clone();
        if let Some(session) = session {
            let _ = session.send(Ok(down(Down::Desired(self.shared.full(revision))))).await;
        }
    }

    /// Ends the session.
    pub fn hang_up(&self) {
        *self.shared.session.lock().unwrap() = None;
    }

    /// Waits until `find` finds something in what was heard.
    pub async fn heard<T>(&self, what: &str, mut find: impl FnMut(&Heard) -> Option<T>) -> T {
        let mut changed = self.shared.changed.subscribe();
        let found = async {
            loop {
                if let Some(found) = find(&self.shared.heard.lock().unwrap()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        if let Ok(found) = tokio::time::timeout(Duration::from_mins(1), found).await {
            return found;
        }
        let heard = self.shared.heard.lock().unwrap();
        panic!("never heard: {what}\nstatuses: {:#?}\nevents: {:#?}", heard.statuses, heard.events)
    }

    /// Waits until a pod's status is as wanted, and returns it.
    pub async fn status(&self, pod: &str, what: &str, want: impl Fn(&Value) -> bool) -> Value {
        let find = |heard: &Heard| heard.statuses.get(pod).map(|(status, _)| status.clone()).filter(|one| want(one));
        self.heard(&format!("{pod} {what}"), find).await
    }

    /// Waits for so many heartbeats more.
    pub async fn heartbeats(&self, more: u64) {
        let until = self.shared.heard.lock().unwrap().heartbeats + more;
        self.heard("heartbeats", |heard| (heard.heartbeats >= until).then_some(())).await;
    }

    pub async fn running(&self, pod: &str) -> Value {
        self.status(pod, "running", |status| status.pointer("/containerStatuses/0/state/running").is_some()).await
    }

    pub async fn door(&self) -> v1::device_door_client::DeviceDoorClient<tonic::transport::Channel> {
        let stream = self.hub.dial(&DeviceName::from("nas"), StreamKind::Rpc).await.unwrap();
        let mut once = Some(hyper_util::rt::TokioIo::new(stream));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = once.take();
            std::future::ready(stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)))
        });
        let channel = Endpoint::from_static("http://device").connect_with_connector(connector).await.unwrap();
        v1::device_door_client::DeviceDoorClient::new(channel)
    }
}

/// Serves at a port of its own until it is aborted; then its connections are gone too.
async fn serve(
    shared: &Arc<Shared>,
    acceptor: &tokio_rustls::TlsAcceptor,
    servers: &mut Vec<tokio::task::JoinHandle<()>>,
) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    shared.servers.lock().unwrap().push(address.to_string());
    let (streams, incoming) = mpsc::channel(8);
    let (service, acceptor) = (Service(Arc::clone(shared), servers.len()), acceptor.clone());
    servers.push(tokio::spawn(async move {
        let serve = Server::builder()
            .add_service(EnrollmentServer::new(service.clone()))
            .add_service(DevicesServer::new(service))
            .serve_with_incoming(ReceiverStream::new(incoming));
        let accept = async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = streams.send(Ok::<_, std::io::Error>(stream)).await;
                }
            }
        };
        tokio::select! {
            () = accept => {}
            result = serve => result.unwrap(),
        }
    }));
    address
}

impl Shared {
    fn goodbye(&self) -> v1::Goodbye {
        let servers = self.servers.lock().unwrap().clone();
        v1::Goodbye {
            reason: "another server leads".into(),
            leader: servers[self.leads.load(Ordering::SeqCst)].clone(),
            servers,
            ..v1::Goodbye::default()
        }
    }

    fn full(&self, revision: u64) -> v1::Desired {
        v1::Desired { full: true, revision, upserts: self.objects.lock().unwrap().clone(), deletes: Vec::new() }
    }

    fn note(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.heard.lock().unwrap());
        self.changed.send_modify(|count| *count += 1);
    }
}

fn envelope(mut value: Value) -> v1::Object {
    value["metadata"]["resourceVersion"] = json!("1");
    let object = Object::from_value(value).unwrap();
    v1::Object {
        api_version: object.api_version().into(),
        kind: object.kind().kind.to_string(),
        namespace: object.namespace().into(),
        name: object.name().into(),
        uid: object.uid().to_string(),
        revision: 1,
        json: object.json().to_vec().into(),
    }
}

fn down(message: Down) -> v1::RegionMessage {
    v1::RegionMessage { message: Some(message) }
}

#[derive(Clone)]
struct Service(Arc<Shared>, usize);

#[tonic::async_trait]
impl Enrollment for Service {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        if request.token != "id.secret" {
            return Err(Status::permission_denied("no such token"));
        }
        Ok(Response::new(v1::JoinResponse {
            device_name: request.device_name,
            owner: request.owner,
            zone: "test".into(),
            ca_pem: self.0.ca_pem.clone().into_bytes().into(),
            incarnation: "one".into(),
            ..v1::JoinResponse::default()
        }))
    }
}

#[tonic::async_trait]
impl Devices for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::RegionMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::DeviceMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let (out, queue) = mpsc::channel(64);
        let shared = Arc::clone(&self.0);
        if shared.leads.load(Ordering::SeqCst) != self.1 {
            out.send(Ok(down(Down::Goodbye(shared.goodbye())))).await.unwrap();
            return Ok(Response::new(Box::pin(ReceiverStream::new(queue))));
        }
        let Some(Ok(v1::DeviceMessage { message: Some(Up::Hello(hello)) })) = inbound.next().await else {
            return Err(Status::invalid_argument("no hello"));
        };
        let incarnation = shared.incarnation.lock().unwrap().clone();
        let region = v1::RegionHello {
            version: 1,
            incarnation,
            zone: "test".into(),
            heartbeat_millis: 1000,
            servers: shared.servers.lock().unwrap().clone(),
            lost_writes: hello.incarnation == *shared.incarnation.lock().unwrap()
                && hello.revision > shared.revision.load(Ordering::SeqCst),
            ..v1::RegionHello::default()
        };
        out.send(Ok(down(Down::Hello(region)))).await.unwrap();
        // A message of a newer region.
        out.send(Ok(v1::RegionMessage { message: None })).await.unwrap();
        let revision = shared.revision.load(Ordering::SeqCst);
        out.send(Ok(down(Down::Desired(shared.full(revision))))).await.unwrap();
        *shared.session.lock().unwrap() = Some(out.clone());
        shared.note(|heard| heard.hellos.push(hello));
        let weak = out.downgrade();
        drop(out);
        tokio::spawn(async move {
            while let Some(Ok(message)) = inbound.next().await {
                let Some(out) = weak.upgrade() else { return };
                shared.take(message, &out).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }
}

impl Shared {
    async fn take(&self, message: v1::DeviceMessage, out: &Outgoing) {
        let answer = match message.message {
            Some(Up::Heartbeat(beat)) => {
                self.note(|heard| heard.heartbeats += 1);
                Down::HeartbeatAck(v1::HeartbeatAck { sequence: beat.sequence })
            }
            Some(Up::Status(report)) => {
                self.note(|heard| {
                    for item in report.items {
                        let name = item.r#ref.unwrap().name;
                        let status = serde_json::from_slice(&item.status_json).unwrap();
                        heard.statuses.insert(name, (status, item.finished));
                    }
                });
                if !self.acknowledge.load(Ordering::SeqCst) {
                    return;
                }
                Down::StatusAck(v1::StatusAck { sequence: report.sequence })
            }
            Some(Up::Events(report)) => {
                self.note(|heard| heard.events.extend(report.items));
                return;
            }
            Some(Up::CertificateRequest(request)) => {
                let csr = request.csr_der.to_vec().into();
                let csr = CertificateSigningRequestParams::from_der(&csr).unwrap();
                let chain_pem = csr.signed_by(&self.issuer).unwrap().pem().into_bytes().into();
                Down::Certificate(v1::Certificate { id: request.id, chain_pem, error: String::new() })
            }
            _ => return,
        };
        let _ = out.send(Ok(down(answer))).await;
    }
}

struct Notifier(Arc<Shared>);

impl Notifier {
    fn set_key(&self) -> Option<DeviceKey> {
        *self.0.key.lock().unwrap()
    }
}

impl DialNotifier for Notifier {
    fn ask_to_dial<'a>(
        &'a self,
        device: &'a DeviceName,
        notice: DialNotice,
    ) -> BoxFuture<'a, Result<Vec<DeviceKey>, DialError>> {
        Box::pin(async move {
            let session = self.0.session.lock().unwrap().clone();
            let session = session.ok_or_else(|| DialError::Away(device.clone()))?;
            let dial = v1::Dial {
                id: self.0.dials.fetch_add(1, Ordering::SeqCst),
                relays: Vec::new(),
                gateway_key: notice.gateway_key.to_vec().into(),
                addresses: notice.addresses.iter().map(ToString::to_string).collect(),
            };
            let _ = session.send(Ok(down(Down::Dial(dial)))).await;
            Ok(self.set_key().into_iter().collect())
        })
    }

    fn device_of_key(&self, key: &DeviceKey) -> Option<DeviceName> {
        (self.set_key() == Some(*key)).then(|| DeviceName::from("nas"))
    }

    fn session_of(&self, _: &DeviceName) -> Option<u64> {
        let open = self.0.session.lock().unwrap().as_ref().is_some_and(|session| !session.is_closed());
        open.then(|| self.0.heard.lock().unwrap().hellos.len() as u64)
    }
}

impl Region {
    /// Which key the device has, as its Device object would say.
    pub fn enroll(&self, key: DeviceKey) {
        *self.shared.key.lock().unwrap() = Some(key);
    }
}
