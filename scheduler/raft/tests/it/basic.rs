//! The store as its users see it.

use std::sync::Arc;

use hearth_raft::{MAX_TXN_BYTES, RaftStore, RaftStoreError};
use hearth_types::{
    GroupKind, Reason, Revision,
    object::MAX_OBJECT_BYTES,
    store::{Consistency, Expect, MAX_OPS, MAX_PAGE, Op, OpError, Query, Store as _, list_all},
};

use crate::support::{Fixed, config, data, key, object, open, put, small, txn, until};

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(!hearth_raft::exists(dir.path()) && !hearth_raft::exists(&dir.path().join("none")));
    let store = open(config(dir.path())).await.expect("opens");
    assert!(hearth_raft::exists(dir.path()));
    let incarnation = store.incarnation();
    assert!(!incarnation.as_str().is_empty());
    assert_eq!(put(&store, "a", "1").await, Ok(Revision(1)));
    assert_eq!(put(&store, "a", "2").await, Ok(Revision(2)));
    let gone = store.write(txn("delete", vec![Op::Delete { key: key("b"), expect: Expect::default() }])).await;
    assert_eq!(gone.expect("answered").outcomes, [Err(OpError::NotFound(key("b")))]);
    store.shutdown().await.expect("closes");
    store.shutdown().await.expect("twice is harmless");
    let refused = put(&store, "a", "3").await.expect_err("closed");
    assert_eq!(refused.reason, Reason::ServiceUnavailable);

    let store = open(config(dir.path())).await.expect("opens again");
    assert_eq!((store.incarnation(), store.revision()), (incarnation, Revision(2)));
    assert_eq!(data(&store, "a", Consistency::Linearizable).await.as_deref(), Some("2"));
    assert_eq!(put(&store, "a", "2").await, Ok(Revision(2)), "the request is still known");
    assert_eq!(put(&store, "a", "3").await, Ok(Revision(3)));
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn snapshots_replace_the_log_and_a_restart_goes_on_from_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let names = |suffix: &str| {
        let entries = std::fs::read_dir(dir.path()).expect("listed");
        let names = entries.map(|entry| entry.expect("read").file_name().into_string().expect("text"));
        let mut names: Vec<_> = names.filter(|name| name.ends_with(suffix)).collect();
        names.sort();
        names
    };
    for round in 0..4 {
        let store = open(small(dir.path(), 20)).await.expect("opens");
        for number in 0..50 {
            put(&store, &format!("o{number}"), &format!("{round}")).await.expect("written");
        }
        until("segments are dropped", || {
            let segments = names(".seg");
            segments.len() < 12 && segments.first().is_some_and(|first| !first.ends_with("00001.seg"))
        })
        .await;
        store.shutdown().await.expect("closes");
        assert!(!names(".snap").is_empty() && names(".snap").len() <= 2, "{:?}", names(".snap"));
        assert_eq!(names(".tmp"), Vec::<String>::new());
    }
    let store = open(small(dir.path(), 20)).await.expect("opens");
    assert_eq!(store.revision(), Revision(200));
    let (items, revision) =
        list_all(&store, &Query::all(GroupKind::CONFIG_MAP), Consistency::Linearizable).await.expect("listed");
    assert_eq!((items.len(), revision), (50, Revision(200)));
    store.shutdown().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_share_syncs_and_lose_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let registry = prometheus::Registry::new();
    let store = RaftStore::open(config(dir.path()), &registry, Arc::new(Fixed)).await.expect("opens");
    let store = Arc::new(store);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..64 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for number in 0..20 {
                put(&store, &format!("w{writer}-{number}"), "x").await.expect("written");
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer");
    }
    assert_eq!(store.revision(), Revision(1_280));
    let metric = |name: &str| {
        let families = registry.gather();
        let family = families.iter().find(|one| one.name() == name).unwrap_or_else(|| panic!("{name} is there"));
        family.get_metric()[0].clone()
    };
    let syncs = metric("hearth_store_log_sync_seconds").get_histogram().get_sample_count();
    assert!(syncs < 1_000, "{syncs} syncs for 1,280 writes");
    assert!(metric("hearth_store_log_appended_bytes_total").get_counter().get_value() > 1_280.0 * 100.0);
    assert_eq!(metric("hearth_store_objects").get_gauge().get_value() as i64, 1_280);
    assert_eq!(metric("hearth_store_failed").get_gauge().get_value() as i64, 0);
    assert_eq!(metric("hearth_store_writes_in_flight").get_gauge().get_value() as i64, 0);
    store.shutdown().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_concurrent_updates_of_one_revision_one_succeeds() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(open(config(dir.path())).await.expect("opens"));
    put(&store, "a", "0").await.expect("written");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..32 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            let expect = Expect { revision: Some(Revision(1)), uid: None };
            let op = Op::Update { object: object("a", &format!("by {writer}")), expect };
            store.write(txn(&format!("update-{writer}"), vec![op])).await.expect("answered").outcomes.remove(0).is_ok()
        });
    }
    let mut winners = 0;
    while let Some(done) = writers.join_next().await {
        winners += usize::from(done.expect("a writer"));
    }
    assert_eq!((winners, store.revision()), (1, Revision(2)));
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn a_read_sees_the_write_that_was_acknowledged_before_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(config(dir.path())).await.expect("opens");
    for number in 0..50 {
        let wanted = number.to_string();
        put(&store, "a", &wanted).await.expect("written");
        assert_eq!(data(&store, "a", Consistency::Linearizable).await, Some(wanted));
    }
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn what_is_out_of_bounds_is_refused_before_it_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(config(dir.path())).await.expect("opens");
    let create = |object| Op::Create { object };
    let frame = object("big", "").json().len();
    let too_big = object("big", &"x".repeat(MAX_OBJECT_BYTES - frame));
    let half = object("half", &"x".repeat(MAX_OBJECT_BYTES / 2));
    let check = Op::Check { key: key("a"), expect: Expect::default() };
    for (name, bad) in [
        ("operations", txn("r1", vec![check.clone(); MAX_OPS + 1])),
        ("one object", txn("r2", vec![create(too_big)])),
        ("all objects", txn("r3", vec![create(half); 2 * MAX_TXN_BYTES / MAX_OBJECT_BYTES + 2])),
        ("no id", txn("", vec![check.clone()])),
        ("a long id", txn(&"r".repeat(500), vec![check])),
    ] {
        let refused = store.write(bad).await.expect_err(name);
        assert_eq!(refused.reason, Reason::BadRequest, "{name}: {refused}");
    }
    store
        .write(txn("r4", vec![create(object("big", &"x".repeat(MAX_OBJECT_BYTES - frame - 64)))]))
        .await
        .expect("fits");
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn a_store_is_one_servers_and_one_processs() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(config(dir.path())).await.expect("opens");
    assert!(matches!(open(config(dir.path())).await, Err(RaftStoreError::InUse(path)) if path == dir.path()));
    store.shutdown().await.expect("closes");
    let mut other = config(dir.path());
    other.region = "work".into();
    let Err(error) = open(other).await else { panic!("another region's") };
    assert!(matches!(error, RaftStoreError::Identity { .. }));
    assert!(error.to_string().contains("region home"), "{error}");
    open(config(dir.path())).await.expect("opens again").shutdown().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_objects_are_listed_in_pages_of_one_revision_under_writes() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(open(config(dir.path())).await.expect("opens"));
    for batch in 0..10 {
        let ops = (0..MAX_OPS).map(|one| Op::Create { object: object(&format!("o{:05}", batch * MAX_OPS + one), "x") });
        store.write(txn(&format!("batch-{batch}"), ops.collect())).await.expect("written");
    }
    let writing = Arc::clone(&store);
    let writer = tokio::spawn(async move {
        for number in 0..500 {
            put(&writing, &format!("o{:05}", number * 7), &number.to_string()).await.expect("written");
        }
    });
    for (limit, consistency) in [(0, Consistency::Linearizable), (777, Consistency::Local)] {
        let query = Query::all(GroupKind::CONFIG_MAP);
        let (mut token, mut names, mut revision): (Option<String>, Vec<String>, _) = (None, Vec::new(), None);
        loop {
            let page = store.list(&query, limit, token.as_deref(), consistency).await.expect("a page");
            assert!(page.items.len() <= if limit == 0 { MAX_PAGE } else { limit });
            assert_eq!(*revision.get_or_insert(page.revision), page.revision);
            assert!(page.items.iter().all(|object| object.revision() <= page.revision));
            names.extend(page.items.iter().map(|object| object.name().to_owned()));
            token = page.continue_token;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(names.len(), 10_000);
        assert!(names.is_sorted());
    }
    writer.await.expect("the writer");
    let bad = store.list(&Query::all(GroupKind::POD), 1, Some("x!"), Consistency::Local).await.expect_err("no token");
    assert_eq!(bad.reason, Reason::BadRequest);
    store.shutdown().await.expect("closes");
}
