//! Every file of `tests/corpus`, put into an otherwise good image and imported: what is called `refused-…`, and every document, is refused
//! with a reason and leaves nothing; what is called `accepted-…` is taken. A bug found by fuzzing becomes a file there.

use std::fs;
use std::path::Path;

use hearth_image::Digest;
use serde_json::json;

use crate::support::*;

/// Name without its ending, and content.
fn corpus(kind: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(kind);
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn layers_of_the_corpus_are_refused_or_taken_as_they_are_called() {
    let (mut refused, mut wrong) = (0, Vec::new());
    for (name, tar) in corpus("tar") {
        let place = Place::new();
        let diff_id = Digest::of(&tar);
        let result = place.import(&Layout::of(&[(gzip(&tar), diff_id)]));
        match (name.starts_with("refused-"), result) {
            (true, Err(error)) => {
                assert!(chain(&error).len() > 20, "{name}: says what is wrong: {error}");
                place.assert_untouched(&name);
                refused += 1;
            }
            (false, Ok(())) => assert!(name.starts_with("accepted-"), "{name}"),
            (_, result) => wrong.push((name, result)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(refused > 30);
}

#[test]
fn documents_of_the_corpus_are_refused() {
    let files = corpus("oci");
    assert!(files.len() > 40);
    for (name, bytes) in files {
        let place = Place::new();
        let mut layout = Layout::plain(&[file("app", "x")]);
        let result = match name.split('-').next().unwrap() {
            "index" => {
                layout.files.insert("index.json".into(), bytes);
                place.import(&layout)
            }
            "layout" => {
                layout.files.insert("oci-layout".into(), bytes);
                place.import(&layout)
            }
            "manifest" => {
                let descriptor = layout.add(MANIFEST, bytes);
                layout.set_index(&[with_name(descriptor, NAME)]);
                place.import(&layout)
            }
            "config" => {
                layout.replace_config(bytes);
                place.import(&layout)
            }
            "docker" => {
                let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"")]}});
                let archive = tarball(&[
                    Entry { content: bytes, ..entry(b'0', "manifest.json") },
                    file("config.json", &config.to_string()),
                ]);
                let path = place.path("source");
                fs::write(&path, archive).unwrap();
                place.store.import(&path, &amd64()).map(drop)
            }
            other => panic!("{other} is no kind of document"),
        };
        let error = result.expect_err(&name);
        assert!(chain(&error).len() > 20, "{name}: says what is wrong: {error}");
        place.assert_untouched(&name);
    }
}
