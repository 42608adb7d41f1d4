use serde_json::{Value, json};

use super::*;
use crate::{GroupKind, Revision};

fn context() -> Context<'static> {
    Context { now: Timestamp(1_700_000_000_000), uid: Uid::from("uid-1"), suffix: "abcde", zone: "hearth.internal" }
}

fn create(object: Value) -> Result<Admitted, Status> {
    let info = kind_of(&object)?;
    prepare_create(info, object, &context())
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "alice"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "web:1", "resources": {"limits": {"memory": "64Mi"}}}]}}}})
}

fn causes(result: Result<Admitted, Status>) -> Vec<String> {
    result.expect_err("refused").causes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_created_object_is_defaulted_and_stamped() {
    let admitted = create(deployment()).expect("admitted");
    let value = admitted.object.value();
    assert_eq!(value["spec"]["replicas"], 1);
    assert_eq!(value["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"], "64Mi");
    assert_eq!(value["metadata"]["uid"], "uid-1");
    assert_eq!(value["metadata"]["creationTimestamp"], "2023-11-14T22:13:20Z");
    assert_eq!(value["metadata"]["generation"], 1);
    assert_eq!(admitted.object.revision(), Revision::ZERO);
}

#[test]
fn names_are_generated() {
    let mut object = deployment();
    object["metadata"] = json!({"generateName": "web-", "namespace": "alice"});
    assert_eq!(create(object).expect("admitted").object.name(), "web-abcde");
}

#[test]
fn a_changed_spec_raises_the_generation_and_a_changed_status_does_not() {
    let info = registry::of_kind(&GroupKind::DEPLOYMENT).expect("a kind");
    let old = create(deployment()).expect("admitted").object;
    let same = prepare_update(info, &old, deployment(), Part::Main, &context()).expect("admitted").object;
    assert_eq!(same, old);
    let mut scaled = deployment();
    scaled["spec"]["replicas"] = json!(3);
    scaled["status"] = json!({"replicas": 9});
    let new = prepare_update(info, &old, scaled, Part::Main, &context()).expect("admitted").object.value();
    assert_eq!(new["metadata"]["generation"], 2);
    assert_eq!(new["status"], json!({}));
    let mut status = old.value();
    status["status"] = json!({"replicas": 1});
    status["spec"]["replicas"] = json!(7);
    let new = prepare_update(info, &old, status, Part::Status, &context()).expect("admitted").object.value();
    assert_eq!((&new["spec"]["replicas"], &new["status"]["replicas"]), (&json!(1), &json!(1)));
    assert_eq!(new["metadata"]["generation"], 1);
}

#[test]
fn what_must_not_change_does_not() {
    let info = registry::of_kind(&GroupKind::DEPLOYMENT).expect("a kind");
    let old = create(deployment()).expect("admitted").object;
    let mut other = deployment();
    other["spec"]["selector"] = json!({"matchLabels": {"app": "other"}});
    other["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    let error = prepare_update(info, &old, other, Part::Main, &context()).expect_err("refused");
    assert!(error.message.contains("spec.selector: cannot be changed"), "{error}");
}

#[test]
fn a_status_of_an_object_that_was_made_anew_since_is_refused() {
    let info = registry::of_kind(&GroupKind::DEPLOYMENT).expect("a kind");
    let old = create(deployment()).expect("admitted").object;
    let mut status = old.value();
    status["metadata"]["uid"] = json!("uid-0");
    for part in [Part::Main, Part::Status] {
        let error = prepare_update(info, &old, status.clone(), part, &context()).expect_err("refused");
        assert_eq!(error.reason, Reason::Conflict, "{error}");
    }
}

#[test]
fn nobody_but_placement_names_a_device() {
    let mut object = deployment();
    object["spec"]["template"]["spec"]["nodeName"] = json!("of-somebody-else");
    let found = causes(create(object));
    assert!(found[0].starts_with("spec.template.spec.nodeName: placement sets it"), "{found:?}");
}

#[test]
fn owners_are_named_in_full() {
    let mut object = deployment();
    object["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": ""}]);
    assert_eq!(causes(create(object)), ["metadata.ownerReferences[0].uid: must not be empty"]);
}

