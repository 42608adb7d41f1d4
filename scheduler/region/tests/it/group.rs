//! Several servers of one region over one store: who leads works and has the sessions, the others answer for names and pass dials on.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hearth_proto::v1::{
    self, DeviceMessage, DialResult, Goodbye, Heartbeat, device_message::Message as Out, devices_client::DevicesClient,
    dials_client::DialsClient, region_message::Message as In,
};
use hearth_region::Timing;
use hearth_types::{
    DeviceKey, DeviceName, GroupKind, condition,
    group::Server,
    tunnel::{DialError, DialNotice},
};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Cluster, FakeDevice, MemoryStore, PATIENCE, Rig, hello, quick};

/// Three servers over one store, of which the first leads.
pub(crate) async fn three(timing: Timing) -> (Arc<Cluster>, [Rig; 3]) {
    let (cluster, store) = (Cluster::new(), Arc::new(MemoryStore::new()));
    cluster.elect(Some(1));
    let member = |id| Rig::member(Arc::clone(&store), timing, id, &cluster);
    let rigs = [member(1).await, member(2).await, member(3).await];
    (cluster, rigs)
}

/// The goodbye that ends a session, or stands in its place.
async fn goodbye(device: &mut FakeDevice) -> Goodbye {
    loop {
        match device.next().await {
            Some(In::Goodbye(goodbye)) => return goodbye,
            Some(_) => {}
            None => panic!("it is told where to go"),
        }
    }
}

fn key_of(name: &str) -> DeviceKey {
    DeviceKey(std::array::from_fn(|index| name.as_bytes().get(index).copied().unwrap_or(0)))
}

fn notice() -> DialNotice {
    DialNotice { gateway_key: [7; 32], addresses: vec!["192.0.2.1:4433".parse().unwrap()], relays: Vec::new() }
}

