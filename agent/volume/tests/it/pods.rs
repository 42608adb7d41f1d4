use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use hearth_volume::{ClaimSpec, Projected, VolumeError, VolumeStore};

use crate::claims::id;

fn store() -> (tempfile::TempDir, VolumeStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(&directory.path().join("volumes")).unwrap();
    (directory, store)
}

fn files(list: &[(&str, &str)]) -> BTreeMap<String, Projected> {
    list.iter()
        .map(|(name, text)| ((*name).into(), Projected { bytes: text.as_bytes().to_vec(), mode: 0o644 }))
        .collect()
}

/// What a container sees: names that do not begin with two dots, read through their links.
fn seen(directory: &Path) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("..") {
            continue;
        }
        if entry.path().is_dir() {
            seen.extend(self::seen(&entry.path()).into_iter().map(|(below, text)| (format!("{name}/{below}"), text)));
        } else {
            seen.insert(name, fs::read_to_string(entry.path()).unwrap());
        }
    }
    seen
}

fn texts(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect()
}

#[test]
fn files_are_projected_and_updates_are_seen_in_the_same_directory() {
    let (_directory, store) = store();
    let first = [("a", "1"), ("b", "2"), ("dir/c", "3")];
    let path = store.project("p-1", "config", &files(&first), false, None).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    assert_eq!(seen(&path), texts(&first));
    for second in [&[("a", "1x"), ("dir/d", "4")][..], &[("dir", "now a file")], &[("dir/again", "5")], &[], &first] {
        assert_eq!(store.project("p-1", "config", &files(second), false, None).unwrap(), path);
        assert_eq!(seen(&path), texts(second));
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "a running container has this directory mounted");
        let own = fs::read_dir(&path)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".."))
            .count();
        assert_eq!(own, 2, "..data and the one directory that it leads to");
    }
}

#[test]
fn projecting_the_same_again_writes_nothing() {
    let (_directory, store) = store();
    let content = files(&[("a", "1")]);
    let path = store.project("p-1", "config", &content, true, None).unwrap();
    let before = fs::read_link(path.join("..data")).unwrap();
    store.project("p-1", "config", &content, true, None).unwrap();
    assert_eq!(fs::read_link(path.join("..data")).unwrap(), before);
    // A change of mode alone is a change.
    let mut closed = content.clone();
    closed.get_mut("a").unwrap().mode = 0o400;
    store.project("p-1", "config", &closed, true, None).unwrap();
    assert_ne!(fs::read_link(path.join("..data")).unwrap(), before);
    assert_eq!(fs::metadata(path.join("a")).unwrap().mode() & 0o777, 0o400);
}

#[test]
fn an_update_that_was_interrupted_is_cleaned_up_by_the_next() {
    let (_directory, store) = store();
    let path = store.project("p-1", "config", &files(&[("a", "1")]), false, None).unwrap();
    fs::create_dir(path.join("..hearth-half")).unwrap();
    fs::write(path.join("..hearth-half/a"), "half").unwrap();
    symlink("..hearth-half", path.join("..data_tmp")).unwrap();
    symlink("..data/stale", path.join("stale")).unwrap();
    store.project("p-1", "config", &files(&[("a", "1")]), false, None).unwrap();
    assert_eq!(seen(&path), texts(&[("a", "1")]));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 3);
}

#[test]
fn a_reader_sees_all_old_files_or_all_new_ones() {
    let (_directory, store) = store();
    let content = |n: u32| files(&[("a", &n.to_string()), ("b", &n.to_string())]);
    let path = store.project("p-1", "config", &content(0), false, None).unwrap();
    let writer = {
        let store = store.clone();
        std::thread::spawn(move || {
            (1..200).for_each(|n| drop(store.project("p-1", "config", &content(n), false, None).unwrap()))
        })
    };
    while !writer.is_finished() {
        // As a program does that wants both: it resolves ..data once.
        let Ok(current) = fs::canonicalize(path.join("..data")) else { continue };
        if let (Ok(a), Ok(b)) = (fs::read(current.join("a")), fs::read(current.join("b"))) {
            assert_eq!(a, b);
        }
        assert!(fs::symlink_metadata(path.join("..data")).is_ok(), "there is always some version");
    }
    writer.join().unwrap();
}

