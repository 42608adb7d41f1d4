//! The store as a whole: names, sharing, garbage, several at once, interruptions.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use hearth_image::{Digest, Garbage, ImageError, ImageStore, ImportOptions, Platform};
use serde_json::json;

use crate::support::*;

fn layer(entries: &[Entry]) -> (Vec<u8>, Digest) {
    let tar = tarball(entries);
    (gzip(&tar), Digest::of(&tar))
}

fn named(layers: &[(Vec<u8>, Digest)], name: &str) -> Layout {
    let mut layout = Layout::of(layers);
    layout.set_index(&[with_name(layout.descriptor(), name)]);
    layout
}

fn layers(place: &Place) -> usize {
    fs::read_dir(place.path("images/layers")).unwrap().count()
}

#[test]
fn an_image_is_found_by_name_tag_and_digest_and_says_how_to_run_it() {
    let place = Place::new();
    let mut layout = Layout::default();
    let (blob, diff_id) = layer(&[file("app", "12345")]);
    let run = json!({"Entrypoint": ["/app"], "Cmd": ["--flag"], "Env": ["A=1", "B=2"], "User": "1000:1000", "WorkingDir": "/srv",
        "ExposedPorts": {"8080/tcp": {}, "53/udp": {}}, "Volumes": {"/data": {}}, "StopSignal": "SIGINT"});
    let manifest = layout.add_image(&[(blob, diff_id)], "amd64", &run);
    layout.set_index(&[with_name(manifest.clone(), "docker.io/library/app")]);
    place.import(&layout).unwrap();
    let record = place.store.list().unwrap().remove(0);
    assert_eq!(
        (record.reference.as_str(), record.size, record.created.as_deref()),
        ("app:latest", 5, Some("2024-05-06T07:08:09Z"))
    );
    assert_eq!(record.platform, Platform::linux("amd64"));
    let digest = manifest["digest"].as_str().unwrap();
    assert_eq!(record.digest.to_string(), digest);
    for (asked, shown) in [
        ("app", "app:latest".to_owned()),
        ("app:latest", "app:latest".to_owned()),
        ("docker.io/library/app", "app:latest".to_owned()),
        (digest, digest.to_owned()),
        (&format!("app@{digest}"), format!("app@{digest}")),
        (&format!("app:old@{digest}"), format!("app@{digest}")),
    ] {
        let image = place.store.resolve(asked).unwrap();
        assert_eq!((image.reference, image.manifest_digest), (shown, record.digest), "{asked}");
        let config = image.config;
        assert_eq!((config.entrypoint, config.cmd), (vec!["/app".to_owned()], vec!["--flag".to_owned()]));
        assert_eq!((config.env, config.user.as_str()), (vec!["A=1".to_owned(), "B=2".to_owned()], "1000:1000"));
        assert_eq!((config.working_dir.as_str(), config.stop_signal.as_deref()), ("/srv", Some("SIGINT")));
        assert_eq!(
            (config.exposed_ports, config.volumes),
            (vec!["53/udp".to_owned(), "8080/tcp".to_owned()], vec!["/data".to_owned()])
        );
        assert_eq!(fs::read_to_string(image.layers[0].join("app")).unwrap(), "12345");
    }
    for missing in ["app:2", "other", "example.com/app", &Digest::of(b"x").to_string()] {
        assert!(matches!(place.store.resolve(missing), Err(ImageError::NotFound { .. })), "{missing}");
    }
    assert!(matches!(place.store.resolve("../../etc"), Err(ImageError::Reference(_))));
}

