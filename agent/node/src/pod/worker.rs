//! The loop of one pod: what comes in goes to its machine, what the machine asks for is begun ([`command`]), and what becomes of it
//! ([`outcome`]) goes back.

mod command;
mod outcome;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_image::{Hold, Image};
use hearth_network::PodNetwork;
use hearth_pod::{Command, Event, Failure, PodMachine, PodView, Record};
use hearth_runtime::{ContainerStatus, PodEvent};
use hearth_types::{Object, ObjectKey, Uid, kinds::Pod, lease::Deadline};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};

use self::{command::look, outcome::Outcome};
use super::{
    begin::{bury, check_names, found_of},
    convert::snapshot_of,
    execute::{Site, VolumePaths},
    image::any_here,
    measure::{Gauge, measure},
    message::LastWords,
    policy,
    record::{self, StoredPod},
    uses::tells_itself,
};
use crate::{
    container::Places,
    ephemeral,
    files::chain,
    leases::Leased,
    shared::{PodEntry, Shared, Snapshot, blocking},
};

/// News for a worker that wait; more make the manager wait.
const INBOX: usize = 16;
/// News of the runtime that wait for a worker.
const RUNTIME_EVENTS: usize = 16;
/// News of how far a pull has come that wait; more are lost.
const PROGRESS: usize = 4;
/// The longest sleep: the clock may be set meanwhile, and wakes are points in time.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// After how long a shim that could not be listened to is listened to again.
const RESUBSCRIBE: Duration = Duration::from_secs(1);
/// SIGKILL.
const SIGKILL: i32 = 9;

/// News for a worker.
pub(crate) enum Input {
    /// The object changed.
    Desired(Object),
    /// It is no longer desired.
    Vanished,
    /// Images came or went on this device.
    ImagesChanged,
    /// Its device does not run it at this time, or does again.
    Held(Option<Failure>),
    /// ConfigMaps, Secrets or claims changed that the pod may use.
    ConfigChanged,
    /// The device has too little for it.
    Evicted(Failure),
    /// It may run with its volumes until then.
    Leased(Deadline),
}

/// A worker that runs.
pub(crate) struct WorkerHandle {
    pub(crate) object: Object,
    pub(crate) entry: Arc<PodEntry>,
    pub(crate) inbox: mpsc::Sender<Input>,
    pub(crate) vanished: bool,
    /// The claims that it needs leases of.
    pub(crate) leased: Leased,
    /// Why it was told that it is held.
    pub(crate) held: Option<Failure>,
}

/// What a worker begins with.
pub(crate) struct Start {
    pub(crate) object: Object,
    pub(crate) record: Option<Record>,
    pub(crate) sandbox: Option<hearth_runtime::Pod>,
    pub(crate) dead: Option<Vec<ContainerStatus>>,
    /// Why its device does not run it at this time, where it does not.
    pub(crate) held: Option<Failure>,
    /// The claims that it needs leases of.
    pub(crate) leased: Leased,
}

struct Worker {
    key: ObjectKey,
    uid: Uid,
    site: Site,
    machine: PodMachine,
    object: Object,
    inbox: mpsc::Receiver<Input>,
    tasks: JoinSet<Outcome>,
    /// The command of each task, so that one that panics still has a result.
    commands: HashMap<tokio::task::Id, Command>,
    /// Tasks that ask or do something in containers: they end with the sandbox.
    inside: HashMap<tokio::task::Id, AbortHandle>,
    runtime_events: (mpsc::Sender<PodEvent>, mpsc::Receiver<PodEvent>),
    /// How far commands have come that take their time.
    progress: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    watcher: Option<AbortHandle>,
    watchers: JoinSet<()>,
    sandbox: Option<hearth_runtime::Pod>,
    network: Option<PodNetwork>,
    /// Each is held for as long as its pod is here.
    images: HashMap<String, (Image, Hold)>,
    volumes: VolumePaths,
    gauge: Gauge,
    snapshot: watch::Sender<Snapshot>,
    written: Option<Record>,
    /// What the region is to be told of the pod, once its record says the same.
    report: Option<(Value, bool)>,
    /// How many containers that are started once had been, when it was written.
    spent: usize,
    vanished: bool,
}

