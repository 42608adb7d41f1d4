//! Sessions: who may, what a device gets and may say, silence, and dialling.

use std::{sync::Arc, time::Duration};

use hearth_proto::v1::{
    DeviceHello, DialResult, Heartbeat, device_message::Message as Out, region_message::Message as In,
};
use hearth_region::Timing;
use hearth_types::{
    DeviceKey, DeviceName, GroupKind,
    admission::Part,
    condition, restores,
    store::Op,
    tunnel::{DialError, DialNotice},
};
use serde_json::json;

use crate::support::{FakeDevice, MemoryStore, PATIENCE, Rig, hello as support_hello, quick};

pub(crate) fn pod(name: &str, device: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "alice"},
        "spec": {"nodeName": device, "containers": [{"name": "web", "image": "x"}]}})
}

async fn refusal(rig: &Rig, name: &str, key: DeviceKey, hello: DeviceHello) -> tonic::Status {
    let (_out, inbound) = FakeDevice::open(rig.address, name, key, hello).await;
    match inbound {
        Err(status) => status,
        Ok(mut inbound) => tokio::time::timeout(PATIENCE, inbound.message()).await.unwrap().expect_err("refused"),
    }
}

#[tokio::test]
async fn only_devices_by_one_of_their_keys_and_of_a_known_version_get_a_session() {
    let rig = Rig::start().await;
    let key = rig.device("nas", "alice").await;
    let hello = || DeviceHello { versions: vec![1], ..DeviceHello::default() };
    let other = DeviceKey([9; 32]);
    assert_eq!(refusal(&rig, "nas", other, hello()).await.code(), tonic::Code::PermissionDenied);
    assert_eq!(refusal(&rig, "nobody", key, hello()).await.code(), tonic::Code::PermissionDenied);
    let newer = DeviceHello { versions: vec![7], ..DeviceHello::default() };
    let status = refusal(&rig, "nas", key, newer).await;
    assert!(status.message().contains("version 1") && status.message().contains("[7]"), "{status:?}");
    let odd = DeviceHello { info_json: b"{".as_slice().into(), ..hello() };
    assert_eq!(refusal(&rig, "nas", key, odd).await.code(), tonic::Code::InvalidArgument);
    let device = FakeDevice::connect(rig.address, "nas", key).await;
    assert_eq!(
        (device.hello.incarnation.as_str(), device.hello.zone.as_str(), device.hello.version),
        ("test", "hearth.internal", 1)
    );
    assert_eq!(device.hello.heartbeat_millis, 10_000);
}

#[tokio::test]
async fn a_device_gets_what_its_pods_use_and_nothing_else() {
    let rig = Rig::start().await;
    let mut device = rig.connected("nas").await;
    for name in ["used", "from-env", "other"] {
        rig.create(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "alice"}, "stringData": {"k": "v"}})).await;
        rig.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "alice"}, "data": {"k": "v"}})).await;
    }
    rig.create(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "used", "namespace": "bob"}, "stringData": {"k": "v"}})).await;
    for namespace in ["alice", "bob"] {
        rig.create(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": namespace},
            "spec": {"selector": {"app": "db"}, "ports": [{"port": 5432}]}}))
            .await;
    }
    rig.create(pod("elsewhere", "attic")).await;
    rig.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mine", "namespace": "alice"}, "spec": {"nodeName": "nas",
        "volumes": [{"name": "s", "secret": {"secretName": "used"}}, {"name": "c", "configMap": {"name": "used"}}],
        "containers": [{"name": "web", "image": "x", "env": [
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "from-env", "key": "k"}}},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "from-env", "key": "k"}}}]}]}})).await;
    device.until("all of it", |desired| desired.len() == 7).await;
    let names: Vec<_> = device.desired.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "ConfigMap/alice/from-env",
            "ConfigMap/alice/used",
            "Device//nas",
            "Pod/alice/mine",
            "Secret/alice/from-env",
            "Secret/alice/used",
            "Service/alice/db"
        ]
    );
    rig.edit(GroupKind::SERVICE, "alice", "db", |one| one["spec"]["ports"][0]["port"] = json!(5433)).await;
    device.until("the port", |desired| desired["Service/alice/db"]["spec"]["ports"][0]["port"] == 5433).await;
    rig.delete(GroupKind::SERVICE, "alice", "db").await;
    device.until("its removal", |desired| !desired.contains_key("Service/alice/db")).await;
    rig.edit(GroupKind::CONFIG_MAP, "alice", "used", |one| one["data"]["k"] = json!("w")).await;
    device.until("the change", |desired| desired["ConfigMap/alice/used"]["data"]["k"] == "w").await;
    rig.delete(GroupKind::CONFIG_MAP, "alice", "used").await;
    device.until("the removal", |desired| !desired.contains_key("ConfigMap/alice/used")).await;
}

