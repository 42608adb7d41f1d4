//! Who may come in, and who may do what.

use std::sync::Arc;

use hearth_api::CertificateAuthority;
use hearth_client::{Client, DeleteOptions, Selection, WriteOptions, convert, device};
use hearth_proto::v1;
use hearth_types::{GroupKind, Reason, Status, Timestamp, kinds, token::JoinToken};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::json;
use tonic::transport::Channel;

use crate::region::{LIMIT, Region, ZONE, config_map, eventually, key, seed, session};

/// What each service answers to a caller: `None` where it lets the caller in.
async fn refusals(channel: &Channel) -> [Option<Reason>; 4] {
    let client = Client::from_channel(channel.clone());
    let join = v1::JoinRequest { token: "a.b".into(), device_name: "x".into(), owner: String::new() };
    let mut enrollment = v1::enrollment_client::EnrollmentClient::new(channel.clone());
    let joined = enrollment.join(join).await.map_err(|error| convert::status(&error)).unwrap_err();
    [
        client.list(&Selection::all(GroupKind::POD)).await.err().map(|status| status.reason),
        client.info().await.err().map(|status| status.reason),
        session(channel).await.err().map(|status| status.reason),
        // The door lets everybody in; the token is none.
        (!joined.message.contains("the join token is not known")).then_some(joined.reason),
    ]
}

async fn add_device(client: &Client, name: &str, owner: &str, keys: &[String]) {
    let device = json!({"apiVersion": kinds::API_VERSION, "kind": "Device", "metadata": {"name": name},
        "spec": {"owner": owner, "keys": keys}});
    client.apply(&device, &WriteOptions::default()).await.unwrap();
}

