//! The store of the tests: the real state machine, without a log.

use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::StreamExt as _;
use hearth_state::{Command, Response, State, apply};
use hearth_types::{
    BoxFuture, Incarnation, Object, ObjectKey, Reason, Revision, Status, Timestamp,
    store::{Consistency, ListPage, Op, Query, Store, Txn, TxnOutcome, WatchStream},
};
use tokio::sync::watch;

/// Picks operations.
pub(crate) type Which = fn(&Op) -> bool;

pub(crate) struct MemoryStore {
    state: Arc<Mutex<State>>,
    revision: watch::Sender<Revision>,
    /// Refuses every write while set.
    pub(crate) broken: std::sync::atomic::AtomicBool,
    /// Refuses linearizable reads while set, as for a leader that is cut off from the others.
    pub(crate) cut_off: std::sync::atomic::AtomicBool,
    /// How many writes it refused.
    pub(crate) refused: watch::Sender<usize>,
    pub(crate) writes: std::sync::atomic::AtomicU64,
    /// Refuses transactions with such an operation, for good.
    pub(crate) refuses: Mutex<Option<Which>>,
    /// Holds transactions with such an operation back until there is none.
    pub(crate) holds: watch::Sender<Option<Which>>,
    /// How many are held back.
    pub(crate) held: watch::Sender<usize>,
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        let mut state = State::default();
        apply(&mut state, &Command::Initialize { incarnation: Incarnation::from("test"), now: Timestamp(0) });
        Self {
            state: Arc::new(Mutex::new(state)),
            revision: watch::Sender::new(Revision::ZERO),
            broken: false.into(),
            cut_off: false.into(),
            refused: watch::Sender::new(0),
            writes: 0.into(),
            refuses: Mutex::new(None),
            holds: watch::Sender::new(None),
            held: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    pub(crate) fn changes(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a ObjectKey, read: Consistency) -> BoxFuture<'a, Result<Option<Object>, Status>> {
        Box::pin(async move {
            if read == Consistency::Linearizable && self.cut_off.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Status::unavailable("the test cut the leader off"));
            }
            Ok(self.state().get(key).cloned())
        })
    }

    fn list<'a>(
        &'a self,
        query: &'a Query,
        limit: usize,
        token: Option<&'a str>,
        _: Consistency,
    ) -> BoxFuture<'a, Result<ListPage, Status>> {
        Box::pin(async move { self.state().list(query, limit, token).map_err(Status::from) })
    }

    fn watch(&self, query: Query, from: Revision) -> BoxFuture<'_, Result<WatchStream, Status>> {
        Box::pin(async move {
            let history = self.state().history().clone();
            history.check(from).map_err(Status::from)?;
            let changes = self.revision.subscribe();
            let state = Arc::clone(&self.state);
            let stream = futures_util::stream::unfold((from, changes), move |(from, mut changes)| {
                let (query, state) = (query.clone(), Arc::clone(&state));
                async move {
                    let mut from = from;
                    loop {
                        changes.mark_unchanged();
                        let batch = state.lock().expect("not poisoned").history().batch(from, &query, 1000, 100_000);
                        match batch {
                            Err(expired) => {
                                let error: Result<_, Status> = Err(expired.into());
                                return Some((vec![error], (from, changes)));
                            }
                            Ok(batch) => {
                                from = batch.upto;
                                if !batch.events.is_empty() {
                                    let events = batch.events.into_iter().map(Ok).collect();
                                    return Some((events, (from, changes)));
                                }
                            }
                        }
                        if changes.changed().await.is_err() {
                            return None;
                        }
                    }
                }
            });
            let stream: WatchStream = Box::pin(stream.flat_map(futures_util::stream::iter));
            Ok(stream)
        })
    }

    fn write(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, Status>> {
        Box::pin(async move {
            if self.broken.load(std::sync::atomic::Ordering::Relaxed) {
                self.refused.send_modify(|count| *count += 1);
                return Err(Status::unavailable("the test broke the store"));
            }
            let has = |which: Which| txn.ops.iter().any(which);
            if self.refuses.lock().expect("not poisoned").is_some_and(has) {
                return Err(Status::new(Reason::Invalid, "the test refuses this"));
            }
            if (*self.holds.borrow()).is_some_and(has) {
                self.held.send_modify(|count| *count += 1);
                let mut holds = self.holds.subscribe();
                holds.wait_for(|holds| !holds.is_some_and(has)).await.expect("the store lives");
            }
            self.writes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let (applied, revision) = {
                let mut state = self.state();
                (apply(&mut state, &Command::Txn(txn)), state.revision())
            };
            self.revision.send_replace(revision);
            match applied.response {
                Response::Txn(outcome) => Ok(outcome),
                other => Err(Status::new(Reason::InternalError, format!("{other:?}"))),
            }
        })
    }

    fn incarnation(&self) -> Incarnation {
        self.state().incarnation().cloned().expect("initialized")
    }
}