#[tokio::test]
async fn silence_is_unknown_and_deletes_nothing_and_a_device_comes_back_to_the_same_pods() {
    let rig = Rig::over(Arc::new(MemoryStore::new()), quick()).await;
    rig.app().await;
    let mut device = rig.connected("nas").await;
    rig.install("notes").await;
    let pod = device.pod().await;
    device.run(&pod).await;
    rig.until(GroupKind::INSTALL, "alice", "notes", "Ready", |one| condition::is_true(one, "Ready")).await;
    // It stays connected and says nothing more.
    let is = |status: condition::Truth| {
        move |one: &serde_json::Value| condition::get(one, "Ready").is_some_and(|one| one.status == status)
    };
    rig.until(GroupKind::NODE, "", "nas", "Unknown", is(condition::Truth::Unknown)).await;
    let device_object =
        rig.until(GroupKind::DEVICE, "", "nas", "not connected", |one| !condition::is_true(one, "Connected")).await;
    assert_eq!(condition::get(&device_object, "Connected").unwrap().reason, "DeviceSilent");
    rig.until(GroupKind::INSTALL, "alice", "notes", "DeviceSilent", |one| {
        condition::get(one, "Ready")
            .is_some_and(|one| one.reason == "DeviceSilent" && one.status == condition::Truth::Unknown)
    })
    .await;
    let route = rig.until(GroupKind::ROUTE, "alice", "notes", "unready", |one| {
        one.pointer("/status/endpoints/0/ready") == Some(&json!(false))
    });
    assert_eq!(route.await["status"]["endpoints"][0]["pod"], pod["metadata"]["name"]);
    let kept =
        rig.get(GroupKind::POD, "alice", pod["metadata"]["name"].as_str().unwrap()).await.expect("never deleted");
    assert!(kept.pointer("/metadata/deletionTimestamp").is_none());
    assert_eq!(rig.list(GroupKind::POD).await.len(), 1, "and never replaced");

    let mut key = [0; 32];
    key[..3].copy_from_slice(b"nas");
    let mut back = FakeDevice::connect(rig.address, "nas", DeviceKey(key)).await;
    assert_eq!(back.pod().await["metadata"]["uid"], pod["metadata"]["uid"]);
    rig.until(GroupKind::INSTALL, "alice", "notes", "Ready again", |one| condition::is_true(one, "Ready")).await;
}

