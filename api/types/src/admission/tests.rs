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
fn what_becomes_of_an_install_on_a_silent_device_is_said_in_bounds() {
    let install = |placement: Value| {
        create(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Install",
            "metadata": {"name": "web", "namespace": "alice"}, "spec": {"app": "web", "placement": placement}}))
    };
    assert!(install(json!({"disconnect": {"moveAfterSeconds": 5, "onReturn": "KeepLongestRunning"}})).is_ok());
    let path = "spec.placement.disconnect";
    for (placement, cause) in [
        (json!({"disconnect": {"moveAfterSeconds": 4}}), format!("{path}.moveAfterSeconds: must be from 5 to 2592000")),
        (json!({"disconnect": {}}), format!("{path}.moveAfterSeconds: ")),
        (
            json!({"disconnect": {"moveAfterSeconds": 60, "onReturn": "KeepBoth"}}),
            format!("{path}.onReturn: \"KeepBoth\" is not supported; must be one of KeepOriginal, KeepReplacement"),
        ),
        (
            json!({"device": "nas", "disconnect": {"moveAfterSeconds": 60}}),
            format!("{path}: there is no other device where spec.placement.device names one"),
        ),
    ] {
        let found = causes(install(placement));
        assert!(found.len() == 1 && found[0].starts_with(&cause), "{found:?}");
    }
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
            "spec.volumes[0].hostPath.path: must not be the root directory",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}),
            "spec.containers[0].resources.requests.cpu: must not exceed the limit",
        ),
        (
            json!({"initContainers": [{"name": "a", "image": "x"}], "containers": [{"name": "a", "image": "x"}]}),
            "spec.containers[0].name: \"a\" is there twice",
        ),
    ] {
        let found = pod(spec);
        assert!(found.iter().any(|cause| cause.contains(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn probes_have_the_defaults_of_kubernetes() {
    let mut object = deployment();
    object["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"port": 80}, "periodSeconds": 2});
    let admitted = create(object).expect("admitted");
    assert_eq!(admitted.warnings, Vec::<String>::new());
    let container = admitted.object.value()["spec"]["template"]["spec"]["containers"][0].clone();
    assert_eq!(
        container["readinessProbe"],
        json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "periodSeconds": 2, "timeoutSeconds": 1,
            "successThreshold": 1, "failureThreshold": 3})
    );
    assert!(container.get("livenessProbe").is_none());
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
    let with = |spec: Value| {
        let mut value = json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Route", "metadata": {"name": "a", "namespace": "alice"},
            "spec": {"hostname": "a.alice.hearth.internal", "target": {"selector": {"a": "b"}, "port": 80}}});
        crate::patch::merge(&mut value["spec"], &spec);
        create(value)
    };
    let stored = with(json!({"protocol": "TCP", "port": 2222})).expect("a port of its own");
    assert_eq!(stored.object.value()["spec"]["port"], 2222);
    for spec in [
        json!({"port": 2222}),
        json!({"protocol": "HTTPS", "port": 443}),
        json!({"protocol": "TCP"}),
        json!({"protocol": "TCP", "port": 0}),
        json!({"protocol": "TCP", "port": 65536}),
        json!({"protocol": "UDP"}),
        json!({"protocol": "tcp", "port": 53}),
        json!({"proxyProtocol": "v2"}),
        json!({"protocol": "TCP", "port": 53, "proxyProtocol": "v1"}),
    ] {
        assert!(with(spec.clone()).is_err(), "{spec}");
    }
    for protocol in ["TCP", "UDP"] {
        with(json!({"protocol": protocol, "port": 53, "proxyProtocol": "v2"})).expect("it is told who calls");
    }
    assert_eq!(with(json!({"protocol": "HTTPS"})).expect("said in full").object.value()["spec"].get("port"), None);
    assert!(route("a.bob.hearth.internal").is_err());
    route("shop.example.com").expect("a domain of the owner's");
    for bad in
        ["hearth.internal", "a.hearth.internal", "localhost", "192.0.2.1", "Shop.example.com", "shop.example.com."]
    {
        assert!(route(bad).is_err(), "{bad}");
    }
    with(json!({"hostname": "shop.example.com", "protocol": "TCP", "port": 53})).expect_err("a port needs no domain");
    assert!(route(".alice.hearth.internal").is_err());
}

#[test]
fn owners_set_records_at_names_of_their_own_and_nowhere_else() {
    let set = |endpoints: Value| {
        create(
            json!({"apiVersion": "externaldns.k8s.io/v1alpha1", "kind": "DNSEndpoint", "metadata": {"name": "a", "namespace": "alice"},
            "spec": {"endpoints": endpoints}}),
        )
    };
    let one = |name: &str, kind: &str, target: &str| json!({"dnsName": name, "recordType": kind, "targets": [target]});
    let good = [
        one("alice.hearth.internal", "TXT", "hello"),
        one("*.alice.hearth.internal", "CNAME", "photos.alice.hearth.internal"),
        one("_acme-challenge.photos.alice.hearth.internal", "TXT", "token"),
        json!({"dnsName": "mail.alice.hearth.internal", "recordType": "A", "targets": ["198.51.100.1", "198.51.100.2"], "recordTTL": 300}),
    ];
    assert!(set(json!(good)).is_ok());
    let long = json!({"dnsName": "a.alice.hearth.internal", "recordType": "A", "targets": ["198.51.100.1"], "recordTTL": 86400});
    for (bad, part) in [
        (json!([one("bob.hearth.internal", "TXT", "x")]), "must be alice.hearth.internal"),
        (json!([one("malice.hearth.internal", "TXT", "x")]), "must be alice.hearth.internal"),
        (json!([one("hearth.internal", "TXT", "x")]), "must be alice.hearth.internal"),
        (json!([one("x.lan.alice.hearth.internal", "A", "198.51.100.1")]), "inside the home"),
        (json!([one("*.lan.alice.hearth.internal", "TXT", "x")]), "inside the home"),
        (json!([one("x.*.alice.hearth.internal", "TXT", "x")]), "labels"),
        (json!([one("x.alice.hearth.internal", "A", "192.168.1.1")]), "home's network"),
        (json!([one("x.alice.hearth.internal", "NS", "ns.example")]), "must be one of"),
        (
            json!([
                one("x.alice.hearth.internal", "A", "198.51.100.1"),
                one("x.alice.hearth.internal", "A", "198.51.100.2")
            ]),
            "twice",
        ),
        (
            json!([one("x.alice.hearth.internal", "CNAME", "a.example"), one("x.alice.hearth.internal", "TXT", "x")]),
            "nothing else",
        ),
        (json!([long]), "recordTTL"),
    ] {
        let found = causes(set(bad.clone()));
        assert!(found.len() == 1 && found[0].contains(part), "{bad}: {found:?}");
    }
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

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "alice"}, "spec": spec})
}

