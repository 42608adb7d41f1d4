//! The definition of linearizability, tried out: every order of a short history, on a plain map. Shares nothing with the checker.

use std::collections::BTreeMap;

use hearth_sim::history::{
    Outcome,
    objects::{Answer, Call, Key, ObjectOperation, Refusal, Stored},
};

/// Room between two revisions for writes that nobody saw.
const FINE: u64 = 16;

/// A store of one thread. Its revisions are `FINE` times those of the history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plain {
    pub(crate) objects: BTreeMap<Key, Stored>,
    pub(crate) revision: u64,
}

impl Plain {
    /// Does it, at a revision if it changes something; the answer has this store's revisions.
    pub(crate) fn execute(&mut self, call: &Call, revision: u64) -> Answer {
        let at = self.revision;
        let refuse = |why| Answer::Refused { why, at };
        match call {
            Call::Get { key } => Answer::Found(self.objects.get(key).copied()),
            Call::List { prefix } => Answer::Listed {
                items: self
                    .objects
                    .iter()
                    .filter(|(key, _)| key.starts_with(&**prefix))
                    .map(|(k, s)| (k.clone(), *s))
                    .collect(),
                revision: at,
            },
            Call::Create { key, .. } if self.objects.contains_key(key) => refuse(Refusal::Exists),
            Call::Create { key, value } => self.store(key, *value, revision),
            Call::Put { key, expect, .. } | Call::Delete { key, expect } => {
                let Some(found) = self.objects.get(key) else { return refuse(Refusal::Missing) };
                if expect.is_some_and(|expect| expect != found.revision) {
                    return refuse(Refusal::Changed);
                }
                if let Some((key, value)) = call.writes() {
                    return self.store(key, value, revision);
                }
                self.objects.remove(key);
                self.revision = revision;
                Answer::Deleted { revision }
            }
        }
    }

    fn store(&mut self, key: &Key, value: u64, revision: u64) -> Answer {
        self.objects.insert(key.clone(), Stored { value, revision });
        self.revision = revision;
        Answer::Written { revision }
    }
}

/// Whether an order of the history exists. For a handful of operations.
pub(crate) fn is_linearizable(history: &[ObjectOperation]) -> bool {
    let fine: Vec<_> = history.iter().map(finer).collect();
    let revisions = fine.iter().filter_map(|one| one.answer()).flat_map(revisions_of).collect();
    let left = fine.iter().filter(|one| one.outcome != Outcome::Failed).collect();
    explore(&Plain::default(), left, &revisions)
}

fn explore(plain: &Plain, left: Vec<&ObjectOperation>, revisions: &Vec<u64>) -> bool {
    let known = left.iter().filter(|one| one.answer().is_some());
    let Some(limit) = known.map(|one| one.returned).min() else { return true };
    (0..left.len()).any(|at| {
        let one = left[at];
        if one.invoked > limit {
            return false;
        }
        let mut rest = left.clone();
        rest.remove(at);
        let ways = match one.answer() {
            Some(answer) => answered(plain, &one.call, answer).into_iter().collect(),
            None => possible(plain, &one.call, revisions),
        };
        ways.iter().any(|next| explore(next, rest.clone(), revisions))
    })
}

/// The store after this call was answered so; others may have used up revisions before.
fn answered(plain: &Plain, call: &Call, answer: &Answer) -> Option<Plain> {
    let (mut next, mut answer) = (plain.clone(), answer.clone());
    match &mut answer {
        Answer::Found(_) => {}
        Answer::Written { revision } | Answer::Deleted { revision } if *revision > plain.revision => {}
        Answer::Written { .. } | Answer::Deleted { .. } => return None,
        Answer::Refused { at: revision, .. } | Answer::Listed { revision, .. } => {
            // Writes that nobody saw may be in between.
            next.revision = (plain.revision < *revision + FINE).then(|| plain.revision.max(*revision))?;
            *revision = next.revision;
        }
    }
    let revision = revisions_of(&answer).first().copied().unwrap_or_default();
    (next.execute(call, revision) == answer).then_some(next)
}

/// The stores there may be after a call of unknown outcome.
fn possible(plain: &Plain, call: &Call, revisions: &[u64]) -> Vec<Plain> {
    let choices = revisions.iter().copied().filter(|one| *one > plain.revision).chain([plain.revision + 1]);
    choices
        .map(|revision| {
            let mut next = plain.clone();
            next.execute(call, revision);
            next
        })
        .collect()
}

fn revisions_of(answer: &Answer) -> Vec<u64> {
    match answer {
        Answer::Found(found) => found.iter().map(|stored| stored.revision).collect(),
        Answer::Listed { items, .. } => items.values().map(|stored| stored.revision).collect(),
        Answer::Written { revision } | Answer::Deleted { revision } => vec![*revision],
        Answer::Refused { .. } => Vec::new(),
    }
}

fn finer(one: &ObjectOperation) -> ObjectOperation {
    let stored = |stored: Stored| Stored { revision: stored.revision * FINE, ..stored };
    let mut one = one.clone();
    match &mut one.call {
        Call::Put { expect, .. } | Call::Delete { expect, .. } => *expect = expect.map(|expect| expect * FINE),
        Call::Get { .. } | Call::List { .. } | Call::Create { .. } => {}
    }
    if let Outcome::Ok(answer) = &mut one.outcome {
        match answer {
            Answer::Found(found) => *found = found.map(stored),
            Answer::Written { revision } | Answer::Deleted { revision } | Answer::Refused { at: revision, .. } => {
                *revision *= FINE
            }
            Answer::Listed { items, revision } => {
                for item in items.values_mut() {
                    *item = stored(*item);
                }
                *revision *= FINE;
            }
        }
    }
    one
}
