//! What a layer becomes on the disk.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use hearth_image::Digest;

use crate::support::*;

fn unpack(place: &Place, entries: &[Entry]) -> PathBuf {
    place.import(&Layout::plain(entries)).unwrap();
    place.store.resolve(NAME).unwrap().layers[0].clone()
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let count = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(count);
    Some(value)
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|had| had.file_type().is_char_device() && had.rdev() == 0)
}

#[test]
fn modes_owners_times_and_kinds_are_kept() {
    let place = Place::new();
    let root = unpack(
        &place,
        &[
            Entry { mode: 0o750, ids: (5, 6), mtime: 99, ..dir("./") },
            Entry { mode: 0o1777, mtime: 100, ..dir("tmp/") },
            Entry { mode: 0o4755, ids: (0, 42), mtime: 101, ..file("tmp/suid", "content") },
            Entry { ids: (70_000, 70_001), mtime: 102, ..symlink("tmp/link", "/absolute/../target") },
            hardlink("tmp/hard", "/tmp/suid"),
            hardlink("hardlink-to-symlink", "tmp/link"),
            Entry { mode: 0o620, mtime: 103, ..entry(b'6', "tmp/fifo") },
            file("fraction", "x").pax("mtime", "1700000000.123456789").pax("uid", "3000000000"),
            file("implicit/parent/file", "x"),
            file(&"long-".repeat(40), "long"),
            file("short", "x").pax("path", "from/pax/ü✓"),
            entry(b'0', "old-style-directory/"),
        ],
    );
    let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    let of = |name: &str| (stat(name).mode() & 0o7777, stat(name).uid(), stat(name).gid(), stat(name).mtime());
    assert_eq!(of(""), (0o750, 5, 6, 99));
    assert_eq!(of("tmp"), (0o1777, 0, 0, 100), "times of directories are set after what is in them");
    assert_eq!(of("tmp/suid"), (0o4755, 0, 42, 101));
    assert_eq!((stat("tmp/link").uid(), stat("tmp/link").gid(), stat("tmp/link").mtime()), (70_000, 70_001, 102));
    assert_eq!(fs::read_link(root.join("tmp/link")).unwrap(), Path::new("/absolute/../target"));
    assert_eq!(stat("tmp/hard").ino(), stat("tmp/suid").ino());
    assert_eq!(stat("hardlink-to-symlink").ino(), stat("tmp/link").ino());
    assert!(stat("tmp/fifo").file_type().is_fifo());
    assert_eq!(of("tmp/fifo"), (0o620, 0, 0, 103));
    assert_eq!(
        (stat("fraction").mtime(), stat("fraction").mtime_nsec(), stat("fraction").uid()),
        (1_700_000_000, 123_456_789, 3_000_000_000)
    );
    assert_eq!(of("implicit/parent").0, 0o755);
    assert_eq!(fs::read_to_string(root.join("long-".repeat(40))).unwrap(), "long");
    assert!(root.join("from/pax/ü✓").exists() && !root.join("short").exists());
    assert!(stat("old-style-directory").is_dir());
}

#[test]
fn only_attributes_that_are_a_containers_own_are_kept() {
    let place = Place::new();
    // VFS_CAP_REVISION_2 with CAP_NET_BIND_SERVICE; the newline in it is the point.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0];
    let root = unpack(
        &place,
        &[file("a", "x")
            .pax("SCHILY.xattr.user.note", "a\nb=c")
            .pax("SCHILY.xattr.security.capability", capability)
            .pax("SCHILY.xattr.user.overlay.redirect", "/")
            .pax("SCHILY.xattr.trusted.overlay.opaque", "y")
            .pax("SCHILY.xattr.trusted.overlay.redirect", "/etc")
            .pax("SCHILY.xattr.security.selinux", "x")
            .pax("SCHILY.xattr.system.posix_acl_access", "x")],
    );
    let file = root.join("a");
    assert_eq!(xattr(&file, "user.note").as_deref(), Some(&b"a\nb=c"[..]));
    assert_eq!(xattr(&file, "security.capability").as_deref(), Some(&capability[..]));
    for dropped in ["user.overlay.redirect", "trusted.overlay.opaque", "trusted.overlay.redirect", "security.selinux"] {
        assert_eq!(xattr(&file, dropped), None, "{dropped}");
    }
}

