//! The servers of a simulated region: production stores, each on a disk, a network and a clock that are not.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hearth_raft::{
    RaftConfig, RaftStore, Start,
    disk::{Crash, Fault, MemoryDisk},
};
use hearth_types::group::{Group as _, Server};
use tokio::{sync::Notify, time::sleep};

use super::{
    clock::SimClock,
    dice::Dice,
    network::{Life, Network},
    observed::{Claim, Notebook, Progress},
    trace::Trace,
};

/// How often it is looked how far a server is.
const LOOK: Duration = Duration::from_millis(25);
/// The directory of every store, on the disk of its server.
const DIRECTORY: &str = "/store";

/// The end of a server's life: what it was asked then is never answered.
#[derive(Clone, Default)]
pub struct End(Arc<(AtomicBool, Notify)>);

impl End {
    fn come(&self) {
        self.0.0.store(true, Ordering::SeqCst);
        self.0.1.notify_waiters();
    }

    /// Waits for it.
    pub async fn wait(&self) {
        let mut notified = std::pin::pin!(self.0.1.notified());
        notified.as_mut().enable();
        if !self.0.0.load(Ordering::SeqCst) {
            notified.await;
        }
    }
}

/// A server that runs.
#[derive(Clone)]
pub struct Up {
    /// Its store.
    pub store: Arc<RaftStore>,
    /// Its clock.
    pub clock: Arc<SimClock>,
    /// When it dies.
    pub end: End,
    life: Life,
}

struct Slot {
    life: u64,
    disk: MemoryDisk,
    clock: Arc<SimClock>,
    up: Option<Up>,
    /// It is being opened or closed: nobody else touches it.
    busy: bool,
    /// It never comes back.
    gone: bool,
    /// Its disk fails, or is about to: the server may not start.
    spoiled: bool,
}

/// Sizes and speeds of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a sync takes at most.
    pub slowest_sync: Duration,
    /// See [`hearth_raft::Tuning`].
    pub tuning: hearth_raft::Tuning,
}

/// All servers there ever were.
pub struct Cluster {
    slots: Mutex<BTreeMap<u64, Slot>>,
    dice: Mutex<Dice>,
    settings: Settings,
    /// The servers that belong to the region, once it is healed.
    members: Mutex<Vec<u64>>,
    /// The network between them.
    pub network: Network,
    /// What happens.
    pub trace: Trace,
    /// What is seen.
    pub notebook: Arc<Notebook>,
}

/// Where a server's API would answer.
pub fn address(id: u64) -> String {
    format!("server-{id}:7443")
}

impl Cluster {
    /// A region without servers.
    pub fn new(dice: Dice, settings: Settings, network: Network, trace: Trace, notebook: Arc<Notebook>) -> Arc<Self> {
        Arc::new(Self {
            slots: Mutex::default(),
            dice: Mutex::new(dice),
            settings,
            members: Mutex::default(),
            network,
            trace,
            notebook,
        })
    }

    /// A new machine, which does not run yet; returns its number.
    pub fn add(&self) -> u64 {
        let seed = self.dice.lock().unwrap_or_else(PoisonError::into_inner).number();
        let mut slots = self.slots();
        let id = slots.len() as u64 + 1;
        let disk = MemoryDisk::called_in_place(self.settings.slowest_sync, seed);
        let clock = Arc::new(SimClock::new(self.trace.clone()));
        slots.insert(id, Slot { life: 0, disk, clock, up: None, busy: false, gone: false, spoiled: false });
        id
    }

    /// The servers that run, in order.
    pub fn running(&self) -> Vec<u64> {
        self.slots().iter().filter(|(_, slot)| slot.up.is_some() && !slot.busy).map(|(id, _)| *id).collect()
    }

    /// The servers that are down and may come back, in order.
    pub fn down(&self) -> Vec<u64> {
        self.slots()
            .iter()
            .filter(|(_, slot)| slot.up.is_none() && !slot.busy && !slot.gone)
            .map(|(id, _)| *id)
            .collect()
    }

    /// The servers that are not gone for good.
    pub fn present(&self) -> Vec<u64> {
        self.slots().iter().filter(|(_, slot)| !slot.gone).map(|(id, _)| *id).collect()
    }

    /// A server that runs.
    pub fn up(&self, id: u64) -> Option<Up> {
        self.slots().get(&id).and_then(|slot| slot.up.clone())
    }

