//! Registries that lie, stall, loop and flood. Whatever they do, the pull ends with the error that says so, and nothing that is not verified
//! has the name of a blob.

use std::time::Duration;

use hearth_registry::{Config, Credentials, PullError, PullLimits, Puller};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::image::{Blobs, INDEX, MANIFEST, TestImage};
use crate::server::{Body, Reply, Request, Server, Tls, honest};
use crate::support::{assert_blobs_are_whole, insecure, pull, pull_with};

/// The error's name, and a part of its words.
type Expected = (&'static str, &'static str);
/// What the registry answers where it is not honest.
type Lie = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

fn name_of(error: &PullError) -> &'static str {
    match error {
        PullError::NoName(_) => "NoName",
        PullError::NotAllowed { .. } => "NotAllowed",
        PullError::NotPublic { .. } => "NotPublic",
        PullError::NotFound { .. } => "NotFound",
        PullError::Unauthorized { .. } => "Unauthorized",
        PullError::Unreachable { .. } => "Unreachable",
        PullError::TooManyRequests { .. } => "TooManyRequests",
        PullError::Refused { .. } => "Refused",
        PullError::Corrupt { .. } => "Corrupt",
        PullError::Invalid { .. } => "Invalid",
        PullError::NoPlatform { .. } => "NoPlatform",
        PullError::Unsupported { .. } => "Unsupported",
        PullError::TooLarge { .. } => "TooLarge",
        PullError::DiskFull { .. } => "DiskFull",
        PullError::Io { .. } => "Io",
    }
}

/// Short times, for registries that wait for the client to lose patience.
fn impatient(host: &str) -> Config {
    let config = insecure(&[host]);
    let limits = PullLimits {
        headers: Duration::from_millis(300),
        connect: Duration::from_millis(300),
        idle: Duration::from_millis(300),
        slow_window: Duration::from_millis(200),
        tries: 2,
        ..config.limits
    };
    Config { limits, ..config }
}

async fn lies(what: &str, blobs: Blobs, top: Value, lie: Lie, expected: Expected) -> Server {
    let place = tempdir().unwrap();
    let server = Server::start(move |request| lie(request).unwrap_or_else(|| honest(&blobs, &top, request))).await;
    let puller = Puller::new(impatient(&server.host)).unwrap();
    let layout = place.path().join("layout");
    let result = pull(&puller, &format!("{}/a/app:1", server.host), &layout).await;
    let error = result.expect_err(what);
    assert_eq!(name_of(&error), expected.0, "{what}: {error}");
    assert!(error.to_string().contains(expected.1), "{what}: {error}");
    assert!(error.to_string().len() < 1000, "{what}: {error}");
    assert_blobs_are_whole(&layout);
    assert!(!layout.join("index.json").exists(), "{what}");
    server
}

fn on(part: impl Into<String>, reply: Reply) -> Lie {
    let part = part.into();
    Box::new(move |request| request.is_for(&part).then(|| reply.clone()))
}

