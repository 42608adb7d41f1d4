//! Backups of running and of stopped stores, and what is restored from them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use hearth_raft::{
    Backup, BackupError, Keys, Owner, RaftStore, RaftStoreError,
    disk::{Crash, Disk as _, MemoryDisk},
    read_stopped, read_stopped_on, restore, restore_on,
};
use hearth_types::{
    Clock as _, GroupKind, Reason, Revision, restores,
    store::{Consistency, Query, Store as _},
};

use crate::support::{Fixed, config, data, memory, open, put, small};

const DIR: &str = "/raft";

fn owner(region: String) -> Owner {
    let keys = Keys { ca_key: "key".into(), ca_certificate: "certificate".into(), tunnel_key: None };
    Owner { region, zone: "hearth.internal".into(), keys }
}

fn through_bytes(backup: &Backup) -> Backup {
    let mut bytes = Vec::new();
    backup.write(&mut bytes).expect("written");
    Backup::read(&bytes).expect("intact")
}

async fn of(store: &RaftStore) -> Backup {
    through_bytes(&store.backup(owner("home".into()), Fixed.now()).await.expect("a backup"))
}

/// Every file of a directory with its bytes.
fn files(disk: &MemoryDisk) -> Vec<(PathBuf, Vec<u8>)> {
    let mut names = disk.list(Path::new(DIR)).expect("listed");
    names.sort();
    let paths = names.into_iter().map(|name| Path::new(DIR).join(name));
    paths.map(|path| (path.clone(), disk.read(&path).expect("read"))).collect()
}

async fn all(store: &RaftStore) -> usize {
    let page =
        store.list(&Query::all(GroupKind::CONFIG_MAP), 0, None, Consistency::Linearizable).await.expect("a list");
    page.items.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_writes_has_every_write_that_was_acknowledged_before_it_began() {
    let disk = MemoryDisk::new();
    let store = Arc::new(memory(&disk, small(DIR.as_ref(), 50)).await.expect("opens"));
    let (acknowledged, seen) = tokio::sync::watch::channel(0_usize);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut number = 0;
            while !*stopped.borrow() {
                put(&store, &format!("o{number}"), "x").await.expect("written");
                number += 1;
                acknowledged.send_replace(number);
            }
        })
    };
    let (mut last, mut had) = (Revision::ZERO, 0);
    for _ in 0..20 {
        // Ten more than the last backup has, which may itself have more than the writer knew of.
        seen.clone().wait_for(|seen| *seen >= had + 10).await.expect("writes go on");
        let before = *seen.borrow();
        let backup = of(&store).await;
        let after = store.revision();
        let has = backup.kinds()[&GroupKind::CONFIG_MAP];
        assert!(has >= before, "{has} of {before} acknowledged");
        assert!(backup.head().revision > last && backup.head().revision <= after);
        assert_eq!(backup.head().objects, has, "whole writes and nothing else");
        (last, had) = (backup.head().revision, has);
    }
    stop.send_replace(true);
    writer.await.expect("wrote");
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn a_restored_store_has_everything_and_goes_on_above_all_that_was_ever_seen() {
    let disk = MemoryDisk::new();
    let store = memory(&disk, small(DIR.as_ref(), 9)).await.expect("opens");
    for number in 0..30 {
        put(&store, &format!("o{number}"), "old").await.expect("written");
    }
    let (backup, incarnation) = (of(&store).await, store.incarnation());
    let lost = put(&store, "late", "lost").await.expect("written");
    store.shutdown().await.expect("closes");

    let fresh = MemoryDisk::new();
    let restored = restore_on(Arc::new(fresh.clone()), DIR.as_ref(), &backup, Fixed.now()).await.expect("restored");
    assert_eq!(restored.backup, backup.head().revision);
    // A power cut right after it loses nothing.
    let fresh = fresh.after(Crash::LoseAll);
    for start in 0..3 {
        let store = memory(&fresh, small(DIR.as_ref(), 9)).await.expect("opens");
        assert_eq!(store.incarnation(), incarnation);
        assert!(store.revision() > restored.resumed && restored.resumed > lost);
        assert_eq!(data(&store, "o7", Consistency::Linearizable).await.as_deref(), Some("old"));
        assert_eq!(data(&store, "late", Consistency::Linearizable).await, None);
        let mark = store.get(&restores::key(), Consistency::Local).await.expect("read").expect("written down");
        let mark = restores::read(&mark.value());
        assert!(mark == [restored] && mark[0].lost(lost) && !mark[0].lost(backup.head().revision));
        // Who watched from before, or from the lost time, lists anew and misses nothing.
        for from in [backup.head().revision, lost] {
            let watched = store.watch(Query::all(GroupKind::CONFIG_MAP), from).await;
            assert_eq!(watched.err().map(|status| status.reason), Some(Reason::Expired), "{from}");
        }
        for number in 0..12 {
            put(&store, &format!("new{start}-{number}"), "x").await.expect("goes on");
        }
        assert_eq!(all(&store).await, 31 + (start + 1) * 12);
        store.shutdown().await.expect("closes");
    }
    // The same backup once more, later: what was written since the first restore counts as lost too.
    let later = hearth_types::Timestamp(Fixed.now().0 + 60_000);
    let again = restore_on(Arc::new(MemoryDisk::new()), DIR.as_ref(), &backup, later).await.expect("restored");
    assert!(again.lost(Revision(restored.resumed.0 + 36)));
    // And a backup of the restored one knows of both.
    let second = through_bytes(&read_stopped_on(Arc::new(fresh), DIR.as_ref(), owner, later).await.expect("a backup"));
    let disk = MemoryDisk::new();
    restore_on(Arc::new(disk.clone()), DIR.as_ref(), &second, later).await.expect("restored");
    let store = memory(&disk, config(DIR.as_ref())).await.expect("opens");
    let mark = store.get(&restores::key(), Consistency::Local).await.expect("read").expect("written down").value();
    assert_eq!(restores::read(&mark).len(), 2);
    store.shutdown().await.expect("closes");
}

