//! A region over the real state machine in memory, with a device that speaks the session over real gRPC.

mod device;
mod group;
mod store;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub(crate) use device::{FakeDevice, hello};
pub(crate) use group::Cluster;
use group::{Plain, View};
use hearth_proto::v1::devices_server::DevicesServer;
use hearth_region::{Config, DevicesService, Region, RegionHandle, Timing};
use hearth_types::{
    BoxFuture, Clock, DeviceKey, DeviceName, GroupKind, Object, ObjectKey, RequestId, Status, Timestamp, Uid,
    admission::{self, Context, DeletePlan, Part},
    group::Server,
    identity::{ADMINS, CertificateSigner, Identity},
    recovery::SigningKey,
    store::{CLAIM_DEVICE, Consistency, Expect, Op, Query, Store, Txn, list_all},
};
use serde_json::{Value, json};
pub(crate) use store::MemoryStore;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

pub(crate) const ZONE: &str = "hearth.internal";
/// How long a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The seed of the signing key of the tests' region, as long as it is not lost.
pub(crate) const SIGNING_SEED: [u8; 32] = [7; 32];

struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        Timestamp(i64::try_from(since.as_millis()).expect("fits"))
    }
}

/// Signs nothing real, and remembers the names that it was asked for.
#[derive(Default)]
pub(crate) struct Signer(pub(crate) Mutex<Vec<Vec<String>>>);

impl CertificateSigner for Signer {
    fn sign<'a>(&'a self, csr: &'a [u8], names: &'a [String]) -> BoxFuture<'a, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            self.0.lock().expect("not poisoned").push(names.to_vec());
            Ok([b"signed:".as_slice(), csr].concat())
        })
    }
}

