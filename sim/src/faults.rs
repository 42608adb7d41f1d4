//! What befalls a region, drawn from the seed: power cuts, partitions, bad weather, bad disks, clocks that jump, and operators.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hearth_raft::disk::{Crash, Fault};
use hearth_types::group::Group as _;
use tokio::time::sleep;

use super::{
    cluster::{Cluster, until_end},
    dice::Dice,
    network::Weather,
};

/// Servers there ever were, at most: each costs time to simulate.
const MAX_EVER: usize = 7;
/// How far a clock is set wrong at most: much further than the ten minutes of the region's time for which all requests are remembered.
const CLOCK_JUMP: Duration = Duration::from_hours(2);

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    Crash,
    CrashAll,
    CrashInWrite,
    Restart,
    Isolate,
    OneWay,
    Flapping,
    Split,
    Clock,
    Snapshot,
    Admit,
    Remove,
    Transfer,
    FullDisk,
    BadSync,
    Weather,
}

/// How often each happens, relatively.
const EVENTS: [(Event, u64); 16] = [
    (Event::Crash, 16),
    (Event::CrashAll, 4),
    (Event::CrashInWrite, 10),
    (Event::Restart, 6),
    (Event::Isolate, 10),
    (Event::OneWay, 10),
    (Event::Flapping, 5),
    (Event::Split, 6),
    (Event::Clock, 4),
    (Event::Snapshot, 8),
    (Event::Admit, 5),
    (Event::Remove, 4),
    (Event::Transfer, 6),
    (Event::FullDisk, 4),
    (Event::BadSync, 4),
    (Event::Weather, 5),
];

/// A weather.
pub fn weather(dice: &mut Dice) -> Weather {
    let (slowest, late, lost, doubled) =
        *dice.pick(&[(2, 0, 0, 0), (8, 10, 5, 20), (25, 30, 20, 50), (45, 20, 80, 100)]);
    Weather { delay: Duration::from_micros(200)..Duration::from_millis(slowest), late, lost, doubled }
}

/// Whoever wishes the region ill.
pub struct Faults {
    cluster: Arc<Cluster>,
    dice: Dice,
    /// Operators change the membership one at a time.
    changing: Arc<AtomicBool>,
}

impl Faults {
    /// Nothing happens yet.
    pub fn new(cluster: Arc<Cluster>, dice: Dice) -> Self {
        Self { cluster, dice, changing: Arc::default() }
    }

