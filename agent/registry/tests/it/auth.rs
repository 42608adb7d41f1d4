//! Tokens: of a real registry with a token server made here, and what must never be sent to whom.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hearth_registry::{Config, Credentials, PullError, Puller};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;
use tempfile::tempdir;

use crate::image::TestImage;
use crate::registry::Registry;
use crate::server::{Reply, Request, Server, Tls, honest};
use crate::support::{import, insecure, login, pull, pull_with};

/// `Authorization` of `me` with the password `secret`.
const BASIC: &str = "Basic bWU6c2VjcmV0";

/// Signs tokens as distribution's "Token Authentication Implementation" wants them.
struct Issuer {
    key: EcdsaKeyPair,
    certificate: Vec<u8>,
}

impl Issuer {
    fn new() -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(vec!["issuer".into()]).unwrap();
        let random = SystemRandom::new();
        let pkcs8 = made.signing_key.serialize_der();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &random).unwrap();
        (Self { key, certificate: made.cert.der().to_vec() }, made.cert.pem())
    }

    /// A token for `scope`, `type:name:action,action`.
    fn token(&self, scope: &str) -> String {
        let mut parts = scope.splitn(3, ':');
        let (kind, name, actions) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
        let actions: Vec<_> = actions.split(',').collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate)]});
        let claims = json!({"iss": "issuer", "sub": "me", "aud": "service", "exp": now + 300, "nbf": now - 60, "iat": now,
            "jti": "1", "access": [{"type": kind, "name": name, "actions": actions}]});
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