#[test]
fn unknown_kinds_are_told_apart_from_wrong_versions() {
    let error = |api_version: &str, kind: &str| {
        kind_of(&json!({"apiVersion": api_version, "kind": kind})).expect_err("refused").message
    };
    assert!(error("v1", "Deployment").contains(r#"in version "apps/v1""#));
    assert!(error("batch/v1", "Job").contains("no matches for kind \"Job\""));
    assert!(error("", "").contains("apiVersion and kind are required"));
}

#[test]
fn what_no_device_can_run_is_refused_with_its_path() {
    let pod = |spec: Value| {
        causes(create(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "alice"}, "spec": spec}),
        ))
    };
    for (spec, expected) in [
        (json!({"containers": []}), "spec.containers: must have 1 to 16"),
        (json!({"hostNetwork": true, "containers": [{"name": "a", "image": "x"}]}), "spec.hostNetwork: refused"),
        (json!({"containers": [{"name": "A", "image": "x"}]}), "spec.containers[0].name: \"A\""),
        (
            json!({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]}),
            "spec.containers[1].name: \"a\" is there twice",
        ),
        (json!({"containers": [{"name": "a", "image": ""}]}), "spec.containers[0].image: required"),
        (
            json!({"containers": [{"name": "a", "image": "x", "securityContext": {"privileged": true}}]}),
            "securityContext.privileged: refused",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]}),
            "spec.containers[0].securityContext.capabilities.add[0]: \"SYS_ADMIN\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}]}),
            "spec.containers[0].volumeMounts[0].name: there is no volume \"v\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/a/../b"}]}],
                "volumes": [{"name": "v", "emptyDir": {}}]}),
            "mountPath: must not contain '..'",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x"}], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
            "spec.volumes[0].hostPath: not supported",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}),
            "spec.containers[0].resources.requests.cpu: must not exceed the limit",
        ),
        (
            json!({"initContainers": [{"name": "i", "image": "x"}], "containers": [{"name": "a", "image": "x"}]}),
            "spec.initContainers: not supported",
        ),
    ] {
        let found = pod(spec);
        assert!(found.iter().any(|cause| cause.contains(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn probes_are_accepted_with_a_warning() {
    let mut object = deployment();
    object["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"port": 80}});
    let warnings = create(object).expect("admitted").warnings;
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].starts_with("spec.template.spec.containers[0].readinessProbe: not acted on"));
}

#[test]
fn own_kinds_are_validated() {
    let app = |spec: Value| {
        create(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "App", "metadata": {"name": "a"}, "spec": spec}))
    };
    let container = json!({"name": "a", "image": "x", "ports": [{"name": "http", "containerPort": 80}], "volumeMounts": [{"name": "d", "mountPath": "/d"}]});
    let good =
        json!({"containers": [container], "volumes": [{"name": "d", "size": "1Gi"}], "ingress": {"port": "http"}});
    assert_eq!(app(good.clone()).expect("admitted").object.value()["spec"]["permissions"]["internet"], true);
    let mut bad = good.clone();
    bad["ingress"]["port"] = json!("web");
    bad["volumes"][0] = json!({"name": "d"});
    bad["permissions"] = json!({"capabilities": ["SYS_MODULE"]});
    let found = causes(app(bad));
    assert_eq!(found.len(), 3, "{found:?}");
    let install = |namespace: &str| {
        create(
            json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Install", "metadata": {"name": "a", "namespace": namespace}, "spec": {"app": "a"}}),
        )
    };
    assert!(install("alice").is_ok());
    assert!(causes(install("api"))[0].contains("reserved"));
    let route = |hostname: &str| {
        create(
            json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Route", "metadata": {"name": "a", "namespace": "alice"},
            "spec": {"hostname": hostname, "target": {"selector": {"a": "b"}, "port": 80}}}),
        )
    };
    assert!(route("a.alice.hearth.internal").is_ok());
    assert!(route("a.bob.hearth.internal").is_err());
    assert!(route(".alice.hearth.internal").is_err());
}

#[test]
fn a_running_pod_is_deleted_gracefully_and_others_at_once() {
    let pod = |extra: Value| {
        let mut value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "a", "uid": "u"},
            "spec": {"terminationGracePeriodSeconds": 10}});
        crate::patch::merge(&mut value, &extra);
        Object::from_value(value).expect("an object")
    };
    let now = Timestamp(1_000_000);
    assert_eq!(plan_delete(&pod(json!({})), None, now), DeletePlan::Remove);
    assert_eq!(plan_delete(&pod(json!({"spec": {"nodeName": "nas"}})), Some(0), now), DeletePlan::Remove);
    let DeletePlan::Mark(marked) = plan_delete(&pod(json!({"spec": {"nodeName": "nas"}})), None, now) else {
        panic!("marked")
    };
    assert_eq!(marked.value()["metadata"]["deletionTimestamp"], Timestamp(1_010_000).to_string());
    assert_eq!(plan_delete(&marked, None, now), DeletePlan::Waiting);
    assert!(matches!(plan_delete(&marked, Some(1), now), DeletePlan::Mark(_)));
    assert!(!plan_removal(&marked));
    assert!(matches!(plan_delete(&pod(json!({"metadata": {"finalizers": ["x"]}})), None, now), DeletePlan::Mark(_)));
    let done = pod(
        json!({"metadata": {"deletionTimestamp": "2023-11-14T22:13:20Z"}, "spec": {"nodeName": "nas"}, "status": {"phase": "Failed"}}),
    );
    assert!(plan_removal(&done));
}
