//! Who leads: what openraft's metrics say of it, told on only when it changes.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use futures_core::Stream;
use hearth_types::group::{Leadership, Server};
use openraft::{RaftMetrics, ServerState, async_runtime::watch::WatchReceiver as _};

use crate::{
    core::RaftHandle,
    metrics::Metrics,
    network::Addresses,
    signal::{Listener, Signal},
    types::TypeConfig,
};

/// What is known of the leader; clones are the same.
#[derive(Clone, Default)]
pub(crate) struct LeadershipWatch {
    now: Arc<Mutex<Leadership>>,
    changed: Signal,
}

impl LeadershipWatch {
    /// Who leads.
    pub(crate) fn now(&self) -> Leadership {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hears of changes from now on.
    pub(crate) fn listen(&self) -> Listener {
        self.changed.listen()
    }

    /// Who leads: now, and whenever it changes.
    pub(crate) fn stream(&self) -> Pin<Box<dyn Stream<Item = Leadership> + Send>> {
        let first = (self.clone(), self.listen(), None::<Leadership>);
        Box::pin(futures_util::stream::unfold(first, |(watch, mut listener, last)| async move {
            loop {
                listener.mark_seen();
                let now = watch.now();
                if last.as_ref() != Some(&now) {
                    return Some((now.clone(), (watch, listener, Some(now))));
                }
                listener.raised().await;
            }
        }))
    }

    /// Follows Raft until it stops.
    pub(crate) async fn follow(self, raft: RaftHandle, here: Server, addresses: Addresses, gauges: Metrics) {
        let mut metrics = raft.metrics();
        let mut members = None;
        loop {
            let now = {
                let metrics = metrics.borrow_watched();
                gauges.leader.set((metrics.state == ServerState::Leader).into());
                gauges.term.set(metrics.current_term as i64);
                if members != *metrics.membership_config.log_id() {
                    members = *metrics.membership_config.log_id();
                    let membership = metrics.membership_config.membership();
                    gauges.voters.set(membership.voter_ids().count() as i64);
                    addresses.update(membership);
                }
                of(&metrics, &here)
            };
            let changed = {
                let mut known = self.now.lock().unwrap_or_else(PoisonError::into_inner);
                let changed = *known != now;
                if changed {
                    *known = now;
                }
                changed
            };
            if changed {
                self.changed.raise();
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }
}

fn of(metrics: &RaftMetrics<TypeConfig>, here: &Server) -> Leadership {
    let term = metrics.current_term;
    // What was acknowledged before is applied once something of the leader's own term is.
    let current = metrics.last_applied.is_some_and(|applied| applied.leader_id.term == term);
    let leads = metrics.state == ServerState::Leader && metrics.running_state.is_ok();
    let leader = metrics.current_leader.and_then(|id| {
        let node = metrics.membership_config.membership().get_node(&id)?;
        Some(Server { id, address: node.addr.clone() })
    });
    Leadership { term, leader, here: leads && current && metrics.id == here.id }
}