    /// The servers that belong to the region and run, in order. Known once it is healed.
    pub fn members(&self) -> Vec<u64> {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner).clone();
        members.into_iter().filter(|id| self.up(*id).is_some()).collect()
    }

    /// Who belongs to the region.
    pub fn set_members(&self, members: Vec<u64>) {
        *self.members.lock().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// The leader, as the servers that run say.
    pub fn leader(&self) -> Option<u64> {
        let leads = |id: &u64| self.up(*id).is_some_and(|up| up.store.leadership().here);
        self.running().into_iter().find(leads)
    }

    /// The disk of a server goes bad.
    pub fn spoil(&self, id: u64, fault: Fault) {
        if let Some(slot) = self.slots().get_mut(&id) {
            slot.spoiled = true;
            slot.disk.inject(fault);
        }
    }

    /// The disk of a server is well again.
    pub fn mend(&self, id: u64) {
        if let Some(slot) = self.slots().get_mut(&id) {
            slot.spoiled = false;
            slot.disk.heal();
        }
    }

    /// The disk of a server.
    pub fn disk(&self, id: u64) -> Option<MemoryDisk> {
        self.slots().get(&id).map(|slot| slot.disk.clone())
    }

    /// The clock of a server.
    pub fn clock(&self, id: u64) -> Option<Arc<SimClock>> {
        self.slots().get(&id).map(|slot| Arc::clone(&slot.clock))
    }

    /// A server never comes back.
    pub fn retire(&self, id: u64) {
        if let Some(slot) = self.slots().get_mut(&id) {
            slot.gone = true;
        }
    }

    /// Starts a server that is down. Where its disk is not well, it may fail, and is down again.
    pub async fn start(self: &Arc<Self>, id: u64) {
        let (life, disk, clock) = {
            let mut slots = self.slots();
            let Some(slot) = slots.get_mut(&id).filter(|slot| slot.up.is_none() && !slot.busy && !slot.gone) else {
                return;
            };
            slot.busy = true;
            slot.life += 1;
            (Life { id, number: slot.life }, slot.disk.clone(), Arc::clone(&slot.clock))
        };
        self.trace.say(format_args!("server {id} starts"));
        let start = if id == 1 { Start::First } else { Start::Joining };
        let mut config = RaftConfig::new(PathBuf::from(DIRECTORY), id, "sim");
        config.address = address(id);
        config.tuning = self.settings.tuning.clone();
        let port = self.network.port(life);
        let registry = prometheus::Registry::new();
        let opened =
            RaftStore::open_group(Arc::new(disk), port, start, config, &registry, Arc::clone(&clock) as _).await;
        let mut slots = self.slots();
        let Some(slot) = slots.get_mut(&id) else { return };
        slot.busy = false;
        match opened {
            Ok(store) => {
                let up = Up { store: Arc::new(store), clock, end: End::default(), life };
                self.network.attach(life, &address(id), up.store.peers());
                slot.up = Some(up.clone());
                drop(slots);
                tokio::spawn(follow(up.clone(), Arc::clone(&self.notebook)));
                tokio::spawn(get_ready(up));
            }
            Err(error) => {
                let spoiled = slot.spoiled;
                drop(slots);
                self.trace.say(format_args!("server {id} does not start: {error}"));
                if spoiled {
                    return;
                }
                self.notebook.note(|seen| seen.troubles.push(format!("server {id} did not start: {error}")));
            }
        }
    }

    /// The power of a server fails, now.
    pub fn crash(&self, id: u64, crash: Crash) {
        let mut slots = self.slots();
        let Some(slot) = slots.get_mut(&id).filter(|slot| !slot.busy) else { return };
        let Some(up) = slot.up.take() else { return };
        self.trace.say(format_args!("server {id} loses power ({crash:?})"));
        let after = slot.disk.after(crash);
        // Whatever still runs of it writes nothing any more.
        slot.disk.inject(Fault::Stop { after: 0 });
        slot.disk = after;
        slot.spoiled = false;
        self.network.detach(id);
        up.end.come();
        drop(slots);
        tokio::spawn(async move {
            let _ = up.store.shutdown().await;
        });
    }

    /// The power of a server whose disk is bad fails, unless it was mended meanwhile, or failed before; whether that was so.
    pub fn crash_spoiled(&self, up: &Up, crash: Crash) -> bool {
        let as_it_was = |slot: &Slot| slot.spoiled && slot.up.as_ref().is_some_and(|now| now.life == up.life);
        let spoiled = self.slots().get(&up.life.id).is_some_and(as_it_was);
        if spoiled {
            self.crash(up.life.id, crash);
        }
        spoiled
    }

    /// Stops a server as an operator does.
    pub async fn stop(&self, id: u64) {
        let up = {
            let mut slots = self.slots();
            let Some(slot) = slots.get_mut(&id).filter(|slot| !slot.busy) else { return };
            let Some(up) = slot.up.take() else { return };
            slot.busy = true;
            up
        };
        self.trace.say(format_args!("server {id} stops"));
        up.end.come();
        let failed = up.store.failure().is_some();
        let stopped = up.store.shutdown().await;
        self.network.detach(id);
        if let Err(error) = stopped
            && !failed
        {
            self.notebook.note(|seen| seen.troubles.push(format!("server {id} did not stop: {error}")));
        }
        // What is left of it lets go of its files.
        drop(up);
        if let Some(slot) = self.slots().get_mut(&id) {
            slot.busy = false;
        }
    }

    /// Asks a server that runs, not the one itself, to admit another.
    pub async fn admit(&self, at: u64, id: u64) -> bool {
        let Some(up) = self.up(at) else { return false };
        let admitted = until_end(&up.end, up.store.admit(Server { id, address: address(id) })).await;
        self.trace.say(format_args!("server {at} was asked to admit {id}: {admitted:?}"));
        matches!(admitted, Some(Ok(())))
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<u64, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What comes of something that is asked of a server; `None` where it dies first.
pub async fn until_end<T>(end: &End, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = end.wait() => None,
        done = work => Some(done),
    }
}

/// Brings a server up to where the region is.
async fn get_ready(up: Up) {
    // Where it fails, somebody will see what it does not do.
    let _ = until_end(&up.end, up.store.ready()).await;
}

/// Notes how far a server is and who leads by its word, for as long as it lives.
async fn follow(up: Up, notebook: Arc<Notebook>) {
    let watch = async {
        loop {
            let leadership = up.store.leadership();
            let (server, life) = (up.life.id, up.life.number);
            let progress = Progress { server, life, revision: up.store.revision().0, term: leadership.term };
            notebook.note(|seen| {
                if seen.progress.iter().rev().find(|one| one.server == server) != Some(&progress) {
                    seen.progress.push(progress);
                }
                if let Some(leader) = &leadership.leader {
                    let claim = Claim { by: server, term: leadership.term, leader: leader.id };
                    if !seen.claims.contains(&claim) {
                        seen.claims.push(claim);
                    }
                }
            });
            sleep(LOOK).await;
        }
    };
    until_end::<()>(&up.end, watch).await;
}