#[test]
fn files_that_climb_collide_or_are_too_large_are_refused_and_nothing_is_written() {
    let (directory, store) = store();
    let large = BTreeMap::from([("a".into(), Projected { bytes: vec![0; 17 * 1024 * 1024], mode: 0o644 })]);
    assert!(matches!(store.project("p", "v", &large, false, None), Err(VolumeError::TooLarge { .. })));
    let many = (0..5000).map(|n| (n.to_string(), Projected { bytes: Vec::new(), mode: 0 })).collect();
    assert!(matches!(store.project("p", "v", &many, false, None), Err(VolumeError::TooLarge { .. })));
    assert!(matches!(
        store.project("p", "v", &files(&[("a", ""), ("a/b", "")]), false, None),
        Err(VolumeError::FileInTheWay { .. })
    ));
    for bad in ["../x", "/etc/passwd", "..data", "..hearth-x/y", "a/../../b", ""] {
        assert!(
            matches!(store.project("p", "v", &files(&[(bad, "")]), false, None), Err(VolumeError::Name { .. })),
            "{bad}"
        );
    }
    assert!(!directory.path().join("volumes/pods/p").exists());
}

#[test]
fn secrets_are_not_in_debug_output() {
    let secret = Projected { bytes: b"hunter2".to_vec(), mode: 0o400 };
    assert_eq!(format!("{secret:?}"), "Projected { 7 bytes, mode 400 }");
}

#[test]
fn empty_directories_are_open_to_all_and_keep_what_the_pod_wrote() {
    let (_directory, store) = store();
    let path = store.empty_dir("p-1", "cache", None).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
    fs::write(path.join("file"), "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(store.empty_dir("p-1", "cache", None).unwrap(), path);
    assert!(path.join("file").exists());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700, "a restarted container finds its own mode");
}

#[test]
fn removing_a_pod_removes_its_volumes_and_nothing_else() {
    let (directory, store) = store();
    let claim = store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap();
    fs::write(claim.join("file"), "precious").unwrap();
    let outside = directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    let empty = store.empty_dir("p-1", "cache", None).unwrap();
    symlink(&outside, empty.join("link")).unwrap();
    symlink(&claim, empty.join("claim")).unwrap();
    store.project("p-1", "config", &files(&[("a", "1")]), true, None).unwrap();
    let other = store.empty_dir("p-2", "cache", None).unwrap();
    store.remove_pod("p-1").unwrap();
    store.remove_pod("p-1").unwrap();
    assert!(!directory.path().join("volumes/pods/p-1").exists());
    store.empty_trash().unwrap();
    assert_eq!(fs::read_dir(directory.path().join("volumes/pods/.trash")).unwrap().count(), 0);
    assert!(claim.join("file").exists() && outside.join("file").exists() && other.exists());
}

