use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hearth_volume::{ClaimId, ClaimSpec, Tenure, VolumeError, VolumeStore};

pub(crate) fn id(name: &str, uid: &str) -> ClaimId {
    ClaimId { namespace: "alice".into(), name: name.into(), uid: uid.into() }
}

fn store() -> (tempfile::TempDir, VolumeStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(&directory.path().join("volumes")).unwrap();
    (directory, store)
}

fn ledger(directory: &Path, uid: &str) -> PathBuf {
    directory.join("volumes/ledger").join(format!("{uid}.json"))
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_claim_is_a_fresh_directory_of_root_that_a_person_can_find() {
    let (directory, store) = store();
    let path = store.ensure_claim(&id("notes-data", "u-1"), &ClaimSpec::default()).unwrap();
    assert_eq!(path, directory.path().join("volumes/claims/alice/notes-data.u-1/data"));
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (0, 0, 0o755));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "the marker is outside of the data");
    assert_eq!(fs::metadata(directory.path().join("volumes")).unwrap().mode() & 0o777, 0o700);
    let other = store.ensure_claim(&id("tmp", "u-2"), &ClaimSpec { size_bytes: Some(1), mode: 0o1777 }).unwrap();
    assert_eq!(fs::metadata(other).unwrap().mode() & 0o7777, 0o1777);
}

#[test]
fn a_claim_keeps_its_data_owner_and_mode_however_often_it_is_ensured() {
    let (directory, store) = store();
    let claim = id("data", "u-1");
    let path = store.ensure_claim(&claim, &ClaimSpec::default()).unwrap();
    fs::write(path.join("file"), "kept").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&path, Some(1000), Some(1000)).unwrap();
    let again = VolumeStore::open(&directory.path().join("volumes")).unwrap();
    assert_eq!(again.ensure_claim(&claim, &ClaimSpec { size_bytes: None, mode: 0o777 }).unwrap(), path);
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (1000, 0o700));
}

#[test]
fn claims_of_one_name_and_two_uids_are_two_volumes() {
    let (_directory, store) = store();
    let old = store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap();
    let new = store.ensure_claim(&id("data", "u-2"), &ClaimSpec::default()).unwrap();
    assert_ne!(old, new);
    store.delete_claim(&id("data", "u-1")).unwrap();
    assert!(!old.exists() && new.exists());
    let names: Vec<_> = store.list_claims().unwrap().into_iter().map(|record| record.id.uid).collect();
    assert_eq!(names, ["u-2"]);
}

#[test]
fn a_missing_or_foreign_directory_is_an_error_and_never_an_empty_volume() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage, &str); 7] = [
        (
            "the whole claim is gone",
            |data| fs::rename(data.parent().unwrap(), data.parent().unwrap().with_extension("away")).unwrap(),
            "missing",
        ),
        ("its namespace is gone", |data| fs::remove_dir_all(data.ancestors().nth(2).unwrap()).unwrap(), "missing"),
        ("the data directory is gone", |data| fs::remove_dir_all(data).unwrap(), "missing"),
        (
            "the mount point of its disk is empty",
            |data| {
                fs::remove_dir_all(data).unwrap();
                fs::create_dir(data).unwrap();
            },
            "lacks the attribute",
        ),
        ("the marker is gone", |data| fs::remove_file(data.with_file_name("claim.json")).unwrap(), "no claim.json"),
        (
            "the marker is of another claim",
            |data| edit(&data.with_file_name("claim.json"), "u-1", "u-9"),
            "is of claim",
        ),
        (
            "the data is a link",
            |data| {
                fs::remove_dir_all(data).unwrap();
                std::os::unix::fs::symlink("/etc", data).unwrap();
            },
            "not a directory",
        ),
    ];
    for (what, damage, message) in cases {
        let (_directory, store) = store();
        let claim = id("data", "u-1");
        let path = store.ensure_claim(&claim, &ClaimSpec::default()).unwrap();
        fs::write(path.join("file"), "precious").unwrap();
        damage(&path);
        for error in
            [store.ensure_claim(&claim, &ClaimSpec::default()).unwrap_err(), store.delete_claim(&claim).unwrap_err()]
        {
            assert!(
                matches!(error, VolumeError::MissingData { .. } | VolumeError::ForeignData { .. }),
                "{what}: {error:?}"
            );
            assert!(error.to_string().contains(message), "{what}: {error}");
        }
        assert_eq!(store.list_claims().unwrap().len(), 1, "{what}: the claim is not forgotten");
    }
}