fn parameter(request: &Request, name: &str) -> Option<String> {
    let url = reqwest::Url::parse(&format!("http://x{}", request.path)).unwrap();
    url.query_pairs().find(|(had, _)| had == name).map(|(_, value)| value.into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_takes_the_tokens_of_its_token_server() {
    let place = tempdir().unwrap();
    TestImage::new(10_000).write_layout(&place.path().join("made"));
    let (issuer, pem) = Issuer::new();
    fs::write(place.path().join("issuer.pem"), pem).unwrap();
    let tokens = Server::start(move |request| match request.header("authorization") {
        Some(BASIC) => {
            let token = issuer.token(&parameter(request, "scope").unwrap_or_default());
            Reply::ok(json!({"access_token": token, "expires_in": 300}).to_string())
        }
        _ => Reply::status(401),
    })
    .await;
    let auth = format!(
        "auth:\n  token:\n    realm: http://{}/token\n    service: service\n    issuer: issuer\n    rootcertbundle: {}\n",
        tokens.host,
        place.path().join("issuer.pem").display()
    );
    let registry = Registry::start(place.path(), &auth);
    registry.push(&place.path().join("made"), "a/app:1", &["--all", "--dest-creds=me:secret"]);
    let asked = tokens.seen().len();
    let puller = Puller::new(insecure(&[&registry.host])).unwrap();
    let (name, layout) = (format!("{}/a/app:1", registry.host), place.path().join("layout"));
    let pulled = pull_with(&puller, &name, &layout, &login(&registry.host, "me", "secret")).await.unwrap();
    assert_eq!(import(&layout, None).digest, pulled.manifest);
    assert_eq!(tokens.seen().len() - asked, 1, "one token for all of one pull");
    let last = tokens.seen().pop().unwrap();
    assert_eq!(parameter(&last, "scope").as_deref(), Some("repository:a/app:pull"));
    assert_eq!(parameter(&last, "service").as_deref(), Some("service"));
    let wrong = login(&registry.host, "me", "other");
    let error = pull_with(&puller, &name, &place.path().join("other"), &wrong).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
}

/// A registry whose token server gives `token-<n>` for the n-th time, and which accepts those from `valid` on.
async fn counting(valid: Arc<AtomicUsize>) -> (Server, TestImage) {
    let image = TestImage::new(1000);
    let (served, given) = (image.clone(), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        let host = request.header("host").unwrap();
        if request.is_for("/token") {
            let token = format!("token-{}", given.fetch_add(1, Ordering::SeqCst));
            return Reply::ok(json!({"token": token, "expires_in": 300}).to_string());
        }
        let header = request.header("authorization");
        let number: Option<usize> = header.and_then(|it| it.strip_prefix("Bearer token-")?.parse().ok());
        match number {
            Some(number) if number >= valid.load(Ordering::SeqCst) => honest(&served.blobs, &served.index, request),
            _ => Reply::status(401)
                .with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\",service=\"s\"")),
        }
    })
    .await;
    (server, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_kept_for_a_scope_and_login_until_they_are_refused() {
    let place = tempdir().unwrap();
    let valid = Arc::new(AtomicUsize::new(0));
    let (server, _) = counting(valid.clone()).await;
    let puller = Puller::new(insecure(&[&server.host])).unwrap();
    let name = |repository: &str| format!("{}/{repository}:1", server.host);
    let go = async |layout: &str, repository: &str, credentials: &Credentials| {
        pull_with(&puller, &name(repository), &place.path().join(layout), credentials).await.unwrap();
        server.count("/token")
    };
    let (nobody, me) = (Credentials::anonymous(), login(&server.host, "me", "secret"));
    assert_eq!(go("1", "a", &nobody).await, 1);
    assert_eq!(go("2", "a", &nobody).await, 1, "the token is kept between pulls");
    assert_eq!(go("3", "b", &nobody).await, 2, "and is for one repository");
    assert_eq!(go("4", "a", &me).await, 3, "and for one login");
    let last = server.seen().into_iter().rfind(|request| request.is_for("/token")).unwrap();
    assert_eq!(last.header("authorization"), Some(BASIC));
    assert_eq!(go("5", "a", &nobody).await, 3);
    // Revoked before its time.
    valid.store(3, Ordering::SeqCst);
    assert_eq!(go("6", "a", &nobody).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_host_sees_the_authorization() {
    let place = tempdir().unwrap();
    let image = TestImage::new(1000);
    let (served, stored) = (image.clone(), image.clone());
    let store = Server::start(move |request| {
        let digest = request.path.rsplit('/').next().unwrap();
        stored.blobs.0.get(digest).map_or(Reply::status(404), |bytes| Reply::ok(bytes.clone()))
    })
    .await;
    let to = store.host.clone();
    let server = Server::start(move |request| match request.header("authorization") {
        None => Reply::status(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(BASIC) if request.is_for("/blobs/") => {
            let digest = request.path.rsplit('/').next().unwrap();
            // A login in the URL must not become one, either.
            Reply::redirect(format!("http://evil:login@{to}/store/blobs/{digest}"))
        }
        Some(_) => honest(&served.blobs, &served.index, request),
    })
    .await;
    let puller = Puller::new(insecure(&[&server.host, &store.host])).unwrap();
    let credentials = login(&server.host, "me", "secret");
    let layout = place.path().join("layout");
    pull_with(&puller, &format!("{}/a:1", server.host), &layout, &credentials).await.unwrap();
    import(&layout, None);
    let seen = store.seen();
    assert_eq!(seen.len(), 5, "four layers and a configuration");
    assert!(seen.iter().all(|request| request.header("authorization").is_none()), "{seen:?}");
    assert!(server.seen().iter().any(|request| request.header("authorization") == Some(BASIC)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_of_another_host_is_not_answered() {
    let place = tempdir().unwrap();
    let image = TestImage::new(1000);
    let thief = Server::start(|request| {
        let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
        if request.is_for("/token") {
            Reply::ok(json!({"token": "t"}).to_string())
        } else {
            Reply::status(401).with("WWW-Authenticate", realm)
        }
    })
    .await;
    let to = thief.host.clone();
    let server = Server::start(move |request| {
        if request.is_for("/blobs/") {
            Reply::redirect(format!("http://{to}/blob"))
        } else {
            honest(&image.blobs, &image.index, request)
        }
    })
    .await;
    let puller = Puller::new(insecure(&[&server.host, &thief.host])).unwrap();
    let credentials = login(&server.host, "me", "secret").and(login(&thief.host, "me", "secret"));
    let error =
        pull_with(&puller, &format!("{}/a:1", server.host), &place.path().join("l"), &credentials).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    assert_eq!(thief.count("/token"), 0);
    assert!(thief.seen().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_not_sent_to_a_realm_in_plain_http() {
    let place = tempdir().unwrap();
    let (tls, tokens) = (Tls::new(), Server::start(|_| Reply::ok(json!({"token": "t"}).to_string())).await);
    let realm = format!("Bearer realm=\"http://{}/token\"", tokens.host);
    let server = Server::start_tls(&tls, move |_| Reply::status(401).with("WWW-Authenticate", realm.clone())).await;
    // That the realm's host may be spoken to in HTTP does not help: the registry's is what counts.
    let config = Config { extra_roots: vec![tls.root.clone()], ..insecure(&[&tokens.host]) };
    let puller = Puller::new(config).unwrap();
    let credentials = login(&server.host, "me", "secret");
    let layout = place.path().join("layout");
    let error = pull_with(&puller, &format!("{}/a:1", server.host), &layout, &credentials).await.unwrap_err();
    assert!(matches!(&error, PullError::Unauthorized { reason, .. } if reason.contains("not HTTPS")), "{error}");
    assert!(tokens.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_repeats_secrets_does_not_get_them_into_messages() {
    let place = tempdir().unwrap();
    let server = Server::start(|request| match request.header("authorization") {
        None => Reply::status(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(had) => {
            let message = format!("bad login {had} for me:secret");
            let body = json!({"errors": [{"code": "DENIED", "message": message}]}).to_string();
            Reply::new(400, crate::server::Body::Full(body.into_bytes()))
        }
    })
    .await;
    let puller = Puller::new(insecure(&[&server.host])).unwrap();
    let credentials = login(&server.host, "me", "secret");
    let layout = place.path().join("layout");
    let error = pull_with(&puller, &format!("{}/a:1", server.host), &layout, &credentials).await.unwrap_err();
    assert!(matches!(error, PullError::Refused { .. }), "{error}");
    for shown in [error.to_string(), format!("{error:?}"), format!("{puller:?} {credentials:?}")] {
        assert!(!shown.contains("bWU6c2Vj") && !shown.contains(":secret"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_resolved_by_head_or_else_by_get() {
    let image = TestImage::new(1000);
    let digest = image.index["digest"].as_str().unwrap();
    let reference = |server: &Server| format!("{}/a:1", server.host).parse().unwrap();
    let (blobs, index) = (image.blobs.clone(), image.index.clone());
    let by_head = Server::start(move |request| honest(&blobs, &index, request)).await;
    let (blobs, index) = (image.blobs.clone(), image.index.clone());
    let by_get = Server::start(move |request| match request.method.as_str() {
        "HEAD" => Reply::status(405),
        _ => honest(&blobs, &index, request),
    })
    .await;
    for (server, requests) in [(&by_head, 1), (&by_get, 2)] {
        let puller = Puller::new(insecure(&[&server.host])).unwrap();
        let resolved = puller.resolve(&reference(server), &Credentials::anonymous()).await.unwrap();
        assert_eq!((resolved.to_string().as_str(), server.seen().len()), (digest, requests));
        assert_eq!(server.count("/blobs/"), 0);
    }
    let pin = format!("nobody.invalid/a@{digest}").parse().unwrap();
    let puller = Puller::new(Config::default()).unwrap();
    assert_eq!(puller.resolve(&pin, &Credentials::anonymous()).await.unwrap().to_string(), digest);
    let bare = digest.parse().unwrap();
    assert!(matches!(puller.resolve(&bare, &Credentials::anonymous()).await, Err(PullError::NoName(_))));
    let error = pull(&puller, digest, std::path::Path::new("/nonexistent")).await.unwrap_err();
    assert!(matches!(error, PullError::NoName(_)), "{error}");
}
