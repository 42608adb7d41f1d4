//! The checker is checked: by tables, by histories of a real object, and against all orders of short histories.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use hearth_sim::history::{
    Operation, Outcome, Recorder,
    linearize::Violation,
    objects::{Answer, Call, Key, ObjectOperation, Refusal, Stored, check},
};
use proptest::{collection::vec, prelude::*};

use crate::brute::{self, Plain};

fn key(name: &str) -> Key {
    Arc::from(name)
}

fn get(name: &str) -> Call {
    Call::Get { key: key(name) }
}

fn create(name: &str, value: u64) -> Call {
    Call::Create { key: key(name), value }
}

fn put(name: &str, value: u64) -> Call {
    Call::Put { key: key(name), value, expect: None }
}

fn swap(name: &str, value: u64, expect: u64) -> Call {
    Call::Put { key: key(name), value, expect: Some(expect) }
}

fn delete(name: &str) -> Call {
    Call::Delete { key: key(name), expect: None }
}

fn list() -> Call {
    Call::List { prefix: key("") }
}

fn found(value: u64, revision: u64) -> Answer {
    Answer::Found(Some(Stored { value, revision }))
}

const NONE: Answer = Answer::Found(None);

fn done(revision: u64) -> Answer {
    Answer::Written { revision }
}

fn gone(revision: u64) -> Answer {
    Answer::Deleted { revision }
}

fn refused(why: Refusal, at: u64) -> Answer {
    Answer::Refused { why, at }
}

fn listed(items: &[(&str, u64, u64)], revision: u64) -> Answer {
    let item = |(name, value, revision): &(&str, u64, u64)| (key(name), Stored { value: *value, revision: *revision });
    Answer::Listed { items: items.iter().map(item).collect(), revision }
}

fn op(invoked: u64, returned: u64, call: Call, answer: Answer) -> ObjectOperation {
    Operation { client: 1, invoked, returned, call, outcome: Outcome::Ok(answer) }
}

fn unknown(invoked: u64, call: Call) -> ObjectOperation {
    Operation { client: 2, invoked, returned: u64::MAX, call, outcome: Outcome::Unknown }
}

#[test]
fn what_one_copy_can_answer_is_accepted() {
    for (what, history) in [
        ("nothing", vec![]),
        (
            "one after another",
            vec![op(1, 2, create("a", 1), done(1)), op(3, 4, get("a"), found(1, 1)), op(5, 6, delete("a"), gone(2))],
        ),
        (
            "a read that overlaps a write sees either",
            vec![
                op(1, 2, create("a", 1), done(1)),
                op(3, 9, put("a", 2), done(2)),
                op(4, 5, get("a"), found(1, 1)),
                op(6, 7, get("a"), found(2, 2)),
            ],
        ),
        (
            "a write of unknown outcome happens long after",
            vec![
                op(1, 2, create("a", 1), done(1)),
                unknown(3, put("a", 2)),
                op(4, 5, get("a"), found(1, 1)),
                op(6, 7, get("a"), found(1, 1)),
                op(8, 9, get("a"), found(2, 2)),
            ],
        ),
        (
            "a write of unknown outcome never happens",
            vec![unknown(1, create("a", 1)), op(2, 3, get("a"), NONE), op(4, 5, create("a", 2), done(1))],
        ),
        (
            "a write that nobody saw explains why another is refused",
            vec![
                op(1, 2, create("a", 1), done(1)),
                unknown(3, put("a", 2)),
                op(4, 5, swap("a", 3, 1), refused(Refusal::Changed, 2)),
                op(6, 7, put("a", 4), done(3)),
            ],
        ),
        (
            "two writes that nobody saw, one upon the other",
            vec![
                op(1, 2, create("a", 1), done(1)),
                unknown(3, delete("a")),
                unknown(4, create("a", 2)),
                op(5, 6, swap("a", 3, 1), refused(Refusal::Changed, 3)),
                op(7, 8, create("a", 4), refused(Refusal::Exists, 3)),
            ],
        ),
        (
            "a list shows one moment",
            vec![
                op(1, 2, create("a", 1), done(1)),
                op(3, 10, create("b", 2), done(2)),
                op(4, 5, list(), listed(&[("a", 1, 1)], 1)),
                op(6, 7, list(), listed(&[("a", 1, 1), ("b", 2, 2)], 2)),
            ],
        ),
        (
            "a list shows two writes of unknown outcome",
            vec![
                unknown(1, create("a", 1)),
                unknown(2, create("b", 2)),
                op(3, 4, list(), listed(&[], 0)),
                op(5, 6, list(), listed(&[("b", 2, 1)], 1)),
                op(7, 8, list(), listed(&[("a", 1, 2), ("b", 2, 1)], 2)),
            ],
        ),
        (
            "a list without what writes that nobody saw have removed",
            vec![
                op(1, 2, create("a", 1), done(1)),
                op(3, 4, create("b", 2), done(2)),
                unknown(5, delete("b")),
                unknown(6, delete("a")),
                op(7, 8, list(), listed(&[], 4)),
            ],
        ),
        (
            "a failed write did not happen",
            vec![Operation { outcome: Outcome::Failed, ..op(1, 2, create("a", 1), NONE) }, op(3, 4, get("a"), NONE)],
        ),
    ] {
        assert_eq!(check(&history), Ok(()), "{what}");
        assert!(brute::is_linearizable(&history), "{what}: the definition says otherwise");
    }
}