/// A registry that wants a token, of `token`.
fn wants_token(token: Reply) -> Lie {
    Box::new(move |request| {
        if request.is_for("/token") {
            return Some(token.clone());
        }
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", request.header("host").unwrap());
        Some(Reply::status(401).with("WWW-Authenticate", realm))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_blobs() {
    let image = TestImage::new(5000);
    let layer = &image.layers[1];
    let (digest, bytes) = (layer["digest"].as_str().unwrap(), image.blobs.0[layer["digest"].as_str().unwrap()].clone());
    let mut other = bytes.clone();
    other[100] ^= 1;
    let longer = [&bytes[..], b"x"].concat();
    let cut = Body::Cut(bytes[..50].to_vec(), bytes.len());
    for (what, reply, expected) in [
        ("other bytes", Reply::ok(other.clone()), ("Corrupt", "another digest")),
        ("other bytes in chunks", Reply::new(200, Body::Chunked(other)), ("Corrupt", "another digest")),
        ("a shorter length", Reply::ok(&bytes[1..]), ("Corrupt", "bytes and should have")),
        ("a longer length", Reply::ok(longer.clone()), ("Corrupt", "bytes and should have")),
        ("more chunks", Reply::new(200, Body::Chunked(longer)), ("Corrupt", "more than")),
        ("an endless body", Reply::new(200, Body::Endless), ("Corrupt", "more than")),
        ("a body that always ends at once", Reply::new(200, cut), ("Unreachable", "")),
        ("fewer chunks", Reply::new(200, Body::Chunked(bytes[..9].to_vec())), ("Unreachable", "bytes early")),
        ("a trickle", Reply::new(200, Body::Trickle(bytes.clone())), ("Unreachable", "bytes in")),
        ("silence", Reply::new(200, Body::Silent(bytes[..9].to_vec(), bytes.len())), ("Unreachable", "nothing came")),
        ("not even a head", Reply::new(200, Body::Mute), ("Unreachable", "no answer within")),
        ("a range that nobody wanted", crate::server::partial(&bytes, 7), ("Corrupt", "not asked for")),
        ("416 for all of it", Reply::status(416), ("Corrupt", "not asked for")),
        ("404", Reply::status(404), ("NotFound", "blob sha256:")),
        ("403", Reply::status(403), ("Unauthorized", "403")),
        ("418", Reply::status(418), ("Refused", "418")),
        ("500", Reply::status(500), ("Unreachable", "500")),
        ("204", Reply::status(204), ("Refused", "204")),
        ("a redirect without a place", Reply::status(302), ("Invalid", "says not where to")),
        ("a redirect to a file", Reply::redirect("file:///etc/passwd"), ("Invalid", "\"file\"")),
        (
            "a redirect to another HTTP host",
            Reply::redirect("http://127.0.0.2:1/"),
            ("Invalid", "not named as insecure"),
        ),
        ("a redirect to itself", Reply::redirect("?again"), ("Invalid", "more than 5 redirects")),
        ("a redirect to nonsense", Reply::redirect("http://["), ("Invalid", "no URL")),
    ] {
        lies(what, image.blobs.clone(), image.index.clone(), on(digest, reply), expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_manifests() {
    let image = TestImage::new(1000);
    let schema1 = json!({"schemaVersion": 1, "name": "a", "tag": "1", "fsLayers": [], "history": []}).to_string();
    let both = json!({"schemaVersion": 2, "manifests": [], "layers": [], "config": {}}).to_string();
    let bomb = format!("{{\"manifests\":{}", "[".repeat(1_000_000));
    let wide = format!("{{\"schemaVersion\":2,\"manifests\":[{}]}}", vec!["1"; 2_000_000].join(","));
    let entries = format!(
        "{{\"schemaVersion\":2,\"manifests\":[{}]}}",
        vec![json!({"mediaType": "x", "digest": image.index["digest"], "size": 1}).to_string(); 1025].join(",")
    );
    for (what, reply, expected) in [
        ("5 MB", Reply::ok(vec![b' '; 5_000_000]), ("Invalid", "more than 4194304 bytes")),
        ("endless", Reply::new(200, Body::Endless), ("Invalid", "more than 4194304 bytes")),
        ("schema 1", Reply::ok(schema1), ("Unsupported", "schema 1")),
        ("two things at once", Reply::ok(both), ("Invalid", "")),
        ("deep brackets", Reply::ok(bomb), ("Invalid", "EOF")),
        ("a wide list of nothing", Reply::ok(wide), ("Invalid", "")),
        ("too many entries", Reply::ok(entries), ("Invalid", "1025 entries")),
        ("no JSON", Reply::ok("<html>"), ("Invalid", "expected value")),
        ("nothing", Reply::ok(""), ("Invalid", "EOF")),
        (
            "another digest in the header",
            Reply::ok("{}").with("Docker-Content-Digest", image.index["digest"].as_str().unwrap()),
            ("Corrupt", "should be"),
        ),
        (
            "an unknown kind",
            Reply::ok(json!({"schemaVersion": 2, "mediaType": "text/x"}).to_string()),
            ("Unsupported", "text/x"),
        ),
    ] {
        lies(what, image.blobs.clone(), image.index.clone(), on("/manifests/1", reply), expected).await;
    }
    let other = Reply::ok(vec![b'x'; image.manifest["size"].as_u64().unwrap() as usize]);
    let manifest = on(image.manifest["digest"].as_str().unwrap(), other);
    lies("another manifest", image.blobs.clone(), image.index.clone(), manifest, ("Corrupt", "another digest")).await;
    let longer = on(image.manifest["digest"].as_str().unwrap(), Reply::new(200, Body::Endless));
    lies("an endless manifest", image.blobs, image.index, longer, ("Corrupt", "should have")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_held_against_the_bytes() {
    let image = TestImage::new(1000);
    let place = tempdir().unwrap();
    let pin = image.index["digest"].as_str().unwrap().to_owned();
    // The manifest of one platform in place of the index, with the header that the client hopes for.
    let manifest = image.blobs.0[image.manifest["digest"].as_str().unwrap()].clone();
    let (blobs, index, header) = (image.blobs.clone(), image.index.clone(), pin.clone());
    let server = Server::start(move |request| {
        if request.is_for("/manifests/") {
            Reply::ok(manifest.clone()).with("Docker-Content-Digest", header.clone())
        } else {
            honest(&blobs, &index, request)
        }
    })
    .await;
    let puller = Puller::new(insecure(&[&server.host])).unwrap();
    for name in [format!("{}/app@{pin}", server.host), format!("{}/app:1", server.host)] {
        let error = pull(&puller, &name, &place.path().join("layout")).await.unwrap_err();
        let right = matches!(&error, PullError::Corrupt { reason, .. } if reason.contains(&format!("should be {pin}")));
        assert!(right && !error.is_permanent(), "{error}");
    }
    assert_eq!(std::fs::read_dir(place.path().join("layout/blobs/sha256")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_lead_nowhere() {
    let image = TestImage::new(1000);
    let honestly = || -> Lie { Box::new(|_| None) };

    let digest = image.index["digest"].as_str().unwrap();
    let itself = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": INDEX, "digest": digest, "size": 1}]});
    let mut bytes = itself.to_string();
    // Right in size, and wrong in digest: no document can name its own.
    let length = bytes.len();
    bytes = bytes.replace("\"size\":1", &format!("\"size\":{}", length + 2));
    let contains_itself = on("/manifests/", Reply::ok(bytes));
    lies("an index in itself", image.blobs.clone(), image.index.clone(), contains_itself, ("Corrupt", "digest")).await;

    let mut blobs = image.blobs.clone();
    let mut top = image.index.clone();
    for _ in 0..3 {
        top = blobs.index(&[top]);
    }
    lies("indexes in indexes", blobs, top, honestly(), ("Invalid", "nested deeper")).await;

    let mut blobs = image.blobs.clone();
    let many: Vec<_> = (0..60u8)
        .map(|n| blobs.manifest("amd64", &[hearth_image::Digest::of(&[n])], std::slice::from_ref(&image.layers[0])))
        .collect();
    let top = blobs.index(&many);
    lies("a document for everybody", blobs, top, honestly(), ("Invalid", "documents of one image")).await;

    for (what, change, expected) in [
        (
            "a foreign layer",
            json!({"urls": ["https://other.example/layer"]}),
            ("Unsupported", "outside of the registry"),
        ),
        ("a layer of 2^63 bytes", json!({"size": 1u64 << 63}), ("TooLarge", "limit is 34359738368")),
        ("a layer that is a program", json!({"mediaType": "application/x-elf"}), ("Unsupported", "x-elf")),
        ("a layer of sha512", json!({"digest": "sha512:00"}), ("Invalid", "sha512")),
        ("a layer with a path", json!({"digest": "sha256:../../etc"}), ("Invalid", "not of the form")),
        ("a negative size", json!({"size": -1}), ("Invalid", "")),
    ] {
        let mut blobs = image.blobs.clone();
        let mut layers = image.layers.clone();
        layers[2].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let top = blobs.manifest("amd64", &image.diff_ids, &layers);
        lies(what, blobs, top, honestly(), expected).await;
    }

    let mut blobs = image.blobs.clone();
    let top = blobs.manifest("amd64", &image.diff_ids[..2], &image.layers);
    lies("fewer diff ids than layers", blobs, top, honestly(), ("Invalid", "4 layers")).await;

    let mut blobs = image.blobs.clone();
    let signature = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": "application/x", "digest": digest, "size": 1}, "layers": [image.layers[0]]});
    let top = blobs.put(MANIFEST, signature.to_string().into_bytes());
    lies("a signature", blobs, top, honestly(), ("Unsupported", "application/x")).await;

    let mut blobs = image.blobs.clone();
    let mut arm = image.manifest.clone();
    arm["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let top = blobs.index(&[arm]);
    lies("only for others", blobs, top, honestly(), ("NoPlatform", "linux/arm64")).await;

    let mut blobs = image.blobs.clone();
    let mut liar = blobs.manifest("arm64", &image.diff_ids, &image.layers);
    liar["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let top = blobs.index(&[liar]);
    lies("another platform than the index says", blobs, top, honestly(), ("NoPlatform", "linux/arm64")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn challenges_and_tokens_that_are_traps() {
    let image = TestImage::new(1000);
    let challenge = |text: String| on("/v2/", Reply::status(401).with("WWW-Authenticate", text));
    let token = |token: &str| wants_token(Reply::ok(json!({"token": token}).to_string()));
    for (what, lie, expected) in [
        ("401 without a challenge", on("/v2/", Reply::status(401)), ("Unauthorized", "")),
        (
            "a challenge of 20 KB",
            challenge(format!("Bearer realm=\"{}\"", "x".repeat(20_000))),
            ("Invalid", "limit is 8192"),
        ),
        ("a malformed challenge", challenge("Bearer realm=\"x".into()), ("Invalid", "malformed")),
        ("a realm that is no URL", challenge("Bearer realm=\"/token\"".into()), ("Invalid", "no URL")),
        ("a realm that is a file", challenge("Bearer realm=\"file:///etc/passwd\"".into()), ("Invalid", "no URL")),
        (
            "a realm over gopher",
            challenge("Bearer realm=\"gopher://127.0.0.1/\"".into()),
            ("Unauthorized", "not HTTPS"),
        ),
        ("a scheme that nobody has", challenge("Negotiate".into()), ("Unauthorized", "not by Bearer")),
        ("a password for a public image", challenge("Basic realm=\"x\"".into()), ("Unauthorized", "wants a login")),
        ("401 for ever", token("abc"), ("Unauthorized", "")),
        ("a token of 1 MB", token(&"x".repeat(1_000_000)), ("Invalid", "longer than 65536")),
        ("an endless token", wants_token(Reply::new(200, Body::Endless)), ("Invalid", "longer than 65536")),
        ("a token with a line break", token("a\r\nX-Evil: 1"), ("Invalid", "characters")),
        ("an empty token", token(""), ("Invalid", "empty")),
        ("a token that is no JSON", wants_token(Reply::ok("abc")), ("Invalid", "not JSON")),
        ("a token server that refuses", wants_token(Reply::status(403)), ("Unauthorized", "403")),
        ("a token server that fails", wants_token(Reply::status(503)), ("Unreachable", "503")),
    ] {
        let server = lies(what, image.blobs.clone(), image.index.clone(), lie, expected).await;
        assert!(server.seen().len() < 12, "{what}: {} requests", server.seen().len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_for_patience_gets_it_within_bounds() {
    let image = TestImage::new(1000);
    let late = Reply::status(429).with("Retry-After", "3600");
    let server =
        lies("an hour", image.blobs.clone(), image.index.clone(), on("/v2/", late), ("TooManyRequests", "")).await;
    assert_eq!(server.seen().len(), 1, "asked again before its time");
    let soon = Reply::status(429).with("Retry-After", "0");
    let server =
        lies("for ever", image.blobs.clone(), image.index.clone(), on("/v2/", soon), ("TooManyRequests", "")).await;
    assert_eq!(server.seen().len(), 2);

    let asked = std::sync::atomic::AtomicU32::new(0);
    let place = tempdir().unwrap();
    let server = Server::start(move |request| match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Reply::status(429).with("Retry-After", "1"),
        1 => Reply::status(502),
        _ => honest(&image.blobs, &image.index, request),
    })
    .await;
    let begun = std::time::Instant::now();
    let puller = Puller::new(insecure(&[&server.host])).unwrap();
    pull(&puller, &format!("{}/app:1", server.host), &place.path().join("layout")).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "Retry-After was not obeyed");
}

#[tokio::test(flavor = "multi_thread")]
async fn https_never_becomes_http() {
    let image = TestImage::new(1000);
    let place = tempdir().unwrap();
    let tls = Tls::new();
    let plain = Server::start(|_| Reply::ok("")).await;
    let layer = image.layers[0]["digest"].as_str().unwrap().to_owned();
    let to = format!("http://{}/blob", plain.host);
    let (blobs, index) = (image.blobs.clone(), image.index.clone());
    let server = Server::start_tls(&tls, move |request| {
        if request.is_for(&layer) { Reply::redirect(to.clone()) } else { honest(&blobs, &index, request) }
    })
    .await;
    // Even where the other host may be spoken to in HTTP.
    let config = insecure(&[&plain.host]);
    let name = format!("{}/app:1", server.host);
    let trusting = Puller::new(Config { extra_roots: vec![tls.root.clone()], ..config.clone() }).unwrap();
    let error = pull(&trusting, &name, &place.path().join("layout")).await.unwrap_err();
    assert!(matches!(&error, PullError::Invalid { reason, .. } if reason.contains("from https to http")), "{error}");
    assert!(plain.seen().is_empty());
    // Without that redirect, HTTPS with the extra root pulls.
    let good = Server::start_tls(&tls, move |request| honest(&image.blobs, &image.index, request)).await;
    pull(&trusting, &format!("{}/app:1", good.host), &place.path().join("good")).await.unwrap();
    // And a certificate of nobody is refused.
    let strict = Puller::new(config).unwrap();
    let error = pull(&strict, &name, &place.path().join("other")).await.unwrap_err();
    assert!(matches!(&error, PullError::Unreachable { reason, .. } if reason.contains("certificate")), "{error}");
    let bad = Puller::new(Config { extra_roots: vec![b"no PEM".to_vec()], ..Config::default() }).unwrap_err();
    assert!(bad.to_string().contains("number 1"), "{bad}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_the_disk_is_not_begun() {
    let image = TestImage::new(1000);
    let place = tempdir().unwrap();
    let mut blobs = image.blobs.clone();
    let mut layers = image.layers.clone();
    layers[0]["size"] = json!(1u64 << 50);
    let top = blobs.manifest("amd64", &image.diff_ids, &layers);
    let server = Server::start(move |request| honest(&blobs, &top, request)).await;
    let mut config = insecure(&[&server.host]);
    config.limits.image_bytes = u64::MAX;
    let puller = Puller::new(config).unwrap();
    let layout = place.path().join("layout");
    let error =
        pull_with(&puller, &format!("{}/app:1", server.host), &layout, &Credentials::anonymous()).await.unwrap_err();
    assert!(matches!(error, PullError::DiskFull { .. }) && !error.is_permanent(), "{error}");
    let digest = layers[0]["digest"].as_str().unwrap();
    assert_eq!(server.count(digest), 0);
}
