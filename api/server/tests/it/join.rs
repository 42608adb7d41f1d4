//! How devices join.

use std::{sync::Arc, time::Duration};

use base64::Engine as _;
use hearth_api::CertificateAuthority;
use hearth_client::{Client, DeleteOptions, Selection, WriteOptions, device, device::DeviceIdentity};
use hearth_proto::v1::JoinResponse;
use hearth_types::{GroupKind, Reason, Status, kinds, token::JoinToken};
use serde_json::json;

use crate::region::{Region, ZONE, key, seed, session};

/// `owner` empty: of any owner.
async fn token(client: &Client, owner: &str) -> JoinToken {
    let made = if owner.is_empty() {
        client.create_token_for_any_owner(Duration::ZERO).await
    } else {
        client.create_token(owner, Duration::ZERO).await
    };
    made.unwrap().token.parse().unwrap()
}

async fn join(token: &JoinToken, identity: &DeviceIdentity, name: &str, owner: &str) -> Result<JoinResponse, Status> {
    device::join(token, identity, name, owner, false).await
}

#[tokio::test]
async fn a_device_joins_once_and_has_its_session_at_once() {
    let region = Region::start().await;
    let client = region.admin();
    let token = token(&client, "").await;
    assert_eq!(
        (token.addresses.as_slice(), token.server_name.as_str()),
        ([region.address.clone()].as_slice(), "api.hearth.internal")
    );
    let channel = region.device(&seed(1));
    assert_eq!(session(&channel).await.unwrap_err().reason, Reason::Unauthorized);
    let before = region.store.revision();
    let answer = join(&token, &seed(1), "nas", "alice").await.unwrap();
    assert_eq!(region.store.revision(), before.next(), "token, namespace and device in one transaction");
    assert_eq!((answer.device_name.as_str(), answer.owner.as_str(), answer.zone.as_str()), ("nas", "alice", ZONE));
    assert_eq!((answer.ca_pem.as_ref(), answer.incarnation.as_str()), (region.ca.pem().as_bytes(), "test"));
    // The connection that was a stranger's is the device's from now on.
    assert_eq!(session(&channel).await.unwrap().0, "alice/nas");
    client.get(&key(GroupKind::NAMESPACE, "", "alice")).await.unwrap();
    let device = client.get(&key(GroupKind::DEVICE, "", "nas")).await.unwrap().value();
    assert_eq!(device["spec"], json!({"owner": "alice", "keys": [seed(1).key().to_string()]}));
    // The same token with the same key again is harmless.
    let before = region.store.revision();
    assert_eq!(join(&token, &seed(1), "nas", "alice").await.unwrap(), answer);
    assert_eq!(join(&token, &seed(1), "nas", "").await.unwrap(), answer);
    assert_eq!(region.store.revision(), before);
    // Also once it has expired.
    region.clock.advance(Duration::from_hours(2));
    assert_eq!(join(&token, &seed(1), "nas", "").await.unwrap(), answer);
}

#[tokio::test]
async fn what_a_token_is_not_good_for_is_refused_with_its_reason() {
    let region = Region::start().await;
    let client = region.admin();
    let used = token(&client, "alice").await;
    join(&used, &seed(1), "nas", "").await.unwrap();
    let alices = token(&client, "alice").await;
    let anybodys = token(&client, "").await;
    let wrong_secret = JoinToken { secret: format!("{}x", alices.secret), ..alices.clone() };
    let no_secret = JoinToken { secret: "nonsense".into(), ..alices.clone() };
    let cases = [
        (&used, 2, "other", "", Reason::Forbidden, "used already, by another key"),
        (&used, 1, "renamed", "", Reason::Conflict, "joined as device \"nas\""),
        (&used, 1, "nas", "bob", Reason::Forbidden, "of owner \"alice\", not of \"bob\""),
        (&alices, 2, "nas", "", Reason::AlreadyExists, "a device named \"nas\" is there already, with another key"),
        (&alices, 1, "second", "", Reason::Conflict, "is device \"nas\" of the region already"),
        (&alices, 2, "pi", "bob", Reason::Forbidden, "of owner \"alice\", not of \"bob\""),
        (&anybodys, 2, "pi", "", Reason::BadRequest, "--owner"),
        (&anybodys, 2, "pi", "kube-system", Reason::BadRequest, "reserved"),
        (&anybodys, 2, "pi", "A b", Reason::BadRequest, "lowercase RFC 1123"),
        (&anybodys, 2, "../pi", "bob", Reason::BadRequest, "lowercase RFC 1123"),
        (&anybodys, 1, "nas", "bob", Reason::Forbidden, "belongs to owner \"alice\""),
        (&wrong_secret, 2, "pi", "", Reason::Unauthorized, "not known to this region"),
        (&no_secret, 2, "pi", "", Reason::Unauthorized, "not known to this region"),
    ];
    let before = region.store.revision();
    for (token, who, name, owner, reason, expected) in cases {
        let status = join(token, &seed(who), name, owner).await.unwrap_err();
        assert_eq!(status.reason, reason, "{expected}: {status}");
        assert!(status.message.contains(expected), "{expected}: {status}");
    }
    assert_eq!(region.store.revision(), before, "nothing is half done");
    // A refusal does not use the token up.
    join(&alices, &seed(2), "pi", "alice").await.unwrap();
    // A device may take a second token, as when it was set up anew under its old key.
    join(&anybodys, &seed(2), "pi", "alice").await.unwrap();
    let late = token(&client, "alice").await;
    region.clock.advance(Duration::from_secs(3601));
    let status = join(&late, &seed(3), "late", "").await.unwrap_err();
    assert!(status.reason == Reason::Forbidden && status.message.contains("expired at"), "{status}");
}

