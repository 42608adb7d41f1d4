//! Whether a history is linearizable: whether there is an order of its operations, each at a moment between its invocation and its
//! return, in which a sequential [`Model`] gives every answer that was given.
//!
//! # Flow
//! A depth-first search after Wing and Gong ("Testing and verifying concurrent objects", 1993), which takes operations out of a
//! linked list of invocations and returns, and never visits a set of taken operations with the same state twice (Lowe, "Testing for
//! linearizability", 2017). Where answers say in which order they were given ([`Model::rank`]), no other order is tried; an operation that fits and changes
//! nothing is taken at once. Operations of unknown outcome are not in that list: one is taken only right before an operation that does not fit without
//! it. In a model that keeps the promise of [`Model::suppose`] this loses no order: one that is of no use to the next operation on
//! its part can be taken later, or never.
//!
//! # Guarantees
//! `Ok` means that there is such an order. A violation means that there is none; its window is the latest stretch of the history that
//! cannot be explained even if anything at all was stored before it.

use std::{
    collections::HashMap,
    fmt::{self, Debug},
    hash::Hash,
};

use super::{Operation, Outcome};

/// States visited before a check gives up: some seconds' worth. Histories of a few clients need little more than one an operation.
const MAX_STEPS: usize = 200_000;
/// Operations of unknown outcome that are taken for the same part right before one that is known: more are never needed to make a part
/// exist, not exist, or differ.
const MAX_BRIDGE: usize = 3;
/// Operations of a window that are tried one by one whether it is a violation without them.
const MAX_SHRUNK: usize = 64;

/// Why an answer does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// This part of the state is another than the answer says. Parts are blamed in order: the same one until it fits.
    Part(usize),
    /// Whatever else happened before.
    Never,
}

/// A sequential object.
pub trait Model {
    /// What it is at one moment.
    type State: Clone + Eq + Hash + Debug;
    /// What it can be asked.
    type Call: Clone + Debug;
    /// What it can answer.
    type Answer: Clone + Debug;

    /// What it is before the first operation.
    fn initial(&self) -> Self::State;
    /// A state that stands for every other one: whatever is asked of it fits.
    fn anything(&self) -> Self::State;
    /// The state after an operation that was answered, or why it cannot have been answered so.
    fn step(&self, state: &Self::State, call: &Self::Call, answer: &Self::Answer) -> Result<Self::State, Misfit>;
    /// The state after an operation of unknown outcome, and the part that it changed; `None` where it would change nothing. What it leaves must not
    /// fit any operation better than what was there, but for those that look at that part.
    fn suppose(&self, state: &Self::State, call: &Self::Call) -> Option<(usize, Self::State)>;
    /// Whether two operations of unknown outcome would do the same, so that only the earlier one need be tried.
    fn alike(&self, one: &Self::Call, other: &Self::Call) -> bool;
    /// Whether an operation of unknown outcome cannot do anything any more, whatever happens after this state.
    fn is_spent(&self, state: &Self::State, call: &Self::Call) -> bool;
    /// Its place among those operations whose answers tell one: they happened in this order, or it is no history of this object.
    fn rank(&self, answer: &Self::Answer) -> Option<u64>;
    /// Whether an operation with this answer changes nothing.
    fn is_read(&self, call: &Self::Call, answer: &Self::Answer) -> bool;
}

/// Operations of a model.
pub type History<M> = Vec<Operation<<M as Model>::Call, <M as Model>::Answer>>;

/// Why a history was not found linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation<C, A> {
    /// It is not.
    Impossible {
        /// The smallest stretch of it that cannot be explained, in the order of invocation. Outcomes that its end or beginning cuts off are
        /// unknown in it.
        window: Vec<Operation<C, A>>,
        /// Operations of unknown outcome that may have happened as well; none of them helps.
        others: usize,
        /// Whether it is the beginning of the history, so that nothing was stored before.
        from_start: bool,
    },
    /// The search was given up.
    Undecided {
        /// After so many states.
        steps: usize,
    },
}

