//! Images that want something: each is refused with the reason, and leaves nothing behind.

use std::fs;
use std::io::Write;

use hearth_image::{Digest, ImageError, ImageStore, Limits, Platform};
use serde_json::json;

use crate::support::*;

/// Layers with one bad entry: what they are, the entries, the bad entry's path as the message has it, and what the message says.
fn bad_entries() -> Vec<(&'static str, Vec<Entry>, String, &'static str)> {
    let long = "x".repeat(256);
    let many = vec!["d"; 300].join("/");
    let huge = format!("{}file", "a/".repeat(2100));
    vec![
        ("a path that climbs", vec![file("../canary/file", "x")], "../canary/file".into(), "\"..\" component"),
        (
            "a path that climbs from below",
            vec![dir("a"), file("a/../../../canary/file", "x")],
            "a/../../../canary/file".into(),
            "\"..\" component",
        ),
        (
            "an absolute path that climbs",
            vec![file("/../../canary/file", "x")],
            "/../../canary/file".into(),
            "\"..\" component",
        ),
        (
            "a climbing path in a PAX record",
            vec![file("ok", "x").pax("path", "../canary/file")],
            "../canary/file".into(),
            "\"..\" component",
        ),
        (
            "a climbing path in a GNU long name",
            vec![file(&format!("{}../../canary/file", "a/../".repeat(30)), "x")],
            "a/../".into(),
            "\"..\" component",
        ),
        ("a path of dots only", vec![file("..", "x")], "..".into(), "\"..\" component"),
        ("a NUL in a PAX path", vec![file("ok", "x").pax("path", "a\0b")], "a".into(), "NUL"),
        ("an empty path", vec![file("", "x")], String::new(), "empty"),
        ("a file in place of the root", vec![file("./", "x")], "./".into(), ""),
        (
            "an absolute symlink to write through",
            vec![symlink("out", "/etc"), file("out/passwd", "x")],
            "out/passwd".into(),
            "symbolic link",
        ),
        (
            "a relative symlink to write through",
            vec![symlink("out", "../../../../canary"), file("out/file", "x")],
            "out/file".into(),
            "symbolic link",
        ),
        (
            "a symlink within the layer to write through",
            vec![dir("a"), symlink("b", "a"), file("b/c", "x")],
            "b/c".into(),
            "symbolic link",
        ),
        (
            "a chain of symlinks",
            vec![symlink("a", "b"), symlink("b", "../../../canary"), file("a/file", "x")],
            "a/file".into(),
            "symbolic link",
        ),
        (
            "a symlink in the middle of a path",
            vec![dir("a"), symlink("a/b", "/"), dir("a/b/etc/evil")],
            "a/b/etc/evil".into(),
            "symbolic link",
        ),
        (
            "a symlink to a magic link",
            vec![symlink("proc", "/proc/self/root"), file("proc/etc/x", "x")],
            "proc/etc/x".into(),
            "symbolic link",
        ),
        (
            "a directory made through a symlink",
            vec![symlink("out", "../../../../canary"), dir("out/new")],
            "out/new".into(),
            "symbolic link",
        ),
        (
            "a whiteout through a symlink",
            vec![symlink("out", "../../../../canary"), file("out/.wh.file", "")],
            "out/.wh.file".into(),
            "symbolic link",
        ),
        (
            "an opaque whiteout through a symlink",
            vec![symlink("out", "../../../../canary"), file("out/.wh..wh..opq", "")],
            "out/.wh..wh..opq".into(),
            "symbolic link",
        ),
        (
            "a symlink made through a symlink",
            vec![symlink("out", "../../../../canary"), symlink("out/x", "y")],
            "out/x".into(),
            "symbolic link",
        ),
        ("a path through a file", vec![file("a", "x"), file("a/b", "x")], "a/b".into(), "not a directory"),
        (
            "a hard link that climbs",
            vec![hardlink("stolen", "../../../../canary/file")],
            "stolen".into(),
            "out of the layer",
        ),
        (
            "a hard link to an absolute path of the device",
            vec![hardlink("stolen", "/etc/shadow")],
            "stolen".into(),
            "not in the layer",
        ),
        (
            "a hard link through a symlink",
            vec![symlink("out", "/etc"), hardlink("stolen", "out/shadow")],
            "stolen".into(),
            "out of the layer",
        ),
        (
            "a hard link through a relative symlink",
            vec![symlink("out", "../../../../canary"), hardlink("stolen", "out/file")],
            "stolen".into(),
            "out of the layer",
        ),
        (
            "a hard link made through a symlink",
            vec![file("a", "x"), symlink("out", "../../../../canary"), hardlink("out/x", "a")],
            "out/x".into(),
            "symbolic link",
        ),
        ("a hard link to nothing", vec![hardlink("a", "missing")], "a".into(), "not in the layer"),
        ("a hard link to a directory", vec![dir("d"), hardlink("a", "d")], "a".into(), "not a file"),
        ("a hard link to a whiteout", vec![file(".wh.gone", ""), hardlink("a", "gone")], "a".into(), "not a file"),
        ("a hard link without a target", vec![hardlink("a", "")], "a".into(), "target"),
        ("a symlink without a target", vec![symlink("a", "")], "a".into(), "target"),
        ("a block device", vec![entry(b'4', "dev/sda")], "dev/sda".into(), "block device"),
        ("a character device", vec![entry(b'3', "dev/mem")], "dev/mem".into(), "character device"),
        ("a character device that looks like a whiteout", vec![entry(b'3', "gone")], "gone".into(), "character device"),
        ("a whiteout of nothing", vec![file(".wh.", "")], ".wh.".into(), "whiteout of nothing"),
        ("a whiteout of the directory itself", vec![file("a/.wh..", "")], "a/.wh..".into(), "whiteout of nothing"),
        ("a whiteout of the directory above", vec![file("a/.wh...", "")], "a/.wh...".into(), "whiteout of nothing"),
        ("a whiteout with content", vec![file(".wh.a", "x")], ".wh.a".into(), "content"),
        ("a directory with content", vec![Entry { content: b"x".to_vec(), ..dir("a") }], "a".into(), "content"),
        ("a component that is too long", vec![file(&long, "x")], long[..100].into(), "256 bytes"),
        ("a path that is too long", vec![file(&huge, "x")], "a/a/".into(), "4204 bytes"),
        ("a path that is too deep", vec![file(&many, "x")], "d/d/".into(), "300 components"),
        ("a sparse file", vec![entry(b'S', "a")], "a".into(), "sparse"),
        ("a sparse file by PAX", vec![file("a", "x").pax("GNU.sparse.major", "1")], "a".into(), "sparse"),
        ("an unknown type", vec![entry(b'Z', "a")], "a".into(), "type 'Z'"),
        ("a user beyond what Linux has", vec![file("a", "x").pax("uid", "4294967295")], "after".into(), "out of range"),
        ("a user that is not a number", vec![file("a", "x").pax("uid", "root")], "after".into(), "not a number"),
        (
            "a header's user beyond what Linux has",
            vec![Entry { ids: (1 << 40, 0), ..file("a", "x") }],
            "a".into(),
            "user",
        ),
        (
            "a PAX header of two MiB",
            vec![file("a", "x").pax("path", vec![b'a'; 2 * 1024 * 1024])],
            "after".into(),
            "limit is 1048576",
        ),
        (
            "a GNU long name of two MiB",
            vec![file(&"a".repeat(2 * 1024 * 1024), "x")],
            "after".into(),
            "limit is 1048576",
        ),
        (
            "an attribute that is too large",
            vec![file("a", "x").pax("SCHILY.xattr.user.a", vec![b'a'; 70_000])],
            "a".into(),
            "attributes",
        ),
        (
            "too many attributes",
            vec![(0..100).fold(file("a", "x"), |e, n| e.pax(&format!("SCHILY.xattr.user.{n}"), "x"))],
            "a".into(),
            "attributes",
        ),
        (
            "a capability that is none",
            vec![file("a", "x").pax("SCHILY.xattr.security.capability", "root!")],
            "a".into(),
            "attributes",
        ),
        ("a file in place of a full directory", vec![file("a/b", "x"), file("a", "x")], "a".into(), "not empty"),
        (
            "a file whose PAX size runs beyond the layer",
            vec![file("a", "x").pax("size", "999999999999")],
            String::new(),
            "truncated",
        ),
    ]
}