#[tokio::test]
async fn a_token_of_another_region_is_refused_before_anything_is_said() {
    let region = Region::start().await;
    let token = token(&region.admin(), "alice").await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other =
        CertificateAuthority::load_or_create(elsewhere.path(), ZONE, Arc::new(hearth_api::SystemClock)).unwrap();
    let other = JoinToken { ca_hash: other.spki_hash(), ..token.clone() };
    let status = join(&other, &seed(1), "nas", "").await.unwrap_err();
    assert_eq!(status.reason, Reason::ServiceUnavailable);
    assert!(status.message.contains("it is not the region that the token is for"), "{status}");
    let nowhere = JoinToken { addresses: vec!["127.0.0.1:1".into(), region.address.clone()], ..token };
    join(&nowhere, &seed(1), "nas", "").await.expect("the second address answers");
}

#[tokio::test]
async fn a_removed_device_does_not_come_back_by_its_old_token() {
    let region = Region::start().await;
    let client = region.admin();
    let token = token(&client, "alice").await;
    join(&token, &seed(1), "nas", "").await.unwrap();
    let name = key(GroupKind::DEVICE, "", "nas");
    client.patch(&name, &json!({"spec": {"keys": []}}), false, &WriteOptions::default()).await.unwrap();
    assert!(join(&token, &seed(1), "nas", "").await.unwrap_err().message.contains("was removed from the region"));
    client.delete(&name, &DeleteOptions::default()).await.unwrap();
    assert!(join(&token, &seed(1), "nas", "").await.unwrap_err().message.contains("was removed from the region"));
    client.get(&name).await.unwrap_err();
}

#[tokio::test]
async fn two_devices_with_one_token_at_once_are_one_device() {
    let region = Region::start().await;
    let token = token(&region.admin(), "alice").await;
    let joins = (1..=6).map(|n| {
        let token = token.clone();
        async move { join(&token, &seed(n), &format!("d{n}"), "").await }
    });
    let answers = futures_util::future::join_all(joins).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    let (devices, _) = region.admin().list(&Selection::all(GroupKind::DEVICE)).await.unwrap();
    assert_eq!(devices.len(), 1);
}

#[tokio::test]
async fn a_token_is_stored_as_a_hash_and_cleaned_up() {
    let region = Region::start().await;
    let client = region.admin();
    let answer = client.create_token("alice", Duration::from_mins(1)).await.unwrap();
    let token: JoinToken = answer.token.parse().unwrap();
    let selection = Selection {
        fields: format!("type={}", kinds::JOIN_TOKEN_TYPE),
        ..Selection::namespace(GroupKind::SECRET, "kube-system")
    };
    let (secrets, _) = client.list(&selection).await.unwrap();
    assert_eq!(secrets.len(), 1);
    let (id, secret) = token.secret.split_once('.').unwrap();
    assert_eq!(secrets[0].name(), format!("join-token-{id}"));
    let text = secrets[0].value().to_string();
    assert!(!text.contains(secret) && !text.contains(&base64::engine::general_purpose::STANDARD.encode(secret)));
    region.clock.advance(Duration::from_hours(31 * 24));
    client.create_token("bob", Duration::ZERO).await.unwrap();
    let (left, _) = client.list(&selection).await.unwrap();
    assert!(left.len() == 1 && left[0].name() != secrets[0].name(), "{left:?}");
    for (owner, days, expected) in
        [("api", 0, "reserved"), ("A", 0, "lowercase"), ("alice", 8, "at most 7 days"), ("", 0, "owner: required")]
    {
        let status = client.create_token(owner, Duration::from_hours(days * 24)).await.unwrap_err();
        assert!(status.reason == Reason::BadRequest && status.message.contains(expected), "{status}");
    }
}

