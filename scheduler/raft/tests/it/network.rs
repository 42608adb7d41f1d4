//! A network in one process, and a group of servers on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use hearth_proto::v1::{self as proto, peer_request::Request};
use hearth_raft::{
    RaftStore, Start,
    disk::{Crash, MemoryDisk},
};
use hearth_types::{
    BoxFuture,
    group::{CallError, Group as _, Lane, PeerService, PeerTransport, Server},
};
use prost::Message as _;

use super::support::{Fixed, PATIENCE, small};

/// The first address of a server.
pub(crate) fn address(id: u64) -> String {
    format!("server-{id}:7443")
}

#[derive(Default)]
struct Inner {
    servers: BTreeMap<String, Arc<dyn PeerService>>,
    cut: BTreeSet<u64>,
    /// Which of a server's lives it is in: what an earlier one still sends is lost.
    lives: BTreeMap<u64, u64>,
}

/// The network; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Network {
    inner: Arc<Mutex<Inner>>,
    parts: Arc<AtomicUsize>,
    interruptions: Arc<AtomicUsize>,
}

impl Network {
    /// Nothing comes from a server or gets to it.
    pub(crate) fn cut(&self, id: u64) {
        self.inner.lock().expect("unpoisoned").cut.insert(id);
    }

    /// Everybody reaches everybody.
    pub(crate) fn heal(&self) {
        self.inner.lock().expect("unpoisoned").cut.clear();
    }

    /// A server answers at another address alone.
    pub(crate) fn rename(&self, id: u64, to: &str) {
        let mut inner = self.inner.lock().expect("unpoisoned");
        let service = inner.servers.remove(&address(id)).expect("it runs");
        inner.servers.insert(to.into(), service);
    }

    /// The next so many parts of snapshots are lost.
    pub(crate) fn interrupt_snapshots(&self, count: usize) {
        self.interruptions.store(count, Ordering::SeqCst);
    }

    /// How many parts of snapshots got through.
    pub(crate) fn parts(&self) -> usize {
        self.parts.load(Ordering::SeqCst)
    }

    /// The network as a server sees it that starts.
    fn of(&self, from: u64) -> Arc<dyn PeerTransport> {
        let life = self.next_life(from);
        Arc::new(Port { network: self.clone(), from, life })
    }

    fn next_life(&self, id: u64) -> u64 {
        let mut inner = self.inner.lock().expect("unpoisoned");
        let life = inner.lives.entry(id).or_default();
        *life += 1;
        *life
    }
}

/// Messages that can be read and make no sense.
pub(crate) fn nonsense() -> Vec<Vec<u8>> {
    let leader = Some(proto::Ballot { term: 1, candidate: 2, elected: true });
    let stranger = Some(proto::Ballot { term: 1, candidate: 3, elected: true });
    let entry = Bytes::from_static(&[1, 2, 3]);
    let requests = [
        Request::AppendEntries(proto::AppendEntries { leader, entries: vec![entry], ..Default::default() }),
        Request::AppendEntries(proto::AppendEntries { leader: stranger, ..Default::default() }),
        Request::AppendEntries(proto::AppendEntries::default()),
        Request::RequestVote(proto::RequestVote { candidate: leader, ..Default::default() }),
        Request::SnapshotChunk(proto::SnapshotChunk { leader, total: u64::MAX, ..Default::default() }),
        Request::SnapshotChunk(proto::SnapshotChunk {
            leader,
            total: 4,
            data: Bytes::from_static(b"junk"),
            ..Default::default()
        }),
        Request::TransferLeader(proto::TransferLeader { leader, ..Default::default() }),
        Request::Forward(proto::Forward { commands: vec![Bytes::from_static(b"junk")] }),
        Request::Administer(proto::Administer::default()),
    ];
    let whole = |request| proto::PeerRequest { region: "home".into(), to: 1, request: Some(request) };
    requests.into_iter().map(|request| whole(request).encode_to_vec()).collect()
}

struct Port {
    network: Network,
    from: u64,
    life: u64,
}

