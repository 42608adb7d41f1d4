//! What a device reports of its objects and of itself, and what becomes of it.

use std::time::Duration;

use hearth_proto::v1::{
    DeviceEvent, EventReport, Heartbeat, ObjectRef, ObjectStatus, StatusReport, device_message::Message as Out,
    region_message::Message as In,
};
use hearth_types::{GroupKind, condition, store::Op};
use serde_json::json;

use crate::{
    sessions::pod,
    support::{PATIENCE, Rig},
};

#[tokio::test]
async fn a_device_reports_on_its_own_objects_alone() {
    let rig = Rig::start().await;
    let mut nas = rig.connected("nas").await;
    let _attic = rig.connected("attic").await;
    let foreign = rig.create(pod("foreign", "attic")).await.value();
    let own = rig.create(pod("own", "nas")).await.value();
    let claim = rig
        .create(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "c", "namespace": "alice", "annotations": {"hearth.dev/device": "attic"}},
            "spec": {"resources": {"requests": {"storage": "1Gi"}}}}))
        .await
        .value();
    let lie = json!({"phase": "Running", "podIP": "10.6.6.6"});
    nas.report(&foreign, &lie, true).await;
    nas.report(&claim, &json!({"phase": "Lost"}), true).await;
    let node = rig.get(GroupKind::NODE, "", "attic").await.unwrap();
    nas.report(&node, &json!({"phase": "x"}), false).await;
    let mut namesake = own.clone();
    namesake["metadata"]["uid"] = json!("of-an-older-one");
    nas.report(&namesake, &lie, false).await;
    nas.run(&own).await;
    rig.until(GroupKind::POD, "alice", "own", "Running", |pod| pod["status"]["podIP"] == "10.0.0.2").await;
    let foreign = rig.get(GroupKind::POD, "alice", "foreign").await.expect("not removed");
    assert_eq!(foreign["status"]["phase"], "Pending");
    assert_ne!(rig.get(GroupKind::PERSISTENT_VOLUME_CLAIM, "alice", "c").await.unwrap()["status"]["phase"], "Lost");
    assert!(condition::is_true(&rig.get(GroupKind::NODE, "", "attic").await.unwrap(), "Ready"));

    let event = |name: &str, reason: &str| DeviceEvent {
        regarding: Some(ObjectRef {
            group: String::new(),
            kind: "Pod".into(),
            namespace: "alice".into(),
            name: name.into(),
        }),
        r#type: "Warning".into(),
        reason: reason.into(),
        message: "it says".into(),
        ..DeviceEvent::default()
    };
    let items = vec![event("foreign", "Lie"), event("own", "BackOff"), event("own", "BackOff")];
    nas.send(Out::Events(EventReport { items })).await;
    let events = rig.until_list(GroupKind::EVENT, "the event", |events| {
        events.iter().any(|event| event.value()["reason"] == "BackOff" && event.value()["count"] == 2)
    });
    assert!(events.await.iter().all(|event| event.value()["reason"] != "Lie"));
}

#[tokio::test]
async fn what_a_device_says_of_its_network_is_written_when_it_changes_and_nonsense_never() {
    let rig = Rig::start().await;
    let mut nas = rig.connected("nas").await;
    let connected = |one: &serde_json::Value| condition::is_true(one, "Connected");
    let device = rig.until(GroupKind::DEVICE, "", "nas", "Connected", connected).await;
    let by = |relay: &str, millis: u32| json!({"network": {"path": "Relay", "relay": relay, "roundTripMillis": millis, "udp": "Blocked"}});
    nas.report(&device, &by("fra-1", 38), false).await;
    let stored = async || rig.get(GroupKind::DEVICE, "", "nas").await.unwrap();
    let network = async || stored().await["status"]["network"].clone();
    let first = network().await;
    assert_eq!((&first["relay"], &first["udp"]), (&json!("fra-1"), &json!("Blocked")));
    let since = first["lastTransitionTime"].clone();
    assert!(since.is_string());
    let before = stored().await["metadata"]["resourceVersion"].clone();
    for nonsense in
        [by("fra-1", 38), by("a b", 1), json!({"network": "x"}), json!({"network": {"path": "Pigeon"}}), json!({})]
    {
        nas.report(&device, &nonsense, false).await;
        assert_eq!(network().await, first, "{nonsense}");
    }
    assert_eq!(stored().await["metadata"]["resourceVersion"], before, "nothing was written");
    nas.report(&device, &by("fra-1", 90), false).await;
    assert_eq!((&network().await["roundTripMillis"], &network().await["lastTransitionTime"]), (&json!(90), &since));
    nas.report(&device, &by("fra-2", 90), false).await;
    assert_eq!(network().await["relay"], "fra-2");
}