impl<C: fmt::Display, A: fmt::Display> fmt::Display for Violation<C, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecided { steps } => write!(f, "undecided after {steps} states: use fewer clients or keys"),
            Self::Impossible { window, others, from_start } => {
                let before = if *from_start { "at first nothing is stored" } else { "whatever was stored before" };
                let count = window.len();
                write!(f, "not linearizable: {before}, no order explains these {count} operations")?;
                match others {
                    0 => writeln!(f)?,
                    others => writeln!(f, ", even with some of {others} more of unknown outcome between them")?,
                }
                for one in window {
                    write!(f, "  client {:<3} {:>14} .. ", one.client, one.invoked)?;
                    match &one.outcome {
                        Outcome::Ok(answer) => writeln!(f, "{:<14} {} -> {answer}", one.returned, one.call)?,
                        Outcome::Failed => writeln!(f, "{:<14} {} -> did not happen", one.returned, one.call)?,
                        Outcome::Unknown => writeln!(f, "{:<14} {} -> unknown", "?", one.call)?,
                    }
                }
                Ok(())
            }
        }
    }
}

impl<C: fmt::Display + Debug, A: fmt::Display + Debug> std::error::Error for Violation<C, A> {}

/// How the model of a history is made: operations of unknown outcome may be told by what the others saw.
pub trait Prepare: Sized {
    /// The model.
    type Model: Model;
    /// The model of a history, and the history as it is to be searched.
    fn prepare(&self, history: &History<Self::Model>) -> (Self::Model, History<Self::Model>);
}

type Found<P> = Violation<<<P as Prepare>::Model as Model>::Call, <<P as Prepare>::Model as Model>::Answer>;

/// Checks a history. Failed operations are left out.
pub fn check<P: Prepare>(prepare: &P, history: &History<P::Model>) -> Result<(), Found<P>> {
    let (model, _) = prepare.prepare(history);
    let anything = model.anything();
    let matters = |one: &&Operation<_, _>| match &one.outcome {
        Outcome::Ok(_) => true,
        Outcome::Unknown => model.suppose(&anything, &one.call).is_some(),
        Outcome::Failed => false,
    };
    let mut history: History<P::Model> = history.iter().filter(matters).cloned().collect();
    history.sort_by_key(|one| one.invoked);
    match search(prepare, &history, false) {
        Ok(()) => return Ok(()),
        Err(Stuck::GaveUp(steps)) => return Err(Violation::Undecided { steps }),
        Err(Stuck::Impossible) => {}
    }
    let ended = earliest_end(prepare, history);
    let (window, from_start) = latest_start(prepare, &ended);
    let (window, others) = without_needless(prepare, window, from_start);
    Err(Violation::Impossible { window, others, from_start })
}

/// The shortest beginning of a history that is no more linearizable than all of it.
fn earliest_end<P: Prepare>(prepare: &P, history: History<P::Model>) -> History<P::Model> {
    let mut ends: Vec<u64> = history.iter().filter(|one| one.answer().is_some()).map(|one| one.returned).collect();
    ends.sort_unstable();
    // A later end says more, so once it is impossible it stays so.
    let fits = |end: &u64| search(prepare, &until(history.clone(), *end), false) != Err(Stuck::Impossible);
    let at = ends.partition_point(fits);
    match ends.get(at) {
        Some(end) => until(history, *end),
        None => history,
    }
}

/// The history as it was known at a moment.
fn until<C, A>(history: Vec<Operation<C, A>>, moment: u64) -> Vec<Operation<C, A>> {
    let invoked = history.into_iter().filter(|one| one.invoked <= moment);
    let cut = |mut one: Operation<C, A>| {
        if one.returned > moment {
            one.outcome = Outcome::Unknown;
        }
        one
    };
    invoked.map(cut).collect()
}

/// What happened at or after a moment. Operations that were under way may have happened before.
fn since<M: Model>(model: &M, history: &History<M>, moment: u64) -> History<M> {
    let mut kept = Vec::new();
    for one in history {
        match one.answer() {
            Some(_) if one.returned < moment => {}
            Some(answer) if one.invoked < moment => {
                if !model.is_read(&one.call, answer) {
                    kept.push(Operation { outcome: Outcome::Unknown, ..one.clone() });
                }
            }
            _ => kept.push(one.clone()),
        }
    }
    kept
}

