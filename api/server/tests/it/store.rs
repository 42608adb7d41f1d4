//! A store in memory over the region's real state machine: one server without a log.

use futures_util::stream;
use hearth_state::{Command, Refusal, Response, State, apply};
use hearth_types::{
    BoxFuture, Incarnation, Object, ObjectKey, Reason, Revision, Status, Timestamp,
    store::{Consistency, ListPage, Query, Store, Txn, TxnOutcome, WatchStream},
};
use tokio::sync::watch;

pub(crate) struct MemoryStore {
    state: watch::Sender<State>,
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        let mut state = State::default();
        apply(&mut state, &Command::Initialize { incarnation: Incarnation::from("test"), now: Timestamp(0) });
        apply(&mut state, &Command::RaiseFeatureLevel { level: hearth_state::FEATURE_LEVEL, now: Timestamp(0) });
        Self { state: watch::channel(state).0 }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.state.borrow().revision()
    }
}

fn expired(error: &impl ToString) -> Status {
    Status::new(Reason::Expired, error.to_string())
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a ObjectKey, _: Consistency) -> BoxFuture<'a, Result<Option<Object>, Status>> {
        let object = self.state.borrow().get(key).cloned();
        Box::pin(std::future::ready(Ok(object)))
    }

    fn list<'a>(
        &'a self,
        query: &'a Query,
        limit: usize,
        token: Option<&'a str>,
        _: Consistency,
    ) -> BoxFuture<'a, Result<ListPage, Status>> {
        let page = self.state.borrow().list(query, limit, token).map_err(Status::from);
        Box::pin(std::future::ready(page))
    }

    fn watch(&self, query: Query, from: Revision) -> BoxFuture<'_, Result<WatchStream, Status>> {
        let mut states = self.state.subscribe();
        if let Err(error) = states.borrow().history().check(from) {
            return Box::pin(std::future::ready(Err(expired(&error))));
        }
        states.mark_changed();
        let steps = stream::unfold(Some((states, from)), move |at| {
            let query = query.clone();
            async move {
                let (mut states, from) = at?;
                states.changed().await.ok()?;
                let state = states.borrow_and_update().clone();
                Some(match state.events_since(from, &query) {
                    Ok(events) => (events.into_iter().map(Ok).collect::<Vec<_>>(), Some((states, state.revision()))),
                    Err(error) => (vec![Err(expired(&error))], None),
                })
            }
        });
        let events: WatchStream = Box::pin(futures_util::StreamExt::flat_map(steps, stream::iter));
        Box::pin(std::future::ready(Ok(events)))
    }

    fn write(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, Status>> {
        let mut response = Response::Nothing;
        // Through the bytes of the log, as in production.
        let command = Command::decode(&Command::Txn(txn).encode());
        self.state.send_modify(|state| response = apply(state, &command).response);
        Box::pin(std::future::ready(match response {
            Response::Txn(outcome) => Ok(outcome),
            Response::Refused(Refusal::Reused) => Err(Status::new(Reason::Conflict, Refusal::Reused.to_string())),
            other => Err(Status::internal(format!("{other:?}"))),
        }))
    }

    fn incarnation(&self) -> Incarnation {
        Incarnation::from("test")
    }
}