#[test]
fn a_claim_whose_disk_comes_back_is_there_again() {
    let (_directory, store) = store();
    let claim = id("data", "u-1");
    let path = store.ensure_claim(&claim, &ClaimSpec::default()).unwrap();
    fs::write(path.join("file"), "precious").unwrap();
    let away = path.with_file_name("away");
    fs::rename(&path, &away).unwrap();
    assert!(store.ensure_claim(&claim, &ClaimSpec::default()).is_err());
    fs::rename(&away, &path).unwrap();
    let back = store.ensure_claim(&claim, &ClaimSpec::default()).unwrap();
    assert_eq!(fs::read_to_string(back.join("file")).unwrap(), "precious");
}

#[test]
fn a_directory_that_the_ledger_does_not_know_is_not_taken_over() {
    let (directory, store) = store();
    let claim = id("data", "u-1");
    let path = store.ensure_claim(&claim, &ClaimSpec::default()).unwrap();
    fs::remove_file(ledger(directory.path(), "u-1")).unwrap();
    let error = store.ensure_claim(&claim, &ClaimSpec::default()).unwrap_err();
    assert!(matches!(error, VolumeError::ForeignData { .. }), "{error}");
    assert!(path.exists());
}

#[test]
fn a_uid_cannot_change_its_name() {
    let (_directory, store) = store();
    store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap();
    let error = store.ensure_claim(&id("other", "u-1"), &ClaimSpec::default()).unwrap_err();
    assert!(matches!(error, VolumeError::OtherName { .. }), "{error}");
    let error = store.delete_claim(&id("other", "u-1")).unwrap_err();
    assert!(matches!(error, VolumeError::OtherName { .. }), "{error}");
}

#[test]
fn deleting_what_is_not_there_succeeds() {
    let (directory, store) = store();
    // Never made: the pod failed before. And deleted before the agent died, which then asks again.
    store.delete_claim(&id("never", "u-1")).unwrap();
    store.ensure_claim(&id("data", "u-2"), &ClaimSpec::default()).unwrap();
    for _ in 0..2 {
        store.delete_claim(&id("data", "u-2")).unwrap();
    }
    // The entry is lost, and the data is the claim's by its marks: it goes all the same.
    let path = store.ensure_claim(&id("data", "u-3"), &ClaimSpec::default()).unwrap();
    fs::remove_file(ledger(directory.path(), "u-3")).unwrap();
    store.delete_claim(&id("data", "u-3")).unwrap();
    assert!(!path.exists());
    // Not what only has the claim's name.
    let path = store.ensure_claim(&id("data", "u-4"), &ClaimSpec::default()).unwrap();
    fs::remove_file(ledger(directory.path(), "u-4")).unwrap();
    fs::remove_file(path.with_file_name("claim.json")).unwrap();
    assert!(matches!(store.delete_claim(&id("data", "u-4")), Err(VolumeError::ForeignData { .. })));
    assert!(path.exists());
}

