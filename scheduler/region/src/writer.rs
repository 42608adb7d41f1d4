//! Writes what controllers ask for: through admission, as one transaction, only over what was read.

use std::{sync::Arc, time::Duration};

use hearth_controllers::{Action, Wanted, prepare};
use hearth_types::{
    Reason, RequestId, Status, Uid,
    admission::Context,
    store::{Expect, Op, OpError, Txn, TxnOutcome},
};
use uuid::Uuid;

use crate::{hub::Hub, recorder::Note};

/// Operations in one transaction: well below the store's own limit, so that one entry stays small.
const BATCH: usize = 500;
/// Tries of one transaction, under one request id, while the store cannot answer.
const TRIES: u32 = 4;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a write did not happen as a whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// Something changed since it was read: look again.
    #[error("{0}")]
    Outdated(OpError),
    /// The store or admission refused.
    #[error("{0}")]
    Refused(Status),
}

/// Whether an error is the store's own and passes with it, and says nothing of what was to be written.
pub(crate) fn is_passing(error: &Status) -> bool {
    matches!(error.reason, Reason::ServiceUnavailable | Reason::Timeout | Reason::TooManyRequests)
}

/// A fresh uid.
pub(crate) fn new_uid() -> Uid {
    Uid::from(Uuid::new_v4().to_string())
}

pub(crate) fn new_request_id() -> RequestId {
    RequestId::from(format!("region-{}", Uuid::new_v4().simple()))
}

/// Five characters for a generated name: without vowels, so that no words appear.
pub(crate) fn new_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    Uuid::new_v4().as_bytes()[..5]
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}

/// The operation that an action comes to.
pub(crate) fn to_op(hub: &Hub, action: &Action) -> Result<Option<Op>, Status> {
    let suffix = new_suffix();
    let context = Context { now: hub.now(), uid: new_uid(), suffix: &suffix, zone: &hub.config.zone };
    Ok(match prepare(action, &context)? {
        Wanted::Create(object) => Some(Op::Create { object }),
        Wanted::Update { base, new } => Some(Op::Update { object: new, expect: Expect::same(&base) }),
        Wanted::Remove(base) => Some(Op::Delete { key: base.key().clone(), expect: Expect::same(&base) }),
        Wanted::Nothing => None,
    })
}

/// Does what a reconcile asks for. The cache has the outcome when this returns, so that the next look sees it. Events are told
/// only where all went well: what failed is tried again and would be told twice.
pub(crate) async fn execute(hub: &Arc<Hub>, actions: &[Action], component: &'static str) -> Result<(), WriteError> {
    let mut ops = Vec::new();
    for action in actions {
        ops.extend(to_op(hub, action).map_err(WriteError::Refused)?);
    }
    let mut first = None;
    while !ops.is_empty() {
        let rest = ops.split_off(ops.len().min(BATCH));
        let outcome = write(hub, ops, false).await.map_err(WriteError::Refused)?;
        first = first.or(outcome.outcomes.into_iter().find_map(Result::err));
        ops = rest;
    }
    if let Some(error) = first {
        return Err(WriteError::Outdated(error));
    }
    for action in actions {
        if let Action::Event { regarding, warning, reason, message } = action {
            hub.recorder.note(Note::about(regarding, *warning, reason, message.clone(), component));
        }
    }
    Ok(())
}

/// Writes operations as one transaction and takes the outcome into the cache. Where the store cannot answer, it is tried again
/// under the same request id, so that it is applied once; not where this server leads no longer (see [`lead`](crate::lead)).
pub(crate) async fn write(hub: &Arc<Hub>, ops: Vec<Op>, atomic: bool) -> Result<TxnOutcome, Status> {
    write_while(hub, ops, atomic, || hub.leads()).await
}

/// The same at whichever server a person asks: its store hands the write on to the one that leads.
pub(crate) async fn write_anywhere(hub: &Arc<Hub>, ops: Vec<Op>) -> Result<TxnOutcome, Status> {
    write_while(hub, ops, true, || true).await
}

async fn write_while(hub: &Arc<Hub>, ops: Vec<Op>, atomic: bool, may: impl Fn() -> bool) -> Result<TxnOutcome, Status> {
    let txn = Txn { request_id: new_request_id(), atomic, ops, now: hub.now() };
    let mut tried = 0;
    let outcome = loop {
        if !may() {
            return Err(Status::unavailable("this server does not lead the region, or not any more"));
        }
        match hub.config.store.write(txn.clone()).await {
            Ok(outcome) => break outcome,
            Err(status) if tried + 1 < TRIES && is_passing(&status) => {
                tried += 1;
                tokio::time::sleep(PAUSE * tried).await;
            }
            Err(status) => return Err(status),
        }
    };
    hub.observe_outcome(&txn.ops, &outcome);
    Ok(outcome)
}