/// Starts a worker. It ends when the pod is no longer desired and nothing is left of it; `done` says so.
pub(crate) async fn spawn(shared: Arc<Shared>, start: Start, tasks: &mut JoinSet<Uid>) -> Result<WorkerHandle, String> {
    let view = PodView::from_json(&start.object.value()).map_err(|error| error.to_string())?;
    check_names(&view)?;
    let pod: Pod = start.object.view().map_err(|error| error.to_string())?;
    let (pod, now) = (Arc::new(pod), shared.now());
    let was_dead = start.dead.is_some();
    let places = Places {
        paths: shared.paths.clone(),
        namespace: start.object.namespace().to_owned(),
        pod: start.object.name().to_owned(),
        uid: start.object.uid().as_str().to_owned(),
    };
    let (sandbox, found) = found_of(start.sandbox, start.dead, start.record.as_ref()).await;
    let last_words = LastWords { pod: Arc::clone(&pod), places: places.clone() };
    let found = blocking(move || last_words.of_found(found)).await;
    let machine = PodMachine::new(view, start.record, found, now);
    if was_dead {
        bury(&shared, &start.object, &machine).await;
    }
    let (snapshot, watched) = watch::channel(snapshot_of(&machine, sandbox.as_ref(), &pod));
    let entry = Arc::new(PodEntry {
        key: start.object.key().clone(),
        uid: start.object.uid().clone(),
        places: places.clone(),
        snapshot: watched,
    });
    shared.pods.insert(Arc::clone(&entry));
    let (sender, inbox) = mpsc::channel(INBOX);
    let mut worker = Worker {
        key: entry.key.clone(),
        uid: entry.uid.clone(),
        gauge: Gauge::new(&pod),
        site: Site { shared, pod, places },
        machine,
        object: start.object.clone(),
        inbox,
        tasks: JoinSet::new(),
        commands: HashMap::new(),
        inside: HashMap::new(),
        runtime_events: mpsc::channel(RUNTIME_EVENTS),
        progress: mpsc::channel(PROGRESS),
        watcher: None,
        watchers: JoinSet::new(),
        sandbox: None,
        network: None,
        images: HashMap::new(),
        volumes: VolumePaths::new(),
        snapshot,
        written: None,
        report: None,
        spent: 0,
        vanished: false,
    };
    if let Some(sandbox) = sandbox {
        worker.watch(sandbox);
    }
    let held = start.held.clone();
    tasks.spawn(async move {
        worker.run(held).await;
        worker.uid
    });
    let (object, leased, held) = (start.object, start.leased, start.held);
    Ok(WorkerHandle { object, entry, inbox: sender, vanished: false, leased, held })
}

impl Worker {
    async fn run(&mut self, held: Option<Failure>) {
        self.step(held.map_or(Event::Tick, |why| Event::Held(Some(why))));
        loop {
            self.settle().await;
            if self.vanished && self.machine.is_finished() && self.tasks.is_empty() {
                self.leave().await;
                return;
            }
            let sleep = self.machine.next_wake().map(|wake| wake.since(self.site.shared.now()).min(MAX_SLEEP));
            let measure = self.gauge.next().filter(|_| self.machine.has_sandbox());
            let measured = tokio::time::sleep_until(measure.unwrap_or_else(Instant::now).into());
            tokio::select! {
                input = self.inbox.recv() => match input {
                    Some(input) => self.input(input),
                    // The agent ends; the containers go on.
                    None => return,
                },
                Some(result) = self.tasks.join_next_with_id() => self.finished(result),
                Some(event) = self.runtime_events.1.recv() => self.runtime(event),
                Some(event) = self.progress.1.recv() => self.step(event),
                () = tokio::time::sleep(sleep.unwrap_or(MAX_SLEEP)), if sleep.is_some() => self.step(Event::Tick),
                () = measured, if measure.is_some() => self.measure(),
            }
        }
    }

