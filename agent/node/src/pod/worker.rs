//! The loop of one pod.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_image::{Hold, Image};
use hearth_network::PodNetwork;
use hearth_pod::{Command, Event, Failure, ImageFacts, PodMachine, PodView, Record, StartFailure};
use hearth_runtime::{ContainerState, ContainerStatus, PodEvent};
use hearth_types::{Object, ObjectKey, Uid, kinds::Pod};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};

use super::{
    begin::{bury, check_names, found_of},
    convert::{broken, snapshot_of},
    execute::{Given, Site, VolumePaths, addresses},
    image::any_here,
    measure::{Gauge, Measured, measure},
    message::{Ended, LastWords},
    probe::Subject,
    record::{self, StoredPod},
    uses::tells_itself,
};
use crate::{
    container::{Places, stop_signal},
    files::chain,
    shared::{PodEntry, Shared, Snapshot, blocking, timestamp},
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
    /// ConfigMaps, Secrets or claims changed that the pod may use.
    ConfigChanged,
}

/// A worker that runs.
pub(crate) struct WorkerHandle {
    pub(crate) object: Object,
    pub(crate) entry: Arc<PodEntry>,
    pub(crate) inbox: mpsc::Sender<Input>,
    pub(crate) vanished: bool,
}

/// What a worker begins with.
pub(crate) struct Start {
    pub(crate) object: Object,
    pub(crate) record: Option<Record>,
    pub(crate) sandbox: Option<hearth_runtime::Pod>,
    pub(crate) dead: Option<Vec<ContainerStatus>>,
}

