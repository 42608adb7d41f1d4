//! What each operation does, one by one and together.

use hearth_state::{
    Command, DUPLICATES_KEPT, DUPLICATES_MAX_AGE, DUPLICATES_MAX_COUNT, Refusal, Response, State, apply,
};
use hearth_types::{
    GroupKind, Incarnation, ObjectKey, RequestId, Revision, Timestamp, Uid,
    object::MAX_OBJECT_BYTES,
    store::{Expect, Op, OpError, Query, WatchEvent},
};
use serde_json::json;

use crate::support::{Region, at, config, create, delete, key, object, txn, update};

#[test]
fn objects_are_stamped_with_the_revision_that_changed_them() {
    let mut region = Region::default();
    let stored = region.done(create(config("a", "1")));
    assert_eq!(stored.revision(), Revision(1));
    assert_eq!(stored.value()["metadata"]["resourceVersion"], "1");
    assert_eq!(region.state.get(&key("a")), Some(&stored));
    let stored = region.done(update(config("a", "2")));
    assert_eq!((stored.revision(), region.state.revision()), (Revision(2), Revision(2)));
    let gone = region.done(delete("a"));
    assert_eq!((gone.revision(), region.state.revision()), (Revision(2), Revision(3)));
    assert!(region.state.is_empty());
}

#[test]
fn what_must_hold_is_checked() {
    let mut region = Region::default();
    region.done(create(config("a", "1")));
    let other_uid = object(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "n", "uid": "other"}}),
    );
    let no_uid = object(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b", "namespace": "n"}}));
    let wrong_uid = Expect::uid(&Uid::from("other"));
    let modified = "the object has been modified; please apply your changes to the latest version and try again";
    let conflict = |why: &str| OpError::Conflict { key: key("a"), why: why.into() };
    let cases = [
        (create(config("a", "2")), OpError::AlreadyExists(key("a"))),
        (update(config("b", "2")), OpError::NotFound(key("b"))),
        (delete("b"), OpError::NotFound(key("b"))),
        (Op::Check { key: key("b"), expect: Expect::default() }, OpError::NotFound(key("b"))),
        (Op::Update { object: config("a", "2"), expect: at(7) }, conflict(modified)),
        (Op::Delete { key: key("a"), expect: at(0) }, conflict(modified)),
        (Op::Check { key: key("a"), expect: at(2) }, conflict(modified)),
        (
            Op::Delete { key: key("a"), expect: wrong_uid },
            conflict("uid other was expected, but the object of this name has uid uid-a"),
        ),
        (update(other_uid), conflict("the stored object has uid uid-a, the new one other")),
        (create(no_uid), OpError::Malformed("ConfigMap/n/b: an object without metadata.uid cannot be stored".into())),
    ];
    let before = region.state.revision();
    for (op, error) in cases {
        assert_eq!(region.one(op.clone()), Err(error), "{op:?}");
    }
    assert_eq!(region.state.revision(), before, "nothing changed");
    region.done(Op::Check { key: key("a"), expect: at(1) });
    region.done(Op::Update { object: config("a", "2"), expect: at(1) });
}

#[test]
fn an_update_to_the_same_uses_up_no_revision() {
    let mut region = Region::default();
    let stored = region.done(create(config("a", "1")));
    assert_eq!(region.done(update(config("a", "1"))), stored);
    assert_eq!(region.done(update(stored.with_revision(Revision(99)))), stored);
    assert_eq!(region.state.revision(), Revision(1));
}

#[test]
fn an_update_with_nothing_left_to_wait_for_removes() {
    let mut region = Region::default();
    let marked = |finalizers: &[&str], more: serde_json::Value| {
        object(json!({"apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": "nas"}, "status": more, "metadata": {
            "name": "a", "namespace": "n", "uid": "u", "finalizers": finalizers, "deletionTimestamp": "2026-01-01T00:00:00Z"}}))
    };
    region.done(create(marked(&["x"], json!({}))));
    region.done(update(marked(&[], json!({}))));
    assert_eq!(region.state.len(), 1, "its device still has to stop it");
    let last = region.done(update(marked(&[], json!({"phase": "Succeeded"}))));
    assert!(region.state.is_empty());
    assert_eq!(last.revision(), Revision(3));
    let events = region.state.events_since(Revision(2), &Query::all(GroupKind::POD)).expect("in the history");
    assert_eq!(events, [WatchEvent::Deleted(last.clone())]);
    assert_eq!(last.value()["status"]["phase"], "Succeeded");
}