impl PeerTransport for Port {
    fn call(&self, to: &Server, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (network, from, life, to) = (self.network.clone(), self.from, self.life, to.clone());
        Box::pin(async move {
            let connected = || {
                let inner = network.inner.lock().expect("unpoisoned");
                let dead = inner.lives.get(&from) != Some(&life);
                let cut = dead || inner.cut.contains(&from) || inner.cut.contains(&to.id);
                if cut { None } else { inner.servers.get(&to.address).cloned() }
            };
            let unreachable = || CallError(format!("{to} cannot be reached"));
            let service = connected().ok_or_else(unreachable)?;
            if lane == Lane::Bulk {
                let left =
                    network.interruptions.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                if left.is_ok() {
                    return Err(unreachable());
                }
                network.parts.fetch_add(1, Ordering::SeqCst);
            }
            // A server that dies answers no more.
            let answer = tokio::spawn(async move { service.answer(from, request).await });
            let answer = answer.await.map_err(|error| CallError(error.to_string()))?;
            connected().ok_or_else(unreachable)?;
            answer.map_err(|status| CallError(status.to_string()))
        })
    }
}

/// Servers that can be killed and started.
pub(crate) struct Cluster {
    pub(crate) network: Network,
    running: BTreeMap<u64, Arc<RaftStore>>,
    disks: BTreeMap<u64, MemoryDisk>,
}

impl Cluster {
    /// So many servers, all of them voters.
    pub(crate) async fn of(count: u64) -> Self {
        let mut cluster = Self { network: Network::default(), running: BTreeMap::new(), disks: BTreeMap::new() };
        cluster.open(1, Start::First).await;
        cluster.store(1).ready().await.expect("ready");
        for id in 2..=count {
            cluster.join(id).await;
        }
        cluster
    }

    /// Adds a server.
    pub(crate) async fn join(&mut self, id: u64) {
        let other = self.ids()[0];
        self.open(id, Start::Joining).await;
        let admitted = self.store(other).admit(Server { id, address: address(id) }).await;
        admitted.expect("admitted");
        self.store(id).ready().await.expect("ready");
    }

    async fn open(&mut self, id: u64, start: Start) {
        let disk = self.disks.entry(id).or_default().clone();
        let mut config = small(Path::new("/raft"), 30);
        config.node_id = id;
        config.address = address(id);
        let registry = prometheus::Registry::new();
        let disk = Arc::new(disk);
        let store = RaftStore::open_group(disk, self.network.of(id), start, config, &registry, Arc::new(Fixed));
        let store = Arc::new(store.await.expect("opens"));
        self.network.inner.lock().expect("unpoisoned").servers.insert(address(id), store.peers());
        self.running.insert(id, store);
    }

    /// Starts a server again.
    pub(crate) async fn start(&mut self, id: u64) {
        self.open(id, Start::Joining).await;
    }

    /// A server loses power: what it had not synced is gone.
    pub(crate) async fn kill(&mut self, id: u64) {
        let store = self.running.remove(&id).expect("it runs");
        self.network
            .inner
            .lock()
            .expect("unpoisoned")
            .servers
            .retain(|_, service| !std::ptr::addr_eq(Arc::as_ptr(service), Arc::as_ptr(&store.peers())));
        self.network.next_life(id);
        let left = self.disks[&id].after(Crash::LoseAll);
        self.disks.insert(id, left);
        let _ = store.shutdown().await;
    }

    /// Stops all.
    pub(crate) async fn stop(&mut self) {
        for (_, store) in std::mem::take(&mut self.running) {
            let _ = store.shutdown().await;
        }
    }

    /// The servers that run.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.running.keys().copied().collect()
    }

    pub(crate) fn store(&self, id: u64) -> &RaftStore {
        &self.running[&id]
    }

    pub(crate) fn shared(&self, id: u64) -> Arc<RaftStore> {
        Arc::clone(&self.running[&id])
    }

    /// Waits for a leader that all who run agree on.
    pub(crate) async fn leader(&self) -> u64 {
        let agreed = async {
            loop {
                let leaders: BTreeSet<Option<u64>> =
                    self.running.values().map(|store| store.leadership().leader.map(|leader| leader.id)).collect();
                if let [Some(leader)] = leaders.into_iter().collect::<Vec<_>>()[..]
                    && self.running.get(&leader).is_some_and(|store| store.leadership().here)
                {
                    return leader;
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, agreed).await.expect("a leader")
    }

    /// Waits until all who run have the same state.
    pub(crate) async fn equal(&self) {
        for id in self.ids() {
            self.store(id).ready().await.expect("ready");
        }
        let revisions = || self.running.values().map(|store| store.revision()).collect::<BTreeSet<_>>();
        super::support::until("all have the same state", || revisions().len() == 1).await;
    }
}
