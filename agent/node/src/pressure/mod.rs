//! What this device runs short of, and what is done about it: the kubelet's eviction manager. What pods can be without goes first, then one
//! pod after the other, as [`hearth_pod::pressure`] decides; the region hears of it, so that it places nothing here meanwhile.

mod look;
mod settings;
mod taken;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hearth_pod::{
    Failure,
    pressure::{Monitor, Outlook, Pressure, Resource, Settings, Shortage, Signal},
};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    Paths, desired,
    files::chain,
    house, logs,
    manager::Manager,
    shared::{Shared, blocking, container_statuses},
};
use look::{Instance, look};
use settings::Source;
use taken::{Walked, candidates, is_gone};

/// How often it is looked, as the kubelet's `evictionMonitoringPeriod`: a few system calls.
const EVERY: Duration = Duration::from_secs(10);
/// How often at the start, until it is known which pods there are, and whom to tell of.
const SOON: Duration = Duration::from_secs(1);
/// How often what goes without a pod is looked for, while something stays short: it walks through all images.
const RECLAIM: Duration = Duration::from_mins(1);

/// Bytes of a data directory's file system that pods can count on. Blocks for a moment.
pub(crate) fn allocatable(paths: &Paths, capacity: u64) -> u64 {
    // What is wrong with the file is told by who watches.
    let settings = settings::read(&paths.eviction()).unwrap_or_default();
    capacity - settings.threshold(Signal::NodefsAvailable, capacity).min(capacity)
}

/// Watches for as long as the agent runs.
pub(crate) async fn run(shared: Arc<Shared>, manager: Manager) {
    let source = Arc::new(Mutex::new(Source::new(shared.paths.eviction())));
    let (monitor, walked) = (Monitor::default(), Walked::default());
    let mut keeper =
        Keeper { shared, manager, source, monitor, walked, reclaimed: None, short: BTreeSet::new(), stuck: false };
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if keeper.shared.knows_its_pods() {
            keeper.once().await;
        }
        if !keeper.shared.knows_its_pods() || desired::device(&keeper.shared.objects()).is_none() {
            tick.reset_after(SOON);
        }
    }
}

struct Keeper {
    shared: Arc<Shared>,
    manager: Manager,
    source: Arc<Mutex<Source>>,
    monitor: Monitor,
    walked: Walked,
    /// When what goes without a pod was looked for last.
    reclaimed: Option<Instant>,
    /// What was short when it was looked last.
    short: BTreeSet<Signal>,
    /// Nobody was left to evict, and that was told.
    stuck: bool,
}

impl Keeper {
    async fn once(&mut self) {
        let source = Arc::clone(&self.source);
        let settings = blocking(move || source.lock().unwrap_or_else(PoisonError::into_inner).get().clone()).await;
        let mut outlook = self.look(&settings).await;
        self.report(&outlook);
        self.tell(&outlook);
        let mut busy = false;
        if let Some(missing) = missing_room(&outlook) {
            let shared = Arc::clone(&self.shared);
            busy = blocking(move || frees_room(&shared)).await;
            if self.reclaimed.is_none_or(|at| at.elapsed() >= RECLAIM) {
                self.reclaimed = Some(Instant::now());
                self.reclaim(missing).await;
            }
            outlook = self.look(&settings).await;
        }
        if outlook.short.is_empty() {
            self.reclaimed = None;
            self.stuck = false;
            return;
        }
        if busy {
            // What the last one left may be large, and takes its time to be deleted.
            outlook.short.retain(|short| short.signal.pressure() != Pressure::Disk);
        }
        self.evict(&outlook).await;
    }

    async fn look(&mut self, settings: &Settings) -> Outlook {
        let (paths, runtime) = (self.shared.paths.clone(), self.shared.runtime.clone());
        let seen = blocking(move || {
            let working_set = runtime.usage().working_set_bytes;
            look(&paths, Instance { limit: runtime.memory_limit(), working_set })
        });
        self.monitor.observe(settings, &seen.await, self.shared.now())
    }

    /// Tells the region which conditions hold.
    fn report(&self, outlook: &Outlook) {
        let conditions = Pressure::ALL.map(|pressure| {
            let holds = outlook.pressure.contains(&pressure);
            let (name, reason, message) = pressure.words(holds);
            json!({"type": name, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message})
        });
        self.shared.tell_of_device("conditions", json!(conditions));
    }