#[tokio::test]
async fn a_stopped_store_is_backed_up_with_its_torn_tail_and_left_as_it_is() {
    for snapshot in [5, 1_000] {
        let disk = MemoryDisk::new();
        let store = memory(&disk, small(DIR.as_ref(), snapshot)).await.expect("opens");
        for number in 0..23 {
            put(&store, &format!("o{number}"), "x").await.expect("written");
        }
        let revision = store.revision();
        store.shutdown().await.expect("closes");
        let last = files(&disk)
            .into_iter()
            .map(|(path, _)| path)
            .filter(|path| path.extension().is_some_and(|end| end == "seg"));
        let last = last.max().expect("a segment");
        // A write that the power cut: half a record.
        disk.tamper(&last, |bytes| bytes.extend_from_slice(&[0x55; 9]));
        drop(disk.create(&Path::new(DIR).join("snapshot-1.snap.tmp")).expect("made"));
        let before = files(&disk);
        let backup = read_stopped_on(Arc::new(disk.clone()), DIR.as_ref(), owner, Fixed.now()).await.expect("a backup");
        let backup = through_bytes(&backup);
        assert_eq!((backup.head().revision, backup.head().objects), (revision, 23));
        assert_eq!(backup.head().region, "home");
        assert_eq!(files(&disk), before, "nothing is repaired or removed");
        // Damage in what was acknowledged is refused, as a start refuses it.
        disk.tamper(&last, |bytes| bytes[60] ^= 1);
        let error =
            read_stopped_on(Arc::new(disk.clone()), DIR.as_ref(), owner, Fixed.now()).await.expect_err("damaged");
        assert!(matches!(error, BackupError::Store(RaftStoreError::Log(_))), "{error}");
    }
}

#[tokio::test]
async fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let raft = dir.path().join("raft");
    let missing = read_stopped(&raft, owner, Fixed.now()).await;
    assert!(matches!(missing, Err(BackupError::NoRegion(_))));
    let store = open(config(&raft)).await.expect("opens");
    put(&store, "a", "1").await.expect("written");
    let running = read_stopped(&raft, owner, Fixed.now()).await;
    assert!(matches!(running, Err(BackupError::InUse(_))), "{running:?}");
    let backup = of(&store).await;
    store.shutdown().await.expect("closes");
    let occupied = restore(&raft, &backup, Fixed.now()).await;
    assert!(matches!(occupied, Err(BackupError::Occupied(_))));
    let fresh = dir.path().join("fresh");
    restore(&fresh, &backup, Fixed.now()).await.expect("restored");
    // The name is the backup's: another one does not open it.
    let mut other = config(&fresh);
    other.region = "other".into();
    assert!(matches!(open(other).await.err(), Some(RaftStoreError::Identity { .. })));
    let store = open(config(&fresh)).await.expect("opens");
    assert_eq!(data(&store, "a", Consistency::Linearizable).await.as_deref(), Some("1"));
    store.shutdown().await.expect("closes");
}