/// Answers the next dial.
async fn dialled(device: &mut FakeDevice) {
    loop {
        match device.next().await {
            Some(In::Dial(dial)) => {
                assert_eq!(dial.addresses, ["192.0.2.1:4433"], "the gateway of whoever asked");
                return device.send(Out::DialResult(DialResult { id: dial.id, error: String::new() })).await;
            }
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
}

#[tokio::test]
async fn controllers_run_on_the_leader_alone_and_names_answer_everywhere() {
    let (cluster, [one, two, three]) = three(Timing::default()).await;
    one.app().await;
    let mut device = one.connected("nas").await;
    one.install("notes").await;
    let pod = device.pod().await;
    device.run(&pod).await;
    one.until(GroupKind::INSTALL, "alice", "notes", "Ready", |one| condition::is_true(one, "Ready")).await;
    let routes = two.handle.routes();
    let deadline = Instant::now() + PATIENCE;
    while routes.lookup("notes.alice.hearth.internal").is_none_or(|route| route.devices.is_empty()) {
        assert!(Instant::now() < deadline, "a follower never knew the route");
        tokio::task::yield_now().await;
    }
    // Nobody leads: what is asked for stays as it is.
    cluster.elect(None);
    goodbye(&mut device).await;
    let before = one.store.writes.load(Ordering::Relaxed);
    one.install("second").await;
    let mut follower = three.handle.routes().serial();
    follower = follower.max(routes.serial());
    assert!(follower > 0);
    cluster.elect(Some(3));
    one.until_list(GroupKind::DEPLOYMENT, "both Deployments", |all| all.len() == 2).await;
    assert!(one.store.writes.load(Ordering::Relaxed) > before + 1);
    // The new leader knew of the pods of the old one: none was made anew.
    let pods = one.until_list(GroupKind::POD, "a pod each", |all| all.len() == 2).await;
    assert!(pods.iter().any(|one| one.value()["metadata"]["uid"] == pod["metadata"]["uid"]));
}

#[tokio::test]
async fn a_follower_says_at_once_where_the_sessions_are() {
    let (cluster, [one, two, _three]) = three(Timing::default()).await;
    let key = one.device("nas", "alice").await;
    let first = async |rig: &Rig| {
        let (_out, inbound) = FakeDevice::open(rig.address, "nas", key, hello()).await;
        let message = tokio::time::timeout(PATIENCE, inbound.unwrap().message()).await.unwrap().unwrap().unwrap();
        match message.message.unwrap() {
            In::Goodbye(goodbye) => goodbye,
            other => panic!("a goodbye, not {other:?}"),
        }
    };
    let all = || [1, 2, 3].map(|id| cluster.address(id));
    let deadline = Instant::now() + PATIENCE;
    let told = loop {
        let told = first(&two).await;
        if told.servers == all() {
            break told;
        }
        assert!(Instant::now() < deadline, "it never knew all servers: {told:?}");
    };
    assert_eq!(told.leader, cluster.address(1));
    assert_eq!(told.retry_after_millis, 0);
    cluster.elect(None);
    let told = first(&two).await;
    assert_eq!(told.leader, "");
    assert!((1..1000).contains(&told.retry_after_millis), "an election is soon over: {told:?}");
    // Whoever leads names the servers in its hello, and says when there are others.
    cluster.elect(Some(2));
    two.leading().await;
    let mut device = FakeDevice::connect(two.address, "nas", key).await;
    assert_eq!(device.hello.servers, all());
    cluster.add(Server { id: 4, address: "192.0.2.4:7443".into() });
    loop {
        match device.next().await {
            Some(In::Servers(servers)) => break assert_eq!(servers.addresses[3], "192.0.2.4:7443"),
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
}

#[tokio::test]
async fn a_change_of_leader_writes_nothing_and_a_device_is_silent_only_after_the_full_time_under_the_new_one() {
    let timing = Timing { silence: Duration::from_secs(2), ..quick() };
    let (cluster, [one, two, _three]) = three(timing).await;
    let names = ["nas", "attic", "gone"];
    let mut devices = Vec::new();
    for name in names {
        devices.push(one.connected(name).await);
        one.until(GroupKind::DEVICE, "", name, "Connected", |one| condition::is_true(one, "Connected")).await;
    }
    let before = one.store.writes.load(Ordering::Relaxed);
    cluster.elect(Some(2));
    let change = Instant::now();
    for device in &mut devices {
        let told = goodbye(device).await;
        assert_eq!(told.leader, cluster.address(2));
        assert!(told.retry_after_millis <= 500, "{told:?}");
    }
    drop(devices);
    // Long after the grace that a device has whose session ended by itself, and well within a silence.
    tokio::time::sleep_until(change + 3 * timing.reconnect_grace).await;
    let mut back = Vec::new();
    for name in &names[..2] {
        back.push(FakeDevice::connect(two.address, name, key_of(name)).await);
    }
    let all_but_gone = async {
        for sequence in 0.. {
            for device in &mut back {
                device.send(Out::Heartbeat(Heartbeat { sequence })).await;
                while !matches!(device.next().await, Some(In::HeartbeatAck(ack)) if ack.sequence == sequence) {}
            }
            if one.store.writes.load(Ordering::Relaxed) != before {
                return;
            }
            tokio::time::sleep(timing.heartbeat).await;
        }
    };
    // The one that does not come is silent in the end, and that is the first thing that is written.
    tokio::time::timeout(PATIENCE, all_but_gone).await.expect("in the end");
    assert!(change.elapsed() >= timing.silence, "{:?}", change.elapsed());
    one.until(GroupKind::NODE, "", "gone", "Unknown", |one| {
        condition::get(one, "Ready").is_some_and(|one| one.status == condition::Truth::Unknown)
    })
    .await;
    for name in &names[..2] {
        assert!(condition::is_true(&one.get(GroupKind::NODE, "", name).await.unwrap(), "Ready"), "{name}");
    }
}

#[tokio::test]
async fn a_gateway_at_a_follower_reaches_devices_through_the_leader_also_while_it_changes() {
    let (cluster, [one, two, three]) = three(Timing::default()).await;
    let mut device = one.connected("nas").await;
    let (name, key) = (DeviceName::from("nas"), key_of("nas"));
    one.until(GroupKind::DEVICE, "", "nas", "Connected", |one| condition::is_true(one, "Connected")).await;
    let ask = |rig: &Rig| {
        let (notifier, name) = (rig.handle.dial_notifier(), name.clone());
        tokio::spawn(async move { notifier.ask_to_dial(&name, notice()).await })
    };
    for rig in [&one, &two, &three] {
        let asked = ask(rig);
        dialled(&mut device).await;
        assert_eq!(asked.await.unwrap(), Ok(vec![key]));
        assert_eq!(
            rig.handle.dial_notifier().session_of(&name),
            one.handle.dial_notifier().session_of(&name),
            "known by the time that its tunnel can come"
        );
    }
    let unknown = DeviceName::from("nobody");
    let refused = two.handle.dial_notifier().ask_to_dial(&unknown, notice()).await;
    assert_eq!(refused, Err(DialError::Unknown(unknown)));

    // While there is no leader, and while the device is on its way to the next one, whoever wants it waits.
    let old = one.handle.dial_notifier().session_of(&name);
    cluster.elect(None);
    goodbye(&mut device).await;
    let waiting = [ask(&one), ask(&two), ask(&three)];
    cluster.elect(Some(2));
    two.leading().await;
    let mut device = FakeDevice::connect(two.address, "nas", key).await;
    for _ in &waiting {
        dialled(&mut device).await;
    }
    for asked in waiting {
        assert_eq!(asked.await.unwrap(), Ok(vec![key]));
    }
    let new = two.handle.dial_notifier().session_of(&name);
    assert!(new > old, "{old:?} and then {new:?}");
    // Its session ends: the others hear of it.
    drop(device);
    let deadline = Instant::now() + PATIENCE;
    while one.handle.dial_notifier().session_of(&name).is_some() {
        assert!(Instant::now() < deadline, "a follower never heard of it");
        tokio::task::yield_now().await;
    }
    assert_eq!(one.handle.dial_notifier().ask_to_dial(&name, notice()).await, Err(DialError::Away(name.clone())));
}

#[tokio::test]
async fn only_servers_may_ask_for_devices_and_only_the_leader_answers() {
    let (_cluster, [one, two, _three]) = three(Timing::default()).await;
    let ask = async |rig: &Rig, device: bool, request: v1::DialDeviceRequest| {
        let mut client = DialsClient::connect(format!("http://{}", rig.address)).await.unwrap();
        let mut request = tonic::Request::new(request);
        if device {
            request.metadata_mut().insert("device", "nas".parse().unwrap());
            request.metadata_mut().insert("key", key_of("nas").to_string().parse().unwrap());
        }
        client.dial(request).await.map(tonic::Response::into_inner)
    };
    let good = || v1::DialDeviceRequest {
        device: "nas".into(),
        relays: Vec::new(),
        gateway_key: vec![7; 32].into(),
        addresses: vec!["192.0.2.1:1".into()],
        session: 0,
    };
    assert_eq!(ask(&one, true, good()).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    assert_eq!(ask(&two, false, good()).await.unwrap_err().code(), tonic::Code::FailedPrecondition);
    for bad in [
        v1::DialDeviceRequest { device: "x".repeat(300), ..good() },
        v1::DialDeviceRequest { gateway_key: vec![7; 31].into(), ..good() },
        v1::DialDeviceRequest { addresses: vec!["192.0.2.1:1".into(); 17], ..good() },
        v1::DialDeviceRequest { addresses: vec!["nowhere".into()], ..good() },
    ] {
        assert_eq!(ask(&one, false, bad).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
    let answer = ask(&one, false, good()).await.unwrap();
    assert_eq!(answer.outcome(), v1::dial_device_response::Outcome::Unknown);
    // A session that the caller does not know is not asked: its tunnel would come as a stranger's.
    let _device = one.connected("nas").await;
    let answer = ask(&one, false, good()).await.unwrap();
    assert_eq!(answer.outcome(), v1::dial_device_response::Outcome::OtherSession);
    assert_eq!(Some(answer.session), one.handle.dial_notifier().session_of(&DeviceName::from("nas")));
}

#[tokio::test]
async fn a_leader_that_is_cut_off_from_the_others_keeps_no_device() {
    let (_cluster, [one, _two, _three]) = three(Timing::default()).await;
    let mut device = one.connected("nas").await;
    let (name, notifier) = (DeviceName::from("nas"), one.handle.dial_notifier());
    let before = notifier.session_of(&name);
    one.store.cut_off.store(true, Ordering::Relaxed);
    let told = goodbye(&mut device).await;
    assert_eq!(told.leader, "", "it cannot know which one does");
    assert_eq!(told.servers.len(), 3, "but one of these");
    assert!(!one.handle.is_leading());
    // Nobody else was elected: it goes on for the same term, and no session has the number of an earlier one.
    one.store.cut_off.store(false, Ordering::Relaxed);
    one.leading().await;
    let _back = FakeDevice::connect(one.address, "nas", key_of("nas")).await;
    let after = notifier.session_of(&name);
    assert!(after > before, "{before:?} and then {after:?}");
}

/// Devices of the test below, and how many share a connection.
const MANY: usize = 1000;
const ON_ONE_CONNECTION: usize = 100;

#[tokio::test]
async fn a_thousand_idle_devices_write_nothing() {
    let timing = Timing { heartbeat: Duration::from_secs(1), silence: Duration::from_secs(4), ..quick() };
    let rig = Rig::over(Arc::new(MemoryStore::new()), timing).await;
    let mut sessions = Vec::new();
    let mut client = None;
    for index in 0..MANY {
        let name = format!("device-{index:04}");
        let key = rig.device(&name, "alice").await;
        if index % ON_ONE_CONNECTION == 0 {
            client = Some(DevicesClient::connect(format!("http://{}", rig.address)).await.unwrap());
        }
        let (out, inbound) = FakeDevice::open_by(client.clone().unwrap(), &name, key, hello()).await;
        sessions.push(tokio::spawn(idle(out, inbound.unwrap(), timing.heartbeat)));
    }
    // What their coming has to write is written when all are Ready, and two looks a while apart are the same.
    let writes = || rig.store.writes.load(Ordering::Relaxed);
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        let before = writes();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let ready =
            async |kind, name| rig.list(kind).await.iter().filter(|one| condition::is_true(&one.value(), name)).count();
        if writes() == before
            && ready(GroupKind::NODE, "Ready").await == MANY
            && ready(GroupKind::DEVICE, "Connected").await == MANY
        {
            break;
        }
        assert!(Instant::now() < deadline, "their coming is written for ever");
    }
    let before = writes();
    let revision = *rig.store.changes().borrow();
    tokio::time::sleep(2 * timing.silence).await;
    assert_eq!(writes(), before, "heartbeats are no entries");
    assert_eq!(*rig.store.changes().borrow(), revision);
    assert!(rig.list(GroupKind::NODE).await.iter().all(|one| condition::is_true(&one.value(), "Ready")));
    for session in sessions {
        assert!(!session.is_finished(), "none of them was ended");
        session.abort();
    }
}

/// Sends heartbeats for ever.
async fn idle(
    out: tokio::sync::mpsc::Sender<DeviceMessage>,
    mut inbound: tonic::Streaming<v1::RegionMessage>,
    every: Duration,
) {
    let mut beat = tokio::time::interval(every);
    for sequence in 0.. {
        beat.tick().await;
        let message = DeviceMessage { message: Some(Out::Heartbeat(Heartbeat { sequence })) };
        out.send(message).await.unwrap();
        loop {
            let next = inbound.message().await.unwrap().expect("the session goes on");
            if matches!(next.message, Some(In::HeartbeatAck(ack)) if ack.sequence == sequence) {
                break;
            }
        }
    }
}

#[tokio::test]
async fn what_an_old_leader_still_wanted_to_write_is_dropped() {
    let timing = quick();
    let (cluster, [one, two, _three]) = three(timing).await;
    let device = one.connected("nas").await;
    one.until(GroupKind::DEVICE, "", "nas", "Connected", |one| condition::is_true(one, "Connected")).await;
    // It cannot write what it thinks, and tries again and again.
    one.store.broken.store(true, Ordering::Relaxed);
    drop(device);
    let mut refused = one.store.refused.subscribe();
    let seen = tokio::time::timeout(PATIENCE, refused.wait_for(|count| *count > 0)).await;
    seen.expect("it tries to say that the device is silent").unwrap();
    cluster.elect(Some(2));
    two.leading().await;
    let _back = FakeDevice::connect(two.address, "nas", key_of("nas")).await;
    let before = one.store.writes.load(Ordering::Relaxed);
    one.store.broken.store(false, Ordering::Relaxed);
    // What comes later shows that nothing else was on its way.
    one.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later", "namespace": "alice"}}))
        .await;
    tokio::time::sleep(timing.reconnect_grace).await;
    assert_eq!(one.store.writes.load(Ordering::Relaxed), before + 1);
    assert!(condition::is_true(&one.get(GroupKind::NODE, "", "nas").await.unwrap(), "Ready"));
}