#[test]
fn layers_with_a_bad_entry_are_refused_by_name_and_leave_nothing() {
    let place = Place::new();
    let cases = bad_entries();
    assert!(cases.len() >= 40);
    for (what, entries, path, message) in cases {
        // Something good first, so that something is there to be removed.
        let entries: Vec<_> = [file("etc/good", "x")].into_iter().chain(entries).collect();
        let layout = Layout::plain(&entries);
        let generation = place.store.generation().unwrap();
        let error = place.import(&layout).expect_err(what);
        let text = chain(&error);
        let layer = layout.layer().replace("blobs/sha256/", "sha256:");
        assert!(text.contains(&layer), "{what}: {text} should name the layer");
        assert!(text.contains(&format!("{path:?}")[1..=path.len()]), "{what}: {text} should name {path}");
        assert!(text.contains(message), "{what}: {text} should say {message}");
        assert!(text.len() < 1000, "{what}: messages are bounded");
        assert_eq!(place.store.generation().unwrap(), generation, "{what}");
        place.assert_untouched(what);
    }
}

type Change = Box<dyn Fn(&mut Layout)>;

/// Good images with something changed: what, how, and what the message says.
fn bad_images() -> Vec<(&'static str, Change, &'static str)> {
    fn case<F: Fn(&mut Layout) + 'static>(
        what: &'static str,
        change: F,
        message: &'static str,
    ) -> (&'static str, Change, &'static str) {
        (what, Box::new(change), message)
    }
    vec![
        case("a layer that was changed", |l| l.files.get_mut(&l.layer()).unwrap()[600] ^= 1, "damaged or forged"),
        case(
            "a manifest that was changed",
            |l| l.files.get_mut(&blob(&l.descriptor())).unwrap()[10] ^= 1,
            "damaged or forged",
        ),
        case(
            "a configuration that was changed",
            |l| l.files.get_mut(&blob(&l.manifest()["config"])).unwrap()[10] ^= 1,
            "damaged or forged",
        ),
        case("a layer that was cut off", |l| l.files.get_mut(&l.layer()).unwrap().truncate(700), "truncated"),
        case("an empty layer blob", |l| l.files.get_mut(&l.layer()).unwrap().clear(), "truncated"),
        case("a layer with something behind it", |l| l.files.get_mut(&l.layer()).unwrap().push(0), "too long"),
        case("a layer that is missing", |l| drop(l.files.remove(&l.layer())), "is missing from"),
        case("a manifest that is missing", |l| drop(l.files.remove(&blob(&l.descriptor()))), "is missing from"),
        case(
            "a configuration that is missing",
            |l| drop(l.files.remove(&blob(&l.manifest()["config"]))),
            "is missing from",
        ),
        case(
            "a manifest whose descriptor says another size",
            |l| {
                let mut descriptor = l.descriptor();
                descriptor["size"] = json!(7);
                l.set_index(&[descriptor]);
            },
            "its descriptor says 7",
        ),
        case(
            "a digest that is a path",
            |l| {
                let mut descriptor = l.descriptor();
                descriptor["digest"] = json!("sha256:../../../canary/file");
                l.set_index(&[descriptor]);
            },
            "not of the form sha256",
        ),
        case(
            "a layer digest that is a path",
            |l| {
                let mut manifest = l.manifest();
                manifest["layers"][0]["digest"] = json!("sha256:../../x");
                l.replace_manifest(&manifest);
            },
            "not of the form sha256",
        ),
        case(
            "a diff id that is a path",
            |l| {
                let mut config = l.config();
                config["rootfs"]["diff_ids"][0] = json!("sha256:../../x");
                l.replace_config(config.to_string().into_bytes());
            },
            "not of the form sha256",
        ),
        case(
            "a digest of another algorithm",
            |l| {
                let mut descriptor = l.descriptor();
                descriptor["digest"] = json!("sha512:00");
                l.set_index(&[descriptor]);
            },
            "only sha256",
        ),
        case(
            "a negative size",
            |l| {
                let mut descriptor = l.descriptor();
                descriptor["size"] = json!(-1);
                l.set_index(&[descriptor]);
            },
            "invalid value",
        ),
        case(
            "a diff id of something else",
            |l| {
                let mut config = l.config();
                config["rootfs"]["diff_ids"][0] = json!(Digest::of(b"something else"));
                l.replace_config(config.to_string().into_bytes());
            },
            "configuration says",
        ),
        case(
            "more diff ids than layers",
            |l| {
                let mut config = l.config();
                config["rootfs"]["diff_ids"] = json!([Digest::of(b"a"), Digest::of(b"b")]);
                l.replace_config(config.to_string().into_bytes());
            },
            "1 layers, and its configuration 2",
        ),
        case(
            "no layers",
            |l| {
                let mut manifest = l.manifest();
                manifest["layers"] = json!([]);
                l.replace_manifest(&manifest);
            },
            "no layers",
        ),
        case(
            "too many layers",
            |l| {
                let mut manifest = l.manifest();
                manifest["layers"] = json!(vec![manifest["layers"][0].clone(); 129]);
                l.replace_manifest(&manifest);
            },
            "limit is 128",
        ),
        case(
            "an encrypted layer",
            |l| {
                let mut manifest = l.manifest();
                manifest["layers"][0]["mediaType"] = json!(format!("{LAYER}+encrypted"));
                l.replace_manifest(&manifest);
            },
            "not supported",
        ),
        case(
            "a configuration that is something else",
            |l| {
                let mut manifest = l.manifest();
                manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
                l.replace_manifest(&manifest);
            },
            "not supported",
        ),
        case(
            "a manifest that is also an index",
            |l| {
                let mut manifest = l.manifest();
                manifest["manifests"] = json!([]);
                l.replace_manifest(&manifest);
            },
            "at once",
        ),
        case(
            "a manifest of schema 1",
            |l| {
                let mut manifest = l.manifest();
                manifest["schemaVersion"] = json!(1);
                l.replace_manifest(&manifest);
            },
            "schema 1",
        ),
        case(
            "a manifest that calls itself an index",
            |l| {
                let mut manifest = l.manifest();
                manifest["mediaType"] = json!(INDEX);
                l.replace_manifest(&manifest);
            },
            "not supported",
        ),
        case(
            "another architecture",
            |l| {
                let mut config = l.config();
                config["architecture"] = json!("arm64");
                l.replace_config(config.to_string().into_bytes());
            },
            "is for linux/arm64, and this device needs linux/amd64",
        ),
        case(
            "another operating system",
            |l| {
                let mut config = l.config();
                config["os"] = json!("windows");
                l.replace_config(config.to_string().into_bytes());
            },
            "is for windows/amd64",
        ),
        case(
            "an index that lies about the architecture",
            |l| {
                let mut config = l.config();
                config["architecture"] = json!("arm64");
                l.replace_config(config.to_string().into_bytes());
                l.set_index(&[for_platform(l.descriptor(), "amd64")]);
            },
            "is for linux/arm64, and this device needs linux/amd64",
        ),
        case(
            "an index without the architecture",
            |l| {
                let manifests = [for_platform(l.descriptor(), "arm64"), for_platform(l.descriptor(), "riscv64")];
                let index = l.add_index(&manifests);
                l.set_index(&[with_name(index, NAME)]);
            },
            "is for linux/arm64, linux/riscv64, and this device needs linux/amd64",
        ),
        case(
            "a configuration without architecture",
            |l| {
                let mut config = l.config();
                config["architecture"] = json!("");
                l.replace_config(config.to_string().into_bytes());
            },
            "os and architecture",
        ),
        case(
            "indexes nested too deep",
            |l| {
                let mut inner = l.descriptor();
                for _ in 0..3 {
                    inner = l.add_index(&[inner]);
                }
                l.set_index(&[with_name(inner, NAME)]);
            },
            "nested deeper",
        ),
        case(
            "indexes that branch without end",
            |l| {
                // Each entry names an image without a platform, so that each has to be read.
                let mut images: Vec<_> = vec![l.descriptor(); 1000];
                for image in &mut images {
                    image.as_object_mut().unwrap().remove("annotations");
                }
                let index = l.add_index(&images);
                l.set_index(&[with_name(index, NAME)]);
            },
            "more than 1024 documents",
        ),
        case(
            "an index with too many entries",
            |l| {
                let index = l.add_index(&vec![l.descriptor(); 1025]);
                l.set_index(&[with_name(index, NAME)]);
            },
            "limit is 1024",
        ),
        case(
            "an oversized index.json",
            |l| {
                l.files.get_mut("index.json").unwrap().resize(5 * 1024 * 1024, b' ');
            },
            "limit is 4194304",
        ),
        case(
            "an oversized manifest",
            |l| {
                let mut manifest = l.manifest();
                manifest["annotations"] = json!({"x": "x".repeat(5 * 1024 * 1024)});
                l.replace_manifest(&manifest);
            },
            "limit is 4194304",
        ),
        case(
            "an oversized configuration",
            |l| {
                let mut config = l.config();
                config["x"] = json!("x".repeat(5 * 1024 * 1024));
                l.replace_config(config.to_string().into_bytes());
            },
            "limit is 4194304",
        ),
        case("a configuration that is no JSON", |l| l.replace_config(b"{".to_vec()), "is not valid"),
        case(
            "a relative working directory",
            |l| {
                let mut config = l.config();
                config["config"]["WorkingDir"] = json!("../..");
                l.replace_config(config.to_string().into_bytes());
            },
            "not absolute",
        ),
        case("an index without images", |l| l.set_index(&[]), "1 to 64 are allowed"),
        case(
            "an index with too many images",
            |l| {
                let all: Vec<_> = (0..65).map(|n| with_name(l.descriptor(), &format!("a:{n}x"))).collect();
                l.set_index(&all);
            },
            "1 to 64 are allowed",
        ),
        case(
            "no name",
            |l| {
                let mut descriptor = l.descriptor();
                descriptor.as_object_mut().unwrap().remove("annotations");
                l.set_index(&[descriptor]);
            },
            "give a name",
        ),
        case("a tag for a name", |l| l.set_index(&[with_name(l.descriptor(), "1.0")]), "give a name"),
        case("a name that climbs", |l| l.set_index(&[with_name(l.descriptor(), "../../x:1")]), "not valid"),
        case(
            "a layout of another version",
            |l| {
                l.files.insert("oci-layout".into(), b"{\"imageLayoutVersion\":\"2.0.0\"}".to_vec());
            },
            "layout version \"2.0.0\"",
        ),
        case("no oci-layout", |l| drop(l.files.remove("oci-layout")), "is not an image"),
        case("no index.json", |l| drop(l.files.remove("index.json")), "is not an image"),
        case(
            "a layer that is a symlink to a file of the device",
            |l| {
                l.links.insert(l.layer(), "/etc/shadow".into());
            },
            "links are not followed",
        ),
        case(
            "a layer that is a symlink to a good blob",
            |l| {
                let name = l.layer();
                let bytes = l.files.remove(&name).unwrap();
                l.files.insert("blobs/other".into(), bytes);
                l.links.insert(name, "../other".into());
            },
            "links are not followed",
        ),
        case(
            "a manifest that is a symlink",
            |l| {
                l.links.insert(blob(&l.descriptor()), "/etc/shadow".into());
            },
            "links are not followed",
        ),
        case(
            "an index.json that is a symlink",
            |l| {
                l.links.insert("index.json".into(), "/etc/passwd".into());
            },
            "",
        ),
        case(
            "a layer that is no tar archive",
            |l| {
                let text = b"not a tar archive, but long enough to have a block of it".repeat(20);
                let diff_id = Digest::of(&text);
                *l = Layout::of(&[(text, diff_id)]);
            },
            "not a tar archive",
        ),
        case(
            "a gzip layer that is cut off inside",
            |l| {
                let tar = tarball(&[file("a", &"x".repeat(100_000))]);
                let mut blob = gzip(&tar);
                blob.truncate(blob.len() - 20);
                *l = Layout::of(&[(blob, Digest::of(&tar))]);
            },
            "cannot be decompressed",
        ),
        case(
            "a zstd layer that is cut off inside",
            |l| {
                let tar = tarball(&[file("a", &"x".repeat(100_000))]);
                let mut blob = zstd(&tar);
                blob.truncate(blob.len() - 5);
                *l = Layout::of(&[(blob, Digest::of(&tar))]);
            },
            "cannot be decompressed",
        ),
        case(
            "a gzip layer with garbage behind it",
            |l| {
                let tar = tarball(&[file("a", "x")]);
                let mut blob = gzip(&tar);
                blob.extend(b"garbage");
                *l = Layout::of(&[(blob, Digest::of(&tar))]);
            },
            "cannot be decompressed",
        ),
        case(
            "a zstd layer with a window that does not fit a device",
            |l| {
                let tar = tarball(&[file("a", &"x".repeat(1000))]);
                let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
                encoder.window_log(27).unwrap();
                encoder.write_all(&tar).unwrap();
                *l = Layout::of(&[(encoder.finish().unwrap(), Digest::of(&tar))]);
            },
            "cannot be decompressed",
        ),
        case(
            "a tar archive that ends within a file",
            |l| {
                let mut tar = tarball(&[file("a", &"x".repeat(10_000))]);
                tar.truncate(5000);
                let diff_id = Digest::of(&tar);
                *l = Layout::of(&[(tar, diff_id)]);
            },
            "truncated at or after entry \"a\"",
        ),
        case(
            "a header with a wrong checksum",
            |l| {
                let mut tar = tarball(&[file("a", "x"), file("b", "x")]);
                tar[1024] ^= 1;
                let diff_id = Digest::of(&tar);
                *l = Layout::of(&[(tar, diff_id)]);
            },
            "checksum is wrong",
        ),
        case(
            "PAX headers without an entry between them",
            |l| {
                let mut tar = Vec::new();
                for _ in 0..20 {
                    tar.extend(&tarball(&[file("a", "x").pax("comment", "x")])[..1024]);
                }
                tar.extend(tarball(&[file("a", "x")]));
                let diff_id = Digest::of(&tar);
                *l = Layout::of(&[(tar, diff_id)]);
            },
            "too many extension headers",
        ),
    ]
}

