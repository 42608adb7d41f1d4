//! Each invariant refuses what it is there for.

use std::{collections::BTreeMap, sync::Arc};

use hearth_sim::{
    history::{
        Operation, Outcome,
        objects::{Answer, Call, Key, Stored},
    },
    invariants::{acknowledged, equal, leaders, local, rising, violations, watches},
    observed::{Change, Claim, Final, LocalList, Observed, Progress, Sight, Watched, What},
};

fn key(name: &str) -> Key {
    Arc::from(name)
}

fn event(revision: u64, name: &str, what: What, value: u64) -> Sight {
    Sight::Event { revision, change: Change { key: key(name), what, value } }
}

fn began(from: u64) -> Sight {
    Sight::Began { server: 1, from }
}

fn watched(prefix: &str, sights: Vec<Sight>) -> Observed {
    // One watcher that sees all, one to be judged.
    let all = vec![
        began(0),
        event(1, "a/1", What::Added, 1),
        event(2, "b/1", What::Added, 2),
        event(3, "a/1", What::Modified, 3),
        event(4, "b/1", What::Deleted, 2),
    ];
    let watch = |prefix: &str, sights| Watched { prefix: prefix.into(), sights };
    Observed { watches: vec![watch("", all), watch(prefix, sights)], ..Observed::default() }
}

fn items(of: &[(&str, u64, u64)]) -> BTreeMap<Key, Stored> {
    of.iter().map(|(name, value, revision)| (key(name), Stored { value: *value, revision: *revision })).collect()
}

#[test]
fn nothing_is_wrong_with_nothing() {
    assert!(violations(&Observed::default()).is_empty());
    let trouble = Observed { troubles: vec!["it burns".into(), "it smokes".into()], ..Observed::default() };
    assert_eq!(violations(&trouble), ["nothing goes wrong that must not: it burns; it smokes"]);
}

#[test]
fn two_leaders_of_a_term_are_found() {
    let claim = |by, term, leader| Claim { by, term, leader };
    let claims = vec![claim(1, 1, 1), claim(2, 1, 1), claim(2, 2, 2)];
    let mut observed = Observed { claims, ..Observed::default() };
    assert_eq!(leaders::check(&observed), Ok(()));
    observed.claims.push(claim(3, 2, 3));
    assert!(leaders::check(&observed).is_err());
}

#[test]
fn going_back_is_found_but_in_another_life() {
    let at = |server, life, revision, term| Progress { server, life, revision, term };
    let mut observed =
        Observed { progress: vec![at(1, 1, 5, 1), at(2, 1, 3, 1), at(1, 2, 0, 1)], ..Observed::default() };
    assert_eq!(rising::check(&observed), Ok(()));
    observed.progress.push(at(2, 1, 2, 1));
    assert!(rising::check(&observed).is_err());
}

#[test]
fn a_watch_that_is_no_prefix_is_found() {
    let (one, two) = (event(1, "a/1", What::Added, 1), event(2, "b/1", What::Added, 2));
    let (three, four) = (event(3, "a/1", What::Modified, 3), event(4, "b/1", What::Deleted, 2));
    let bookmark = |revision| Sight::Bookmark { revision };
    for (prefix, sights) in [
        ("", vec![began(0), one.clone(), two.clone(), bookmark(2), began(2), three.clone()]),
        ("a/", vec![began(0), one.clone(), three.clone(), bookmark(4)]),
        ("b/", vec![began(0), two.clone(), Sight::Listed { revision: 4 }, began(4)]),
    ] {
        assert_eq!(watches::check(&watched(prefix, sights.clone())), Ok(()), "{sights:?}");
    }
    for (what, prefix, sights) in [
        ("lost", "", vec![began(0), one.clone(), three.clone()]),
        ("lost among others", "b/", vec![began(0), four.clone()]),
        ("doubled", "", vec![began(0), one.clone(), one.clone()]),
        ("out of order", "a/", vec![began(0), three.clone(), one.clone()]),
        ("a bookmark ahead", "", vec![began(0), one.clone(), bookmark(2)]),
        ("a bookmark ahead of one's own", "a/", vec![began(0), bookmark(1)]),
        ("a bookmark behind", "", vec![began(0), one.clone(), two.clone(), bookmark(1)]),
        ("taken up elsewhere", "", vec![began(0), one.clone(), began(2)]),
        ("another change", "", vec![began(0), event(1, "a/1", What::Added, 9)]),
    ] {
        assert!(watches::check(&watched(prefix, sights)).is_err(), "{what}");
    }
}

#[test]
fn a_list_of_no_revision_is_found() {
    let mut observed = watched("", vec![]);
    let list = |items, revision| LocalList { server: 1, prefix: String::new(), items, revision };
    observed.local.push(list(items(&[("a/1", 1, 1), ("b/1", 2, 2)]), 2));
    assert_eq!(local::check(&observed), Ok(()));
    observed.local.push(list(items(&[("a/1", 3, 3)]), 3));
    assert!(local::check(&observed).is_err());
}

#[test]
fn a_lost_acknowledged_write_is_found() {
    let write = |call, answer| Operation { client: 1, invoked: 1, returned: 2, call, outcome: Outcome::Ok(answer) };
    let put = |value| Call::Put { key: key("a/1"), value, expect: None };
    let mut observed = watched("", vec![]);
    observed.history.push(write(put(3), Answer::Written { revision: 3 }));
    assert_eq!(acknowledged::check(&observed), Ok(()));
    for (call, answer) in [
        (put(7), Answer::Written { revision: 3 }),
        (put(3), Answer::Written { revision: 4 }),
        (Call::Create { key: key("a/1"), value: 3 }, Answer::Written { revision: 3 }),
        (Call::Delete { key: key("a/1"), expect: None }, Answer::Deleted { revision: 4 }),
    ] {
        let mut observed = watched("", vec![]);
        observed.history.push(write(call.clone(), answer));
        assert!(acknowledged::check(&observed).is_err(), "{call}");
    }
    // At the end of the history, where nobody watched.
    observed.history.push(write(put(9), Answer::Written { revision: 9 }));
    observed.finals.push(Final { server: 1, revision: 8, items: BTreeMap::new(), state: String::new() });
    assert!(acknowledged::check(&observed).is_err());
}

#[test]
fn servers_that_end_different_are_found() {
    let last = |server, items, state: &str| Final { server, revision: 4, items, state: state.into() };
    let same = items(&[("a/1", 3, 3)]);
    let mut observed = watched("", vec![]);
    observed.finals = vec![last(1, same.clone(), "x"), last(2, same.clone(), "x")];
    assert_eq!(equal::check(&observed), Ok(()));
    observed.finals = vec![last(1, same.clone(), "x"), last(2, same, "y")];
    assert!(equal::check(&observed).is_err());
    observed.finals = vec![last(1, items(&[]), "x"), last(2, items(&[]), "x")];
    assert!(equal::check(&observed).is_err());
}
