//! Pending pods find a device, or are told why not.

use hearth_types::{GroupKind, condition, store::Op};
use serde_json::json;

use crate::support::Rig;

fn deployment(replicas: u32) -> serde_json::Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "alice"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web:1",
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]}}}})
}

#[tokio::test]
async fn fifty_pods_of_one_deployment_are_placed_in_few_writes() {
    let rig = Rig::start().await;
    let mut device = rig.connected("nas").await;
    let before = rig.store.writes.load(std::sync::atomic::Ordering::Relaxed);
    rig.create(deployment(50)).await;
    device.until("fifty pods", |desired| desired.keys().filter(|name| name.starts_with("Pod/")).count() == 50).await;
    let pods = rig.list(GroupKind::POD).await;
    let bound: Vec<_> = pods.iter().map(|pod| pod.value()["spec"]["nodeName"] == "nas").collect();
    assert_eq!(bound, [true; 50]);
    let revisions: std::collections::BTreeSet<_> = pods.iter().map(hearth_types::Object::revision).collect();
    assert!(revisions.len() <= 2, "one plan is one transaction: {revisions:?}");
    let writes = rig.store.writes.load(std::sync::atomic::Ordering::Relaxed) - before;
    assert!(writes <= 40, "{writes} writes for one Deployment");
}

#[tokio::test]
async fn a_pod_without_place_is_told_why_and_placed_once_there_is_room() {
    let rig = Rig::start().await;
    let device = rig.connected("nas").await;
    rig.edit(GroupKind::NODE, "", "nas", |node| node["spec"]["unschedulable"] = json!(true)).await;
    rig.create(deployment(1)).await;
    let pods = rig.until_list(GroupKind::POD, "a pod", |pods| pods.len() == 1).await;
    let name = pods[0].name().to_owned();
    let pod =
        rig.until(GroupKind::POD, "alice", &name, "told", |pod| condition::get(pod, "PodScheduled").is_some()).await;
    let told = condition::get(&pod, "PodScheduled").unwrap();
    assert_eq!(
        (told.reason.as_str(), told.message.as_str()),
        ("Unschedulable", "0/1 devices can take it: 1 is cordoned (nas is cordoned)")
    );
    let events = rig.until_list(GroupKind::EVENT, "an event", |events| {
        events.iter().any(|event| event.value()["reason"] == "FailedScheduling")
    });
    let event = events.await.into_iter().find(|event| event.value()["reason"] == "FailedScheduling").unwrap().value();
    assert_eq!(event["message"], "0/1 devices can take it: 1 is cordoned (nas is cordoned)");
    assert_eq!(event["involvedObject"]["name"], name.as_str());
    rig.edit(GroupKind::NODE, "", "nas", |node| node["spec"]["unschedulable"] = json!(false)).await;
    rig.until(GroupKind::POD, "alice", &name, "bound", |pod| pod["spec"]["nodeName"] == "nas").await;
    drop(device);
}

#[tokio::test]
async fn a_deployment_replaces_pods_that_are_deleted_and_scales() {
    let rig = Rig::start().await;
    let mut device = rig.connected("nas").await;
    rig.create(deployment(2)).await;
    device.until("two pods", |desired| desired.keys().filter(|name| name.starts_with("Pod/")).count() == 2).await;
    for pod in device.of_kind("Pod") {
        device.run(&pod).await;
    }
    let available = |count: u64| move |one: &serde_json::Value| one["status"]["availableReplicas"] == count;
    rig.until(GroupKind::DEPLOYMENT, "alice", "web", "2 available", available(2)).await;
    let first = device.of_kind("Pod")[0].clone();
    rig.delete(GroupKind::POD, "alice", first["metadata"]["name"].as_str().unwrap()).await;
    device
        .until("its replacement", |desired| desired.keys().filter(|name| name.starts_with("Pod/")).count() == 3)
        .await;
    device.report(&first, &json!({"phase": "Failed"}), true).await;
    rig.edit(GroupKind::DEPLOYMENT, "alice", "web", |one| one["spec"]["replicas"] = json!(0)).await;
    device
        .until("all marked", |desired| {
            let mut pods = desired.values().filter(|one| one["kind"] == "Pod").peekable();
            pods.peek().is_some() && pods.all(|pod| pod["metadata"]["deletionTimestamp"].is_string())
        })
        .await;
}