fn good() -> Layout {
    Layout::plain(&[dir("bin"), file("bin/app", "content")])
}

#[test]
fn a_good_image_is_taken_so_that_the_table_means_something() {
    let place = Place::new();
    place.import(&good()).unwrap();
    assert_eq!(place.store.list().unwrap().len(), 1);
}

#[test]
fn images_that_are_not_what_they_say_are_refused_from_a_directory() {
    let place = Place::new();
    for (what, change, message) in bad_images() {
        let mut layout = good();
        change(&mut layout);
        let text = chain(&place.import(&layout).expect_err(what));
        assert!(text.contains(message), "{what}: {text} should say {message}");
        assert!(text.len() < 2000, "{what}: messages are bounded");
        place.assert_untouched(what);
    }
}

#[test]
fn images_that_are_not_what_they_say_are_refused_from_an_archive() {
    let place = Place::new();
    for (what, change, message) in bad_images() {
        let mut layout = good();
        change(&mut layout);
        // The archive says it in its own words.
        let message = message.replace("links are not followed", "is a link, not a file");
        let archive = place.path("source");
        fs::write(&archive, gzip(&layout.archive())).unwrap();
        let text = chain(&place.store.import(&archive, &amd64()).expect_err(what));
        assert!(text.contains(&message), "{what}: {text} should say {message}");
        place.assert_untouched(what);
    }
}