#[tokio::test]
async fn heartbeats_keep_a_device_ready_and_write_nothing() {
    let rig = Rig::over(Arc::new(MemoryStore::new()), quick()).await;
    let mut device = rig.connected("nas").await;
    rig.until(GroupKind::DEVICE, "", "nas", "Connected", |one| condition::is_true(one, "Connected")).await;
    rig.until_list(GroupKind::EVENT, "its event", |events| events.len() == 1 || events.is_empty()).await;
    let quiet = |rig: &Rig| rig.store.writes.load(std::sync::atomic::Ordering::Relaxed);
    let mut before = None;
    for sequence in 0..20 {
        device.send(Out::Heartbeat(Heartbeat { sequence })).await;
        loop {
            if let In::HeartbeatAck(ack) = device.next().await.unwrap() {
                assert_eq!(ack.sequence, sequence);
                break;
            }
        }
        if sequence == 5 {
            before = Some(quiet(&rig));
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(Some(quiet(&rig)), before, "twice the time of a silence, and nothing was written");
    assert!(condition::is_true(&rig.get(GroupKind::NODE, "", "nas").await.unwrap(), "Ready"));
}

#[tokio::test]
async fn a_short_absence_and_a_new_leader_change_nothing() {
    let store = Arc::new(MemoryStore::new());
    let timing = Timing { reconnect_grace: Duration::from_secs(30), ..Timing::default() };
    let rig = Rig::over(store.clone(), timing).await;
    let device = rig.connected("nas").await;
    drop(device);
    let ready = async |rig: &Rig| condition::is_true(&rig.get(GroupKind::NODE, "", "nas").await.unwrap(), "Ready");
    drop(rig);
    let next = Rig::over(store.clone(), timing).await;
    assert!(ready(&next).await);
    let mut key = [0; 32];
    key[..3].copy_from_slice(b"nas");
    let _back = FakeDevice::connect(next.address, "nas", DeviceKey(key)).await;
    assert!(ready(&next).await);
}

#[tokio::test]
async fn a_newer_session_replaces_the_older_and_a_revoked_key_ends_it() {
    let rig = Rig::start().await;
    let mut first = rig.connected("nas").await;
    let mut key = [0; 32];
    key[..3].copy_from_slice(b"nas");
    let mut second = FakeDevice::connect(rig.address, "nas", DeviceKey(key)).await;
    let goodbye = loop {
        match first.next().await {
            Some(In::Goodbye(goodbye)) => break goodbye,
            Some(_) => {}
            None => panic!("it is told why"),
        }
    };
    assert!(goodbye.reason.contains("newer session"), "{goodbye:?}");
    assert!(first.next().await.is_none(), "and ended");
    rig.edit(GroupKind::DEVICE, "", "nas", |one| one["spec"]["keys"] = json!([])).await;
    let goodbye = loop {
        match second.next().await {
            Some(In::Goodbye(goodbye)) => break goodbye,
            Some(_) => {}
            None => panic!("it is told why"),
        }
    };
    assert!(goodbye.reason.contains("no longer one of the device's"), "{goodbye:?}");
    assert_eq!(rig.handle.dial_notifier().device_of_key(&DeviceKey(key)), None);
}

#[tokio::test]
async fn devices_are_asked_to_dial_and_their_errors_come_back() {
    let rig = Rig::start().await;
    let notifier = rig.handle.dial_notifier();
    let notice =
        DialNotice { gateway_key: [7; 32], addresses: vec!["192.0.2.1:4433".parse().unwrap()], relays: Vec::new() };
    let name = DeviceName::from("nas");
    assert_eq!(notifier.ask_to_dial(&name, notice.clone()).await, Err(DialError::Unknown(name.clone())));
    let key = rig.device("nas", "alice").await;
    let mut device = FakeDevice::connect(rig.address, "nas", key).await;
    for error in ["", "no route to host"] {
        let ask = tokio::spawn({
            let (notifier, name, notice) = (Arc::clone(&notifier), name.clone(), notice.clone());
            async move { notifier.ask_to_dial(&name, notice).await }
        });
        let dial = loop {
            if let In::Dial(dial) = device.next().await.unwrap() {
                break dial;
            }
        };
        assert_eq!(
            (&dial.gateway_key[..], dial.addresses.as_slice()),
            ([7; 32].as_slice(), ["192.0.2.1:4433".to_owned()].as_slice())
        );
        device.send(Out::DialResult(DialResult { id: dial.id, error: error.into() })).await;
        let expected = if error.is_empty() {
            Ok(vec![key])
        } else {
            Err(DialError::Broken { device: name.clone(), why: error.into() })
        };
        assert_eq!(ask.await.unwrap(), expected);
    }
    assert_eq!(notifier.device_of_key(&key), Some(name.clone()));
    drop(device);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while notifier.ask_to_dial(&name, notice.clone()).await != Err(DialError::Away(name.clone())) {
        assert!(tokio::time::Instant::now() < deadline, "it never was away");
    }
}

#[tokio::test]
async fn every_session_of_a_device_has_another_number() {
    let rig = Rig::start().await;
    let notifier = rig.handle.dial_notifier();
    let name = DeviceName::from("nas");
    assert_eq!(notifier.session_of(&name), None);
    let key = rig.device("nas", "alice").await;
    let numbers = async || {
        let mut device = FakeDevice::connect(rig.address, "nas", key).await;
        device.until("its first objects", |desired| desired.contains_key("Device//nas")).await;
        (device, notifier.session_of(&name).expect("a session"))
    };
    let (first, number) = numbers().await;
    // It takes the place of one that is open, and of one that is over.
    let (second, next) = numbers().await;
    assert_ne!(number, next);
    drop((first, second));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while notifier.session_of(&name).is_some() {
        assert!(tokio::time::Instant::now() < deadline, "its session never ended");
        tokio::task::yield_now().await;
    }
    let (_third, last) = numbers().await;
    assert!(![number, next].contains(&last));
}

#[tokio::test]
async fn pods_of_a_device_that_was_removed_go_and_its_node_too() {
    let rig = Rig::start().await;
    let device = rig.connected("nas").await;
    rig.create(pod("orphan", "nas")).await;
    rig.delete(GroupKind::DEVICE, "", "nas").await;
    rig.until_list(GroupKind::NODE, "no Node", <[hearth_types::Object]>::is_empty).await;
    rig.until_list(GroupKind::POD, "no pod", <[hearth_types::Object]>::is_empty).await;
    drop(device);
}

#[tokio::test]
async fn a_device_that_does_not_read_loses_its_session_and_gets_everything_when_it_is_back() {
    let rig = Rig::start().await;
    let device = rig.connected("nas").await;
    let large = "x".repeat(900_000);
    rig.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "large", "namespace": "alice"}, "data": {"k": large}})).await;
    let mut value = pod("p", "nas");
    value["spec"]["volumes"] = json!([{"name": "c", "configMap": {"name": "large"}}]);
    rig.create(value).await;
    // More answers than its queue holds, behind a message that fills the connection.
    let flood = tokio::spawn(async move {
        for sequence in 0.. {
            let beat = hearth_proto::v1::DeviceMessage { message: Some(Out::Heartbeat(Heartbeat { sequence })) };
            if device.out.send(beat).await.is_err() {
                break;
            }
        }
        device
    });
    let (notifier, name) = (rig.handle.dial_notifier(), DeviceName::from("nas"));
    let notice = || DialNotice { gateway_key: [7; 32], addresses: Vec::new(), relays: Vec::new() };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let asked = tokio::time::timeout(Duration::from_millis(100), notifier.ask_to_dial(&name, notice())).await;
        if asked == Ok(Err(DialError::Away(name.clone()))) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "its session never ended");
    }
    flood.abort();
    let mut key = [0; 32];
    key[..3].copy_from_slice(b"nas");
    let mut back = FakeDevice::connect(rig.address, "nas", DeviceKey(key)).await;
    back.until("all of it", |desired| {
        desired.contains_key("Pod/alice/p") && desired.contains_key("ConfigMap/alice/large")
    })
    .await;
}

