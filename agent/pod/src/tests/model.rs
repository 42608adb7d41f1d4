//! Devices on which anything may happen.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What random devices do.
#[derive(Clone, Debug)]
enum Chance {
    Answer { which: usize, good: bool },
    End { which: usize, code: i32 },
    EndBeforeStart { which: usize },
    Lose,
    Images,
    Config,
    Delete { grace: u64 },
    Unmount,
    Unlink,
    Hold { held: bool },
    Evict,
    Debug { target: bool },
    Vanish,
    Wait { seconds: u64 },
    Restart { alive: bool },
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        10 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(which, good)| Chance::Answer { which, good }),
        4 => (any::<usize>(), 0..3).prop_map(|(which, code)| Chance::End { which, code }),
        1 => any::<usize>().prop_map(|which| Chance::EndBeforeStart { which }),
        1 => Just(Chance::Lose),
        1 => Just(Chance::Images),
        1 => Just(Chance::Config),
        1 => (0_u64..40).prop_map(|grace| Chance::Delete { grace }),
        1 => Just(Chance::Unmount),
        1 => Just(Chance::Unlink),
        2 => any::<bool>().prop_map(|held| Chance::Hold { held }),
        1 => Just(Chance::Evict),
        3 => any::<bool>().prop_map(|target| Chance::Debug { target }),
        1 => Just(Chance::Vanish),
        4 => (0_u64..400).prop_map(|seconds| Chance::Wait { seconds }),
        1 => any::<bool>().prop_map(|alive| Chance::Restart { alive }),
    ]
}

/// Why a pod is held.
fn hold(held: bool) -> Option<Failure> {
    held.then(|| Failure::new("LendingHoursOver", "not at this time"))
}

/// A device that does as chance has it, and watches over the machine.
struct Model {
    spec: PodView,
    pod: PodMachine,
    now: Timestamp,
    open: Vec<Command>,
    running: BTreeMap<String, (u32, Timestamp)>,
    newest: BTreeMap<String, u32>,
    stopping: bool,
    held: bool,
    /// Of those that initialise the pod: who ended well, or has started as a sidecar, in this sandbox.
    passed: BTreeSet<String>,
}

impl Model {
    fn new(spec: PodView) -> Self {
        let mut model = Self {
            pod: PodMachine::new(spec.clone(), None, Found::Nothing, T0),
            spec,
            now: T0,
            open: Vec::new(),
            running: BTreeMap::new(),
            newest: BTreeMap::new(),
            stopping: false,
            held: false,
            passed: BTreeSet::new(),
        };
        model.step(Event::Tick);
        model
    }

    fn step(&mut self, event: Event) {
        self.stopping |=
            matches!(&event, Event::Vanished(_)) || matches!(&event, Event::Desired(view) if view.deletion.is_some());
        for command in self.pod.step(event, self.now) {
            match &command {
                Command::StartContainer { container, attempt } => {
                    assert!(!self.stopping, "a pod that is being stopped starts {container}");
                    assert!(!self.held, "a pod that is held starts {container}");
                    assert!(self.pod.record().ended.is_none(), "a pod that ended starts {container}");
                    assert!(!self.running.contains_key(container), "{container} runs already");
                    let before = self.spec.containers.iter().take_while(|view| view.name != *container);
                    let is_ephemeral = self.spec.container(container).is_some_and(|view| view.role == Role::Ephemeral);
                    assert!(!is_ephemeral || *attempt == 0, "{container} is started twice");
                    let mut before = before.filter(|view| view.role.initialises() && !is_ephemeral);
                    assert!(before.all(|view| self.passed.contains(&view.name)), "{container} comes before its turn");
                    let open =
                        |c: &Command| matches!(c, Command::StartContainer { container: c, .. } if c == container);
                    assert!(!self.open.iter().any(open), "{container} is being started already");
                    assert!(self.newest.get(container).is_none_or(|newest| attempt > newest), "attempt used twice");
                }
                Command::RemoveContainer { container } => {
                    assert!(!self.running.contains_key(container), "{container} runs and is removed");
                }
                Command::Kill { container } => {
                    if let Some((attempt, started)) = self.running.remove(container) {
                        let exit = Exit::observed(None, Some(9), false, started, self.now);
                        self.open.push(command.clone());
                        // Told later, in any order.
                        self.newest.insert(container.clone(), attempt);
                        let told = exited(container, attempt, exit);
                        self.open.pop();
                        self.step(told);
                        continue;
                    }
                }
                Command::TearDown | Command::DestroySandbox => self.running.clear(),
                _ => {}
            }
            if succeed(&command, self.now).is_some() {
                self.open.push(command);
            }
        }
        let json = serde_json::to_value(self.pod.record()).unwrap();
        assert_eq!(&serde_json::from_value::<Record>(json).unwrap(), self.pod.record());
    }

