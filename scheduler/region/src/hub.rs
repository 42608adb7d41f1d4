//! What the loops share: the cache, the queue, the sessions. Everything that changes passes through [`Hub::observe`].

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use hearth_proto::v1::Goodbye;
use hearth_types::{
    GroupKind, Object, Revision, Timestamp,
    group::Leadership,
    relay::{MAX_RELAYS, Relay},
    store::{Op, TxnOutcome, WatchEvent},
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, RegionError,
    cache::{Cache, Change, Source},
    lead::{self, Lead},
    leases::Leases,
    metrics::Metrics,
    queue::Queue,
    reconcile,
    recorder::{Note, Recorder},
    recovery::Touched,
    remote::{self, RemoteSessions},
    routes::RouteTable,
    servers,
    session::{Sessions, StatusJob},
    triggers::{self, Controller, Key},
    watcher,
};

/// How long a device waits that comes while nobody is known to lead: an election takes about a second, and the device adds jitter.
const ELECTION_RETRY: Duration = Duration::from_millis(300);

/// What the loops share.
pub(crate) struct Hub {
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) queue: Queue<Key>,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) recorder: Recorder,
    pub(crate) sessions: Sessions,
    /// The sessions of the server that leads, where it is another one.
    pub(crate) remote: RemoteSessions,
    /// Where the region's servers answer.
    pub(crate) servers: watch::Sender<Arc<[String]>>,
    /// The region's relays, by name, and the revision of the newest word of them.
    pub(crate) relays: watch::Sender<Arc<[Relay]>>,
    pub(crate) placement: Notify,
    pub(crate) touched: Touched,
    pub(crate) leases: Leases,
    pub(crate) shutdown: CancellationToken,
    /// Read by whichever loop writes events now.
    pub(crate) notes: tokio::sync::Mutex<mpsc::Receiver<Note>>,
    /// Read by whichever loop writes statuses now.
    pub(crate) statuses: tokio::sync::Mutex<mpsc::Receiver<StatusJob>>,
    cache: RwLock<Cache>,
    ready: watch::Sender<bool>,
    lead: Mutex<Option<Lead>>,
    run: Mutex<bool>,
}

