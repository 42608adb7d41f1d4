//! Which other servers answer. Raft calls a dead server many times a second, so this is said once when it changes, and not with every call.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hearth_types::group::Server;
use prometheus::IntGauge;
use tokio::time::Instant;

/// How long no call was answered before a server counts as silent: longer than a change of leader or a busy disk takes.
const SILENT: Duration = Duration::from_secs(2);

/// A server whose last call was not answered.
struct Failing {
    since: Instant,
    told: bool,
}

/// Which other servers do not answer; clones are the same.
#[derive(Clone)]
pub(crate) struct Reach {
    failing: Arc<Mutex<BTreeMap<u64, Failing>>>,
    silent: IntGauge,
}

impl Reach {
    /// `silent`: how many are silent.
    pub(crate) fn new(silent: IntGauge) -> Self {
        Self { failing: Arc::default(), silent }
    }

    /// Notes what came of a call.
    pub(crate) fn note<E: Display>(&self, server: &Server, failed: Option<&E>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match failed {
            None => {
                if let Some(Failing { since, told: true }) = failing.remove(&server.id) {
                    tracing::info!("{server} answers again, after {} s", since.elapsed().as_secs());
                    self.silent.dec();
                }
            }
            Some(why) => {
                let now = Instant::now();
                let one = failing.entry(server.id).or_insert(Failing { since: now, told: false });
                if !one.told && now - one.since >= SILENT {
                    one.told = true;
                    tracing::warn!("{server} does not answer: {why}");
                    self.silent.inc();
                }
            }
        }
    }

    /// Forgets those that do not belong any more.
    pub(crate) fn keep(&self, belongs: impl Fn(u64) -> bool) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.retain(|id, _| belongs(*id));
        self.silent.set(failing.values().filter(|one| one.told).count() as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_is_silent_after_two_seconds_without_an_answer_and_until_the_next_or_until_it_left() {
        let silent = IntGauge::new("silent", "silent").expect("a gauge");
        let reach = Reach::new(silent.clone());
        let [two, three] = [2, 3].map(|id| Server { id, address: "192.0.2.1:7443".into() });
        let (fine, failed) = (None::<&str>, Some(&"no route"));
        let steps = [
            (0, &two, failed, 0),
            (1, &two, fine.as_ref(), 0),
            (1, &two, failed, 0),
            (1, &two, failed, 0),
            (1, &two, failed, 1),
            (1, &two, failed, 1),
            (0, &three, failed, 1),
            (2, &three, failed, 2),
            (0, &two, fine.as_ref(), 1),
        ];
        for (number, (seconds, server, failed, expected)) in steps.into_iter().enumerate() {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            reach.note(server, failed);
            assert_eq!(silent.get(), expected, "step {number}");
        }
        reach.keep(|id| id != 3);
        assert_eq!(silent.get(), 0);
    }
}
