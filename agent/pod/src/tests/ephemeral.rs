//! Containers that are put beside others to look into a pod.

use super::*;

/// A pod with these ephemeral containers, each with its target.
fn debugged(spec: Value, ephemeral: &[(&str, Option<&str>)]) -> PodView {
    let list =
        ephemeral.iter().map(|(name, target)| json!({"name": name, "image": "debug:1", "targetContainerName": target}));
    let mut spec = spec;
    spec["ephemeralContainers"] = list.collect::<Vec<Value>>().into();
    PodView::from_json(&json!({"metadata": {"name": "p", "namespace": "alice", "uid": "u-1"}, "spec": spec})).unwrap()
}

fn web(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "web", "image": "app:1"}]})
}

fn desired(view: &PodView) -> Event {
    Event::Desired(Box::new(view.clone()))
}

fn ephemeral(device: &Device) -> Value {
    device.status()["ephemeralContainerStatuses"][0].clone()
}

fn started(commands: &[Command]) -> Vec<(&str, u32)> {
    let mut all = Vec::new();
    for command in commands {
        if let Command::StartContainer { container, attempt } = command {
            all.push((container.as_str(), *attempt));
        }
    }
    all
}

/// The agent starts again, with what is found of the pod.
fn taken_over(device: &Device, view: &PodView, found: Found, now: Timestamp) -> Device {
    let record = serde_json::to_value(device.pod.record()).unwrap();
    let record: Record = serde_json::from_value(record).unwrap();
    Device { pod: PodMachine::new(view.clone(), Some(record), found, now), log: Vec::new() }
}

fn running(name: &str) -> FoundContainer {
    FoundContainer { name: name.into(), attempt: 0, state: FoundState::Running(T0) }
}

#[test]
fn one_that_is_added_is_started_beside_the_others_and_reported() {
    let mut device = Device::new(debugged(web("Always"), &[]));
    device.run(Event::Tick, T0);
    assert!(device.status().get("ephemeralContainerStatuses").is_none());
    let commands = device.run(desired(&debugged(web("Always"), &[("debug", None)])), at(5));
    assert_eq!(started(&commands), [("debug", 0)]);
    assert!(commands.contains(&Command::EnsureImage { container: "debug".into() }), "{commands:?}");
    assert_eq!(
        ephemeral(&device),
        json!({"name": "debug", "image": "app:1", "imageID": "sha256:00", "ready": false, "restartCount": 0,
            "containerID": "hearth://u-1/debug/0", "lastState": {}, "state": {"running": {"startedAt": "2023-11-14T22:13:25Z"}}})
    );
    let status = device.status();
    assert_eq!((status["phase"].clone(), condition(&status, "Ready")), (json!("Running"), "True".into()));
    assert_eq!(status["containerStatuses"].as_array().map(Vec::len), Some(1));
    assert_eq!(device.container()["restartCount"], 0);
    let typed: hearth_types::kinds::PodStatus = serde_json::from_value(status).unwrap();
    assert_eq!(typed.ephemeral_container_statuses.unwrap().len(), 1);
    // Told again, or no more: nothing changes.
    for again in [debugged(web("Always"), &[("debug", None)]), debugged(web("Always"), &[])] {
        let commands = device.run(desired(&again), at(6));
        assert!(commands.is_empty(), "{commands:?}");
    }
    assert!(ephemeral(&device)["state"]["running"].is_object());
}