/// The shortest end of a history that is no more linearizable than all of it, and whether that is all of it.
fn latest_start<P: Prepare>(prepare: &P, history: &History<P::Model>) -> (History<P::Model>, bool) {
    let (model, _) = prepare.prepare(history);
    let starts: Vec<u64> = history.iter().filter(|one| one.answer().is_some()).map(|one| one.invoked).collect();
    let from = |start: usize| since(&model, history, starts[start]);
    let fails = |start: usize| matches!(search(prepare, &from(start), true), Err(Stuck::Impossible));
    if starts.is_empty() || !fails(0) {
        return (history.clone(), true);
    }
    // A later start leaves more unsaid, so once it is linearizable it stays so.
    let (mut failing, mut fitting) = (0, starts.len());
    while fitting - failing > 1 {
        let middle = usize::midpoint(failing, fitting);
        *(if fails(middle) { &mut failing } else { &mut fitting }) = middle;
    }
    (from(failing), false)
}

/// The window without reads and operations of unknown outcome that do not matter, and how many of the latter were left out.
fn without_needless<P: Prepare>(
    prepare: &P,
    mut window: History<P::Model>,
    from_start: bool,
) -> (History<P::Model>, usize) {
    let (model, _) = prepare.prepare(&window);
    let is_unknown = |one: &Operation<_, _>| one.answer().is_none();
    let impossible = |window: &History<P::Model>| search(prepare, window, !from_start) == Err(Stuck::Impossible);
    let before = window.iter().filter(|one| is_unknown(one)).count();
    let known = window.iter().filter(|one| !is_unknown(one)).cloned().collect();
    if impossible(&known) {
        window = known;
    }
    let mut at = 0;
    while window.len() <= MAX_SHRUNK && at < window.len() {
        let mut shorter = window.clone();
        let removed = shorter.remove(at);
        if removed.answer().is_none_or(|answer| model.is_read(&removed.call, answer)) && impossible(&shorter) {
            window = shorter;
        } else {
            at += 1;
        }
    }
    let others = before - window.iter().filter(|one| is_unknown(one)).count();
    (window, others)
}

/// Why a search ended without an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stuck {
    /// There is none.
    Impossible,
    /// It took too long.
    GaveUp(usize),
}

fn search<P: Prepare>(prepare: &P, history: &History<P::Model>, anything: bool) -> Result<(), Stuck> {
    let (model, history) = prepare.prepare(history);
    let state = if anything { model.anything() } else { model.initial() };
    // First as if what is of unknown outcome could happen any number of times: then nothing depends on which of it was used before, and nearly
    // all that is impossible is so already.
    Search::new(&model, &history, state.clone(), true).run()?;
    Search::new(&model, &history, state, false).run()
}

/// Invocations and returns in the order of time, as a list from which operations are taken and put back.
struct Moments {
    /// `(operation, whether it is its return)`; the first is the head.
    events: Vec<(usize, bool)>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where the invocation and the return of an operation are.
    places: Vec<(usize, usize)>,
}

const HEAD: usize = 0;

impl Moments {
    fn new(times: &[(u64, u64)]) -> Self {
        let mut events: Vec<(u64, usize, bool)> = Vec::with_capacity(times.len() * 2);
        for (operation, (invoked, returned)) in times.iter().enumerate() {
            events.push((*invoked, operation, false));
            events.push((*returned, operation, true));
        }
        // At one moment, invocations first: what might have overlapped did.
        events.sort_by_key(|(time, operation, returns)| (*time, *returns, *operation));
        let mut places = vec![(0, 0); times.len()];
        let mut list = vec![(usize::MAX, false)];
        for (_, operation, returns) in events {
            let place = if returns { &mut places[operation].1 } else { &mut places[operation].0 };
            *place = list.len();
            list.push((operation, returns));
        }
        let count = list.len();
        let next = (0..count).map(|at| (at + 1) % count).collect();
        let previous = (0..count).map(|at| (at + count - 1) % count).collect();
        Self { events: list, next, previous, places }
    }

    fn first(&self) -> Option<usize> {
        Some(self.next[HEAD]).filter(|at| *at != HEAD)
    }

    fn unlink(&mut self, at: usize) {
        self.next[self.previous[at]] = self.next[at];
        self.previous[self.next[at]] = self.previous[at];
    }

    fn link(&mut self, at: usize) {
        self.next[self.previous[at]] = at;
        self.previous[self.next[at]] = at;
    }

    fn take(&mut self, operation: usize) {
        let (invocation, returns) = self.places[operation];
        self.unlink(invocation);
        self.unlink(returns);
    }