#[test]
fn trash_that_cannot_be_emptied_fails_no_deletion() {
    let (directory, store) = store();
    // Whatever keeps the trash from being emptied: here, the lock of somebody who is at it and never ends.
    let turn = fs::File::create(directory.path().join("volumes/trash.lock")).unwrap();
    rustix::fs::flock(&turn, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let path = store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap();
    fs::write(path.join("file"), "x").unwrap();
    store.delete_claim(&id("data", "u-1")).unwrap();
    assert!(!path.exists() && store.list_claims().unwrap().is_empty());
    store.empty_dir("p-1", "cache", None).unwrap();
    store.remove_pod("p-1").unwrap();
    // Nothing waits: neither the next start nor whoever else wants to empty it.
    let store = VolumeStore::open(&directory.path().join("volumes")).unwrap();
    store.empty_trash().unwrap();
    let left = |trash: &str| fs::read_dir(directory.path().join("volumes").join(trash)).unwrap().count();
    assert_eq!((left("claims/.trash"), left("pods/.trash")), (1, 1), "deleting only moves");
    drop(turn);
    store.empty_trash().unwrap();
    assert_eq!((left("claims/.trash"), left("pods/.trash")), (0, 0));
}

#[test]
fn one_damaged_entry_of_the_ledger_sets_one_claim_aside() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("torn", |book| fs::write(book, "{\"magic\":\"hea").unwrap()),
        ("empty", |book| fs::write(book, "").unwrap()),
        ("of another claim", |book| edit(book, "\"u-1\"", "\"u-9\"")),
        ("a path that climbs", |book| edit(book, "\"alice\"", "\"../../x\"")),
        ("a directory", |book| {
            fs::remove_file(book).unwrap();
            fs::create_dir(book).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let (directory, store) = store();
        let path = store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap();
        fs::write(path.join("file"), "precious").unwrap();
        store.ensure_claim(&id("other", "u-2"), &ClaimSpec::default()).unwrap();
        damage(&ledger(directory.path(), "u-1"));

        let store = VolumeStore::open(&directory.path().join("volumes")).unwrap_or_else(|e| panic!("{what}: {e}"));
        let aside = store.recover().unwrap();
        assert_eq!(aside.len(), 1, "{what}");
        assert_eq!((aside[0].id.clone(), &aside[0].path), (None, &ledger(directory.path(), "u-1")), "{what}");
        for error in [
            store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap_err(),
            store.delete_claim(&id("data", "u-1")).unwrap_err(),
        ] {
            assert!(matches!(error, VolumeError::Damaged { .. } | VolumeError::Io { .. }), "{what}: {error}");
            assert!(error.to_string().contains("u-1.json"), "{what}: {error}");
        }
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "precious", "{what}");
        store.ensure_claim(&id("other", "u-2"), &ClaimSpec::default()).unwrap();
        store.ensure_claim(&id("new", "u-3"), &ClaimSpec::default()).unwrap();
        assert_eq!(store.list_claims().unwrap().len(), 2, "{what}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_in_a_ledger_keep_the_store_from_opening(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let (directory, store) = store();
        let path = store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap();
        fs::write(ledger(directory.path(), "u-1"), bytes).unwrap();
        let store = VolumeStore::open(&directory.path().join("volumes")).unwrap();
        proptest::prop_assert_eq!(store.recover().unwrap().len(), 1);
        proptest::prop_assert!(store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).is_err());
        proptest::prop_assert!(path.is_dir());
    }
}