#[test]
fn a_transaction_has_one_revision() {
    let mut region = Region::default();
    let outcome = region.txn(true, vec![create(config("a", "1")), create(config("b", "1")), delete("a")]);
    assert_eq!(outcome.revision, Revision(1));
    let revisions: Vec<_> =
        outcome.outcomes.iter().map(|one| one.as_ref().map(hearth_types::Object::revision)).collect();
    assert_eq!(revisions, [Ok(Revision(1)), Ok(Revision(1)), Ok(Revision(1))]);
    assert_eq!(region.state.len(), 1);
}

#[test]
fn an_atomic_transaction_happens_wholly_or_not_at_all() {
    let mut region = Region::default();
    region.done(create(config("a", "1")));
    let before = region.state.encode().len();
    let ops =
        vec![update(config("a", "2")), delete("a"), create(config("b", "1")), delete("c"), create(config("d", "1"))];
    let outcome = region.txn(true, ops.clone());
    let aborted = || Err(OpError::Aborted);
    assert_eq!(outcome.outcomes, [aborted(), aborted(), aborted(), Err(OpError::NotFound(key("c"))), aborted()]);
    assert_eq!(outcome.revision, Revision(1));
    assert_eq!(region.state.get(&key("a")).map(|a| a.value()["data"]["x"].clone()), Some(json!("1")));
    assert_eq!(region.state.len(), 1);
    assert!(region.state.encode().len() < before + 300, "only the answer was remembered");

    let outcome = region.txn(false, ops);
    assert_eq!(outcome.outcomes.iter().filter(|one| one.is_ok()).count(), 4);
    assert_eq!((outcome.revision, region.state.len()), (Revision(2), 2));
}

#[test]
fn a_request_that_comes_again_is_answered_again_and_not_applied() {
    let mut region = Region::default();
    let first = region.applied(txn("r", true, vec![create(config("a", "1"))]));
    assert_eq!(first.changes.len(), 1);
    region.done(update(config("a", "2")));
    let again = region.applied(txn("r", true, vec![create(config("a", "1"))]));
    assert_eq!((&again.response, again.changes.len()), (&first.response, 0));
    let failed = region.applied(txn("s", true, vec![create(config("a", "1"))]));
    region.done(delete("a"));
    let again = region.applied(txn("s", true, vec![create(config("a", "1"))]));
    assert_eq!(again.response, failed.response, "a failure is an answer too");
    assert!(region.state.is_empty());
}

/// Sends empty transactions, one after another.
fn pass(region: &mut Region, prefix: &str, count: usize) {
    for number in 0..count {
        region.applied(txn(&format!("{prefix}{number}"), true, vec![]));
    }
}

#[test]
fn requests_are_forgotten_by_count() {
    // As up to feature level 2, and as now.
    for (level, count) in [(2, 20_000), (hearth_state::FEATURE_LEVEL, DUPLICATES_MAX_COUNT)] {
        let mut region = Region::default();
        apply(&mut region.state, &Command::RaiseFeatureLevel { level, now: Timestamp(0) });
        region.done(create(config("a", "1")));
        let first = region.applied(txn("counted", true, vec![delete("a")])).response;
        pass(&mut region, "", count - 1);
        assert_eq!(region.applied(txn("counted", true, vec![delete("a")])).response, first, "level {level}");
        region.applied(txn("one more", true, vec![]));
        assert_ne!(region.applied(txn("counted", true, vec![delete("a")])).response, first, "level {level}");
    }
}