#[test]
fn a_bare_pod_cannot_choose_its_device() {
    let spec = json!({"containers": [{"name": "a", "image": "x"}]});
    let mut placed = pod(spec.clone());
    placed["spec"]["nodeName"] = json!("of-somebody-else");
    assert!(causes(create(placed))[0].starts_with("spec.nodeName: placement sets it"));
    let old = create(pod(spec)).expect("admitted").object;
    for part in [Part::Main, Part::Region] {
        for (before, after) in [(None, Some("nas")), (Some("nas"), Some("pi")), (Some("nas"), None)] {
            let mut stored = old.value();
            let mut sent = old.value();
            for (value, device) in [(&mut stored, before), (&mut sent, after)] {
                if let Some(device) = device {
                    value["spec"]["nodeName"] = json!(device);
                }
            }
            let stored = Object::from_value(stored).expect("an object");
            let info = registry::of_kind(&GroupKind::POD).expect("a kind");
            let error = prepare_update(info, &stored, sent, part, &context()).expect_err("refused");
            assert!(error.message.contains("spec.nodeName: a pod's spec cannot be changed"), "{error}");
        }
    }
}

#[test]
fn where_a_claims_data_is_only_the_region_says() {
    let claim = |annotations: Value| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "c", "namespace": "alice", "annotations": annotations},
            "spec": {"resources": {"requests": {"storage": "1Gi"}}}})
    };
    for key in ["hearth.dev/device", "hearth.dev/data-deleted"] {
        let found = causes(create(claim(json!({key: "true"}))));
        assert!(found[0].starts_with(&format!("metadata.annotations.{key}: the region sets it")), "{found:?}");
    }
    let info = registry::of_kind(&GroupKind::PERSISTENT_VOLUME_CLAIM).expect("a kind");
    let free = create(claim(json!({"mine": "1"}))).expect("admitted").object;
    let mut pinned = free.value();
    pinned["metadata"]["annotations"]["hearth.dev/device"] = json!("nas");
    let pinned = Object::from_value(pinned).expect("an object");
    for (old, sent, part, kept) in [
        (&free, json!({"hearth.dev/device": "pi", "hearth.dev/data-deleted": "true"}), Part::Main, json!({})),
        (
            &pinned,
            json!({"hearth.dev/device": "pi", "a": "b"}),
            Part::Main,
            json!({"hearth.dev/device": "nas", "a": "b"}),
        ),
        (&pinned, json!({}), Part::Main, json!({"hearth.dev/device": "nas"})),
        (&pinned, Value::Null, Part::Main, json!({"hearth.dev/device": "nas"})),
        (
            &pinned,
            json!({"hearth.dev/device": "nas", "hearth.dev/data-deleted": "true"}),
            Part::Region,
            json!({"hearth.dev/device": "nas", "hearth.dev/data-deleted": "true"}),
        ),
    ] {
        let new = prepare_update(info, old, claim(sent.clone()), part, &context()).expect("admitted").object.value();
        assert_eq!(new["metadata"]["annotations"], kept, "{sent}");
    }
}

