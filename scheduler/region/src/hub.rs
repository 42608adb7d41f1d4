//! What the loops share: the cache, the queue, the sessions. Everything that changes passes through [`Hub::observe`].

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use hearth_types::{
    GroupKind, Object, Revision, Timestamp,
    store::{Op, TxnOutcome, WatchEvent},
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, RegionError,
    cache::{Cache, Change, Source},
    metrics::Metrics,
    placing,
    queue::Queue,
    reconcile,
    recorder::{self, Note, Recorder},
    recovery::{self, Touched},
    routes::RouteTable,
    session::{self, Sessions, StatusJob},
    triggers::{self, Controller, Key},
    upkeep, watcher,
};

/// Reconciles that are under way at once: they mostly wait for the store, which batches what comes together.
const WORKERS: usize = 16;

/// The queues that only one loop reads; taken when it starts.
struct Inboxes {
    notes: mpsc::Receiver<Note>,
    statuses: mpsc::Receiver<StatusJob>,
}

/// What the loops share.
pub(crate) struct Hub {
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) queue: Queue<Key>,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) recorder: Recorder,
    pub(crate) sessions: Sessions,
    pub(crate) placement: Notify,
    pub(crate) touched: Touched,
    pub(crate) shutdown: CancellationToken,
    cache: RwLock<Cache>,
    ready: watch::Sender<bool>,
    inboxes: Mutex<Option<Inboxes>>,
}

impl Hub {
    pub(crate) fn new(config: Config) -> Result<Self, RegionError> {
        let metrics = Metrics::register(&config.registry).map_err(RegionError::Metrics)?;
        let (recorder, notes) = Recorder::new(&metrics);
        let (sessions, statuses) = Sessions::new(&config.timing);
        Ok(Self {
            metrics,
            queue: Queue::new(),
            routes: Arc::new(RouteTable::default()),
            recorder,
            sessions,
            placement: Notify::new(),
            touched: Touched::default(),
            shutdown: CancellationToken::new(),
            cache: RwLock::new(Cache::default()),
            ready: watch::Sender::new(false),
            inboxes: Mutex::new(Some(Inboxes { notes, statuses })),
            config,
        })
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.config.clock.now()
    }

