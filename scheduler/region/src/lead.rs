//! Leading: what one server of the region does alone, for as long as it leads. The others keep their caches filled, so that they answer
//! for names and can take over.
//!
//! A server that leads no longer may learn of it late, and its store hands its writes on to the new leader. They do no harm there: each
//! update, deletion and binding is of a revision that was read and fails where anything has changed since; a second object of a fixed
//! name is refused; and of a ReplicaSet's pods, whose names are made up, those that are too many are removed as after any other change
//! of its size, before or after they were placed, and never two of them with one claim, which [`Op::Bind`](hearth_types::store::Op::Bind)
//! itself checks. What is left is a word on contact: an old leader that holds a device to be silent. So [`writer`](crate::writer) asks
//! before each try whether this server leads, and what is under way is dropped when it does not; should one slip through all the same,
//! the new leader sees it by its watch and puts it right.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use hearth_types::{
    Status,
    group::Leadership,
    store::{Consistency, Query, list_all},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{hub::Hub, placing, reconcile, recorder, session, upkeep};

/// Reconciles that are under way at once: they mostly wait for the store, which batches what comes together.
const WORKERS: usize = 16;
/// The pause before what could not be read is read again.
const PAUSE: Duration = Duration::from_millis(50);

/// A time of leading.
#[derive(Clone, Debug)]
pub(crate) struct Lead {
    /// The term of the group.
    pub(crate) term: u64,
    /// This server leads no longer.
    pub(crate) over: CancellationToken,
}

/// Leads whenever the group says so, for ever. Returns the name of a loop that ended by itself.
pub(crate) async fn run(hub: Arc<Hub>) -> &'static str {
    let mut changes = hub.config.group.watch_leadership();
    while let Some(mut now) = changes.next().await {
        while now.here {
            now = match lead(&hub, now.term, &mut changes).await {
                Ok(next) => next,
                Err(ended) => return ended,
            };
        }
        hub.set_ready();
    }
    "leadership"
}

/// Leads for a term; returns what came after it.
async fn lead(
    hub: &Arc<Hub>,
    term: u64,
    changes: &mut (impl Stream<Item = Leadership> + Unpin),
) -> Result<Leadership, &'static str> {
    tokio::select! {
        () = refresh(hub) => {}
        next = end_of(term, changes) => return next,
    }
    let lead = Lead { term, over: CancellationToken::new() };
    // Should this be dropped in the middle, what belongs to it ends all the same.
    let _over = lead.over.clone().drop_guard();
    hub.begin_lead(lead.clone()).await;
    hub.set_ready();
    tracing::info!(region = hub.config.region, term, "this server leads the region");
    let mut loops = JoinSet::new();
    for _ in 0..WORKERS {
        loops.spawn(named("reconcile", reconcile::work(Arc::clone(hub))));
    }
    loops.spawn(named("placement", placing::run(Arc::clone(hub))));
    loops.spawn(named("event", recorder::run(Arc::clone(hub))));
    loops.spawn(named("status", session::write_statuses(Arc::clone(hub))));
    loops.spawn(named("upkeep", upkeep::run(Arc::clone(hub))));
    let next = tokio::select! {
        next = end_of(term, changes) => next,
        // No loop ends by itself: one that did panicked.
        ended = loops.join_next() => Err(ended.and_then(Result::ok).unwrap_or("panicked")),
    };
    hub.end_lead(&lead, "another server of the region leads now");
    // Also where one is in the middle of a write: its outcome comes by the watch.
    loops.shutdown().await;
    tracing::info!(region = hub.config.region, term, "this server leads the region no longer");
    next
}

async fn named(name: &'static str, what: impl Future<Output = ()>) -> &'static str {
    what.await;
    name
}

/// Waits until this server does not lead, or leads for another term.
async fn end_of(term: u64, changes: &mut (impl Stream<Item = Leadership> + Unpin)) -> Result<Leadership, &'static str> {
    while let Some(next) = changes.next().await {
        if !next.here || next.term != term {
            return Ok(next);
        }
    }
    Err("leadership")
}

/// Brings the caches up to what this server's store has: everything that former leaders wrote. The watches may not have come so far.
async fn refresh(hub: &Hub) {
    for info in hearth_types::registry::all() {
        let query = Query::all(info.group_kind());
        while let Err(error) = list(hub, &query).await {
            tracing::warn!(kind = %query.kind, %error, "cannot list what is to be led; trying again");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn list(hub: &Hub, query: &Query) -> Result<(), Status> {
    let (objects, revision) = list_all(hub.config.store.as_ref(), query, Consistency::Local).await?;
    hub.observe_list(&query.kind, objects, revision);
    Ok(())
}
