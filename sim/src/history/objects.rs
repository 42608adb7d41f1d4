//! What one copy of a region's store answers: named objects with a value and the revision of their last change, one by one or all that
//! begin with a prefix at one revision.
//!
//! Registers (get, put, delete) and compare-and-set (put and delete that expect a revision) are checked key by key, and then the history as
//! a whole, since a list shows all its keys at one moment. Revisions rise with every change, whatever its key, and may
//! skip: other clients' changes use them up too.
//!
//! # Assumptions
//! No two writes of a key write the same value, and a client expects only revisions that an operation of the history returned.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use super::{
    Operation, Outcome,
    linearize::{self, History, Misfit, Model, Prepare, Violation},
};

/// The name of an object.
pub type Key = Arc<str>;

/// An object as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stored {
    /// What was written.
    pub value: u64,
    /// The revision of the write.
    pub revision: u64,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// The object, or that there is none.
    Get {
        /// Which one.
        key: Key,
    },
    /// Stores an object that must not exist.
    Create {
        /// Which one.
        key: Key,
        /// Its value.
        value: u64,
    },
    /// Replaces an object that must exist.
    Put {
        /// Which one.
        key: Key,
        /// Its new value.
        value: u64,
        /// The revision that it must have, where it matters: compare-and-set.
        expect: Option<u64>,
    },
    /// Removes an object that must exist.
    Delete {
        /// Which one.
        key: Key,
        /// The revision that it must have, where it matters.
        expect: Option<u64>,
    },
    /// All objects whose names begin so, as they are at one moment.
    List {
        /// The beginning; empty for all.
        prefix: Key,
    },
}

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A create of what exists.
    Exists,
    /// A put or delete of what does not.
    Missing,
    /// It has another revision than was expected.
    Changed,
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Of a get.
    Found(Option<Stored>),
    /// Of a create or put that happened.
    Written {
        /// Its revision.
        revision: u64,
    },
    /// Of a delete that happened.
    Deleted {
        /// Its revision.
        revision: u64,
    },
    /// Of a write that was refused, which changed nothing.
    Refused {
        /// Why.
        why: Refusal,
        /// The store's revision at that moment.
        at: u64,
    },
    /// Of a list.
    Listed {
        /// All there is.
        items: BTreeMap<Key, Stored>,
        /// The store's revision at that moment.
        revision: u64,
    },
}

/// An operation on the store.
pub type ObjectOperation = Operation<Call, Answer>;

/// Checks a history of the store that begins with nothing in it.
///
/// # Panics
/// If two moments of it are the same, which says nothing of what came first, or if a key is written the same value twice.
pub fn check(history: &[ObjectOperation]) -> Result<(), Violation<Call, Answer>> {
    assert_moments_are_unique(history);
    assert_values_are_unique(history);
    if let Some(one) = sees_what_nobody_wrote(history) {
        return Err(Violation::Impossible { window: vec![one.clone()], others: 0, from_start: true });
    }
    // Key by key first: what can be refuted there is refuted soonest, and in the fewest words. Only the whole shows lists, and the order of
    // revisions across keys.
    let history = with_what_was_seen(history);
    let keys: BTreeSet<&Key> = history.iter().filter_map(|one| one.call.key()).collect();
    for key in keys {
        let of_key = history.iter().filter(|one| one.call.key() == Some(key)).cloned().collect();
        linearize::check(&FromHistory, &of_key)?;
    }
    linearize::check(&FromHistory, &history)
}

fn assert_moments_are_unique(history: &[ObjectOperation]) {
    let mut moments = BTreeSet::new();
    for one in history {
        for moment in [Some(one.invoked), one.answer().map(|_| one.returned)].into_iter().flatten() {
            assert!(moments.insert(moment), "{moment} is in the history twice: moments are to be unique");
        }
    }
}

fn assert_values_are_unique(history: &[ObjectOperation]) {
    let mut written = BTreeSet::new();
    for one in history {
        if let Some((key, value)) = one.call.writes() {
            assert!(written.insert((key, value)), "{} is in the history twice: values are to be unique", one.call);
        }
    }
}