#[test]
fn requests_are_forgotten_by_age_but_for_the_newest() {
    for (level, kept) in [(2, 0), (hearth_state::FEATURE_LEVEL, DUPLICATES_KEPT)] {
        let mut region = Region::default();
        apply(&mut region.state, &Command::RaiseFeatureLevel { level, now: Timestamp(0) });
        let start = txn("r", true, vec![create(config("a", "1"))]);
        let first = region.applied(start.clone()).response;
        let mut late = txn("later", true, vec![]);
        late.now = start.now.plus(DUPLICATES_MAX_AGE);
        region.applied(late.clone());
        assert_eq!(region.applied(start.clone()).response, first, "level {level}");
        // A clock that is far ahead makes all of them old.
        late.now = late.now.plus(DUPLICATES_MAX_AGE);
        late.request_id = "latest".into();
        region.applied(late);
        if kept > 0 {
            pass(&mut region, "", kept - 3);
            assert_eq!(region.applied(start.clone()).response, first, "one of the newest");
            let mut restored = State::decode(&region.state.encode()).expect("it is whole");
            assert_eq!(apply(&mut restored, &Command::Txn(start.clone())).response, first, "also after a restart");
            region.applied(txn("one more", true, vec![]));
        }
        assert_ne!(region.applied(start).response, first, "forgotten: applied again, and there is one already");
    }
}

#[test]
fn what_a_proposer_must_not_send_is_refused_without_harm() {
    let mut region = Region::default();
    let big = |size: usize| config("big", &"x".repeat(size));
    let frame = big(0).json().len();
    let too_big = big(MAX_OBJECT_BYTES - frame);
    let Err(OpError::Malformed(why)) = region.one(create(too_big)) else {
        panic!("there is no room for its resourceVersion");
    };
    assert!(why.contains("at most 1572864"), "{why}");
    region.done(create(big(MAX_OBJECT_BYTES - frame - hearth_state::STAMP_BYTES)));
    let many = txn("many", true, vec![delete("x"); 1_001]);
    assert_eq!(region.applied(many).response, Response::Refused(Refusal::TooManyOps(1_001)));
    let nameless = txn("", true, vec![]);
    assert_eq!(region.applied(nameless).response, Response::Refused(Refusal::RequestId(0)));
}

#[test]
fn the_first_identity_stays() {
    let mut state = State::default();
    let initialize = |name: &str| Command::Initialize { incarnation: Incarnation::from(name), now: Timestamp(1) };
    assert_eq!(apply(&mut state, &initialize("a")).response, Response::Incarnation("a".into()));
    assert_eq!(apply(&mut state, &initialize("b")).response, Response::Incarnation("a".into()));
    assert_eq!(state.incarnation(), Some(&Incarnation::from("a")));
}

#[test]
fn feature_levels_only_rise_and_unknown_entries_do_no_harm() {
    let mut state = State::default();
    let raise = |level| Command::RaiseFeatureLevel { level, now: Timestamp(1) };
    assert_eq!(apply(&mut state, &raise(3)).response, Response::FeatureLevel(3));
    let refused = Refusal::FeatureLevel { present: 3, asked: 2 };
    assert_eq!(apply(&mut state, &raise(2)).response, Response::Refused(refused));
    assert_eq!(state.feature_level(), 3);
    let before = state.encode();
    let unknown = Command::decode(&[1, 77, 5]);
    assert_eq!(apply(&mut state, &unknown).response, Response::Refused(Refusal::Unknown { format: 1, kind: 77 }));
    assert_eq!(state.encode(), before);
}

#[test]
fn cluster_scoped_objects_have_no_namespace() {
    let mut region = Region::default();
    region.done(create(object(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "nas", "uid": "u"}}))));
    assert!(region.state.get(&ObjectKey::new(GroupKind::NODE, "", "nas")).is_some());
}

