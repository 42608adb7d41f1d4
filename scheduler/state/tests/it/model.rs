//! Any commands, against a model that is too simple to be wrong.

use std::collections::BTreeMap;

use hearth_state::{Command, Response, State, apply};
use hearth_types::{
    GroupKind, Object, RequestId, Revision, Timestamp, Uid,
    selector::{LabelSelector, Selector},
    store::{Expect, Op, Query, Txn, WatchEvent},
};
use proptest::prelude::*;
use serde_json::json;

use crate::support::{key, object};

/// A step: which request it is (small numbers, so that some come again) and what it asks for.
#[derive(Clone, Debug)]
struct Step {
    request: u8,
    atomic: bool,
    ops: Vec<Asked>,
}

#[derive(Clone, Debug)]
enum Asked {
    Create(u8, u8),
    Update(u8, u8, Option<u8>),
    Delete(u8, Option<u8>),
    Check(u8, Option<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let revision = || proptest::option::weighted(0.3, 0_u8..20);
    let op = prop_oneof![
        (0_u8..5, 0_u8..4).prop_map(|(name, data)| Asked::Create(name, data)),
        (0_u8..5, 0_u8..4, revision()).prop_map(|(name, data, at)| Asked::Update(name, data, at)),
        (0_u8..5, revision()).prop_map(|(name, at)| Asked::Delete(name, at)),
        (0_u8..5, revision()).prop_map(|(name, at)| Asked::Check(name, at)),
    ];
    let step = (0_u8..60, any::<bool>(), proptest::collection::vec(op, 0..4)).prop_map(|(request, atomic, ops)| Step {
        request,
        atomic,
        ops,
    });
    proptest::collection::vec(step, 0..40)
}

/// The data decides the label too, so that objects come and go under a selector.
fn made(name: u8, data: u8) -> Object {
    object(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": data.to_string()}, "metadata":
        {"name": name.to_string(), "namespace": "n", "uid": format!("u{name}"), "labels": {"odd": (data % 2).to_string()}}}))
}

fn expect(at: Option<u8>, name: u8) -> Expect {
    Expect { revision: at.map(|at| Revision(at.into())), uid: Some(Uid::from(format!("u{name}"))) }
}

impl Step {
    fn command(&self, number: usize) -> Command {
        let op = |asked: &Asked| match *asked {
            Asked::Create(name, data) => Op::Create { object: made(name, data) },
            Asked::Update(name, data, at) => Op::Update { object: made(name, data), expect: expect(at, name) },
            Asked::Delete(name, at) => Op::Delete { key: key(&name.to_string()), expect: expect(at, name) },
            Asked::Check(name, at) => Op::Check { key: key(&name.to_string()), expect: expect(at, name) },
        };
        Command::Txn(Txn {
            request_id: RequestId::from(format!("r{}", self.request)),
            atomic: self.atomic,
            ops: self.ops.iter().map(op).collect(),
            now: Timestamp(number as i64),
        })
    }
}

/// Names to data and revision, and what was answered.
#[derive(Clone, Debug, Default)]
struct Model {
    objects: BTreeMap<u8, (u8, u64)>,
    revision: u64,
    /// Per request: the revision and which operations succeeded.
    answers: BTreeMap<u8, (u64, Vec<bool>)>,
}

impl Model {
    fn step(&mut self, step: &Step) -> (u64, Vec<bool>) {
        if let Some(answer) = self.answers.get(&step.request) {
            return answer.clone();
        }
        let before = self.objects.clone();
        let next = self.revision + 1;
        let (mut changed, mut done) = (false, Vec::new());
        for op in &step.ops {
            let ok = match *op {
                Asked::Create(name, data) => {
                    let free = !self.objects.contains_key(&name);
                    if free {
                        self.objects.insert(name, (data, next));
                        changed = true;
                    }
                    free
                }
                Asked::Update(name, data, at) => {
                    let found = self.found(name, at);
                    if found && self.objects[&name].0 != data {
                        self.objects.insert(name, (data, next));
                        changed = true;
                    }
                    found
                }
                Asked::Delete(name, at) => {
                    let found = self.found(name, at);
                    if found {
                        self.objects.remove(&name);
                        changed = true;
                    }
                    found
                }
                Asked::Check(name, at) => self.found(name, at),
            };
            done.push(ok);
        }
        if step.atomic && done.contains(&false) {
            self.objects = before;
            done.fill(false);
            changed = false;
        }
        if changed {
            self.revision = next;
        }
        self.answers.insert(step.request, (self.revision, done.clone()));
        (self.revision, done)
    }