#[test]
fn however_it_ends_it_is_not_started_again_and_the_pod_goes_on() {
    for code in [0, 3] {
        for policy in ["Always", "OnFailure", "Never"] {
            let view = debugged(web(policy), &[("debug", None)]);
            let mut device = Device::new(view.clone());
            device.run(Event::Tick, T0);
            let commands = device.run(exited("debug", 0, exit(code, 0, 1)), at(1));
            assert_eq!(started(&commands), []);
            for now in [2, 100, 10_000] {
                assert_eq!(started(&device.run(Event::Tick, at(now))), []);
            }
            let status = device.status();
            assert_eq!((status["phase"].clone(), condition(&status, "Ready")), (json!("Running"), "True".into()));
            assert_eq!(ephemeral(&device)["state"]["terminated"]["exitCode"], code);
            assert!(device.pod.next_wake().is_none(), "nothing is waited for");
            // Nor by an agent that starts again, or after a reboot.
            for found in [Found::Alive(vec![running("web")]), Found::Nothing] {
                let mut again = taken_over(&device, &view, found, at(20_000));
                let commands = again.run(Event::Tick, at(20_000));
                assert!(started(&commands).iter().all(|(name, _)| *name == "web"), "{commands:?}");
                assert_eq!(ephemeral(&again)["state"]["terminated"]["exitCode"], code);
            }
        }
    }
}

#[test]
fn one_that_runs_is_taken_over_and_lost_with_its_sandbox() {
    let view = debugged(web("Always"), &[("debug", Some("web"))]);
    let mut device = Device::new(view.clone());
    assert_eq!(started(&device.run(Event::Tick, T0)), [("web", 0), ("debug", 0)]);
    assert_eq!(device.pod.spent(), 1);
    let found = Found::Alive(vec![running("web"), running("debug")]);
    let mut again = taken_over(&device, &view, found, at(5));
    assert_eq!(started(&again.run(Event::Tick, at(5))), []);
    assert!(ephemeral(&again)["state"]["running"].is_object());
    let commands = again.run(Event::SandboxLost, at(6));
    assert_eq!(started(&commands), [("web", 1)], "it had its only start");
    assert_eq!(ephemeral(&again)["state"]["terminated"]["reason"], "ContainerStatusUnknown");
    // Of one that never came so far, the agent before may have started it without writing that down.
    let fresh = Device::new(view.clone());
    let mut fresh = taken_over(&fresh, &view, Found::Alive(vec![running("web"), running("debug")]), at(5));
    assert_eq!(started(&fresh.run(Event::Tick, at(5))), []);
}

#[test]
fn one_that_cannot_be_started_has_had_its_start_and_one_without_its_image_waits() {
    let mut device = Device::new(debugged(web("Always"), &[]));
    device.run(Event::Tick, T0);
    device.pod.step(desired(&debugged(web("Always"), &[("debug", None)])), at(1));
    let pull = Failure::of_pull("Failed to pull image \"debug:1\": no");
    device.pod.step(Event::Image { container: "debug".into(), result: Err(pull) }, at(1));
    assert_eq!(ephemeral(&device)["state"]["waiting"]["reason"], "ImagePullBackOff");
    assert!(device.pod.is_ready() && device.pod.waits_for_image());
    device.pod.step(Event::ImagesChanged, at(2));
    device.pod.step(Event::Image { container: "debug".into(), result: Ok(facts()) }, at(2));
    let result = Err(StartFailure::Run(Failure::new("ContainerCannotRun", "no such file")));
    let commands = device.pod.step(Event::Started { container: "debug".into(), attempt: 0, result }, at(2));
    assert_eq!(started(&commands), []);
    assert_eq!(started(&device.run(Event::Tick, at(1000))), []);
    assert_eq!(ephemeral(&device)["state"]["terminated"]["reason"], "ContainerCannotRun");
    assert_eq!(device.status()["phase"], "Running");
}