    /// Undoes the last take that was not undone.
    fn put_back(&mut self, operation: usize) {
        let (invocation, returns) = self.places[operation];
        self.link(returns);
        self.link(invocation);
    }
}

/// A set of small numbers, most of the low ones in it.
#[derive(Clone, Default)]
struct Bits {
    words: Vec<u64>,
    /// Words that are full, from the beginning.
    full: usize,
}

impl Bits {
    fn new(count: usize) -> Self {
        Self { words: vec![0; count.div_ceil(64)], full: 0 }
    }

    fn has(&self, at: usize) -> bool {
        self.words[at / 64] & (1 << (at % 64)) != 0
    }

    fn flip(&mut self, at: usize) {
        self.words[at / 64] ^= 1 << (at % 64);
        self.full = self.full.min(at / 64);
        while self.words.get(self.full) == Some(&u64::MAX) {
            self.full += 1;
        }
    }

    /// What tells this set from every other one.
    fn key(&self) -> (usize, Vec<u64>) {
        let end = self.words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        (self.full, self.words.get(self.full..end).unwrap_or_default().to_vec())
    }
}

/// A way to take an operation: what of unknown outcome is taken before it, and the state after it.
struct Way<S> {
    before: Vec<usize>,
    state: S,
}

struct Frame<S> {
    operation: usize,
    before: Vec<usize>,
    state: S,
    /// Other ways to take the same operation.
    others: Vec<Way<S>>,
    /// It changed nothing, so that it can as well be taken here as anywhere later.
    settled: bool,
}

/// What was visited: the known operations that were taken, the state, and what of unknown outcome was left each time.
type Visited<S> = HashMap<((usize, Vec<u64>), S), Vec<Vec<u64>>>;

/// An operation and its answer.
type Known<'a, M> = (&'a Operation<<M as Model>::Call, <M as Model>::Answer>, &'a <M as Model>::Answer);

