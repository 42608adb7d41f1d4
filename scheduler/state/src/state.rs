//! The state of a region, and the one step that changes it.

use std::collections::BTreeMap;

use hearth_types::{
    GroupKind, Incarnation, Object, ObjectKey, RequestId, Revision, Timestamp,
    store::{OpError, Query, Txn, TxnOutcome, WatchEvent},
};
use serde::{Deserialize, Serialize};

use crate::{
    command::{Command, Refusal, check_txn},
    duplicates::{Bounds, Duplicates},
    history::{Change, Expired, History},
    ops::{Objects, Working},
};

/// The highest feature level of entries that this program reads. Level 1: `Initialize`, `Txn` with the operations
/// create, update, delete, bind and check, `RaiseFeatureLevel`. Level 2: a key belongs to one Device; entries before it are
/// applied by the rule that they were acknowledged under. Level 3: more requests are remembered, the newest whatever the clock says.
/// Level 4: a claim of the policy `Move` gets an epoch when it gets a device.
pub const FEATURE_LEVEL: u32 = 4;
/// The level that a region begins with.
const FIRST_LEVEL: u32 = 1;
/// From here on a key belongs to one Device.
const ONE_KEY_ONE_DEVICE: u32 = 2;
/// From here on claims of the policy `Move` have epochs. One that got its device before is one that stays, until its next pod is bound.
const EPOCHS: u32 = 4;

/// Everything that the region's servers agree on. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) objects: Objects,
    pub(crate) history: History,
    pub(crate) duplicates: Duplicates,
    /// The latest time of any command: never goes back.
    pub(crate) clock: Timestamp,
    pub(crate) feature_level: u32,
}

/// What a command did, as its proposer is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// Of an entry that carries no command (Raft's own).
    Nothing,
    /// The data's identity, which may have been given before.
    Incarnation(Incarnation),
    /// Of a transaction.
    Txn(TxnOutcome),
    /// The cluster's feature level.
    FeatureLevel(u32),
    /// The command did nothing.
    Refused(Refusal),
}

/// What a command did.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// What the proposer is told.
    pub response: Response,
    /// What changed, in order, all at one revision.
    pub changes: Vec<Change>,
}

impl Applied {
    fn only(response: Response) -> Self {
        Self { response, changes: Vec::new() }
    }
}

/// Takes the state one command further.
///
/// # Guarantees
/// The same commands in the same order make the same state and the same answers everywhere. Nothing panics on any
/// command that [`Command::decode`] returns.
pub fn apply(state: &mut State, command: &Command) -> Applied {
    match command {
        Command::Initialize { incarnation, now } => {
            state.tick(*now);
            let incarnation = state.incarnation.get_or_insert_with(|| incarnation.clone()).clone();
            state.feature_level = state.feature_level.max(FIRST_LEVEL);
            Applied::only(Response::Incarnation(incarnation))
        }
        Command::Txn(txn) => state.apply_txn(txn),
        Command::RaiseFeatureLevel { level, now } => {
            state.tick(*now);
            if *level < state.feature_level {
                let present = state.feature_level;
                return Applied::only(Response::Refused(Refusal::FeatureLevel { present, asked: *level }));
            }
            state.feature_level = *level;
            Applied::only(Response::FeatureLevel(*level))
        }
        Command::Unknown(bytes) => Applied::only(Response::Refused(Command::refusal_of_unknown(bytes))),
    }
}

impl State {
    /// The identity of the data; `None` before the first command.
    pub fn incarnation(&self) -> Option<&Incarnation> {
        self.incarnation.as_ref()
    }

    /// The last revision.
    pub fn revision(&self) -> Revision {
        self.history.revision()
    }

    /// The cluster's feature level: entries up to it may be written.
    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key)
    }

    /// What became of a transaction, as long as that is remembered.
    pub fn outcome(&self, id: &RequestId) -> Option<&TxnOutcome> {
        self.duplicates.get(id)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// What changed lately.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Every change after `from` that a query selects, in order.
    pub fn events_since(&self, from: Revision, query: &Query) -> Result<Vec<WatchEvent>, Expired> {
        self.history.batch(from, query, usize::MAX, usize::MAX).map(|batch| batch.events)
    }

    /// How many objects there are of each kind.
    pub fn kinds(&self) -> BTreeMap<GroupKind, usize> {
        let mut kinds = BTreeMap::new();
        for key in self.objects.keys() {
            *kinds.entry(key.kind.clone()).or_default() += 1;
        }
        kinds
    }

    /// The state as it goes on after a restore: at a later revision and without history, so that whoever watches from before is told
    /// to list anew, and so is whoever had seen more than this.
    #[must_use]
    pub fn resumed(mut self, at: Revision) -> Self {
        let at = at.max(self.revision());
        self.history = History::restored(at, at, imbl::Vector::new());
        self
    }

    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    fn tick(&mut self, now: Timestamp) {
        self.clock = self.clock.max(now);
        self.duplicates.expire(self.clock, Bounds::at(self.feature_level));
    }

    fn apply_txn(&mut self, txn: &Txn) -> Applied {
        if let Err(refusal) = check_txn(txn) {
            return Applied::only(Response::Refused(refusal));
        }
        self.tick(txn.now);
        if let Some(first) = self.duplicates.get(&txn.request_id) {
            return Applied::only(Response::Txn(first.clone()));
        }
        if self.duplicates.is_reused(&txn.request_id) {
            return Applied::only(Response::Refused(Refusal::Reused));
        }
        let revision = self.revision().next();
        let unique_keys = self.feature_level >= ONE_KEY_ONE_DEVICE;
        let epochs = self.feature_level >= EPOCHS;
        let mut work =
            Working { objects: &mut self.objects, revision, now: txn.now, changes: Vec::new(), unique_keys, epochs };
        let mut outcomes = Vec::with_capacity(txn.ops.len());
        for op in &txn.ops {
            let outcome = work.apply(op);
            let failed = outcome.is_err();
            outcomes.push(outcome);
            if failed && txn.atomic {
                work.undo();
                abort_others(&mut outcomes, txn.ops.len());
                break;
            }
        }
        let changes = work.changes;
        if !changes.is_empty() {
            self.history.push(revision, &changes);
        }
        let outcome = TxnOutcome { revision: self.revision(), outcomes };
        let bounds = Bounds::at(self.feature_level);
        self.duplicates.remember(self.clock, txn.request_id.clone(), outcome.clone(), bounds);
        Applied { response: Response::Txn(outcome), changes }
    }
}

/// Of an atomic transaction, only the operation that failed says why.
fn abort_others(outcomes: &mut Vec<Result<Object, OpError>>, total: usize) {
    for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
        *outcome = Err(OpError::Aborted);
    }
    outcomes.resize(total, Err(OpError::Aborted));
}
