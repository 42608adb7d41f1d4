//! The machine: what happened changes what is known, and what is known says what to do next.

use std::{collections::BTreeMap, time::Duration};

use hearth_types::Timestamp;
use serde_json::Value;

use crate::{
    Command, ContainerRecord, ContainerView, Event, EventType, Exit, Failure, Found, FoundContainer, FoundState, Phase,
    PodView, Record, RestartPolicy, Role, Stage,
    action::{Actions, Attempted, ContainerActions},
};

/// How long killed containers may take to go before the sandbox is torn down over them.
pub(crate) const KILL_WAIT: Duration = Duration::from_secs(10);

/// What the pod is meant to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Run.
    Run,
    /// All its containers ended for good, or may not go on. Sidecars are stopped as in `Stop`.
    Ended {
        /// The pod's own grace.
        grace: Duration,
        /// When to kill.
        deadline: Timestamp,
    },
    /// Stop as in `Stop`, and run again once the device runs it again.
    Held {
        /// The pod's own grace.
        grace: Duration,
        /// When to kill.
        deadline: Timestamp,
    },
    /// Stop: ask at once, kill at the deadline.
    Stop {
        /// The grace that was given last.
        grace: Duration,
        /// When to kill.
        deadline: Timestamp,
    },
}

/// The life of one pod. See the crate's documentation for what it guarantees.
#[derive(Clone, Debug)]
pub struct PodMachine {
    pub(crate) spec: PodView,
    pub(crate) intent: Intent,
    pub(crate) record: Record,
    pub(crate) actions: Actions,
    pub(crate) containers: BTreeMap<String, ContainerActions>,
    pub(crate) vanished: bool,
    /// Why its device does not run it at this time, where it does not.
    pub(crate) held: Option<Failure>,
    reported: Option<(Value, bool)>,
    /// When it was stepped last: what was due by then has been seen to.
    stepped_at: Option<Timestamp>,
}

impl PodMachine {
    /// A machine for a pod: with the record that was kept of it, if any, and with what is found of it now. Step it with
    /// [`Event::Tick`] to set it going.
    pub fn new(spec: PodView, record: Option<Record>, found: Found, now: Timestamp) -> Self {
        let mut record = record.unwrap_or_else(|| Record::new(now));
        record.containers.retain(|name, _| spec.containers.iter().any(|one| one.name == *name));
        let mut containers = BTreeMap::new();
        for one in &spec.containers {
            let known = record.containers.entry(one.name.clone()).or_default();
            let facts = known.image.clone();
            containers.insert(one.name.clone(), ContainerActions { facts, ..ContainerActions::default() });
        }
        let intent = match record.ended {
            Some(_) => {
                let grace = spec.grace;
                Intent::Ended { grace, deadline: record.kill_at.unwrap_or_else(|| now.plus(grace)) }
            }
            None => Intent::Run,
        };
        let mut machine = Self {
            spec,
            intent,
            record,
            actions: Actions::default(),
            containers,
            vanished: false,
            held: None,
            reported: None,
            stepped_at: None,
        };
        let (alive, found) = match found {
            Found::Nothing => (false, Vec::new()),
            Found::Alive(found) => (true, found),
            Found::Dead(found) => (false, found),
        };
        if alive {
            machine.actions.sandbox.succeeded();
        }
        machine.take_over(found, now);
        machine
    }

    /// What happened, and what is to be done about it.
    pub fn step(&mut self, event: Event, now: Timestamp) -> Vec<Command> {
        let mut out = Vec::new();
        self.stepped_at = Some(now);
        self.observe(event, now, &mut out);
        self.reconcile(now, &mut out);
        self.report(now, &mut out);
        out
    }

