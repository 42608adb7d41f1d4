#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{replicaset, testing::World};

fn value(replicas: i64, strategy: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "alice"}, "spec": {
        "replicas": replicas, "strategy": strategy, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}}})
}

fn world(replicas: i64, strategy: &Value) -> World {
    let mut world = World { now: Timestamp(1_000_000), ..World::default() };
    world.create(value(replicas, strategy));
    world
}

fn rolling() -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
}

/// One look of every controller that takes part. Whether anything was done.
fn round(world: &mut World) -> bool {
    let mut moved = false;
    let deployment = world.find("Deployment", "web").unwrap();
    let (sets, pods) = (world.all("ReplicaSet"), world.pods(&[]));
    let out = reconcile(Inputs { deployment: &deployment, replica_sets: &sets, pods: &pods }, world.now);
    moved |= !out.actions.is_empty();
    world.apply(&out);
    for set in world.all("ReplicaSet") {
        let pods: Vec<_> =
            world.pods(&[]).into_iter().filter(|seen| seen.pod.controller.as_ref() == Some(set.uid())).collect();
        let out = replicaset::reconcile(replicaset::Inputs { replica_set: &set, pods: &pods }, world.now);
        moved |= !out.actions.is_empty();
        world.apply(&out);
    }
    moved
}

fn settle(world: &mut World) {
    for _ in 0..20 {
        if !round(world) {
            return;
        }
    }
    panic!("it never settles");
}

/// The device starts one pod that does not run yet, or ends one that is marked.
fn step(world: &mut World) -> bool {
    for pod in world.all("Pod") {
        let mut value = pod.value();
        if pod.is_deleting() {
            world.objects.remove(pod.key());
            return true;
        }
        if value["status"]["phase"] == "Pending" {
            value["spec"]["nodeName"] = json!("nas");
            value["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
            world.put(&Object::from_value(value).unwrap());
            return true;
        }
    }
    false
}

fn finish(world: &mut World) {
    settle(world);
    while step(world) {
        settle(world);
    }
}

fn images_of(world: &World, ready_only: bool) -> Vec<String> {
    let pods = world.pods(&[]);
    let pods = pods.iter().filter(|seen| seen.pod.is_active() && (!ready_only || seen.ready()));
    pods.map(|seen| text(&seen.pod.object.value(), "/spec/containers/0/image").to_owned()).collect()
}

fn update(world: &mut World, image: &str) {
    world.edit("Deployment", "web", |one| one["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image));
}

fn condition(world: &World, kind: &str) -> (String, String) {
    let value = world.find("Deployment", "web").unwrap().value();
    let found = hearth_types::condition::get(&value, kind).unwrap();
    (format!("{:?}", found.status), found.reason)
}

#[test]
fn percentages_round_as_kubernetes_rounds_them() {
    for (amount, total, up, expected) in [
        (json!("25%"), 3, true, 1),
        (json!("25%"), 3, false, 0),
        (json!("25%"), 4, true, 1),
        (json!("30%"), 10, true, 3),
        (json!("1%"), 10, true, 1),
        (json!("100%"), 7, false, 7),
        (json!(2), 10, true, 2),
        (json!("odd"), 10, true, 0),
    ] {
        assert_eq!(resolve(Some(&amount), total, up), expected, "{amount} of {total}");
    }
    assert_eq!(resolve(None, 10, true), 0);
}

#[test]
fn a_deployment_makes_a_replica_set_and_tells_how_far_it_is() {
    let mut world = world(2, &rolling());
    settle(&mut world);
    let sets = world.all("ReplicaSet");
    assert_eq!(sets.len(), 1);
    let set = sets[0].value();
    let hash = text(&set, "/metadata/labels/pod-template-hash");
    assert_eq!(sets[0].name(), format!("web-{hash}"));
    assert_eq!(text(&set, "/spec/selector/matchLabels/pod-template-hash"), hash);
    assert_eq!(condition(&world, "Available"), ("False".into(), "MinimumReplicasUnavailable".into()));
    assert_eq!(condition(&world, "Progressing"), ("True".into(), "ReplicaSetUpdated".into()));
    finish(&mut world);
    let status = world.find("Deployment", "web").unwrap().value()["status"].clone();
    for count in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
        assert_eq!(status[count], 2, "{count}");
    }
    assert_eq!(status["unavailableReplicas"], 0);
    assert_eq!(condition(&world, "Available").0, "True");
    assert_eq!(condition(&world, "Progressing"), ("True".into(), "NewReplicaSetAvailable".into()));
    assert_eq!(world.events[0].0, "ScalingReplicaSet");
}

#[test]
fn recreate_waits_until_the_last_old_pod_is_gone() {
    let mut world = world(2, &json!({"type": "Recreate"}));
    finish(&mut world);
    update(&mut world, "x:2");
    settle(&mut world);
    assert_eq!(world.all("Pod").len(), 2);
    assert!(world.all("Pod").iter().all(Object::is_deleting));
    step(&mut world);
    settle(&mut world);
    assert_eq!(world.all("Pod").len(), 1, "one old pod still stops, so none is made");
    finish(&mut world);
    assert_eq!(images_of(&world, true), ["x:2", "x:2"]);
}

#[test]
fn going_back_uses_the_old_replica_set_as_the_newest_revision() {
    let mut world = world(1, &rolling());
    finish(&mut world);
    update(&mut world, "x:2");
    finish(&mut world);
    update(&mut world, "x:1");
    finish(&mut world);
    assert_eq!(world.all("ReplicaSet").len(), 2);
    assert_eq!(images_of(&world, true), ["x:1"]);
    assert_eq!(
        text(
            &world.find("Deployment", "web").unwrap().value(),
            "/metadata/annotations/deployment.kubernetes.io~1revision"
        ),
        "3"
    );
}

#[test]
fn history_is_kept_up_to_its_limit() {
    let mut world = world(1, &rolling());
    world.edit("Deployment", "web", |one| one["spec"]["revisionHistoryLimit"] = json!(2));
    for version in 1..6 {
        update(&mut world, &format!("x:{version}"));
        finish(&mut world);
    }
    assert_eq!(world.all("ReplicaSet").len(), 3, "the present one and two of the past");
}

#[test]
fn a_paused_deployment_scales_and_does_not_roll() {
    let mut world = world(2, &rolling());
    finish(&mut world);
    world.edit("Deployment", "web", |one| {
        one["spec"]["paused"] = json!(true);
        one["spec"]["replicas"] = json!(3);
        one["spec"]["template"]["spec"]["containers"][0]["image"] = json!("x:2");
    });
    finish(&mut world);
    assert_eq!(images_of(&world, true), ["x:1", "x:1", "x:1"]);
    world.edit("Deployment", "web", |one| one["spec"]["paused"] = json!(false));
    finish(&mut world);
    assert_eq!(images_of(&world, true), ["x:2", "x:2", "x:2"]);
}

#[test]
fn what_never_gets_ready_exceeds_the_deadline() {
    let mut world = world(1, &rolling());
    settle(&mut world);
    world.now = world.now.plus(Duration::from_secs(599));
    settle(&mut world);
    assert_eq!(condition(&world, "Progressing").1, "ReplicaSetUpdated");
    world.now = world.now.plus(Duration::from_secs(1));
    settle(&mut world);
    assert_eq!(condition(&world, "Progressing"), ("False".into(), "ProgressDeadlineExceeded".into()));
    finish(&mut world);
    assert_eq!(condition(&world, "Progressing").1, "NewReplicaSetAvailable");
}

#[test]
fn pods_that_keep_data_are_updated_one_after_the_other() {
    let mut with_data =
        value(1, &json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}));
    with_data["spec"]["template"]["spec"]["volumes"] =
        json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    let mut world = World { now: Timestamp(1_000_000), ..World::default() };
    world.create(with_data);
    settle(&mut world);
    step(&mut world);
    settle(&mut world);
    world.edit("Deployment", "web", |one| one["spec"]["template"]["spec"]["containers"][0]["image"] = json!("x:2"));
    settle(&mut world);
    let all = |world: &World, image: &str| {
        let is = |pod: &Object| pod.value().pointer("/spec/containers/0/image") == Some(&json!(image));
        let pods = world.all("Pod");
        (
            pods.iter().filter(|pod| is(pod) && pod.is_deleting()).count(),
            pods.iter().filter(|pod| is(pod) && !pod.is_deleting()).count(),
        )
    };
    assert_eq!(all(&world, "x:1"), (1, 0), "the old one stops first");
    while step(&mut world) {
        settle(&mut world);
    }
    assert_eq!((all(&world, "x:1"), all(&world, "x:2")), ((0, 0), (0, 1)));
}

