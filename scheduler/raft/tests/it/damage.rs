//! Files that are cut off or changed behind the store's back.

use std::path::{Path, PathBuf};

use hearth_raft::{
    LogError, RaftStoreError, SnapshotsError,
    disk::{Disk as _, MemoryDisk},
};
use hearth_types::store::Consistency;

use crate::support::{config, data, memory, put, small};

const DIR: &str = "/raft";

fn files(disk: &MemoryDisk, suffix: &str) -> Vec<PathBuf> {
    let mut names = disk.list(Path::new(DIR)).expect("listed");
    names.retain(|name| name.ends_with(suffix));
    names.sort();
    names.into_iter().map(|name| Path::new(DIR).join(name)).collect()
}

/// A store that was closed after some writes.
async fn written(writes: usize) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let store = memory(&disk, config(DIR.as_ref())).await.expect("opens");
    for number in 0..writes {
        put(&store, &format!("o{number}"), &number.to_string()).await.expect("written");
    }
    store.shutdown().await.expect("closes");
    disk
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_cut_and_what_was_before_it_stays() {
    let disk = written(3).await;
    let path = files(&disk, ".seg").remove(0);
    let whole = disk.read(&path).expect("read");
    let text = String::from_utf8_lossy(&whole).into_owned();
    // The last record begins 16 + 25 bytes before its command, which begins with its format.
    let last =
        whole.len() - disk.read(&path).expect("read").len() + text.rfind("o2-2").map_or(0, |_| find(&whole, b"o2-2"));
    let start = last - 16 - 25 - 3;
    assert!(start > find(&whole, b"\"o1\""), "the record before it is whole");
    for end in start..whole.len() {
        let disk = disk.after(hearth_raft::disk::Crash::KeepAll);
        disk.tamper(&path, |bytes| bytes.truncate(end));
        let store = memory(&disk, config(DIR.as_ref())).await.unwrap_or_else(|error| panic!("cut at {end}: {error}"));
        assert_eq!(data(&store, "o1", Consistency::Linearizable).await.as_deref(), Some("1"));
        assert_eq!(data(&store, "o2", Consistency::Linearizable).await, None, "cut at {end} of {}", whole.len());
        put(&store, "o2", "new").await.expect("goes on");
        store.shutdown().await.expect("closes");
        let store = memory(&disk, config(DIR.as_ref())).await.expect("opens");
        assert_eq!(data(&store, "o2", Consistency::Linearizable).await.as_deref(), Some("new"));
        store.shutdown().await.expect("closes");
    }
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).rposition(|window| window == what).expect("it is there")
}

#[tokio::test]
async fn a_flipped_bit_in_the_middle_is_refused_with_file_offset_and_the_way_out() {
    let disk = written(5).await;
    let path = files(&disk, ".seg").remove(0);
    let length = disk.read(&path).expect("read").len();
    for at in (24..length).step_by(37) {
        let disk = disk.after(hearth_raft::disk::Crash::KeepAll);
        disk.tamper(&path, |bytes| bytes[at] ^= 0x10);
        let before = disk.read(&path).expect("read");
        let Err(error) = memory(&disk, config(DIR.as_ref())).await else { panic!("byte {at} was taken") };
        let RaftStoreError::Log(LogError::Damaged { path: found, offset, .. }) = &error else {
            panic!("byte {at}: {error:?}");
        };
        assert!(*found == path && *offset <= at && at < offset + 600, "byte {at}: {error}");
        let text = error.to_string();
        assert!(text.contains("backup") && text.contains(&format!("truncate -s {offset}")), "{text}");
        assert_eq!(disk.read(&path).expect("read"), before, "nothing was changed");
    }
}