    /// Tells what has become short, once.
    fn tell(&mut self, outlook: &Outlook) {
        let objects = self.shared.objects();
        for short in outlook.short.iter().filter(|short| !self.short.contains(&short.signal)) {
            let (signal, resource) = (short.signal.as_str(), short.signal.resource().as_str());
            tracing::warn!(signal, threshold = short.threshold, available = short.available, "this device runs short");
            if let Some(device) = desired::device(&objects) {
                let text = format!("Attempting to reclaim {resource}");
                let (about, now) = ((device.key(), device.uid()), self.shared.now());
                self.shared.reporter.event(about, "Warning", "EvictionThresholdMet", &text, now);
            }
        }
        self.short = outlook.short.iter().map(|short| short.signal).collect();
    }

    /// Frees what no pod misses: what ended containers left, and images that nobody uses, of these `missing` bytes.
    async fn reclaim(&self, missing: u64) {
        let (shared, in_use) = (Arc::clone(&self.shared), house::in_use(&self.shared));
        blocking(move || {
            leftovers(&shared);
            match shared.images.make_room(missing, &in_use) {
                Ok(Some(garbage)) if garbage.bytes > 0 => tracing::info!(?garbage, "removed images to make room"),
                Ok(_) => {}
                Err(error) => tracing::error!(error = chain(&error), "images that nothing uses cannot be removed"),
            }
        })
        .await;
    }

    /// Ends one pod at most.
    async fn evict(&mut self, outlook: &Outlook) {
        for short in &outlook.short {
            let pods = candidates(&self.shared, &mut self.walked, short.signal.resource()).await;
            let Some(eviction) = self.monitor.choose(short, &pods, self.shared.now()) else { continue };
            tracing::warn!(uid = eviction.uid, why = eviction.message, "a pod is evicted");
            self.shared.metrics.evictions.with_label_values(&[short.signal.as_str()]).inc();
            self.manager.evict(&eviction.uid.as_str().into(), Failure::new("Evicted", eviction.message)).await;
            self.stuck = false;
            return;
        }
        if !self.stuck && !outlook.short.is_empty() {
            self.stuck = true;
            let short: Vec<_> = outlook.short.iter().map(|short| short.signal.as_str()).collect();
            tracing::warn!(
                ?short,
                "this device runs short, and no pod of it takes enough for its end to help, or one is ending"
            );
        }
    }
}

/// Bytes that are to be freed on disks, where one is short: all that there are where inodes are, since nobody knows what a file takes.
fn missing_room(outlook: &Outlook) -> Option<u64> {
    let of = |short: &Shortage| match short.signal.resource() {
        Resource::Memory => None,
        Resource::EphemeralStorage => Some(short.missing),
        Resource::Inodes => Some(u64::MAX),
    };
    outlook.short.iter().filter_map(of).max()
}

/// Removes what was deleted, or says that somebody is at it, so that there will be more room than there is now. Blocks.
fn frees_room(shared: &Shared) -> bool {
    match shared.volumes.empty_trash() {
        Ok(()) => shared.volumes.has_trash().unwrap_or(false),
        Err(error) => {
            tracing::error!(error = chain(&error), "deleted data cannot be removed");
            false
        }
    }
}

/// Removes what ended containers left: the logs of pods that ended, and those of attempts before. Blocks.
fn leftovers(shared: &Shared) {
    for pod in shared.pods.all() {
        let logs = pod.places.logs();
        if is_gone(&pod) {
            if let Err(error) = crate::files::remove(&logs) {
                tracing::warn!(pod = %pod.key, error = chain(&error), "the logs of a pod that ended cannot be removed");
            }
            continue;
        }
        let status = pod.snapshot.borrow().status.clone();
        for one in container_statuses(&status) {
            let attempt = one["restartCount"].as_u64().and_then(|attempt| u32::try_from(attempt).ok());
            if let (Some(name), Some(attempt)) = (one["name"].as_str(), attempt) {
                logs::keep_newest(&logs.join(name), attempt);
            }
        }
    }
}
