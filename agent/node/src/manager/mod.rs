//! The one task that knows which pods there are: it takes what the region says, writes it down, and starts and informs
//! workers. It also sees to claims and to what was left behind by an agent before.

mod claims;
mod hours;
mod leases;
pub(crate) mod lend;
mod take_over;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use hearth_network::SharedBandwidth;
use hearth_pod::Failure;
use hearth_proto::v1;
use hearth_runtime::{Adopted, DeadPod, GuestLimits};
use hearth_types::{GroupKind, Incarnation, Object, ObjectKey, Uid, kinds::ACCEPT_RESTORED};
use serde_json::json;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use self::lend::Enforced;
use crate::{
    desired::{self, Change, Desired, Refusal},
    files::chain,
    ingress::Ingress,
    pod::{Input, Start, StoredPod, WorkerHandle, spawn, uses_any},
    shared::{Shared, blocking},
};

/// Requests that wait for the manager.
const INBOX: usize = 8;
/// How often it is asked whether images changed while a pod waits for one: one system call each.
const IMAGE_POLL: Duration = Duration::from_millis(250);
/// How often phases are counted, and claims are looked at whose pods may have ended. All in memory.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What the manager is asked.
enum Request {
    BeginSession(oneshot::Sender<(Incarnation, u64)>),
    RegionLostWrites(Incarnation, oneshot::Sender<()>),
    RegionRecovered(Incarnation, oneshot::Sender<()>),
    Desired(Incarnation, Box<v1::Desired>, oneshot::Sender<Result<(), Refusal>>),
    Evict(Uid, Failure),
}

/// A handle on the manager.
#[derive(Clone)]
pub(crate) struct Manager {
    requests: mpsc::Sender<Request>,
}

impl Manager {
    /// A session begins; answers with what the device knows of its region.
    pub(crate) async fn begin_session(&self) -> Option<(Incarnation, u64)> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::BeginSession(answer)).await.ok()?;
        answered.await.ok()
    }

    /// The region says that it has lost writes which this device was told of; `None` when the agent ends.
    pub(crate) async fn region_lost_writes(&self, incarnation: &Incarnation) -> Option<()> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::RegionLostWrites(incarnation.clone(), answer)).await.ok()?;
        answered.await.ok()
    }

    /// The region was recovered as this incarnation, by the key that this device pinned; `None` when the agent ends.
    pub(crate) async fn region_recovered(&self, incarnation: &Incarnation) -> Option<()> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::RegionRecovered(incarnation.clone(), answer)).await.ok()?;
        answered.await.ok()
    }

    /// What the region says. Returns when it is on the disk and its pods are informed, or with why it is not believed;
    /// `None` when the agent ends.
    pub(crate) async fn desired(&self, from: &Incarnation, message: v1::Desired) -> Option<Result<(), Refusal>> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Desired(from.clone(), Box::new(message), answer);
        self.requests.send(request).await.ok()?;
        answered.await.ok()
    }

    /// The device has too little for a pod. Does nothing where there is none of that uid, or the agent ends.
    pub(crate) async fn evict(&self, uid: &Uid, why: Failure) {
        let _ = self.requests.send(Request::Evict(uid.clone(), why)).await;
    }
}

/// The manager before it runs.
pub(crate) struct Service {
    shared: Arc<Shared>,
    ingress: Ingress,
    desired: Desired,
    requests: mpsc::Receiver<Request>,
    workers: HashMap<Uid, WorkerHandle>,
    tasks: JoinSet<Uid>,
    /// Living pods that nobody asked for, kept until the region has said what should run.
    orphans: Vec<hearth_runtime::Pod>,
    dead: HashMap<String, DeadPod>,
    stored: HashMap<String, StoredPod>,
    generation: u64,
    write_failed: bool,
    /// Marked claims whose data is deleted.
    deleted: HashSet<Uid>,
    /// Claims that moved away, whose data is to be set aside.
    moved: Vec<Object>,
    /// What is lent to others.
    lent: Enforced<GuestLimits>,
    /// What pods share of the home's line.
    shares: Enforced<SharedBandwidth>,
    lending: hours::Lending,
    clock: hours::TrustedClock,
    /// Why guests do not run at this time, where they do not.
    held: Option<Failure>,
}

