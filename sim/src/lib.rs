//! Seeded simulation of a region's servers: the production log, snapshots, state machine, watches and Raft, in virtual time on one thread,
//! over a disk, a network and clocks that fail as the seed says.
//!
//! | module | what it is for |
//! |---|---|
//! | [`dice`] | all chance |
//! | [`trace`] | what happened, to read and to compare |
//! | [`network`], [`clock`] | what the servers stand on, beside `hearth_raft::disk::MemoryDisk` |
//! | [`cluster`] | the servers: start, stop, lose power |
//! | [`workload`] | clients and watchers |
//! | [`faults`] | what befalls them |
//! | [`observed`], [`invariants`] | what was seen, and what must hold of it |
//!
//! # Flow
//! A group of three or five is made; clients and watchers begin; faults rage; then everything is healed, all power fails once more in half of the
//! runs, and the invariants judge. `make sim SEED=n` runs one again and prints its trace.

pub mod clock;
pub mod cluster;
pub mod dice;
pub mod faults;
pub mod history;
pub mod invariants;
pub mod network;
pub mod observed;
pub mod trace;
pub mod workload;

use std::{
    cell::RefCell,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    panic,
    sync::{Arc, Once, atomic::Ordering},
    time::Duration,
};

use hearth_raft::{Keys, Owner, TAIL_BYTES, Tuning, disk::Crash};
use hearth_types::{Timestamp, group::Group as _};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use self::{
    cluster::{Cluster, Settings, until_end},
    dice::Dice,
    faults::Faults,
    network::{Network, Weather},
    observed::{Final, Notebook, Observed, Watched},
    trace::Trace,
    workload::Workload,
};

/// The seeds that CI runs, from 0 on: a known bug has to be found within them.
pub const CI_RUNS: u64 = 240;

/// How long a healed region may take until every server is ready and equal, in virtual time.
const RECOVERY: Duration = Duration::from_mins(2);
/// How long the first servers may take to form a group.
const FORMING: Duration = Duration::from_secs(30);
/// How often a state that nothing announces is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// What each watcher watches.
const WATCHERS: [&str; 3] = ["", "a/", ""];
/// The client that reads at the end.
const READER: u64 = 1_000;

/// What a run came to.
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What must hold and did not.
    pub violations: Vec<String>,
    /// What happened.
    pub trace: Vec<String>,
    /// Tells it from every other run.
    pub hash: u64,
    /// What was seen.
    pub observed: Observed,
}

thread_local! {
    /// The panics of the simulation on this thread; `None` while there is none.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// A panic in a task of a store is a finding, not noise.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let caught = PANICS.with_borrow_mut(|panics| {
                let caught = panics.as_mut().map(|panics| panics.push(info.to_string()));
                caught.is_some()
            });
            if !caught {
                before(info);
            }
        }));
    });
}

/// The same with a known bug in every store.
///
/// # Errors
/// As [`run`].
#[cfg(feature = "sabotage")]
pub fn run_with(bug: hearth_raft::sabotage::Bug, seed: u64) -> std::io::Result<Report> {
    hearth_raft::sabotage::put_back(Some(bug));
    let report = run(seed);
    hearth_raft::sabotage::put_back(None);
    report
}