#[test]
fn whiteouts_become_what_overlayfs_means_by_them() {
    let place = Place::new();
    let root = unpack(
        &place,
        &[
            dir("a"),
            file("a/.wh.gone", ""),
            dir("opaque"),
            file("opaque/.wh..wh..opq", ""),
            file("opaque/new", "x"),
            file("implicit/.wh..wh..opq", ""),
            file(".wh..wh.aufs", ""),
            file(".wh.file-after", ""),
            file("file-after", "x"),
            file("file-before", "x"),
            file(".wh.file-before", ""),
            file(".wh.dir-after", ""),
            dir("dir-after"),
            dir("dir-before"),
            file(".wh.dir-before", ""),
            file(".wh.parent", ""),
            file("parent/child", "x"),
        ],
    );
    assert!(is_whiteout(&root.join("a/gone")));
    assert!(!root.join("a/.wh.gone").exists() && !root.join(".wh..wh.aufs").exists());
    for opaque in ["opaque", "implicit", "dir-after", "dir-before", "parent"] {
        assert_eq!(xattr(&root.join(opaque), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]), "{opaque}");
    }
    assert_eq!(xattr(&root.join("a"), "trusted.overlay.opaque"), None);
    assert!(
        root.join("file-after").is_file() && root.join("file-before").is_file() && root.join("parent/child").is_file()
    );
}

#[test]
fn the_later_of_two_entries_counts() {
    let place = Place::new();
    let root = unpack(
        &place,
        &[
            file("twice", "first"),
            file("twice", "second"),
            symlink("link", "/etc/shadow"),
            file("link", "a file now"),
            dir("empty"),
            file("empty", "a file now"),
            file("was-file", "x"),
            dir("was-file"),
            Entry { mode: 0o700, ..dir("d") },
            file("d/kept", "x"),
            Entry { mode: 0o711, ..dir("d") },
            file("self", "x"),
            hardlink("self", "./self"),
        ],
    );
    assert_eq!(fs::read_to_string(root.join("twice")).unwrap(), "second");
    assert_eq!(fs::read_to_string(root.join("link")).unwrap(), "a file now");
    assert_eq!(fs::read_to_string(root.join("empty")).unwrap(), "a file now");
    assert!(root.join("was-file").is_dir() && root.join("d/kept").is_file() && root.join("self").is_file());
    assert_eq!(fs::metadata(root.join("d")).unwrap().mode() & 0o777, 0o711);
}

#[test]
fn absolute_paths_are_from_the_layers_root_and_links_are_not_followed() {
    let place = Place::new();
    let target = place.path("canary").display().to_string();
    let root = unpack(&place, &[file(&format!("{target}/file"), "inside"), symlink("abs", &target)]);
    assert_eq!(fs::read_to_string(root.join(target.trim_start_matches('/')).join("file")).unwrap(), "inside");
    assert_eq!(fs::read_to_string(place.path("canary/file")).unwrap(), "precious");
}

#[test]
fn every_compression_gives_the_same_layer_once() {
    let place = Place::new();
    let tar = tarball(&[file("a", &"content ".repeat(50_000))]);
    let halves = tar.split_at(tar.len() / 2);
    let members = [gzip(halves.0), gzip(halves.1)].concat();
    let frames = [zstd(halves.0), zstd(halves.1)].concat();
    for blob in [tar.clone(), gzip(&tar), zstd(&tar), members, frames] {
        place.import(&Layout::of(&[(blob, Digest::of(&tar))])).unwrap();
        let image = place.store.resolve(NAME).unwrap();
        assert_eq!(fs::read_to_string(image.layers[0].join("a")).unwrap().len(), 400_000);
    }
    assert_eq!(fs::read_dir(place.path("images/layers")).unwrap().count(), 1);
}