/// Makes the manager of what is on the disk. `connected` says whether there is a session. Blocks.
pub(crate) fn new(
    shared: Arc<Shared>,
    ingress: Ingress,
    desired: Desired,
    connected: watch::Receiver<bool>,
) -> (Manager, Service) {
    let clock = hours::TrustedClock::load(shared.paths.clock(), connected);
    let (sender, requests) = mpsc::channel(INBOX);
    let service = Service {
        shared,
        ingress,
        desired,
        requests,
        workers: HashMap::new(),
        tasks: JoinSet::new(),
        orphans: Vec::new(),
        dead: HashMap::new(),
        stored: HashMap::new(),
        generation: 0,
        write_failed: false,
        deleted: HashSet::new(),
        moved: Vec::new(),
        lent: Enforced::default(),
        shares: Enforced::default(),
        lending: hours::Lending::default(),
        clock,
        held: None,
    };
    (Manager { requests: sender }, service)
}

impl Service {
    /// Brings up what the disk says, taking over what lives, and serves until the handle is gone.
    pub(crate) async fn run(mut self, adopted: Adopted) {
        self.take_over(adopted).await;
        let mut images = tokio::time::interval(IMAGE_POLL);
        images.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.generation = self.image_generation().await;
        let shared = Arc::clone(&self.shared);
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => return,
                },
                Some(ended) = self.tasks.join_next() => self.ended(ended).await,
                () = shared.claims.released() => self.claims_released().await,
                () = shared.leases.changed() => self.leases_changed().await,
                _ = images.tick() => self.look_for_images().await,
                _ = housekeeping.tick() => self.keep_house().await,
            }
        }
    }

    async fn serve(&mut self, request: Request) {
        match request {
            Request::BeginSession(answer) => {
                self.desired.begin_session();
                // Nobody waits where the session ended meanwhile.
                let _ = answer.send((self.desired.incarnation().clone(), self.desired.revision().0));
            }
            Request::RegionLostWrites(incarnation, answer) => {
                if self.desired.region_lost_writes(&incarnation) {
                    tracing::error!(
                        seen = %self.desired.seen_before_loss(),
                        "the region has lost writes (its server runs from an old copy of its disk): what it no longer knows is kept \
                         on this device and runs on"
                    );
                    self.shared.reporter.begin_anew();
                    self.write_desired().await;
                }
                let _ = answer.send(());
            }
            Request::RegionRecovered(incarnation, answer) => {
                if self.desired.region_recovered(&incarnation) {
                    self.shared.reporter.begin_anew();
                    self.write_desired().await;
                }
                let _ = answer.send(());
            }
            Request::Evict(uid, why) => {
                if let Some(worker) = self.workers.get(&uid) {
                    let _ = worker.inbox.send(Input::Evicted(why)).await;
                }
            }
            Request::Desired(from, message, answer) => {
                let result = self.desired.accept(&from, &message);
                let accepted = match result {
                    Ok(change) => {
                        self.apply(change).await;
                        Ok(())
                    }
                    Err(refusal) => Err(refusal),
                };
                let _ = answer.send(accepted);
            }
        }
    }

    /// What an accepted word of the region changed.
    async fn apply(&mut self, change: Change) {
        if change.matters || self.write_failed {
            self.write_desired().await;
        }
        if change.kept > 0 {
            self.tell_kept(change.kept);
        }
        if change.returned {
            self.shared.reporter.begin_anew();
        }
        self.publish();
        // Before anybody's pod is started under the old ones.
        self.follow_device().await;
        for gone in &change.vanished {
            if let Some(worker) = self.workers.get_mut(gone.uid()) {
                worker.vanished = true;
                let _ = worker.inbox.send(Input::Vanished).await;
            }
            self.shared.reporter.forget(gone.key(), gone.uid());
            if *gone.kind() == GroupKind::PERSISTENT_VOLUME_CLAIM {
                self.claim_vanished(gone);
            }
        }
        let mut configs: HashSet<ObjectKey> = HashSet::new();
        for key in &change.changed {
            let Some(object) = self.desired.objects().get(key).cloned() else { continue };
            if key.kind == GroupKind::POD {
                self.pod_changed(object).await;
            } else {
                configs.insert(key.clone());
            }
        }
        configs.extend(change.vanished.iter().map(|object| object.key().clone()));
        for worker in self.workers.values() {
            if !worker.vanished && uses_any(&worker.entry.pod(), worker.object.namespace(), &configs) {
                let _ = worker.inbox.send(Input::ConfigChanged).await;
            }
        }
        self.claims_changed(&configs).await;
        self.remove_orphans().await;
        self.delete_claims().await;
    }

    async fn write_desired(&mut self) {
        let file = self.desired.file();
        let written = blocking(move || file.write()).await;
        self.write_failed = written.is_err();
        if let Err(error) = written {
            // A full disk must not keep the owner from stopping an app.
            tracing::error!(
                error = chain(&error),
                "what this device should run cannot be written to its disk: after a power cut it would run what it ran before"
            );
        }
    }

    /// Tells on the Device that the region forgot objects which this device keeps.
    fn tell_kept(&self, kept: usize) {
        let Some(device) = desired::device(self.desired.objects()) else { return };
        let text = format!(
            "the region has lost writes: {kept} objects that it no longer knows are kept on this device and run on; to let them go, \
             annotate the Device with {ACCEPT_RESTORED}={}",
            self.desired.seen_before_loss()
        );
        self.shared.reporter.event(
            (device.key(), device.uid()),
            "Warning",
            "RegionLostState",
            &text,
            self.shared.now(),
        );
    }

    async fn pod_changed(&mut self, object: Object) {
        if let Some(worker) = self.workers.get_mut(object.uid()) {
            if worker.vanished {
                // It comes again once its worker has ended.
                return;
            }
            worker.object = object.clone();
            let _ = worker.inbox.send(Input::Desired(object)).await;
            return;
        }
        let orphan = self.orphans.iter().position(|pod| pod.uid() == object.uid().as_str());
        let sandbox = orphan.map(|index| self.orphans.swap_remove(index));
        self.start(object, sandbox).await;
    }

    async fn start(&mut self, object: Object, sandbox: Option<hearth_runtime::Pod>) {
        let (leased, sandbox) = self.take_lease(&object, sandbox).await;
        let uid = object.uid().clone();
        let record = self.stored.remove(uid.as_str()).map(|stored| stored.record);
        let dead = self.dead.remove(uid.as_str()).map(|pod| pod.containers);
        let key = object.key().clone();
        let deleting = object.is_deleting();
        let held = self.held_in(object.namespace()).or_else(|| self.shared.leases.held(&leased));
        let start = Start { object, record, sandbox, dead, held, leased };
        match spawn(Arc::clone(&self.shared), start, &mut self.tasks).await {
            Ok(worker) => drop(self.workers.insert(uid, worker)),
            Err(error) => {
                tracing::error!(pod = %key, error, "a pod cannot be read, so it is not run");
                let now = self.shared.now();
                self.shared.reporter.event((&key, &uid), "Warning", "FailedValidation", &error, now);
                if deleting {
                    // Nothing of it ever ran.
                    self.shared.reporter.status(&key, &uid, &json!({"phase": "Failed", "message": error}), true);
                }
            }
        }
    }

    async fn ended(&mut self, ended: Result<Uid, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                let worker = self.workers.remove(&uid);
                // It may have come back while it was taken down.
                let back = self.desired.objects().values().find(|object| *object.uid() == uid).cloned();
                if let (Some(_), Some(object)) = (worker, back) {
                    self.start(object, None).await;
                }
                self.publish();
                self.delete_claims().await;
            }
            Err(error) => {
                tracing::error!(%error, "a pod's worker broke: the agent starts again to take its pod over");
                // Containers are not affected, and a half-known pod is worse than a moment's absence.
                std::panic::resume_unwind(Box::new("a pod's worker broke"));
            }
        }
    }

    fn publish(&self) {
        self.shared.set_objects(self.desired.objects().clone());
        self.ingress.routes_changed(self.desired.objects());
    }

    async fn vanish(&mut self, uid: &Uid) {
        if let Some(worker) = self.workers.get_mut(uid) {
            worker.vanished = true;
            let _ = worker.inbox.send(Input::Vanished).await;
        }
    }

    async fn image_generation(&self) -> u64 {
        let images = Arc::clone(&self.shared.images);
        blocking(move || images.store().generation()).await.unwrap_or(self.generation)
    }

    async fn look_for_images(&mut self) {
        let waits = |worker: &&WorkerHandle| worker.entry.snapshot.borrow().waits_for_image;
        if !self.workers.values().any(|worker| waits(&worker)) {
            return;
        }
        let generation = self.image_generation().await;
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        for worker in self.workers.values().filter(waits) {
            let _ = worker.inbox.send(Input::ImagesChanged).await;
        }
    }

    async fn keep_house(&mut self) {
        let mut counts: HashMap<String, i64> =
            ["Pending", "Running", "Succeeded", "Failed"].into_iter().map(|phase| (phase.to_owned(), 0)).collect();
        for worker in self.workers.values() {
            let phase = format!("{:?}", worker.entry.snapshot.borrow().phase);
            *counts.entry(phase).or_default() += 1;
        }
        for (phase, count) in counts {
            self.shared.metrics.pods.with_label_values(&[&phase]).set(count);
        }
        self.delete_claims().await;
        self.retire_claims().await;
        self.follow_device().await;
        self.hold_workers().await;
        if self.write_failed {
            self.apply(Change { matters: true, ..Change::default() }).await;
        }
    }
}