#[tokio::test]
async fn everybody_may_what_they_may() {
    use Reason::{Forbidden, InternalError, Unauthorized};
    let region = Region::start().await;
    let admin = region.admin();
    let (known, unknown) = (seed(1), seed(2));
    add_device(&admin, "nas", "alice", &[known.key().to_string()]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let clock = Arc::new(hearth_api::SystemClock);
    let other_ca = CertificateAuthority::load_or_create(elsewhere.path(), ZONE, clock).unwrap();
    let imposter = other_ca.issue_client("admin", &["system:masters"]).unwrap();
    let server = region.ca.issue_server(&["api.hearth.internal".into()]).unwrap();
    let channels = [
        // An admin is no device, which the mounted service finds out.
        ("admin", admin.channel(), [None, None, Some(InternalError), Some(Unauthorized)]),
        (
            "user",
            region.user("bob", &["people"]).channel(),
            [Some(Forbidden), Some(Forbidden), Some(Forbidden), Some(Unauthorized)],
        ),
        ("device", region.device(&known), [Some(Forbidden), Some(Forbidden), None, None]),
        ("stranger", region.device(&unknown), [Some(Unauthorized), Some(Unauthorized), Some(Unauthorized), None]),
        ("nobody", region.raw(None), [Some(Unauthorized); 4]),
        ("another CA's admin", region.raw(Some(&imposter)), [Some(Unauthorized); 4]),
        // A device's ingress has such a certificate: it is good for serving, not for asking.
        ("a server's certificate", region.raw(Some(&server)), [Some(Unauthorized); 4]),
    ];
    for (who, channel, expected) in channels {
        assert_eq!(refusals(&channel).await, expected, "{who}");
    }
    let text = region.user("bob", &[]).list(&Selection::all(GroupKind::POD)).await.unwrap_err().message;
    assert_eq!(
        text,
        "hearth.v1.Resources/List is forbidden: user \"bob\" cannot call it; it takes a member of the group system:masters"
    );
    assert_eq!(session(&region.device(&known)).await.unwrap().0, "alice/nas");
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_on_the_connection_that_it_has() {
    let region = Region::start().await;
    let admin = region.admin();
    let (old, new) = (seed(1), seed(2));
    add_device(&admin, "nas", "alice", &[old.key().to_string(), new.key().to_string()]).await;
    let (channel, rotated) = (region.device(&old), region.device(&new));
    let (_, mut running) = session(&channel).await.unwrap();
    let (_, mut kept) = session(&rotated).await.unwrap();
    add_device(&admin, "nas", "alice", &[new.key().to_string()]).await;
    // The session that runs ends by itself, the next request is refused with the reason.
    let end = tokio::time::timeout(LIMIT, running.message()).await.expect("ended in time");
    end.expect_err("the connection was cut");
    let status = session(&channel).await.unwrap_err();
    assert_eq!(status.reason, Reason::Unauthorized);
    assert!(status.message.contains(&old.key().to_string()) && status.message.contains("hearth join"), "{status}");
    // The other key has not noticed.
    session(&rotated).await.unwrap();
    assert!(tokio::time::timeout(std::time::Duration::from_millis(50), kept.message()).await.is_err());
    admin.delete(&key(GroupKind::DEVICE, "", "nas"), &DeleteOptions::default()).await.unwrap();
    assert_eq!(session(&rotated).await.unwrap_err().reason, Reason::Unauthorized);
}

#[tokio::test]
async fn changes_of_devices_by_others_reach_the_door_by_the_watch() {
    use hearth_types::store::{Expect, Op, write_one};
    let region = Region::start().await;
    let admin = region.admin();
    let identity = seed(1);
    add_device(&admin, "nas", "alice", &[identity.key().to_string()]).await;
    let channel = region.device(&identity);
    session(&channel).await.unwrap();
    let stored = admin.get(&key(GroupKind::DEVICE, "", "nas")).await.unwrap();
    let op = Op::Delete { key: stored.key().clone(), expect: Expect::same(&stored) };
    write_one(region.store.as_ref(), "gone".into(), op, Timestamp(1)).await.unwrap();
    let status = eventually("the device is refused", || async { session(&channel).await.err() }).await;
    assert!(matches!(status.reason, Reason::Unauthorized | Reason::ServiceUnavailable), "{status}");
}

#[tokio::test]
async fn an_expired_certificate_ends_a_connections_rights() {
    let region = Region::start().await;
    let admin = region.admin();
    admin.info().await.unwrap();
    region.clock.advance(std::time::Duration::from_hours(100 * 24));
    let status = admin.info().await.unwrap_err();
    assert_eq!(status.reason, Reason::Unauthorized);
    assert!(status.message.contains("expired"), "{status}");
}

#[tokio::test]
async fn a_device_has_to_speak_tls_1_3() {
    let region = Region::start().await;
    let issued_by = |version: &'static rustls::SupportedProtocolVersion| {
        let signer = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&signer).unwrap().der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(region.ca.certificate().clone()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(signer.serialize_der().into());
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .unwrap();
        let address = region.address.clone();
        async move {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("api.hearth.internal").unwrap();
            tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map(|_| ())
        }
    };
    issued_by(&rustls::version::TLS13).await.unwrap();
    issued_by(&rustls::version::TLS12).await.unwrap_err();
}

#[tokio::test]
async fn a_device_without_a_clock_can_ignore_dates_and_nothing_else() {
    // The server's clock is in 2001, so its certificates are over for everybody with a clock.
    let region = Region::start_with(None, Some(Timestamp(1_000_000_000_000))).await;
    let channel = |change: fn(&mut device::Region)| {
        let mut known = region.known();
        change(&mut known);
        device::connect(&known, &seed(1)).unwrap()
    };
    let refused = |status: Status| status.message.contains("cannot trust the region's API");
    assert!(refused(session(&channel(|_| {})).await.unwrap_err()));
    let ignoring = session(&channel(|known| known.ignore_validity = true)).await.unwrap_err();
    assert_eq!(ignoring.reason, Reason::Unauthorized, "the handshake is done: {ignoring}");
    let other_name = channel(|known| {
        known.ignore_validity = true;
        known.server_name = "other.hearth.internal".into();
    });
    assert!(refused(session(&other_name).await.unwrap_err()));
    let elsewhere = tempfile::tempdir().unwrap();
    let other =
        CertificateAuthority::load_or_create(elsewhere.path(), ZONE, Arc::new(hearth_api::SystemClock)).unwrap();
    let mut known = region.known();
    known.ignore_validity = true;
    known.ca_pem = other.pem().as_bytes().to_vec();
    assert!(refused(session(&device::connect(&known, &seed(1)).unwrap()).await.unwrap_err()));
    // A token says which CA it is, without one of its own.
    let token = JoinToken {
        addresses: vec![region.address.clone()],
        server_name: "api.hearth.internal".into(),
        ca_hash: region.ca.spki_hash(),
        secret: "aaaaaaaaaa.b".into(),
    };
    assert!(refused(device::join(&token, &seed(1), "nas", "alice", false).await.unwrap_err()));
    let status = device::join(&token, &seed(1), "nas", "alice", true).await.unwrap_err();
    assert!(status.message.contains("the join token is not known"), "{status}");
}

#[tokio::test]
async fn what_is_no_tls_or_says_nothing_does_not_hurt_others() {
    use tokio::io::AsyncWriteExt as _;
    let region = Region::start().await;
    let mut rubbish = tokio::net::TcpStream::connect(&region.address).await.unwrap();
    rubbish.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _silent = tokio::net::TcpStream::connect(&region.address).await.unwrap();
    let client = region.admin();
    client.apply(&config_map("alice", "c", json!({})), &WriteOptions::default()).await.unwrap();
    let failures = || async {
        let families = region.registry.gather();
        let family = families.iter().find(|family| family.name() == "hearth_api_handshake_failures_total")?;
        (family.get_metric()[0].get_counter().get_value() >= 1.0).then_some(())
    };
    eventually("the failed handshake is counted", failures).await;
}
