//! A region on a port of the system's choice, and clients of every kind.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use hearth_api::{
    ApiConfig, ApiServer, CertificateAuthority, DeviceDoorConnector, PeerChannels, ResourceService, SystemClock,
    ZoneSigning, ca::Issued, server_name,
};
use hearth_client::{Client, Config, device, device::DeviceIdentity};
use hearth_proto::v1;
use hearth_types::{
    Clock, GroupKind, ObjectKey, Timestamp,
    group::{Group as _, Server},
    identity::Identity,
};
use hyper_util::rt::TokioIo;
use prometheus::Registry;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::{
    backups::FakeBackups,
    group::{Echo, FakeGroup, Membership},
    store::MemoryStore,
};

pub(crate) const ZONE: &str = "hearth.internal";
/// Nothing here takes longer on a busy machine, unless it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The system's clock, moved by hand.
#[derive(Default)]
pub(crate) struct MovedClock(AtomicI64);

impl MovedClock {
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn set(&self, time: Timestamp) {
        self.0.store(time.0 - SystemClock.now().0, Ordering::SeqCst);
    }
}

impl Clock for MovedClock {
    fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().0 + self.0.load(Ordering::SeqCst))
    }
}

/// The devices' service, mounted from outside: says who it was called by, then goes on until it is ended.
struct Sessions;

#[tonic::async_trait]
impl v1::devices_server::Devices for Sessions {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::RegionMessage, tonic::Status>> + Send>>;
    async fn session(
        &self,
        request: tonic::Request<tonic::Streaming<v1::DeviceMessage>>,
    ) -> Result<tonic::Response<Self::SessionStream>, tonic::Status> {
        let Some(Identity::Device { name, owner, .. }) = request.extensions().get::<Identity>() else {
            return Err(tonic::Status::internal("no device"));
        };
        let goodbye = v1::Goodbye { reason: format!("{owner}/{name}"), ..v1::Goodbye::default() };
        let message = v1::RegionMessage { message: Some(v1::region_message::Message::Goodbye(goodbye)) };
        Ok(tonic::Response::new(Box::pin(stream::iter([Ok(message)]).chain(stream::pending()))))
    }
}

pub(crate) struct Region {
    pub(crate) address: String,
    pub(crate) ca: Arc<CertificateAuthority>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) clock: Arc<MovedClock>,
    pub(crate) registry: Registry,
    pub(crate) backups: Arc<FakeBackups>,
    pub(crate) id: u64,
    pub(crate) membership: Membership,
    /// Lets the answers go that wait for it.
    pub(crate) release: Arc<tokio::sync::Notify>,
    pub(crate) stop: CancellationToken,
    pub(crate) server: tokio::task::JoinHandle<Result<(), hearth_api::ServeError>>,
    pub(crate) directory: tempfile::TempDir,
}

/// What the servers of one region share.
struct Parts {
    clock: Arc<MovedClock>,
    store: Arc<MemoryStore>,
    membership: Membership,
}

impl Drop for Region {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Region {
    pub(crate) async fn start() -> Self {
        Self::start_with(None, None).await
    }

    pub(crate) async fn start_with(connector: Option<Arc<dyn DeviceDoorConnector>>, at: Option<Timestamp>) -> Self {
        let clock = Arc::new(MovedClock::default());
        if let Some(at) = at {
            clock.set(at);
        }
        let parts = Parts { clock, store: Arc::new(MemoryStore::new()), membership: Membership::default() };
        Self::assemble(tempfile::tempdir().unwrap(), 1, parts, connector, "127.0.0.1:0").await
    }

    /// Another server of this region, or this one again, at an address. It belongs to the group from now on.
    pub(crate) async fn server(&self, id: u64, address: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("ca")).unwrap();
        for file in ["ca/ca.key", "ca/ca.pem"] {
            std::fs::copy(self.directory.path().join(file), directory.path().join(file)).unwrap();
        }
        let (clock, store, membership) = (self.clock.clone(), self.store.clone(), self.membership.clone());
        Self::assemble(directory, id, Parts { clock, store, membership }, None, address).await
    }

