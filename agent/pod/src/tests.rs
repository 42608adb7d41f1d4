#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::time::Duration;

use hearth_types::Timestamp;
use serde_json::{Value, json};

use super::*;

mod ephemeral;
mod life;
mod model;

const T0: Timestamp = Timestamp(1_700_000_000_000);

fn at(seconds: u64) -> Timestamp {
    T0.plus(Duration::from_secs(seconds))
}

fn view(restart: &str, containers: &[&str]) -> PodView {
    let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name, "image": "app:1"})).collect();
    let pod = json!({"metadata": {"name": "p", "namespace": "alice", "uid": "u-1"},
        "spec": {"restartPolicy": restart, "containers": containers}});
    PodView::from_json(&pod).unwrap()
}

fn deleted(mut view: PodView, grace: u64) -> Event {
    view.deletion = Some(Duration::from_secs(grace));
    Event::Desired(Box::new(view))
}

fn facts() -> ImageFacts {
    ImageFacts { reference: "app:1".into(), id: "sha256:00".into() }
}

fn addresses() -> Addresses {
    Addresses { pod: vec!["10.0.0.2".into(), "fd00::2".into()], host: vec!["192.0.2.1".into()] }
}

fn exit(code: i32, started: u64, finished: u64) -> Exit {
    Exit::observed(Some(code), None, false, at(started), at(finished))
}

/// A device on which everything works: answers commands until none is left.
struct Device {
    pod: PodMachine,
    log: Vec<Command>,
}

impl Device {
    fn new(view: PodView) -> Self {
        Self { pod: PodMachine::new(view, None, Found::Nothing, T0), log: Vec::new() }
    }

    fn run(&mut self, event: Event, now: Timestamp) -> Vec<Command> {
        let mut queue = self.pod.step(event, now);
        let mut all = Vec::new();
        while !queue.is_empty() {
            let command = queue.remove(0);
            if let Some(event) = succeed(&command, now) {
                queue.extend(self.pod.step(event, now));
            }
            all.push(command);
        }
        self.log.extend(all.clone());
        all
    }

    fn status(&self) -> Value {
        self.pod.status()
    }

    fn container(&self) -> Value {
        self.status()["containerStatuses"][0].clone()
    }
}

fn succeed(command: &Command, now: Timestamp) -> Option<Event> {
    Some(match command {
        Command::EnsureImage { container } => Event::Image { container: container.clone(), result: Ok(facts()) },
        Command::EnsureVolumes => Event::Volumes(Ok(())),
        Command::AttachNetwork => Event::Network(Ok(addresses())),
        Command::CreateSandbox => Event::Sandbox(Ok(())),
        Command::StartContainer { container, attempt } => {
            Event::Started { container: container.clone(), attempt: *attempt, result: Ok(now) }
        }
        Command::RemoveContainer { container } => Event::Removed { container: container.clone(), result: Ok(()) },
        Command::DestroySandbox => Event::SandboxDestroyed(Ok(())),
        Command::TearDown => Event::TornDown(Ok(())),
        Command::PostStart { container, attempt } => {
            Event::PostStarted { container: container.clone(), attempt: *attempt, result: Ok(()) }
        }
        Command::Probe { container, attempt, kind } => {
            Event::Probed { container: container.clone(), attempt: *attempt, kind: *kind, answer: Answer::Good }
        }
        Command::PreStop { container, attempt, .. } => {
            Event::PreStopped { container: container.clone(), attempt: *attempt, result: Ok(()) }
        }
        Command::Signal { .. } | Command::Kill { .. } | Command::ReportStatus { .. } | Command::Event { .. } => {
            return None;
        }
    })
}

fn starts(commands: &[Command]) -> Vec<u32> {
    let attempt = |command: &Command| match command {
        Command::StartContainer { attempt, .. } => Some(*attempt),
        _ => None,
    };
    commands.iter().filter_map(attempt).collect()
}

fn condition(status: &Value, name: &str) -> String {
    let list = status["conditions"].as_array().unwrap();
    list.iter().find(|one| one["type"] == name).unwrap()["status"].as_str().unwrap().to_owned()
}

fn exited(name: &str, attempt: u32, exit: Exit) -> Event {
    Event::Exited { container: name.into(), attempt, exit }
}

