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
    restores,
    store::{Consistency, Query, list_all},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{domains, hub::Hub, leases, placing, reconcile, recorder, recovery, session, upkeep};

/// Reconciles that are under way at once: they mostly wait for the store, which batches what comes together.
const WORKERS: usize = 16;
/// How often a leader that is not alone makes sure that a majority still takes it for one. A server that is cut off from the others is not
/// told that another leads; devices that still reach it would stay with it for ever.
const CONFIRM_EVERY: Duration = Duration::from_secs(2);
/// How long that may take before its sessions end: longer than a majority that is there ever needs.
const CONFIRM_LIMIT: Duration = Duration::from_secs(4);
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
            if !hub.is_alone() {
                // The majority may have to be waited for; what comes meanwhile counts.
                tokio::select! {
                    () = confirmed(&hub) => {}
                    next = end_of(now.term, &mut changes) => {
                        match next {
                            Ok(next) => now = next,
                            Err(ended) => return ended,
                        }
                        continue;
                    }
                }
            }
            now = match lead(&hub, now.term, &mut changes).await {
                Ok(next) => next,
                Err(ended) => return ended,
            };
        }
        hub.set_ready();
    }
    "leadership"
}

/// Waits until a majority has confirmed that this server leads.
async fn confirmed(hub: &Hub) {
    while !confirm(hub).await {
        tracing::warn!("the other servers of the region do not confirm that this one leads; trying again");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether a majority confirms now that this server leads: only then it can answer a linearizable read.
async fn confirm(hub: &Hub) -> bool {
    let key = restores::key();
    let read = hub.config.store.get(&key, Consistency::Linearizable);
    matches!(tokio::time::timeout(CONFIRM_LIMIT, read).await, Ok(Ok(_)))
}

/// Waits until a majority does not confirm any more that this server leads.
async fn doubted(hub: &Hub) {
    loop {
        tokio::time::sleep(CONFIRM_EVERY).await;
        if !hub.is_alone() && !confirm(hub).await {
            return;
        }
    }
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
    loops.spawn(named("copies", recovery::run(Arc::clone(hub))));
    loops.spawn(named("upkeep", upkeep::run(Arc::clone(hub))));
    loops.spawn(named("leases", leases::run(Arc::clone(hub), lead.clone())));
    loops.spawn(named("domains", domains::run(Arc::clone(hub))));
    let next = tokio::select! {
        next = end_of(term, changes) => next,
        () = doubted(hub) => {
            tracing::warn!(term, "the other servers of the region do not confirm that this one leads: devices are sent to them");
            Ok(hub.config.group.leadership())
        }
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