#[tokio::test]
async fn tokens_are_listed_without_their_secrets_and_deleted() {
    let region = Region::start().await;
    let client = region.admin();
    let made = client.create_token("alice", Duration::from_mins(5)).await.unwrap();
    let first: JoinToken = made.token.parse().unwrap();
    join(&first, &seed(1), "nas", "").await.unwrap();
    region.clock.advance(Duration::from_secs(5));
    let second = token(&client, "").await;
    let listed = client.list_tokens().await.unwrap();
    let (id, secret) = second.secret.split_once('.').unwrap();
    assert_eq!((listed.len(), listed[0].id.as_str(), listed[0].owner.as_str()), (2, id, ""), "newest first");
    assert!(listed[0].used_by_device.is_empty() && listed[0].used_by_key.is_empty());
    assert_eq!(
        (&listed[1].id, listed[1].owner.as_str(), listed[1].expires_millis),
        (&made.id, "alice", made.expires_millis)
    );
    assert_eq!((listed[1].used_by_device.as_str(), &listed[1].used_by_key), ("nas", &seed(1).key().to_string()));
    assert!(listed[1].created_millis > 0 && listed[1].created_millis < listed[1].expires_millis);
    assert!(!format!("{listed:?}").contains(secret));
    client.delete_token(id).await.unwrap();
    let status = join(&second, &seed(2), "pi", "bob").await.unwrap_err();
    assert!(status.message.contains("not known to this region"), "{status}");
    assert_eq!(client.delete_token(id).await.unwrap_err().reason, Reason::NotFound);
    assert_eq!(client.delete_token("../x").await.unwrap_err().reason, Reason::BadRequest);
    // The device of a deleted token stays.
    client.delete_token(&made.id).await.unwrap();
    session(&region.device(&seed(1))).await.unwrap();
    let nobody = region.user("eve", &["others"]);
    assert_eq!(nobody.list_tokens().await.unwrap_err().reason, Reason::Forbidden);
    assert_eq!(nobody.delete_token(&made.id).await.unwrap_err().reason, Reason::Forbidden);
}

#[tokio::test]
async fn a_key_is_one_devices_whoever_tries_at_once() {
    let region = Region::start().await;
    let admin = region.admin();
    let tokens = futures_util::future::join_all((0..8).map(|_| token(&admin, "alice"))).await;
    // The same key under eight names, each with a token of its own.
    let joins =
        tokens.iter().enumerate().map(|(n, token)| async move { join(token, &seed(1), &format!("d{n}"), "").await });
    let answers = futures_util::future::join_all(joins).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    for status in answers.into_iter().filter_map(Result::err) {
        assert_eq!(status.reason, Reason::Conflict, "{status}");
    }
    let (devices, _) = admin.list(&Selection::all(GroupKind::DEVICE)).await.unwrap();
    assert_eq!(devices.len(), 1);
    // Nor can an operator give it to another.
    let other = json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "metadata": {"name": "other"},
        "spec": {"owner": "bob", "keys": [seed(1).key().to_string()]}});
    for refused in
        [admin.create(&other, &WriteOptions::default()).await, admin.apply(&other, &WriteOptions::default()).await]
    {
        let status = refused.unwrap_err();
        assert_eq!(status.reason, Reason::Conflict, "{status}");
        assert!(status.message.contains("belongs to the device d"), "{status}");
    }
    let mut keyless = other.clone();
    keyless["spec"]["keys"] = json!([]);
    admin.create(&keyless, &WriteOptions::default()).await.unwrap();
    let status = admin.apply(&other, &WriteOptions::default()).await.unwrap_err();
    assert!(status.message.contains("belongs to the device d"), "{status}");
}

#[tokio::test]
async fn tries_to_join_have_a_rate() {
    let region = Region::start().await;
    let good = token(&region.admin(), "alice").await;
    let bad = JoinToken { secret: "aaaaaaaaaa.b".into(), ..good.clone() };
    let mut reasons = Vec::new();
    for _ in 0..40 {
        let tries = futures_util::future::join_all((0..20).map(|_| join(&bad, &seed(2), "pi", ""))).await;
        reasons.extend(tries.into_iter().map(|answer| answer.unwrap_err().reason));
        if reasons.contains(&Reason::TooManyRequests) {
            break;
        }
    }
    let refused = reasons.iter().position(|reason| *reason == Reason::TooManyRequests).expect("a limit");
    assert!(refused >= 80, "{refused}");
}
