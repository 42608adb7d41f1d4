//! Binding pods to devices.

use hearth_types::{
    GroupKind, Object, ObjectKey, Revision,
    kinds::CLAIM_FINALIZER,
    lease::{Epoch, Tenure, VOLUME_POLICY_ANNOTATION},
    store::{CLAIM_DEVICE, CLAIM_EPOCH, Expect, Op, OpError},
};
use serde_json::{Value, json};

use crate::support::{Region, at, create, object, update};

fn pod(more: Value) -> Object {
    let mut value = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "c"}]},
        "metadata": {"name": "p", "namespace": "n", "uid": "p"}});
    merge(&mut value, more);
    object(value)
}

fn node(more: Value) -> Object {
    let mut value = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "nas", "uid": "nas"},
        "status": {"conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]}});
    merge(&mut value, more);
    object(value)
}

fn claim(name: &str, more: Value) -> Object {
    let mut value = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "n", "uid": name}});
    merge(&mut value, more);
    object(value)
}

fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(map), Value::Object(more)) => {
            for (key, one) in more {
                merge(map.entry(key).or_insert(Value::Null), one);
            }
        }
        (value, more) => *value = more,
    }
}

fn claim_key(name: &str) -> ObjectKey {
    ObjectKey::new(GroupKind::PERSISTENT_VOLUME_CLAIM, "n", name)
}

fn bind(expect: Expect, claims: &[&str]) -> Op {
    let pod = ObjectKey::new(GroupKind::POD, "n", "p");
    Op::Bind { pod, expect, device: "nas".into(), claims: claims.iter().map(|name| claim_key(name)).collect() }
}

#[test]
fn a_binding_is_written_into_pod_and_claims() {
    let mut region = Region::default();
    region.done(create(node(json!({}))));
    region.done(create(claim("c", json!({"metadata": {"finalizers": ["x"], "annotations": {"a": "b"}}}))));
    region.done(create(claim(
        "same",
        json!({"metadata": {"finalizers": [CLAIM_FINALIZER], "annotations": {CLAIM_DEVICE: "nas"}}}),
    )));
    let stored = region.done(create(pod(json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled",
        "status": "False", "reason": "Unschedulable", "message": "no room", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}}))));
    let bound = region.done(bind(Expect::same(&stored), &["c", "same", "c"]));
    assert_eq!(bound.revision(), Revision(5));
    let value = bound.value();
    assert_eq!(value["spec"]["nodeName"], "nas");
    assert_eq!(value["spec"]["containers"][0]["name"], "c", "nothing else is lost");
    let conditions = value["status"]["conditions"].as_array().expect("conditions");
    assert_eq!(conditions.len(), 1);
    assert_eq!((&conditions[0]["type"], &conditions[0]["status"]), (&json!("PodScheduled"), &json!("True")));
    assert_eq!(conditions[0]["lastTransitionTime"], "2023-11-14T22:13:20Z", "the time of the command");
    let pinned = region.state.get(&claim_key("c")).expect("there");
    assert_eq!(pinned.revision(), Revision(5));
    assert_eq!(pinned.value()["metadata"]["annotations"], json!({"a": "b", CLAIM_DEVICE: "nas"}));
    assert_eq!(pinned.value()["metadata"]["finalizers"], json!(["x", CLAIM_FINALIZER]));
    assert_eq!(region.state.get(&claim_key("same")).expect("there").revision(), Revision(3), "was pinned already");
}

#[test]
fn a_binding_is_refused_where_what_it_was_decided_on_changed() {
    let elsewhere = json!({"metadata": {"annotations": {CLAIM_DEVICE: "pi"}}});
    let deleting = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let none = || json!({});
    let cases: [(&str, Option<Object>, Object, Object); 9] = [
        ("there is no such Node", None, pod(none()), claim("c", none())),
        ("is not ready", Some(node(unready)), pod(none()), claim("c", none())),
        ("is not ready", Some(node(json!({"status": null}))), pod(none()), claim("c", none())),
        ("is cordoned", Some(node(json!({"spec": {"unschedulable": true}}))), pod(none()), claim("c", none())),
        ("the device nas is being deleted", Some(node(deleting.clone())), pod(none()), claim("c", none())),
        ("already bound to pi", Some(node(none())), pod(json!({"spec": {"nodeName": "pi"}})), claim("c", none())),
        ("the pod is being deleted", Some(node(none())), pod(deleting.clone()), claim("c", none())),
        ("the claim c has its data on the device pi", Some(node(none())), pod(none()), claim("c", elsewhere)),
        ("the claim c is being deleted", Some(node(none())), pod(none()), claim("c", deleting)),
    ];
    for (expected, node, pod, claim) in cases {
        let mut region = Region::default();
        for object in [Some(pod), Some(claim), node].into_iter().flatten() {
            region.done(create(object));
        }
        let before = region.state.revision();
        let Err(OpError::Conflict { key, why }) = region.one(bind(Expect::default(), &["c"])) else {
            panic!("{expected}: it was bound");
        };
        assert_eq!(key.kind, GroupKind::POD);
        assert!(why.contains(expected), "{why} / {expected}");
        assert_eq!(region.state.revision(), before);
    }
}