#[tokio::test]
async fn a_claim_is_shown_to_the_device_that_it_is_pinned_to_and_to_no_other() {
    let rig = Rig::start().await;
    let mut device = rig.connected("nas").await;
    for (name, annotations) in [
        ("free", json!({})),
        ("here", json!({"hearth.dev/device": "nas"})),
        ("there", json!({"hearth.dev/device": "attic"})),
    ] {
        rig.create(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": "alice", "annotations": annotations},
            "spec": {"resources": {"requests": {"storage": "1Gi"}}}}))
            .await;
    }
    let with = |name: &str, claims: &[&str]| {
        let mut one = pod(name, "nas");
        let volume = |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
        one["spec"]["volumes"] = json!(claims.iter().map(volume).collect::<Vec<_>>());
        one
    };
    rig.create(with("mine", &["here", "there"])).await;
    rig.create(with("early", &["free"])).await;
    // What comes later shows that nothing else was on its way.
    rig.create(pod("later", "nas")).await;
    device
        .until("both pods", |desired| desired.contains_key("Pod/alice/mine") && desired.contains_key("Pod/alice/later"))
        .await;
    let claims: Vec<_> = device.desired.keys().filter(|key| key.starts_with("PersistentVolumeClaim/")).collect();
    assert_eq!(claims, ["PersistentVolumeClaim/alice/here"]);
    // A pod is bound in the entry that pins its claims: without the pin, the news of it is still on its way.
    assert!(!device.desired.contains_key("Pod/alice/early"));
    rig.edit_part(Part::Region, (GroupKind::PERSISTENT_VOLUME_CLAIM, "alice", "free"), |one| {
        one["metadata"]["annotations"] = json!({"hearth.dev/device": "nas"});
    })
    .await;
    device
        .until("the pod with its claim", |desired| {
            desired.contains_key("Pod/alice/early") && desired.contains_key("PersistentVolumeClaim/alice/free")
        })
        .await;
}

/// The next message that is not of what is desired.
async fn said(inbound: &mut tonic::Streaming<hearth_proto::v1::RegionMessage>) -> Option<In> {
    tokio::time::timeout(PATIENCE, inbound.message()).await.unwrap().ok()??.message
}

#[tokio::test]
async fn a_key_that_is_revoked_during_the_hello_gets_no_session() {
    let rig = Rig::start().await;
    let key = rig.device("nas", "alice").await;
    rig.until(GroupKind::NODE, "", "nas", "made", |_| true).await;
    // What the hello stores, and nothing else.
    let info = |op: &Op| matches!(op, Op::Update { object, .. } if *object.kind() == GroupKind::DEVICE && object.value()["status"].get("info").is_some());
    rig.store.holds.send_replace(Some(info));
    let (_out, inbound) = FakeDevice::open(rig.address, "nas", key, support_hello()).await;
    let mut inbound = inbound.unwrap();
    let mut held = rig.store.held.subscribe();
    tokio::time::timeout(PATIENCE, held.wait_for(|held| *held > 0)).await.unwrap().unwrap();
    let other = DeviceKey([9; 32]).to_string();
    rig.edit(GroupKind::DEVICE, "", "nas", |one| one["spec"]["keys"] = json!([other])).await;
    rig.store.holds.send_replace(None);
    loop {
        match said(&mut inbound).await {
            // It was refused or ended: whichever came first.
            None | Some(In::Goodbye(_)) => return,
            Some(_) => {}
        }
    }
}