#[test]
fn layers_are_shared_and_kept_as_long_as_an_image_or_a_pod_has_them() {
    let place = Place::new();
    let base = layer(&[file("base", &"x".repeat(1000))]);
    place.import(&named(&[base.clone(), layer(&[file("one", "1")])], "one:1")).unwrap();
    place.import(&named(&[base, layer(&[file("two", "22")])], "two:1")).unwrap();
    let (one, two) = (place.store.resolve("one:1").unwrap(), place.store.resolve("two:1").unwrap());
    assert_eq!(one.layers[0], two.layers[0]);
    assert_eq!(layers(&place), 3);

    place.store.remove("one:1").unwrap();
    assert!(matches!(place.store.resolve("one:1"), Err(ImageError::NotFound { .. })));
    assert!(matches!(place.store.remove("one:1"), Err(ImageError::NotFound { .. })));
    // A pod still runs from it, and may restart.
    let kept = place.store.collect_garbage(&HashSet::from([one.manifest_digest])).unwrap();
    assert_eq!((kept.images, kept.layers), (0, 0));
    assert_eq!(place.store.resolve(&one.manifest_digest.to_string()).unwrap().layers, one.layers);

    let gone = place.store.collect_garbage(&HashSet::new()).unwrap();
    assert_eq!((gone.images, gone.layers, gone.bytes), (1, 1, 1));
    assert!(two.layers.iter().all(|path| path.exists()));
    place.store.remove(&two.manifest_digest.to_string()).unwrap();
    assert_eq!(place.store.collect_garbage(&HashSet::new()).unwrap().layers, 2);
    place.assert_untouched("all collected");
}