#[tokio::test]
async fn what_a_controller_is_refused_is_told_where_people_look() {
    let rig = Rig::start().await;
    let _device = rig.connected("nas").await;
    let makes_a_pod = |op: &Op| matches!(op, Op::Create { object } if *object.kind() == GroupKind::POD);
    *rig.store.refuses.lock().unwrap() = Some(makes_a_pod);
    rig.create(deployment(1)).await;
    let failure = |one: &serde_json::Value| condition::get(one, "ReplicaFailure");
    let told = rig.until(GroupKind::DEPLOYMENT, "alice", "web", "told", |one| failure(one).is_some()).await;
    let told = failure(&told).unwrap();
    assert_eq!(told.message, "what the replicaset controller asks for was refused: the test refuses this");
    rig.until_list(GroupKind::EVENT, "an event", |events| {
        events.iter().map(hearth_types::Object::value).any(|event| {
            event["reason"] == "Refused"
                && event["type"] == "Warning"
                && event["involvedObject"]["kind"] == "ReplicaSet"
        })
    })
    .await;
    *rig.store.refuses.lock().unwrap() = None;
    rig.until_list(GroupKind::POD, "a pod", |pods| pods.len() == 1).await;
    rig.until(GroupKind::DEPLOYMENT, "alice", "web", "taken back", |one| failure(one).is_none()).await;
}

#[tokio::test]
async fn a_device_that_says_it_runs_short_of_disk_gets_no_pod_until_it_says_otherwise() {
    let rig = Rig::start().await;
    let mut device = rig.connected("nas").await;
    let says = |truth: &str, reason: &str| {
        json!({"info": {"cpuMillis": 1}, "conditions": [
            {"type": "DiskPressure", "status": truth, "reason": reason, "message": "m"},
            {"type": "Connected", "status": "False", "reason": "Lie", "message": "it is not its own to tell"}]})
    };
    let own = rig.get(GroupKind::DEVICE, "", "nas").await.unwrap();
    device.report(&own, &says("True", "KubeletHasDiskPressure"), false).await;
    let node = rig.until(GroupKind::NODE, "", "nas", "told", |node| condition::is_true(node, "DiskPressure")).await;
    assert_eq!(condition::get(&node, "DiskPressure").unwrap().reason, "KubeletHasDiskPressure");
    let kept = rig.get(GroupKind::DEVICE, "", "nas").await.unwrap();
    assert!(condition::is_true(&kept, "DiskPressure") && condition::is_true(&kept, "Connected"), "{kept}");
    assert_eq!(kept["status"]["info"], own["status"]["info"]);
    rig.create(deployment(1)).await;
    let pods = rig.until_list(GroupKind::POD, "a pod", |pods| pods.len() == 1).await;
    let name = pods[0].name().to_owned();
    let pod =
        rig.until(GroupKind::POD, "alice", &name, "told", |pod| condition::get(pod, "PodScheduled").is_some()).await;
    assert_eq!(
        condition::get(&pod, "PodScheduled").unwrap().message,
        "0/1 devices can take it: 1 has the taint node.kubernetes.io/disk-pressure:NoSchedule, which it does not tolerate (nas has the \
         taint node.kubernetes.io/disk-pressure:NoSchedule, which it does not tolerate)"
    );
    device.report(&own, &says("False", "not a word!"), false).await;
    rig.until(GroupKind::POD, "alice", &name, "bound", |pod| pod["spec"]["nodeName"] == "nas").await;
    let node = rig.get(GroupKind::NODE, "", "nas").await.unwrap();
    assert_eq!(condition::get(&node, "DiskPressure").unwrap().reason, "Unknown");
    assert_eq!(node["spec"].get("taints"), None);
}