impl Hub {
    pub(crate) fn new(config: Config) -> Result<Self, RegionError> {
        let metrics = Metrics::register(&config.registry).map_err(RegionError::Metrics)?;
        let (recorder, notes) = Recorder::new(&metrics);
        let (sessions, statuses) = Sessions::new(&config.timing);
        Ok(Self {
            metrics,
            queue: Queue::new(),
            routes: Arc::new(RouteTable::new(&config.zone)),
            recorder,
            sessions,
            remote: RemoteSessions::default(),
            servers: watch::Sender::new(Arc::from([])),
            relays: watch::Sender::new(Arc::from([])),
            placement: Notify::new(),
            touched: Touched::default(),
            leases: Leases::new(),
            shutdown: CancellationToken::new(),
            notes: tokio::sync::Mutex::new(notes),
            statuses: tokio::sync::Mutex::new(statuses),
            cache: RwLock::new(Cache::default()),
            ready: watch::Sender::new(false),
            lead: Mutex::new(None),
            run: Mutex::new(false),
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
        if [GroupKind::ROUTE, GroupKind::DNS_ENDPOINT, GroupKind::CERTIFICATE, GroupKind::DEVICE].contains(kind) {
            self.routes.set_primed(kind);
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
            // Under the lock, so that two changes of one object cannot overtake each other.
            let Some(entry) = change.either() else { continue };
            let (key, now) = (entry.object.key(), change.now.as_ref().map(|now| &now.object));
            if *entry.object.kind() == GroupKind::ROUTE {
                self.routes.set(key, now, revision);
            } else if *entry.object.kind() == GroupKind::DNS_ENDPOINT {
                self.routes.set_records(key, now, revision);
            } else if *entry.object.kind() == GroupKind::CERTIFICATE || *key == hearth_types::acme::object_key() {
                self.routes.set_named(key, crate::routes::of_orders(now, &self.config.zone), revision);
            } else if *entry.object.kind() == GroupKind::DEVICE {
                self.routes.set_device(key, now, revision);
            }
        }
        if changes.iter().filter_map(Change::either).any(|entry| *entry.object.kind() == GroupKind::RELAY) {
            self.set_relays(&cache);
        }
        drop(cache);
        // A server that begins to lead looks at everything after this says so.
        if changes.is_empty() || self.lead().is_none() {
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

    /// The caches are filled, and where this server leads, it does.
    pub(crate) fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    pub(crate) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// This server's time of leading, if it leads as far as it knows.
    pub(crate) fn lead(&self) -> Option<Lead> {
        self.lead.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this server leads, by the group's own word, and for the term for which its loops run.
    pub(crate) fn leads(&self) -> bool {
        self.lead().is_some_and(|lead| {
            let Leadership { term, here, .. } = self.config.group.leadership();
            here && term == lead.term
        })
    }

    /// Begins to lead. The caches have everything that former leaders wrote.
    pub(crate) async fn begin_lead(&self, lead: Lead) {
        self.queue.clear();
        self.leases.end();
        let (mut notes, mut statuses) = (self.notes.lock().await, self.statuses.lock().await);
        // Of an earlier time: devices report again, and whoever leads tells.
        while notes.try_recv().is_ok() {}
        while statuses.try_recv().is_ok() {}
        drop((notes, statuses));
        let revision = self.cache().revision();
        self.sessions.start(lead.term, revision);
        *self.lead.lock().unwrap_or_else(PoisonError::into_inner) = Some(lead);
        self.look_at_everything(self.config.timing.silence);
    }

    /// Leads no longer: sessions end.
    pub(crate) fn end_lead(&self, lead: &Lead, reason: &str) {
        *self.lead.lock().unwrap_or_else(PoisonError::into_inner) = None;
        lead.over.cancel();
        self.leases.end();
        self.metrics.behind_devices.set(0);
        self.sessions.end_all(&self.goodbye(reason));
    }

    /// A goodbye to a device whose session is not, or no longer, with this server.
    pub(crate) fn goodbye(&self, reason: &str) -> Goodbye {
        let leader = self.config.group.leadership().leader.filter(|leader| leader.id != self.config.group.id());
        let wait = if leader.is_some() { Duration::ZERO } else { ELECTION_RETRY };
        Goodbye {
            reason: reason.to_owned(),
            retry_after_millis: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            leader: leader.map(|leader| leader.address).unwrap_or_default(),
            servers: self.servers.borrow().to_vec(),
        }
    }

    /// Whether this is the only server, as far as it knows.
    pub(crate) fn is_alone(&self) -> bool {
        self.servers.borrow().len() < 2
    }

    /// The region's servers are these now.
    pub(crate) fn set_servers(&self, addresses: Arc<[String]>) {
        self.servers.send_if_modified(|known| {
            let other = *known != addresses;
            *known = addresses;
            other
        });
    }

    /// The relays are those of the cache.
    fn set_relays(&self, cache: &Cache) {
        let mut relays: Vec<_> =
            cache.of_kind(GroupKind::RELAY).filter_map(|entry| Relay::read(&entry.object.value())).collect();
        relays.sort();
        relays.truncate(MAX_RELAYS);
        self.relays.send_if_modified(|known| {
            let other = **known != *relays;
            *known = relays.into();
            other
        });
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
            self.queue.add(Key { controller: Controller::Certificate, object: entry.object.key().clone() });
            self.queue.add(key.clone());
            self.queue.add_after(key, silence);
        }
        self.placement.notify_one();
    }

    /// Runs every loop until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), RegionError> {
        if std::mem::replace(&mut *self.run.lock().unwrap_or_else(PoisonError::into_inner), true) {
            return Err(RegionError::LoopEnded("region (it was run twice)"));
        }
        let mut tasks = tokio::task::JoinSet::new();
        let (primed, mut filled) = mpsc::channel(hearth_types::registry::all().len());
        for info in hearth_types::registry::all() {
            let (hub, primed) = (Arc::clone(&self), primed.clone());
            tasks.spawn(async move {
                watcher::run(hub, info.group_kind(), primed).await;
                "watch"
            });
        }
        let hub = Arc::clone(&self);
        tasks.spawn(async move {
            servers::run(hub).await;
            "servers"
        });
        let mut left = hearth_types::registry::all().len();
        while left > 0 {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                ended = tasks.join_next() => return Err(RegionError::LoopEnded(ended.and_then(Result::ok).unwrap_or("watch"))),
                Some(()) = filled.recv() => left -= 1,
            }
        }
        tracing::info!(region = self.config.region, "the region's caches are filled");
        tasks.spawn(lead::run(Arc::clone(&self)));
        let hub = Arc::clone(&self);
        tasks.spawn(async move {
            remote::run(hub).await;
            "sessions of the leader"
        });
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            // No loop ends by itself: one that did panicked.
            ended = tasks.join_next() => Err(RegionError::LoopEnded(ended.and_then(Result::ok).unwrap_or("panicked"))),
        };
        self.ready.send_replace(false);
        self.shutdown.cancel();
        if let Some(lead) = self.lead() {
            self.end_lead(&lead, "the server is shutting down");
        }
        result
    }
}
