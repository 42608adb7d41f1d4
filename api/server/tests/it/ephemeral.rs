//! Ephemeral containers come by their own method alone, which has a rule of its own.

use hearth_client::{Client, DeleteOptions, WriteOptions};
use hearth_types::{GroupKind, ObjectKey, Reason};
use serde_json::{Value, json};

use crate::region::{Region, config_map, key, pod, seed};

fn plain() -> WriteOptions {
    WriteOptions::default()
}

fn name() -> ObjectKey {
    key(GroupKind::POD, "alice", "web")
}

async fn stored(client: &Client) -> Value {
    client.get(&name()).await.unwrap().value()
}

/// The stored pod with one more container beside it.
async fn debugged(client: &Client, debug: &str) -> Value {
    let mut pod = stored(client).await;
    let mut list = pod["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    list.push(json!({"name": debug, "image": "busybox", "stdin": true}));
    pod["spec"]["ephemeralContainers"] = list.into();
    pod
}

#[tokio::test]
async fn one_is_added_to_a_pod_and_nothing_else_of_the_pod_is_changed() {
    let region = Region::start().await;
    let client = region.admin();
    client.apply(&pod("alice", "web", &["web"]), &plain()).await.unwrap();
    let before = stored(&client).await;
    let mut sent = debugged(&client, "one").await;
    sent["spec"]["containers"][0]["image"] = json!("other");
    sent["metadata"]["labels"] = json!({"other": "x"});
    sent["status"] = json!({"phase": "Failed"});
    let dry = WriteOptions { dry_run: true, ..plain() };
    client.update_ephemeral_containers(&sent, &dry).await.unwrap();
    assert_eq!(stored(&client).await, before);
    let after = client.update_ephemeral_containers(&sent, &plain()).await.unwrap().object.value();
    let mut expected = before.clone();
    expected["spec"]["ephemeralContainers"] = json!([{"name": "one", "image": "busybox", "stdin": true}]);
    expected["metadata"]["generation"] = json!(2);
    expected["metadata"]["resourceVersion"] = after["metadata"]["resourceVersion"].clone();
    assert_eq!(after, expected);
    // What was read before that is of the past; what is applied and labelled later leaves it there.
    let status = client.update_ephemeral_containers(&sent, &plain()).await.unwrap_err();
    assert_eq!(status.reason, Reason::Conflict, "{status}");
    client.apply(&pod("alice", "web", &["web"]), &plain()).await.unwrap();
    client.patch(&name(), &json!({"metadata": {"labels": {"a": "b"}}}), false, &plain()).await.unwrap();
    assert_eq!(stored(&client).await["spec"]["ephemeralContainers"], expected["spec"]["ephemeralContainers"]);
    client.update_ephemeral_containers(&debugged(&client, "two").await, &plain()).await.unwrap();
    assert_eq!(stored(&client).await["spec"]["ephemeralContainers"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn no_other_way_leads_to_one_nor_takes_it_away() {
    let region = Region::start().await;
    let client = region.admin();
    client.apply(&pod("alice", "web", &["web"]), &plain()).await.unwrap();
    let refused = |status: hearth_types::Status, expected: &str| {
        assert!(status.reason == Reason::Invalid && status.message.contains(expected), "{expected}: {status}");
    };
    let sent = debugged(&client, "one").await;
    let by_subresource = "by the subresource ephemeralcontainers";
    refused(client.update(&sent, &plain()).await.unwrap_err(), by_subresource);
    let list = json!({"spec": {"ephemeralContainers": sent["spec"]["ephemeralContainers"]}});
    refused(client.patch(&name(), &list, false, &plain()).await.unwrap_err(), by_subresource);
    client.update_ephemeral_containers(&sent, &plain()).await.unwrap();
    let none = json!({"spec": {"ephemeralContainers": null}});
    refused(client.patch(&name(), &none, false, &plain()).await.unwrap_err(), by_subresource);
    let mut without = stored(&client).await;
    without["spec"].as_object_mut().unwrap().remove("ephemeralContainers");
    let kept = "existing ephemeral containers \"one\" may not be removed";
    refused(client.update_ephemeral_containers(&without, &plain()).await.unwrap_err(), kept);
    let mut created = pod("alice", "new", &["web"]);
    created["spec"]["ephemeralContainers"] = list["spec"]["ephemeralContainers"].clone();
    refused(client.create(&created, &plain()).await.unwrap_err(), "spec.ephemeralContainers: cannot be set on create");
    refused(client.apply(&created, &plain()).await.unwrap_err(), "spec.ephemeralContainers: cannot be set on create");
    let other = client.update_ephemeral_containers(&config_map("alice", "c", json!({})), &plain()).await.unwrap_err();
    refused(other, "configmaps have no ephemeral containers");
    client.delete(&name(), &DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() }).await.unwrap();
    let gone = client.update_ephemeral_containers(&without, &plain()).await.unwrap_err();
    assert_eq!(gone.reason, Reason::NotFound, "{gone}");
}

#[tokio::test]
async fn who_has_no_right_on_pods_puts_nothing_into_one() {
    let region = Region::start().await;
    let client = region.admin();
    client.apply(&pod("alice", "web", &["web"]), &plain()).await.unwrap();
    let sent = debugged(&client, "one").await;
    let before = stored(&client).await;
    for (caller, reason) in [
        (region.user("bob", &["people"]), Reason::Forbidden),
        (Client::from_channel(region.device(&seed(2))), Reason::Unauthorized),
        (Client::from_channel(region.raw(None)), Reason::Unauthorized),
    ] {
        let status = caller.update_ephemeral_containers(&sent, &plain()).await.unwrap_err();
        assert_eq!(status.reason, reason, "{status}");
    }
    assert_eq!(stored(&client).await, before);
}