#[test]
fn a_binding_needs_the_pod_as_it_was_seen_and_its_claims() {
    let mut region = Region::default();
    region.done(create(node(json!({}))));
    assert!(matches!(region.one(bind(Expect::default(), &[])), Err(OpError::NotFound(_))));
    region.done(create(pod(json!({}))));
    region.done(update(pod(json!({"spec": {"x": 1}}))));
    assert!(matches!(region.one(bind(at(2), &[])), Err(OpError::Conflict { .. })));
    assert!(
        matches!(region.one(bind(at(3), &["missing"])), Err(OpError::Conflict { why, .. }) if why.contains("missing"))
    );
    let Op::Bind { pod, expect, device, .. } = bind(at(3), &[]) else { unreachable!() };
    let claims = vec![pod.clone()];
    assert!(matches!(
        region.one(Op::Bind { pod: pod.clone(), expect: expect.clone(), device, claims }),
        Err(OpError::Malformed(_))
    ));
    let nowhere = Op::Bind { pod, expect, device: String::new(), claims: vec![] };
    assert!(matches!(region.one(nowhere), Err(OpError::Malformed(_))));
    region.done(bind(at(3), &[]));
}

#[test]
fn a_failed_binding_leaves_the_others_of_its_batch_alone() {
    let mut region = Region::default();
    region.done(create(node(json!({}))));
    region.done(create(pod(json!({}))));
    let outcome = region.txn(false, vec![bind(Expect::default(), &["missing"]), bind(Expect::default(), &[])]);
    assert!(outcome.outcomes[0].is_err() && outcome.outcomes[1].is_ok());
}

/// The epoch of a claim, and the one before.
fn epochs(region: &Region, name: &str) -> Option<(u64, Option<u64>)> {
    let value = region.state.get(&claim_key(name)).expect("there").value();
    Tenure::of_claim(&value).map(|one| (one.epoch.0, one.before.map(|before| before.0)))
}

/// Its pod is gone, and the claim without a device; then another pod is bound.
fn bound_again(region: &mut Region, name: &str, released: bool) {
    let pod_key = ObjectKey::new(GroupKind::POD, "n", "p");
    region.done(Op::Delete { key: pod_key, expect: Expect::default() });
    if released {
        let mut value = region.state.get(&claim_key(name)).expect("there").value();
        value["metadata"]["annotations"].as_object_mut().expect("a map").remove(CLAIM_DEVICE);
        region.done(update(object(value)));
    }
    region.done(create(pod(json!({}))));
    region.done(bind(Expect::default(), &[name]));
}

#[test]
fn a_claim_that_moves_gets_a_greater_epoch_with_each_device() {
    let moves = json!({"metadata": {"annotations": {VOLUME_POLICY_ANNOTATION: "Move"}}});
    let mut region = Region::at_level(hearth_state::FEATURE_LEVEL);
    region.done(create(node(json!({}))));
    region.done(create(pod(json!({}))));
    for (name, more) in [("c", moves.clone()), ("keeps", json!({}))] {
        region.done(create(claim(name, more)));
    }
    region.done(bind(Expect::default(), &["c", "keeps"]));
    let first = region.state.revision().0;
    assert_eq!(epochs(&region, "c"), Some((first, None)), "the revision of the entry that bound the pod");
    assert_eq!(epochs(&region, "keeps"), None);
    bound_again(&mut region, "c", false);
    assert_eq!(epochs(&region, "c"), Some((first, None)), "it stayed where it was");
    bound_again(&mut region, "c", true);
    let second = region.state.revision().0;
    assert_eq!(epochs(&region, "c"), Some((second, Some(first))));
    // As a region that was rebuilt, whose revisions begin anew.
    let mut rebuilt = Region::at_level(hearth_state::FEATURE_LEVEL);
    rebuilt.done(create(node(json!({}))));
    rebuilt.done(create(pod(json!({}))));
    let mut told = moves;
    told["metadata"]["annotations"][CLAIM_EPOCH] = json!("7000");
    rebuilt.done(create(claim("c", told)));
    rebuilt.done(bind(Expect::default(), &["c"]));
    assert_eq!(epochs(&rebuilt, "c"), Some((Epoch(7001).0, Some(7000))));
}

#[test]
fn servers_of_a_release_without_epochs_agree_on_a_claim_that_stays() {
    let mut region = Region::at_level(3);
    region.done(create(node(json!({}))));
    region.done(create(pod(json!({}))));
    region.done(create(claim("c", json!({"metadata": {"annotations": {VOLUME_POLICY_ANNOTATION: "Move"}}}))));
    region.done(bind(Expect::default(), &["c"]));
    assert_eq!(epochs(&region, "c"), None);
    region.raise(hearth_state::FEATURE_LEVEL);
    bound_again(&mut region, "c", false);
    assert_eq!(epochs(&region, "c"), Some((region.state.revision().0, None)), "with its next pod");
}