    async fn assemble(
        directory: tempfile::TempDir,
        id: u64,
        Parts { clock, store, membership }: Parts,
        connector: Option<Arc<dyn DeviceDoorConnector>>,
        address: &str,
    ) -> Self {
        let ca = CertificateAuthority::load_or_create(&directory.path().join("ca"), ZONE, clock.clone()).unwrap();
        ca.export(&directory.path().join("ca.pem")).unwrap();
        let ca = Arc::new(ca);
        let resources = Arc::new(ResourceService::new(store.clone(), clock.clone(), ZONE));
        resources.ensure_defaults().await.unwrap();
        resources.ensure_defaults().await.unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let group = Arc::new(FakeGroup { id, membership: membership.clone() });
        group.admit(Server { id, address: address.clone() }).await.unwrap();
        let config =
            ApiConfig { region: "home".into(), version: "1.2.3".into(), token_addresses: vec![address.clone()] };
        let (registry, backups, release) = (Registry::new(), Arc::new(FakeBackups::default()), Arc::default());
        let signing = Arc::new(ZoneSigning::new(resources.clone(), &ca).unwrap());
        let mut builder = ApiServer::builder(config, resources, ca.clone())
            .signing(signing)
            .metrics(&registry)
            .backups(backups.clone())
            .group(group, Arc::new(Echo { id, release: Arc::clone(&release) }))
            .add_service(v1::devices_server::DevicesServer::new(Sessions));
        if let Some(connector) = connector {
            builder = builder.connector(connector);
        }
        let server = builder.build().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(server.serve(listener, stopped));
        Self { address, ca, store, clock, registry, backups, id, membership, release, stop, server, directory }
    }

    /// Its number and address.
    pub(crate) fn known_as(&self) -> Server {
        Server { id: self.id, address: self.address.clone() }
    }

    /// The connections of a server of this region to the others.
    pub(crate) fn channels(&self, id: u64) -> PeerChannels {
        PeerChannels::new(&self.ca, id, self.clock.clone()).unwrap()
    }

    pub(crate) fn config(&self, issued: &Issued) -> Config {
        let (ca, certificate, key) =
            (self.ca.pem().as_bytes(), issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes());
        Config::single("home", "admin", &self.address, &server_name(ZONE), ca, certificate, key)
    }

    pub(crate) fn user(&self, name: &str, groups: &[&str]) -> Client {
        Client::connect(&self.config(&self.ca.issue_client(name, groups).unwrap())).unwrap()
    }

    pub(crate) fn admin(&self) -> Client {
        self.user("admin", &["system:masters"])
    }

    pub(crate) fn known(&self) -> device::Region {
        device::Region {
            addresses: vec![self.address.clone()],
            server_name: server_name(ZONE),
            ca_pem: self.ca.pem().as_bytes().to_vec(),
            ignore_validity: false,
            has_others: false,
        }
    }

    pub(crate) fn device(&self, identity: &DeviceIdentity) -> Channel {
        device::connect(&self.known(), identity).unwrap()
    }

    /// A channel with whatever client certificate.
    pub(crate) fn raw(&self, certificate: Option<&Issued>) -> Channel {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.certificate().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match certificate {
            Some(issued) => builder.with_client_auth_cert(issued.chain.clone(), issued.key.clone_key()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let (connector, address) = (tokio_rustls::TlsConnector::from(Arc::new(tls)), self.address.clone());
        Endpoint::from_static("http://region").connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
            let (connector, address) = (connector.clone(), address.clone());
            async move {
                let tcp = TcpStream::connect(address).await?;
                let name = ServerName::try_from(server_name(ZONE)).unwrap();
                connector.connect(name, tcp).await.map(TokioIo::new)
            }
        }))
    }
}

/// What a session answers first: who it takes the caller for.
pub(crate) async fn session(
    channel: &Channel,
) -> Result<(String, tonic::Streaming<v1::RegionMessage>), hearth_types::Status> {
    let mut devices = v1::devices_client::DevicesClient::new(channel.clone());
    let answer = devices.session(stream::pending()).await.map_err(|error| hearth_client::convert::status(&error))?;
    let mut stream = answer.into_inner();
    let first = stream.message().await.map_err(|error| hearth_client::convert::status(&error))?;
    match first.and_then(|message| message.message) {
        Some(v1::region_message::Message::Goodbye(goodbye)) => Ok((goodbye.reason, stream)),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn seed(byte: u8) -> DeviceIdentity {
    DeviceIdentity::from_seed(&[byte; 32]).unwrap()
}

pub(crate) fn key(kind: GroupKind, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(kind, namespace, name)
}

pub(crate) fn config_map(namespace: &str, name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data})
}

pub(crate) fn deployment(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace, "labels": {"a": "1"}},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "web:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"memory": "64Mi", "cpu": 1}}}]}}}})
}

pub(crate) fn pod(namespace: &str, name: &str, containers: &[&str]) -> Value {
    let containers: Vec<_> = containers.iter().map(|name| json!({"name": name, "image": "x:1"})).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": {"containers": containers}})
}

/// Waits for a condition, with a bound.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("never: {what}"))
}