    fn answer(&mut self, which: usize, good: bool) {
        if self.open.is_empty() {
            return;
        }
        let command = self.open.remove(which % self.open.len());
        let failure = || Failure::new("Test", "chance has it");
        let hooked = |name: &str| self.spec.container(name).is_some_and(|view| view.post_start);
        let is_sidecar = |name: &str| self.spec.container(name).is_some_and(|view| view.role == Role::Sidecar);
        match &command {
            Command::StartContainer { container, .. } if good && is_sidecar(container) && !hooked(container) => {
                self.passed.insert(container.clone());
            }
            Command::PostStart { container, attempt }
                if good
                    && is_sidecar(container)
                    && self.running.get(container).is_some_and(|(running, _)| running == attempt) =>
            {
                self.passed.insert(container.clone());
            }
            Command::CreateSandbox if good => self.passed.clear(),
            _ => {}
        }
        let event = match (&command, good) {
            (Command::StartContainer { container, attempt }, true) => {
                self.running.insert(container.clone(), (*attempt, self.now));
                self.newest.insert(container.clone(), *attempt);
                succeed(&command, self.now).unwrap()
            }
            (_, true) => succeed(&command, self.now).unwrap(),
            (Command::EnsureImage { container }, false) => {
                Event::Image { container: container.clone(), result: Err(failure()) }
            }
            (Command::EnsureVolumes, false) => Event::Volumes(Err(failure())),
            (Command::AttachNetwork, false) => Event::Network(Err(failure())),
            (Command::CreateSandbox, false) => Event::Sandbox(Err(failure())),
            (Command::StartContainer { container, attempt }, false) => {
                let result = Err(if which.is_multiple_of(2) {
                    self.newest.insert(container.clone(), *attempt);
                    StartFailure::Run(failure())
                } else {
                    StartFailure::Config(failure())
                });
                Event::Started { container: container.clone(), attempt: *attempt, result }
            }
            (Command::RemoveContainer { container }, false) => {
                Event::Removed { container: container.clone(), result: Err(failure()) }
            }
            (Command::PostStart { container, attempt }, false) => {
                Event::PostStarted { container: container.clone(), attempt: *attempt, result: Err(failure()) }
            }
            (Command::PreStop { container, attempt, .. }, false) => {
                Event::PreStopped { container: container.clone(), attempt: *attempt, result: Err(failure()) }
            }
            (Command::DestroySandbox, false) => Event::SandboxDestroyed(Err(failure())),
            (Command::TearDown, false) => Event::TornDown(Err(failure())),
            _ => return,
        };
        self.step(event);
    }

    fn end(&mut self, which: usize, code: i32) {
        let Some(name) = self.running.keys().nth(which % self.running.len().max(1)).cloned() else { return };
        let (attempt, started) = self.running.remove(&name).unwrap();
        self.note_end(&name, code);
        self.step(exited(&name, attempt, Exit::observed(Some(code), None, false, started, self.now)));
    }

    fn note_end(&mut self, name: &str, code: i32) {
        if code == 0 && self.spec.container(name).is_some_and(|view| view.role == Role::Init) {
            self.passed.insert(name.to_owned());
        }
    }

    /// A container that runs and has something to end.
    fn initialising(&self) -> Option<usize> {
        let is_init = |name: &String| self.spec.container(name).is_some_and(|view| view.role == Role::Init);
        self.running.keys().position(is_init)
    }