#[test]
fn what_one_copy_cannot_answer_is_refused() {
    for (what, smallest, history) in [
        (
            "a stale read",
            2,
            vec![
                op(1, 2, create("a", 1), done(1)),
                op(3, 4, get("a"), found(1, 1)),
                op(5, 6, put("a", 2), done(2)),
                op(7, 8, get("a"), found(1, 1)),
                op(9, 10, get("a"), found(2, 2)),
            ],
        ),
        ("a lost write", 2, vec![op(1, 2, create("a", 1), done(1)), op(3, 4, get("a"), NONE)]),
        (
            "a lost update: both swaps expected the same",
            2,
            vec![
                op(1, 2, create("a", 1), done(1)),
                op(3, 6, swap("a", 2, 1), done(2)),
                op(4, 5, swap("a", 3, 1), done(3)),
            ],
        ),
        (
            "a write that was applied twice",
            2,
            vec![
                op(1, 2, create("a", 1), done(1)),
                op(3, 4, put("a", 2), done(2)),
                op(5, 6, put("a", 3), done(3)),
                op(7, 8, get("a"), found(2, 4)),
            ],
        ),
        (
            "a write of unknown outcome that was applied twice",
            3,
            vec![
                op(1, 2, create("a", 1), done(1)),
                unknown(3, put("a", 2)),
                op(4, 5, get("a"), found(2, 2)),
                op(6, 7, put("a", 3), done(3)),
                op(8, 9, get("a"), found(2, 4)),
            ],
        ),
        (
            "a write of unknown outcome is seen, and then not",
            3,
            vec![
                op(1, 2, create("a", 1), done(1)),
                unknown(3, put("a", 2)),
                op(4, 5, get("a"), found(2, 2)),
                op(6, 7, get("a"), found(1, 1)),
            ],
        ),
        ("what nobody wrote", 1, vec![op(1, 2, create("a", 1), done(1)), op(3, 4, get("a"), found(7, 1))]),
        ("what is written only later", 1, vec![op(1, 2, get("a"), found(1, 1)), op(3, 4, create("a", 1), done(1))]),
        (
            "a failed write that happened",
            1,
            vec![
                Operation { outcome: Outcome::Failed, ..op(1, 2, create("a", 1), NONE) },
                op(3, 4, get("a"), found(1, 1)),
            ],
        ),
        (
            "a swap refused for no reason",
            2,
            vec![op(1, 2, create("a", 1), done(1)), op(3, 4, swap("a", 2, 1), refused(Refusal::Changed, 1))],
        ),
        ("created twice", 2, vec![op(1, 2, create("a", 1), done(1)), op(3, 4, create("a", 2), done(2))]),
        ("revisions that go back", 2, vec![op(1, 2, create("a", 1), done(2)), op(3, 4, put("a", 2), done(1))]),
        (
            "a list of two moments",
            3,
            vec![
                op(1, 2, create("a", 1), done(1)),
                op(3, 4, create("b", 2), done(2)),
                op(5, 6, put("a", 3), done(3)),
                op(7, 12, put("b", 4), done(4)),
                op(8, 9, list(), listed(&[("a", 1, 1), ("b", 4, 4)], 4)),
            ],
        ),
        (
            "two lists that saw two writes in different orders",
            4,
            vec![
                op(1, 2, create("a", 1), done(1)),
                op(3, 4, create("b", 2), done(2)),
                op(5, 20, put("a", 3), done(3)),
                op(6, 21, put("b", 4), done(4)),
                op(7, 18, list(), listed(&[("a", 3, 3), ("b", 2, 2)], 3)),
                op(8, 19, list(), listed(&[("a", 1, 1), ("b", 4, 4)], 4)),
            ],
        ),
        (
            "a list that forgets one",
            2,
            vec![
                op(1, 2, create("a", 1), done(1)),
                op(3, 4, create("b", 2), done(2)),
                op(5, 6, list(), listed(&[("a", 1, 1)], 2)),
            ],
        ),
    ] {
        assert!(!brute::is_linearizable(&history), "{what}: the definition allows it");
        match check(&history) {
            Err(Violation::Impossible { window, .. }) => {
                assert!(window.len() <= smallest, "{what}: the window has {} operations, {window:#?}", window.len());
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_violation_reads_as_what_happened() {
    let history = [op(1, 2, create("a", 1), done(1)), op(3, 4, put("a", 2), done(2)), op(5, 6, get("a"), found(1, 1))];
    let text = check(&history).unwrap_err().to_string();
    assert_eq!(
        text,
        "not linearizable: whatever was stored before, no order explains these 2 operations\n  \
         client 1                3 .. 4              put a = 2 -> done @2\n  \
         client 1                5 .. 6              get a -> 1@1\n"
    );
}

/// What an operation of a generated history will be.
#[derive(Clone, Debug)]
struct Plan {
    what: u8,
    key: usize,
    /// When it takes effect, how long before that it was asked and how long after it was answered.
    at: u64,
    before: u64,
    after: u64,
    /// Of sixteen: how its client fares.
    fate: u8,
    /// Whether a swap expects the revision that is there.
    fresh: bool,
}

const KEYS: [&str; 3] = ["a", "b", "c"];

fn plan(spread: u64, lists: bool) -> impl Strategy<Value = Plan> {
    let kinds = if lists { 0..12_u8 } else { 0..10_u8 };
    (kinds, 0..KEYS.len(), 0..spread, 0..spread / 4 + 1, 0..spread / 4 + 1, 0..16_u8, any::<bool>())
        .prop_map(|(what, key, at, before, after, fate, fresh)| Plan { what, key, at, before, after, fate, fresh })
}

/// A history that a real object of one thread produced: each operation took effect at one moment between its invocation and its return.
fn run(mut plans: Vec<Plan>) -> Vec<ObjectOperation> {
    plans.sort_by_key(|plan| plan.at);
    let mut plain = Plain::default();
    let mut history = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        let name = KEYS[plan.key];
        let value = index as u64 + 1;
        let revision = match plain.objects.get(name) {
            Some(stored) if plan.fresh && was_told(&history, stored.revision) => stored.revision,
            _ => 0,
        };
        let call = match plan.what {
            0..=2 => get(name),
            3..=4 => create(name, value),
            5..=6 => put(name, value),
            7..=8 => swap(name, value, revision),
            9 => delete(name),
            _ => list(),
        };
        // Unique moments: each has a slot of its own.
        let slot = |time: u64, part: u64| time * 4 * plans.len() as u64 + 4 * index as u64 + part;
        let (invoked, returned) = (slot(plan.at + 1000 - plan.before, 0), slot(plan.at + 1000 + plan.after, 3));
        let mut one = op(invoked, returned, call, NONE);
        one.client = index as u64;
        let next = plain.revision + 1;
        one.outcome = match plan.fate {
            0 => {
                plain.execute(&one.call, next);
                Outcome::Unknown
            }
            1 => Outcome::Unknown,
            2 => Outcome::Failed,
            _ => Outcome::Ok(plain.execute(&one.call, next)),
        };
        history.push(one);
    }
    history
}

/// Whether an answer has this revision.
fn was_told(history: &[ObjectOperation], revision: u64) -> bool {
    history.iter().filter_map(Operation::answer).any(|answer| match answer {
        Answer::Found(found) => found.is_some_and(|stored| stored.revision == revision),
        Answer::Written { revision: told } => *told == revision,
        Answer::Listed { items, .. } => items.values().any(|stored| stored.revision == revision),
        Answer::Deleted { .. } | Answer::Refused { .. } => false,
    })
}

/// Whether each swap expects a revision that somebody was told of.
fn expects_what_was_told(history: &[ObjectOperation]) -> bool {
    history.iter().all(|one| match one.call {
        Call::Put { expect: Some(expect), .. } => expect == 0 || was_told(history, expect),
        _ => true,
    })
}

/// The same history with one answer changed.
fn mutate(history: &mut [ObjectOperation], at: usize, how: u8, number: u64) {
    let at = at % history.len().max(1);
    // As far as the slots of two moments are apart, so that all of them stay unique.
    let apart = 4 * history.len() as u64;
    let Some(one) = history.get_mut(at) else { return };
    let (small, other) = (number % 5, KEYS[(number % 3) as usize]);
    let Outcome::Ok(answer) = &mut one.outcome else {
        one.outcome = if how.is_multiple_of(2) { Outcome::Failed } else { Outcome::Unknown };
        return;
    };
    match (answer, how % 4) {
        (_, 3) => {
            one.invoked -= number % 20 * apart;
            one.returned = one.invoked + 1;
        }
        (Answer::Found(found), 0) => *found = None,
        (Answer::Found(found), _) => {
            *found = Some(Stored { value: small + 1, revision: found.map_or(small, |one| one.revision) })
        }
        (Answer::Written { revision } | Answer::Deleted { revision }, 0) | (Answer::Listed { revision, .. }, 1) => {
            *revision = small;
        }
        (Answer::Written { revision } | Answer::Deleted { revision }, _) => {
            one.outcome = Outcome::Ok(refused(Refusal::Changed, *revision));
        }
        (Answer::Refused { why, .. }, 0) => {
            *why = [Refusal::Exists, Refusal::Missing, Refusal::Changed][(number % 3) as usize]
        }
        (Answer::Refused { at, .. }, _) => *at = small,
        (Answer::Listed { items, .. }, 0) => drop(items.remove(other)),
        (Answer::Listed { items, revision }, _) => {
            items.insert(key(other), Stored { value: small + 1, revision: (*revision).min(small) });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_real_object_did_is_accepted(plans in vec(plan(400, true), 0..120)) {
        let history = run(plans);
        if let Err(violation) = check(&history) {
            prop_assert!(false, "{violation}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn short_histories_are_judged_as_all_their_orders_are(
        plans in vec(plan(12, true), 1..7),
        changes in vec((any::<usize>(), any::<u8>(), any::<u64>()), 0..3),
    ) {
        let mut history = run(plans);
        for (at, how, number) in changes {
            mutate(&mut history, at, how, number);
        }
        prop_assume!(expects_what_was_told(&history));
        let expected = brute::is_linearizable(&history);
        match check(&history) {
            Ok(()) => prop_assert!(expected, "accepted: {history:#?}"),
            Err(violation) => {
                prop_assert!(!expected, "refused: {violation} of {history:#?}");
                // The window by itself is enough.
                if let Violation::Impossible { window, .. } = violation {
                    prop_assert!(window.len() <= history.len());
                }
            }
        }
    }
}

/// A long history of `clients` that take turns at random, with some outcomes unknown.
fn long(count: usize, keys: usize) -> Vec<ObjectOperation> {
    let mut dice: u64 = 7;
    let mut roll = |below: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % below
    };
    let plans = (0..count).map(|index| Plan {
        what: [0, 1, 2, 3, 5, 6, 7, 8, 9, 11][roll(if keys == 1 { 9 } else { 10 }) as usize],
        key: roll(keys as u64) as usize,
        at: index as u64 * 3,
        before: roll(12),
        after: roll(12),
        fate: roll(16) as u8,
        fresh: roll(3) > 0,
    });
    run(plans.collect())
}

#[test]
fn thousands_of_operations_take_no_time() {
    let started = Instant::now();
    for keys in [1, 3] {
        let mut history = long(5_000, keys);
        assert_eq!(check(&history), Ok(()));
        // A read near the end that goes back to what the first write wrote.
        let written = |one: &ObjectOperation| match (one.call.writes(), one.answer()) {
            (Some((name, value)), Some(Answer::Written { revision })) => Some((name.clone(), value, *revision)),
            _ => None,
        };
        let (name, value, revision) = history.iter().find_map(written).unwrap();
        let stale = found(value, revision);
        let is_get = |one: &&mut ObjectOperation| one.call == Call::Get { key: name.clone() } && one.answer().is_some();
        let late = history.iter_mut().rev().find(is_get).unwrap();
        late.outcome = Outcome::Ok(stale);
        match check(&history) {
            Err(Violation::Impossible { window, .. }) => assert!(window.len() < 30, "{window:#?}"),
            other => panic!("{other:?}"),
        }
    }
    // Some 100 ms where the machine is idle; an exponential search would take hours.
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}

#[test]
fn a_get_may_not_be_answered_like_a_list() {
    let history = [op(1, 2, get("a"), Answer::Listed { items: BTreeMap::new(), revision: 1 })];
    assert!(check(&history).is_err());
}

#[test]
fn moments_are_unique_and_what_is_not_finished_is_unknown() {
    let recorder = Recorder::new(|| 7);
    let first = recorder.invoke(1, "a");
    let _second = recorder.invoke(2, "b");
    recorder.finish(first, Outcome::Ok(1));
    let history = recorder.history();
    assert_eq!(history[0], Operation { client: 1, invoked: 7, returned: 9, call: "a", outcome: Outcome::Ok(1) });
    assert_eq!((history[1].invoked, &history[1].outcome), (8, &Outcome::Unknown));
}