#[test]
fn names_that_climb_are_refused_everywhere() {
    let (directory, store) = store();
    for bad in ["", "..", "../../x", "a/b", ".trash", "a\0"] {
        for claim in [
            ClaimId { namespace: bad.into(), ..id("a", "u") },
            ClaimId { name: bad.into(), ..id("a", "u") },
            ClaimId { uid: bad.into(), ..id("a", "u") },
        ] {
            assert!(
                matches!(store.ensure_claim(&claim, &ClaimSpec::default()), Err(VolumeError::Name { .. })),
                "{claim:?}"
            );
            assert!(matches!(store.delete_claim(&claim), Err(VolumeError::Name { .. })), "{claim:?}");
        }
        assert!(matches!(store.empty_dir(bad, "v", None), Err(VolumeError::Name { .. })));
        assert!(matches!(store.empty_dir("p", bad, None), Err(VolumeError::Name { .. })));
        assert!(matches!(store.remove_pod(bad), Err(VolumeError::Name { .. })));
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn interrupted_steps_are_finished_or_taken_back() {
    let (directory, store) = store();
    let claim = id("data", "u-1");
    let path = store.ensure_claim(&claim, &ClaimSpec::default()).unwrap();
    fs::write(path.join("file"), "x").unwrap();
    let book = ledger(directory.path(), "u-1");

    // Between the rename of the directory and the ledger's word.
    edit(&book, "ready", "creating");
    assert_eq!(store.ensure_claim(&claim, &ClaimSpec::default()).unwrap(), path);
    assert!(path.join("file").exists() && fs::read_to_string(&book).unwrap().contains("ready"));

    // Before the rename: only the ledger knows, and a half-made directory is aside.
    let half = directory.path().join("volumes/claims/.new/u-2/data");
    fs::create_dir_all(&half).unwrap();
    fs::write(
        ledger(directory.path(), "u-2"),
        fs::read_to_string(&book).unwrap().replace("u-1", "u-2").replace("ready", "creating"),
    )
    .unwrap();
    let second = store.ensure_claim(&id("data", "u-2"), &ClaimSpec::default()).unwrap();
    assert!(second.is_dir() && !half.exists());

    // A temporary file of a replacement that was never finished.
    fs::write(book.with_extension("tmp"), "{\"mag").unwrap();

    // In the middle of a deletion, before the rename.
    edit(&book, "ready", "deleting");
    let store = VolumeStore::open(&directory.path().join("volumes")).unwrap();
    assert!(!path.exists() && !book.exists());
    assert_eq!(store.list_claims().unwrap().len(), 1);

    // In the middle of a deletion, after the rename: what is in the trash goes.
    let trash = directory.path().join("volumes/claims/.trash");
    fs::create_dir_all(trash.join("gone-u-3.0/data/deep")).unwrap();
    // And a claim that was being made, and is not asked for any more.
    fs::create_dir_all(&half).unwrap();
    VolumeStore::open(&directory.path().join("volumes")).unwrap().empty_trash().unwrap();
    assert_eq!(fs::read_dir(trash).unwrap().count(), 0);
    assert!(!half.exists());
}

#[test]
fn a_directory_that_is_no_store_or_of_a_later_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("holiday.jpg"), "x").unwrap();
    assert!(matches!(VolumeStore::open(directory.path()), Err(VolumeError::Format { .. })));
    let (directory, _) = store();
    let root = directory.path().join("volumes");
    edit(&root.join("format"), "\"version\":1", "\"version\":2");
    let error = VolumeStore::open(&root).unwrap_err();
    assert!(error.to_string().contains("version 2"), "{error}");
    edit(&root.join("format"), "\"version\":2", "\"version\":1");
    // The disk of all claims is not mounted.
    fs::remove_dir_all(root.join("claims")).unwrap();
    let error = VolumeStore::open(&root).unwrap_err();
    assert!(error.to_string().contains("mounted"), "{error}");
}

#[test]
fn a_store_on_another_disk_than_before_is_refused() {
    let (directory, store) = store();
    store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap();
    let root = directory.path().join("volumes");
    fs::remove_file(root.join("format")).unwrap();
    assert!(matches!(VolumeStore::open(&root), Err(VolumeError::Format { .. })));
}

#[test]
fn a_store_whose_disk_is_away_is_not_made_anew() {
    let (directory, store) = store();
    store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap();
    let (root, away) = (directory.path().join("volumes"), directory.path().join("away"));
    fs::rename(&root, &away).unwrap();
    let error = VolumeStore::open(&root).unwrap_err().to_string();
    assert!(error.contains("is its disk mounted?") && error.contains("volumes.made"), "{error}");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "nothing is written beneath but the lock");
    // Mounted again, it is as it was.
    fs::remove_dir_all(&root).unwrap();
    fs::rename(&away, &root).unwrap();
    assert_eq!(VolumeStore::open(&root).unwrap().list_claims().unwrap().len(), 1);
    // Somebody who gives its volumes up says so.
    fs::remove_dir_all(&root).unwrap();
    fs::remove_file(directory.path().join("volumes.made")).unwrap();
    assert_eq!(VolumeStore::open(&root).unwrap().list_claims().unwrap(), []);
}

