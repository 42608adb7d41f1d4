//! From App and Install to an app that answers, and back.

use hearth_types::{GroupKind, Object, condition};
use serde_json::json;

use crate::support::{FakeDevice, Rig};

fn ready_reason(object: &serde_json::Value) -> String {
    condition::get(object, "Ready").map(|one| one.reason).unwrap_or_default()
}

#[tokio::test]
async fn an_install_becomes_a_pod_on_the_device_and_a_route_to_it() {
    let rig = Rig::start().await;
    rig.install("notes").await;
    rig.until(GroupKind::INSTALL, "alice", "notes", "AppNotFound", |one| ready_reason(one) == "AppNotFound").await;
    rig.app().await;
    rig.until(GroupKind::INSTALL, "alice", "notes", "Pending, and why", |one| {
        let ready = condition::get(one, "Ready").unwrap();
        ready.reason == "Pending" && ready.message.starts_with("0/0 devices can take it: alice has no device")
    })
    .await;

    let mut device = rig.connected("nas").await;
    let pod = device.pod().await;
    assert_eq!(pod["spec"]["nodeName"], "nas");
    device
        .until("its claim and Route", |desired| {
            desired.contains_key("PersistentVolumeClaim/alice/notes-data") && desired.contains_key("Route/alice/notes")
        })
        .await;
    assert!(device.desired.contains_key("Device//nas"));
    rig.until(GroupKind::INSTALL, "alice", "notes", "Starting", |one| ready_reason(one) == "Starting").await;

    device.run(&pod).await;
    let install =
        rig.until(GroupKind::INSTALL, "alice", "notes", "Ready", |one| condition::is_true(one, "Ready")).await;
    assert_eq!(install["status"]["hostname"], "notes.alice.hearth.internal");
    assert_eq!(install["status"]["device"], "nas");
    for one in ["AppFound", "PermissionsGranted", "Deployed"] {
        assert!(condition::is_true(&install, one), "{one}: {install:#}");
    }
    let route = rig.until(GroupKind::ROUTE, "alice", "notes", "a ready endpoint", |route| {
        route.pointer("/status/endpoints/0/ready") == Some(&json!(true))
    });
    assert_eq!(route.await["status"]["endpoints"][0]["pod"], pod["metadata"]["name"]);
    let found = rig.handle.routes().lookup("notes.alice.hearth.internal").unwrap();
    assert_eq!(found.devices, [hearth_types::DeviceName::from("nas")]);
    let stored = rig.until(GroupKind::POD, "alice", pod["metadata"]["name"].as_str().unwrap(), "Running", |pod| {
        pod["status"]["phase"] == "Running"
    });
    assert!(condition::is_true(&stored.await, "PodScheduled"), "placement's condition outlives the device's report");
    let events = rig.until_list(GroupKind::EVENT, "the story", |events| {
        let has = |reason: &str| events.iter().any(|event| event.value()["reason"] == reason);
        has("FailedScheduling") && has("Scheduled") && has("ScalingReplicaSet")
    });
    events.await;
}