struct Search<'a, M: Model> {
    model: &'a M,
    known: Vec<Known<'a, M>>,
    unknown: Vec<&'a Operation<M::Call, M::Answer>>,
    moments: Moments,
    /// The ranks of the known operations that have one, in order; those that were taken are the first.
    ranks: Vec<u64>,
    ranked: usize,
    taken: Bits,
    supposed: Bits,
    state: M::State,
    /// Whether operations of unknown outcome can happen any number of times.
    endless: bool,
    visited: Visited<M::State>,
    steps: usize,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, history: &'a History<M>, state: M::State, endless: bool) -> Self {
        let known: Vec<_> = history.iter().filter_map(|one| Some((one, one.answer()?))).collect();
        let unknown: Vec<_> = history.iter().filter(|one| matches!(one.outcome, Outcome::Unknown)).collect();
        let mut ranks: Vec<u64> = known.iter().filter_map(|(_, answer)| model.rank(answer)).collect();
        ranks.sort_unstable();
        let times: Vec<_> = known.iter().map(|(one, _)| (one.invoked, one.returned)).collect();
        Self {
            model,
            moments: Moments::new(&times),
            ranks,
            ranked: 0,
            taken: Bits::new(known.len()),
            supposed: Bits::new(unknown.len()),
            known,
            unknown,
            state,
            endless,
            visited: HashMap::new(),
            steps: 0,
        }
    }

    fn run(mut self) -> Result<(), Stuck> {
        let mut frames: Vec<Frame<M::State>> = Vec::new();
        let mut at = self.moments.first();
        while let Some(place) = at {
            let (operation, returns) = self.moments.events[place];
            if !returns {
                let ways = self.ways(operation);
                let entered = self.enter(&mut frames, operation, ways);
                at = if entered { self.moments.first() } else { Some(self.moments.next[place]) };
                if self.steps > MAX_STEPS {
                    return Err(Stuck::GaveUp(self.steps));
                }
                continue;
            }
            // Every operation that could come next was tried: one that was taken before came too early, or in the wrong way.
            loop {
                let Some(frame) = frames.pop() else {
                    return Err(Stuck::Impossible);
                };
                self.leave(&frame);
                if frame.settled {
                    continue;
                }
                if self.enter(&mut frames, frame.operation, frame.others) {
                    at = self.moments.first();
                    break;
                }
                let next = self.moments.next[self.moments.places[frame.operation].0];
                if next != HEAD {
                    at = Some(next);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes an operation in the first of these ways that leads to something new.
    fn enter(&mut self, frames: &mut Vec<Frame<M::State>>, operation: usize, ways: Vec<Way<M::State>>) -> bool {
        let mut ways = ways.into_iter();
        while let Some(way) = ways.next() {
            self.taken.flip(operation);
            self.suppose(&way.before);
            if self.is_new(&way.state) {
                self.moments.take(operation);
                self.ranked += usize::from(self.model.rank(self.known[operation].1).is_some());
                let settled = way.before.is_empty() && way.state == self.state;
                let state = std::mem::replace(&mut self.state, way.state);
                frames.push(Frame { operation, before: way.before, state, others: ways.collect(), settled });
                return true;
            }
            self.taken.flip(operation);
            self.suppose(&way.before);
        }
        false
    }

    /// Uses up operations of unknown outcome, or gives them back.
    fn suppose(&mut self, operations: &[usize]) {
        if !self.endless {
            for one in operations {
                self.supposed.flip(*one);
            }
        }
    }

    /// Whether nothing was visited that is as good as what is taken now, with this state. One with more left to suppose is.
    fn is_new(&mut self, state: &M::State) -> bool {
        self.steps += 1;
        let mut left = Vec::new();
        if !self.endless {
            left.extend(self.supposed.words.iter().map(|word| !word));
            for (index, unknown) in self.unknown.iter().enumerate() {
                if left[index / 64] & (1 << (index % 64)) != 0 && self.model.is_spent(state, &unknown.call) {
                    left[index / 64] &= !(1 << (index % 64));
                }
            }
        }
        let as_good = |other: &Vec<u64>| other.iter().zip(&left).all(|(other, left)| left & !other == 0);
        let visited = self.visited.entry((self.taken.key(), state.clone())).or_default();
        if visited.iter().any(as_good) {
            return false;
        }
        visited.push(left);
        true
    }

    fn leave(&mut self, frame: &Frame<M::State>) {
        self.moments.put_back(frame.operation);
        self.ranked -= usize::from(self.model.rank(self.known[frame.operation].1).is_some());
        self.taken.flip(frame.operation);
        self.suppose(&frame.before);
        self.state = frame.state.clone();
    }

    /// How an operation can come next.
    fn ways(&self, operation: usize) -> Vec<Way<M::State>> {
        let mut found = Vec::new();
        let rank = self.model.rank(self.known[operation].1);
        if rank.is_some() && rank.as_ref() != self.ranks.get(self.ranked) {
            return found;
        }
        self.bridge(operation, &self.state, &mut Vec::new(), (usize::MAX, 0), &mut found);
        found
    }

    /// Tries the operation, then with operations of unknown outcome before it. `run` is the part that the last of them changed, and how many did.
    fn bridge(
        &self,
        operation: usize,
        state: &M::State,
        before: &mut Vec<usize>,
        run: (usize, usize),
        found: &mut Vec<Way<M::State>>,
    ) {
        let (one, answer) = self.known[operation];
        let part = match self.model.step(state, &one.call, answer) {
            Ok(state) => return found.push(Way { before: before.clone(), state }),
            Err(Misfit::Never) => return,
            Err(Misfit::Part(part)) => part,
        };
        let run = if part == run.0 { run } else { (part, 0) };
        if run.1 == MAX_BRIDGE {
            return;
        }
        // All that was not taken can come next only before the first return.
        let limit = self.first_return();
        let mut tried: Vec<&M::Call> = Vec::new();
        for (index, unknown) in self.unknown.iter().enumerate() {
            if unknown.invoked >= limit {
                break;
            }
            if self.supposed.has(index) || before.contains(&index) {
                continue;
            }
            if let Some((changed, next)) = self.model.suppose(state, &unknown.call)
                && changed == part
                && !tried.iter().any(|call| self.model.alike(call, &unknown.call))
            {
                tried.push(&unknown.call);
                before.push(index);
                self.bridge(operation, &next, before, (part, run.1 + 1), found);
                before.pop();
            }
        }
    }

    /// When the first operation that was not taken returned.
    fn first_return(&self) -> u64 {
        let mut at = self.moments.next[HEAD];
        while at != HEAD {
            let (operation, returns) = self.moments.events[at];
            if returns {
                return self.known[operation].0.returned;
            }
            at = self.moments.next[at];
        }
        u64::MAX
    }
}
