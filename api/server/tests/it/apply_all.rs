//! Several objects at once: all or none.

use hearth_client::{Outcome, Selection, WriteOptions};
use hearth_types::{GroupKind, Reason, RequestId, patch::LAST_APPLIED};
use serde_json::{Value, json};

use crate::region::{Region, config_map, deployment, key};

fn plain() -> WriteOptions {
    WriteOptions::default()
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"mine": "1"}}})
}

#[tokio::test]
async fn all_are_applied_in_one_transaction_with_their_namespaces() {
    let region = Region::start().await;
    let client = region.admin();
    client.apply(&config_map("bob", "there", json!({"a": "1"})), &plain()).await.unwrap();
    let objects = [
        config_map("alice", "a", json!({"a": "1"})),
        deployment("alice", "web"),
        config_map("bob", "there", json!({"a": "2"})),
        config_map("carol", "c", json!({})),
        namespace("carol"),
        config_map("bob", "new", json!({})),
    ];
    let dry = WriteOptions { dry_run: true, ..plain() };
    let before = region.store.revision();
    let answers = client.apply_all(&objects, &dry).await.unwrap();
    assert_eq!(region.store.revision(), before, "a dry run stores nothing");
    let outcomes = |answers: &[hearth_client::Written]| answers.iter().map(|one| one.outcome).collect::<Vec<_>>();
    use Outcome::{Configured, Created, Unchanged};
    assert_eq!(outcomes(&answers), [Created, Created, Configured, Created, Created, Created]);
    let answers = client.apply_all(&objects, &plain()).await.unwrap();
    assert_eq!(outcomes(&answers), [Created, Created, Configured, Created, Created, Created]);
    assert_eq!(region.store.revision(), before.next(), "one transaction");
    for (answer, object) in answers.iter().zip(&objects) {
        assert_eq!(answer.object.name(), object["metadata"]["name"]);
        assert_eq!(answer.object.revision(), before.next());
        assert_eq!(client.get(answer.object.key()).await.unwrap(), answer.object);
        assert!(answer.object.value()["metadata"]["annotations"][LAST_APPLIED].is_string());
    }
    client.get(&key(GroupKind::NAMESPACE, "", "alice")).await.expect("made along with what is in it");
    let carol = client.get(&key(GroupKind::NAMESPACE, "", "carol")).await.unwrap().value();
    assert_eq!(carol["metadata"]["labels"]["mine"], "1", "as it was asked for");
    // Again: nothing to do, and nothing is written.
    let answers = client.apply_all(&objects, &plain()).await.unwrap();
    assert_eq!(outcomes(&answers), [Unchanged; 6]);
    assert_eq!(region.store.revision(), before.next());
    // What changed alone is written.
    let mut some = objects.clone();
    some[0]["data"]["a"] = json!("3");
    assert_eq!(outcomes(&client.apply_all(&some, &plain()).await.unwrap())[..2], [Configured, Unchanged]);
}

#[tokio::test]
async fn where_one_cannot_be_applied_none_is_and_the_error_names_it() {
    let region = Region::start().await;
    let client = region.admin();
    let good = config_map("alice", "good", json!({}));
    let stale = {
        let mut object = client.apply(&config_map("alice", "stale", json!({})), &plain()).await.unwrap().object.value();
        client
            .patch(&key(GroupKind::CONFIG_MAP, "alice", "stale"), &json!({"data": {"x": "y"}}), false, &plain())
            .await
            .unwrap();
        object["data"] = json!({"z": "1"});
        object
    };
    let mut invalid = deployment("alice", "web");
    invalid["spec"]["replicas"] = json!(-1);
    let mut nameless = config_map("alice", "", json!({}));
    nameless["metadata"] = json!({"namespace": "alice"});
    let before = region.store.revision();
    for (bad, reason, expected) in [
        (vec![invalid], Reason::Invalid, "deployments.apps \"web\" is invalid: spec.replicas"),
        (vec![stale], Reason::Conflict, "the object has been modified"),
        (vec![good.clone()], Reason::BadRequest, "objects[1]: ConfigMap/alice/good is there twice"),
        (vec![json!({"kind": "Job", "apiVersion": "batch/v1"})], Reason::BadRequest, "objects[1]: no matches for kind"),
        (vec![nameless], Reason::Invalid, "metadata.name: required"),
        (vec![config_map("kube-public", "x", json!({}))], Reason::NotFound, "kube-public"),
        (vec![json!(7)], Reason::BadRequest, "objects[1]: "),
        (
            (0..400).map(|n| config_map("alice", &format!("c{n}"), json!({}))).collect(),
            Reason::BadRequest,
            "400 are applied at once",
        ),
    ] {
        let objects: Vec<Value> = [good.clone()].into_iter().chain(bad).collect();
        let status = client.apply_all(&objects, &plain()).await.unwrap_err();
        assert_eq!(status.reason, reason, "{expected}: {status}");
        assert!(status.message.contains(expected), "{expected}: {status}");
    }
    assert_eq!(client.apply_all(&[], &plain()).await.unwrap_err().reason, Reason::BadRequest);
    assert_eq!(region.store.revision(), before, "nothing is half done");
}

#[tokio::test]
async fn a_request_that_is_sent_again_is_applied_once_whatever_happened_meanwhile() {
    let region = Region::start().await;
    let client = region.admin();
    let objects = [config_map("alice", "a", json!({"a": "1"})), config_map("alice", "b", json!({}))];
    let named = WriteOptions { request_id: Some(RequestId::from("all")), ..plain() };
    client.apply_all(&objects, &named).await.unwrap();
    client
        .patch(&key(GroupKind::CONFIG_MAP, "alice", "a"), &json!({"data": {"a": "2"}}), false, &plain())
        .await
        .unwrap();
    let before = region.store.revision();
    let answers = client.apply_all(&objects, &named).await.unwrap();
    assert_eq!(answers.len(), 2);
    assert_eq!(region.store.revision(), before, "it was applied already");
    assert_eq!(client.get(&key(GroupKind::CONFIG_MAP, "alice", "a")).await.unwrap().value()["data"]["a"], "2");
}

#[tokio::test]
async fn concurrent_appliers_of_the_same_objects_all_succeed() {
    let region = Region::start().await;
    let appliers = (0..8).map(|n| {
        let client = region.admin();
        async move {
            let objects: Vec<_> =
                (0..5).map(|one| config_map("alice", &format!("c{one}"), json!({format!("k{n}"): "v"}))).collect();
            client.apply_all(&objects, &WriteOptions::default()).await
        }
    });
    for answer in futures_util::future::join_all(appliers).await {
        answer.unwrap();
    }
    let (all, _) = region.admin().list(&Selection::all(GroupKind::CONFIG_MAP)).await.unwrap();
    let revisions: std::collections::BTreeSet<_> = all.iter().map(hearth_types::Object::revision).collect();
    assert_eq!((all.len(), revisions.len()), (5, 1), "the last one wrote all of them at once");
}