#[tokio::test]
async fn a_device_that_has_seen_more_than_its_region_is_told_so_until_a_person_accepts_it() {
    let rig = Rig::start().await;
    let device = rig.connected("nas").await;
    let key = DeviceKey(std::array::from_fn(|index| b"nas".get(index).copied().unwrap_or(0)));
    let seen = |revision| DeviceHello { incarnation: "test".into(), revision, ..support_hello() };
    // What this server told is no proof of anything.
    let now = rig.get(GroupKind::NODE, "", "nas").await.unwrap()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    drop(device);
    let first_two = |hello: DeviceHello| {
        let address = rig.address;
        async move {
            let (out, inbound) = FakeDevice::open(address, "nas", key, hello).await;
            let mut inbound = inbound.unwrap();
            let message = hearth_proto::v1::DeviceMessage { message: Some(Out::Heartbeat(Heartbeat { sequence: 1 })) };
            out.send(message).await.unwrap();
            let Some(In::Hello(hello)) = said(&mut inbound).await else { panic!("a hello is first") };
            let Some(In::Desired(desired)) = said(&mut inbound).await else { panic!("then everything") };
            assert!(desired.full);
            (hello.lost_writes, inbound, out)
        }
    };
    let condition = |device: &serde_json::Value| condition::get(device, "RegionRestored").map(|one| one.status);
    assert!(!first_two(seen(now)).await.0);
    assert_eq!(condition(&rig.get(GroupKind::DEVICE, "", "nas").await.unwrap()), None);

    assert!(first_two(seen(1_000_000)).await.0, "what the list lacks is to be kept");
    let told =
        rig.until(GroupKind::DEVICE, "", "nas", "told", |one| condition(one) == Some(condition::Truth::True)).await;
    let message = condition::get(&told, "RegionRestored").unwrap().message;
    assert!(message.contains("1000000") && message.contains("hearth.dev/accept-restored-region=1000000"), "{message}");
    rig.until_list(GroupKind::EVENT, "an event", |events| {
        events.iter().any(|one| one.value()["reason"] == "RegionRestored")
    })
    .await;
    // From then on it has what this server told.
    let (lost, _inbound, _out) = first_two(seen(now)).await;
    assert!(!lost);
    let annotate = async |seen: &str| {
        rig.edit(GroupKind::DEVICE, "", "nas", |one| {
            one["metadata"]["annotations"] = json!({"hearth.dev/accept-restored-region": seen});
        })
        .await;
    };
    annotate("999").await;
    assert_eq!(condition(&rig.get(GroupKind::DEVICE, "", "nas").await.unwrap()), Some(condition::Truth::True));
    annotate("1000000").await;
    rig.until(GroupKind::DEVICE, "", "nas", "taken back", |one| condition(one) == Some(condition::Truth::False)).await;
}

#[tokio::test]
async fn a_device_that_has_seen_what_a_restore_lost_is_told_so_however_far_the_region_has_come_since() {
    let rig = Rig::start().await;
    drop(rig.connected("nas").await);
    let key = DeviceKey(std::array::from_fn(|index| b"nas".get(index).copied().unwrap_or(0)));
    let now: u64 = rig.get(GroupKind::NODE, "", "nas").await.unwrap()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let lost = async |revision: u64| {
        let hello = DeviceHello { incarnation: "test".into(), revision, ..support_hello() };
        let (_out, inbound) = FakeDevice::open(rig.address, "nas", key, hello).await;
        let Some(In::Hello(hello)) = said(&mut inbound.unwrap()).await else { panic!("a hello is first") };
        hello.lost_writes
    };
    // This server is beyond it, and told it itself.
    assert!(!lost(now).await);
    // Restored from a backup at the revision before, and gone on at this one: long ago, as far as this server knows.
    let mark = restores::key();
    rig.create(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": mark.name, "namespace": mark.namespace},
        "data": {now.to_string(): (now - 1).to_string()}}),
    )
    .await;
    let start = tokio::time::Instant::now();
    while !lost(now).await {
        assert!(start.elapsed() < PATIENCE, "never told");
    }
    assert!(!lost(now - 1).await, "it has seen nothing that was lost");
    assert!(!lost(now + 1).await, "it has followed the restored region");
}