    /// When to step with [`Event::Tick`] at the latest.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let mut wakes = vec![self.actions.teardown.wake()];
        match self.intent {
            Intent::Run => {
                let actions = &self.actions;
                wakes.extend(
                    [&actions.volumes, &actions.network, &actions.sandbox, &actions.destroy].map(Attempted::wake),
                );
                for view in &self.spec.containers {
                    let actions = &self.containers[&view.name];
                    wakes.extend([&actions.image, &actions.removal, &actions.start].map(Attempted::wake));
                    let record = &self.record.containers[&view.name];
                    let starting = actions.start.is_under_way() || actions.removal.is_under_way();
                    if matches!(record.stage, Stage::Exited(_)) && self.may_start(view) && !starting {
                        wakes.push(Some(record.restart_at));
                    }
                }
                wakes.extend([self.next_stop(), self.next_probe(), self.active_until()]);
            }
            Intent::Stop { .. } | Intent::Ended { .. } | Intent::Held { .. }
                if !self.actions.teardown.is_under_way() =>
            {
                wakes.extend([self.next_stop(), self.next_probe()]);
            }
            Intent::Stop { .. } | Intent::Ended { .. } | Intent::Held { .. } => {}
        }
        if self.actions.teardown.is_done() {
            return None;
        }
        wakes.into_iter().flatten().filter(|wake| Some(*wake) > self.stepped_at).min()
    }

    /// What is observed, to be kept on disk.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What is asked for.
    pub fn spec(&self) -> &PodView {
        &self.spec
    }

    /// Nothing is left of the pod on the device but its logs, and nothing will be started.
    pub fn is_finished(&self) -> bool {
        matches!(self.intent, Intent::Stop { .. } | Intent::Ended { .. }) && self.actions.teardown.is_done()
    }

    /// Whether the pod is being stopped, or was.
    pub fn is_stopping(&self) -> bool {
        matches!(self.intent, Intent::Stop { .. })
    }

    /// Whether the pod's sandbox is there.
    pub fn has_sandbox(&self) -> bool {
        self.actions.sandbox.is_done() && !self.actions.lost
    }

    /// The images, as they are asked for, that containers wait for since they could not be had.
    pub fn missing_images(&self) -> impl Iterator<Item = &str> {
        let lacks = |name: &str| self.intent == Intent::Run && self.containers[name].image.failure.is_some();
        self.spec.containers.iter().filter(move |view| lacks(&view.name)).map(|view| view.image.as_str())
    }

    /// Whether some container waits for its image.
    pub fn waits_for_image(&self) -> bool {
        self.missing_images().next().is_some()
    }

    /// The status as it is now.
    pub fn status(&self) -> Value {
        crate::status::of(self)
    }

    /// Whether all containers that are to run can serve.
    pub fn is_ready(&self) -> bool {
        let mut lasting = self.spec.containers.iter().filter(|view| view.role.serves());
        lasting.all(|view| self.record.containers[&view.name].is_ready())
    }

    /// Whether what initialises the pod has done its part.
    pub(crate) fn is_initialized(&self) -> bool {
        let mut first = self.spec.containers.iter().filter(|view| view.role.initialises());
        first.all(|view| self.record.containers[&view.name].passed)
    }

    /// When it may not be active any longer.
    pub(crate) fn active_until(&self) -> Option<Timestamp> {
        self.spec.active_deadline.map(|deadline| self.record.start_time.plus(deadline))
    }

    /// The records of the containers that the pod is for.
    fn main(&self) -> impl Iterator<Item = (&ContainerView, &ContainerRecord)> {
        let main = self.spec.containers.iter().filter(|view| view.role == Role::Main);
        main.map(|view| (view, &self.record.containers[&view.name]))
    }

    /// Whether some container runs.
    pub(crate) fn runs(&self) -> bool {
        self.record.containers.values().any(|one| one.running_since().is_some())
    }

    /// How a pod of which nothing runs any more has ended.
    pub(crate) fn outcome(&self) -> Phase {
        let good = |record: &ContainerRecord| matches!(&record.stage, Stage::Exited(exit) if exit.is_success());
        if self.main().all(|(_, record)| good(record)) { Phase::Succeeded } else { Phase::Failed }
    }

    /// The phase as Kubernetes counts it (`getPhase` of the kubelet).
    pub fn phase(&self) -> Phase {
        if let Some(phase) = self.record.ended {
            // It has not ended while something of it runs.
            return match (self.runs(), self.is_initialized()) {
                (false, _) => phase,
                (true, true) => Phase::Running,
                (true, false) => Phase::Pending,
            };
        }
        if self.is_stopping() && !self.runs() {
            return self.outcome();
        }
        if self.held.is_some() && !self.runs() {
            return Phase::Pending;
        }
        let begins = |record: &ContainerRecord| {
            record.stage == Stage::Waiting || (record.post_start_due && record.last.is_none() && !record.is_exited())
        };
        if !self.is_initialized() || self.main().any(|(_, record)| begins(record)) {
            return Phase::Pending;
        }
        if self.main().any(|(view, record)| self.wants_start(view) || !record.is_exited()) {
            return Phase::Running;
        }
        self.outcome()
    }

    fn take_over(&mut self, found: Vec<FoundContainer>, now: Timestamp) {
        let mut running = Vec::new();
        for one in found {
            let Some(record) = self.record.containers.get_mut(&one.name) else { continue };
            if one.attempt < record.attempt {
                continue;
            }
            let Some(view) = self.spec.container(&one.name) else { continue };
            if one.attempt > record.attempt || record.stage == Stage::Waiting {
                // It was started, and the agent died before it wrote that down.
                let image = record.image.take();
                record.begin(view, one.attempt, image);
            }
            match one.state {
                FoundState::Running(started_at) => {
                    record.stage = Stage::Running { started_at };
                    if let Some(actions) = self.containers.get_mut(&one.name) {
                        actions.adopted = true;
                    }
                    running.push(one.name);
                }
                FoundState::Exited(exit) => {
                    if !record.is_exited() {
                        record.passed |= exit.is_success() && view.role == Role::Init;
                        record.ended(exit);
                    }
                }
            }
        }
        for (name, record) in &mut self.record.containers {
            if let Stage::Running { started_at } = record.stage
                && !running.contains(name)
            {
                record.lost(Exit::unknown(Some(started_at), now));
            }
        }
    }

    /// Whether a container that does not run is to be started, when its turn comes.
    pub(crate) fn wants_start(&self, view: &ContainerView) -> bool {
        let record = &self.record.containers[&view.name];
        let exit = match &record.stage {
            Stage::Waiting => return true,
            Stage::Running { .. } => return false,
            Stage::Exited(exit) => exit,
        };
        match (view.role, self.spec.restart_policy) {
            (Role::Sidecar, _) | (Role::Main, RestartPolicy::Always) => true,
            (Role::Main, RestartPolicy::OnFailure) => !exit.is_success() || record.restart,
            (Role::Main, RestartPolicy::Never) | (Role::Ephemeral, _) => false,
            // After a success only where its sandbox was lost.
            (Role::Init, policy) => !record.passed && (exit.is_success() || policy != RestartPolicy::Never),
        }
    }

    /// Whether it is a container's turn: what initialises the pod before it has done its part. An ephemeral one has none to wait for, so
    /// that it can be looked why a pod is not initialised.
    pub(crate) fn may_start(&self, view: &ContainerView) -> bool {
        if view.role == Role::Ephemeral {
            return self.wants_start(view);
        }
        let before = self.spec.containers.iter().take_while(|one| one.name != view.name);
        let mut before = before.filter(|one| one.role.initialises());
        self.wants_start(view) && before.all(|one| self.record.containers[&one.name].passed)
    }

    /// The container that one is to see the processes of, where that does not run.
    pub(crate) fn missing_target<'a>(&self, view: &'a ContainerView) -> Option<&'a str> {
        let target = view.target.as_deref()?;
        let runs = self.record.containers.get(target).is_some_and(|record| record.running_since().is_some());
        (!runs).then_some(target)
    }

    /// How many ephemeral containers have had their only start.
    pub fn spent(&self) -> usize {
        let ephemeral = self.spec.containers.iter().filter(|view| view.role == Role::Ephemeral);
        ephemeral.filter(|view| self.record.containers[&view.name].stage != Stage::Waiting).count()
    }

    /// How the pod has ended, where it has.
    pub(crate) fn end(&self) -> Option<Phase> {
        if self.main().all(|(view, record)| record.is_exited() && !self.wants_start(view)) {
            return Some(self.outcome());
        }
        let failed = |view: &ContainerView| {
            let record = &self.record.containers[&view.name];
            view.role == Role::Init && record.is_exited() && !record.passed && !self.wants_start(view)
        };
        self.spec.containers.iter().any(failed).then_some(Phase::Failed)
    }

    fn report(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        crate::status::note_conditions(self, now);
        if self.vanished {
            return;
        }
        let report = (self.status(), self.is_finished());
        if self.reported.as_ref() != Some(&report) {
            out.push(Command::ReportStatus { status: report.0.clone(), finished: report.1 });
            self.reported = Some(report);
        }
    }

    pub(crate) fn full_name(&self) -> String {
        format!("{}_{}({})", self.spec.name, self.spec.namespace, self.spec.uid)
    }
}

pub(crate) fn event(out: &mut Vec<Command>, kind: EventType, reason: &str, message: String) {
    out.push(Command::Event { kind, reason: reason.into(), message });
}
