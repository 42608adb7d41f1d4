//! Reads and writes as a client sees them.

use hearth_client::{DeleteOptions, ListOptions, Outcome, Selection, WriteOptions};
use hearth_types::{
    GroupKind, Object, Reason, RequestId, Uid, kinds,
    patch::LAST_APPLIED,
    store::{Expect, Op, Store as _, Txn, write_one},
};
use serde_json::{Value, json};

use crate::region::{Region, config_map, deployment, key, pod};

fn plain() -> WriteOptions {
    WriteOptions::default()
}

#[tokio::test]
async fn mistakes_come_through_with_their_paths() {
    let region = Region::start().await;
    let client = region.admin();
    let mut wrong = deployment("alice", "web");
    wrong["spec"]["replcas"] = json!(1);
    wrong["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = json!("80");
    for status in
        [client.apply(&wrong, &plain()).await.unwrap_err(), client.create(&wrong, &plain()).await.unwrap_err()]
    {
        assert_eq!(status.reason, Reason::Invalid);
        let fields: Vec<_> = status.causes.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!(fields, ["spec.replcas", "spec.template.spec.containers[0].ports[0].containerPort"]);
        assert_eq!(status.object.as_deref(), Some(&key(GroupKind::DEPLOYMENT, "alice", "web")));
    }
    for (object, expected) in [
        (json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}), "no matches for kind \"Job\""),
        (json!({"kind": "Pod"}), "apiVersion and kind are required"),
        (json!([]), "apiVersion and kind are required"),
        (json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}), "metadata.name: required"),
        (json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}), "give a namespace"),
        (json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": 5}), "metadata.name: required"),
        (config_map("alice", "../x", json!({})), "must be a lowercase RFC 1123"),
        (config_map("-", "x", json!({})), "must be a lowercase RFC 1123"),
    ] {
        let status = client.apply(&object, &plain()).await.unwrap_err();
        assert!(status.message.contains(expected), "{expected}: {status}");
    }
    // Nothing half done: not even the namespace.
    client.get(&key(GroupKind::NAMESPACE, "", "alice")).await.unwrap_err();
    let long = config_map("alice", "big", json!({"x": "y".repeat(3 << 20)}));
    let status = client.apply(&long, &plain()).await.unwrap_err();
    assert!(status.message.contains("bytes"), "{status}");
}

