//! What was answered to which request, so that a write that is sent again is not applied again.

use std::{sync::Arc, time::Duration};

use hearth_types::{RequestId, Timestamp, store::TxnOutcome};
use imbl::{OrdMap, Vector};

/// Requests that are remembered at most: at 6,000 writes a second, ten seconds of them, more than a client that lost
/// its server waits before it asks the next one.
pub const DUPLICATES_MAX_COUNT: usize = 60_000;
/// The newest requests, which are remembered however old they are: a clock that is set far ahead on one server makes all of them old at once.
pub const DUPLICATES_KEPT: usize = 4_096;
/// How long a request is remembered, by the time of the commands: far above any client's patience.
pub const DUPLICATES_MAX_AGE: Duration = Duration::from_mins(10);
/// Bytes of answers that are remembered at most; most are shared with the history.
pub const DUPLICATES_MAX_BYTES: usize = 32 << 20;
/// What an answer costs beside its objects.
const ANSWER_OVERHEAD: usize = 256;

/// From this feature level on more is remembered.
const MORE_REMEMBERED: u32 = 3;

/// How much is remembered. All servers have to do the same, so the cluster's feature level says which.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    count: usize,
    kept: usize,
}

impl Bounds {
    /// As it is at a feature level.
    pub(crate) fn at(level: u32) -> Self {
        if level >= MORE_REMEMBERED {
            Self { count: DUPLICATES_MAX_COUNT, kept: DUPLICATES_KEPT }
        } else {
            Self { count: 20_000, kept: 0 }
        }
    }
}

/// One remembered answer.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    pub(crate) at: Timestamp,
    pub(crate) id: RequestId,
    pub(crate) outcome: Arc<TxnOutcome>,
}

/// The filter: cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Duplicates {
    by_id: OrdMap<RequestId, Arc<TxnOutcome>>,
    order: Vector<Remembered>,
    bytes: usize,
}

impl Duplicates {
    pub(crate) fn get(&self, id: &RequestId) -> Option<&TxnOutcome> {
        self.by_id.get(id).map(AsRef::as_ref)
    }

    /// Whether a request id that was not seen is one that was used for other content; see [`RequestId::with_content`].
    pub(crate) fn is_reused(&self, id: &RequestId) -> bool {
        let Some((name, content)) = id.content() else {
            return false;
        };
        let family = family(name);
        let first = RequestId::from(family.as_str());
        let others = self.by_id.range(first..).map(|(other, _)| other);
        let others = others.take_while(|other| other.as_str().starts_with(&family)).filter_map(RequestId::content);
        let mut others = others.filter(|(name, _)| self::family(name) == family);
        others.any(|(_, other)| other != content)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Remembered> {
        self.order.iter()
    }

    /// Remembers an answer; `at` never goes back from one call to the next.
    pub(crate) fn remember(&mut self, at: Timestamp, id: RequestId, outcome: TxnOutcome, bounds: Bounds) {
        self.expire(at, bounds);
        let one = Remembered { at, id, outcome: Arc::new(outcome) };
        self.bytes += cost(&one.outcome);
        self.by_id.insert(one.id.clone(), Arc::clone(&one.outcome));
        self.order.push_back(one);
        while self.order.len() > bounds.count || (self.bytes > DUPLICATES_MAX_BYTES && self.order.len() > 1) {
            self.forget_first();
        }
    }

    /// Forgets what is too old.
    pub(crate) fn expire(&mut self, now: Timestamp, bounds: Bounds) {
        while self.order.len() > bounds.kept
            && self.order.front().is_some_and(|first| now.since(first.at) > DUPLICATES_MAX_AGE)
        {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some(first) = self.order.pop_front() {
            self.bytes -= cost(&first.outcome);
            self.by_id.remove(&first.id);
        }
    }
}

/// What the ids of one request begin with: its attempts are `<request>/<attempt>`, whatever the store did for each.
fn family(name: &str) -> String {
    name.rsplit_once('/').map_or_else(|| format!("{name}~"), |(request, _)| format!("{request}/"))
}

fn cost(outcome: &TxnOutcome) -> usize {
    let objects = outcome.outcomes.iter().map(|one| one.as_ref().map_or(128, |object| object.json().len()));
    ANSWER_OVERHEAD + objects.sum::<usize>()
}