#[test]
fn a_namespace_keeps_its_finalizer_until_the_region_lets_it_go() {
    let info = registry::of_kind(&GroupKind::NAMESPACE).expect("a kind");
    let namespace = |finalizers: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "alice", "finalizers": finalizers}});
    let old = create(namespace(json!([NAMESPACE_FINALIZER, "mine"]))).expect("admitted").object;
    for (sent, part, kept) in [
        (json!([]), Part::Main, json!([NAMESPACE_FINALIZER])),
        (Value::Null, Part::Main, json!([NAMESPACE_FINALIZER])),
        (json!(["other"]), Part::Main, json!(["other", NAMESPACE_FINALIZER])),
        (json!(["mine"]), Part::Region, json!(["mine"])),
    ] {
        let new =
            prepare_update(info, &old, namespace(sent.clone()), part, &context()).expect("admitted").object.value();
        assert_eq!(new["metadata"]["finalizers"], kept, "{sent}");
    }
}

#[test]
fn a_template_is_held_to_the_rules_of_what_is_made_of_it() {
    let mut object = deployment();
    object["metadata"]["name"] = json!(vec!["a".repeat(62); 4].join("."));
    object["spec"]["selector"]["matchLabels"] = json!({"app": "web", "bad key": "x", "k": "no/value"});
    object["spec"]["template"]["metadata"] = json!({
        "labels": {"app": "web", "bad key": "x", "k": "no/value"}, "annotations": {"/": "x", "big": "x".repeat(300_000)}});
    let found = causes(create(object));
    for expected in [
        "metadata.name: 251 characters; at most 242",
        "spec.selector.matchLabels.bad key: \"bad key\"",
        "spec.selector.matchLabels.k: \"no/value\"",
        "spec.template.metadata.labels.bad key: \"bad key\"",
        "spec.template.metadata.labels.k: \"no/value\"",
        "spec.template.metadata.annotations./: \"/\"",
        "spec.template.metadata.annotations: 300005 bytes; at most 262144",
    ] {
        assert!(found.iter().any(|cause| cause.starts_with(expected)), "{expected}: {found:?}");
    }
    assert_eq!(found.len(), 7, "{found:?}");
}

#[test]
fn what_apply_keeps_of_itself_does_not_count_as_annotations() {
    let config = |key: &str| {
        create(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "c", "namespace": "alice", "annotations": {key: "x".repeat(300_000)}}}))
    };
    assert!(config(crate::patch::LAST_APPLIED).is_ok());
    assert!(causes(config("mine"))[0].starts_with("metadata.annotations: 300004 bytes"));
}

