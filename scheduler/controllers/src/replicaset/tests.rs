#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::testing::{World, creates, deletes};

fn set(replicas: usize, claims: bool) -> Value {
    let volumes = if claims { json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]) } else { json!([]) };
    json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web", "namespace": "alice"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"volumes": volumes, "containers": [{"name": "c", "image": "x"}]}}}})
}

fn world(replicas: usize, claims: bool) -> World {
    let mut world = World { now: Timestamp(1_000_000), ..World::default() };
    world.create(set(replicas, claims));
    world
}

fn look(world: &World, silent: &[&str]) -> Reconciled {
    let set = world.find("ReplicaSet", "web").unwrap();
    let pods: Vec<_> = world
        .pods(silent)
        .into_iter()
        .filter(|seen| seen.pod.controller.as_ref().is_none_or(|uid| uid == set.uid()))
        .collect();
    reconcile(Inputs { replica_set: &set, pods: &pods }, world.now)
}

fn settle(world: &mut World, silent: &[&str]) -> Vec<Reconciled> {
    let mut all = Vec::new();
    for _ in 0..6 {
        let out = look(world, silent);
        if out.actions.is_empty() {
            return all;
        }
        world.apply(&out);
        all.push(out);
    }
    panic!("it never settles: {all:#?}");
}

fn make(world: &mut World, name: &str, change: impl FnOnce(&mut Value)) {
    let mut value = world.find("Pod", name).unwrap().value();
    change(&mut value);
    world.put(&Object::from_value(value).unwrap());
}

fn names(world: &World) -> Vec<String> {
    world.all("Pod").iter().map(|pod| pod.name().to_owned()).collect()
}

fn fail(world: &mut World, name: &str, at: i64) {
    make(world, name, |pod| {
        pod["spec"]["nodeName"] = json!("nas");
        pod["status"] = json!({"phase": "Failed", "containerStatuses": [{"name": "c",
            "state": {"terminated": {"exitCode": 1, "finishedAt": Timestamp(at).to_string()}}}]});
    });
}

#[test]
fn pods_are_made_and_taken_away_to_match() {
    let mut world = world(3, false);
    settle(&mut world, &[]);
    let pods = world.all("Pod");
    assert_eq!(pods.len(), 3);
    let pod = pods[0].value();
    assert!(pod["metadata"]["name"].as_str().unwrap().starts_with("web-"));
    assert_eq!(pod["metadata"]["ownerReferences"][0]["name"], "web");
    assert_eq!(world.find("ReplicaSet", "web").unwrap().value()["status"]["replicas"], 3);
    world.edit("ReplicaSet", "web", |set| set["spec"]["replicas"] = json!(0));
    settle(&mut world, &[]);
    assert!(names(&world).is_empty(), "pods without device go at once");
}