#[tokio::test]
async fn deleting_an_install_stops_its_pods_gracefully_and_keeps_its_data() {
    let rig = Rig::start().await;
    rig.app().await;
    let mut device = rig.connected("nas").await;
    rig.install("notes").await;
    let pod = device.pod().await;
    device.run(&pod).await;
    rig.until(GroupKind::INSTALL, "alice", "notes", "Ready", |one| condition::is_true(one, "Ready")).await;

    rig.delete(GroupKind::INSTALL, "alice", "notes").await;
    let name = pod["metadata"]["name"].as_str().unwrap();
    rig.until(GroupKind::POD, "alice", name, "marked", |pod| pod.pointer("/metadata/deletionTimestamp").is_some())
        .await;
    device
        .until("the mark", |desired| {
            desired.values().any(|one| one["kind"] == "Pod" && one["metadata"]["deletionTimestamp"].is_string())
        })
        .await;
    rig.until_list(GroupKind::ROUTE, "no Route", <[Object]>::is_empty).await;
    rig.until_list(GroupKind::DEPLOYMENT, "no Deployment", <[Object]>::is_empty).await;
    assert_eq!(rig.list(GroupKind::POD).await.len(), 1, "only its device ends a pod");

    device.report(&pod, &json!({"phase": "Succeeded"}), true).await;
    rig.until_list(GroupKind::POD, "no pod", <[Object]>::is_empty).await;
    device.until("no pod", |desired| !desired.keys().any(|name| name.starts_with("Pod/"))).await;
    let claim = rig.get(GroupKind::PERSISTENT_VOLUME_CLAIM, "alice", "notes-data").await.expect("the data is kept");
    assert_eq!(claim["status"]["phase"], "Bound");
    assert!(device.desired.contains_key("PersistentVolumeClaim/alice/notes-data"));

    rig.delete(GroupKind::PERSISTENT_VOLUME_CLAIM, "alice", "notes-data").await;
    device
        .until("the claim's mark", |desired| {
            desired["PersistentVolumeClaim/alice/notes-data"]["metadata"]["deletionTimestamp"].is_string()
        })
        .await;
    let claim = device.desired["PersistentVolumeClaim/alice/notes-data"].clone();
    assert!(
        rig.get(GroupKind::PERSISTENT_VOLUME_CLAIM, "alice", "notes-data").await.is_some(),
        "it waits for the device"
    );
    device.report(&claim, &json!({"phase": "Bound"}), true).await;
    rig.until_list(GroupKind::PERSISTENT_VOLUME_CLAIM, "no claim", <[Object]>::is_empty).await;
}

#[tokio::test]
async fn an_install_that_is_stopped_and_started_again_finds_its_data_on_the_same_device() {
    let rig = Rig::start().await;
    rig.app().await;
    let mut nas = rig.connected("nas").await;
    rig.install("notes").await;
    let first = nas.pod().await;
    nas.run(&first).await;
    let _other: FakeDevice = rig.connected("attic").await;
    rig.edit(GroupKind::INSTALL, "alice", "notes", |one| one["spec"]["stopped"] = json!(true)).await;
    nas.until("the mark", |desired| {
        desired.values().any(|one| one["kind"] == "Pod" && one["metadata"]["deletionTimestamp"].is_string())
    })
    .await;
    nas.report(&first, &json!({"phase": "Succeeded"}), true).await;
    let install = rig.until(GroupKind::INSTALL, "alice", "notes", "Stopped", |one| {
        condition::get(one, "Ready").is_some_and(|one| one.message.contains("data and name are kept"))
    });
    assert_eq!(ready_reason(&install.await), "Stopped");
    let route =
        rig.until(GroupKind::ROUTE, "alice", "notes", "stopped", |route| route["spec"]["stopped"] == true).await;
    assert_eq!(route["status"]["endpoints"][0]["device"], "nas", "its last device answers for it");

    rig.edit(GroupKind::INSTALL, "alice", "notes", |one| one["spec"]["stopped"] = json!(false)).await;
    nas.until("a new pod", |desired| {
        desired.values().any(|one| one["kind"] == "Pod" && one["metadata"]["uid"] != first["metadata"]["uid"])
    })
    .await;
}

#[tokio::test]
async fn an_app_that_is_updated_is_recreated_one_pod_at_a_time() {
    let rig = Rig::start().await;
    rig.app().await;
    let mut device = rig.connected("nas").await;
    rig.install("notes").await;
    let old = device.pod().await;
    device.run(&old).await;
    rig.edit(GroupKind::APP, "", "notes", |app| app["spec"]["containers"][0]["image"] = json!("notes:2")).await;
    device
        .until("the mark", |desired| {
            desired.values().any(|one| one["kind"] == "Pod" && one["metadata"]["deletionTimestamp"].is_string())
        })
        .await;
    assert_eq!(rig.list(GroupKind::POD).await.len(), 1, "the new one waits for the old to end");
    device.report(&old, &json!({"phase": "Succeeded"}), true).await;
    device
        .until("the new version", |desired| {
            desired
                .values()
                .any(|one| one.pointer("/spec/containers/0/image") == Some(&json!("notes:2")) && one["kind"] == "Pod")
        })
        .await;
    let new = device.pod().await;
    device.run(&new).await;
    rig.until(GroupKind::DEPLOYMENT, "alice", "notes", "rolled out", |one| {
        condition::get(one, "Progressing").is_some_and(|one| one.reason == "NewReplicaSetAvailable")
            && one["status"]["updatedReplicas"] == 1
    })
    .await;
}