/// A running region.
pub(crate) struct Rig {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) handle: RegionHandle,
    pub(crate) signer: Arc<Signer>,
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    count: AtomicU64,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) fn quick() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(100),
        silence: Duration::from_millis(600),
        reconnect_grace: Duration::from_millis(200),
        placement_debounce: Duration::from_millis(3),
        lease: Duration::from_secs(5),
    }
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::over(Arc::new(MemoryStore::new()), Timing::default()).await
    }

    /// The only server of a region.
    pub(crate) async fn over(store: Arc<MemoryStore>, timing: Timing) -> Self {
        let cluster = Cluster::new();
        cluster.elect(Some(1));
        Self::member(store, timing, 1, &cluster).await
    }

    /// One of the servers of a region, which share a store.
    pub(crate) async fn member(store: Arc<MemoryStore>, timing: Timing, id: u64, cluster: &Arc<Cluster>) -> Self {
        let signer = Arc::new(Signer::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        cluster.add(Server { id, address: address.to_string() });
        let config = Config {
            domains: None,
            zone: ZONE.into(),
            region: "test".into(),
            clock: Arc::new(SystemClock),
            store: store.clone(),
            group: Arc::new(View(id, Arc::clone(cluster))),
            channels: Arc::new(Plain),
            signer: signer.clone(),
            signing: Arc::new(SigningKey::from_seed(&SIGNING_SEED)),
            ports: Some(30_000..=32_767),
            registry: prometheus::Registry::new(),
            timing,
        };
        let (region, handle) = Region::new(config).expect("a region");
        assert!(!handle.routes().primed(), "nobody knows the routes yet");
        let shutdown = CancellationToken::new();
        tokio::spawn(region.run(shutdown.clone()));
        handle.ready().await;
        assert!(handle.routes().primed());
        let service: DevicesServer<DevicesService> = handle.devices_service();
        let server = tonic::transport::Server::builder()
            .add_service(InterceptedService::new(service, identify))
            .add_service(InterceptedService::new(handle.dials_service(), identify_server))
            .add_service(InterceptedService::new(handle.recovery_service(), identify))
            .serve_with_incoming_shutdown(
                tokio_stream::wrappers::TcpListenerStream::new(listener),
                shutdown.clone().cancelled_owned(),
            );
        tokio::spawn(server);
        Self { store, handle, signer, address, shutdown, count: AtomicU64::new(0) }
    }

    /// Waits until this server has begun to lead.
    pub(crate) async fn leading(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !self.handle.is_leading() {
            assert!(tokio::time::Instant::now() < deadline, "it never led");
            tokio::task::yield_now().await;
        }
    }

    fn context<R>(&self, f: impl FnOnce(&Context<'_>) -> R) -> R {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let suffix = format!("t{count:04}");
        f(&Context {
            now: SystemClock.now(),
            uid: Uid::from(format!("test-{count}-{suffix}")),
            suffix: &suffix,
            zone: ZONE,
        })
    }

    async fn write(&self, op: Op) -> Object {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let txn = Txn {
            request_id: RequestId::from(format!("test-{count}")),
            atomic: true,
            ops: vec![op],
            now: SystemClock.now(),
        };
        let outcome = self.store.write(txn).await.expect("written");
        outcome.outcomes.into_iter().next().expect("one").expect("done")
    }

    /// Creates an object. A pod's device and a claim's, which only `Bind` sets, are set as that leaves them.
    pub(crate) async fn create(&self, mut object: Value) -> Object {
        let mut bound = Vec::new();
        for (parent, field) in [("/spec", "nodeName"), ("/metadata/annotations", CLAIM_DEVICE)] {
            let parent_map = object.pointer_mut(parent).and_then(Value::as_object_mut);
            bound.extend(parent_map.and_then(|map| map.remove(field)).map(|value| (parent, field, value)));
        }
        let info = admission::kind_of(&object).expect("a kind");
        let mut object =
            self.context(|context| admission::prepare_create(info, object, context)).expect("admitted").object;
        for (parent, field, value) in bound {
            let mut with = object.value();
            with.pointer_mut(parent).expect("the parent stays")[field] = value;
            object = Object::from_value(with).expect("an object");
        }
        self.write(Op::Create { object }).await
    }

    /// Changes an object as a person would, against whatever else happens to it.
    pub(crate) async fn edit(&self, kind: GroupKind, namespace: &str, name: &str, change: impl Fn(&mut Value)) {
        self.edit_part(Part::Main, (kind, namespace, name), change).await;
    }

    /// As the region itself may, which keeps some annotations to itself.
    pub(crate) async fn edit_part(
        &self,
        part: Part,
        (kind, namespace, name): (GroupKind, &str, &str),
        change: impl Fn(&mut Value),
    ) {
        let key = ObjectKey::new(kind, namespace, name);
        for _ in 0..50 {
            let old = self.read(&key).await.expect("there");
            let mut new = old.value();
            change(&mut new);
            let info = admission::kind_of(&new).expect("a kind");
            let admitted = self.context(|context| admission::prepare_update(info, &old, new, part, context));
            let op = Op::Update { object: admitted.expect("admitted").object, expect: Expect::same(&old) };
            let count = self.count.fetch_add(1, Ordering::Relaxed);
            let txn = Txn {
                request_id: RequestId::from(format!("edit-{count}")),
                atomic: true,
                ops: vec![op],
                now: SystemClock.now(),
            };
            if self.store.write(txn).await.expect("written").outcomes[0].is_ok() {
                return;
            }
        }
        panic!("{key} changes all the time");
    }

    pub(crate) async fn delete(&self, kind: GroupKind, namespace: &str, name: &str) {
        let key = ObjectKey::new(kind, namespace, name);
        let object = self.read(&key).await.expect("there");
        match admission::plan_delete(&object, None, SystemClock.now()) {
            DeletePlan::Remove => drop(self.write(Op::Delete { key, expect: Expect::uid(object.uid()) }).await),
            DeletePlan::Mark(object) => {
                drop(self.write(Op::Update { expect: Expect::uid(object.uid()), object }).await)
            }
            DeletePlan::Waiting => {}
        }
    }

    pub(crate) async fn read(&self, key: &ObjectKey) -> Option<Object> {
        self.store.get(key, Consistency::Local).await.expect("read")
    }

    pub(crate) async fn list(&self, kind: GroupKind) -> Vec<Object> {
        list_all(self.store.as_ref(), &Query::all(kind), Consistency::Local).await.expect("listed").0
    }

    pub(crate) async fn get(&self, kind: GroupKind, namespace: &str, name: &str) -> Option<Value> {
        self.read(&ObjectKey::new(kind, namespace, name)).await.map(|object| object.value())
    }

    /// Waits until an object is as wanted, and gives it.
    pub(crate) async fn until(
        &self,
        kind: GroupKind,
        namespace: &str,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut changes = self.store.changes();
        loop {
            let now = self.get(kind.clone(), namespace, name).await;
            if let Some(value) = now.as_ref().filter(|value| wanted(value)) {
                return value.clone();
            }
            let more = tokio::time::timeout_at(deadline, changes.changed()).await;
            assert!(more.is_ok(), "{kind} {namespace}/{name} never came to {what}: {now:#?}");
        }
    }

    pub(crate) async fn until_list(
        &self,
        kind: GroupKind,
        what: &str,
        wanted: impl Fn(&[Object]) -> bool,
    ) -> Vec<Object> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut changes = self.store.changes();
        loop {
            let now = self.list(kind.clone()).await;
            if wanted(&now) {
                return now;
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                let all: Vec<_> = now.iter().map(Object::value).collect();
                panic!("the {kind}s never came to {what}: {all:#?}");
            }
        }
    }

    pub(crate) async fn device(&self, name: &str, owner: &str) -> DeviceKey {
        let mut key = [0; 32];
        key[..name.len()].copy_from_slice(name.as_bytes());
        let key = DeviceKey(key);
        self.create(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "metadata": {"name": name},
            "spec": {"owner": owner, "keys": [key.to_string()]}}))
            .await;
        key
    }

    /// A device of alice's that is connected and ready to take pods.
    pub(crate) async fn connected(&self, name: &str) -> FakeDevice {
        let key = self.device(name, "alice").await;
        let device = FakeDevice::connect(self.address, name, key).await;
        self.until(GroupKind::NODE, "", name, "Ready", |node| hearth_types::condition::is_true(node, "Ready")).await;
        device
    }

    pub(crate) async fn app(&self) {
        self.create(
            json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "App", "metadata": {"name": "notes"}, "spec": {
            "containers": [{"name": "web", "image": "notes:1", "ports": [{"name": "http", "containerPort": 8080}],
                "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "size": "1Gi"}],
            "ingress": {"port": "http"}}}),
        )
        .await;
    }

    pub(crate) async fn install(&self, name: &str) {
        self.create(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Install", "metadata": {"name": name, "namespace": "alice"},
            "spec": {"app": "notes"}}))
        .await;
    }
}

/// The door of the tests between servers: whoever does not say that it is a device is a server.
#[allow(clippy::result_large_err, clippy::unnecessary_wraps)]
fn identify_server(request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    let mut request = identify(request)?;
    if request.extensions().get::<Identity>().is_none() {
        request.extensions_mut().insert(Identity::Server { id: 2 });
    }
    Ok(request)
}

/// The door of the tests: whoever calls says who it is.
#[allow(clippy::result_large_err, clippy::unnecessary_wraps)]
fn identify(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    let text = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    if let (Some(name), Some(key)) = (text("device"), text("key")) {
        let key = key.parse().map_err(|_| tonic::Status::invalid_argument("key"))?;
        let identity = Identity::Device { name: DeviceName::from(name), owner: "alice".into(), key };
        request.extensions_mut().insert(identity);
    } else if let Some(key) = text("key") {
        let key = key.parse().map_err(|_| tonic::Status::invalid_argument("key"))?;
        request.extensions_mut().insert(Identity::Stranger { key: Some(key) });
    } else if let Some(name) = text("admin") {
        request.extensions_mut().insert(Identity::User { name, groups: vec![ADMINS.to_owned()] });
    }
    Ok(request)
}
