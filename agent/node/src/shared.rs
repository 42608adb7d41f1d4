//! What the parts of the agent share.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use hearth_network::Network;
use hearth_pod::Phase;
use hearth_runtime::Runtime;
use hearth_types::{Clock, ObjectKey, Timestamp, Uid, kinds::Pod};
use hearth_volume::VolumeStore;
use serde_json::Value;
use tokio::sync::{Notify, Semaphore, watch};

use crate::{
    Images, Paths,
    claims::ClaimHolders,
    container::Places,
    desired::{self, Objects},
    facts::{self, Machine},
    host_paths::HostPaths,
    ids::IdRanges,
    leases::Leases,
    metrics::Metrics,
    reporter::Reporter,
};

/// Pods that are made, started or torn down at once: more do not end sooner on a small machine.
pub(crate) const MAX_CONCURRENT: usize = 8;

/// What every part needs.
pub(crate) struct Shared {
    pub(crate) paths: Paths,
    pub(crate) clock: Arc<dyn Clock>,
    /// Finds out what this machine has. Blocks for a moment.
    pub(crate) machine: Box<dyn Fn() -> Machine + Send + Sync>,
    /// Whose this device is: the name of their namespace.
    pub(crate) owner: String,
    pub(crate) images: Arc<Images>,
    pub(crate) volumes: VolumeStore,
    pub(crate) host_paths: HostPaths,
    pub(crate) network: Network,
    pub(crate) runtime: Runtime,
    pub(crate) ids: IdRanges,
    pub(crate) reporter: Reporter,
    pub(crate) metrics: Metrics,
    pub(crate) pods: Arc<Pods>,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) claims: ClaimHolders,
    pub(crate) leases: Leases,
    /// Something was deleted whose data is to be removed.
    pub(crate) trash: Notify,
    taken_over: AtomicBool,
    /// What this device says of itself, of which each part has its own teller.
    told: Mutex<serde_json::Map<String, Value>>,
    objects: RwLock<Arc<Objects>>,
    knows_objects: AtomicBool,
}