#[test]
fn a_request_id_that_was_used_for_something_else_is_refused() {
    let mut region = Region::default();
    let id = |attempt: &str, content: u64| RequestId::from(attempt).with_content(content).as_str().to_owned();
    let first = region.applied(txn(&id("r/c0", 1), true, vec![create(config("a", "1"))])).response;
    // The same content again is answered as before, whatever the transaction that it would come to now.
    assert_eq!(region.applied(txn(&id("r/c0", 1), true, vec![create(config("b", "1"))])).response, first);
    let before = region.state.encode();
    // Other content is refused, in whatever attempt.
    for attempt in ["r/c0", "r/c1", "r/u0"] {
        let applied = region.applied(txn(&id(attempt, 2), true, vec![create(config("b", "1"))]));
        assert_eq!(applied.response, Response::Refused(Refusal::Reused), "{attempt}");
    }
    assert_eq!(region.state.encode(), before, "nothing was done, and nothing remembered");
    // Another attempt of the same request, other requests, and ids without content are nobody's business.
    for (name, other) in
        [("c", id("r/u0", 1)), ("d", id("r2/c0", 2)), ("e", id("r/2/c0", 2)), ("f", "r/c0".into()), ("g", id("q", 2))]
    {
        let applied = region.applied(txn(&other, true, vec![create(config(name, "1"))]));
        assert!(
            matches!(&applied.response, Response::Txn(outcome) if outcome.outcomes[0].is_ok()),
            "{other}: {applied:?}"
        );
    }
    // What is remembered survives a snapshot.
    let mut restored = Region::default();
    restored.state = State::decode(&region.state.encode()).expect("intact");
    let applied = restored.applied(txn(&id("r/c0", 2), true, vec![]));
    assert_eq!(applied.response, Response::Refused(Refusal::Reused));
}

#[test]
fn from_level_two_on_a_key_belongs_to_one_device() {
    let key = |digit: &str| digit.repeat(64);
    let device = |name: &str, keys: &[String]| {
        object(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "spec": {"owner": "alice", "keys": keys},
            "metadata": {"name": name, "uid": format!("uid-{name}")}}))
    };
    let mut region = Region::default();
    // Before, entries are applied as they were acknowledged.
    region.done(create(device("old-1", &[key("a")])));
    region.done(create(device("old-2", &[key("a")])));
    apply(&mut region.state, &Command::RaiseFeatureLevel { level: 2, now: Timestamp(1) });
    // A pair from before can still be changed and taken apart.
    region.done(update(device("old-1", &[key("a"), key("b")])));
    region.done(update(device("old-2", &[])));
    region.done(create(device("new", &[key("c"), key("d")])));
    for (name, keys) in [("x", vec![key("a")]), ("x", vec![key("e"), key("D")]), ("new", vec![key("c"), key("b")])] {
        let new = device(name, &keys);
        let op = if name == "new" { update(new) } else { create(new) };
        let error = region.one(op).expect_err("refused");
        assert!(matches!(&error, OpError::Conflict { why, .. } if why.contains("belongs to the device")), "{error}");
    }
    // In one transaction too; and what was given up is free.
    let both = region.txn(true, vec![create(device("y", &[key("f")])), create(device("z", &[key("f")]))]);
    assert!(both.outcomes.iter().all(Result::is_err));
    region.done(update(device("new", &[key("c")])));
    region.done(create(device("x", &[key("d")])));
    region.done(Op::Delete { key: ObjectKey::new(GroupKind::DEVICE, "", "x"), expect: Expect::default() });
    region.done(create(device("x2", &[key("d")])));
}

#[test]
fn what_this_program_cannot_apply_says_so() {
    assert!(Command::decode(&[9, 2, 5]).unread().expect("unknown").contains("format 9, kind 2"));
    let raise = |level| Command::RaiseFeatureLevel { level, now: Timestamp(1) };
    assert_eq!(raise(hearth_state::FEATURE_LEVEL).unread(), None);
    assert!(raise(hearth_state::FEATURE_LEVEL + 1).unread().expect("newer").contains("feature level"));
    assert_eq!(Command::Txn(txn("r", true, vec![])).unread(), None);
}
