//! What was seen in a run, from outside: all that the invariants judge.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::history::objects::{Key, ObjectOperation, Stored};

/// What a watcher was told of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// It is new.
    Added,
    /// It changed.
    Modified,
    /// It is gone.
    Deleted,
}

/// One change of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Which object.
    pub key: Key,
    /// How.
    pub what: What,
    /// Its value, or the last that it had.
    pub value: u64,
}

/// What a watcher saw next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It began to watch at a server, after a revision.
    Began {
        /// That server.
        server: u64,
        /// The revision.
        from: u64,
    },
    /// A change.
    Event {
        /// Its revision.
        revision: u64,
        /// What it was.
        change: Change,
    },
    /// A bookmark.
    Bookmark {
        /// Its revision.
        revision: u64,
    },
    /// It was too late, and listed anew.
    Listed {
        /// The revision of the list.
        revision: u64,
    },
}

/// All that one watcher saw, across servers.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// The beginning of the names that it watches.
    pub prefix: String,
    /// In order.
    pub sights: Vec<Sight>,
}

impl Watched {
    /// How far it is.
    pub fn position(&self) -> u64 {
        self.sights.last().map_or(0, |sight| match sight {
            Sight::Began { from: revision, .. }
            | Sight::Event { revision, .. }
            | Sight::Bookmark { revision }
            | Sight::Listed { revision } => *revision,
        })
    }
}

/// What a server said of who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who said so.
    pub by: u64,
    /// The term.
    pub term: u64,
    /// The leader.
    pub leader: u64,
}

/// How far a server was, at some moment of one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which server.
    pub server: u64,
    /// Its how manyth life.
    pub life: u64,
    /// The revision that it had applied.
    pub revision: u64,
    /// The term that it was in.
    pub term: u64,
}

/// What one server had, at a revision of its own, without asking others.
#[derive(Clone, Debug)]
pub struct LocalList {
    /// Which server.
    pub server: u64,
    /// The beginning of the names.
    pub prefix: String,
    /// The objects.
    pub items: BTreeMap<Key, Stored>,
    /// The revision.
    pub revision: u64,
}

/// All of a server at the end, when everything was healed.
#[derive(Clone, Debug)]
pub struct Final {
    /// Which server.
    pub server: u64,
    /// Its revision.
    pub revision: u64,
    /// Its objects.
    pub items: BTreeMap<Key, Stored>,
    /// A hash of its whole state: objects, history, and the requests that it remembers.
    pub state: String,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// What clients asked and were told.
    pub history: Vec<ObjectOperation>,
    /// Who was said to lead.
    pub claims: Vec<Claim>,
    /// How far servers were, in order of time.
    pub progress: Vec<Progress>,
    /// What watchers saw.
    pub watches: Vec<Watched>,
    /// What servers had.
    pub local: Vec<LocalList>,
    /// What they had at the end.
    pub finals: Vec<Final>,
    /// What should not have happened at all: panics, stores that do not open, a group that does not come back.
    pub troubles: Vec<String>,
}

/// Where everybody notes what they see.
#[derive(Default)]
pub struct Notebook(Mutex<Observed>);

impl Notebook {
    /// Writes something down.
    pub fn note(&self, write: impl FnOnce(&mut Observed)) {
        write(&mut self.lock());
    }

    /// All that was written.
    pub fn read(&self) -> Observed {
        self.lock().clone()
    }

    /// How much went wrong that must not.
    pub fn read_troubles(&self) -> usize {
        self.lock().troubles.len()
    }

    /// How far each watcher is.
    pub fn positions(&self) -> Vec<u64> {
        self.lock().watches.iter().map(Watched::position).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