    fn step(&mut self, event: Event) {
        let commands = self.machine.step(event, self.site.shared.now());
        for command in commands {
            self.execute(command);
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Desired(object) => match PodView::from_json(&object.value()) {
                Ok(view) => {
                    self.take(&object);
                    self.object = object;
                    self.step(Event::Desired(Box::new(view)));
                }
                Err(error) => tracing::error!(pod = %self.key, %error, "the pod's new version cannot be read"),
            },
            Input::Vanished => {
                self.vanished = true;
                self.site.shared.reporter.forget(&self.key, &self.uid);
                let grace = self.machine.spec().grace;
                self.step(Event::Vanished(grace));
            }
            Input::Evicted(why) => self.step(Event::Evicted(why)),
            Input::Held(why) => self.step(Event::Held(why)),
            Input::Leased(deadline) => self.renew(deadline),
            Input::ImagesChanged => {
                // Other images come and go: a pull that failed waits its time all the same.
                let images = Arc::clone(&self.site.shared.images);
                let names: Vec<_> = self.machine.missing_images().map(str::to_owned).collect();
                self.tasks.spawn(async move { Outcome::Looked(blocking(move || any_here(&images, &names)).await) });
            }
            Input::ConfigChanged => {
                self.step(Event::ConfigChanged);
                if self.machine.has_sandbox() {
                    // Files that containers see now; variables stay until they start again, as in Kubernetes.
                    let site = self.site.clone();
                    self.tasks.spawn(async move { Outcome::Refreshed(site.refresh().await) });
                }
            }
        }
    }

    /// Ephemeral containers come; labels and annotations change, and with them files in which the pod is told of them, and the limits of its
    /// network.
    fn take(&mut self, object: &Object) {
        match object.view::<Pod>() {
            Ok(mut pod) if pod.metadata != self.site.pod.metadata || pod.spec != self.site.pod.spec => {
                let renamed = pod.metadata != self.site.pod.metadata;
                ephemeral::keep(&self.site.pod, &mut pod);
                let before = std::mem::replace(&mut self.site.pod, Arc::new(pod));
                if policy::bandwidth(&before) != policy::bandwidth(&self.site.pod) && self.machine.has_sandbox() {
                    let (site, sandbox) = (self.site.clone(), self.sandbox.clone());
                    self.tasks.spawn(async move { Outcome::Limited(site.limit(sandbox).await) });
                }
                if renamed && tells_itself(&self.site.pod) && self.machine.has_sandbox() {
                    let site = self.site.clone();
                    self.tasks.spawn(async move { Outcome::Refreshed(site.refresh().await) });
                }
            }
            Ok(_) => {}
            Err(error) => tracing::error!(pod = %self.key, %error, "the pod's new version cannot be read"),
        }
    }

    /// Looks whether the pod's claims are there, and how much of the disk the pod takes.
    fn measure(&mut self) {
        let (limits, site) = (self.gauge.begin(), self.site.clone());
        let running = self.machine.record().containers.iter().filter(|(_, one)| one.running_since().is_some());
        let running: Vec<String> = running.map(|(name, _)| name.clone()).collect();
        self.tasks.spawn(async move {
            let looked = blocking(move || {
                let measured = measure(&site.shared.volumes, &site.places, &limits, &running);
                (site.lost_claim(), measured)
            });
            let (lost, measured) = looked.await;
            Outcome::Measured(lost, measured)
        });
    }

    /// Tells the shim, which else ends the pod by itself.
    fn renew(&mut self, deadline: Deadline) {
        let Some(sandbox) = self.sandbox.clone().filter(|_| self.machine.has_sandbox()) else { return };
        self.tasks.spawn(async move {
            match sandbox.renew_lease(deadline).await {
                Ok(true) => Outcome::Nothing,
                Ok(false) => Outcome::LeaseOver,
                Err(error) => {
                    tracing::warn!(pod = sandbox.uid(), error = chain(&error), "a shim cannot be told of a lease");
                    Outcome::Nothing
                }
            }
        });
    }