#[test]
fn an_image_in_use_keeps_its_last_name_unless_forced() {
    let place = Place::new();
    let layout = named(&[layer(&[file("v", "1")])], "app:1");
    place.import(&layout).unwrap();
    let image = place.store.resolve("app:1").unwrap();
    let digest = image.manifest_digest.to_string();
    place.store.note_in_use(&HashSet::from([image.manifest_digest, Digest::of(b"gone")])).unwrap();
    // As another process sees it.
    let other = ImageStore::open(&place.path("images")).unwrap();
    for reference in ["app:1", digest.as_str()] {
        let error = other.remove(reference).unwrap_err();
        assert!(matches!(error, ImageError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(reference) && error.to_string().contains("in use by pods"), "{error}");
    }
    assert!(matches!(other.remove("app:2"), Err(ImageError::NotFound { .. })));
    // One name of two is not the last.
    other.import(&place.path("source"), &ImportOptions { name: Some("alias:1".into()), ..amd64() }).unwrap();
    other.remove("app:1").unwrap();
    assert!(matches!(other.remove("alias:1"), Err(ImageError::InUse { .. })));
    other.force_remove("alias:1").unwrap();
    assert_eq!(place.store.collect_garbage(&HashSet::from([image.manifest_digest])).unwrap().layers, 0);
    assert!(image.layers[0].is_dir());
    // And when the pod is gone.
    place.import(&layout).unwrap();
    place.store.note_in_use(&HashSet::new()).unwrap();
    other.remove("app:1").unwrap();
    assert_eq!(place.store.collect_garbage(&HashSet::new()).unwrap().layers, 1);
    // A file that cannot be read is written anew.
    fs::write(place.path("images/in-use.json"), "{").unwrap();
    place.store.note_in_use(&HashSet::new()).unwrap();
    assert!(ImageStore::open(&place.path("images")).is_ok());
}

#[test]
fn an_image_on_hold_is_not_collected_before_its_pod_is_known() {
    let place = Place::new();
    place.import(&named(&[layer(&[file("v", "1")])], "app:1")).unwrap();
    let (image, hold) = place.store.resolve_and_hold("app:1").unwrap();
    let (_, again) = place.store.clone().resolve_and_hold("app:1").unwrap();
    place.store.remove("app:1").unwrap();
    for held in [Some(hold), Some(again), None] {
        let gone = place.store.collect_garbage(&HashSet::new()).unwrap();
        assert_eq!((gone.images, image.layers[0].is_dir()), if held.is_some() { (0, true) } else { (1, false) });
    }
    assert!(matches!(place.store.resolve_and_hold("app:1"), Err(ImageError::NotFound { .. })));
}

#[test]
fn a_collection_without_anything_to_do_looks_at_nothing_and_waits_for_nobody() {
    let place = Place::new();
    place.import(&named(&[layer(&[file("v", "1")])], "app:1")).unwrap();
    let digest = place.store.resolve("app:1").unwrap().manifest_digest;
    place.store.remove("app:1").unwrap();
    let used = HashSet::from([digest]);
    place.store.collect_garbage(&used).unwrap();
    // Somebody imports, for ever.
    let import = fs::File::create(place.path("images/lock")).unwrap();
    rustix::fs::flock(&import, rustix::fs::FlockOperation::LockExclusive).unwrap();
    // A record that would fail any look at it.
    let record = place.path(&format!("images/images/{}.json", digest.hex()));
    let good = fs::read(&record).unwrap();
    fs::write(&record, "").unwrap();
    let more = HashSet::from([digest, Digest::of(b"another")]);
    for in_use in [&used, &more] {
        assert_eq!(place.store.collect_garbage(in_use).unwrap(), Garbage::default());
        assert_eq!(place.store.try_collect_garbage(in_use).unwrap(), Some(Garbage::default()));
    }
    fs::write(&record, good).unwrap();
    // There is something to do, and somebody is at work.
    assert_eq!(place.store.try_collect_garbage(&HashSet::new()).unwrap(), None);
    drop(import);
    assert_eq!(place.store.try_collect_garbage(&HashSet::new()).unwrap().map(|gone| gone.images), Some(1));
    place.assert_untouched("all collected");
}

#[test]
fn a_name_moves_to_the_image_that_came_last() {
    let place = Place::new();
    place.import(&named(&[layer(&[file("v", "1")])], "app:1")).unwrap();
    let old = place.store.resolve("app:1").unwrap();
    place.import(&named(&[layer(&[file("v", "2")])], "app:1")).unwrap();
    let new = place.store.resolve("app:1").unwrap();
    assert_ne!(old.manifest_digest, new.manifest_digest);
    assert!(place.store.resolve(&old.manifest_digest.to_string()).is_ok());
    assert_eq!(place.store.list().unwrap().len(), 1);
    assert_eq!(place.store.collect_garbage(&HashSet::new()).unwrap().images, 1);
    assert_eq!(fs::read_to_string(new.layers[0].join("v")).unwrap(), "2");
}

#[test]
fn the_generation_changes_with_every_import_and_removal_and_with_nothing_else() {
    let place = Place::new();
    let mut seen = vec![place.store.generation().unwrap()];
    let layout = named(&[layer(&[file("v", "1")])], "app:1");
    place.import(&layout).unwrap();
    seen.push(place.store.generation().unwrap());
    place.store.resolve("app:1").unwrap();
    place.store.collect_garbage(&HashSet::new()).unwrap();
    ImageStore::open(&place.path("images")).unwrap();
    assert_eq!(place.store.generation().unwrap(), seen[1]);
    // The same again is an import that finished, too.
    place.import(&layout).unwrap();
    seen.push(place.store.generation().unwrap());
    place.store.remove("app:1").unwrap();
    seen.push(place.store.generation().unwrap());
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
}

#[test]
fn the_platform_is_chosen_from_an_index_and_its_digest_is_a_name_too() {
    let place = Place::new();
    let mut layout = Layout::default();
    let images: Vec<_> = ["arm64", "amd64", "riscv64"]
        .iter()
        .map(|architecture| {
            let manifest = layout.add_image(&[layer(&[file("arch", architecture)])], architecture, &json!({}));
            for_platform(manifest, architecture)
        })
        .collect();
    let attestation = json!({"mediaType": MANIFEST, "digest": Digest::of(b"x"), "size": 1,
        "platform": {"os": "unknown", "architecture": "unknown"}});
    let artifact =
        json!({"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": Digest::of(b"y"), "size": 1});
    let index = layout.add_index(&[images, vec![attestation, artifact]].concat());
    let outer = layout.add_index(std::slice::from_ref(&index));
    for top in [&index, &outer] {
        layout.set_index(&[with_name(top.clone(), "multi:1")]);
        for architecture in ["amd64", "arm64"] {
            let source = place.path("source");
            let _ = fs::remove_dir_all(&source);
            layout.write_directory(&source);
            let options = ImportOptions { platform: Platform::linux(architecture), ..ImportOptions::default() };
            place.store.import(&source, &options).unwrap();
            for name in ["multi:1", top["digest"].as_str().unwrap()] {
                // Two images were chosen through one index: the name has the last.
                let image = place.store.resolve(name).unwrap();
                if name == "multi:1" {
                    assert_eq!(fs::read_to_string(image.layers[0].join("arch")).unwrap(), architecture);
                }
            }
        }
    }
}

#[test]
fn names_come_from_the_source_or_from_the_caller() {
    let place = Place::new();
    let mut layout = Layout::default();
    let one = layout.add_image(&[layer(&[file("n", "1")])], "amd64", &json!({}));
    let two = layout.add_image(&[layer(&[file("n", "2")])], "amd64", &json!({}));
    layout.set_index(&[with_name(one.clone(), "a/one:1"), with_name(two, "b/two:2")]);
    let source = place.path("source");
    layout.write_directory(&source);
    let import =
        |name: Option<&str>| place.store.import(&source, &ImportOptions { name: name.map(Into::into), ..amd64() });
    let all: Vec<_> = import(None).unwrap().into_iter().map(|record| record.reference).collect();
    assert_eq!(all, ["a/one:1", "b/two:2"]);
    assert_eq!(import(Some("a/one:1")).unwrap().len(), 1);
    let error = import(Some("c/three:3")).unwrap_err();
    assert!(matches!(error, ImageError::Ambiguous { .. }) && error.to_string().contains("a/one:1, b/two:2"), "{error}");
    assert!(matches!(import(Some("BAD")), Err(ImageError::Reference(_))));
    assert!(import(Some(&Digest::of(b"x").to_string())).is_err());
    // A layout of umoci: a tag is all it has.
    layout.set_index(&[with_name(one, "latest")]);
    layout.write_directory(&source);
    let error = import(None).unwrap_err();
    assert!(error.to_string().contains("only has the tag \"latest\""), "{error}");
    assert_eq!(import(Some("my/app")).unwrap()[0].reference, "my/app:latest");
}

#[test]
fn imports_and_readers_go_on_side_by_side() {
    let place = Place::new();
    let base = layer(&[file("base", &"x".repeat(100_000))]);
    let sources: Vec<_> = (0..6)
        .map(|n| {
            let path = place.path(&format!("source-{n}"));
            named(&[base.clone(), layer(&[file("n", &n.to_string())])], &format!("app-{n}:1")).write_directory(&path);
            path
        })
        .collect();
    std::thread::scope(|scope| {
        let importers: Vec<_> = sources
            .iter()
            .map(|source| {
                // Each its own, as if it were another process.
                let root = place.path("images");
                scope.spawn(move || ImageStore::open(&root).unwrap().import(source, &amd64()).unwrap())
            })
            .collect();
        while importers.iter().any(|importer| !importer.is_finished()) {
            for record in place.store.list().unwrap() {
                let image = place.store.resolve(&record.reference).unwrap();
                assert!(image.layers.iter().all(|layer| layer.is_dir()), "what has a name is complete");
            }
            place.store.collect_garbage(&HashSet::new()).unwrap();
        }
    });
    assert_eq!(place.store.list().unwrap().len(), 6);
    assert_eq!(layers(&place), 7);
    for n in 0..6 {
        assert!(place.store.resolve(&format!("app-{n}:1")).is_ok());
    }
}

#[test]
fn leftovers_of_interrupted_imports_are_removed_and_never_used() {
    let place = Place::new();
    let layout = named(&[layer(&[file("v", "1")])], "app:1");
    place.import(&layout).unwrap();
    let digest = place.store.resolve("app:1").unwrap().manifest_digest;
    let root = place.path("images");
    // In the middle of unpacking, of a removal, and of replacing the index.
    fs::create_dir_all(root.join("tmp/work-x/layers/abc/fs/half")).unwrap();
    fs::create_dir_all(root.join("tmp/gone-abc/fs")).unwrap();
    fs::write(root.join("tmp/current"), "").unwrap();
    fs::write(root.join("index-999.json"), "{\"mag").unwrap();
    let store = ImageStore::open(&root).unwrap();
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    assert!(!root.join("index-999.json").exists());
    assert_eq!(store.resolve("app:1").unwrap().manifest_digest, digest);
    // Between the layers and the names: complete, nameless, and used by the next import or collected.
    let other = layer(&[file("v", "2")]);
    fs::create_dir_all(root.join("layers").join(other.1.hex()).join("fs")).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(store.collect_garbage(&HashSet::new()).unwrap().layers, 1);
    assert!(store.resolve("app:1").is_ok());
}

#[test]
fn damage_is_told_and_not_run() {
    let place = Place::new();
    place.import(&named(&[layer(&[file("v", "1")])], "app:1")).unwrap();
    let image = place.store.resolve("app:1").unwrap();
    let record = place.path(&format!("images/images/{}.json", image.manifest_digest.hex()));
    let good = fs::read(&record).unwrap();
    for bad in [&b""[..], b"{}", b"{\"magic\":\"hearth-images\",\"version\":2}", &good[..good.len() / 2]] {
        fs::write(&record, bad).unwrap();
        assert!(matches!(place.store.resolve("app:1"), Err(ImageError::Damaged { .. })), "{bad:?}");
        assert!(place.store.collect_garbage(&HashSet::new()).is_err(), "nothing is collected on a guess");
        assert!(image.layers[0].exists());
    }
    fs::write(&record, good).unwrap();
    fs::remove_dir_all(image.layers[0].parent().unwrap()).unwrap();
    assert!(matches!(place.store.resolve("app:1"), Err(ImageError::Damaged { .. })));
    place.import(&named(&[layer(&[file("v", "1")])], "app:1")).unwrap();
    assert!(place.store.resolve("app:1").is_ok(), "an import repairs it");
}

#[test]
fn the_store_is_for_root_alone_and_takes_no_strangers_directory() {
    let place = Place::new();
    assert_eq!(fs::metadata(place.path("images")).unwrap().mode() & 0o777, 0o700);
    assert!(matches!(ImageStore::open(&place.path("canary")), Err(ImageError::Format { .. })));
    fs::write(place.path("images/format"), "{\"magic\":\"hearth-images\",\"version\":7}").unwrap();
    let error = ImageStore::open(&place.path("images")).unwrap_err();
    assert!(error.to_string().contains("version 7"), "{error}");
}

fn pulled(name: &str) -> ImportOptions {
    ImportOptions { name: Some(name.into()), pulled: true, ..amd64() }
}

#[test]
fn a_pull_may_leave_out_the_layers_that_are_here_and_be_named_by_digest() {
    let place = Place::new();
    let (base, top) = (layer(&[file("base", "b")]), layer(&[file("top", "t")]));
    place.import(&named(std::slice::from_ref(&base), "base:1")).unwrap();
    let unknown = Digest::of(b"unknown");
    assert_eq!(place.store.known_layers(&[base.1, top.1]).unwrap(), [true, false]);
    assert!(!place.store.known_layers(&[unknown, base.1]).unwrap()[0]);

    let mut layout = named(&[base.clone(), top], "example.com/app:1");
    let manifest = layout.descriptor()["digest"].as_str().unwrap().to_owned();
    layout.files.remove(&format!("blobs/sha256/{}", Digest::of(&base.0).hex()));
    // An import that was not pulled is whole, or refused.
    let error = place.import(&layout).unwrap_err();
    assert!(matches!(error, ImageError::MissingBlob { .. }), "{error}");
    let other = format!("example.com/app@{}", Digest::of(b"another"));
    let error = place.store.import(&place.path("source"), &pulled(&other)).unwrap_err();
    assert!(error.to_string().contains("is another"), "{error}");
    let pin = format!("example.com/app@{manifest}");
    for name in [pin.as_str(), "example.com/app:1"] {
        let records = place.store.import(&place.path("source"), &pulled(name)).unwrap();
        assert_eq!((records[0].reference.as_str(), records[0].pulled), (name, true));
        assert_eq!(place.store.resolve(name).unwrap().layers.len(), 2);
    }
    // The pin is a name like another: it keeps the image.
    place.store.remove("example.com/app:1").unwrap();
    assert_eq!(place.store.collect_garbage(&HashSet::new()).unwrap().images, 0);
    assert_eq!(place.store.list().unwrap().iter().filter(|record| record.pulled).count(), 1);
    place.store.remove(&pin).unwrap();
    assert_eq!(place.store.collect_garbage(&HashSet::new()).unwrap().images, 1);
}

#[test]
fn room_is_made_of_what_can_be_had_again_the_longest_unused_first() {
    let place = Place::new();
    let mut digests = Vec::new();
    for (name, is_pulled) in [("old:1", true), ("new:1", true), ("never:1", true), ("mine:1", false), ("used:1", true)]
    {
        let _ = fs::remove_dir_all(place.path("source"));
        named(&[layer(&[file(name, &"x".repeat(1000))])], name).write_directory(&place.path("source"));
        let options = ImportOptions { name: Some(name.into()), pulled: is_pulled, ..amd64() };
        digests.push(place.store.import(&place.path("source"), &options).unwrap()[0].digest);
    }
    let [old, new, _, _, used] = digests[..] else { panic!("five") };
    let in_use = HashSet::from([used]);
    // `old` was released before `new`; neither name says so.
    for uses in [HashSet::from([old, new, used]), HashSet::from([new, used]), in_use.clone()] {
        place.store.note_in_use(&uses).unwrap();
    }
    let names = || place.store.list().unwrap().into_iter().map(|record| record.reference).collect::<Vec<_>>();
    assert_eq!(place.store.make_room(1, &in_use).unwrap(), Some(Garbage { images: 1, layers: 1, bytes: 1000 }));
    assert_eq!(names(), ["mine:1", "never:1", "new:1", "used:1"]);
    let (_, hold) = place.store.resolve_and_hold("never:1").unwrap();
    assert_eq!(place.store.make_room(1_000_000, &in_use).unwrap().unwrap().images, 1);
    assert_eq!(names(), ["mine:1", "never:1", "used:1"]);
    drop(hold);
    assert_eq!(place.store.make_room(1_000_000, &in_use).unwrap().unwrap().images, 1);
    assert_eq!(names(), ["mine:1", "used:1"]);
    // What somebody imported under another name is no longer only pulled.
    place.store.import(&place.path("source"), &ImportOptions { name: Some("kept:1".into()), ..amd64() }).unwrap();
    assert_eq!(place.store.make_room(1_000_000, &HashSet::new()).unwrap().unwrap().images, 0);
    assert_eq!(names(), ["kept:1", "mine:1", "used:1"]);
    place.store.import(&place.path("source"), &ImportOptions { name: Some("used:1".into()), ..amd64() }).unwrap();
    assert!(place.store.list().unwrap().iter().all(|record| !record.pulled));
}

#[test]
fn a_layer_may_end_with_its_last_byte_of_content() {
    // One header and one byte: neither the rest of the block nor the blocks at the end.
    let mut tar = tarball(&[file("a", "x")]);
    tar.truncate(513);
    let place = Place::new();
    place.import(&named(&[(gzip(&tar), Digest::of(&tar))], "app:1")).unwrap();
    let image = place.store.resolve("app:1").unwrap();
    assert_eq!(fs::read_to_string(image.layers[0].join("a")).unwrap(), "x");
}
