//! How relays that run by themselves join, and stay relays of the region.

use std::time::Duration;

use hearth_client::{DeleteOptions, device, device::DeviceIdentity, relays};
use hearth_types::{GroupKind, Reason, Status, recovery::PublicKey, relay::Pass, token::JoinToken};
use serde_json::json;

use crate::region::{Region, ZONE, key, seed};

const URL: &str = "https://198.51.100.7:443";

async fn token(region: &Region) -> JoinToken {
    region.admin().create_relay_token(Duration::ZERO).await.unwrap().token.parse().unwrap()
}

async fn join(token: &JoinToken, who: &DeviceIdentity, name: &str, url: &str) -> Result<(), Status> {
    relays::join(token, who, name, url, 443).await.map(drop)
}

#[tokio::test]
async fn a_relay_joins_once_is_told_whom_to_let_in_and_keeps_its_place_true() {
    let region = Region::start().await;
    let (client, identity) = (region.admin(), seed(1));
    let token = token(&region).await;
    let before = region.store.revision();
    let answer = relays::join(&token, &identity, "fra-2", URL, 443).await.unwrap();
    assert_eq!(region.store.revision(), before.next(), "token and Relay in one transaction");
    assert_eq!(
        (answer.name.as_str(), answer.zone.as_str(), &answer.servers),
        ("fra-2", ZONE, &vec![region.address.clone()])
    );
    let spec = async || client.get(&key(GroupKind::RELAY, "", "fra-2")).await.unwrap().value()["spec"].clone();
    assert_eq!(spec().await, json!({"url": URL, "discoveryPort": 443, "key": identity.key().to_string()}));
    // By what it was told it knows the region's passes, and can show that it is a relay.
    let signer = PublicKey(answer.pass_key.as_ref().try_into().unwrap());
    let now = hearth_types::Clock::now(&*region.clock);
    let pass = Pass::of_device(seed(9).key(), "alice", now).sign(region.ca.signing_key());
    assert!(Pass::check(&pass, signer, &seed(9).key(), now).is_ok());
    let certificate = relays::RelayCertificate::default();
    certificate.set(&identity, &answer.certificate_pem).unwrap();
    assert!(certificate.set(&seed(2), &answer.certificate_pem).is_err(), "it is for the key that joined");
    // The same again is harmless, also once the token has expired; another place is kept.
    region.clock.advance(Duration::from_hours(2));
    join(&token, &identity, "fra-2", URL).await.unwrap();
    assert_eq!(region.store.revision(), before.next());
    let moved = "https://relay.example.org:8443";
    relays::renew(&region.known(), &identity, moved, 0).await.unwrap();
    assert_eq!(spec().await, json!({"url": moved, "key": identity.key().to_string()}));
    // Nobody else can say where it is, and it is none any more once its Relay is gone.
    let other = relays::renew(&region.known(), &seed(2), moved, 0).await.unwrap_err();
    assert_eq!(other.reason, Reason::Forbidden, "{other}");
    client.delete(&key(GroupKind::RELAY, "", "fra-2"), &DeleteOptions::default()).await.unwrap();
    let gone = relays::renew(&region.known(), &identity, moved, 0).await.unwrap_err();
    assert!(gone.reason == Reason::Forbidden && gone.message.contains("it was deleted"), "{gone}");
    let again = join(&token, &identity, "fra-2", URL).await.unwrap_err();
    assert_eq!(again.reason, Reason::Forbidden, "{again}");
}

#[tokio::test]
async fn what_a_relays_token_is_not_good_for_is_refused_with_its_reason() {
    let region = Region::start().await;
    let client = region.admin();
    let (used, fresh) = (token(&region).await, token(&region).await);
    join(&used, &seed(1), "fra-1", URL).await.unwrap();
    let devices: JoinToken = client.create_token("alice", Duration::ZERO).await.unwrap().token.parse().unwrap();
    let before = region.store.revision();
    for (token, who, name, url, reason, expected) in [
        (&used, 2, "fra-2", URL, Reason::Forbidden, "by another relay"),
        (&fresh, 2, "fra-1", URL, Reason::AlreadyExists, "is there already"),
        (&fresh, 2, "Fra 2", URL, Reason::BadRequest, "lowercase RFC 1123"),
        (&fresh, 2, "fra-2", "http://a:1", Reason::Invalid, "must be https://host:port"),
        (&devices, 2, "fra-2", URL, Reason::Forbidden, "--relay"),
    ] {
        let status = join(token, &seed(who), name, url).await.unwrap_err();
        assert_eq!(status.reason, reason, "{expected}: {status}");
        assert!(status.to_string().contains(expected), "{expected}: {status}");
    }
    let device = device::join(&fresh, &seed(2), "nas", "alice", false).await.unwrap_err();
    assert!(device.message.contains("hearth relay --join"), "{device}");
    assert_eq!(region.store.revision(), before, "nothing is half done");
    // Those who may use relays are told of so many.
    for n in 1..16_u8 {
        join(&token(&region).await, &seed(10 + n), &format!("more-{n}"), URL).await.unwrap();
    }
    let full = join(&fresh, &seed(2), "fra-2", URL).await.unwrap_err();
    assert!(full.message.contains("16 relays already"), "{full}");
}