/// The first operation that shows what nobody had begun to write.
fn sees_what_nobody_wrote(history: &[ObjectOperation]) -> Option<&ObjectOperation> {
    let may_happen = history.iter().filter(|one| one.outcome != Outcome::Failed);
    let begun: HashMap<(&Key, u64), u64> =
        may_happen.filter_map(|one| Some((one.call.writes()?, one.invoked))).collect();
    history.iter().find(|one| {
        let mut shown = one.answer().into_iter().flat_map(|answer| seen(&one.call, answer));
        shown.any(|(key, stored)| begun.get(&(key, stored.value)).is_none_or(|begun| *begun >= one.returned))
    })
}

/// The objects that an answer shows.
fn seen<'a>(call: &'a Call, answer: &'a Answer) -> Box<dyn Iterator<Item = (&'a Key, &'a Stored)> + 'a> {
    match (call, answer) {
        (Call::Get { key }, Answer::Found(Some(stored))) => Box::new(std::iter::once((key, stored))),
        (_, Answer::Listed { items, .. }) => Box::new(items.iter()),
        _ => Box::new(std::iter::empty()),
    }
}

impl Call {
    /// The key that it is about; a list has none.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::Get { key } | Self::Create { key, .. } | Self::Put { key, .. } | Self::Delete { key, .. } => {
                Some(key)
            }
            Self::List { .. } => None,
        }
    }

    /// The key and the value that it would store.
    pub fn writes(&self) -> Option<(&Key, u64)> {
        match self {
            Self::Create { key, value } | Self::Put { key, value, .. } => Some((key, *value)),
            Self::Get { .. } | Self::Delete { .. } | Self::List { .. } => None,
        }
    }
}

/// Makes the model of a history.
struct FromHistory;

impl Prepare for FromHistory {
    type Model = Objects;

    fn prepare(&self, history: &History<Objects>) -> (Objects, History<Objects>) {
        let mut names: BTreeSet<&Key> = history.iter().filter_map(|one| one.call.key()).collect();
        for one in history {
            names.extend(one.answer().into_iter().flat_map(|answer| seen(&one.call, answer)).map(|(key, _)| key));
        }
        let parts = names.into_iter().cloned().enumerate().map(|(part, name)| (name, part)).collect();
        (Objects { parts }, with_what_was_seen(history))
    }
}

/// The history with what follows of writes of unknown outcome: one whose value was seen did happen, at the revision that was seen and before
/// the first who saw it was told.
fn with_what_was_seen(history: &[ObjectOperation]) -> Vec<ObjectOperation> {
    let mut first_seen: HashMap<(&Key, u64), (u64, u64)> = HashMap::new();
    for one in history {
        let Some(answer) = one.answer() else { continue };
        for (key, stored) in seen(&one.call, answer) {
            let first = first_seen.entry((key, stored.value)).or_insert((one.returned, stored.revision));
            first.0 = first.0.min(one.returned);
        }
    }
    let told = |one: &ObjectOperation| {
        let (returned, revision) = *first_seen.get(&one.call.writes()?)?;
        let told = one.outcome == Outcome::Unknown && one.invoked < returned;
        told.then(|| Operation { returned, outcome: Outcome::Ok(Answer::Written { revision }), ..one.clone() })
    };
    history.iter().map(|one| told(one).unwrap_or_else(|| one.clone())).collect()
}

