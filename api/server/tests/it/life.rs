//! Start, stop, and what the region says of itself.

use futures_util::StreamExt as _;
use hearth_client::{Client, Selection};
use hearth_types::{GroupKind, Reason, Revision};

use crate::region::{LIMIT, Region};

#[tokio::test]
async fn the_region_says_what_it_is() {
    let region = Region::start().await;
    let info = region.admin().info().await.unwrap();
    assert_eq!(
        (info.version.as_str(), info.region.as_str(), info.zone.as_str(), info.incarnation.as_str()),
        ("1.2.3", "home", "hearth.internal", "test")
    );
    assert_eq!(info.revision, region.store.revision().0);
}

#[tokio::test]
async fn a_client_configuration_on_disk_is_all_that_a_client_needs() {
    let region = Region::start().await;
    let path = region.directory.path().join("client.yaml");
    region.config(&region.ca.issue_client("admin", &["system:masters"]).unwrap()).save(&path).unwrap();
    let client = Client::connect(&hearth_client::Config::load(&path).unwrap()).unwrap();
    client.info().await.unwrap();
}

#[tokio::test]
async fn stopping_ends_streams_with_a_reason_and_frees_the_port() {
    let mut region = Region::start().await;
    let client = region.admin();
    let mut events = client.watch(&Selection::all(GroupKind::POD), Revision::ZERO).await.unwrap();
    events.next().await.unwrap().unwrap();
    region.stop.cancel();
    let end = tokio::time::timeout(LIMIT, events.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(end.reason, Reason::ServiceUnavailable);
    assert!(end.message.contains("is stopping"), "{end}");
    tokio::time::timeout(LIMIT, &mut region.server).await.unwrap().unwrap().unwrap();
    std::net::TcpListener::bind(&region.address).expect("the port is free");
    let status = client.info().await.unwrap_err();
    assert_eq!(
        status.message,
        format!(
            "cannot reach the region's API at https://{}: connection refused; is it running? (hearth status)",
            region.address
        )
    );
}

#[tokio::test]
async fn a_client_of_another_region_says_that_it_does_not_trust_this_one() {
    let (one, two) = (Region::start().await, Region::start().await);
    let mut config = one.config(&one.ca.issue_client("admin", &[]).unwrap());
    config.clusters[0].cluster.server = format!("https://{}", two.address);
    let status = Client::connect(&config).unwrap().info().await.unwrap_err();
    assert_eq!(status.reason, Reason::ServiceUnavailable);
    assert!(status.message.contains("cannot trust the region's API"), "{status}");
}

#[tokio::test]
async fn curl_trusts_the_server_by_the_ca_and_by_its_name_alone() {
    let region = Region::start().await;
    let ca = region.directory.path().join("ca.pem");
    let (address, port) = region.address.rsplit_once(':').unwrap();
    for (name, good) in [("api.hearth.internal", true), ("other.hearth.internal", false)] {
        let mut curl = tokio::process::Command::new("curl");
        let resolve = format!("{name}:{port}:{address}");
        curl.args(["-sS", "--max-time", "20", "--noproxy", "*", "--http2-prior-knowledge", "-D", "-", "--cacert"])
            .arg(&ca)
            .args(["--resolve", &resolve])
            .arg(format!("https://{name}:{port}/hearth.v1.Region/Info"));
        let output = curl.output().await.expect("curl is installed");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // 60: the peer's certificate cannot be authenticated.
        assert_eq!(output.status.code(), Some(if good { 0 } else { 60 }), "{text}");
        assert_eq!(text.contains("grpc-status: 16"), good, "{text}");
    }
}