#[tokio::test]
async fn a_volume_has_one_writer_also_when_its_deployment_is_made_anew() {
    let rig = Rig::start().await;
    rig.app().await;
    let mut device = rig.connected("nas").await;
    rig.install("notes").await;
    let old = device.pod().await;
    device.run(&old).await;
    rig.delete(GroupKind::DEPLOYMENT, "alice", "notes").await;
    let old_name = old["metadata"]["name"].as_str().unwrap();
    let expected =
        format!("0/1 devices can take it: its volume notes-data is in use by pod {old_name}, which is stopping");
    let waits = |pod: &Object| condition::get(&pod.value(), "PodScheduled").is_some_and(|one| one.message == expected);
    let pods = rig.until_list(GroupKind::POD, "a pod that waits", |pods| pods.iter().any(waits)).await;
    assert_eq!(pods.len(), 2);
    let new = pods.iter().find(|pod| pod.name() != old_name).unwrap().name().to_owned();
    assert!(rig.get(GroupKind::POD, "alice", &new).await.unwrap()["spec"].get("nodeName").is_none());
    device.report(&old, &json!({"phase": "Succeeded"}), true).await;
    rig.until(GroupKind::POD, "alice", &new, "bound", |pod| pod["spec"]["nodeName"] == "nas").await;
}

#[tokio::test]
async fn a_claim_that_is_to_go_does_not_wait_for_a_device_that_was_removed() {
    let rig = Rig::start().await;
    let device = rig.connected("nas").await;
    rig.create(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "namespace": "alice", "annotations": {"hearth.dev/device": "nas"}},
        "spec": {"resources": {"requests": {"storage": "1Gi"}}}}))
        .await;
    rig.until(GroupKind::PERSISTENT_VOLUME_CLAIM, "alice", "c", "Bound", |one| one["status"]["phase"] == "Bound").await;
    rig.delete(GroupKind::PERSISTENT_VOLUME_CLAIM, "alice", "c").await;
    drop(device);
    rig.delete(GroupKind::DEVICE, "", "nas").await;
    rig.until_list(GroupKind::NODE, "no Node", <[Object]>::is_empty).await;
    rig.until_list(GroupKind::PERSISTENT_VOLUME_CLAIM, "no claim", <[Object]>::is_empty).await;
}

#[tokio::test]
async fn a_namespace_goes_after_everything_in_it() {
    let rig = Rig::start().await;
    rig.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "alice"}})).await;
    rig.until(GroupKind::NAMESPACE, "", "alice", "its finalizer", |one| one.pointer("/metadata/finalizers").is_some())
        .await;
    rig.app().await;
    let mut device = rig.connected("nas").await;
    rig.install("notes").await;
    let pod = device.pod().await;
    device.run(&pod).await;
    rig.delete(GroupKind::NAMESPACE, "", "alice").await;
    device
        .until("the mark", |desired| {
            desired.values().any(|one| one["kind"] == "Pod" && one["metadata"]["deletionTimestamp"].is_string())
        })
        .await;
    rig.until(GroupKind::NAMESPACE, "", "alice", "Terminating", |one| one["status"]["phase"] == "Terminating").await;
    device.report(&pod, &json!({"phase": "Succeeded"}), true).await;
    device
        .until("the claim's mark", |desired| {
            desired
                .get("PersistentVolumeClaim/alice/notes-data")
                .is_some_and(|one| one["metadata"]["deletionTimestamp"].is_string())
        })
        .await;
    let claim = device.desired["PersistentVolumeClaim/alice/notes-data"].clone();
    device.report(&claim, &json!({"phase": "Bound"}), true).await;
    rig.until_list(GroupKind::NAMESPACE, "none", <[Object]>::is_empty).await;
    let left = [GroupKind::POD, GroupKind::INSTALL, GroupKind::ROUTE, GroupKind::PERSISTENT_VOLUME_CLAIM];
    for kind in left {
        assert!(rig.list(kind).await.is_empty());
    }
}
