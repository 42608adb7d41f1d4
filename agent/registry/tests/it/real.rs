//! Debian's docker-registry, with images that skopeo pushed.

use std::fs;
use std::sync::Arc;

use hearth_image::Platform;
use hearth_registry::{Credentials, Progress, PullError, Puller};
use tempfile::tempdir;

use crate::image::TestImage;
use crate::registry::Registry;
use crate::support::{amd64, assert_blobs_are_whole, import, insecure, login, pull, pull_with, run};

/// Bytes of a layer.
const LAYER: usize = 700_000;

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_pulled_verified_and_imported() {
    let place = tempdir().unwrap();
    let image = TestImage::new(LAYER);
    image.write_layout(&place.path().join("made"));
    let registry = Registry::start(place.path(), "");
    registry.push(&place.path().join("made"), "a/app:1", &["--all", "--preserve-digests"]);
    let puller = Puller::new(insecure(&[&registry.host])).unwrap();
    let name = format!("{}/a/app:1", registry.host);
    let layout = place.path().join("layout");

    let progress = Progress::default();
    let reference = name.parse().unwrap();
    let known = |_: &[hearth_image::Digest]| vec![];
    let pulled =
        puller.pull(&reference, &amd64(), &Credentials::anonymous(), &layout, &known, &progress).await.unwrap();
    assert_eq!(pulled.digest.to_string(), image.index["digest"]);
    assert_eq!(pulled.manifest.to_string(), image.manifest["digest"]);
    let sizes: u64 = image.layers.iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
    assert_eq!((pulled.layers, pulled.known_layers, pulled.bytes), (4, 0, sizes));
    let end = progress.now();
    assert_eq!((end.layers_done, end.layers_total, end.bytes_done, end.bytes_total), (4, 4, sizes, sizes));
    assert_blobs_are_whole(&layout);
    let record = import(&layout, None);
    assert_eq!((record.reference.as_str(), record.digest), (name.as_str(), pulled.manifest));
    assert_eq!(record.size, 4 * LAYER as u64);

    // By the pin; the image store then wants a name for it.
    let pinned = place.path().join("pinned");
    let name_of_pin = format!("{}/a/app@{}", registry.host, pulled.digest);
    assert_eq!(pull(&puller, &name_of_pin, &pinned).await.unwrap().manifest, pulled.manifest);
    assert_eq!(import(&pinned, Some(&name)).digest, pulled.manifest);

    // The other platform, by the pin, into the same layout.
    let pin = name_of_pin.parse().unwrap();
    let arm = Platform { variant: Some("v8".into()), ..Platform::linux("arm64") };
    let other =
        puller.pull(&pin, &arm, &Credentials::anonymous(), &layout, &known, &Progress::default()).await.unwrap();
    assert_eq!((other.digest, other.layers), (pulled.digest, 1));

    assert_eq!(puller.resolve(&reference, &Credentials::anonymous()).await.unwrap(), pulled.digest);
    let riscv = Platform::linux("riscv64");
    let error = puller
        .pull(&reference, &riscv, &Credentials::anonymous(), &layout, &known, &Progress::default())
        .await
        .unwrap_err();
    assert!(matches!(&error, PullError::NoPlatform { had, .. } if had == "linux/amd64, linux/arm64/v8"), "{error}");
    let error = pull(&puller, &format!("{}/a/app:2", registry.host), &layout).await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }) && error.is_permanent(), "{error}");
    // Not named as insecure: HTTPS, which this registry does not speak.
    let error = pull(&Puller::new(insecure(&[])).unwrap(), &name, &layout).await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }) && !error.is_permanent(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dockers_own_formats_are_pulled_and_imported() {
    let place = tempdir().unwrap();
    // skopeo converts no zstd to Docker's format.
    TestImage::compressed(10_000, ["+gzip"; 4]).write_layout(&place.path().join("made"));
    let registry = Registry::start(place.path(), "");
    registry.push(&place.path().join("made"), "one:1", &["--override-arch=amd64", "--format=v2s2"]);
    registry.push(&place.path().join("made"), "all:1", &["--all", "--format=v2s2"]);
    let puller = Puller::new(insecure(&[&registry.host])).unwrap();
    for name in ["one", "all"] {
        let layout = place.path().join(name);
        let name = format!("{}/{name}:1", registry.host);
        pull(&puller, &name, &layout).await.unwrap();
        let index = fs::read_to_string(layout.join("index.json")).unwrap();
        assert!(index.contains("vnd.docker.distribution.manifest"), "{index}");
        assert_eq!(import(&layout, None).reference, name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_on_the_device_are_not_downloaded() {
    let place = tempdir().unwrap();
    let image = TestImage::new(10_000);
    image.write_layout(&place.path().join("made"));
    let registry = Registry::start(place.path(), "");
    registry.push(&place.path().join("made"), "app:1", &["--all", "--preserve-digests"]);
    let puller = Puller::new(insecure(&[&registry.host])).unwrap();
    let (layout, progress) = (place.path().join("layout"), Progress::default());
    let reference = format!("{}/app:1", registry.host).parse().unwrap();
    let known =
        |diff_ids: &[hearth_image::Digest]| diff_ids.iter().map(|it| image.diff_ids[..3].contains(it)).collect();
    let pulled =
        puller.pull(&reference, &amd64(), &Credentials::anonymous(), &layout, &known, &progress).await.unwrap();
    assert_eq!((pulled.layers, pulled.known_layers), (4, 3));
    let there = |at: usize| {
        let digest = image.layers[at]["digest"].as_str().unwrap().replace("sha256:", "");
        layout.join("blobs/sha256").join(digest).exists()
    };
    assert_eq!([0, 1, 2, 3].map(there), [false, false, false, true]);
    assert_eq!(progress.now().layers_done, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_passwords_wants_the_right_one() {
    let place = tempdir().unwrap();
    TestImage::new(10_000).write_layout(&place.path().join("made"));
    let passwords = place.path().join("passwords");
    run("htpasswd", &["-Bbc", passwords.to_str().unwrap(), "me", "s:cret"]);
    let auth = format!("auth:\n  htpasswd:\n    realm: here\n    path: {}\n", passwords.display());
    let registry = Registry::start(place.path(), &auth);
    registry.push(&place.path().join("made"), "app:1", &["--all", "--dest-creds=me:s:cret"]);
    let puller = Puller::new(insecure(&[&registry.host])).unwrap();
    let (name, layout) = (format!("{}/app:1", registry.host), place.path().join("layout"));
    for wrong in
        [Credentials::anonymous(), login(&registry.host, "me", "wrong"), login("other.example", "me", "s:cret")]
    {
        let error = pull_with(&puller, &name, &layout, &wrong).await.unwrap_err();
        assert!(matches!(error, PullError::Unauthorized { .. }) && error.is_permanent(), "{error}");
        assert!(!format!("{error} {error:?}").contains("wrong"), "{error:?}");
    }
    // As the kubelet does: the more specific entry first, and the other one when it is refused.
    let both = login(&registry.host, "me", "s:cret").and(login(&format!("{}/app", registry.host), "me", "old"));
    let pulled = pull_with(&puller, &name, &layout, &both).await.unwrap();
    assert_eq!(import(&layout, None).digest, pulled.manifest);
    let reference = name.parse().unwrap();
    assert_eq!(puller.resolve(&reference, &both).await.unwrap(), pulled.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_run_as_tasks_and_two_into_one_layout_take_turns() {
    let place = tempdir().unwrap();
    TestImage::new(LAYER).write_layout(&place.path().join("made"));
    let registry = Registry::start(place.path(), "");
    registry.push(&place.path().join("made"), "app:1", &["--all"]);
    let puller = Arc::new(Puller::new(insecure(&[&registry.host])).unwrap());
    let (name, layout) = (format!("{}/app:1", registry.host), place.path().join("layout"));
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let (puller, name, layout) = (puller.clone(), name.clone(), layout.clone());
            tokio::spawn(async move { pull(&puller, &name, &layout).await.unwrap().bytes })
        })
        .collect();
    let mut downloaded = Vec::new();
    for task in tasks {
        downloaded.push(task.await.unwrap());
    }
    assert_eq!(downloaded.iter().filter(|bytes| **bytes > 0).count(), 1, "{downloaded:?}");
    import(&layout, None);
}