#[test]
fn things_that_are_no_images_are_refused() {
    let place = Place::new();
    let archive = good().archive();
    let source = place.path("source");
    let mut climbing = tarball(&[file("../oci-layout", "x")]);
    climbing.truncate(1024);
    climbing.extend(&archive);
    let mut many = Vec::new();
    (0..5000).for_each(|n| many.push(file(&format!("f{n}"), "")));
    for (what, bytes, message) in [
        ("an empty file", Vec::new(), "neither an oci-layout nor a manifest.json"),
        ("a text", b"hello".repeat(500), "not a tar archive"),
        ("an archive that was cut off", archive[..archive.len() / 2].to_vec(), "truncated"),
        ("a compressed archive that was cut off", gzip(&archive)[..200].to_vec(), "cannot be decompressed"),
        ("an archive of other things", tarball(&[file("readme", "x")]), "neither an oci-layout nor a manifest.json"),
        ("an archive with a path that climbs", climbing, "\"..\" component"),
        ("an archive with too many entries", tarball(&many), "more than 4096 entries"),
    ] {
        fs::write(&source, bytes).unwrap();
        let text = chain(&place.store.import(&source, &amd64()).expect_err(what));
        assert!(text.contains(message), "{what}: {text} should say {message}");
        place.assert_untouched(what);
    }
    fs::remove_file(&source).unwrap();
    assert!(chain(&place.store.import(&source, &amd64()).unwrap_err()).contains("No such file"));
    rustix::fs::mknodat(rustix::fs::CWD, &source, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(place.store.import(&source, &amd64()), Err(ImageError::NotAnImage { .. })));
}

