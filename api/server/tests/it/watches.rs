//! Watches.

use futures_util::StreamExt as _;
use hearth_client::{Answers, DeleteOptions, Selection, WriteOptions};
use hearth_types::{GroupKind, Reason, Revision, Status, store::WatchEvent};
use serde_json::json;

use crate::region::{LIMIT, Region, config_map, key};

async fn next(stream: &mut Answers<WatchEvent>) -> Result<WatchEvent, Status> {
    tokio::time::timeout(LIMIT, stream.next()).await.expect("an event in time").expect("no end")
}

fn shown(event: WatchEvent) -> String {
    match event {
        WatchEvent::Added(object) => format!("+{}", object.name()),
        WatchEvent::Modified(object) => format!("~{}", object.name()),
        WatchEvent::Deleted(object) => format!("-{}", object.name()),
        WatchEvent::Bookmark(_) => "=".into(),
    }
}

#[tokio::test]
async fn a_watch_from_zero_shows_what_is_there_then_what_happens() {
    let region = Region::start().await;
    let (client, plain) = (region.admin(), WriteOptions::default());
    for name in ["a", "b"] {
        client.create(&config_map("alice", name, json!({})), &plain).await.unwrap();
    }
    let selection = Selection::namespace(GroupKind::CONFIG_MAP, "alice");
    let mut events = client.watch(&selection, Revision::ZERO).await.unwrap();
    for expected in ["+a", "+b", "="] {
        assert_eq!(shown(next(&mut events).await.unwrap()), expected);
    }
    let created = client.create(&config_map("alice", "c", json!({})), &plain).await.unwrap().object;
    client.create(&config_map("bob", "elsewhere", json!({})), &plain).await.unwrap();
    client.apply(&config_map("alice", "a", json!({"x": "y"})), &plain).await.unwrap();
    client.delete(&key(GroupKind::CONFIG_MAP, "alice", "b"), &DeleteOptions::default()).await.unwrap();
    for expected in ["+c", "~a", "-b"] {
        assert_eq!(shown(next(&mut events).await.unwrap()), expected);
    }
    // From a revision: everything after it, nothing twice.
    let mut later = client.watch(&selection, created.revision()).await.unwrap();
    assert_eq!(shown(next(&mut later).await.unwrap()), "~a");
    let open = region.registry.gather();
    let watches = open.iter().find(|family| family.name() == "hearth_api_requests_open").unwrap();
    let watches = watches.get_metric().iter().find(|one| one.get_label().iter().any(|label| label.value() == "Watch"));
    assert!((watches.unwrap().get_gauge().get_value() - 2.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_revision_that_is_not_in_the_history_is_expired() {
    let region = Region::start().await;
    let client = region.admin();
    let error = match client.watch(&Selection::all(GroupKind::CONFIG_MAP), Revision(1_000_000)).await {
        Err(error) => error,
        Ok(mut events) => next(&mut events).await.unwrap_err(),
    };
    assert_eq!(error.reason, Reason::Expired, "{error}");
}
