//! Watches on a store that is being written.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use hearth_raft::{RaftStore, disk::MemoryDisk};
use hearth_state::HISTORY_MAX_CHANGES;
use hearth_types::{
    GroupKind, Reason, Revision,
    store::{Expect, MAX_OPS, Op, Query, Store as _, WatchEvent, WatchStream},
};

use crate::support::{PATIENCE, config, key, memory, object, put, small, txn};

fn all() -> Query {
    Query::all(GroupKind::CONFIG_MAP)
}

async fn next(stream: &mut WatchStream) -> WatchEvent {
    let event = tokio::time::timeout(PATIENCE, stream.next()).await.expect("in time");
    event.expect("the stream goes on").expect("an event")
}

async fn store() -> RaftStore {
    memory(&MemoryDisk::new(), config("/raft".as_ref())).await.expect("opens")
}

#[tokio::test]
async fn a_watch_replays_and_goes_on_live() {
    let store = store().await;
    for number in 1..4 {
        put(&store, "a", &number.to_string()).await.expect("written");
    }
    let mut stream = store.watch(all(), Revision(1)).await.expect("watches");
    assert_eq!(next(&mut stream).await, WatchEvent::Modified(object("a", "2").with_revision(Revision(2))));
    put(&store, "a", "4").await.expect("written");
    assert_eq!(next(&mut stream).await, WatchEvent::Modified(object("a", "3").with_revision(Revision(3))));
    assert_eq!(next(&mut stream).await, WatchEvent::Bookmark(Revision(3)));
    assert_eq!(next(&mut stream).await, WatchEvent::Modified(object("a", "4").with_revision(Revision(4))));
    let delete = Op::Delete { key: key("a"), expect: Expect::default() };
    store.write(txn("delete", vec![delete])).await.expect("written");
    assert_eq!(next(&mut stream).await, WatchEvent::Deleted(object("a", "4").with_revision(Revision(5))));
    assert_eq!(store.watch(all(), Revision(6)).await.err().expect("ahead").reason, Reason::Expired);
    store.shutdown().await.expect("closes");
    let end = tokio::time::timeout(PATIENCE, stream.next()).await.expect("in time").expect("a last word");
    assert_eq!(end.expect_err("the end").reason, Reason::ServiceUnavailable);
    assert!(stream.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_from_any_revision_see_every_change_once_and_in_order() {
    const WRITERS: usize = 8;
    const WRITES: usize = 100;
    let disk = MemoryDisk::new();
    let store = Arc::new(memory(&disk, small("/raft".as_ref(), 100)).await.expect("opens"));
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for number in 0..WRITES {
                put(&store, &format!("w{writer}"), &number.to_string()).await.expect("written");
            }
        });
    }
    let last = Revision((WRITERS * WRITES) as u64);
    let mut watchers = tokio::task::JoinSet::new();
    for watcher in 0..40_u64 {
        let store = Arc::clone(&store);
        watchers.spawn(async move {
            // Each begins at another moment, at a revision of the past or the present.
            let start = Revision(watcher * 15);
            while store.revision() < start {
                tokio::task::yield_now().await;
            }
            let from = if watcher % 2 == 0 { start } else { store.revision() };
            let mut stream = store.watch(all(), from).await.expect("watches");
            let mut expected = from.next();
            while expected <= last {
                match next(&mut stream).await {
                    WatchEvent::Bookmark(at) => assert_eq!(at.next(), expected),
                    WatchEvent::Added(one) | WatchEvent::Modified(one) => {
                        assert_eq!(one.revision(), expected, "no gap, nothing twice");
                        expected = expected.next();
                    }
                    WatchEvent::Deleted(one) => panic!("{one:?} was deleted"),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a writer");
    }
    while let Some(done) = watchers.join_next().await {
        done.expect("a watcher");
    }
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn a_restart_neither_loses_nor_doubles_an_event() {
    let disk = MemoryDisk::new();
    let config = small("/raft".as_ref(), 7);
    let (mut position, mut view) = (Revision::ZERO, BTreeMap::new());
    for round in 0..5 {
        let store = memory(&disk, config.clone()).await.expect("opens");
        for number in 0..10 {
            put(&store, &format!("o{number}"), &round.to_string()).await.expect("written");
        }
        let mut stream = store.watch(all(), position).await.expect("watches from where it was");
        while position < store.revision() {
            match next(&mut stream).await {
                WatchEvent::Added(one) | WatchEvent::Modified(one) => {
                    assert_eq!(one.revision(), position.next());
                    position = one.revision();
                    view.insert(one.name().to_owned(), one);
                }
                WatchEvent::Bookmark(at) => assert_eq!(at, position),
                WatchEvent::Deleted(one) => panic!("{one:?} was deleted"),
            }
        }
        store.shutdown().await.expect("closes");
    }
    assert_eq!((view.len(), position), (10, Revision(50)));
}

#[tokio::test]
async fn a_slow_watcher_expires_alone() {
    let store = store().await;
    let mut slow = store.watch(all(), Revision::ZERO).await.expect("watches");
    let mut secrets = store.watch(Query::all(GroupKind::SECRET), Revision::ZERO).await.expect("watches");
    for batch in 0..=HISTORY_MAX_CHANGES / MAX_OPS {
        let ops = (0..MAX_OPS).map(|one| Op::Create { object: object(&format!("o{batch}-{one}"), "") });
        store.write(txn(&batch.to_string(), ops.collect())).await.expect("a slow watcher holds up nobody");
    }
    let end = slow.next().await.expect("a last word").expect_err("too slow");
    assert_eq!(end.reason, Reason::Expired);
    assert!(slow.next().await.is_none());
    // One whose kind did not change has missed nothing, however long it slept.
    let secret = hearth_types::Object::from_value(serde_json::json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "s", "namespace": "n", "uid": "u"}}))
    .expect("an object");
    let waiting = tokio::spawn(async move { next(&mut secrets).await });
    store.write(txn("secret", vec![Op::Create { object: secret }])).await.expect("written");
    assert!(matches!(waiting.await.expect("a watcher"), WatchEvent::Added(one) if one.name() == "s"));
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn an_idle_watcher_is_told_how_far_it_is() {
    let mut config = config("/raft".as_ref());
    config.tuning.bookmark_interval = Duration::from_millis(20);
    let store = memory(&MemoryDisk::new(), config).await.expect("opens");
    let mut stream = store.watch(Query::all(GroupKind::SECRET), Revision::ZERO).await.expect("watches");
    put(&store, "a", "1").await.expect("written");
    assert_eq!(next(&mut stream).await, WatchEvent::Bookmark(Revision(1)));
    put(&store, "a", "2").await.expect("written");
    assert_eq!(next(&mut stream).await, WatchEvent::Bookmark(Revision(2)));
    let none = tokio::time::timeout(Duration::from_millis(100), stream.next()).await;
    assert!(none.is_err(), "nothing new, nothing told: {none:?}");
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn the_events_of_one_revision_are_closed_by_a_bookmark() {
    let store = store().await;
    let mut stream = store.watch(all(), Revision::ZERO).await.expect("watches");
    let ops = ["a", "b"].map(|name| Op::Create { object: object(name, "") });
    store.write(txn("both", ops.into())).await.expect("written");
    assert!(matches!(next(&mut stream).await, WatchEvent::Added(one) if one.name() == "a"));
    assert!(matches!(next(&mut stream).await, WatchEvent::Added(one) if one.name() == "b"));
    assert_eq!(next(&mut stream).await, WatchEvent::Bookmark(Revision(1)));
    store.shutdown().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watchers_see_one_event() {
    let store = store().await;
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let mut stream = store.watch(all(), Revision::ZERO).await.expect("watches");
        watchers.spawn(async move { next(&mut stream).await });
    }
    put(&store, "a", "1").await.expect("written");
    while let Some(event) = watchers.join_next().await {
        assert!(matches!(event.expect("a watcher"), WatchEvent::Added(_)));
    }
    store.shutdown().await.expect("closes");
}
