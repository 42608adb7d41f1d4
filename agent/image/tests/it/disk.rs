//! A full disk and kill -9: real processes in mount namespaces of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hearth_image::{Digest, ImageError, ImageStore};

use crate::support::*;

const ROLE: &str = "HEARTH_IMAGE_TEST_ROLE";
const ROOT: &str = "HEARTH_IMAGE_TEST_ROOT";

fn role(name: &str) -> Option<PathBuf> {
    (std::env::var(ROLE).as_deref() == Ok(name)).then(|| PathBuf::from(std::env::var_os(ROOT).unwrap()))
}

/// This binary again, running one of its tests in a role.
fn again(wrapper: &[&str], test: &str, name: &str, root: &Path) -> Command {
    let exe = std::env::current_exe().unwrap();
    let own = [exe.to_str().unwrap().to_owned(), "--exact".into(), format!("disk::{test}"), "--nocapture".into()];
    let mut words = wrapper.iter().map(|word| (*word).to_owned()).chain(own);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).env(ROLE, name).env(ROOT, root);
    command
}

/// An image of several MiB that does not compress, so that unpacking takes a while.
fn large(name: &str, files: usize) -> Layout {
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let entries: Vec<_> = (0..files)
        .map(|n| Entry {
            content: (0..50_000).map(|_| noise()).collect(),
            ..entry(b'0', format!("dir-{}/file-{n}", n % 7))
        })
        .collect();
    let tar = tarball(&entries);
    let mut layout = Layout::of(&[(gzip(&tar), Digest::of(&tar))]);
    layout.set_index(&[with_name(layout.descriptor(), name)]);
    layout
}