/// The sequential store.
struct Objects {
    /// The keys of the history.
    parts: BTreeMap<Key, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Cell {
    /// Nobody knows: stands for every other one.
    Anything,
    Absent,
    /// A write of unknown outcome left a value here that nobody saw.
    Unseen,
    Present(Stored),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Contents {
    cells: Vec<Cell>,
    /// The last revision that was used up, as far as is known.
    revision: u64,
}

impl Contents {
    fn with(&self, part: usize, cell: Cell) -> Self {
        let mut next = self.clone();
        next.cells[part] = cell;
        next
    }

    /// A change at a revision, which must be a new one.
    fn changed(&self, part: usize, cell: Cell, revision: u64) -> Result<Self, Misfit> {
        if revision <= self.revision {
            return Err(Misfit::Never);
        }
        Ok(Self { revision, ..self.with(part, cell) })
    }

    /// Nothing changed, and this is the store's revision.
    fn at(mut self, revision: u64) -> Result<Self, Misfit> {
        if revision < self.revision {
            return Err(Misfit::Never);
        }
        self.revision = revision;
        Ok(self)
    }

    /// What is stored there was seen.
    fn look(&mut self, part: usize, found: Option<Stored>) -> Result<(), Misfit> {
        let fits = match (self.cells[part], found) {
            (Cell::Anything, Some(stored)) => {
                self.cells[part] = Cell::Present(stored);
                true
            }
            (Cell::Anything, None) => {
                self.cells[part] = Cell::Absent;
                true
            }
            (Cell::Absent, found) => found.is_none(),
            (Cell::Present(stored), found) => found == Some(stored),
            (Cell::Unseen, _) => false,
        };
        if fits { Ok(()) } else { Err(Misfit::Part(part)) }
    }
}

/// Whether a write that expects a revision happens, and if not, why.
fn meets(cell: Cell, expect: Option<u64>) -> Result<(), Refusal> {
    match (cell, expect) {
        (Cell::Absent, _) => Err(Refusal::Missing),
        (Cell::Anything, _) | (Cell::Unseen | Cell::Present(_), None) => Ok(()),
        (Cell::Present(stored), Some(expect)) if stored.revision == expect => Ok(()),
        (Cell::Present(_) | Cell::Unseen, Some(_)) => Err(Refusal::Changed),
    }
}

impl Objects {
    fn part(&self, key: &Key) -> usize {
        self.parts[key]
    }

    fn refused(&self, state: &Contents, call: &Call, why: Refusal, at: u64) -> Result<Contents, Misfit> {
        let Some(key) = call.key() else { return Err(Misfit::Never) };
        let part = self.part(key);
        let cell = state.cells[part];
        let expected = match call {
            Call::Create { .. } => Some(Refusal::Exists).filter(|_| cell != Cell::Absent),
            Call::Put { expect, .. } | Call::Delete { expect, .. } => meets(cell, *expect).err(),
            Call::Get { .. } | Call::List { .. } => return Err(Misfit::Never),
        };
        match (cell, why) {
            (Cell::Anything, Refusal::Missing) => state.with(part, Cell::Absent).at(at),
            (Cell::Anything, _) => state.clone().at(at),
            _ if expected == Some(why) => state.clone().at(at),
            _ => Err(Misfit::Part(part)),
        }
    }
}

impl Model for Objects {
    type State = Contents;
    type Call = Call;
    type Answer = Answer;

    fn initial(&self) -> Contents {
        Contents { cells: vec![Cell::Absent; self.parts.len()], revision: 0 }
    }

    fn anything(&self) -> Contents {
        Contents { cells: vec![Cell::Anything; self.parts.len()], revision: 0 }
    }

    fn step(&self, state: &Contents, call: &Call, answer: &Answer) -> Result<Contents, Misfit> {
        match (call, answer) {
            (Call::Get { key }, Answer::Found(found)) => {
                let mut next = state.clone();
                next.look(self.part(key), *found)?;
                Ok(next)
            }
            (Call::List { prefix }, Answer::Listed { items, revision }) => {
                let mut next = state.clone();
                if items.iter().any(|(key, stored)| !key.starts_with(&**prefix) || stored.revision > *revision) {
                    return Err(Misfit::Never);
                }
                for (key, part) in self.parts.iter().filter(|(key, _)| key.starts_with(&**prefix)) {
                    next.look(*part, items.get(key).copied())?;
                }
                next.at(*revision)
            }
            (Call::Create { key, value }, Answer::Written { revision }) => {
                let (part, stored) = (self.part(key), Stored { value: *value, revision: *revision });
                match state.cells[part] {
                    Cell::Absent | Cell::Anything => state.changed(part, Cell::Present(stored), *revision),
                    Cell::Unseen | Cell::Present(_) => Err(Misfit::Part(part)),
                }
            }
            (Call::Put { key, value, expect }, Answer::Written { revision }) => {
                let (part, stored) = (self.part(key), Stored { value: *value, revision: *revision });
                meets(state.cells[part], *expect).map_err(|_| Misfit::Part(part))?;
                state.changed(part, Cell::Present(stored), *revision)
            }
            (Call::Delete { key, expect }, Answer::Deleted { revision }) => {
                let part = self.part(key);
                meets(state.cells[part], *expect).map_err(|_| Misfit::Part(part))?;
                state.changed(part, Cell::Absent, *revision)
            }
            (call, Answer::Refused { why, at }) => self.refused(state, call, *why, *at),
            _ => Err(Misfit::Never),
        }
    }

    fn suppose(&self, state: &Contents, call: &Call) -> Option<(usize, Contents)> {
        let part = self.part(call.key()?);
        let cell = state.cells[part];
        let next = match call {
            Call::Create { .. } if matches!(cell, Cell::Absent | Cell::Anything) => Cell::Unseen,
            Call::Put { expect, .. } if meets(cell, *expect).is_ok() => Cell::Unseen,
            Call::Delete { expect, .. } if meets(cell, *expect).is_ok() => Cell::Absent,
            _ => return None,
        };
        (next != cell).then(|| (part, state.with(part, next)))
    }

    fn alike(&self, one: &Call, other: &Call) -> bool {
        match (one, other) {
            // What they would write is not seen by anybody.
            (Call::Create { key: one, .. }, Call::Create { key: other, .. }) => one == other,
            (Call::Put { key: one, expect: first, .. }, Call::Put { key: other, expect: second, .. }) => {
                one == other && first == second
            }
            _ => one == other,
        }
    }

    fn is_spent(&self, state: &Contents, call: &Call) -> bool {
        let (Call::Put { key, expect: Some(expect), .. } | Call::Delete { key, expect: Some(expect) }) = call else {
            return false;
        };
        // Whatever is stored later has a later revision.
        let cell = state.cells[self.part(key)];
        *expect <= state.revision && cell != Cell::Anything && meets(cell, Some(*expect)).is_err()
    }

    fn rank(&self, answer: &Answer) -> Option<u64> {
        match answer {
            Answer::Found(_) => None,
            Answer::Written { revision } | Answer::Deleted { revision } => Some(revision.saturating_mul(2)),
            // After the change of that revision, before the next one.
            Answer::Refused { at, .. } => Some(at.saturating_mul(2).saturating_add(1)),
            Answer::Listed { revision, .. } => Some(revision.saturating_mul(2).saturating_add(1)),
        }
    }

    fn is_read(&self, _: &Call, answer: &Answer) -> bool {
        matches!(answer, Answer::Found(_) | Answer::Listed { .. } | Answer::Refused { .. })
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.value, self.revision)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expecting = |f: &mut fmt::Formatter<'_>, expect: &Option<u64>| match expect {
            Some(expect) => write!(f, " if @{expect}"),
            None => Ok(()),
        };
        match self {
            Self::Get { key } => write!(f, "get {key}"),
            Self::Create { key, value } => write!(f, "create {key} = {value}"),
            Self::Put { key, value, expect } => {
                write!(f, "put {key} = {value}")?;
                expecting(f, expect)
            }
            Self::Delete { key, expect } => {
                write!(f, "delete {key}")?;
                expecting(f, expect)
            }
            Self::List { prefix } => write!(f, "list {prefix}*"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found(None) => f.write_str("none"),
            Self::Found(Some(stored)) => write!(f, "{stored}"),
            Self::Written { revision } | Self::Deleted { revision } => write!(f, "done @{revision}"),
            Self::Refused { why: Refusal::Exists, at } => write!(f, "refused @{at}: it exists"),
            Self::Refused { why: Refusal::Missing, at } => write!(f, "refused @{at}: there is none"),
            Self::Refused { why: Refusal::Changed, at } => write!(f, "refused @{at}: it changed"),
            Self::Listed { items, revision } => {
                let items: Vec<String> = items.iter().map(|(key, stored)| format!("{key}={stored}")).collect();
                write!(f, "@{revision} [{}]", items.join(" "))
            }
        }
    }
}
