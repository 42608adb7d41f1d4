//! Probes, hooks, and containers that come before others.

use super::*;

fn pod(spec: Value) -> PodView {
    PodView::from_json(&json!({"metadata": {"name": "p", "namespace": "alice", "uid": "u-1"}, "spec": spec})).unwrap()
}

fn asked(commands: &[Command]) -> Vec<ProbeKind> {
    let kind = |command: &Command| match command {
        Command::Probe { kind, .. } => Some(*kind),
        _ => None,
    };
    commands.iter().filter_map(kind).collect()
}

fn told(commands: &[Command]) -> Vec<&str> {
    let mut reasons = Vec::new();
    for command in commands {
        if let Command::Event { reason, .. } = command {
            reasons.push(reason.as_str());
        }
    }
    reasons
}

fn answered(attempt: u32, kind: ProbeKind, answer: Answer) -> Event {
    Event::Probed { container: "web".into(), attempt, kind, answer }
}

/// Steps without answering anything.
fn step(device: &mut Device, event: Event, now: Timestamp) -> Vec<Command> {
    device.pod.step(event, now)
}

fn ready(device: &Device) -> (bool, bool) {
    let container = device.container();
    (container["started"] == true, container["ready"] == true)
}

#[test]
fn a_container_is_ready_as_long_as_its_probe_says_so_and_nothing_is_written_or_told_meanwhile() {
    let mut device = Device::new(pod(json!({"containers": [{"name": "web", "image": "app:1",
        "readinessProbe": {"tcpSocket": {"port": 1}, "initialDelaySeconds": 5, "periodSeconds": 10, "failureThreshold": 2,
            "successThreshold": 2}}]})));
    device.run(Event::Tick, T0);
    assert_eq!(ready(&device), (true, false));
    assert_eq!(device.pod.next_wake(), Some(at(5)));
    assert_eq!(asked(&step(&mut device, Event::Tick, at(4))), []);
    assert_eq!(asked(&step(&mut device, Event::Tick, at(5))), [ProbeKind::Readiness]);
    assert_eq!(asked(&step(&mut device, Event::Tick, at(6))), [], "one at a time");
    let good = |device: &mut Device, now| step(device, answered(0, ProbeKind::Readiness, Answer::Good), now);
    let bad = |device: &mut Device, now| step(device, answered(0, ProbeKind::Readiness, Answer::Bad("no".into())), now);
    good(&mut device, at(6));
    assert_eq!(ready(&device), (true, false), "two in a row are wanted");
    step(&mut device, Event::Tick, at(15));
    let commands = good(&mut device, at(15));
    assert_eq!(ready(&device), (true, true));
    assert!(matches!(commands[..], [Command::ReportStatus { .. }]), "{commands:?}");
    let record = device.pod.record().clone();
    step(&mut device, Event::Tick, at(25));
    assert_eq!(good(&mut device, at(25)), [], "nothing is new");
    assert_eq!(*device.pod.record(), record, "nothing is to be written");
    // What comes twice is told once, and takes it out of service at the second time, without a restart.
    for (now, events, is_ready) in [(35, vec!["Unhealthy"], true), (45, vec![], false)] {
        step(&mut device, Event::Tick, at(now));
        let commands = bad(&mut device, at(now));
        assert_eq!((told(&commands), ready(&device).1), (events, is_ready), "{now}");
    }
    assert!(!device.pod.is_ready() && device.container()["restartCount"] == 0);
    // An agent that starts again asks anew and takes nobody out of service, nor into it.
    let found = |device: &Device| {
        let running = FoundContainer { name: "web".into(), attempt: 0, state: FoundState::Running(T0) };
        PodMachine::new(
            device.pod.spec().clone(),
            Some(device.pod.record().clone()),
            Found::Alive(vec![running]),
            at(50),
        )
    };
    assert!(!found(&device).is_ready());
    for now in [55, 65] {
        step(&mut device, Event::Tick, at(now));
        good(&mut device, at(now));
    }
    assert!(device.pod.is_ready() && found(&device).is_ready());
}