    fn found(&self, name: u8, at: Option<u8>) -> bool {
        self.objects.get(&name).is_some_and(|(_, revision)| at.is_none_or(|at| u64::from(at) == *revision))
    }
}

fn contents(state: &State, query: &Query) -> BTreeMap<String, Object> {
    let page = state.list(query, 0, None).expect("the first page");
    page.items.into_iter().map(|object| (object.name().to_owned(), object)).collect()
}

fn odd() -> Query {
    let labels = LabelSelector::parse("odd=1").expect("a selector");
    Query { selector: Selector { labels, ..Selector::default() }, ..Query::all(GroupKind::CONFIG_MAP) }
}

/// A watcher's view, that insists on events that fit.
fn replay(view: &mut BTreeMap<String, Object>, events: &[WatchEvent], from: Revision) {
    let mut last = from;
    for event in events {
        let (WatchEvent::Added(one) | WatchEvent::Modified(one) | WatchEvent::Deleted(one)) = event else {
            panic!("a bookmark");
        };
        assert!(one.revision() >= last && one.revision() > from, "in order and after {from}: {event:?}");
        last = one.revision();
        let before = match event {
            WatchEvent::Deleted(one) => view.remove(one.name()),
            _ => view.insert(one.name().to_owned(), one.clone()),
        };
        assert_eq!(before.is_none(), matches!(event, WatchEvent::Added(_)), "{event:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_state_does_what_the_model_does(steps in steps()) {
        let (mut state, mut model) = (State::default(), Model::default());
        for (number, step) in steps.iter().enumerate() {
            let known = model.answers.contains_key(&step.request);
            let Response::Txn(outcome) = apply(&mut state, &step.command(number)).response else {
                panic!("an answer to a transaction");
            };
            let (revision, done) = model.step(step);
            prop_assert_eq!(outcome.revision, Revision(revision));
            if !known {
                prop_assert_eq!(outcome.outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), done);
            }
            prop_assert_eq!(state.revision(), Revision(model.revision));
            let found: BTreeMap<_, _> = contents(&state, &Query::all(GroupKind::CONFIG_MAP));
            let wanted: BTreeMap<_, _> = model.objects.iter()
                .map(|(name, (data, revision))| (name.to_string(), made(*name, *data).with_revision(Revision(*revision)))).collect();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_watch_from_any_revision_leads_to_the_present(steps in steps()) {
        for query in [Query::all(GroupKind::CONFIG_MAP), odd()] {
            let mut state = State::default();
            let mut lists = vec![(state.revision(), contents(&state, &query))];
            for (number, step) in steps.iter().enumerate() {
                apply(&mut state, &step.command(number));
                if lists.last().map(|(revision, _)| *revision) != Some(state.revision()) {
                    lists.push((state.revision(), contents(&state, &query)));
                }
            }
            let (_, present) = lists.last().cloned().expect("at least one");
            for (from, view) in &lists {
                let mut view = view.clone();
                replay(&mut view, &state.events_since(*from, &query).expect("in the history"), *from);
                prop_assert_eq!(&view, &present);
            }
            // In batches of any size it is the same, and each batch ends with a whole revision.
            let (mut position, mut view) = (Revision::ZERO, BTreeMap::new());
            while position < state.revision() {
                let batch = state.history().batch(position, &query, 1, 2).expect("in the history");
                prop_assert!(batch.upto > position);
                replay(&mut view, &batch.events, position);
                position = batch.upto;
                let (_, list) = lists.iter().find(|(revision, _)| *revision == position).expect("a whole revision");
                prop_assert_eq!(&view, list);
            }
        }
    }

    #[test]
    fn pages_show_the_revision_of_the_first(steps in steps(), before in 0_usize..40, limit in 1_usize..4) {
        let query = Query::all(GroupKind::CONFIG_MAP);
        let mut state = State::default();
        let (first, rest) = steps.split_at(before.min(steps.len()));
        for (number, step) in first.iter().enumerate() {
            apply(&mut state, &step.command(number));
        }
        let whole = state.list(&query, 0, None).expect("a list");
        let mut page = state.list(&query, limit, None).expect("the first page");
        let mut items = page.items.clone();
        let mut rest = rest.iter().enumerate();
        while let Some(token) = page.continue_token {
            prop_assert_eq!(page.remaining, Some((whole.items.len() - items.len()) as u64));
            for (number, step) in rest.by_ref().take(5) {
                apply(&mut state, &step.command(1_000 + number));
            }
            page = state.list(&query, limit, Some(&token)).expect("a later page");
            prop_assert_eq!(page.revision, whole.revision);
            prop_assert!(page.items.len() <= limit);
            items.extend(page.items.clone());
        }
        prop_assert_eq!(items, whole.items);
    }

    #[test]
    fn equal_commands_make_equal_bytes_and_a_snapshot_goes_on_as_the_state_did(steps in steps(), at in 0_usize..40) {
        let (mut one, mut two) = (State::default(), State::default());
        for (number, step) in steps.iter().enumerate() {
            if number == at {
                two = State::decode(&two.encode()).expect("its own bytes");
            }
            // The other server reads the command from its log.
            let command = step.command(number);
            let answer = apply(&mut one, &command);
            prop_assert_eq!(&answer, &apply(&mut two, &Command::decode(&command.encode())));
        }
        prop_assert_eq!(one.encode(), two.encode());
        let three = State::decode(&one.encode()).expect("its own bytes");
        prop_assert_eq!(three.encode(), one.encode());
        let events = |state: &State| state.events_since(Revision::ZERO, &odd());
        prop_assert_eq!(events(&one), events(&three));
    }

    #[test]
    fn a_clone_does_not_see_what_comes_after_it(steps in steps(), at in 0_usize..40) {
        let mut state = State::default();
        let mut kept = None;
        for (number, step) in steps.iter().enumerate() {
            if number == at {
                kept = Some((state.clone(), state.encode()));
            }
            apply(&mut state, &step.command(number));
        }
        if let Some((kept, bytes)) = kept {
            prop_assert_eq!(kept.encode(), bytes);
        }
    }

    #[test]
    fn damaged_snapshots_are_refused(steps in steps(), at in any::<prop::sample::Index>(), bit in 0_u8..8, cut in any::<bool>()) {
        let mut state = State::default();
        for (number, step) in steps.iter().enumerate() {
            apply(&mut state, &step.command(number));
        }
        let mut bytes = state.encode();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << bit;
        }
        State::decode(&bytes).expect_err("refused");
    }

    #[test]
    fn bodies_of_any_bytes_under_a_right_checksum_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200), steps in steps(), at in any::<prop::sample::Index>()) {
        use hearth_state::snapshot::{MAGIC, VERSION};
        let sealed = |body: &[u8]| {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(VERSION.to_le_bytes());
            bytes.extend(body);
            bytes.extend((body.len() as u64).to_le_bytes());
            bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
            bytes
        };
        let _ = State::decode(&sealed(&body));
        let mut state = State::default();
        for (number, step) in steps.iter().enumerate() {
            apply(&mut state, &step.command(number));
        }
        let bytes = state.encode();
        let mut inner = bytes[12..bytes.len() - 12].to_vec();
        let at = at.index(inner.len());
        inner[at] = inner[at].wrapping_add(1);
        if let Ok(mut state) = State::decode(&sealed(&inner)) {
            apply(&mut state, &Step { request: 200, atomic: false, ops: vec![Asked::Delete(0, None)] }.command(0));
            let _ = state.list(&odd(), 1, None);
        }
        let _ = State::decode(&body);
    }
}