#[test]
fn layers_stack_as_an_overlay() {
    let place = Place::new();
    let layer = |entries: &[Entry]| {
        let tar = tarball(entries);
        (gzip(&tar), Digest::of(&tar))
    };
    let empty = layer(&[]);
    place
        .import(&Layout::of(&[
            layer(&[file("a", "lower"), file("gone", "x"), file("dir/lower", "x"), file("dir2/lower", "x")]),
            empty.clone(),
            layer(&[
                file("a", "upper"),
                file(".wh.gone", ""),
                dir("dir"),
                file("dir/.wh..wh..opq", ""),
                file("dir/upper", "x"),
            ]),
            empty,
        ]))
        .unwrap();
    let layers = place.store.resolve(NAME).unwrap().layers;
    assert_eq!(layers.len(), 3, "overlayfs refuses the same directory twice");
    let merged = place.path("merged");
    fs::create_dir(&merged).unwrap();
    let lower: Vec<_> = layers.iter().rev().map(|path| path.display().to_string()).collect();
    let script = format!(
        "mount -t overlay overlay -o lowerdir={} {1} && cat {1}/a && ls {1} {1}/dir {1}/dir2",
        lower.join(":"),
        merged.display()
    );
    let output = run("unshare", &["--mount", "--propagation", "private", "sh", "-ec", &script]);
    assert!(output.starts_with("upper"), "{output}");
    assert!(!output.contains("gone"), "{output}");
    assert_eq!(
        output.matches("lower\n").count(),
        1,
        "only the directory that is not opaque shows the lower file: {output}"
    );
}

#[test]
fn directories_without_entries_take_over_what_the_layers_below_say() {
    let place = Place::new();
    let layer = |entries: &[Entry]| {
        let tar = tarball(entries);
        (gzip(&tar), Digest::of(&tar))
    };
    let base = layer(&[
        Entry { mode: 0o711, ids: (3, 4), mtime: 50, ..dir("./") },
        Entry { mode: 0o1777, mtime: 60, ..dir("tmp") },
        Entry { mode: 0o700, ids: (7, 8), ..dir("home/user") },
        Entry { mode: 0o700, ..dir("hidden/inner") },
        Entry { mode: 0o700, ..dir("replaced") },
        symlink("link", "tmp"),
    ]);
    let middle = layer(&[file("hidden/.wh..wh..opq", ""), file("hidden/x", ""), file(".wh.replaced", "")]);
    let upper = layer(&[
        file("tmp/x", ""),
        file("home/user/deep/x", ""),
        file("hidden/inner/x", ""),
        file("replaced/x", ""),
        file("link/x", ""),
        file("new/deep/er/x", ""),
    ]);
    place.import(&Layout::of(&[base, middle.clone(), upper.clone()])).unwrap();
    let layers = place.store.resolve(NAME).unwrap().layers;
    let of = |name: &str| {
        let stat = fs::symlink_metadata(layers[2].join(name)).unwrap();
        (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime())
    };
    assert_eq!(of(""), (0o711, 3, 4, 50));
    assert_eq!(of("tmp"), (0o1777, 0, 0, 60));
    assert_eq!(of("home"), (0o755, 0, 0, 0));
    assert_eq!(of("home/user"), (0o700, 7, 8, 0));
    for fresh in ["home/user/deep", "hidden/inner", "replaced", "link", "new/deep/er"] {
        assert_eq!(of(fresh), (0o755, 0, 0, 0), "{fresh}");
    }
    // Over another base the same layers take over other things, or nothing: each has directories of its own.
    let plain = layer(&[file("other", "")]);
    place.import(&Layout::of(&[plain.clone(), middle, upper.clone()])).unwrap();
    let others = place.store.resolve(NAME).unwrap().layers;
    assert_ne!(others[2], layers[2]);
    assert_eq!(fs::metadata(others[2].join("tmp")).unwrap().mode() & 0o7777, 0o755);
    assert!(
        others[2].ends_with(format!("{}/fs", upper.1.hex())),
        "without anything to take over a layer is kept under its diff id"
    );
    // And where it takes over the same, it is shared again.
    let before = fs::read_dir(place.path("images/layers")).unwrap().count();
    place.import(&Layout::of(&[plain, upper])).unwrap();
    assert_eq!(place.store.resolve(NAME).unwrap().layers[1], others[2]);
    assert_eq!(fs::read_dir(place.path("images/layers")).unwrap().count(), before);
}