#[tokio::test]
async fn a_status_is_acknowledged_once_it_is_stored_and_not_before() {
    let rig = Rig::start().await;
    let mut device = rig.connected("nas").await;
    let own = rig.create(pod("own", "nas")).await.value();
    device.pod().await;
    rig.store.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    let acknowledged = {
        let run = device.run(&own);
        tokio::pin!(run);
        let early = tokio::time::timeout(Duration::from_millis(400), &mut run).await;
        assert!(early.is_err(), "the store is down");
        assert_eq!(rig.get(GroupKind::POD, "alice", "own").await.unwrap()["status"]["phase"], "Pending");
        rig.store.broken.store(false, std::sync::atomic::Ordering::Relaxed);
        tokio::time::timeout(PATIENCE, run).await
    };
    acknowledged.expect("it comes in the end");
    assert_eq!(rig.get(GroupKind::POD, "alice", "own").await.unwrap()["status"]["phase"], "Running");
}

#[tokio::test]
async fn a_pods_own_status_is_not_sent_back_to_its_device() {
    let rig = Rig::start().await;
    let mut device = rig.connected("nas").await;
    let own = rig.create(pod("own", "nas")).await.value();
    device.pod().await;
    device.run(&own).await;
    rig.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "second", "namespace": "alice"},
        "spec": {"nodeName": "nas", "containers": [{"name": "web", "image": "x"}]}}))
        .await;
    device.until("the second", |desired| desired.contains_key("Pod/alice/second")).await;
    assert_eq!(device.desired["Pod/alice/own"]["status"]["phase"], "Pending", "as it was sent first");
}

#[tokio::test]
async fn a_status_that_cannot_be_stored_costs_its_own_device_alone_the_session() {
    let rig = Rig::start().await;
    let (mut nas, mut attic) = (rig.connected("nas").await, rig.connected("attic").await);
    let bad = rig.create(pod("bad", "nas")).await.value();
    let good = rig.create(pod("good", "attic")).await.value();
    let poisoned = |op: &Op| matches!(op, Op::Update { object, .. } if object.value()["status"]["message"] == "poison");
    *rig.store.refuses.lock().unwrap() = Some(poisoned);
    // While the store cannot be written, both reports come together; the heartbeat's answer says that a report is in the queue.
    rig.store.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    for (device, pod, status) in [
        (&mut nas, &bad, json!({"phase": "Running", "message": "poison"})),
        (&mut attic, &good, json!({"phase": "Running"})),
    ] {
        let text =
            |pointer: &str| pod.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        let reference = ObjectRef {
            kind: "Pod".into(),
            namespace: "alice".into(),
            name: text("/metadata/name"),
            ..ObjectRef::default()
        };
        let item = ObjectStatus {
            r#ref: Some(reference),
            uid: text("/metadata/uid"),
            status_json: status.to_string().into_bytes().into(),
            finished: false,
        };
        device.send(Out::Status(StatusReport { sequence: 7, items: vec![item] })).await;
        device.send(Out::Heartbeat(Heartbeat { sequence: 9 })).await;
        while !matches!(device.next().await, Some(In::HeartbeatAck(ack)) if ack.sequence == 9) {}
    }
    rig.store.broken.store(false, std::sync::atomic::Ordering::Relaxed);
    loop {
        match attic.next().await {
            Some(In::StatusAck(ack)) if ack.sequence == 7 => break,
            Some(_) => {}
            None => panic!("the other device's session ended"),
        }
    }
    while nas.next().await.is_some() {}
    let stored = rig.get(GroupKind::POD, "alice", "good").await.unwrap();
    assert_eq!(stored["status"]["phase"], "Running");
    attic.send(Out::Heartbeat(Heartbeat { sequence: 10 })).await;
    while !matches!(attic.next().await.expect("the session goes on"), In::HeartbeatAck(ack) if ack.sequence == 10) {}
}