#[test]
fn a_claim_that_is_handed_out_is_looked_after() {
    let (_directory, store) = store();
    let data = store.ensure_claim(&id("data", "u-1"), &ClaimSpec::default()).unwrap();
    store.check_claim(&id("data", "u-1"), true).unwrap();
    fs::rename(&data, data.with_file_name("away")).unwrap();
    assert!(matches!(store.check_claim(&id("data", "u-1"), true), Err(VolumeError::MissingData { .. })));
    fs::create_dir(&data).unwrap();
    assert!(matches!(store.check_claim(&id("data", "u-1"), true), Err(VolumeError::ForeignData { .. })));
}

fn writer(epoch: u64, before: Option<u64>) -> Tenure {
    Tenure { epoch, before }
}

#[test]
fn each_writer_of_a_claim_that_moves_finds_what_the_one_before_left_here_or_nothing() {
    let (directory, store) = store();
    let (claim, spec) = (id("cache", "u-1"), ClaimSpec::default());
    let first = store.ensure_claim_for(&claim, &spec, writer(7, None)).unwrap();
    assert_eq!(first.began_empty, None, "nothing was anywhere");
    fs::write(first.path.join("file"), "of 7").unwrap();
    // Of a restart, and of one that came back before anybody else had it.
    for (epoch, before) in [(7, None), (9, Some(7)), (9, Some(7))] {
        let again = store.ensure_claim_for(&claim, &spec, writer(epoch, before)).unwrap();
        assert_eq!((fs::read_to_string(again.path.join("file")).unwrap(), again.began_empty), ("of 7".into(), None));
    }
    let old = store.ensure_claim_for(&claim, &spec, writer(7, None)).unwrap_err();
    assert!(matches!(old, VolumeError::OldEpoch { has: 9, asked: 7, .. }), "{old}");
    // Another device was epoch 12, and this one is again.
    let later = store.ensure_claim_for(&claim, &spec, writer(15, Some(12))).unwrap();
    let aside = directory.path().join("volumes/claims/.aside/u-1.9/data");
    assert_eq!((later.path.clone(), later.began_empty), (first.path, Some(Some(aside.clone()))));
    assert_eq!(fs::read_dir(&later.path).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(aside.join("file")).unwrap(), "of 7", "it is kept");
    fs::write(later.path.join("file"), "of 15").unwrap();
    // It moved away; the last one alone is kept.
    assert_eq!(store.retire_claim(&claim, 9).unwrap(), None, "of another writer");
    let aside = store.retire_claim(&claim, 15).unwrap().unwrap();
    assert_eq!(fs::read_to_string(aside.join("file")).unwrap(), "of 15");
    assert_eq!(fs::read_dir(directory.path().join("volumes/claims/.aside")).unwrap().count(), 1);
    assert_eq!(store.list_claims().unwrap(), []);
    assert_eq!(store.retire_claim(&claim, 15).unwrap(), None);
    store.ensure_claim_for(&claim, &spec, writer(20, Some(17))).unwrap();
    store.delete_claim(&claim).unwrap();
    store.empty_trash().unwrap();
    assert_eq!(fs::read_dir(directory.path().join("volumes/claims/.aside")).unwrap().count(), 0);
}

#[test]
fn releases_that_know_no_epochs_cannot_use_a_claim_that_moves() {
    let (directory, store) = store();
    store.ensure_claim_for(&id("cache", "u-1"), &ClaimSpec::default(), writer(7, None)).unwrap();
    store.ensure_claim(&id("data", "u-2"), &ClaimSpec::default()).unwrap();
    let version = |uid: &str| fs::read_to_string(ledger(directory.path(), uid)).unwrap().contains("\"version\":2");
    assert_eq!([version("u-1"), version("u-2")], [true, false]);
}