#[test]
fn a_tree_deeper_than_any_path_and_wider_than_memory_should_hold_is_removed() {
    let (directory, store) = store();
    let empty = store.empty_dir("p-1", "cache", None).unwrap();
    let mut at = rustix::fs::open(&empty, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "deep", 0o700.into()).unwrap();
        at = rustix::fs::openat(&at, "deep", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    store.remove_pod("p-1").unwrap();
    store.empty_trash().unwrap();
    assert_eq!(fs::read_dir(directory.path().join("volumes/pods/.trash")).unwrap().count(), 0);
}

#[test]
fn a_group_gets_what_the_kubelet_gives_it() {
    let (_directory, store) = store();
    let of = |path: &Path| fs::symlink_metadata(path).map(|found| (found.gid(), found.mode() & 0o7777)).unwrap();
    let empty = store.empty_dir("p-1", "scratch", Some(77)).unwrap();
    assert_eq!(of(&empty), (77, 0o2777));
    // A secret stays one, but for the group.
    let secret = BTreeMap::from([("key".to_owned(), Projected { bytes: b"x".to_vec(), mode: 0o400 })]);
    let path = store.project("p-1", "key", &secret, true, Some(77)).unwrap();
    assert_eq!(of(&path.join("..data/key")), (77, 0o440));
    let payload = fs::read_link(path.join("..data")).unwrap();
    store.project("p-1", "key", &secret, true, Some(77)).unwrap();
    assert_eq!(fs::read_link(path.join("..data")).unwrap(), payload, "nothing is written where nothing changed");
    store.project("p-1", "key", &secret, true, None).unwrap();
    assert_eq!(of(&path.join("..data/key")), (0, 0o400));

    let data = store.ensure_claim(&id("data", "c-1"), &ClaimSpec::default()).unwrap();
    let outside = data.parent().unwrap().join("outside");
    fs::write(&outside, "").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir_all(data.join("a/b")).unwrap();
    fs::write(data.join("a/b/file"), "").unwrap();
    fs::set_permissions(data.join("a/b/file"), fs::Permissions::from_mode(0o4701)).unwrap();
    symlink(&outside, data.join("a/link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, data.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    store.share(&data, 77, true).unwrap();
    assert_eq!(of(&data), (77, 0o2775));
    assert_eq!(of(&data.join("a/b")), (77, 0o2775));
    assert_eq!(of(&data.join("a/b/file")), (77, 0o4761), "its other bits stay");
    assert_eq!(of(&data.join("fifo")), (77, 0o660));
    assert_eq!(of(&data.join("a/link")).0, 77);
    assert_eq!(of(&outside), (0, 0o600), "no link is followed");
    // Where the root is right, nothing else is looked at, or everything.
    fs::write(data.join("later"), "").unwrap();
    std::os::unix::fs::chown(data.join("later"), Some(5), Some(5)).unwrap();
    store.share(&data, 77, true).unwrap();
    assert_eq!(of(&data.join("later")).0, 5);
    store.share(&data, 77, false).unwrap();
    assert_eq!(of(&data.join("later")), (77, 0o664));
    assert_eq!(fs::metadata(data.join("later")).unwrap().uid(), 5, "owners stay");
    store.share(&data, 78, true).unwrap();
    assert_eq!(of(&data.join("a/b/file")).0, 78);
}

#[test]
fn what_was_deleted_and_is_not_removed_yet_is_seen() {
    let (directory, store) = store();
    store.empty_dir("p-1", "scratch", None).unwrap();
    assert!(!store.has_trash().unwrap());
    store.remove_pod("p-1").unwrap();
    assert!(store.has_trash().unwrap());
    // Somebody else has the turn: this call leaves it to them.
    let turn = fs::File::create(directory.path().join("volumes/trash.lock")).unwrap();
    rustix::fs::flock(&turn, rustix::fs::FlockOperation::LockExclusive).unwrap();
    store.empty_trash().unwrap();
    assert!(store.has_trash().unwrap());
    drop(turn);
    store.empty_trash().unwrap();
    assert!(!store.has_trash().unwrap());
}

#[test]
fn usage_is_what_is_on_the_disk_of_the_volume_alone() {
    let (_directory, store) = store();
    assert_eq!(store.usage("p-1", "scratch", u64::MAX).unwrap(), hearth_volume::Taken::default(), "not made yet");
    let volume = store.empty_dir("p-1", "scratch", None).unwrap();
    let measured = || store.usage("p-1", "scratch", u64::MAX).unwrap().bytes;
    let empty = measured();
    let outside = volume.parent().unwrap().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("big"), vec![b'x'; 3 << 20]).unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    fs::create_dir_all(volume.join("a/b/c")).unwrap();
    fs::write(volume.join("a/b/c/file"), vec![b'x'; 1 << 20]).unwrap();
    let sparse = fs::File::create(volume.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let near = |found: u64, mib: u64| found >= empty + (mib << 20) && found < empty + (mib << 20) + (64 << 10);
    assert!(near(measured(), 1), "{}", measured());
    // Itself, three directories, two files and a link.
    assert_eq!(store.usage("p-1", "scratch", u64::MAX).unwrap().inodes, 7);
    // One file by several names.
    for name in ["one", "two", "three"] {
        fs::hard_link(volume.join("a/b/c/file"), volume.join(name)).unwrap();
    }
    assert!(near(measured(), 1), "{}", measured());
    // It does not look on where it knows enough.
    for n in 0..50 {
        fs::write(volume.join(format!("file-{n}")), vec![b'x'; 1 << 20]).unwrap();
    }
    let stopped = store.usage("p-1", "scratch", 5 << 20).unwrap().bytes;
    assert!(stopped > 5 << 20 && stopped < 8 << 20, "{stopped}");
    // Deeper than is counted.
    let mut deep = volume.clone();
    for _ in 0..300 {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    assert!(measured() > 50 << 20);
}