impl Shared {
    #[allow(clippy::too_many_arguments)] // the composition root calls it, and nobody else
    pub(crate) fn new(
        paths: Paths,
        clock: Arc<dyn Clock>,
        owner: String,
        images: Images,
        volumes: VolumeStore,
        host_paths: HostPaths,
        network: Network,
        runtime: Runtime,
        ids: IdRanges,
        metrics: Metrics,
        pods: Arc<Pods>,
    ) -> Self {
        let at = paths.clone();
        Self {
            machine: Box::new(move || facts::machine(&at)),
            paths,
            clock,
            owner,
            images: Arc::new(images),
            volumes,
            host_paths,
            network,
            runtime,
            ids,
            reporter: Reporter::default(),
            metrics,
            pods,
            slots: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            claims: ClaimHolders::default(),
            leases: Leases::default(),
            trash: Notify::new(),
            taken_over: AtomicBool::new(false),
            told: Mutex::default(),
            objects: RwLock::default(),
            knows_objects: AtomicBool::new(false),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Every pod that an agent before left is known.
    pub(crate) fn taken_over(&self) {
        self.taken_over.store(true, Ordering::Release);
    }

    /// Whether it is known what pods there are, so that what none of them uses is of no use.
    pub(crate) fn knows_its_pods(&self) -> bool {
        self.taken_over.load(Ordering::Acquire)
    }

    /// A part of what this device says of itself is this now. Told to the region with the other parts once the Device is known.
    pub(crate) fn tell_of_device(&self, part: &str, value: Value) {
        let status = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.insert(part.to_owned(), value);
            Value::Object(told.clone())
        };
        if let Some(device) = desired::device(&self.objects()) {
            self.reporter.status(device.key(), device.uid(), &status, false);
        }
    }

    /// The objects that are desired now.
    pub(crate) fn objects(&self) -> Arc<Objects> {
        Arc::clone(&self.objects.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_objects(&self, objects: Objects) {
        *self.objects.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(objects);
        self.knows_objects.store(true, Ordering::Release);
        self.pods.touch();
    }

    /// Whether it was ever said what is desired, so that what is not desired is not.
    pub(crate) fn knows_objects(&self) -> bool {
        self.knows_objects.load(Ordering::Acquire)
    }
}

/// A time of the kernel as one of ours.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// What others may know of a pod: ingress, logs, exec.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// As it is asked for now: ephemeral containers come, and labels change.
    pub(crate) pod: Arc<Pod>,
    pub(crate) phase: Phase,
    pub(crate) ready: bool,
    pub(crate) stopping: bool,
    pub(crate) waits_for_image: bool,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) status: Value,
    pub(crate) sandbox: Option<hearth_runtime::Pod>,
}

/// What a pod's status says of the containers that its life depends on, those that initialise it first.
pub(crate) fn lasting_statuses(status: &Value) -> impl Iterator<Item = &Value> {
    statuses(status, &["initContainerStatuses", "containerStatuses"])
}

/// The same of all, the ephemeral ones last.
pub(crate) fn container_statuses(status: &Value) -> impl Iterator<Item = &Value> {
    lasting_statuses(status).chain(statuses(status, &["ephemeralContainerStatuses"]))
}

fn statuses<'a>(status: &'a Value, lists: &'static [&str]) -> impl Iterator<Item = &'a Value> {
    lists.iter().filter_map(|list| status.get(list)?.as_array()).flatten()
}

/// The containers that run, by a pod's status, and the attempt of each.
pub(crate) fn running(status: &Value) -> Vec<(String, u32)> {
    let running = container_statuses(status).filter(|one| one.pointer("/state/running").is_some());
    let named = |one: &Value| {
        let attempt = u32::try_from(one.get("restartCount")?.as_u64()?).ok()?;
        Some((one.get("name")?.as_str()?.to_owned(), attempt))
    };
    running.filter_map(named).collect()
}

/// A pod of this device, as others find it.
#[derive(Debug)]
pub(crate) struct PodEntry {
    pub(crate) key: ObjectKey,
    pub(crate) uid: Uid,
    pub(crate) places: Places,
    pub(crate) snapshot: watch::Receiver<Snapshot>,
}

impl PodEntry {
    /// The pod as it is asked for now.
    pub(crate) fn pod(&self) -> Arc<Pod> {
        Arc::clone(&self.snapshot.borrow().pod)
    }

    /// The status of one container, as it was reported last.
    pub(crate) fn container_status(&self, name: &str) -> Option<Value> {
        let snapshot = self.snapshot.borrow();
        container_statuses(&snapshot.status).find(|one| one.get("name").and_then(Value::as_str) == Some(name)).cloned()
    }
}

/// The pods of this device by name. Of two namesakes the newer one is found.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    by_key: Mutex<BTreeMap<ObjectKey, Arc<PodEntry>>>,
    touched: Notify,
}

impl Pods {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ObjectKey, Arc<PodEntry>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, entry: Arc<PodEntry>) {
        self.lock().insert(entry.key.clone(), entry);
        self.touch();
    }

    pub(crate) fn remove(&self, key: &ObjectKey, uid: &Uid) {
        let mut pods = self.lock();
        if pods.get(key).is_some_and(|entry| entry.uid == *uid) {
            pods.remove(key);
            self.touch();
        }
    }

    /// Something about a pod, or what is desired, is another than before.
    pub(crate) fn touch(&self) {
        self.touched.notify_one();
    }

    /// Returns when something was touched since the last time. For one who waits.
    pub(crate) async fn touched(&self) {
        self.touched.notified().await;
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<Arc<PodEntry>> {
        self.lock().get(key).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<PodEntry>> {
        self.lock().values().cloned().collect()
    }
}

/// Runs what blocks on a thread for that. A panic there is a panic here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down: nobody waits any more.
        Err(_) => std::future::pending().await,
    }
}
