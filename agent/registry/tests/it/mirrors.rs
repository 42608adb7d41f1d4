//! Mirrors are asked first, and passed over where they cannot help.

use hearth_registry::{Config, PullError, Puller};
use tempfile::tempdir;

use crate::image::TestImage;
use crate::server::{Reply, Server, honest};
use crate::support::{assert_blobs_are_whole, import, insecure, login, pull, pull_with};

/// A configuration with these mirrors before `origin`, all spoken to in HTTP.
fn mirrored(origin: &str, mirrors: &[&str]) -> Config {
    let hosts: Vec<_> = mirrors.iter().map(|mirror| mirror.split('/').next().unwrap()).chain([origin]).collect();
    let mirrors = mirrors.iter().map(|mirror| (*mirror).to_owned()).collect();
    Config { mirrors: [(origin.to_owned(), mirrors)].into(), ..insecure(&hosts) }
}

async fn serving(image: &TestImage) -> Server {
    let image = image.clone();
    Server::start(move |request| honest(&image.blobs, &image.index, request)).await
}

/// A host where nobody listens.
async fn nobody() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_mirror_that_has_the_image_serves_it() {
    let place = tempdir().unwrap();
    let image = TestImage::new(1000);
    let (down, origin, second) = (nobody().await, serving(&image).await, serving(&image).await);
    let empty = Server::start(|_| Reply::status(404)).await;
    let broken = Server::start(|_| Reply::status(500)).await;
    let prefixed = format!("{}/cache/hub/", second.host);
    let mirrors = [down.as_str(), &empty.host, &broken.host, &prefixed];
    let puller = Puller::new(mirrored(&origin.host, &mirrors)).unwrap();
    let layout = place.path().join("layout");
    let name = format!("{}/a/app:1", origin.host);
    pull(&puller, &name, &layout).await.unwrap();
    // Under the name of the registry, not of the mirror.
    assert_eq!(import(&layout, None).reference, name);
    assert!(origin.seen().is_empty());
    assert!(second.seen().iter().all(|request| request.path.starts_with("/v2/cache/hub/a/app/")));
    assert_eq!((empty.seen().len(), broken.seen().len()), (1, 1), "a mirror that fails is asked once in a pull");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_lies_is_passed_over() {
    let place = tempdir().unwrap();
    let image = TestImage::new(1000);
    let origin = serving(&image).await;
    let other = image.clone();
    let layer = image.layers[0]["digest"].as_str().unwrap().to_owned();
    let length = image.layers[0]["size"].as_u64().unwrap() as usize;
    let of = layer.clone();
    let liar = Server::start(move |request| {
        if request.is_for(&of) { Reply::ok(vec![0; length]) } else { honest(&other.blobs, &other.index, request) }
    })
    .await;
    let puller = Puller::new(mirrored(&origin.host, &[&liar.host])).unwrap();
    let layout = place.path().join("layout");
    pull(&puller, &format!("{}/app:1", origin.host), &layout).await.unwrap();
    assert_blobs_are_whole(&layout);
    import(&layout, None);
    assert_eq!((liar.count(&layer), origin.count(&layer), origin.seen().len()), (1, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_a_mirror_broke_off_goes_on_at_the_registry() {
    let place = tempdir().unwrap();
    let image = TestImage::new(400_000);
    let origin = serving(&image).await;
    let (other, layer) = (image.clone(), image.layers[0]["digest"].as_str().unwrap().to_owned());
    let of = layer.clone();
    let mirror = Server::start(move |request| {
        let bytes = &other.blobs.0[&of];
        if request.is_for(&of) {
            Reply::new(200, crate::server::Body::Cut(bytes[..100_000].to_vec(), bytes.len()))
        } else {
            honest(&other.blobs, &other.index, request)
        }
    })
    .await;
    let puller = Puller::new(mirrored(&origin.host, &[&mirror.host])).unwrap();
    let layout = place.path().join("layout");
    pull(&puller, &format!("{}/app:1", origin.host), &layout).await.unwrap();
    import(&layout, None);
    let asked = origin.seen().into_iter().find(|request| request.is_for(&layer)).unwrap();
    assert_eq!(asked.header("range"), Some("bytes=100000-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_fail_the_registrys_own_error_is_told() {
    let place = tempdir().unwrap();
    let (mirror, origin) = (nobody().await, Server::start(|_| Reply::status(404)).await);
    let puller = Puller::new(mirrored(&origin.host, &[&mirror])).unwrap();
    let name = format!("{}/app:1", origin.host);
    let error = pull(&puller, &name, &place.path().join("layout")).await.unwrap_err();
    assert!(matches!(&error, PullError::NotFound { host, .. } if *host == origin.host), "{error}");
    let down = nobody().await;
    let puller = Puller::new(mirrored(&down, &[&origin.host])).unwrap();
    let error = pull(&puller, &format!("{down}/app:1"), &place.path().join("layout")).await.unwrap_err();
    assert!(matches!(&error, PullError::Unreachable { host, .. } if *host == down), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_not_shown_the_registrys_login() {
    let place = tempdir().unwrap();
    let image = TestImage::new(1000);
    let asks = |request: &crate::server::Request| match request.header("authorization") {
        None => Some(Reply::status(401).with("WWW-Authenticate", "Basic realm=\"x\"")),
        Some(_) => None,
    };
    let origin = {
        let image = image.clone();
        Server::start(move |request| asks(request).unwrap_or_else(|| honest(&image.blobs, &image.index, request))).await
    };
    let mirror = Server::start(move |request| asks(request).unwrap_or_else(|| Reply::status(500))).await;
    let puller = Puller::new(mirrored(&origin.host, &[&mirror.host])).unwrap();
    let credentials = login(&origin.host, "me", "secret");
    pull_with(&puller, &format!("{}/app:1", origin.host), &place.path().join("layout"), &credentials).await.unwrap();
    assert!(!mirror.seen().is_empty() && mirror.seen().iter().all(|request| request.header("authorization").is_none()));
}