#[test]
fn a_container_that_is_not_alive_is_killed_once_and_started_again() {
    let mut device =
        Device::new(pod(json!({"terminationGracePeriodSeconds": 20, "containers": [{"name": "web", "image": "app:1",
        "livenessProbe": {"tcpSocket": {"port": 1}, "failureThreshold": 2, "terminationGracePeriodSeconds": 4}}]})));
    device.run(Event::Tick, T0);
    let bad = || answered(0, ProbeKind::Liveness, Answer::Bad("dead".into()));
    // What cannot be asked says nothing.
    step(&mut device, Event::Tick, at(10));
    step(&mut device, answered(0, ProbeKind::Liveness, Answer::Unknown("no address".into())), at(10));
    for now in [20, 30] {
        step(&mut device, Event::Tick, at(now));
        let commands = step(&mut device, bad(), at(now));
        let signals = commands.iter().filter(|command| matches!(command, Command::Signal { .. })).count();
        assert_eq!(signals, usize::from(now == 30), "{commands:?}");
    }
    assert_eq!(step(&mut device, bad(), at(31)), [], "it is on its way already");
    let kills = |commands: &[Command]| commands.iter().filter(|one| matches!(one, Command::Kill { .. })).count();
    assert_eq!(kills(&step(&mut device, Event::Tick, at(33))), 0);
    assert_eq!(kills(&step(&mut device, Event::Tick, at(34))), 1, "the probe's own grace is over");
    assert_eq!(asked(&step(&mut device, Event::Tick, at(40))), [], "who is on the way out is not asked");
    let killed = Exit::observed(None, Some(9), false, T0, at(41));
    let commands = device.run(exited("web", 0, killed), at(41));
    assert_eq!(starts(&commands), [1]);
    assert_eq!(device.container()["restartCount"], 1);
    // An answer of the attempt before changes nothing.
    assert_eq!(step(&mut device, bad(), at(42)), []);
}