    /// Lets things happen for a time.
    pub async fn rage(mut self, events: u64) {
        for _ in 0..events {
            let pause = self.dice.between(Duration::from_millis(50)..Duration::from_millis(900));
            sleep(pause).await;
            let total = EVENTS.iter().map(|(_, weight)| weight).sum();
            let mut throw = self.dice.below(total);
            let event = EVENTS.iter().find(|(_, weight)| {
                let hit = throw < *weight;
                throw = throw.saturating_sub(*weight);
                hit
            });
            if let Some((event, _)) = event {
                self.happen(*event);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let running = self.cluster.running();
        let Some(victim) = self.victim(&running) else { return };
        let others: Vec<u64> = running.iter().copied().filter(|id| *id != victim).collect();
        let length = self.dice.between(Duration::from_millis(50)..Duration::from_millis(2_500));
        let (cluster, network) = (Arc::clone(&self.cluster), self.cluster.network.clone());
        let say = |what: &str| cluster.trace.say(format_args!("{what} ({} ms)", length.as_millis()));
        match event {
            Event::Crash => self.crash(victim, length),
            Event::CrashAll => {
                for id in running {
                    let length = self.dice.between(Duration::from_millis(1)..length.max(Duration::from_millis(2)));
                    self.crash(id, length);
                }
            }
            Event::CrashInWrite => self.crash_in_write(victim, length),
            Event::Restart => drop(tokio::spawn(async move {
                cluster.stop(victim).await;
                sleep(length / 4).await;
                cluster.start(victim).await;
            })),
            Event::Isolate => {
                say(&format!("server {victim} is cut off"));
                network.split(&[victim], &others);
                self.heal_after(length);
            }
            Event::OneWay => {
                let hears = self.dice.chance(500);
                say(&format!("server {victim} {}", if hears { "is not heard" } else { "hears nothing" }));
                let some = if self.dice.chance(500) { others.len() } else { 1 };
                for other in others.iter().take(some) {
                    let (from, to) = if hears { (victim, *other) } else { (*other, victim) };
                    network.cut(from, to);
                }
                self.heal_after(length);
            }
            Event::Flapping => {
                say(&format!("the links of server {victim} flap"));
                let period = self.dice.between(Duration::from_millis(100)..Duration::from_millis(700));
                for other in others {
                    let broken = self.dice.between(Duration::ZERO..period);
                    network.flap(victim, other, period, broken);
                    if self.dice.chance(500) {
                        network.flap(other, victim, period, broken);
                    }
                }
                self.heal_after(length * 2);
            }
            Event::Split => {
                let half: Vec<u64> = running.iter().copied().filter(|_| self.dice.chance(500)).collect();
                let rest: Vec<u64> = running.iter().copied().filter(|id| !half.contains(id)).collect();
                say(&format!("{half:?} and {rest:?} are apart"));
                network.split(&half, &rest);
                self.heal_after(length);
            }
            Event::Clock => {
                let jump = self.dice.below(2 * CLOCK_JUMP.as_millis() as u64) as i64 - CLOCK_JUMP.as_millis() as i64;
                cluster.trace.say(format_args!("the clock of server {victim} is set {jump} ms wrong"));
                if let Some(clock) = cluster.clock(victim) {
                    clock.set_ahead(jump);
                }
            }
            Event::Snapshot => drop(tokio::spawn(async move {
                if let Some(up) = cluster.up(victim) {
                    cluster.trace.say(format_args!("server {victim} is to take a snapshot"));
                    let _ = until_end(&up.end, up.store.request_snapshot()).await;
                }
            })),
            Event::Admit if cluster.present().len() < 5 => self.admit(),
            Event::Remove if cluster.present().len() > 3 => self.remove(victim),
            Event::Admit | Event::Remove => {}
            Event::Transfer => {
                let to = others.first().copied().filter(|_| self.dice.chance(500));
                tokio::spawn(async move {
                    let Some(up) = cluster.up(victim) else { return };
                    let done = until_end(&up.end, up.store.transfer_leader(to)).await;
                    cluster.trace.say(format_args!("server {victim} was asked to have {to:?} lead: {done:?}"));
                });
            }
            Event::FullDisk => {
                let capacity = self.dice.below(150_000) as usize;
                say(&format!("the disk of server {victim} has {capacity} bytes"));
                self.spoil(victim, Fault::Full { capacity }, length);
            }
            Event::BadSync => {
                let after = self.dice.below(20) as usize;
                say(&format!("after {after} more, a sync of server {victim} fails"));
                self.spoil(victim, Fault::Sync { after }, length);
            }
            Event::Weather => {
                let weather = weather(&mut self.dice);
                cluster.trace.say(format_args!("the weather changes: {weather:?}"));
                network.set_weather(weather);
            }
        }
    }

    /// A server; half of the time the leader.
    fn victim(&mut self, running: &[u64]) -> Option<u64> {
        let leader = self.cluster.leader().filter(|_| self.dice.chance(500));
        leader.or_else(|| (!running.is_empty()).then(|| *self.dice.pick(running)))
    }

    fn crash_kind(&mut self) -> Crash {
        match self.dice.below(4) {
            0 => Crash::KeepAll,
            1 => Crash::Some(self.dice.number()),
            _ => Crash::LoseAll,
        }
    }

    fn crash(&mut self, id: u64, downtime: Duration) {
        let (cluster, crash) = (Arc::clone(&self.cluster), self.crash_kind());
        cluster.crash(id, crash);
        tokio::spawn(async move {
            sleep(downtime).await;
            cluster.start(id).await;
        });
    }

    /// The power fails between two changes of the disk.
    fn crash_in_write(&mut self, id: u64, downtime: Duration) {
        let (cluster, crash) = (Arc::clone(&self.cluster), self.crash_kind());
        let Some(disk) = cluster.disk(id) else { return };
        let after = disk.changes() + self.dice.below(30) as usize;
        cluster.spoil(id, Fault::Stop { after });
        tokio::spawn(async move {
            // It notices, or time is up.
            let Some(up) = cluster.up(id) else { return };
            let _ = until_end(&up.end, tokio::time::timeout(downtime, up.store.failed())).await;
            cluster.crash_spoiled(&up, crash);
            sleep(downtime / 2).await;
            cluster.start(id).await;
        });
    }

    /// A disk goes bad; some time after its server noticed, somebody mends it and starts the server again.
    fn spoil(&mut self, id: u64, fault: Fault, length: Duration) {
        let (cluster, crash) = (Arc::clone(&self.cluster), self.crash_kind());
        cluster.spoil(id, fault);
        tokio::spawn(async move {
            let Some(up) = cluster.up(id) else { return };
            let _ = until_end(&up.end, tokio::time::timeout(length * 2, up.store.failed())).await;
            sleep(length).await;
            if up.store.failure().is_some() && cluster.crash_spoiled(&up, crash) {
                cluster.trace.say(format_args!("server {id} had failed, and its disk is mended"));
            }
            cluster.mend(id);
            cluster.start(id).await;
        });
    }

    fn heal_after(&self, length: Duration) {
        let (network, trace) = (self.cluster.network.clone(), self.cluster.trace.clone());
        tokio::spawn(async move {
            sleep(length).await;
            trace.say(format_args!("all links are mended"));
            network.heal();
        });
    }

    fn admit(&mut self) {
        if self.cluster.present().len() >= MAX_EVER || self.changing.swap(true, Ordering::SeqCst) {
            return;
        }
        let (cluster, changing) = (Arc::clone(&self.cluster), Arc::clone(&self.changing));
        let id = cluster.add();
        let at = *self.dice.pick(&cluster.running());
        tokio::spawn(async move {
            cluster.start(id).await;
            cluster.admit(at, id).await;
            changing.store(false, Ordering::SeqCst);
        });
    }

    fn remove(&mut self, id: u64) {
        if self.changing.swap(true, Ordering::SeqCst) {
            return;
        }
        let (cluster, changing) = (Arc::clone(&self.cluster), Arc::clone(&self.changing));
        let at = *self.dice.pick(&cluster.running());
        let lingers = self.dice.between(Duration::ZERO..Duration::from_secs(2));
        tokio::spawn(async move {
            if let Some(up) = cluster.up(at) {
                let removed = until_end(&up.end, up.store.remove(id)).await;
                cluster.trace.say(format_args!("server {at} was asked to remove {id}: {removed:?}"));
                if matches!(removed, Some(Ok(()))) {
                    // It does not know yet, and may stand for election.
                    sleep(lingers).await;
                    cluster.retire(id);
                    cluster.crash(id, Crash::LoseAll);
                }
            }
            changing.store(false, Ordering::SeqCst);
        });
    }
}