/// Runs the simulation that a seed stands for. Everything that it does follows from it.
///
/// # Errors
/// Where the runtime cannot be made.
pub fn run(seed: u64) -> std::io::Result<Report> {
    catch_panics();
    PANICS.set(Some(Vec::new()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let mut report = runtime.block_on(simulate(seed));
    drop(runtime);
    let panics = PANICS.take().unwrap_or_default();
    report.observed.troubles.extend(panics);
    report.violations = invariants::violations(&report.observed);
    Ok(report)
}

async fn simulate(seed: u64) -> Report {
    let mut dice = Dice::new(seed);
    hearth_raft::runtime::seed(dice.number());
    let (trace, notebook) = (Trace::begin(), Arc::new(Notebook::default()));
    let network = Network::new(dice.fork(), Weather::fair(), trace.clone());
    let settings = settings(&mut dice);
    trace.say(format_args!("seed {seed}: {settings:?}"));
    let cluster = Cluster::new(dice.fork(), settings, network, trace.clone(), Arc::clone(&notebook));
    let servers = *dice.pick(&[3, 3, 3, 5]);
    if timeout(FORMING, form(&cluster, servers)).await.is_err() {
        notebook.note(|seen| seen.troubles.push("the first servers formed no group".into()));
    } else {
        play(&cluster, &mut dice).await;
    }
    let (hash, observed) = (trace.hash(), notebook.read());
    Report { seed, violations: Vec::new(), trace: trace.lines(), hash, observed }
}

fn settings(dice: &mut Dice) -> Settings {
    let tuning = Tuning {
        segment_bytes: *dice.pick(&[2_048, 8_192, 65_536]),
        tail_bytes: *dice.pick(&[0, 1_000, TAIL_BYTES]),
        snapshot_log_bytes: *dice.pick(&[16 << 10, 1 << 20]),
        snapshot_log_entries: *dice.pick(&[20, 60, 1_000]),
        entries_kept: *dice.pick(&[0, 2, 50]),
        bookmark_interval: Duration::from_millis(200),
        snapshot_retry: Duration::from_millis(200)..Duration::from_secs(1),
        ..Tuning::default()
    };
    Settings {
        slowest_sync: *dice.pick(&[Duration::from_micros(500), Duration::from_millis(5), Duration::from_millis(30)]),
        tuning,
    }
}

/// Makes the group that the region begins with.
async fn form(cluster: &Arc<Cluster>, servers: u64) {
    let first = cluster.add();
    cluster.start(first).await;
    for _ in 1..servers {
        let id = cluster.add();
        cluster.start(id).await;
        while !cluster.admit(first, id).await {
            sleep(LOOK).await;
        }
    }
}

async fn play(cluster: &Arc<Cluster>, dice: &mut Dice) {
    let workload = Workload::new(Arc::clone(cluster), *dice.pick(&[0, 0, 700]));
    cluster.notebook.note(|seen| {
        seen.watches = WATCHERS.map(|prefix| Watched { prefix: prefix.into(), sights: Vec::new() }).into();
    });
    let mut watchers = JoinSet::new();
    for (number, prefix) in WATCHERS.into_iter().enumerate() {
        watchers.spawn(Arc::clone(&workload).watcher(number, prefix, dice.fork()));
    }
    let mut clients = JoinSet::new();
    let pause = *dice.pick(&[Duration::from_millis(30), Duration::from_millis(120)]);
    for number in 1..=*dice.pick(&[2, 4, 6]) {
        clients.spawn(Arc::clone(&workload).client(number, dice.fork(), pause));
    }
    cluster.network.set_weather(faults::weather(dice));
    let events = *dice.pick(&[6, 12, 20]);
    Faults::new(Arc::clone(cluster), dice.fork()).rage(events).await;

    heal(cluster).await;
    sleep(Duration::from_millis(500)).await;
    workload.over.store(true, Ordering::Relaxed);
    while clients.join_next().await.is_some() {}
    if dice.chance(500) {
        cluster.trace.say(format_args!("all power fails"));
        for id in cluster.running() {
            cluster.crash(id, Crash::LoseAll);
        }
        heal(cluster).await;
    }
    workload.read_all(READER, dice).await;
    finish(cluster).await;
    watchers.shutdown().await;
    cluster.notebook.note(|seen| seen.history = workload.recorder.history());
    for id in cluster.running() {
        cluster.stop(id).await;
    }
}

/// Mends everything, and waits until all servers that belong to the region are ready.
async fn heal(cluster: &Arc<Cluster>) {
    cluster.trace.say(format_args!("everything is healed"));
    let deadline = Instant::now() + RECOVERY;
    let mut last = String::new();
    while Instant::now() < deadline && cluster.notebook.read_troubles() == 0 {
        cluster.network.heal();
        cluster.network.set_weather(Weather::fair());
        for id in cluster.present() {
            cluster.mend(id);
            if let Some(up) = cluster.up(id)
                && up.store.failure().is_some()
            {
                cluster.crash(id, Crash::LoseAll);
            }
        }
        for id in cluster.down() {
            cluster.start(id).await;
        }
        match are_ready(cluster).await {
            Ok(()) => return,
            Err(why) => last = why,
        }
        sleep(LOOK).await;
    }
    cluster.notebook.note(|seen| seen.troubles.push(format!("the healed region did not come back: {last}")));
}

/// How long one answer may take in a region that is well.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the group who belongs to it. That may change after the last fault: a change that was asked for and not answered is done later.
async fn ask_members(cluster: &Arc<Cluster>) -> Result<Vec<u64>, String> {
    let mut members = Err("no server runs".to_owned());
    for id in cluster.running() {
        let Some(up) = cluster.up(id) else { continue };
        let asked = until_end(&up.end, timeout(PATIENCE, up.store.members())).await;
        members = match asked {
            Some(Ok(Ok(members))) => Ok(members),
            Some(Ok(Err(status))) => Err(status.to_string()),
            Some(Err(_)) => Err(format!("server {id} does not say who belongs to the region")),
            None => continue,
        };
        if members.is_ok() {
            break;
        }
    }
    let members: Vec<u64> = members?.iter().map(|member| member.server.id).collect();
    cluster.set_members(members.clone());
    Ok(members)
}

/// Whether every member is ready. Servers that are none, or not yet, may go on running.
async fn are_ready(cluster: &Arc<Cluster>) -> Result<(), String> {
    for id in ask_members(cluster).await? {
        let up = cluster.up(id).ok_or_else(|| format!("server {id} is not up"))?;
        match until_end(&up.end, timeout(PATIENCE, up.store.ready())).await {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => return Err(error.to_string()),
            Some(Err(_)) => return Err(format!("server {id} is not ready")),
            None => return Err(format!("server {id} is down again")),
        }
    }
    Ok(())
}

/// Waits until all servers and watchers are where the region is, and notes what they hold.
async fn finish(cluster: &Arc<Cluster>) {
    let settled = async {
        loop {
            // Where nobody says it now, the next look asks again.
            let _ = ask_members(cluster).await;
            let stores = cluster.members().into_iter().filter_map(|id| cluster.up(id));
            let mut revisions: Vec<u64> = stores.map(|up| up.store.revision().0).collect();
            revisions.extend(cluster.notebook.positions());
            revisions.dedup();
            if revisions.len() <= 1 {
                return;
            }
            sleep(LOOK).await;
        }
    };
    if timeout(RECOVERY, settled).await.is_err() {
        cluster.notebook.note(|seen| seen.troubles.push("servers or watchers did not catch up".into()));
    }
    for server in cluster.members() {
        let Some(up) = cluster.up(server) else { continue };
        let Some((items, revision)) = workload::list_of(&up, "").await else { continue };
        let mut bytes = Vec::new();
        let state = match up.store.backup(nobody(), Timestamp::default()).await {
            Ok(backup) => backup.write(&mut bytes).map_err(|error| error.to_string()).map(|()| {
                let mut hasher = DefaultHasher::new();
                bytes.hash(&mut hasher);
                format!("{:016x}", hasher.finish())
            }),
            Err(status) => Err(status.to_string()),
        };
        match state {
            Ok(state) => cluster.notebook.note(|seen| seen.finals.push(Final { server, revision, items, state })),
            Err(why) => cluster.notebook.note(|seen| seen.troubles.push(format!("server {server}: {why}"))),
        }
    }
}

/// The owner of the backups by which states are compared.
fn nobody() -> Owner {
    let keys = Keys { ca_key: String::new(), ca_certificate: String::new(), tunnel_key: None };
    Owner { region: "sim".into(), zone: "sim".into(), keys }
}