#[test]
fn a_pod_comes_up_and_says_so_as_kubernetes_does() {
    let mut device = Device::new(view("Always", &["web"]));
    let first = device.pod.step(Event::Tick, T0);
    let Some(Command::ReportStatus { status, finished: false }) = first.last() else { panic!("{first:?}") };
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");
    for command in first {
        if let Some(event) = succeed(&command, at(1)) {
            device.run(event, at(1));
        }
    }
    let status = device.status();
    assert_eq!(
        status["containerStatuses"],
        json!([{
            "name": "web", "image": "app:1", "imageID": "sha256:00", "ready": true, "started": true,
            "restartCount": 0, "containerID": "hearth://u-1/web/0", "lastState": {},
            "state": {"running": {"startedAt": "2023-11-14T22:13:21Z"}},
        }])
    );
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "10.0.0.2");
    assert_eq!(status["podIPs"], json!([{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]));
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["startTime"], "2023-11-14T22:13:20Z");
    for name in ["PodScheduled", "Initialized", "ContainersReady", "Ready", "PodReadyToStartContainers"] {
        assert_eq!(condition(&status, name), "True", "{name}");
    }
    // The typed view of Kubernetes reads it.
    let typed: hearth_types::kinds::PodStatus = serde_json::from_value(status).unwrap();
    assert_eq!(typed.container_statuses.unwrap().len(), 1);
}

