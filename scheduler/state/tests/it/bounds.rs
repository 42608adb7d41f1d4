//! History, lists and tokens at their bounds.

use hearth_state::{Command, Expired, HISTORY_MAX_BYTES, HISTORY_MAX_CHANGES, ListError, State, apply};
use hearth_types::{
    GroupKind, Revision, Timestamp,
    store::{MAX_PAGE, Query},
};

use crate::support::{Region, config, create, update};

fn all() -> Query {
    Query::all(GroupKind::CONFIG_MAP)
}

#[test]
fn the_history_is_bounded_by_count_in_whole_revisions() {
    let mut region = Region::default();
    region.txn(true, vec![create(config("a", "")), create(config("b", "")), create(config("c", ""))]);
    for number in 0..HISTORY_MAX_CHANGES - 3 {
        region.done(update(config("a", &number.to_string())));
    }
    assert_eq!(region.state.history().len(), HISTORY_MAX_CHANGES);
    assert_eq!(region.state.history().floor(), Revision::ZERO);
    region.done(update(config("a", "one more")));
    assert_eq!(region.state.history().floor(), Revision(1), "the first revision had three changes");
    assert_eq!(region.state.history().len(), HISTORY_MAX_CHANGES - 2);
    let expired = region.state.events_since(Revision::ZERO, &all()).expect_err("too old");
    assert_eq!(expired, Expired::TooOld { from: Revision::ZERO, floor: Revision(1) });
    region.state.events_since(Revision(1), &all()).expect("the oldest that is served");
}

#[test]
fn the_history_is_bounded_by_bytes() {
    let mut region = Region::default();
    region.done(create(config("a", "")));
    let size = 1 << 20;
    for number in 0..40 {
        region.done(update(config("a", &format!("{number}{}", "x".repeat(size)))));
    }
    let kept = region.state.history().len();
    assert!(kept <= HISTORY_MAX_BYTES / size && kept >= HISTORY_MAX_BYTES / size - 2, "{kept}");
    assert!(region.state.encode().len() < 3 * HISTORY_MAX_BYTES);
}

#[test]
fn ten_thousand_objects_come_in_pages() {
    let mut region = Region::default();
    for batch in 0..10 {
        let ops = (0..1_000).map(|one| create(config(&format!("c{:05}", batch * 1_000 + one), "x"))).collect();
        region.txn(true, ops);
    }
    let page = region.state.list(&all(), 0, None).expect("the first page");
    assert_eq!((page.items.len(), page.remaining), (MAX_PAGE, Some(5_000)));
    let (mut token, mut seen) = (None, Vec::new());
    loop {
        // Writes between the pages do not show.
        region.done(update(config("c00000", &seen.len().to_string())));
        let page = region.state.list(&all(), 999, token.as_deref()).expect("a page");
        seen.extend(page.items.iter().map(|object| (object.name().to_owned(), object.revision())));
        assert_eq!(page.revision, Revision(11));
        token = page.continue_token;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 10_000);
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert!(seen[1..].iter().all(|(_, revision)| revision.0 <= 10));
}

#[test]
fn a_continued_list_ends_with_the_history_the_kind_and_the_identity() {
    let mut region = Region::default();
    region.txn(true, vec![create(config("a", "")), create(config("b", ""))]);
    let token = region.state.list(&all(), 1, None).expect("a page").continue_token.expect("there is more");
    let other = Query::all(GroupKind::SECRET);
    assert!(matches!(region.state.list(&other, 1, Some(&token)), Err(ListError::Token(_))));
    let mut rebuilt = region.state.clone();
    apply(&mut rebuilt, &Command::Initialize { incarnation: "new".into(), now: Timestamp(0) });
    assert!(matches!(rebuilt.list(&all(), 1, Some(&token)), Err(ListError::Incarnation)));
    assert!(matches!(State::default().list(&all(), 1, Some(&token)), Err(ListError::Expired(Expired::Ahead { .. }))));
    for number in 0..=HISTORY_MAX_CHANGES {
        region.done(update(config("a", &number.to_string())));
    }
    assert!(matches!(region.state.list(&all(), 1, Some(&token)), Err(ListError::Expired(Expired::TooOld { .. }))));
}

#[test]
fn one_namespace_is_listed_without_the_others() {
    let mut region = Region::default();
    for namespace in ["a", "b", "b-c", "c"] {
        for name in ["x", "y"] {
            region.done(create(crate::support::object(serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": namespace, "uid": "u"}}))));
        }
    }
    let query = Query { namespace: Some("b".into()), ..all() };
    let page = region.state.list(&query, 1, None).expect("a page");
    assert_eq!((page.items[0].namespace(), page.remaining), ("b", Some(1)));
    let page = region.state.list(&query, 1, page.continue_token.as_deref()).expect("a page");
    assert_eq!((page.items[0].name(), page.remaining, page.continue_token), ("y", Some(0), None));
}