#[tokio::test]
async fn apply_creates_configures_and_leaves_unchanged() {
    let region = Region::start().await;
    let client = region.admin();
    let mut object = deployment("alice", "web");
    let first = client.apply(&object, &plain()).await.unwrap();
    assert_eq!((first.outcome, first.warnings.len()), (Outcome::Created, 0));
    let before = region.store.revision();
    assert_eq!(client.apply(&object, &plain()).await.unwrap().outcome, Outcome::Unchanged);
    assert_eq!(region.store.revision(), before, "an unchanged apply writes nothing");
    // What others write stays; what the manifest no longer has goes.
    let others = json!({"metadata": {"labels": {"theirs": "2"}, "annotations": {"their.dev/x": "y"}}});
    let name = key(GroupKind::DEPLOYMENT, "alice", "web");
    client.patch(&name, &others, false, &plain()).await.unwrap();
    object["metadata"].as_object_mut().unwrap().remove("labels");
    object["spec"]["replicas"] = json!(3);
    let changed = client.apply(&object, &plain()).await.unwrap();
    assert_eq!(changed.outcome, Outcome::Configured);
    let value = changed.object.value();
    assert_eq!(value["metadata"]["labels"], json!({"theirs": "2"}));
    assert_eq!(value["metadata"]["annotations"]["their.dev/x"], "y");
    assert_eq!((&value["spec"]["replicas"], &value["metadata"]["generation"]), (&json!(3), &json!(2)));
    // What `get -o yaml` prints can be applied again.
    let printed = client.get(&name).await.unwrap().value();
    client.apply(&printed, &plain()).await.unwrap();
    let value = client.get(&name).await.unwrap().value();
    let last: Value = serde_json::from_str(value["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap()).unwrap();
    assert!(last["metadata"].get("resourceVersion").is_none() && last.get("status").is_none(), "{last}");
    // But not over a newer one.
    client.patch(&name, &json!({"spec": {"replicas": 4}}), false, &plain()).await.unwrap();
    assert_eq!(client.apply(&printed, &plain()).await.unwrap_err().reason, Reason::Conflict);
    assert_eq!(client.get(&name).await.unwrap().value()["spec"]["replicas"], 4);
}

#[tokio::test]
async fn a_dry_run_answers_as_if_and_stores_nothing() {
    let region = Region::start().await;
    let client = region.admin();
    let dry = WriteOptions { dry_run: true, ..plain() };
    let before = region.store.revision();
    let answer = client.apply(&deployment("alice", "web"), &dry).await.unwrap();
    assert_eq!((answer.outcome, answer.object.value()["spec"]["replicas"].clone()), (Outcome::Created, json!(1)));
    assert_eq!(region.store.revision(), before);
    client.apply(&config_map("alice", "c", json!({"a": "1"})), &plain()).await.unwrap();
    let changed = client.apply(&config_map("alice", "c", json!({"a": "2"})), &dry).await.unwrap();
    assert_eq!((changed.outcome, &changed.object.value()["data"]["a"]), (Outcome::Configured, &json!("2")));
    let there = client.create(&config_map("alice", "c", json!({})), &dry).await.unwrap_err();
    assert_eq!(there.reason, Reason::AlreadyExists);
    assert_eq!(client.get(&key(GroupKind::CONFIG_MAP, "alice", "c")).await.unwrap().value()["data"]["a"], "1");
}

#[tokio::test]
async fn an_update_of_an_old_revision_conflicts_and_a_repeated_one_does_not() {
    let region = Region::start().await;
    let client = region.admin();
    let mut object =
        client.create(&config_map("alice", "c", json!({"a": "1"})), &plain()).await.unwrap().object.value();
    let named = |id: &str| WriteOptions { request_id: Some(RequestId::from(id)), ..plain() };
    object["data"]["a"] = json!("2");
    let first = client.update(&object, &named("one")).await.unwrap();
    // The answer was lost and the client sends it again: the same answer, and nothing is written.
    let before = region.store.revision();
    let again = client.update(&object, &named("one")).await.unwrap();
    assert_eq!((again.object, region.store.revision()), (first.object, before));
    object["data"]["a"] = json!("3");
    let status = client.update(&object, &named("two")).await.unwrap_err();
    assert_eq!(status.reason, Reason::Conflict);
    assert!(status.message.contains("the object has been modified"), "{status}");
    let dry = client.update(&object, &WriteOptions { dry_run: true, ..plain() }).await.unwrap_err();
    assert_eq!(dry.reason, Reason::Conflict);
    // Without a revision the last one wins.
    object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    client.update(&object, &plain()).await.unwrap();
    object["metadata"]["uid"] = json!("another");
    assert_eq!(client.update(&object, &plain()).await.unwrap_err().reason, Reason::Conflict);
    for bad in [json!(7), json!("seven")] {
        object["metadata"]["resourceVersion"] = bad;
        let status = client.update(&object, &plain()).await.unwrap_err();
        assert_eq!(status.reason, Reason::BadRequest);
        assert!(status.message.contains("metadata.resourceVersion"), "{status}");
    }
    let absent = client.update(&config_map("alice", "none", json!({})), &plain()).await.unwrap_err();
    assert_eq!(absent.message, "configmaps \"none\" not found");
}

#[tokio::test]
async fn creating_and_deleting_twice_under_one_id_happens_once() {
    let region = Region::start().await;
    let client = region.admin();
    let options = WriteOptions { request_id: Some(RequestId::from("create")), ..plain() };
    let object = config_map("alice", "c", json!({}));
    let first = client.create(&object, &options).await.unwrap().object;
    assert_eq!(client.create(&object, &options).await.unwrap().object, first);
    assert_eq!(client.create(&object, &plain()).await.unwrap_err().message, "configmaps \"c\" already exists");
    let options = DeleteOptions { request_id: Some(RequestId::from("delete")), ..DeleteOptions::default() };
    let name = key(GroupKind::CONFIG_MAP, "alice", "c");
    assert!(client.delete(&name, &options).await.unwrap().removed);
    assert!(client.delete(&name, &options).await.unwrap().removed);
    assert_eq!(client.delete(&name, &DeleteOptions::default()).await.unwrap_err().reason, Reason::NotFound);
    for bad in ["x".repeat(200), "a\u{1}b".into()] {
        let options = WriteOptions { request_id: Some(RequestId::from(bad)), ..plain() };
        assert!(client.create(&object, &options).await.unwrap_err().message.contains("request_id"));
    }
}

#[tokio::test]
async fn names_are_generated_and_concurrent_patches_all_count() {
    let region = Region::start().await;
    let client = region.admin();
    let mut object = config_map("alice", "", json!({}));
    object["metadata"] = json!({"generateName": "c-", "namespace": "alice"});
    let names = [client.create(&object, &plain()).await.unwrap(), client.create(&object, &plain()).await.unwrap()];
    assert_ne!(names[0].object.name(), names[1].object.name());
    let name = names[0].object.key();
    let patches = (0..10).map(|n| {
        let client = client.clone();
        async move { client.patch(name, &json!({"data": {format!("k{n}"): "v"}}), false, &plain()).await.unwrap() }
    });
    futures_util::future::join_all(patches).await;
    assert_eq!(client.get(name).await.unwrap().value()["data"].as_object().unwrap().len(), 10);
}

#[tokio::test]
async fn patches_change_what_an_object_is_like_and_not_which_it_is() {
    let region = Region::start().await;
    let client = region.admin();
    client.apply(&deployment("alice", "web"), &plain()).await.unwrap();
    let name = key(GroupKind::DEPLOYMENT, "alice", "web");
    let patched =
        client.patch(&name, &json!({"spec": {"replicas": 5}, "status": {"replicas": 9}}), false, &plain()).await;
    let patched = patched.unwrap().object.value();
    assert_eq!((&patched["spec"]["replicas"], patched["status"].get("replicas")), (&json!(5), None));
    let status = json!({"spec": {"replicas": 7}, "status": {"replicas": 9}});
    let patched = client.patch(&name, &status, true, &plain()).await.unwrap().object.value();
    assert_eq!((&patched["spec"]["replicas"], &patched["status"]["replicas"]), (&json!(5), &json!(9)));
    for (patch, expected) in [
        (json!({"metadata": {"name": "other"}}), "metadata.name: cannot be changed"),
        (json!({"metadata": {"namespace": "bob"}}), "metadata.namespace: cannot be changed"),
        (json!({"kind": "ReplicaSet"}), "kind: cannot be changed"),
        (json!({"metadata": null}), "metadata.name: cannot be changed"),
        (json!({"spec": {"replicas": "x"}}), "spec.replicas: must be an integer"),
        (json!([1]), "a merge patch is a JSON object"),
    ] {
        let status = client.patch(&name, &patch, false, &plain()).await.unwrap_err();
        assert!(status.message.contains(expected), "{expected}: {status}");
    }
    let old = json!({"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 1}});
    assert_eq!(client.patch(&name, &old, false, &plain()).await.unwrap_err().reason, Reason::Conflict);
    client.apply(&config_map("alice", "c", json!({})), &plain()).await.unwrap();
    let none = client.patch(&key(GroupKind::CONFIG_MAP, "alice", "c"), &json!({"status": {}}), true, &plain()).await;
    assert!(none.unwrap_err().message.contains("have no status"));
}

#[tokio::test]
async fn an_owners_first_object_makes_the_owners_namespace() {
    let region = Region::start().await;
    let client = region.admin();
    let namespace = |name: &str| key(GroupKind::NAMESPACE, "", name);
    client.get(&namespace("default")).await.unwrap();
    client.get(&namespace("kube-system")).await.unwrap();
    let before = region.store.revision();
    client.apply(&config_map("alice", "c", json!({})), &plain()).await.unwrap();
    assert_eq!(region.store.revision(), before.next(), "one transaction for both");
    assert_eq!(client.get(&namespace("alice")).await.unwrap().value()["status"]["phase"], "Active");
    let device = json!({"apiVersion": kinds::API_VERSION, "kind": "Device", "metadata": {"name": "nas"}, "spec": {"owner": "bob"}});
    client.apply(&device, &plain()).await.unwrap();
    client.get(&namespace("bob")).await.unwrap();
    for reserved in ["api", "kube-public"] {
        let status = client.apply(&config_map(reserved, "c", json!({})), &plain()).await.unwrap_err();
        assert_eq!(status.message, format!("namespaces \"{reserved}\" not found"));
    }
}

#[tokio::test]
async fn a_namespace_is_marked_takes_nothing_new_and_goes_with_its_finalizer() {
    let region = Region::start().await;
    let client = region.admin();
    let namespace = key(GroupKind::NAMESPACE, "", "alice");
    client.apply(&config_map("alice", "c", json!({})), &plain()).await.unwrap();
    let marked = client.delete(&namespace, &DeleteOptions::default()).await.unwrap();
    let value = marked.object.value();
    assert!(!marked.removed);
    assert_eq!(value["metadata"]["finalizers"], json!([kinds::NAMESPACE_FINALIZER]));
    assert_eq!(value["status"]["phase"], "Terminating");
    assert!(!client.delete(&namespace, &DeleteOptions::default()).await.unwrap().removed, "twice is harmless");
    let status = client.apply(&config_map("alice", "d", json!({})), &plain()).await.unwrap_err();
    assert_eq!(status.reason, Reason::Forbidden);
    assert!(
        status.message.contains("configmaps \"d\" is forbidden: unable to create new content in namespace alice"),
        "{status}"
    );
    // What is there can still change, or nothing could be cleaned up.
    client.apply(&config_map("alice", "c", json!({"a": "b"})), &plain()).await.unwrap();
    // Only the region's controller says that it is empty.
    let mut done = value.clone();
    done["metadata"]["finalizers"] = json!([]);
    client.update(&done, &plain()).await.unwrap();
    client.patch(&namespace, &json!({"metadata": {"finalizers": null}}), false, &plain()).await.unwrap();
    assert_eq!(
        client.get(&namespace).await.unwrap().value()["metadata"]["finalizers"],
        json!([kinds::NAMESPACE_FINALIZER])
    );
    let op = Op::Update { object: Object::from_value(done).unwrap(), expect: Expect::default() };
    write_one(region.store.as_ref(), RequestId::from("empty"), op, hearth_types::Timestamp(1)).await.unwrap();
    client.get(&namespace).await.unwrap_err();
    for kept in ["default", "kube-system"] {
        let status = client.delete(&key(GroupKind::NAMESPACE, "", kept), &DeleteOptions::default()).await.unwrap_err();
        assert_eq!(status.message, format!("namespaces \"{kept}\" is forbidden: this namespace may not be deleted"));
    }
}

#[tokio::test]
async fn a_running_pod_is_deleted_gracefully_and_removed_once_it_has_stopped() {
    let region = Region::start().await;
    let client = region.admin();
    client.create(&pod("alice", "p", &["a"]), &plain()).await.unwrap();
    let name = key(GroupKind::POD, "alice", "p");
    let mut value = client.get(&name).await.unwrap().value();
    value["spec"]["nodeName"] = json!("nas");
    let bound = Object::from_value(value).unwrap();
    let expect = Expect::uid(bound.uid());
    let op = Op::Update { object: bound.clone(), expect };
    write_one(region.store.as_ref(), RequestId::from("bind"), op, hearth_types::Timestamp(1)).await.unwrap();
    let wrong = DeleteOptions { uid: Some(Uid::from("another")), ..DeleteOptions::default() };
    assert_eq!(client.delete(&name, &wrong).await.unwrap_err().reason, Reason::Conflict);
    let bad = DeleteOptions { grace_seconds: Some(-1), ..DeleteOptions::default() };
    assert_eq!(client.delete(&name, &bad).await.unwrap_err().reason, Reason::BadRequest);
    let right = DeleteOptions { uid: Some(bound.uid().clone()), grace_seconds: Some(20), ..DeleteOptions::default() };
    let deleted = client.delete(&name, &right).await.unwrap();
    assert!(!deleted.removed);
    assert_eq!(deleted.object.value()["metadata"]["deletionGracePeriodSeconds"], 20);
    client.get(&name).await.unwrap();
    let stopped = json!({"status": {"phase": "Succeeded"}});
    client.patch(&name, &stopped, true, &plain()).await.unwrap();
    assert_eq!(client.get(&name).await.unwrap_err().reason, Reason::NotFound);
    // Grace 0 does not wait for the device.
    let mut other = bound.value();
    other["metadata"]["name"] = json!("q");
    other["metadata"]["uid"] = json!("q");
    let op = Op::Create { object: Object::from_value(other).unwrap() };
    write_one(region.store.as_ref(), RequestId::from("q"), op, hearth_types::Timestamp(1)).await.unwrap();
    let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
    assert!(client.delete(&key(GroupKind::POD, "alice", "q"), &now).await.unwrap().removed);
}

#[tokio::test]
async fn lists_come_in_pages_by_selectors_and_by_bytes() {
    let region = Region::start().await;
    let client = region.admin();
    for n in 0..7 {
        let mut object = config_map(if n < 5 { "alice" } else { "bob" }, &format!("c{n}"), json!({}));
        object["metadata"]["labels"] = json!({"odd": (n % 2 == 1).to_string()});
        client.create(&object, &plain()).await.unwrap();
    }
    let all = Selection::all(GroupKind::CONFIG_MAP);
    let page = client.list_page(&all, &ListOptions { limit: 3, ..ListOptions::default() }).await.unwrap();
    assert_eq!((page.items.len(), page.continue_token.is_some()), (3, true));
    let options = ListOptions { continue_token: page.continue_token.clone(), ..ListOptions::default() };
    let rest = client.list_page(&all, &options).await.unwrap();
    assert_eq!((rest.items.len(), rest.revision, rest.continue_token), (4, page.revision, None));
    let names = |selection: Selection| {
        let client = client.clone();
        async move { client.list(&selection).await.unwrap().0.iter().map(|one| one.name().to_owned()).collect::<Vec<_>>() }
    };
    let alice = Selection { labels: "odd=true".into(), ..Selection::namespace(GroupKind::CONFIG_MAP, "alice") };
    assert_eq!(names(alice).await, ["c1", "c3"]);
    let field = Selection { fields: "metadata.name=c6".into(), ..all.clone() };
    assert_eq!(names(field).await, ["c6"]);
    for (selection, expected) in [
        (Selection { labels: "a b=c".into(), ..all.clone() }, "cannot read the selector"),
        (Selection { fields: "data.x=1".into(), ..all.clone() }, "configmaps can be selected by metadata.name"),
        (Selection { fields: "x".into(), ..all.clone() }, "write field=value"),
        (Selection::namespace(GroupKind::CONFIG_MAP, "A"), "must be a lowercase RFC 1123"),
        (Selection::namespace(GroupKind::DEVICE, "alice"), "are not namespaced"),
        (Selection::all(GroupKind::of("x", "Nothing")), "doesn't have a resource type"),
    ] {
        let status = client.list(&selection).await.unwrap_err();
        assert_eq!(status.reason, Reason::BadRequest);
        assert!(status.message.contains(expected), "{expected}: {status}");
    }
    let token = ListOptions { continue_token: Some("nonsense".into()), ..ListOptions::default() };
    assert_eq!(client.list_page(&all, &token).await.unwrap_err().reason, Reason::BadRequest);
    // 20 objects of 1 MB are more than a page holds, however many are asked for.
    let ops = (0..20).map(|n| {
        let mut value = config_map("carol", &format!("big{n}"), json!({"x": "y".repeat(1 << 20)}));
        value["metadata"]["uid"] = json!(format!("u{n}"));
        Op::Create { object: Object::from_value(value).unwrap() }
    });
    let (request_id, now) = (RequestId::from("big"), hearth_types::Timestamp(1));
    region.store.write(Txn { request_id, atomic: true, ops: ops.collect(), now }).await.unwrap();
    let carol = Selection::namespace(GroupKind::CONFIG_MAP, "carol");
    let page = client.list_page(&carol, &ListOptions::default()).await.unwrap();
    assert!((1..20).contains(&page.items.len()), "{}", page.items.len());
    assert_eq!(client.list(&carol).await.unwrap().0.len(), 20);
}

#[tokio::test]
async fn keys_are_checked() {
    let region = Region::start().await;
    let client = region.admin();
    for (name, expected) in [
        (key(GroupKind::POD, "", "p"), "give a namespace"),
        (key(GroupKind::NAMESPACE, "x", "p"), "leave the namespace out"),
        (key(GroupKind::POD, "a", "../p"), "must be a lowercase RFC 1123"),
        (key(GroupKind::POD, "a", ""), "must have 1 to 253 characters"),
        (key(GroupKind::of("", "Nothing"), "a", "p"), "doesn't have a resource type \"Nothing\""),
    ] {
        for status in [
            client.get(&name).await.unwrap_err(),
            client.delete(&name, &DeleteOptions::default()).await.unwrap_err(),
            client.patch(&name, &json!({}), false, &plain()).await.unwrap_err(),
        ] {
            assert_eq!(status.reason, Reason::BadRequest, "{status}");
            assert!(status.message.contains(expected), "{expected}: {status}");
        }
    }
    let none = client.get(&key(GroupKind::DEPLOYMENT, "alice", "x")).await.unwrap_err();
    assert_eq!(none.message, "deployments.apps \"x\" not found");
}

#[tokio::test]
async fn a_request_id_is_good_for_one_request() {
    let region = Region::start().await;
    let client = region.admin();
    let named = |id: &str| WriteOptions { request_id: Some(RequestId::from(id)), ..plain() };
    let object = config_map("alice", "c", json!({"a": "1"}));
    client.apply(&object, &named("one")).await.unwrap();
    assert_eq!(client.apply(&object, &named("one")).await.unwrap().outcome, Outcome::Unchanged, "sent again");
    let other = config_map("alice", "c", json!({"a": "2"}));
    let before = region.store.revision();
    for refused in [
        client.apply(&other, &named("one")).await.err(),
        client.create(&config_map("alice", "d", json!({})), &named("one")).await.err(),
        client.update(&other, &named("one")).await.err(),
        client
            .patch(&key(GroupKind::CONFIG_MAP, "alice", "c"), &json!({"data": null}), false, &named("one"))
            .await
            .err(),
        client.apply_all(&[other.clone()], &named("one")).await.err(),
    ] {
        let status = refused.expect("refused");
        assert_eq!(status.reason, Reason::Conflict, "{status}");
        assert!(status.message.contains("request id was used already"), "{status}");
    }
    assert_eq!(region.store.revision(), before);
    client.apply(&other, &named("two")).await.unwrap();
}

#[tokio::test]
async fn large_configuration_is_applied_and_keys_that_are_dropped_go() {
    let region = Region::start().await;
    let client = region.admin();
    let big = "\"x\n".repeat(200_000);
    for (kind, field) in [("ConfigMap", "data"), ("Secret", "stringData")] {
        let with = |data: Value| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "big", "namespace": "alice"}, field: data});
        let both = with(json!({"a": big, "b": "1"}));
        client.apply(&both, &plain()).await.unwrap();
        assert_eq!(client.apply(&both, &plain()).await.unwrap().outcome, Outcome::Unchanged, "{kind}");
        let name = key(GroupKind::of("", kind), "alice", "big");
        client.patch(&name, &json!({"data": {"theirs": "Mg=="}}), false, &plain()).await.unwrap();
        let changed = client.apply(&with(json!({"a": big})), &plain()).await.unwrap().object.value();
        let keys: Vec<_> = changed["data"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["a", "theirs"], "{kind}: what was dropped went, what others wrote stayed");
        assert!(changed.get("stringData").is_none());
        let last = changed["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap();
        assert!(last.len() < 1000, "{kind}: {} bytes", last.len());
    }
}

#[tokio::test]
async fn plain_data_of_a_secret_that_an_older_version_applied_goes_too() {
    let region = Region::start().await;
    let client = region.admin();
    let with = |data: Value| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "alice"}, "stringData": data});
    client.apply(&with(json!({"a": "1", "b": "2"})), &plain()).await.unwrap();
    let name = key(GroupKind::SECRET, "alice", "s");
    let old = with(json!({"a": "1", "b": "2"})).to_string();
    client.patch(&name, &json!({"metadata": {"annotations": {LAST_APPLIED: old}}}), false, &plain()).await.unwrap();
    let changed = client.apply(&with(json!({"a": "1"})), &plain()).await.unwrap().object.value();
    assert_eq!(changed["data"], json!({"a": "MQ=="}));
}

#[tokio::test]
async fn a_request_that_is_too_large_says_so() {
    let region = Region::start().await;
    let client = region.admin();
    for bytes in [2 << 20, 17 << 20] {
        let object = config_map("alice", "c", json!({"a": "x".repeat(bytes)}));
        let status = client.create(&object, &plain()).await.unwrap_err();
        assert!(matches!(status.reason, Reason::BadRequest | Reason::Invalid), "{bytes}: {status}");
        assert!(bytes < 16 << 20 || status.message.contains("16777216"), "{bytes}: {status}");
    }
}