#[test]
fn a_pipe_or_a_directory_in_place_of_a_blob_does_not_hold_the_import_up() {
    let place = Place::new();
    let layout = good();
    let source = place.path("source");
    for kind in ["a pipe", "a directory"] {
        let _ = fs::remove_dir_all(&source);
        layout.write_directory(&source);
        let blob = source.join(layout.layer());
        fs::remove_file(&blob).unwrap();
        match kind {
            "a pipe" => {
                rustix::fs::mknodat(rustix::fs::CWD, &blob, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap()
            }
            _ => fs::create_dir(&blob).unwrap(),
        }
        let text = chain(&place.store.import(&source, &amd64()).unwrap_err());
        assert!(text.contains(kind), "{text}");
        place.assert_untouched(kind);
    }
}

#[test]
fn decompression_bombs_are_stopped_at_their_bound() {
    let place = Place::new();
    // The defaults are for real layers of zeros; a smaller allowance shows the same in less time.
    assert_eq!((Limits::default().ratio, Limits::default().ratio_free_bytes), (200, 64 * 1024 * 1024));
    let store = ImageStore::open(&place.path("images")).unwrap();
    let store = store.with_limits(Limits { ratio_free_bytes: 1024 * 1024, ..Limits::default() });
    let import = |layout: &Layout| {
        let source = place.path("source");
        let _ = fs::remove_dir_all(&source);
        layout.write_directory(&source);
        store.import(&source, &amd64())
    };
    let zeros = Entry { content: vec![0; 4 * 1024 * 1024], ..entry(b'0', "zeros") };
    let zeros = tarball(&[file("good", "x"), zeros]);
    for blob in [gzip(&zeros), zstd(&zeros)] {
        let error = import(&Layout::of(&[(blob, Digest::of(&zeros))])).unwrap_err();
        assert!(matches!(&error, ImageError::Bomb { entry, .. } if entry == "zeros"), "{error}");
        assert!(error.to_string().contains("200 times"), "{error}");
        place.assert_untouched("a bomb");
    }
    // Nested: a gzip of a gzip is a layer that is no tar archive.
    let nested = gzip(&gzip(&zeros));
    let text = chain(&import(&Layout::of(&[(nested, Digest::of(&gzip(&zeros)))])).unwrap_err());
    assert!(text.contains("not a tar archive"), "{text}");
}

#[test]
fn the_bounds_on_bytes_and_entries_hold_and_are_named() {
    let place = Place::new();
    let limited = |limits: Limits| ImageStore::open(&place.path("images")).unwrap().with_limits(limits);
    let source = place.path("source");
    let layer = |name: &str| {
        let tar = tarball(&[file(name, &"x".repeat(100_000))]);
        let diff_id = Digest::of(&tar);
        (tar, diff_id)
    };
    Layout::of(&[layer("a"), layer("b")]).write_directory(&source);
    for (what, limits, message) in [
        ("one layer", Limits { layer_bytes: 50_000, ..Limits::default() }, "limit of 50000 bytes"),
        ("the whole image", Limits { image_bytes: 150_000, ..Limits::default() }, "limit of 50000 bytes"),
        ("entries", Limits { entries: 0, ..Limits::default() }, "more than 0 entries"),
    ] {
        let error = limited(limits).import(&source, &amd64()).unwrap_err();
        assert!(matches!(error, ImageError::Bomb { .. }), "{what}: {error}");
        assert!(error.to_string().contains(message), "{what}: {error}");
        place.assert_untouched(what);
    }
    limited(Limits { layer_bytes: 110_000, image_bytes: 220_000, ..Limits::default() })
        .import(&source, &amd64())
        .unwrap();
}

#[test]
fn a_docker_archive_is_held_to_its_configuration() {
    let place = Place::new();
    let tar = tarball(&[file("a", "x")]);
    let config =
        json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar)]}})
            .to_string();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let archive = |manifest: serde_json::Value, config: &str, layer: &[u8]| {
        tarball(&[
            Entry { content: config.as_bytes().to_vec(), ..entry(b'0', &name) },
            Entry { content: layer.to_vec(), ..entry(b'0', "l1/layer.tar") },
            symlink("l2/layer.tar", "../l1/layer.tar"),
            symlink("out/layer.tar", "../../../../canary/file"),
            symlink("abs/layer.tar", "/etc/shadow"),
            symlink("loop/layer.tar", "../loop/layer.tar"),
            Entry { content: manifest.to_string().into_bytes(), ..entry(b'0', "manifest.json") },
        ])
    };
    let manifest = |config: &str, layers: &[&str]| json!([{"Config": config, "RepoTags": ["docker.io/library/app:1"], "Layers": layers}]);
    let source = place.path("source");
    let twisted = format!("{config} ");
    let mut changed = tar.clone();
    changed[600] ^= 1;
    for (what, bytes, message) in [
        (
            "a configuration that was changed",
            archive(manifest(&name, &["l1/layer.tar"]), &twisted, &tar),
            "damaged or forged",
        ),
        (
            "a layer that was changed",
            archive(manifest(&name, &["l1/layer.tar"]), &config, &changed),
            "damaged or forged",
        ),
        ("a layer that is missing", archive(manifest(&name, &["none/layer.tar"]), &config, &tar), "has no layer"),
        ("a layer that climbs", archive(manifest(&name, &["../../canary/file"]), &config, &tar), "has no layer"),
        ("a layer that is a link out", archive(manifest(&name, &["out/layer.tar"]), &config, &tar), "has no layer"),
        (
            "a layer that is an absolute link",
            archive(manifest(&name, &["abs/layer.tar"]), &config, &tar),
            "has no layer",
        ),
        (
            "a layer that is a link to itself",
            archive(manifest(&name, &["loop/layer.tar"]), &config, &tar),
            "has no layer",
        ),
        (
            "a configuration that is missing",
            archive(manifest("none.json", &["l1/layer.tar"]), &config, &tar),
            "no file none.json",
        ),
        ("a configuration that climbs", archive(manifest("../x", &["l1/layer.tar"]), &config, &tar), "no file"),
        ("too few layers", archive(manifest(&name, &[]), &config, &tar), "no layers"),
        (
            "too many layers",
            archive(manifest(&name, &["l1/layer.tar", "l2/layer.tar"]), &config, &tar),
            "names 2 layers",
        ),
        ("no images", archive(json!([]), &config, &tar), "0 images"),
    ] {
        fs::write(&source, bytes).unwrap();
        let text = chain(&place.store.import(&source, &amd64()).expect_err(what));
        assert!(text.contains(message), "{what}: {text} should say {message}");
        place.assert_untouched(what);
    }
    // As old versions of Docker write it: a layer that is a link to another image's.
    fs::write(&source, archive(manifest(&name, &["l2/layer.tar"]), &config, &tar)).unwrap();
    assert_eq!(place.store.import(&source, &amd64()).unwrap()[0].reference, "app:1");
    let arm = hearth_image::ImportOptions { platform: Platform::linux("arm64"), ..amd64() };
    assert!(matches!(place.store.import(&source, &arm), Err(ImageError::Platform { .. })));
}