/// Result of a command.
enum Outcome {
    Nothing,
    Event(Event),
    Image(String, Result<Box<(Image, Hold)>, Failure>),
    /// Images came or went: whether one is here that the pod waits for.
    Looked(bool),
    Volumes(Result<VolumePaths, Failure>),
    Refreshed(Result<VolumePaths, Failure>),
    Measured(Option<Failure>, Measured),
    Network(Result<PodNetwork, Failure>),
    Sandbox(Result<hearth_runtime::Pod, Failure>),
    Started(String, u32, Result<ContainerStatus, StartFailure>),
    Status(Vec<ContainerStatus>),
    Ended(Vec<Ended>),
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
    let (snapshot, watched) = watch::channel(snapshot_of(&machine, sandbox.as_ref()));
    let entry = Arc::new(PodEntry {
        key: start.object.key().clone(),
        uid: start.object.uid().clone(),
        pod: Arc::clone(&pod),
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
        vanished: false,
    };
    if let Some(sandbox) = sandbox {
        worker.watch(sandbox);
    }
    tasks.spawn(async move {
        worker.run().await;
        worker.uid
    });
    Ok(WorkerHandle { object: start.object, entry, inbox: sender, vanished: false })
}

impl Worker {
    async fn run(&mut self) {
        self.step(Event::Tick);
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
                    self.tell_itself(&object);
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

    /// Labels and annotations change, and files follow in which the pod is told of them.
    fn tell_itself(&mut self, object: &Object) {
        match object.view::<Pod>() {
            Ok(pod) if pod.metadata != self.site.pod.metadata => {
                self.site.pod = Arc::new(pod);
                if tells_itself(&self.site.pod) && self.machine.has_sandbox() {
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
        self.tasks.spawn(async move {
            let looked = blocking(move || (site.lost_claim(), measure(&site.shared.volumes, site.uid(), &limits)));
            let (lost, measured) = looked.await;
            Outcome::Measured(lost, measured)
        });
    }

    fn execute(&mut self, command: Command) {
        let site = self.site.clone();
        let sandbox = self.sandbox.clone();
        let kept = command.clone();
        let task = match command {
            Command::ReportStatus { status, finished } => {
                site.shared.reporter.status(&self.key, &self.uid, &status, finished);
                return;
            }
            Command::Event { kind, reason, message } => {
                tracing::info!(pod = %self.key, reason, message, "event");
                let now = site.shared.now();
                site.shared.reporter.event((&self.key, &self.uid), kind.as_str(), &reason, &message, now);
                return;
            }
            Command::EnsureImage { container } => {
                let sender = self.progress.0.clone();
                self.tasks.spawn(async move {
                    let tell = |message| {
                        // The next one says more.
                        let _ = sender.try_send(Event::ImageProgress { container: container.clone(), message });
                    };
                    let image = site.image(&container, tell).await.map(Box::new);
                    Outcome::Image(container, image)
                })
            }
            Command::EnsureVolumes => {
                let runs = sandbox.is_some();
                self.tasks.spawn(async move { Outcome::Volumes(site.volumes(runs).await) })
            }
            Command::AttachNetwork => {
                self.tasks.spawn(async move { Outcome::Network(site.network(sandbox.as_ref()).await) })
            }
            Command::CreateSandbox => {
                let network = self.network.take();
                self.tasks.spawn(async move {
                    Outcome::Sandbox(match network {
                        Some(network) => site.sandbox(network).await,
                        None => Err(Failure::new("FailedCreatePodSandBox", "the pod's network is gone")),
                    })
                })
            }
            Command::StartContainer { container, attempt } => {
                let image = self.images.get(&container).map(|(image, _)| image.clone());
                let given = Given { volumes: self.volumes.clone(), addresses: self.machine.record().addresses.clone() };
                self.tasks.spawn(async move {
                    let started = site.start(sandbox, &container, attempt, image, given).await;
                    Outcome::Started(container, attempt, started)
                })
            }
            Command::PostStart { container, attempt } => {
                let subject = self.subject(&container);
                self.inside(async move {
                    let result = subject.post_start().await;
                    Outcome::Event(Event::PostStarted { container, attempt, result })
                })
            }
            Command::Probe { container, attempt, kind } => {
                let subject = self.subject(&container);
                self.inside(async move {
                    let answer = subject.probe(kind).await;
                    Outcome::Event(Event::Probed { container, attempt, kind, answer })
                })
            }
            Command::PreStop { container, attempt, bound } => {
                let subject = self.subject(&container);
                self.inside(async move {
                    let result = subject.pre_stop(bound).await;
                    Outcome::Event(Event::PreStopped { container, attempt, result })
                })
            }
            Command::Signal { container } => {
                let image = self.images.get(&container).map(|(image, _)| image.clone());
                let id = self.machine.record().containers.get(&container).and_then(|one| one.image.clone());
                self.tasks.spawn(async move {
                    // An adopted container's image was not looked up yet.
                    let image = match (image, id) {
                        (None, Some(facts)) => site.image_by_id(facts.id).await,
                        (image, _) => image,
                    };
                    signal(sandbox, &container, stop_signal(image.as_ref())).await
                })
            }
            Command::Kill { container } => self.tasks.spawn(async move { signal(sandbox, &container, SIGKILL).await }),
            Command::RemoveContainer { container } => self.tasks.spawn(async move {
                let result = site.remove(sandbox, &container).await;
                Outcome::Event(Event::Removed { container, result })
            }),
            Command::DestroySandbox => {
                self.unwatch();
                self.leave_containers();
                self.tasks.spawn(async move { Outcome::Event(Event::SandboxDestroyed(site.destroy(sandbox).await)) })
            }
            Command::TearDown => {
                self.unwatch();
                self.leave_containers();
                self.network = None;
                self.tasks.spawn(async move { Outcome::Event(Event::TornDown(site.tear_down(sandbox).await)) })
            }
        };
        self.commands.insert(task.id(), kept);
    }

    fn subject(&self, container: &str) -> Subject {
        let addresses = self.machine.record().addresses.as_ref();
        Subject {
            site: self.site.clone(),
            sandbox: self.sandbox.clone(),
            address: addresses.and_then(|all| all.pod.first()?.parse().ok()),
            container: container.to_owned(),
        }
    }

    /// Begins what asks or does something in a container.
    fn inside(&mut self, work: impl Future<Output = Outcome> + Send + 'static) -> AbortHandle {
        let task = self.tasks.spawn(work);
        self.inside.insert(task.id(), task.clone());
        task
    }

    fn leave_containers(&mut self) {
        self.inside.values().for_each(AbortHandle::abort);
    }

    fn finished(&mut self, result: Result<(tokio::task::Id, Outcome), tokio::task::JoinError>) {
        let outcome = match result {
            Ok((id, outcome)) => {
                self.commands.remove(&id);
                self.inside.remove(&id);
                outcome
            }
            Err(error) => {
                let command = self.commands.remove(&error.id());
                self.inside.remove(&error.id());
                if error.is_cancelled() {
                    // Its sandbox goes, and the machine waits for nothing from inside.
                    return;
                }
                tracing::error!(pod = %self.key, ?command, %error, "a step of the agent broke; it is tried again");
                match command.and_then(|command| broken(&command)) {
                    Some(event) => Outcome::Event(event),
                    None => return,
                }
            }
        };
        match outcome {
            Outcome::Nothing => {}
            Outcome::Event(event) => {
                if matches!(event, Event::SandboxDestroyed(Ok(())) | Event::TornDown(Ok(()))) {
                    self.sandbox = None;
                }
                if matches!(event, Event::TornDown(Ok(()))) {
                    self.site.shared.claims.release(&self.uid);
                }
                self.step(event);
            }
            Outcome::Looked(is_here) => {
                if is_here {
                    self.step(Event::ImagesChanged);
                }
            }
            Outcome::Image(container, result) => {
                let result = result.map(|found| {
                    let (image, hold) = *found;
                    let (reference, id) = (image.reference.clone(), image.manifest_digest.to_string());
                    self.images.insert(container.clone(), (image, hold));
                    ImageFacts { reference, id }
                });
                self.step(Event::Image { container, result });
            }
            Outcome::Volumes(result) => {
                let result = result.map(|volumes| self.volumes = volumes);
                self.step(Event::Volumes(result));
            }
            Outcome::Refreshed(Ok(volumes)) => self.volumes = volumes,
            Outcome::Refreshed(Err(failure)) => {
                tracing::warn!(pod = %self.key, failure.message, "the pod's volumes keep their old content");
            }
            Outcome::Measured(lost, measured) => {
                self.gauge.ended(&measured);
                if let Some(why) = lost {
                    self.step(Event::VolumesLost(why));
                }
                if let Some(why) = measured.too_much {
                    self.step(Event::Evicted(why));
                }
            }
            Outcome::Network(result) => {
                let result = result.map(|network| {
                    let found = addresses(&network.addresses);
                    // Of a living sandbox the namespace is the shim's.
                    self.network = self.sandbox.is_none().then_some(network);
                    found
                });
                self.step(Event::Network(result));
            }
            Outcome::Sandbox(result) => {
                let result = result.map(|sandbox| self.watch(sandbox));
                self.step(Event::Sandbox(result));
            }
            Outcome::Started(container, attempt, result) => {
                let ended = result.as_ref().ok().cloned();
                let result = result.map(|status| match status.state {
                    ContainerState::Running { started_at, .. } | ContainerState::Exited { started_at, .. } => {
                        timestamp(started_at)
                    }
                });
                self.step(Event::Started { container, attempt, result });
                self.observed(ended.into_iter().collect());
            }
            Outcome::Status(list) => self.observed(list),
            Outcome::Ended(list) => {
                for Ended { container, attempt, exit } in list {
                    self.step(Event::Exited { container, attempt, exit });
                }
            }
        }
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

    /// Tells the machine of what ended, once it is read what each said last.
    fn observed(&mut self, mut list: Vec<ContainerStatus>) {
        let known = &self.machine.record().containers;
        let is_news = |one: &ContainerStatus| {
            let known = known.get(&one.name).is_some_and(|had| had.attempt == one.attempt && had.is_exited());
            matches!(one.state, ContainerState::Exited { .. }) && !known
        };
        list.retain(is_news);
        if !list.is_empty() {
            let words = LastWords { pod: Arc::clone(&self.site.pod), places: self.site.places.clone() };
            self.tasks.spawn(async move { Outcome::Ended(blocking(move || words.of_ended(list)).await) });
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

    /// Publishes and writes down what the last steps changed.
    async fn settle(&mut self) {
        let snapshot = snapshot_of(&self.machine, self.sandbox.as_ref());
        self.snapshot.send_if_modified(|old| {
            let changed = old.status != snapshot.status
                || old.ready != snapshot.ready
                || old.stopping != snapshot.stopping
                || old.sandbox.is_some() != snapshot.sandbox.is_some();
            *old = snapshot;
            changed
        });
        if self.written.as_ref() == Some(self.machine.record()) {
            return;
        }
        let record = self.machine.record().clone();
        // A pod that ran to its end must not run again after a power cut; all else is found out anew.
        let durable = record.ended.is_some() && self.written.as_ref().is_none_or(|old| old.ended.is_none());
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

async fn signal(sandbox: Option<hearth_runtime::Pod>, container: &str, number: i32) -> Outcome {
    let Some(pod) = &sandbox else { return Outcome::Nothing };
    match pod.signal(container, number).await {
        Ok(()) => Outcome::Nothing,
        // It has ended already: look, in case its end was missed.
        Err(_) => look(sandbox).await,
    }
}

async fn look(sandbox: Option<hearth_runtime::Pod>) -> Outcome {
    let Some(sandbox) = sandbox else { return Outcome::Nothing };
    match sandbox.status().await {
        Ok(list) => Outcome::Status(list),
        Err(_) => Outcome::Nothing,
    }
}