#[test]
fn an_app_names_its_architectures_as_images_do() {
    let app = |architectures: Value| {
        create(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "App", "metadata": {"name": "a"},
            "spec": {"architectures": architectures, "containers": [{"name": "a", "image": "x"}]}}))
    };
    for good in [json!([]), json!(["amd64"]), json!(["arm64", "arm", "riscv64"])] {
        assert!(app(good.clone()).is_ok(), "{good}");
    }
    assert!(
        causes(app(json!(["x86_64"])))[0].starts_with("spec.architectures[0]: \"x86_64\" is no architecture's name")
    );
    assert_eq!(causes(app(json!(["arm64", "arm64"]))), ["spec.architectures[1]: \"arm64\" is there twice"]);
    assert_eq!(causes(app(json!(["arm64", null]))), ["spec.architectures[1]: must be a string, is null"]);
}

#[test]
fn plain_data_of_a_secret_becomes_data_unless_it_is_malformed() {
    let mut secret =
        json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "eA=="}, "stringData": {"b": "y", "c": null}});
    normalise(&mut secret);
    assert_eq!(secret, json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "eA==", "b": "eQ=="}}));
    for malformed in [json!({"a": 1}), json!("x"), json!(["x"])] {
        let mut secret = json!({"apiVersion": "v1", "kind": "Secret", "stringData": malformed});
        let before = secret.clone();
        normalise(&mut secret);
        assert_eq!(secret, before);
    }
}

#[test]
fn bandwidths_are_refused_with_the_words_of_kubernetes_and_where_they_are() {
    const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
    let small = "resource is unreasonably small (< 1kbit)";
    let mut object = deployment();
    object["metadata"]["annotations"] = json!({INGRESS: "2P"});
    object["spec"]["template"]["metadata"]["annotations"] = json!({"kubernetes.io/egress-bandwidth": "1"});
    assert_eq!(
        causes(create(object)),
        [
            format!("metadata.annotations.{INGRESS}: \"2P\": resource is unreasonably large (> 1Pbit)"),
            format!("spec.template.metadata.annotations.kubernetes.io/egress-bandwidth: \"1\": {small}"),
        ]
    );
    let device = json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "metadata": {"name": "nas"}, "spec": {
        "owner": "alice", "bandwidth": {"ingress": "0"}, "lend": {"pods": 1, "bandwidth": {"egress": "10"}}}});
    let expected = [("spec.bandwidth.ingress", "0"), ("spec.lend.bandwidth.egress", "10")];
    assert_eq!(causes(create(device)), expected.map(|(path, text)| format!("{path}: \"{text}\": {small}")));
    let install = json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Install",
        "metadata": {"name": "a", "namespace": "alice"}, "spec": {"app": "a", "bandwidth": {"ingress": "1M", "egress": "9"}}});
    assert_eq!(causes(create(install)), [format!("spec.bandwidth.egress: \"9\": {small}")]);
    // One of before, when nobody looked, can still be changed in other ways.
    let info = registry::of_kind(&GroupKind::POD).expect("a kind");
    let pod = |annotation: &str, label: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "alice", "labels": {"l": label},
            "annotations": {INGRESS: annotation}}, "spec": {"containers": [{"name": "c", "image": "x"}]}})
    };
    let mut before = create(pod("1M", "a")).expect("admitted").object.value();
    before["metadata"]["annotations"][INGRESS] = json!("fast");
    let before = Object::from_value(before).expect("an object");
    assert!(prepare_update(info, &before, pod("fast", "b"), Part::Main, &context()).is_ok());
    let refused = causes(prepare_update(info, &before, pod("faster", "a"), Part::Main, &context()));
    assert!(
        refused[0].starts_with(&format!("metadata.annotations.{INGRESS}: \"faster\": must be a quantity")),
        "{refused:?}"
    );
}

#[test]
fn a_router_has_an_address_of_the_internet() {
    let device = |ips: Value| {
        create(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "metadata": {"name": "nas"},
            "spec": {"owner": "alice", "publish": {"externalIPs": ips}}}))
    };
    assert!(device(json!(["25.0.0.1", "2a00::1"])).is_ok());
    let found = causes(device(json!(["25.0.0.1", "192.168.1.2", "home.example", "25.0.0.1:443"])));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("spec.publish.externalIPs[1]: 192.168.1.2 is no address by which"), "{found:?}");
    assert_eq!(found[1], "spec.publish.externalIPs[2]: \"home.example\" is no IP address");
    assert_eq!(causes(device(json!(vec!["25.0.0.1"; 9]))), ["spec.publish.externalIPs: at most 8"]);
}