#[test]
fn one_with_a_target_starts_when_that_runs() {
    let mut device = Device::new(debugged(web("Always"), &[("debug", Some("web"))]));
    device.pod.step(Event::Tick, T0);
    device.pod.step(Event::Volumes(Ok(())), T0);
    for container in ["web", "debug"] {
        device.pod.step(Event::Image { container: container.into(), result: Ok(facts()) }, T0);
    }
    device.pod.step(Event::Network(Ok(addresses())), T0);
    let commands = device.pod.step(Event::Sandbox(Ok(())), T0);
    assert_eq!(started(&commands), [("web", 0)]);
    let waiting = ephemeral(&device)["state"]["waiting"].clone();
    assert_eq!(waiting["reason"], "CreateContainerConfigError");
    assert_eq!(waiting["message"], "unable to find target container web: it is not running");
    let commands = device.pod.step(Event::Started { container: "web".into(), attempt: 0, result: Ok(at(1)) }, at(1));
    assert_eq!(started(&commands), [("debug", 0)]);
    // It had just ended when the start came to it: the start is not spent, and is tried at once when the target runs again.
    let missing = StartFailure::Config(Failure::new("CreateContainerConfigError", "container web is not running"));
    device.pod.step(Event::Started { container: "debug".into(), attempt: 0, result: Err(missing) }, at(2));
    let commands = device.run(exited("web", 0, exit(1, 1, 2)), at(2));
    assert_eq!(started(&commands), [("web", 1), ("debug", 0)]);
}

#[test]
fn one_neither_makes_a_sandbox_nor_waits_for_what_initialises_the_pod() {
    let spec = json!({"initContainers": [{"name": "first", "image": "app:1"}], "containers": [{"name": "web", "image": "app:1"}]});
    let mut device = Device::new(debugged(spec, &[("debug", Some("first")), ("free", None)]));
    // Its image is here before that of the container that the pod begins with.
    device.pod.step(Event::Tick, T0);
    device.pod.step(Event::Volumes(Ok(())), T0);
    for container in ["debug", "free"] {
        let commands = device.pod.step(Event::Image { container: container.into(), result: Ok(facts()) }, T0);
        assert!(!commands.contains(&Command::AttachNetwork), "{commands:?}");
    }
    device.run(Event::Image { container: "first".into(), result: Ok(facts()) }, T0);
    let status = device.status();
    for (list, index) in
        [("initContainerStatuses", 0), ("ephemeralContainerStatuses", 0), ("ephemeralContainerStatuses", 1)]
    {
        assert!(status[list][index]["state"]["running"].is_object(), "{status}");
    }
    assert_eq!((status["phase"].clone(), condition(&status, "Initialized")), (json!("Pending"), "False".into()));
    assert_eq!(device.container()["state"]["waiting"]["reason"], "PodInitializing");
    device.run(exited("first", 0, exit(0, 0, 1)), at(1));
    assert_eq!(condition(&device.status(), "Initialized"), "True");
}

#[test]
fn a_pod_that_is_over_ends_it_and_sidecars_do_not_wait_for_it() {
    let spec = json!({"restartPolicy": "Never",
        "initContainers": [{"name": "side", "image": "app:1", "restartPolicy": "Always"}], "containers": [{"name": "web", "image": "app:1"}]});
    let mut device = Device::new(debugged(spec.clone(), &[("debug", None)]));
    device.run(Event::Tick, T0);
    let commands = device.run(exited("web", 0, exit(0, 0, 1)), at(1));
    for container in ["debug", "side"] {
        assert!(commands.contains(&Command::Signal { container: container.into() }), "{container}: {commands:?}");
    }
    device.run(exited("side", 0, exit(143, 0, 2)), at(2));
    assert!(!device.pod.is_finished(), "it runs still");
    let commands = device.run(Event::Tick, at(31));
    assert!(commands.contains(&Command::Kill { container: "debug".into() }), "{commands:?}");
    device.run(exited("debug", 0, exit(137, 0, 31)), at(31));
    assert_eq!(device.status()["phase"], "Succeeded", "its end counts for nothing");
    assert!(device.pod.is_finished());
    // One that comes now is not started.
    let commands = device.run(desired(&debugged(spec, &[("debug", None), ("late", None)])), at(40));
    assert_eq!(started(&commands), []);
    assert_eq!(device.status()["ephemeralContainerStatuses"][1]["state"]["waiting"]["reason"], "PodStopped");
}