#[test]
fn those_that_do_the_least_go_first() {
    let mut world = world(4, false);
    settle(&mut world, &[]);
    let all = names(&world);
    for (name, device) in [(&all[0], "nas"), (&all[1], "nas"), (&all[2], "attic")] {
        make(&mut world, name, |pod| {
            pod["spec"]["nodeName"] = json!(device);
            pod["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        });
    }
    make(&mut world, &all[0], |pod| pod["status"]["conditions"][0]["status"] = json!("False"));
    let order = |replicas: usize, world: &mut World| {
        world.edit("ReplicaSet", "web", |set| set["spec"]["replicas"] = json!(replicas));
        let out = look(world, &["attic"]);
        world.apply(&out);
        out.actions.iter().find_map(|action| match action {
            Action::Delete { base, .. } => Some(base.name().to_owned()),
            _ => None,
        })
    };
    assert_eq!(order(3, &mut world).as_ref(), Some(&all[3]), "the unbound");
    let second = order(2, &mut world).unwrap();
    assert!([&all[0], &all[2]].contains(&&second), "one that is not ready or whose device is silent: {second}");
    order(1, &mut world);
    let left: Vec<_> = world.pods(&[]).into_iter().filter(|seen| seen.pod.is_active()).collect();
    assert_eq!(left[0].pod.object.name(), all[1], "the ready one is left");
}

#[test]
fn a_pod_on_a_silent_device_is_never_replaced() {
    let mut world = world(1, false);
    settle(&mut world, &[]);
    let name = names(&world)[0].clone();
    make(&mut world, &name, |pod| {
        pod["spec"]["nodeName"] = json!("nas");
        pod["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    });
    settle(&mut world, &[]);
    assert_eq!(world.find("ReplicaSet", "web").unwrap().value()["status"]["readyReplicas"], 1);
    let outs = settle(&mut world, &["nas"]);
    assert!(outs.iter().all(|out| creates(out) + deletes(out) == 0));
    let status = world.find("ReplicaSet", "web").unwrap().value()["status"].clone();
    assert_eq!(
        (&status["replicas"], &status["readyReplicas"]),
        (&json!(1), &json!(0)),
        "there, and not known to be ready"
    );
}

#[test]
fn a_failed_pod_is_replaced_with_a_growing_pause() {
    let mut world = world(1, false);
    settle(&mut world, &[]);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let name = names(&world)[0].clone();
        let at = world.now.0;
        fail(&mut world, &name, at);
        settle(&mut world, &[]);
        let out = look(&world, &[]);
        assert_eq!(names(&world), std::slice::from_ref(&name), "it waits");
        let pause = out.again.unwrap();
        pauses.push(pause.as_secs());
        world.now = world.now.plus(pause);
        let out = look(&world, &[]);
        assert_eq!((creates(&out), deletes(&out)), (1, 1));
        world.apply(&out);
        settle(&mut world, &[]);
        assert_eq!(names(&world).len(), 1);
        assert_ne!(names(&world)[0], name);
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
    let name = names(&world)[0].clone();
    world.now = world.now.plus(BACKOFF_RESET);
    let at = world.now.0;
    fail(&mut world, &name, at);
    settle(&mut world, &[]);
    assert_eq!(look(&world, &[]).again, Some(FIRST_BACKOFF), "it lived long: a new row");
}

#[test]
fn pods_that_keep_data_never_overlap() {
    for (claims, made) in [(true, 0), (false, 1)] {
        let mut world = world(1, claims);
        settle(&mut world, &[]);
        let name = names(&world)[0].clone();
        make(&mut world, &name, |pod| {
            pod["spec"]["nodeName"] = json!("nas");
            pod["metadata"]["deletionTimestamp"] = json!("2023-11-14T22:13:20Z");
        });
        assert_eq!(creates(&look(&world, &[])), made, "claims: {claims}");
        world.objects.retain(|key, _| *key.name != *name);
        assert_eq!(creates(&look(&world, &[])), 1, "once the old one is gone");
    }
}

#[test]
fn orphans_are_adopted_and_those_with_other_labels_released() {
    let mut world = world(2, false);
    world.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stray", "namespace": "alice", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "x"}]}}));
    settle(&mut world, &[]);
    assert_eq!(names(&world).len(), 2, "one was there already: {:?}", names(&world));
    let set = world.find("ReplicaSet", "web").unwrap();
    let stray = world.find("Pod", "stray").unwrap().value();
    assert_eq!(stray["metadata"]["ownerReferences"][0]["uid"], set.uid().as_str());
    world.edit("Pod", "stray", |pod| pod["metadata"]["labels"]["app"] = json!("debug"));
    settle(&mut world, &[]);
    assert_eq!(names(&world).len(), 3, "it is let go and replaced");
    assert!(
        world.find("Pod", "stray").unwrap().value()["metadata"]
            .get("ownerReferences")
            .is_none_or(|owners| owners == &json!([]))
    );
}

#[test]
fn availability_waits_for_min_ready_seconds() {
    let mut world = World { now: Timestamp(1_000_000), ..World::default() };
    let mut value = set(1, false);
    value["spec"]["minReadySeconds"] = json!(30);
    world.create(value);
    settle(&mut world, &[]);
    let name = names(&world)[0].clone();
    let since = world.now.to_string();
    make(&mut world, &name, |pod| {
        pod["spec"]["nodeName"] = json!("nas");
        pod["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}]});
    });
    settle(&mut world, &[]);
    assert_eq!(look(&world, &[]).again, Some(Duration::from_secs(30)));
    assert_eq!(world.find("ReplicaSet", "web").unwrap().value()["status"]["availableReplicas"], 0);
    world.now = world.now.plus(Duration::from_secs(30));
    settle(&mut world, &[]);
    assert_eq!(world.find("ReplicaSet", "web").unwrap().value()["status"]["availableReplicas"], 1);
}

proptest! {
    #[test]
    fn whatever_happened_it_settles_at_what_is_asked_for(
        replicas in 0_usize..5,
        more in 0_usize..5,
        fates in proptest::collection::vec(0..5_u8, 0..8),
        claims in any::<bool>(),
    ) {
        let mut world = world(replicas, claims);
        settle(&mut world, &[]);
        for (name, fate) in names(&world).into_iter().zip(fates) {
            match fate {
                0 => fail(&mut world, &name, 0),
                1 => world.objects.retain(|key, _| *key.name != *name),
                2 => make(&mut world, &name, |pod| pod["spec"]["nodeName"] = json!("silent")),
                3 => make(&mut world, &name, |pod| {
                    pod["spec"]["nodeName"] = json!("nas");
                    pod["metadata"]["deletionTimestamp"] = json!("2023-11-14T22:13:20Z");
                }),
                _ => make(&mut world, &name, |pod| {
                    pod["spec"]["nodeName"] = json!("nas");
                    pod["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
                }),
            }
        }
        world.edit("ReplicaSet", "web", |set| set["spec"]["replicas"] = json!(more));
        settle(&mut world, &["silent"]);
        world.now = world.now.plus(MAX_BACKOFF);
        settle(&mut world, &["silent"]);
        // The devices end what is marked.
        world.objects.retain(|_, object| !object.is_deleting());
        settle(&mut world, &["silent"]);
        let active = world.pods(&["silent"]).iter().filter(|seen| seen.pod.is_active()).count();
        prop_assert_eq!(active, more);
    }
}

#[test]
fn living_pods_follow_what_is_said_of_bandwidth_and_none_is_replaced() {
    const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
    const EGRESS: &str = "kubernetes.io/egress-bandwidth";
    let mut world = world(2, false);
    settle(&mut world, &[]);
    let before = names(&world);
    let said = |world: &World| {
        let pods = world.all("Pod").into_iter().map(|pod| pod.value()["metadata"]["annotations"].clone());
        let all: std::collections::BTreeSet<String> = pods.map(|one| one.to_string()).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all.into_iter().next().unwrap()
    };
    for (annotations, expected) in [
        (json!({INGRESS: "10M", EGRESS: "1M"}), json!({EGRESS: "1M", INGRESS: "10M"}).to_string()),
        (json!({INGRESS: "20M", "other": "x"}), json!({INGRESS: "20M"}).to_string()),
        (json!({}), "null".to_owned()),
    ] {
        world.edit("ReplicaSet", "web", |set| set["metadata"]["annotations"] = annotations);
        settle(&mut world, &[]);
        assert_eq!(said(&world), expected);
        assert_eq!(names(&world), before, "none is replaced");
    }
    // The template's is what holds where the ReplicaSet itself says nothing, and new pods have what all have.
    world.edit("ReplicaSet", "web", |set| {
        set["spec"]["template"]["metadata"]["annotations"] = json!({INGRESS: "5M", EGRESS: "2M"});
        set["metadata"]["annotations"] = json!({EGRESS: "3M"});
        set["spec"]["replicas"] = json!(3);
    });
    settle(&mut world, &[]);
    assert_eq!((world.all("Pod").len(), said(&world)), (3, json!({EGRESS: "3M", INGRESS: "5M"}).to_string()));
}