#[test]
fn a_crashing_container_is_restarted_at_once_and_then_with_waits() {
    let mut device = Device::new(view("Always", &["web"]));
    assert_eq!(starts(&device.run(Event::Tick, T0)), [0]);
    assert_eq!(starts(&device.run(exited("web", 0, exit(1, 0, 1)), at(1))), [1]);
    assert_eq!(device.container()["lastState"]["terminated"]["exitCode"], 1);
    // The second end waits 10 s, counted from the end.
    assert_eq!(starts(&device.run(exited("web", 1, exit(1, 1, 2)), at(3))), Vec::<u32>::new());
    let container = device.container();
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(
        container["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=web pod=p_alice(u-1)"
    );
    assert_eq!(container["restartCount"], 1);
    assert_eq!(container["lastState"]["terminated"]["reason"], "Error");
    assert_eq!(device.status()["phase"], "Running");
    assert_eq!(condition(&device.status(), "Ready"), "False");
    assert_eq!(device.pod.next_wake(), Some(at(12)));
    assert_eq!(starts(&device.run(Event::Tick, at(11))), Vec::<u32>::new());
    assert_eq!(starts(&device.run(Event::Tick, at(12))), [2]);
    assert_eq!(device.container()["restartCount"], 2);
    // After ten minutes of running, the next restart is immediate again.
    assert_eq!(starts(&device.run(exited("web", 2, exit(1, 12, 700)), at(700))), [3]);
}

#[test]
fn an_ended_container_is_removed_before_the_next_attempt() {
    let mut device = Device::new(view("Always", &["web"]));
    device.run(Event::Tick, T0);
    let commands = device.run(exited("web", 0, exit(0, 0, 1)), at(1));
    let remove = commands.iter().position(|c| matches!(c, Command::RemoveContainer { .. }));
    let start = commands.iter().position(|c| matches!(c, Command::StartContainer { .. }));
    assert!(remove.is_some() && remove < start, "{commands:?}");
}

#[test]
fn the_restart_policy_decides_how_a_pod_ends() {
    for (policy, code, phase, restarted) in [
        ("Always", 0, "Running", true),
        ("OnFailure", 0, "Succeeded", false),
        ("OnFailure", 1, "Running", true),
        ("Never", 0, "Succeeded", false),
        ("Never", 7, "Failed", false),
    ] {
        let mut device = Device::new(view(policy, &["job"]));
        device.run(Event::Tick, T0);
        let commands = device.run(exited("job", 0, exit(code, 0, 1)), at(1));
        assert_eq!(!starts(&commands).is_empty(), restarted, "{policy} {code}");
        assert_eq!(device.status()["phase"], phase, "{policy} {code}");
        assert_eq!(device.pod.is_finished(), !restarted, "{policy} {code}");
        if !restarted {
            assert!(commands.contains(&Command::TearDown));
            assert_eq!(device.container()["state"]["terminated"]["exitCode"], code);
            assert_eq!(condition(&device.status(), "Ready"), "False");
        }
    }
}

#[test]
fn one_of_two_that_ended_leaves_the_pod_running() {
    let mut device = Device::new(view("Never", &["a", "b"]));
    device.run(Event::Tick, T0);
    device.run(exited("a", 0, exit(1, 0, 1)), at(1));
    assert_eq!(device.status()["phase"], "Running");
    device.run(exited("b", 0, exit(0, 0, 2)), at(2));
    assert_eq!(device.status()["phase"], "Failed");
    assert!(device.pod.is_finished());
}

#[test]
fn a_missing_image_says_so_and_is_looked_for_again_at_once_when_images_change() {
    let mut device = Device::new(view("Always", &["web"]));
    device.pod.step(Event::Tick, T0);
    device.run(Event::Volumes(Ok(())), T0);
    let failure = Failure::new("ImageNotPresent", "import it");
    let result = Event::Image { container: "web".into(), result: Err(failure.clone()) };
    let commands = device.run(result.clone(), T0);
    assert!(commands.iter().any(|c| matches!(c, Command::Event { reason, .. } if reason == "ImageNotPresent")));
    assert!(!commands.contains(&Command::AttachNetwork), "nothing is made for a pod that cannot start");
    assert_eq!(device.container()["state"]["waiting"], json!({"reason": "ImageNotPresent", "message": "import it"}));
    assert!(device.pod.waits_for_image());
    let again = device.pod.step(Event::Tick, at(1));
    assert!(again.iter().any(|c| matches!(c, Command::EnsureImage { .. })), "{again:?}");
    // Images changed while the look-up was under way: its failure is stale.
    device.pod.step(Event::ImagesChanged, at(1));
    let again = device.pod.step(result, at(1));
    assert!(again.iter().any(|c| matches!(c, Command::EnsureImage { .. })), "{again:?}");
    assert!(!again.iter().any(|c| matches!(c, Command::Event { .. })), "the same failure is told once");
    device.run(Event::Image { container: "web".into(), result: Ok(facts()) }, at(2));
    assert_eq!(device.status()["phase"], "Running");
    assert!(!device.pod.waits_for_image());
}

#[test]
fn only_images_that_could_not_be_had_are_waited_for() {
    let mut spec = view("Always", &["web", "side"]);
    spec.containers[1].image = "side:1".into();
    let mut device = Device::new(spec);
    device.pod.step(Event::Tick, T0);
    assert_eq!(device.pod.missing_images().count(), 0, "they are being looked for");
    device.pod.step(Event::Image { container: "web".into(), result: Ok(facts()) }, T0);
    let failed = Event::Image { container: "side".into(), result: Err(Failure::of_pull("no such image")) };
    device.pod.step(failed, T0);
    assert_eq!(device.pod.missing_images().collect::<Vec<_>>(), ["side:1"]);
}

#[test]
fn a_pull_says_how_far_it_is_and_waits_as_under_the_kubelet_where_it_fails() {
    let mut device = Device::new(view("Always", &["web"]));
    device.pod.step(Event::Tick, T0);
    let progress = |message: &str| Event::ImageProgress { container: "web".into(), message: message.into() };
    let reported = device.pod.step(progress("1 of 3"), T0);
    assert!(matches!(&reported[..], [Command::ReportStatus { .. }]), "{reported:?}");
    let waiting = |device: &Device| device.container()["state"]["waiting"].clone();
    assert_eq!(waiting(&device), json!({"reason": "ContainerCreating", "message": "1 of 3"}));
    let failed = || Event::Image { container: "web".into(), result: Err(Failure::of_pull("no such image")) };
    let commands = device.pod.step(failed(), T0);
    let reasons = |commands: &[Command]| -> Vec<String> {
        let reason = |command: &Command| match command {
            Command::Event { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        commands.iter().filter_map(reason).collect()
    };
    assert_eq!(reasons(&commands), ["Failed", "BackOff"]);
    assert_eq!(waiting(&device)["reason"], "ImagePullBackOff");
    assert!(waiting(&device)["message"].as_str().unwrap().ends_with("ErrImagePull: no such image"));
    let asks = |commands: &[Command]| commands.iter().any(|c| matches!(c, Command::EnsureImage { .. }));
    assert!(!asks(&device.pod.step(Event::Tick, at(9))) && asks(&device.pod.step(Event::Tick, at(10))));
    assert_eq!(waiting(&device)["reason"], "ErrImagePull", "it is asked for again");
    device.pod.step(progress("2 of 3"), at(11));
    assert_eq!(waiting(&device), json!({"reason": "ContainerCreating", "message": "2 of 3"}));
    assert_eq!(reasons(&device.pod.step(failed(), at(11))), ["BackOff"], "the same failure is told once");
    assert!(!asks(&device.pod.step(Event::Tick, at(30))) && asks(&device.pod.step(Event::Tick, at(31))));
    // Progress that comes after the result is of the past.
    device.run(Event::Image { container: "web".into(), result: Ok(facts()) }, at(32));
    device.pod.step(progress("3 of 3"), at(32));
    assert_eq!(device.container()["state"]["waiting"], json!({"reason": "ContainerCreating"}));
}

#[test]
fn wrong_configuration_uses_up_no_attempt() {
    let mut device = Device::new(view("Always", &["web"]));
    for event in [
        Event::Tick,
        Event::Image { container: "web".into(), result: Ok(facts()) },
        Event::Volumes(Ok(())),
        Event::Network(Ok(addresses())),
        Event::Sandbox(Ok(())),
    ] {
        device.pod.step(event, T0);
    }
    let failure = Failure::new("CreateContainerConfigError", "configmap \"c\" not found");
    let result = Err(StartFailure::Config(failure));
    let commands = device.pod.step(Event::Started { container: "web".into(), attempt: 0, result }, T0);
    assert_eq!(starts(&commands), Vec::<u32>::new());
    assert_eq!(device.container()["state"]["waiting"]["reason"], "CreateContainerConfigError");
    assert_eq!(device.status()["phase"], "Pending");
    assert_eq!(starts(&device.run(Event::ConfigChanged, T0)), [0]);
    assert_eq!(device.container()["restartCount"], 0);
}

#[test]
fn a_container_that_cannot_be_executed_backs_off() {
    let mut device = Device::new(view("Always", &["web"]));
    for event in [
        Event::Tick,
        Event::Image { container: "web".into(), result: Ok(facts()) },
        Event::Volumes(Ok(())),
        Event::Network(Ok(addresses())),
        Event::Sandbox(Ok(())),
    ] {
        device.pod.step(event, T0);
    }
    let failed = |attempt| Event::Started {
        container: "web".into(),
        attempt,
        result: Err(StartFailure::Run(Failure::new("StartError", "/nope: no such file"))),
    };
    let remove = Command::RemoveContainer { container: "web".into() };
    assert!(device.pod.step(failed(0), T0).contains(&remove));
    let removed = Event::Removed { container: "web".into(), result: Ok(()) };
    assert_eq!(starts(&device.pod.step(removed, T0)), [1]);
    device.pod.step(failed(1), T0);
    let container = device.container();
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(container["lastState"]["terminated"]["reason"], "StartError");
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 128);
    assert_eq!(container["lastState"]["terminated"]["message"], "/nope: no such file");
    assert_eq!(device.pod.next_wake(), Some(at(10)));
}

#[test]
fn a_deleted_pod_is_asked_then_killed_then_torn_down() {
    let spec = view("Always", &["web"]);
    let mut device = Device::new(spec.clone());
    device.run(Event::Tick, T0);
    let commands = device.run(deleted(spec, 5), at(10));
    assert!(commands.contains(&Command::Signal { container: "web".into() }));
    assert_eq!(device.pod.next_wake(), Some(at(15)));
    let commands = device.run(Event::Tick, at(15));
    assert!(commands.contains(&Command::Kill { container: "web".into() }));
    assert!(!commands.contains(&Command::TearDown));
    let killed = Exit::observed(None, Some(9), false, T0, at(15));
    let commands = device.run(exited("web", 0, killed), at(15));
    assert!(commands.contains(&Command::TearDown));
    let Some(Command::ReportStatus { status, finished: true }) = commands.last() else { panic!("{commands:?}") };
    assert_eq!(status["phase"], "Failed");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    assert!(device.pod.is_finished());
    assert_eq!(device.pod.next_wake(), None);
}

#[test]
fn no_grace_kills_at_once_and_a_later_word_shortens_it() {
    let spec = view("Always", &["web"]);
    let mut device = Device::new(spec.clone());
    device.run(Event::Tick, T0);
    assert!(device.run(deleted(spec.clone(), 100), T0).contains(&Command::Signal { container: "web".into() }));
    assert!(device.run(deleted(spec.clone(), 200), T0).is_empty(), "never longer");
    assert!(device.run(deleted(spec, 0), T0).contains(&Command::Kill { container: "web".into() }));
}

#[test]
fn a_clock_that_is_set_back_does_not_lengthen_waits() {
    let spec = view("Always", &["web"]);
    let mut device = Device::new(spec.clone());
    device.run(Event::Tick, at(100_000));
    device.run(exited("web", 0, exit(1, 99_999, 100_000)), at(100_000));
    device.run(exited("web", 1, exit(1, 100_000, 100_001)), at(100_001));
    assert_eq!(starts(&device.run(Event::Tick, T0)), [2]);
    device.run(deleted(spec, 5), at(100_000));
    device.run(Event::Tick, T0);
    assert!(device.run(Event::Tick, at(5)).contains(&Command::Kill { container: "web".into() }));
}

#[test]
fn a_vanished_pod_is_stopped_without_reports() {
    let mut device = Device::new(view("Always", &["web"]));
    device.run(Event::Tick, T0);
    let mut commands = device.run(Event::Vanished(Duration::from_secs(1)), T0);
    commands.extend(device.run(exited("web", 0, exit(0, 0, 1)), at(1)));
    assert!(commands.contains(&Command::TearDown));
    assert!(!commands.iter().any(|c| matches!(c, Command::ReportStatus { .. })), "{commands:?}");
}

#[test]
fn an_adopted_pod_restarts_nothing_that_runs() {
    let mut before = Device::new(view("Always", &["web", "side"]));
    before.run(Event::Tick, T0);
    before.run(exited("web", 0, exit(1, 0, 1)), at(1));
    let record: Record = serde_json::from_value(serde_json::to_value(before.pod.record()).unwrap()).unwrap();
    assert_eq!(&record, before.pod.record());
    let running =
        |name: &str, attempt, since| FoundContainer { name: name.into(), attempt, state: FoundState::Running(since) };
    let found = Found::Alive(vec![running("web", 1, at(1)), running("side", 0, T0)]);
    let mut after =
        Device { pod: PodMachine::new(view("Always", &["web", "side"]), Some(record), found, at(50)), log: Vec::new() };
    let commands = after.run(Event::Tick, at(50));
    assert_eq!(starts(&commands), Vec::<u32>::new());
    assert!(!commands.contains(&Command::CreateSandbox), "{commands:?}");
    assert!(commands.contains(&Command::AttachNetwork), "{commands:?}");
    assert_eq!(after.container()["restartCount"], 1);
    assert_eq!(after.status(), before.status(), "nothing changed but the agent");
}

/// The machine of an agent that starts again, with the container still running.
fn again(before: &Device, spec: PodView, now: Timestamp) -> Device {
    let record = serde_json::from_value(serde_json::to_value(before.pod.record()).unwrap()).unwrap();
    let running = FoundContainer { name: "web".into(), attempt: 0, state: FoundState::Running(T0) };
    Device { pod: PodMachine::new(spec, Some(record), Found::Alive(vec![running]), now), log: Vec::new() }
}

#[test]
fn an_agent_that_keeps_starting_again_does_not_put_off_the_kill() {
    let spec = view("Always", &["web"]);
    let mut marked = spec.clone();
    marked.deletion = Some(Duration::from_secs(30));
    let kill = Command::Kill { container: "web".into() };
    for vanishes in [false, true] {
        let stop = || if vanishes { Event::Vanished(Duration::from_secs(30)) } else { deleted(spec.clone(), 30) };
        let known = if vanishes { spec.clone() } else { marked.clone() };
        let mut device = Device::new(spec.clone());
        device.run(Event::Tick, T0);
        device.run(stop(), at(10));
        // It crashes every 12 seconds.
        for now in [22, 34] {
            device = again(&device, known.clone(), at(now));
            let mut commands = device.run(Event::Tick, at(now));
            commands.extend(device.run(stop(), at(now)));
            assert!(commands.contains(&Command::Signal { container: "web".into() }), "{commands:?}");
            assert!(!commands.contains(&kill), "{commands:?}");
            assert_eq!(device.pod.next_wake(), Some(at(40)));
        }
        device = again(&device, known, at(46));
        let mut commands = device.run(Event::Tick, at(46));
        commands.extend(device.run(stop(), at(46)));
        assert!(commands.contains(&kill), "vanishes {vanishes}: {commands:?}");
    }
}

#[test]
fn a_pod_that_was_wanted_again_and_started_gets_its_whole_grace() {
    let spec = view("Always", &["web"]);
    let mut device = Device::new(spec.clone());
    device.run(Event::Tick, T0);
    device.run(deleted(spec.clone(), 5), at(10));
    // As after a region was rebuilt: the mark is gone, and the container was started anew.
    let record = serde_json::from_value(serde_json::to_value(device.pod.record()).unwrap()).unwrap();
    let pod = PodMachine::new(spec.clone(), Some(record), Found::Nothing, at(1000));
    device = Device { pod, log: Vec::new() };
    device.run(Event::Tick, at(1000));
    assert_eq!(starts(&device.run(Event::Tick, at(1100))).len() + starts(&device.log).len(), 1);
    let commands = device.run(deleted(spec, 5), at(2000));
    assert!(commands.contains(&Command::Signal { container: "web".into() }), "{commands:?}");
    assert!(!commands.contains(&Command::Kill { container: "web".into() }), "{commands:?}");
}

#[test]
fn what_was_lost_in_a_reboot_is_unknown_and_starts_again() {
    for (policy, phase) in [("Always", "Running"), ("OnFailure", "Running"), ("Never", "Failed")] {
        let mut before = Device::new(view(policy, &["web"]));
        before.run(Event::Tick, T0);
        let record = before.pod.record().clone();
        let mut after = Device {
            pod: PodMachine::new(view(policy, &["web"]), Some(record), Found::Nothing, at(50)),
            log: Vec::new(),
        };
        let commands = after.run(Event::Tick, at(50));
        assert_eq!(after.status()["phase"], phase, "{policy}");
        let state = if policy == "Never" { "state" } else { "lastState" };
        let terminated = after.container()[state]["terminated"].clone();
        assert_eq!(terminated["reason"], "ContainerStatusUnknown", "{policy}");
        assert_eq!(terminated["exitCode"], 255, "{policy}");
        assert_eq!(starts(&commands), if policy == "Never" { vec![] } else { vec![1] }, "{policy}");
    }
}

#[test]
fn an_end_that_nobody_saw_keeps_its_exit_code() {
    let mut before = Device::new(view("Never", &["job"]));
    before.run(Event::Tick, T0);
    let found =
        Found::Dead(vec![FoundContainer { name: "job".into(), attempt: 0, state: FoundState::Exited(exit(0, 0, 9)) }]);
    let mut after = Device {
        pod: PodMachine::new(view("Never", &["job"]), Some(before.pod.record().clone()), found, at(50)),
        log: Vec::new(),
    };
    after.run(Event::Tick, at(50));
    assert_eq!(after.status()["phase"], "Succeeded");
    assert!(after.pod.is_finished());
}

#[test]
fn a_lost_sandbox_is_made_anew() {
    let mut device = Device::new(view("Always", &["web"]));
    device.run(Event::Tick, T0);
    let commands = device.run(Event::SandboxLost, at(1));
    assert!(commands.contains(&Command::DestroySandbox));
    assert!(commands.contains(&Command::CreateSandbox));
    assert_eq!(starts(&commands), [1]);
    assert_eq!(device.container()["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
}

#[test]
fn last_messages_are_told_and_share_what_a_status_may_hold() {
    let names = ["a", "b", "c", "d"];
    let mut device = Device::new(view("Never", &names));
    device.run(Event::Tick, at(1));
    for name in names {
        device.run(exited(name, 0, exit(1, 1, 2).saying(&"é".repeat(2000))), at(2));
    }
    let status = device.status();
    for one in status["containerStatuses"].as_array().expect("a list") {
        let message = one["state"]["terminated"]["message"].as_str().expect("a message");
        assert_eq!(message.len(), 12 * 1024 / 4, "{one}");
    }
    let mut device = Device::new(view("Always", &["a"]));
    device.run(Event::Tick, at(1));
    device.run(exited("a", 0, exit(1, 1, 2).saying("no disk")), at(2));
    device.run(Event::Tick, at(60));
    assert_eq!(device.container()["lastState"]["terminated"]["message"], "no disk");
}
