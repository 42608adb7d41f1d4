//! A disk that is full, and one that fails.

use std::{sync::Arc, time::Duration};

use hearth_raft::{
    RaftStore, RaftStoreError,
    disk::{Crash, Disk as _, Fault, MemoryDisk},
};
use hearth_types::{Reason, Status, store::Consistency};

use crate::support::{Fixed, PATIENCE, config, data, memory, open, put, small, until};

/// Writes until it fails; returns how many were acknowledged.
async fn write_until_refused(store: &RaftStore) -> (usize, Status) {
    for number in 0..10_000 {
        let text = format!("{number}-{}", "x".repeat(700));
        if let Err(status) = put(store, &format!("o{number}"), &text).await {
            return (number, status);
        }
    }
    panic!("the disk never failed");
}

async fn check_all(store: &RaftStore, acknowledged: usize, read: Consistency) {
    for number in 0..acknowledged {
        let found = data(store, &format!("o{number}"), read).await.expect("was acknowledged");
        assert!(found.starts_with(&format!("{number}-")));
    }
}

#[tokio::test]
async fn on_a_full_disk_writes_are_refused_and_reads_go_on() {
    let disk = MemoryDisk::new();
    let store = memory(&disk, config("/raft".as_ref())).await.expect("opens");
    disk.inject(Fault::Full { capacity: 40_000 });
    let (acknowledged, refused) = write_until_refused(&store).await;
    assert!(acknowledged > 10);
    assert_eq!(refused.reason, Reason::ServiceUnavailable);
    assert!(refused.message.contains("no space left in /raft"), "{refused}");
    let why = tokio::time::timeout(PATIENCE, store.failed()).await.expect("said so");
    assert_eq!(store.failure(), Some(why));
    check_all(&store, acknowledged, Consistency::Linearizable).await;

    // Room alone does not make it acknowledge again: the file is in an unknown state.
    disk.heal();
    put(&store, "late", "1").await.expect_err("still refused");
    store.shutdown().await.expect("closes");
    let store = memory(&disk, config("/raft".as_ref())).await.expect("opens");
    check_all(&store, acknowledged, Consistency::Linearizable).await;
    put(&store, "late", "2").await.expect("resumes");
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_until_a_restart() {
    for after in [0, 1, 5] {
        let disk = MemoryDisk::new();
        let store = memory(&disk, config("/raft".as_ref())).await.expect("opens");
        disk.inject(Fault::Sync { after });
        let (acknowledged, refused) = write_until_refused(&store).await;
        assert_eq!(acknowledged, after);
        assert!(refused.message.contains("fdatasync"), "{refused}");
        // The next sync of the file would succeed, and lie.
        for _ in 0..3 {
            put(&store, "more", "1").await.expect_err("refused");
        }
        check_all(&store, acknowledged, Consistency::Linearizable).await;
        store.shutdown().await.expect("closes");
        for crash in [None, Some(Crash::LoseAll), Some(Crash::KeepAll)] {
            // Without a power cut the pages still read well; the store must not trust them to be on disk.
            let disk = crash.map_or_else(|| disk.clone(), |crash| disk.after(crash));
            let store = memory(&disk, config("/raft".as_ref())).await.expect("opens");
            check_all(&store, acknowledged, Consistency::Linearizable).await;
            put(&store, "again", "1").await.expect("resumes");
            store.shutdown().await.expect("closes");
            let store = memory(&disk.after(Crash::LoseAll), config("/raft".as_ref())).await.expect("opens");
            check_all(&store, acknowledged, Consistency::Linearizable).await;
            assert_eq!(data(&store, "again", Consistency::Linearizable).await.as_deref(), Some("1"));
            store.shutdown().await.expect("closes");
        }
    }
}

#[tokio::test]
async fn while_there_is_no_room_for_a_snapshot_the_log_goes_on_and_it_is_tried_again() {
    let mut config = small("/raft".as_ref(), 30);
    config.tuning.snapshot_retry = Duration::from_millis(1)..Duration::from_millis(20);
    let disk = MemoryDisk::new();
    let registry = prometheus::Registry::new();
    let store = RaftStore::open_on(Arc::new(disk.clone()), config.clone(), &registry, Arc::new(Fixed));
    let store = store.await.expect("opens");
    let failures = || {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == "hearth_store_snapshot_failures_total");
        family.expect("there").get_metric()[0].get_counter().get_value()
    };
    let snapshots =
        || disk.list("/raft".as_ref()).expect("listed").iter().filter(|name| name.ends_with(".snap")).count();
    // Room for the log of many entries, not for a snapshot besides.
    disk.inject(Fault::Full { capacity: 300_000 });
    for number in 0..100 {
        put(&store, &format!("o{number}"), &format!("{number}-{}", "x".repeat(700))).await.expect("the log goes on");
    }
    until("it was tried twice", || failures() >= 2.0).await;
    assert_eq!((store.failure(), snapshots()), (None, 0));
    disk.heal();
    until("it is written once there is room", || snapshots() > 0).await;
    put(&store, "late", "1").await.expect("goes on");
    // Closing does not wait for a snapshot that cannot be written.
    disk.inject(Fault::Full { capacity: 400_000 });
    for number in 100..160 {
        put(&store, &format!("o{number}"), &format!("{number}-{}", "x".repeat(700))).await.expect("the log goes on");
    }
    store.shutdown().await.expect("closes");
    let store = memory(&disk, config).await.expect("opens");
    check_all(&store, 160, Consistency::Linearizable).await;
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn a_log_that_is_full_for_want_of_a_snapshot_stops_the_store_and_loses_nothing() {
    let disk = MemoryDisk::new();
    let store = memory(&disk, small("/raft".as_ref(), 30)).await.expect("opens");
    disk.inject(Fault::Full { capacity: 60_000 });
    let (acknowledged, refused) = write_until_refused(&store).await;
    assert!(acknowledged >= 35, "{acknowledged}");
    assert!(refused.message.contains("no space left in /raft"), "{refused}");
    check_all(&store, acknowledged, Consistency::Linearizable).await;
    store.shutdown().await.expect("closes");
    disk.heal();
    let store = memory(&disk, small("/raft".as_ref(), 30)).await.expect("opens");
    check_all(&store, acknowledged, Consistency::Linearizable).await;
    put(&store, "late", "2").await.expect("resumes");
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn a_store_that_cannot_be_made_says_why() {
    let disk = MemoryDisk::new();
    disk.inject(Fault::Full { capacity: 10 });
    let Err(error) = memory(&disk, config("/raft".as_ref())).await else { panic!("there is no room") };
    assert!(matches!(error, RaftStoreError::Directory { what: "write to", .. }), "{error:?}");
    disk.heal();
    disk.inject(Fault::Full { capacity: 100 });
    let Err(error) = memory(&disk, config("/raft".as_ref())).await else { panic!("there is no room") };
    assert!(error.to_string().contains("no space left in /raft"), "{error}");
    disk.heal();
    memory(&disk, config("/raft".as_ref())).await.expect("opens").shutdown().await.expect("closes");
}

/// A file system of its own, in a mount namespace of its own, gone with the thread.
#[test]
fn a_full_file_system_is_survived() {
    let run = || {
        use nix::{
            mount::{MsFlags, mount},
            sched::{CloneFlags, unshare},
        };
        let dir = tempfile::tempdir().expect("a directory");
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace (needs root)");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
        let mut options = "size=2m".to_owned();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).expect("a tmpfs");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let path = dir.path().join("server/raft");
            let store = open(config(&path)).await.expect("opens");
            let (acknowledged, refused) = write_until_refused(&store).await;
            assert!(acknowledged > 100, "{acknowledged}");
            assert!(refused.message.contains("no space left in"), "{refused}");
            check_all(&store, acknowledged, Consistency::Linearizable).await;
            store.shutdown().await.expect("closes");
            options = "size=64m".to_owned();
            mount(none, dir.path(), none, MsFlags::MS_REMOUNT, Some(options.as_str())).expect("more room");
            let store = open(config(&path)).await.expect("opens");
            check_all(&store, acknowledged, Consistency::Linearizable).await;
            put(&store, "late", "1").await.expect("resumes");
            store.shutdown().await.expect("closes");
        });
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
    };
    std::thread::spawn(run).join().expect("the thread in its own namespace");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_writes_at_once_are_refused_and_can_be_repeated() {
    let store = Arc::new(memory(&MemoryDisk::new(), config("/raft".as_ref())).await.expect("opens"));
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..2 * hearth_raft::MAX_WRITES_IN_FLIGHT {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            let mut refused = 0;
            loop {
                match put(&store, &format!("o{number}"), "x").await {
                    Ok(_) => return refused,
                    Err(status) => assert_eq!(status.reason, Reason::TooManyRequests, "{status}"),
                }
                refused += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("every write gets through in the end");
    }
    assert_eq!(store.revision().0, 2 * hearth_raft::MAX_WRITES_IN_FLIGHT as u64);
    store.shutdown().await.expect("closes");
}