#[test]
fn what_is_said_of_bandwidth_is_passed_on_to_all_sets_and_rolls_out_nothing() {
    const EGRESS: &str = "kubernetes.io/egress-bandwidth";
    let mut world = world(2, &json!({"type": "RollingUpdate"}));
    finish(&mut world);
    update(&mut world, "x:2");
    finish(&mut world);
    for said in [json!("5M"), Value::Null] {
        world.edit("Deployment", "web", |one| one["metadata"]["annotations"][EGRESS] = said.clone());
        settle(&mut world);
        let sets = world.all("ReplicaSet");
        assert_eq!(sets.len(), 2, "none is made for it");
        for set in sets {
            assert_eq!(set.value()["metadata"]["annotations"][EGRESS], said, "{}", set.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_rolling_update_keeps_to_its_bounds_and_ends(
        replicas in 1_i64..8,
        surge in 0_i64..4,
        unavailable in 0_i64..4,
        percent in any::<bool>(),
        scaled in proptest::option::of(1_i64..8),
    ) {
        let amount = |number: i64| if percent { json!(format!("{}%", number * 25)) } else { json!(number) };
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": amount(surge), "maxUnavailable": amount(unavailable)}});
        let mut world = world(replicas, &strategy);
        finish(&mut world);
        prop_assert_eq!(images_of(&world, true).len() as i64, replicas);
        update(&mut world, "x:2");
        if let Some(scaled) = scaled {
            world.edit("Deployment", "web", |one| one["spec"]["replicas"] = json!(scaled));
        }
        let desired = scaled.unwrap_or(replicas);
        let most = desired + resolve(Some(&amount(surge)), desired, true);
        let mut least = desired - resolve(Some(&amount(unavailable)), desired, false);
        if most == desired && least == desired {
            least -= 1;
        }
        // Where it was scaled, the bounds hold from where it stood.
        let (most, least) = (most.max(replicas), least.min(replicas));
        settle(&mut world);
        while step(&mut world) {
            settle(&mut world);
            let all = images_of(&world, false).len() as i64;
            let ready = images_of(&world, true).len() as i64;
            prop_assert!(all <= most, "{} pods, at most {}", all, most);
            prop_assert!(ready >= least, "{} ready, at least {}", ready, least);
        }
        prop_assert_eq!(images_of(&world, true), vec!["x:2".to_owned(); usize::try_from(desired).unwrap()]);
    }
}