#[test]
fn a_slow_starter_is_asked_nothing_else_until_it_has_started() {
    let mut device = Device::new(pod(json!({"containers": [{"name": "web", "image": "app:1",
        "startupProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 5, "failureThreshold": 30},
        "livenessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1},
        "readinessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 1}}]})));
    device.run(Event::Volumes(Ok(())), T0);
    device.pod.step(Event::Image { container: "web".into(), result: Ok(facts()) }, T0);
    device.pod.step(Event::Network(Ok(addresses())), T0);
    device.pod.step(Event::Sandbox(Ok(())), T0);
    let started = Event::Started { container: "web".into(), attempt: 0, result: Ok(T0) };
    assert_eq!(asked(&device.pod.step(started, T0)), [ProbeKind::Startup]);
    for now in (5..100).step_by(5) {
        let answer = answered(0, ProbeKind::Startup, Answer::Bad("not yet".into()));
        device.pod.step(answer, at(now));
        assert_eq!(ready(&device), (false, false));
        device.pod.step(Event::Tick, at(now));
    }
    let commands = device.pod.step(answered(0, ProbeKind::Startup, Answer::Good), at(100));
    let mut kinds = asked(&commands);
    kinds.sort();
    assert_eq!(kinds, [ProbeKind::Liveness, ProbeKind::Readiness]);
    assert_eq!(ready(&device), (true, false));
    device.pod.step(answered(0, ProbeKind::Readiness, Answer::Good), at(100));
    assert_eq!((ready(&device), device.container()["restartCount"].clone()), ((true, true), json!(0)));
}

#[test]
fn what_initialises_a_pod_goes_before_in_its_order_and_sidecars_stay() {
    let mut device = Device::new(pod(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "first", "image": "app:1"}, {"name": "side", "image": "app:1", "restartPolicy": "Always"},
            {"name": "second", "image": "app:1"}],
        "containers": [{"name": "web", "image": "app:1"}]})));
    let starting = |commands: &[Command]| -> Vec<String> {
        let name = |command: &Command| match command {
            Command::StartContainer { container, .. } => Some(container.clone()),
            _ => None,
        };
        commands.iter().filter_map(name).collect()
    };
    assert_eq!(starting(&device.run(Event::Tick, T0)), ["first"]);
    let waiting = |device: &Device| device.container()["state"]["waiting"]["reason"].clone();
    assert_eq!((device.status()["phase"].clone(), waiting(&device)), (json!("Pending"), json!("PodInitializing")));
    assert_eq!(condition(&device.status(), "Initialized"), "False");
    assert_eq!(starting(&device.run(exited("first", 0, exit(0, 0, 1)), at(1))), ["side", "second"]);
    assert_eq!(starting(&device.run(exited("second", 0, exit(0, 1, 2)), at(2))), ["web"]);
    assert_eq!(condition(&device.status(), "Initialized"), "True");
    assert!(device.pod.is_ready());
    // A sidecar is started again whatever the pod's policy, and takes the pod out of service meanwhile.
    let commands = device.run(exited("side", 0, exit(1, 1, 3)), at(3));
    assert_eq!(starting(&commands), ["side"]);
    // The pod is over when its own containers are: the sidecar is stopped then, and nothing is started.
    let commands = device.run(exited("web", 0, exit(0, 2, 4)), at(4));
    assert!(commands.contains(&Command::Signal { container: "side".into() }), "{commands:?}");
    assert_eq!(device.status()["phase"], "Running", "something of it runs still");
    let commands = device.run(exited("side", 1, exit(143, 3, 5)), at(5));
    assert_eq!(starting(&commands), Vec::<String>::new());
    assert_eq!(device.status()["phase"], "Succeeded");
    assert!(device.pod.is_finished());
}

#[test]
fn a_pod_whose_first_steps_fail_for_good_has_failed() {
    let spec = |policy: &str| {
        pod(json!({"restartPolicy": policy, "initContainers": [{"name": "first", "image": "app:1"}],
            "containers": [{"name": "web", "image": "app:1"}]}))
    };
    let mut device = Device::new(spec("Never"));
    device.run(Event::Tick, T0);
    device.run(exited("first", 0, exit(3, 0, 1)), at(1));
    assert_eq!(device.status()["phase"], "Failed");
    assert!(device.pod.is_finished());
    let mut device = Device::new(spec("OnFailure"));
    device.run(Event::Tick, T0);
    assert_eq!(starts(&device.run(exited("first", 0, exit(3, 0, 1)), at(1))), [1], "at once, the first time");
    device.run(exited("first", 1, exit(3, 1, 2)), at(2));
    let status = device.status();
    assert_eq!(status["initContainerStatuses"][0]["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(status["phase"], "Pending");
}

#[test]
fn sidecars_are_stopped_last_and_what_is_to_be_done_before_is_done_within_the_grace() {
    let mut device = Device::new(pod(json!({
        "initContainers": [{"name": "one", "image": "app:1", "restartPolicy": "Always"},
            {"name": "two", "image": "app:1", "restartPolicy": "Always"}],
        "containers": [{"name": "web", "image": "app:1", "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}]})));
    device.run(Event::Tick, T0);
    let spec = device.pod.spec().clone();
    let signals = |commands: &[Command]| -> Vec<String> {
        let name = |command: &Command| match command {
            Command::Signal { container } => Some(container.clone()),
            _ => None,
        };
        commands.iter().filter_map(name).collect()
    };
    let commands = step(&mut device, deleted(spec, 30), at(10));
    let bound = Duration::from_secs(30);
    assert!(commands.contains(&Command::PreStop { container: "web".into(), attempt: 0, bound }), "{commands:?}");
    assert_eq!(signals(&commands), Vec::<String>::new());
    let done = Event::PreStopped { container: "web".into(), attempt: 0, result: Ok(()) };
    assert_eq!(signals(&step(&mut device, done, at(15))), ["web"]);
    assert_eq!(signals(&step(&mut device, exited("web", 0, exit(0, 0, 16)), at(16))), ["two"]);
    assert_eq!(signals(&step(&mut device, exited("two", 0, exit(0, 0, 17)), at(17))), ["one"]);
    device.run(exited("one", 0, exit(0, 0, 18)), at(18));
    assert!(device.pod.is_finished());
}

#[test]
fn a_hook_that_fails_at_the_start_ends_its_container() {
    let mut device = Device::new(pod(json!({"containers": [{"name": "web", "image": "app:1",
        "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}]})));
    let mut queue = device.pod.step(Event::Tick, T0);
    let mut hooks = 0;
    while let Some(command) = queue.pop() {
        if matches!(command, Command::PostStart { .. }) {
            hooks += 1;
            continue;
        }
        if let Some(event) = succeed(&command, T0) {
            queue.extend(device.pod.step(event, T0));
        }
    }
    assert_eq!((hooks, device.pod.is_ready()), (1, false), "it waits for its hook");
    assert!(device.container()["state"].get("waiting").is_some());
    let result = Err(Failure::new("FailedPostStartHook", "no"));
    let commands = device.pod.step(Event::PostStarted { container: "web".into(), attempt: 0, result }, at(1));
    assert_eq!(told(&commands), ["FailedPostStartHook", "Killing"]);
    assert!(commands.contains(&Command::Signal { container: "web".into() }));
}

#[test]
fn a_record_of_a_release_without_probes_is_ready_where_it_runs() {
    let mut device = Device::new(view("Always", &["web"]));
    device.run(Event::Tick, T0);
    let mut record = serde_json::to_value(device.pod.record()).unwrap();
    let web = record["containers"]["web"].as_object_mut().unwrap();
    for field in ["started", "ready", "post_start_due", "restart", "passed"] {
        assert!(web.remove(field).is_some(), "{field}");
    }
    record.as_object_mut().unwrap().remove("ended_by");
    let record: Record = serde_json::from_value(record).unwrap();
    let running = FoundContainer { name: "web".into(), attempt: 0, state: FoundState::Running(T0) };
    let taken_over = PodMachine::new(view("Always", &["web"]), Some(record), Found::Alive(vec![running]), at(1));
    assert!(taken_over.is_ready());
}

#[test]
fn however_often_the_power_is_cut_a_container_starts_at_once() {
    let mut device = Device::new(view("Always", &["web"]));
    device.run(Event::Tick, T0);
    for cut in 1..6 {
        let record = device.pod.record().clone();
        let pod = PodMachine::new(view("Always", &["web"]), Some(record), Found::Nothing, at(cut));
        device = Device { pod, log: Vec::new() };
        assert_eq!(starts(&device.run(Event::Tick, at(cut))), [cut as u32]);
    }
}

#[test]
fn a_pod_that_takes_too_much_is_evicted_for_good() {
    let mut device = Device::new(view("Always", &["web"]));
    device.run(Event::Tick, T0);
    let why = Failure::new("Evicted", "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ");
    let commands = device.run(Event::Evicted(why.clone()), at(5));
    let told = Command::Event { kind: EventType::Warning, reason: "Evicted".into(), message: why.message.clone() };
    assert!(
        commands.contains(&told) && commands.contains(&Command::Signal { container: "web".into() }),
        "{commands:?}"
    );
    // It is not told twice.
    assert!(!device.run(Event::Evicted(why), at(5)).iter().any(|one| matches!(one, Command::Event { .. })));
    let commands = device.run(Event::Tick, at(6));
    assert!(commands.contains(&Command::Kill { container: "web".into() }), "a second after it was told: {commands:?}");
    let commands = device.run(exited("web", 0, exit(137, 0, 6)), at(6));
    assert!(commands.contains(&Command::TearDown) && starts(&commands).is_empty(), "{commands:?}");
    let status = device.status();
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("Evicted")));
    assert_eq!(status["message"], "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ");
    assert!(device.pod.is_finished());
    // Nor does an agent that starts again begin it anew.
    let again = PodMachine::new(view("Always", &["web"]), Some(device.pod.record().clone()), Found::Nothing, at(9));
    assert_eq!(again.status()["reason"], "Evicted");
}

#[test]
fn a_pod_whose_volumes_go_away_is_stopped_and_runs_again_when_they_are_back() {
    let mut device = Device::new(view("Always", &["web"]));
    device.run(Event::Tick, T0);
    let why = Failure::new("FailedMount", "volume data: is its disk mounted?");
    let commands = device.pod.step(Event::VolumesLost(why.clone()), at(5));
    let told = Command::Event { kind: EventType::Warning, reason: "FailedMount".into(), message: why.message.clone() };
    assert!(commands.contains(&told) && commands.contains(&Command::DestroySandbox), "{commands:?}");
    let commands = device.pod.step(Event::SandboxDestroyed(Ok(())), at(5));
    assert!(starts(&commands).is_empty() && !commands.contains(&Command::CreateSandbox), "{commands:?}");
    let commands = device.pod.step(Event::Tick, at(6));
    assert!(commands.contains(&Command::EnsureVolumes), "{commands:?}");
    let commands = device.pod.step(Event::Volumes(Err(why.clone())), at(6));
    assert!(!commands.contains(&told), "people have heard of it: {commands:?}");
    let waiting = &device.container()["state"]["waiting"];
    assert_eq!((&waiting["reason"], &waiting["message"]), (&json!("FailedMount"), &json!(why.message)));
    assert_eq!(condition(&device.status(), "Ready"), "False");
    device.run(Event::Tick, at(60));
    assert!(device.container()["state"]["running"].is_object(), "{}", device.container());
    assert_eq!(device.container()["restartCount"], 1);
}

#[test]
fn a_pod_whose_network_cannot_be_as_asked_for_is_stopped_and_says_why() {
    let mut device = Device::new(view("Always", &["web"]));
    device.run(Event::Tick, T0);
    let why = Failure::new("FailedCreatePodSandBox", "the kernel cannot limit bandwidth");
    let commands = device.pod.step(Event::NetworkLost(why.clone()), at(5));
    let told = Command::Event { kind: EventType::Warning, reason: why.reason.clone(), message: why.message.clone() };
    assert!(commands.contains(&told) && commands.contains(&Command::DestroySandbox), "{commands:?}");
    let commands = device.pod.step(Event::SandboxDestroyed(Ok(())), at(5));
    assert!(commands.contains(&Command::AttachNetwork) && starts(&commands).is_empty(), "{commands:?}");
    device.pod.step(Event::Network(Err(why.clone())), at(5));
    let waiting = &device.container()["state"]["waiting"];
    assert_eq!((&waiting["reason"], &waiting["message"]), (&json!(why.reason), &json!(why.message)));
    device.run(Event::Tick, at(60));
    assert!(device.container()["state"]["running"].is_object(), "{}", device.container());
}

#[test]
fn a_pod_that_is_held_stops_with_its_grace_waits_and_runs_again_where_it_was() {
    let mut device = Device::new(view("Always", &["web"]));
    device.run(Event::Tick, T0);
    let why = Failure::new("LendingHoursOver", "the device lends again from 22:00 on");
    let commands = device.pod.step(Event::Held(Some(why.clone())), at(100));
    let told = Command::Event { kind: EventType::Warning, reason: why.reason.clone(), message: why.message.clone() };
    assert!(
        commands.contains(&told) && commands.contains(&Command::Signal { container: "web".into() }),
        "{commands:?}"
    );
    assert_eq!(device.status()["phase"], "Running", "until its end");
    device.run(exited("web", 0, exit(143, 50, 110)), at(110));
    let held = device.status();
    assert_eq!(
        (&held["phase"], &held["reason"], &held["message"]),
        (&json!("Pending"), &json!(why.reason), &json!(why.message))
    );
    assert_eq!(device.container()["state"]["waiting"]["reason"], "LendingHoursOver");
    assert!(!device.pod.has_sandbox() && !device.pod.is_finished() && device.pod.next_wake().is_none());
    let commands = device.run(Event::ConfigChanged, at(500));
    assert!(starts(&commands).is_empty(), "{commands:?}");
    // An agent that starts again leaves it so, and another reason or time is no news.
    let mut again =
        PodMachine::new(view("Always", &["web"]), Some(device.pod.record().clone()), Found::Nothing, at(600));
    let commands = again.step(Event::Held(Some(why)), at(600));
    assert!(starts(&commands).is_empty() && !commands.contains(&Command::AttachNetwork), "{commands:?}");
    device.run(Event::Held(None), at(1000));
    assert!(device.container()["state"]["running"].is_object(), "{}", device.container());
    assert_eq!((device.status()["reason"].as_str(), device.container()["restartCount"].as_i64()), (None, Some(1)));
}

#[test]
fn a_held_pod_that_is_deleted_is_gone_at_once_and_one_released_while_it_stops_is_stopped_first() {
    let held = || Event::Held(Some(Failure::new("LendingHoursOver", "later")));
    let mut device = Device::new(view("Always", &["web"]));
    device.run(Event::Tick, T0);
    device.pod.step(held(), at(100));
    let commands = device.pod.step(Event::Held(None), at(101));
    assert!(starts(&commands).is_empty(), "it was asked to end: {commands:?}");
    device.run(exited("web", 0, exit(0, 50, 102)), at(102));
    assert!(device.container()["state"]["running"].is_object(), "{}", device.container());
    device.run(held(), at(200));
    device.run(exited("web", 1, exit(143, 110, 201)), at(201));
    assert!(!device.pod.is_finished());
    device.run(deleted(view("Always", &["web"]), 30), at(300));
    assert!(device.pod.is_finished(), "{:?}", device.pod);
}