#[test]
fn a_full_disk_is_told_and_leaves_what_was_there() {
    let test = "a_full_disk_is_told_and_leaves_what_was_there";
    if let Some(root) = role("full") {
        let store = ImageStore::open(&root.join("small/images")).unwrap();
        store.import(&root.join("fits"), &amd64()).unwrap();
        let generation = store.generation().unwrap();
        for source in ["too-large", "too-large.tar.gz"] {
            let error = store.import(&root.join(source), &amd64()).unwrap_err();
            assert!(matches!(error, ImageError::DiskFull { .. }), "{error:?}");
            assert!(error.to_string().contains("free some space"), "{error}");
        }
        assert_eq!(store.generation().unwrap(), generation);
        assert_eq!(fs::read_dir(root.join("small/images/layers")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(root.join("small/images/tmp")).unwrap().count(), 0);
        let image = store.resolve("fits:1").unwrap();
        assert_eq!(fs::read(image.layers[0].join("dir-0/file-0")).unwrap().len(), 50_000);
        // Every other size of free space, so that it also runs out in the records and the index.
        for spare in (0..200).step_by(13) {
            let ballast = root.join("small/ballast");
            fill(&ballast, root.as_path(), spare * 1024);
            let before = store.list().unwrap();
            match store.import(&root.join("tiny"), &amd64()) {
                Ok(_) => store.remove("tiny:1").unwrap(),
                Err(error) => {
                    assert!(matches!(error, ImageError::DiskFull { .. }), "{spare} KiB spare: {error:?}");
                    assert_eq!(store.list().unwrap(), before);
                }
            }
            fs::remove_file(&ballast).unwrap();
            store.collect_garbage(&std::collections::HashSet::new()).unwrap();
            assert!(store.resolve("fits:1").is_ok());
        }
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    large("fits:1", 8).write_directory(&path.join("fits"));
    large("tiny:1", 1).write_directory(&path.join("tiny"));
    large("too-large:1", 50).write_directory(&path.join("too-large"));
    fs::write(path.join("too-large.tar.gz"), gzip(&large("too-large:1", 50).archive())).unwrap();
    fs::create_dir(path.join("small")).unwrap();
    let script = format!("mount -t tmpfs -o size=2m tmpfs {} && exec \"$@\"", path.join("small").display());
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", &script, "sh"];
    let output = again(&wrapper, test, "full", path).output().expect("util-linux is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Fills the small disk but for `spare` bytes.
fn fill(ballast: &Path, root: &Path, spare: u64) {
    let disk = rustix::fs::statvfs(root.join("small")).unwrap();
    let free = disk.f_bfree * disk.f_frsize;
    fs::write(ballast, vec![0; free.saturating_sub(spare) as usize]).unwrap();
}

#[test]
fn kill_9_in_the_middle_of_a_collection_leaves_whole_images_and_the_next_goes_on() {
    const IMAGES: usize = 24;
    let test = "kill_9_in_the_middle_of_a_collection_leaves_whole_images_and_the_next_goes_on";
    if let Some(root) = role("collector") {
        ImageStore::open(&root.join("images")).unwrap().collect_garbage(&std::collections::HashSet::new()).unwrap();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let store = ImageStore::open(&root.join("images")).unwrap();
    large("kept:1", 3).write_directory(&root.join("kept"));
    store.import(&root.join("kept"), &amd64()).unwrap();
    let kept = store.resolve("kept:1").unwrap();
    let count = |what: &str| fs::read_dir(root.join("images").join(what)).unwrap().count();
    let mut interrupted = 0;
    for left in (0..IMAGES).step_by(5) {
        // Nameless images, each with the layer that is kept and one of its own.
        let base = fs::read(root.join("kept").join(large("kept:1", 3).layer())).unwrap();
        let diff_id = large("kept:1", 3).config()["rootfs"]["diff_ids"][0].as_str().unwrap().parse().unwrap();
        let mut layout = Layout::default();
        let images: Vec<_> = (0..IMAGES)
            .map(|n| {
                let tar = tarball(&[file("n", &n.to_string())]);
                let image = layout.add_image(
                    &[(base.clone(), diff_id), (gzip(&tar), Digest::of(&tar))],
                    "amd64",
                    &serde_json::json!({}),
                );
                with_name(image, &format!("app-{n}:1"))
            })
            .collect();
        layout.set_index(&images);
        layout.write_directory(&root.join("many"));
        store.import(&root.join("many"), &amd64()).unwrap();
        (0..IMAGES).for_each(|n| store.remove(&format!("app-{n}:1")).unwrap());
        assert_eq!((count("images"), count("layers")), (IMAGES + 1, IMAGES + 1));
        let mut child = again(&[], test, "collector", root).stdout(Stdio::null()).spawn().unwrap();
        // Killed when so many are left, or, the last time, while files are being removed.
        while count("images") > left + 1 && child.try_wait().unwrap().is_none() {}
        child.kill().unwrap();
        child.wait().unwrap();
        interrupted += usize::from(count("layers") > 1 || count("tmp") > 0);
        let store = ImageStore::open(&root.join("images")).unwrap();
        for entry in fs::read_dir(root.join("images/images")).unwrap() {
            let hex = entry.unwrap().file_name().into_string().unwrap().replace(".json", "");
            let image = store.resolve(&format!("sha256:{hex}")).unwrap();
            assert_eq!(image.layers.len(), if image.manifest_digest == kept.manifest_digest { 1 } else { 2 });
            assert_eq!(image.layers[0], kept.layers[0]);
        }
        store.collect_garbage(&std::collections::HashSet::new()).unwrap();
        assert_eq!((count("images"), count("layers"), count("tmp")), (1, 1, 0));
        assert!(kept.layers[0].join("dir-0/file-0").exists());
    }
    assert!(interrupted > 0, "no kill fell into a collection: the test shows nothing");
}

#[test]
fn kill_9_in_the_middle_of_an_import_leaves_no_half_image() {
    let test = "kill_9_in_the_middle_of_an_import_leaves_no_half_image";
    if let Some(root) = role("importer") {
        let store = ImageStore::open(&root.join("images")).unwrap();
        println!("\nopen");
        for n in 0.. {
            store.import(&root.join(format!("source-{}", n % 2)), &amd64()).unwrap();
            println!("\nimported");
            store.remove(&format!("app-{}:1", n % 2)).unwrap();
            store.collect_garbage(&std::collections::HashSet::new()).unwrap();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for n in 0..2 {
        large(&format!("app-{n}:1"), 40 + n).write_directory(&root.join(format!("source-{n}")));
    }
    let kept = ImageStore::open(&root.join("images")).unwrap();
    large("kept:1", 1).write_directory(&root.join("kept"));
    kept.import(&root.join("kept"), &amd64()).unwrap();
    for round in 0..15 {
        let mut child = again(&[], test, "importer", root).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        assert!(lines.any(|line| line.is_ok_and(|line| line == "open")));
        // Let it get further each time: as many polls of the store as it has rounds.
        for _ in 0..round * 20 {
            kept.list().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = ImageStore::open(&root.join("images")).unwrap();
        assert_eq!(fs::read_dir(root.join("images/tmp")).unwrap().count(), 0);
        assert!(store.resolve("kept:1").is_ok());
        for record in store.list().unwrap() {
            let image = store.resolve(&record.reference).unwrap();
            let files: usize = fs::read_dir(&image.layers[0])
                .unwrap()
                .map(|dir| fs::read_dir(dir.unwrap().path()).unwrap().count())
                .sum();
            let wanted = match record.reference.as_str() {
                "kept:1" => 1,
                "app-0:1" => 40,
                _ => 41,
            };
            assert_eq!(files, wanted, "{} is whole", record.reference);
        }
        store.collect_garbage(&std::collections::HashSet::new()).unwrap();
    }
}