    fn runtime(&mut self, event: PodEvent) {
        match event {
            PodEvent::Exited(status) => self.observed(vec![status]),
            PodEvent::Resync => {
                let sandbox = self.sandbox.clone();
                self.tasks.spawn(async move { look(sandbox).await });
            }
            PodEvent::ShimGone => {
                self.unwatch();
                self.step(Event::SandboxLost);
            }
        }
    }

    /// The pod has this sandbox now.
    fn watch(&mut self, sandbox: hearth_runtime::Pod) {
        self.unwatch();
        let sender = self.runtime_events.0.clone();
        let watched = sandbox.clone();
        self.sandbox = Some(sandbox);
        let watcher = self.watchers.spawn(async move {
            loop {
                let event = match watched.wait_event().await {
                    Ok(event) => event,
                    Err(error) => {
                        tracing::error!(pod = watched.uid(), error = chain(&error), "a shim cannot be listened to");
                        tokio::time::sleep(RESUBSCRIBE).await;
                        PodEvent::Resync
                    }
                };
                let last = event == PodEvent::ShimGone;
                if sender.send(event).await.is_err() || last {
                    return;
                }
            }
        });
        self.watcher = Some(watcher);
    }

    fn unwatch(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.abort();
        }
        while self.watchers.try_join_next().is_some() {}
        while self.runtime_events.1.try_recv().is_ok() {}
    }

    /// Publishes, writes down and then tells the region what the last steps changed: an agent that is killed in between has told nothing that
    /// the next one does not know.
    async fn settle(&mut self) {
        let snapshot = snapshot_of(&self.machine, self.sandbox.as_ref(), &self.site.pod);
        let mut touched = false;
        self.snapshot.send_if_modified(|old| {
            let changed = old.status != snapshot.status
                || old.ready != snapshot.ready
                || old.stopping != snapshot.stopping
                || old.sandbox.is_some() != snapshot.sandbox.is_some();
            touched = changed || !Arc::ptr_eq(&old.pod, &snapshot.pod);
            *old = snapshot;
            changed
        });
        if touched {
            self.site.shared.pods.touch();
        }
        self.write().await;
        if let Some((status, finished)) = self.report.take() {
            self.site.shared.reporter.status(&self.key, &self.uid, &status, finished);
        }
    }

    async fn write(&mut self) {
        if self.written.as_ref() == Some(self.machine.record()) {
            return;
        }
        let record = self.machine.record().clone();
        // A pod that ran to its end must not run again after a power cut, nor what is started once; all else is found out anew.
        let ended = record.ended.is_some() && self.written.as_ref().is_none_or(|old| old.ended.is_none());
        let durable = ended || self.machine.spent() > self.spent;
        self.spent = self.machine.spent();
        let stored = StoredPod { object: self.object.value(), record: record.clone() };
        let (dir, uid) = (self.site.shared.paths.pods(), self.site.places.uid.clone());
        match blocking(move || stored.write(&dir, &uid, durable)).await {
            Ok(()) => self.written = Some(record),
            Err(error) => {
                tracing::error!(pod = %self.key, error = chain(&error), "the pod's record cannot be written");
                // Tried again with the next change, not in a loop.
                self.written = Some(record);
            }
        }
    }

    /// Nothing is left of the pod, and nobody asks for it any more.
    async fn leave(&mut self) {
        let shared = Arc::clone(&self.site.shared);
        shared.pods.remove(&self.key, &self.uid);
        shared.claims.release(&self.uid);
        shared.reporter.forget(&self.key, &self.uid);
        let places = self.site.places.clone();
        let removed = blocking(move || {
            crate::files::remove(&places.logs())?;
            record::remove(&places.paths.pods(), &places.uid)
        });
        if let Err(error) = removed.await {
            tracing::error!(pod = %self.key, error = chain(&error), "the pod's logs or record cannot be removed");
        }
    }
}
