//! kill -9 in the middle of the work, and disks that come and go: real processes in mount namespaces of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hearth_volume::{ClaimSpec, Projected, VolumeError, VolumeStore};

use crate::claims::id;

/// Names the part that this binary plays when a test starts it again.
const ROLE: &str = "HEARTH_VOLUME_TEST_ROLE";
const ROOT: &str = "HEARTH_VOLUME_TEST_ROOT";

fn role(name: &str) -> Option<PathBuf> {
    (std::env::var(ROLE).as_deref() == Ok(name)).then(|| PathBuf::from(std::env::var_os(ROOT).unwrap()))
}

/// This binary again, running one of its tests in a role.
fn again(wrapper: &[&str], test: &str, name: &str, root: &Path) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut words = wrapper.iter().map(|word| (*word).to_owned()).chain([
        exe.to_str().unwrap().to_owned(),
        "--exact".into(),
        format!("interrupted::{test}"),
        "--nocapture".into(),
    ]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).env(ROLE, name).env(ROOT, root);
    command
}

#[test]
fn nothing_that_was_handed_out_is_lost_by_kill_9() {
    if let Some(root) = role("worker") {
        return work(&root);
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("volumes");
    let (mut kept, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..12_u32 {
        let mut child = again(&[], "nothing_that_was_handed_out_is_lost_by_kill_9", "worker", &root)
            .env("HEARTH_VOLUME_TEST_ROUND", round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A different number of steps each time, so that the kill falls into different ones.
        let steps = 3 + round * 5;
        let mut seen = 0;
        let mut dying = Some(&mut child);
        for line in lines.by_ref() {
            let line = line.unwrap();
            match line.split_once(' ') {
                Some(("kept", uid)) => drop(kept.insert(uid.to_owned())),
                Some(("deleting", uid)) => drop(kept.remove(uid)),
                Some(("gone", uid)) => drop(gone.insert(uid.to_owned())),
                _ => continue,
            }
            seen += 1;
            if seen == steps
                && let Some(child) = dying.take()
            {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= steps, "the worker worked");
        check(&root, &kept, &gone);
    }
    assert!(!kept.is_empty() && !gone.is_empty());
}

fn check(root: &Path, kept: &BTreeSet<String>, gone: &BTreeSet<String>) {
    let store = VolumeStore::open(root).unwrap();
    store.empty_trash().unwrap();
    for uid in kept {
        let path = store.ensure_claim(&id("data", uid), &ClaimSpec::default()).unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), *uid);
    }
    let listed: BTreeSet<_> = store.list_claims().unwrap().into_iter().map(|record| record.id.uid).collect();
    assert!(kept.is_subset(&listed) && listed.is_disjoint(gone));
    for trash in ["claims/.trash", "pods/.trash"] {
        assert_eq!(fs::read_dir(root.join(trash)).unwrap().count(), 0);
    }
    let projected = root.join("pods/p-1/config/v");
    if projected.join("..data").exists() {
        let (a, b) = (fs::read(projected.join("..data/a")).unwrap(), fs::read(projected.join("..data/b")).unwrap());
        assert_eq!(a, b);
    }
}

fn work(root: &Path) {
    let round = std::env::var("HEARTH_VOLUME_TEST_ROUND").unwrap();
    let store = VolumeStore::open(root).unwrap();
    for n in 0.. {
        let uid = format!("u-{round}-{n}");
        let path = store.ensure_claim(&id("data", &uid), &ClaimSpec::default()).unwrap();
        fs::write(path.join("file"), &uid).unwrap();
        println!("\nkept {uid}");
        let file = Projected { bytes: uid.clone().into_bytes(), mode: 0o644 };
        let files = BTreeMap::from([("a".to_owned(), file.clone()), ("b".to_owned(), file)]);
        store.project("p-1", "v", &files, false, None).unwrap();
        store.empty_dir("p-2", "cache", None).unwrap();
        store.remove_pod("p-2").unwrap();
        store.empty_trash().unwrap();
        if n % 3 == 0 {
            println!("\ndeleting {uid}");
            store.delete_claim(&id("data", &uid)).unwrap();
            println!("\ngone {uid}");
        }
    }
}

#[test]
fn another_disk_mounted_over_a_claim_is_found_out_and_never_deleted() {
    let test = "another_disk_mounted_over_a_claim_is_found_out_and_never_deleted";
    if let Some(root) = role("mounted") {
        let store = VolumeStore::open(&root).unwrap();
        for result in [
            store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).map(drop),
            store.delete_claim(&id("data", "u-1")),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, VolumeError::ForeignData { .. }), "{error}");
        }
        // A mount that somebody left in a pod's directory: what is behind it stays, and it does not keep other trash.
        store.remove_pod("p-1").unwrap();
        store.empty_dir("p-2", "cache", None).unwrap();
        store.remove_pod("p-2").unwrap();
        let error = store.empty_trash().unwrap_err();
        assert!(error.to_string().contains("p-1.0"), "{error}");
        assert!(root.join("precious/file").exists());
        assert_eq!(fs::read_dir(root.join("pods/.trash")).unwrap().count(), 1);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("volumes");
    let store = VolumeStore::open(&root).unwrap();
    let claim = store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap();
    fs::write(claim.join("file"), "precious").unwrap();
    let behind = store.empty_dir("p-1", "cache", None).unwrap().join("mounted");
    fs::create_dir(&behind).unwrap();
    fs::create_dir(root.join("precious")).unwrap();
    fs::write(root.join("precious/file"), "x").unwrap();
    let script = format!(
        "mount -t tmpfs tmpfs {} && mount --bind {} {} && exec \"$@\"",
        claim.display(),
        root.join("precious").display(),
        behind.display()
    );
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", &script, "sh"];
    let output = again(&wrapper, test, "mounted", &root).output().expect("util-linux is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(claim.join("file")).unwrap(), "precious");
    // The claim's disk is back: nothing was lost.
    let store = VolumeStore::open(&root).unwrap();
    assert_eq!(store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap(), claim);
}

#[test]
fn a_claim_that_cannot_be_moved_away_is_set_aside_and_the_others_work() {
    let test = "a_claim_that_cannot_be_moved_away_is_set_aside_and_the_others_work";
    if let Some(root) = role("busy") {
        let claim = root.join("claims/alice/data.u-1");
        let store = VolumeStore::open(&root).unwrap();
        let aside = store.recover().unwrap();
        assert_eq!(aside.iter().map(|a| a.id.clone()).collect::<Vec<_>>(), [Some(id("data", "u-1"))]);
        assert!(matches!(aside[0].error, VolumeError::Io { .. }), "{:?}", aside[0].error);
        let error = store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap_err();
        assert!(matches!(error, VolumeError::BeingDeleted { .. }), "{error}");
        assert!(store.delete_claim(&id("data", "u-1")).is_err());
        assert!(claim.join("data/file").exists());
        store.ensure_claim(&id("other", "u-2"), &ClaimSpec::default()).unwrap();
        store.delete_claim(&id("other", "u-2")).unwrap();
        // The mount is gone: so is what kept it.
        assert!(Command::new("umount").arg(&claim).status().unwrap().success());
        assert!(store.recover().unwrap().is_empty());
        assert!(!claim.exists());
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("volumes");
    let store = VolumeStore::open(&root).unwrap();
    let path = store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap();
    fs::write(path.join("file"), "x").unwrap();
    let book = root.join("ledger/u-1.json");
    fs::write(&book, fs::read_to_string(&book).unwrap().replace("ready", "deleting")).unwrap();
    let claim = path.parent().unwrap().display();
    let script = format!("mount --bind {claim} {claim} && exec \"$@\"");
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", &script, "sh"];
    let output = again(&wrapper, test, "busy", &root).output().expect("util-linux is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn emptying_a_large_trash_goes_on_after_kill_9_and_takes_along_what_is_added() {
    let test = "emptying_a_large_trash_goes_on_after_kill_9_and_takes_along_what_is_added";
    if let Some(root) = role("emptier") {
        return VolumeStore::open(&root).unwrap().empty_trash().unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("volumes");
    let store = VolumeStore::open(&root).unwrap();
    for pod in 0..100 {
        let cache = store.empty_dir(&format!("p-{pod}"), "cache", None).unwrap();
        (0..200).for_each(|n| drop(fs::File::create(cache.join(n.to_string())).unwrap()));
        store.remove_pod(&format!("p-{pod}")).unwrap();
    }
    let trash = root.join("pods/.trash");
    let left = || fs::read_dir(&trash).unwrap().count();
    assert_eq!(left(), 100);
    let mut child = again(&[], test, "emptier", &root).stdout(Stdio::null()).spawn().unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while left() == 100 {
        assert!(std::time::Instant::now() < end, "nothing was removed in 30 s");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let interrupted = left();
    assert!((1..100).contains(&interrupted), "killed in the middle: {interrupted} are left");
    // Two at once, and one more pod meanwhile: nothing stays behind.
    std::thread::scope(|scope| {
        scope.spawn(|| store.empty_trash().unwrap());
        store.empty_dir("late", "cache", None).unwrap();
        store.remove_pod("late").unwrap();
        store.empty_trash().unwrap();
    });
    assert_eq!(left(), 0);
}

#[test]
fn a_full_disk_is_a_clear_error_and_keeps_what_was_there() {
    let test = "a_full_disk_is_a_clear_error_and_keeps_what_was_there";
    if let Some(root) = role("full") {
        let store = VolumeStore::open(&root).unwrap();
        let file = |bytes: usize| BTreeMap::from([("a".to_owned(), Projected { bytes: vec![7; bytes], mode: 0o644 })]);
        let path = store.project("p-1", "v", &file(1000), false, None).unwrap();
        let error = store.project("p-1", "v", &file(4 * 1024 * 1024), false, None).unwrap_err();
        assert!(matches!(error, VolumeError::DiskFull { .. }), "{error}");
        assert_eq!(fs::read(path.join("a")).unwrap(), vec![7; 1000]);
        store.project("p-1", "v", &file(2000), false, None).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 3, "nothing half done is left");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size=1m tmpfs {} && exec \"$@\"", directory.path().display());
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", &script, "sh"];
    let output =
        again(&wrapper, test, "full", &directory.path().join("volumes")).output().expect("util-linux is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
