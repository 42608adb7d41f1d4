//! Watches: each pulls from the state's history.
//!
//! A watcher holds a position, a query and one small batch of events; the history is everybody's buffer. So nothing that
//! a watcher does or fails to do can hold up a write or another watcher, there is no gap and no doubling between replay
//! and live events, and a watcher that falls behind the history ends with `Expired`.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use hearth_types::{
    Revision, Status,
    store::{Query, WatchEvent, WatchStream},
};
use tokio::{
    sync::watch,
    time::{Instant, Sleep},
};

use crate::{
    machine::Shared,
    metrics::Metrics,
    sabotage::{self, Bug},
    signal::Listener,
};

/// Events that one watcher has in memory at most, but for those of one large transaction.
const BATCH_EVENTS: usize = 256;
/// Changes that are looked at for one watcher before others have their turn.
const BATCH_CHANGES: usize = 4_096;
/// The same where each has to be parsed, for a field selector: about a millisecond.
const BATCH_PARSED: usize = 64;
/// After how long without an event a watcher is told how far it is, so that it can take up from there later. As often as
/// Kubernetes does.
pub const BOOKMARK_INTERVAL: Duration = Duration::from_mins(1);

struct Watcher {
    shared: Arc<Shared>,
    query: Query,
    /// Every event up to here is sent or in `batch`.
    position: Revision,
    batch: VecDeque<WatchEvent>,
    /// The last bookmark.
    told: Revision,
    changed: Listener,
    closed: watch::Receiver<bool>,
    bookmark: Pin<Box<Sleep>>,
    interval: Duration,
    _count: Count,
}

/// Counts a watcher for as long as it lives.
struct Count(Metrics);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.watchers.dec();
    }
}

/// A watch from a revision that the history has.
pub(crate) fn watch(
    shared: &Arc<Shared>,
    closed: watch::Receiver<bool>,
    query: Query,
    from: Revision,
    interval: Duration,
) -> Result<WatchStream, Status> {
    let late = sabotage::has(Bug::WatchResumesLate) && from < shared.machine().state.revision();
    let from = if late { Revision(from.0 + 1) } else { from };
    shared.machine().state.history().check(from)?;
    shared.metrics.watchers.inc();
    let watcher = Watcher {
        changed: shared.subscribe(&query.kind),
        shared: Arc::clone(shared),
        query,
        position: from,
        batch: VecDeque::new(),
        told: from,
        closed,
        bookmark: Box::pin(tokio::time::sleep(interval)),
        interval,
        _count: Count(shared.metrics.clone()),
    };
    Ok(Box::pin(futures_util::stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(event) => Some((Ok(event), Some(watcher))),
            Err(status) => Some((Err(status), None)),
        }
    })))
}

impl Watcher {
    async fn next(&mut self) -> Result<WatchEvent, Status> {
        loop {
            if let Some(event) = self.batch.pop_front() {
                self.rest();
                return Ok(event);
            }
            // Before looking, so that a change that comes while looking wakes.
            self.changed.mark_seen();
            if self.advance()? {
                if self.batch.is_empty() {
                    // There is more to look at, and others want this thread.
                    tokio::task::yield_now().await;
                }
                continue;
            }
            tokio::select! {
                biased;
                () = self.changed.raised() => {}
                () = until_closed(&mut self.closed) => return Err(closed()),
                () = self.bookmark.as_mut() => {
                    self.rest();
                    self.advance()?;
                    if self.batch.is_empty() && self.position > self.told {
                        self.told = self.position;
                        return Ok(WatchEvent::Bookmark(self.position));
                    }
                }
            }
        }
    }

    /// Looks at what changed since the position. `true` where it should be called again before waiting.
    fn advance(&mut self) -> Result<bool, Status> {
        let (history, last_change) = {
            let machine = self.shared.machine();
            let revision = machine.state.revision();
            if self.position == revision {
                return Ok(false);
            }
            let last_change = machine.last_change(&self.query.kind);
            if last_change <= self.position && revision > self.position {
                // Nothing of this kind changed: it cannot be too slow, however long it slept.
                self.position = revision;
                return Ok(false);
            }
            (machine.state.history().clone(), last_change)
        };
        let changes = if self.query.selector.fields.is_empty() { BATCH_CHANGES } else { BATCH_PARSED };
        let batch = history.batch(self.position, &self.query, BATCH_EVENTS, changes);
        if batch.is_err() && sabotage::has(Bug::WatcherSkips) {
            self.position = self.shared.machine().state.revision();
            return Ok(false);
        }
        let batch = batch.inspect_err(|_| self.shared.metrics.watchers_expired.inc())?;
        self.position = batch.upto;
        let several = batch.events.len() > 1;
        self.batch.extend(batch.events);
        if several {
            // Several events can share a revision. Whoever resumes from a bookmark has them all.
            self.batch.push_back(WatchEvent::Bookmark(self.position));
            self.told = self.position;
        }
        Ok(!self.batch.is_empty() || self.position < last_change)
    }

    fn rest(&mut self) {
        let next = Instant::now() + self.interval;
        self.bookmark.as_mut().reset(next);
    }
}

async fn until_closed(receiver: &mut watch::Receiver<bool>) {
    // An error means that the store itself is gone.
    let _ = receiver.wait_for(|closed| *closed).await;
}

fn closed() -> Status {
    Status::unavailable("the store is shutting down; watch again")
}
