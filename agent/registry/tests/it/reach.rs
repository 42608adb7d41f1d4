//! No image's name, and no registry by what it answers, leads a device into its own home.

use std::sync::Arc;

use hearth_registry::{Config, PullError, Puller, Reach};
use tempfile::tempdir;

use crate::image::TestImage;
use crate::server::{Reply, Server, honest};
use crate::support::{insecure, login, pull, pull_with};

/// Nothing but what is named in `local` may be at an address of this machine.
fn guarded(hosts: &[&str], local: &[&str]) -> Config {
    let local = local.iter().map(|host| (*host).to_owned()).collect();
    let is_public = |address: std::net::IpAddr| !address.is_loopback();
    Config { reach: Reach { is_public: Some(Arc::new(is_public)), local }, ..insecure(hosts) }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_the_home_are_reached_by_hosts_that_are_named_alone() {
    let place = tempdir().unwrap();
    let image = TestImage::new(1000);
    let server = Server::start(move |request| honest(&image.blobs, &image.index, request)).await;
    let port = server.host.rsplit_once(':').unwrap().1;
    for host in ["127.0.0.1", "localhost", "[::ffff:7f00:1]", "[::1]"] {
        let place_of = format!("{host}:{port}");
        let name = format!("{place_of}/a/app:1");
        let puller = Puller::new(guarded(&[&place_of], &[])).unwrap();
        let layout = place.path().join(host.replace([':', '[', ']'], "-"));
        let error = pull(&puller, &name, &layout).await.unwrap_err();
        assert!(matches!(error, PullError::NotPublic { .. }) && error.is_permanent(), "{host}: {error}");
    }
    assert!(server.seen().is_empty(), "nobody knocked");
    for host in ["127.0.0.1", "localhost"] {
        let place_of = format!("{host}:{port}");
        let puller = Puller::new(guarded(&[&place_of], &[host])).unwrap();
        pull(&puller, &format!("{place_of}/a/app:1"), &place.path().join(format!("{host}-named"))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_redirects_nor_token_servers_lead_there() {
    let place = tempdir().unwrap();
    let router = Server::start(|_| Reply::status(200)).await;
    let port = router.host.rsplit_once(':').unwrap().1.to_owned();
    // The registry itself is named, the router is not, whatever it is called.
    for inside in [format!("localhost:{port}"), format!("127.0.0.2:{port}")] {
        let target = format!("http://{inside}/admin");
        let answers = [
            Reply::status(307).with("location", &target),
            Reply::status(401).with("www-authenticate", format!("Bearer realm=\"{target}\",service=\"x\"")),
        ];
        for (at, answer) in answers.into_iter().enumerate() {
            let registry = Server::start(move |_| answer.clone()).await;
            let puller = Puller::new(guarded(&[&registry.host, &inside], &["127.0.0.1"])).unwrap();
            let name = format!("{}/a/app:1", registry.host);
            let layout = place.path().join(format!("{at}-{}", inside.replace(':', "-")));
            let error = pull_with(&puller, &name, &layout, &login(&registry.host, "me", "secret")).await.unwrap_err();
            assert!(matches!(error, PullError::NotPublic { .. }), "{inside}: {error}");
        }
    }
    assert!(router.seen().is_empty(), "nobody knocked");
}