    pub(crate) fn cache(&self) -> RwLockReadGuard<'_, Cache> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache_mut(&self) -> RwLockWriteGuard<'_, Cache> {
        self.cache.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object was read like this a moment ago.
    pub(crate) fn observe_read(&self, object: Object) {
        self.take_in(|cache| cache.put(object, Source::Elsewhere).into_iter().collect());
    }

    /// The watch of a kind tells this.
    pub(crate) fn observe_event(&self, kind: &GroupKind, event: WatchEvent) {
        self.take_in(|cache| {
            // Other changes may be of the same revision, and come next.
            let before = |object: &Object| Revision(object.revision().0.saturating_sub(1));
            let (upto, change) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    (before(&object), cache.put(object, Source::Watch))
                }
                WatchEvent::Deleted(object) => (before(&object), cache.remove(object.key(), object.revision())),
                WatchEvent::Bookmark(revision) => (revision, None),
            };
            cache.advance(kind, upto);
            change.into_iter().collect()
        });
    }

    /// A kind is this now.
    pub(crate) fn observe_list(&self, kind: &GroupKind, objects: Vec<Object>, revision: Revision) {
        self.take_in(|cache| cache.replace(kind, objects, revision));
        if *kind == GroupKind::ROUTE {
            self.routes.set_primed();
        }
    }

    /// What a write of this server did: seen at once, not only when the watch tells.
    pub(crate) fn observe_outcome(&self, ops: &[Op], outcome: &TxnOutcome) {
        self.take_in(|cache| {
            let mut changes = Vec::new();
            for (op, done) in ops.iter().zip(&outcome.outcomes) {
                changes.extend(match (op, done) {
                    (Op::Create { .. } | Op::Update { .. } | Op::Bind { .. }, Ok(object)) => {
                        cache.put(object.clone(), Source::Elsewhere)
                    }
                    (Op::Delete { key, .. }, Ok(_)) => cache.remove(key, outcome.revision),
                    _ => None,
                });
            }
            changes
        });
    }

    fn take_in(&self, take: impl FnOnce(&mut Cache) -> Vec<Change>) {
        let mut cache = self.cache_mut();
        let changes = take(&mut cache);
        let revision = cache.revision();
        for change in &changes {
            // Under the lock, so that two changes of one Route cannot overtake each other.
            if let Some(entry) = change.either().filter(|entry| *entry.object.kind() == GroupKind::ROUTE) {
                self.routes.set(entry.object.key(), change.now.as_ref().map(|now| &now.object), revision);
            }
        }
        drop(cache);
        if changes.is_empty() || !self.is_ready() {
            return;
        }
        let cache = self.cache();
        let mut placement = false;
        for change in &changes {
            self.touched.observe(&cache, change);
            let effects = triggers::of(&cache, change);
            effects.keys.into_iter().for_each(|key| self.queue.add(key));
            effects.devices.iter().for_each(|device| self.sessions.dirty(device));
            placement |= effects.placement;
            if let Some(entry) = change.either().filter(|entry| *entry.object.kind() == GroupKind::DEVICE) {
                self.sessions.check_key(entry.object.name(), &cache.keys_of(entry.object.name()));
            }
        }
        if placement {
            self.placement.notify_one();
        }
    }

    pub(crate) async fn ready(&self) {
        // The sender lives as long as `self`.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    pub(crate) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Looks at everything once, now that the caches are filled, and again at the devices when all had time to reconnect.
    fn look_at_everything(&self, silence: Duration) {
        let cache = self.cache();
        self.touched.set_enabled(cache.get(&hearth_types::recovery::record_key()).is_some());
        for (kind, controller) in [
            (GroupKind::INSTALL, Controller::Install),
            (GroupKind::DEPLOYMENT, Controller::Deployment),
            (GroupKind::REPLICA_SET, Controller::ReplicaSet),
            (GroupKind::POD, Controller::Pod),
            (GroupKind::PERSISTENT_VOLUME_CLAIM, Controller::Claim),
            (GroupKind::ROUTE, Controller::Route),
            (GroupKind::NAMESPACE, Controller::Namespace),
            (GroupKind::NODE, Controller::Node),
        ] {
            for entry in cache.of_kind(kind) {
                self.queue.add(Key { controller, object: entry.object.key().clone() });
            }
        }
        for info in hearth_types::registry::all() {
            for entry in cache.of_kind(info.group_kind()).filter(|entry| !entry.owners.is_empty()) {
                if entry.owners.iter().all(|uid| cache.by_uid(uid).is_none()) {
                    self.queue.add(Key { controller: Controller::Garbage, object: entry.object.key().clone() });
                }
            }
        }
        for entry in cache.of_kind(GroupKind::DEVICE) {
            let key = reconcile::node_key(entry.object.name());
            self.queue.add(key.clone());
            self.queue.add_after(key, silence);
        }
        self.placement.notify_one();
    }

    /// Runs every loop until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), RegionError> {
        let inboxes = self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Inboxes { notes, statuses }) = inboxes else {
            return Err(RegionError::LoopEnded("region (it was run twice)"));
        };
        let mut tasks = tokio::task::JoinSet::new();
        let (primed, mut filled) = mpsc::channel(hearth_types::registry::all().len());
        for info in hearth_types::registry::all() {
            let (hub, primed) = (Arc::clone(&self), primed.clone());
            tasks.spawn(async move {
                watcher::run(hub, info.group_kind(), primed).await;
                "watch"
            });
        }
        let mut left = hearth_types::registry::all().len();
        while left > 0 {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                ended = tasks.join_next() => return Err(RegionError::LoopEnded(ended.and_then(Result::ok).unwrap_or("watch"))),
                Some(()) = filled.recv() => left -= 1,
            }
        }
        let revision = self.cache().revision();
        self.sessions.start(revision);
        self.ready.send_replace(true);
        self.look_at_everything(self.config.timing.silence);
        tracing::info!(region = self.config.region, "the region's loops are running");
        for _ in 0..WORKERS {
            let hub = Arc::clone(&self);
            tasks.spawn(async move {
                reconcile::work(hub).await;
                "reconcile"
            });
        }
        let hub = Arc::clone(&self);
        tasks.spawn(async move {
            placing::run(hub).await;
            "placement"
        });
        let hub = Arc::clone(&self);
        tasks.spawn(async move {
            recorder::run(hub, notes).await;
            "event"
        });
        let hub = Arc::clone(&self);
        tasks.spawn(async move {
            session::write_statuses(hub, statuses).await;
            "status"
        });
        let hub = Arc::clone(&self);
        tasks.spawn(async move {
            recovery::run(hub).await;
            "copies"
        });
        let hub = Arc::clone(&self);
        tasks.spawn(async move {
            upkeep::run(hub).await;
            "upkeep"
        });
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            // No loop ends by itself: one that did panicked.
            ended = tasks.join_next() => Err(RegionError::LoopEnded(ended.and_then(Result::ok).unwrap_or("panicked"))),
        };
        self.ready.send_replace(false);
        self.shutdown.cancel();
        self.sessions.end_all("the server is shutting down");
        result
    }
}
