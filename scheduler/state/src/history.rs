//! What changed, in order: bounded, and read as a watcher sees it.

use std::sync::Arc;

use hearth_types::{
    Object, Reason, Revision, Status,
    store::{Query, WatchEvent},
};
use imbl::Vector;

use crate::ops::Objects;

/// Changes that are kept at most. A watcher or a paged list that falls further behind starts anew; at 100 changes a
/// second, more than a region of 10,000 devices makes when idle, this is three minutes.
pub const HISTORY_MAX_CHANGES: usize = 20_000;
/// Bytes of objects that are kept for the history alone at most: half of what etcd's clients may hold in one list, and
/// a fifth of what a region's server may use.
pub const HISTORY_MAX_BYTES: usize = 32 << 20;
/// What a change costs beside its object's bytes: header, labels, pointers.
const CHANGE_OVERHEAD: usize = 384;

/// One change of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The object before; `None` where it was created.
    pub before: Option<Object>,
    /// The object after, at the revision of the change. Of a removal: as it was last.
    pub now: Object,
    /// Whether it is gone.
    pub removed: bool,
}

impl Change {
    /// The revision that made it.
    pub fn revision(&self) -> Revision {
        self.now.revision()
    }

    /// What a watcher sees of it.
    pub fn seen_by(&self, query: &Query) -> Option<WatchEvent> {
        if *self.now.kind() != query.kind {
            return None;
        }
        let was = self.before.as_ref().filter(|before| query.matches(before));
        match (was, !self.removed && query.matches(&self.now)) {
            (None, true) => Some(WatchEvent::Added(self.now.clone())),
            (Some(_), true) => Some(WatchEvent::Modified(self.now.clone())),
            (Some(_), false) if self.removed => Some(WatchEvent::Deleted(self.now.clone())),
            (Some(before), false) => Some(WatchEvent::Deleted(before.with_revision(self.revision()))),
            (None, false) => None,
        }
    }

    /// Takes it back.
    pub(crate) fn undo(&self, objects: &mut Objects) {
        match &self.before {
            None => {
                objects.remove(self.now.key());
            }
            Some(before) => match objects.get_mut(self.now.key()) {
                Some(slot) => *slot = before.clone(),
                None => {
                    objects.insert(Arc::new(before.key().clone()), before.clone());
                }
            },
        }
    }

    fn cost(&self) -> usize {
        self.now.json().len() + CHANGE_OVERHEAD
    }
}

/// A revision that is not in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Expired {
    /// It is too old.
    #[error("too old resource version: {from} (the history begins at {floor}); list anew")]
    TooOld {
        /// What was asked for.
        from: Revision,
        /// From where the history is complete.
        floor: Revision,
    },
    /// It is ahead of what this server has, or of other data.
    #[error("resource version {from} is ahead of this server's {revision}; list anew")]
    Ahead {
        /// What was asked for.
        from: Revision,
        /// Where the server is.
        revision: Revision,
    },
}

impl From<Expired> for Status {
    fn from(expired: Expired) -> Self {
        Self::new(Reason::Expired, expired.to_string())
    }
}

/// Events of some revisions, and how far they go.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The events, in order.
    pub events: Vec<WatchEvent>,
    /// Every event up to here is among them: whole revisions only.
    pub upto: Revision,
}

/// The changes that are kept. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct History {
    changes: Vector<Change>,
    bytes: usize,
    floor: Revision,
    revision: Revision,
}

impl History {
    /// Every change after this revision is here.
    pub fn floor(&self) -> Revision {
        self.floor
    }

    /// The last revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// How many changes are kept.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(crate) fn restored(floor: Revision, revision: Revision, changes: Vector<Change>) -> Self {
        let bytes = changes.iter().map(Change::cost).sum();
        Self { changes, bytes, floor, revision }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter()
    }

    /// Adds the changes of one transaction and drops what is too much, whole revisions at a time.
    pub(crate) fn push(&mut self, revision: Revision, changes: &[Change]) {
        self.revision = revision;
        for change in changes {
            self.bytes += change.cost();
            self.changes.push_back(change.clone());
        }
        while self.changes.len() > HISTORY_MAX_CHANGES || self.bytes > HISTORY_MAX_BYTES {
            let Some(first) = self.changes.front().map(Change::revision) else {
                break;
            };
            while self.changes.front().is_some_and(|change| change.revision() == first) {
                self.bytes -= self.changes.pop_front().map_or(0, |change| change.cost());
            }
            self.floor = first;
        }
    }

    /// Checks that every change after `from` is here.
    pub fn check(&self, from: Revision) -> Result<(), Expired> {
        if from < self.floor {
            return Err(Expired::TooOld { from, floor: self.floor });
        }
        if from > self.revision {
            return Err(Expired::Ahead { from, revision: self.revision });
        }
        Ok(())
    }

    /// The changes after a revision, which [`History::check`] found to be here.
    pub(crate) fn after(&self, from: Revision) -> impl DoubleEndedIterator<Item = &Change> {
        let (mut low, mut high) = (0, self.changes.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.changes.get(middle).is_some_and(|change| change.revision() <= from) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.changes.focus().narrow(low..).into_iter()
    }

    /// What a watcher at `from` sees next: events of whole revisions, until `max_events` are there or `max_changes` were
    /// looked at.
    pub fn batch(
        &self,
        from: Revision,
        query: &Query,
        max_events: usize,
        max_changes: usize,
    ) -> Result<Batch, Expired> {
        self.check(from)?;
        let mut batch = Batch { events: Vec::new(), upto: from };
        for (seen, change) in self.after(from).enumerate() {
            if change.revision() > batch.upto {
                // The revision before this one is complete: a place to stop.
                if batch.events.len() >= max_events || seen >= max_changes {
                    // `upto` was moved to the revision under way, all of which was seen.
                    return Ok(batch);
                }
                batch.upto = change.revision();
            }
            batch.events.extend(change.seen_by(query));
        }
        batch.upto = self.revision;
        Ok(batch)
    }
}
