//! Fills the cache of one kind by list and watch, and keeps it filled.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use hearth_types::{
    GroupKind, Reason, Status,
    store::{Consistency, Query, list_all},
};
use tokio::sync::mpsc;

use crate::hub::Hub;

/// The pause before the list is asked for again where that failed.
const PAUSE: Duration = Duration::from_millis(200);

/// Lists and watches a kind for ever. Says once on `primed` that the cache has it.
pub(crate) async fn run(hub: Arc<Hub>, kind: GroupKind, primed: mpsc::Sender<()>) {
    let query = Query::all(kind);
    let mut first = Some(primed);
    loop {
        if let Err(error) = list_and_watch(&hub, &query, &mut first).await {
            if error.reason == Reason::Expired {
                // It was too slow, or the server was restored: an ordinary event.
                tracing::debug!(kind = %query.kind, %error, "the watch expired; listing anew");
            } else {
                tracing::warn!(kind = %query.kind, %error, "list or watch failed; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
        hub.metrics.relists.inc();
    }
}

async fn list_and_watch(hub: &Hub, query: &Query, first: &mut Option<mpsc::Sender<()>>) -> Result<(), Status> {
    let store = hub.config.store.as_ref();
    let (objects, revision) = list_all(store, query, Consistency::Linearizable).await?;
    hub.observe_list(&query.kind, objects, revision);
    if let Some(primed) = first.take() {
        // Whoever counts is gone only at shutdown.
        let _ = primed.send(()).await;
    }
    let mut events = store.watch(query.clone(), revision).await?;
    while let Some(event) = events.next().await {
        hub.observe_event(&query.kind, event?);
    }
    // The store ends a stream only with an error; should one end all the same, do not spin.
    tokio::time::sleep(PAUSE).await;
    Ok(())
}