    fn take(&mut self, chance: &Chance) {
        match *chance {
            Chance::Answer { which, good } => self.answer(which, good),
            Chance::End { which, code } => self.end(which, code),
            Chance::EndBeforeStart { which } => {
                let is_start = |c: &Command| matches!(c, Command::StartContainer { .. });
                if let Some(index) = self.open.iter().position(is_start) {
                    let Command::StartContainer { container, attempt } = self.open[index].clone() else { return };
                    if self.spec.container(&container).is_some_and(|view| view.role == Role::Sidecar) {
                        // Nobody is told whether it had started.
                        return;
                    }
                    self.newest.insert(container.clone(), attempt);
                    self.note_end(&container, which as i32 % 2);
                    let exit = Exit::observed(Some(which as i32 % 2), None, false, self.now, self.now);
                    self.step(exited(&container, attempt, exit));
                    // Its start is told after its end.
                    if let Some(index) = self.open.iter().position(is_start) {
                        self.open.remove(index);
                    }
                    self.step(Event::Started { container, attempt, result: Ok(self.now) });
                }
            }
            Chance::Lose => {
                if self.pod.has_sandbox() {
                    self.running.clear();
                    self.step(Event::SandboxLost);
                }
            }
            Chance::Images => self.step(Event::ImagesChanged),
            Chance::Config => self.step(Event::ConfigChanged),
            Chance::Delete { grace } => self.step(deleted(self.spec.clone(), grace)),
            Chance::Unmount => {
                if self.pod.has_sandbox() {
                    let before = self.pod.record().clone();
                    self.step(Event::VolumesLost(Failure::new("FailedMount", "gone")));
                    if *self.pod.record() != before || !self.pod.has_sandbox() {
                        self.running.clear();
                    }
                }
            }
            Chance::Hold { held } => {
                self.held = held;
                self.step(Event::Held(hold(held)));
            }
            Chance::Unlink => {
                if self.pod.has_sandbox() {
                    self.step(Event::NetworkLost(Failure::new("FailedCreatePodSandBox", "no limit")));
                    if !self.pod.has_sandbox() {
                        self.running.clear();
                    }
                }
            }
            Chance::Evict => self.step(Event::Evicted(Failure::new("Evicted", "too much"))),
            Chance::Debug { target } => {
                let mut view = self.spec.containers[0].clone();
                view.name = format!("debug{}", self.spec.containers.len());
                (view.role, view.post_start, view.pre_stop) = (Role::Ephemeral, false, false);
                view.target = target.then(|| self.spec.containers[0].name.clone());
                self.spec.containers.push(view);
                let mut spec = self.spec.clone();
                spec.deletion = self.pod.spec().deletion;
                self.step(Event::Desired(Box::new(spec)));
            }
            Chance::Vanish => self.step(Event::Vanished(Duration::from_secs(1))),
            Chance::Wait { seconds } => {
                self.now = self.now.plus(Duration::from_secs(seconds));
                self.step(Event::Tick);
            }
            Chance::Restart { alive } => self.restart(alive),
        }
    }

    /// The agent dies with what was under way, and starts again.
    fn restart(&mut self, alive: bool) {
        let alive = alive && self.pod.has_sandbox();
        let record = self.pod.record().clone();
        self.open.clear();
        let found = self.running.iter().map(|(name, (attempt, started))| FoundContainer {
            name: name.clone(),
            attempt: *attempt,
            state: FoundState::Running(*started),
        });
        let found = if alive { Found::Alive(found.collect()) } else { Found::Nothing };
        if !alive {
            self.running.clear();
        }
        let mut spec = self.spec.clone();
        spec.deletion = self.stopping.then_some(Duration::from_secs(3));
        self.pod = PodMachine::new(spec, Some(record), found, self.now);
        self.step(if self.held { Event::Held(hold(true)) } else { Event::Tick });
    }

    /// From here on everything works.
    fn heal(&mut self) {
        self.held = false;
        self.step(Event::Held(None));
        for _ in 0..10_000 {
            if !self.open.is_empty() {
                self.answer(0, true);
            } else if let Some(which) = self.initialising() {
                self.end(which, 0);
            } else if let Some(wake) = self.pod.next_wake() {
                self.now = self.now.max(wake);
                self.step(Event::Tick);
                assert!(self.pod.next_wake().is_none_or(|next| next > self.now), "it would wake for ever");
            } else {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", self.pod);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_a_pod_keeps_its_guarantees(
        policy in prop::sample::select(vec!["Always", "OnFailure", "Never"]),
        containers in 1_usize..4,
        first in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..3),
        chances in prop::collection::vec(chance(), 0..60),
    ) {
        let names = ["a", "b", "c"];
        let mut spec = view(policy, &names[..containers]);
        let init = first.iter().zip(["i", "j"]).map(|((sidecar, post_start, pre_stop), name)| ContainerView {
            name: name.into(),
            role: if *sidecar { Role::Sidecar } else { Role::Init },
            post_start: *sidecar && *post_start,
            pre_stop: *sidecar && *pre_stop,
            ..spec.containers[0].clone()
        });
        let init: Vec<_> = init.collect();
        spec.containers.splice(0..0, init);
        let containers = spec.containers.iter().filter(|view| view.role != Role::Init).count();
        let mut model = Model::new(spec);
        for chance in &chances {
            model.take(chance);
        }
        model.heal();
        if !model.stopping {
            let lasts = |name: &String| model.spec.container(name).is_some_and(|view| view.role != Role::Ephemeral);
            let running = model.running.keys().filter(|name| lasts(name)).count() == containers;
            prop_assert!(running || model.pod.record().ended.is_some() || policy != "Always", "{:?}", model.pod);
            let evicted = chances.iter().any(|chance| matches!(chance, Chance::Evict));
            prop_assert!(running || evicted || policy == "OnFailure" || policy == "Never");
            model.step(deleted(model.spec.clone(), 2));
            model.heal();
        }
        prop_assert!(model.pod.is_finished(), "{:?}", model.pod);
        prop_assert!(model.running.is_empty());
    }
}