#[tokio::test]
async fn a_closed_segment_cannot_be_torn_and_none_can_be_missing() {
    let disk = MemoryDisk::new();
    let store = memory(&disk, small(DIR.as_ref(), 1_000)).await.expect("opens");
    for number in 0..40 {
        put(&store, &format!("o{number}"), &"x".repeat(200)).await.expect("written");
    }
    store.shutdown().await.expect("closes");
    let segments = files(&disk, ".seg");
    assert!(segments.len() > 3);
    let torn = disk.after(hearth_raft::disk::Crash::KeepAll);
    torn.tamper(&segments[1], |bytes| bytes.truncate(bytes.len() - 1));
    let error = memory(&torn, small(DIR.as_ref(), 1_000)).await.err().expect("refused");
    assert!(matches!(error, RaftStoreError::Log(LogError::Damaged { path, .. }) if path == segments[1]));
    for (index, missing) in segments.iter().enumerate() {
        let disk = disk.after(hearth_raft::disk::Crash::KeepAll);
        disk.remove(missing).expect("removed");
        let error = memory(&disk, small(DIR.as_ref(), 1_000)).await.err().expect("refused");
        match error {
            RaftStoreError::Log(LogError::Missing { path }) if index > 0 => assert_eq!(path, *missing),
            RaftStoreError::Log(LogError::Damaged { .. }) if index == 0 => {}
            other => panic!("without segment {index}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_newest_segments_or_all_of_them_cannot_be_missing_either() {
    for snapshots in [false, true] {
        let disk = MemoryDisk::new();
        let mut config = small(DIR.as_ref(), if snapshots { 15 } else { 1_000 });
        config.tuning.segment_bytes = 1_000;
        let store = memory(&disk, config.clone()).await.expect("opens");
        for number in 0..40 {
            put(&store, &format!("o{number}"), &"x".repeat(200)).await.expect("written");
        }
        if snapshots {
            crate::support::until("a snapshot", || !files(&disk, ".snap").is_empty()).await;
        }
        store.shutdown().await.expect("closes");
        let segments = files(&disk, ".seg");
        let newest = Path::new(DIR).join("log-newest");
        for (kept, also) in
            [(segments.len() - 1, &[][..]), (1, &[]), (0, &[]), (0, &["log-newest"]), (0, &["log-newest", "vote"])]
        {
            let disk = disk.after(hearth_raft::disk::Crash::KeepAll);
            for path in &segments[kept..] {
                disk.remove(path).expect("removed");
            }
            for name in also {
                disk.remove(&Path::new(DIR).join(name)).expect("removed");
            }
            let before = disk.list(Path::new(DIR)).expect("listed");
            let opened = memory(&disk, config.clone()).await;
            if !snapshots && also.contains(&"vote") {
                // Nothing tells this from a store that was never used.
                opened.expect("opens").shutdown().await.expect("closes");
                continue;
            }
            let Err(error) = opened else { panic!("{kept} segments and {also:?} were taken for all") };
            let RaftStoreError::Log(LogError::Missing { path }) = &error else { panic!("{kept} {also:?}: {error:?}") };
            assert!(kept == 0 || *path == segments[kept], "{error}");
            assert!(error.to_string().contains("backup"), "{error}");
            assert_eq!(disk.list(Path::new(DIR)).expect("listed"), before, "nothing was changed");
        }
        // A store of an older version has no such file, and gets one.
        let old = disk.after(hearth_raft::disk::Crash::KeepAll);
        old.remove(&newest).expect("removed");
        memory(&old, config.clone()).await.expect("opens").shutdown().await.expect("closes");
        assert_eq!(old.read(&newest).expect("made"), disk.read(&newest).expect("there"));
        old.tamper(&newest, |bytes| bytes[13] ^= 1);
        let error = memory(&old, config).await.err().expect("refused");
        assert!(error.to_string().contains("log-newest"), "{error}");
    }
}

#[tokio::test]
async fn an_entry_of_a_newer_program_is_refused_and_not_passed_over() {
    let disk = written(3).await;
    let path = files(&disk, ".seg").remove(0);
    let whole = disk.read(&path).expect("read");
    // The command of the last entry: its format, then its kind. Intact, with checksums, as a newer program writes it.
    let command = find(&whole, b"o2-2") - 3;
    let start = command - 16 - 25;
    for (at, byte) in [(command, 9), (command + 1, 77)] {
        let disk = disk.after(hearth_raft::disk::Crash::KeepAll);
        disk.tamper(&path, |bytes| {
            bytes[at] = byte;
            let payload = crc32c::crc32c(&bytes[start + 16..]);
            bytes[start + 8..start + 12].copy_from_slice(&payload.to_le_bytes());
            let head = crc32c::crc32c(&bytes[start..start + 12]);
            bytes[start + 12..start + 16].copy_from_slice(&head.to_le_bytes());
        });
        let before = disk.read(&path).expect("read");
        let Err(error) = memory(&disk, config(DIR.as_ref())).await else { panic!("it was passed over") };
        let RaftStoreError::Log(LogError::Unreadable { path: found, offset, .. }) = &error else { panic!("{error:?}") };
        assert_eq!((found, *offset), (&path, start), "{error}");
        assert!(error.to_string().contains("Run the version"), "{error}");
        assert_eq!(disk.read(&path).expect("read"), before, "nothing was changed");
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_replaced_by_the_one_before_only_if_the_log_reaches_back() {
    let disk = MemoryDisk::new();
    let mut config = small(DIR.as_ref(), 10);
    config.tuning.entries_kept = 1_000;
    let store = memory(&disk, config.clone()).await.expect("opens");
    for number in 0..45 {
        put(&store, "a", &number.to_string()).await.expect("written");
    }
    crate::support::until("two snapshots", || files(&disk, ".snap").len() == 2).await;
    store.shutdown().await.expect("closes");
    let newest = files(&disk, ".snap").remove(1);
    disk.tamper(&newest, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let store = memory(&disk, config).await.expect("the older one and the log have it all");
    assert_eq!(data(&store, "a", Consistency::Linearizable).await.as_deref(), Some("44"));
    store.shutdown().await.expect("closes");

    let disk = MemoryDisk::new();
    let config = small(DIR.as_ref(), 10);
    let store = memory(&disk, config.clone()).await.expect("opens");
    for number in 0..45 {
        put(&store, "a", &number.to_string()).await.expect("written");
    }
    // Up to the newest snapshot, and not only to the one before.
    crate::support::until("segments are dropped", || files(&disk, ".seg").len() <= 3).await;
    store.shutdown().await.expect("closes");
    let snapshots = files(&disk, ".snap");
    disk.tamper(snapshots.last().expect("there"), |bytes| bytes.truncate(40));
    let error = memory(&disk, config.clone()).await.err().expect("the log does not reach back");
    assert!(
        matches!(&error, RaftStoreError::Snapshots(SnapshotsError::Damaged { path, .. }) if path == snapshots.last().expect("there")),
        "{error:?}"
    );
    for path in snapshots {
        disk.remove(&path).expect("removed");
    }
    memory(&disk, config).await.err().expect("no snapshot at all is no better");
}

#[tokio::test]
async fn other_files_of_the_store_are_checked_too() {
    let disk = written(1).await;
    for name in ["vote", "identity"] {
        let path = Path::new(DIR).join(name);
        for at in [0, 9, 14] {
            let disk = disk.after(hearth_raft::disk::Crash::KeepAll);
            disk.tamper(&path, |bytes| bytes[at] ^= 1);
            let error = memory(&disk, config(DIR.as_ref())).await.err().expect("refused");
            assert!(error.to_string().contains(path.to_str().expect("text")), "{error}");
        }
    }
    // A newer format is refused, not misread.
    let path = files(&disk, ".seg").remove(0);
    disk.tamper(&path, |bytes| bytes[8] = 2);
    let error = memory(&disk, config(DIR.as_ref())).await.err().expect("refused");
    assert!(error.to_string().contains("format version 2"), "{error}");
}
