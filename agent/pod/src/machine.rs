//! The machine: what happened changes what is known, and what is known says what to do next.

use std::{collections::BTreeMap, time::Duration};

use hearth_types::Timestamp;
use serde_json::Value;

use crate::{
    Command, ContainerRecord, Event, EventType, Exit, Found, FoundContainer, FoundState, Phase, PodView, Record,
    RestartPolicy, Stage,
    action::{Actions, Attempted, ContainerActions},
};

/// How long killed containers may take to go before the sandbox is torn down over them.
pub(crate) const KILL_WAIT: Duration = Duration::from_secs(10);

/// What the pod is meant to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Run.
    Run,
    /// All its containers ended for good.
    Ended,
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
        let intent = if record.ended.is_some() { Intent::Ended } else { Intent::Run };
        let mut machine = Self {
            spec,
            intent,
            record,
            actions: Actions::default(),
            containers,
            vanished: false,
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
                for (name, actions) in &self.containers {
                    wakes.extend([&actions.image, &actions.removal, &actions.start].map(Attempted::wake));
                    let record = &self.record.containers[name];
                    let starting = actions.start.is_under_way() || actions.removal.is_under_way();
                    if matches!(record.stage, Stage::Exited(_)) && self.wants_start(record) && !starting {
                        wakes.push(Some(record.restart_at));
                    }
                }
            }
            Intent::Stop { deadline, .. } if !self.actions.teardown.is_under_way() => {
                let killed = self.containers.values().any(|one| one.killed);
                wakes.push(Some(if killed { deadline.plus(KILL_WAIT) } else { deadline }));
            }
            Intent::Stop { .. } | Intent::Ended => {}
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
        self.intent != Intent::Run && self.actions.teardown.is_done()
    }

    /// Whether the pod is being stopped, or was.
    pub fn is_stopping(&self) -> bool {
        matches!(self.intent, Intent::Stop { .. })
    }

    /// Whether the pod's sandbox is there.
    pub fn has_sandbox(&self) -> bool {
        self.actions.sandbox.is_done() && !self.actions.lost
    }

    /// Whether some container waits for its image.
    pub fn waits_for_image(&self) -> bool {
        self.intent == Intent::Run && self.containers.values().any(|one| one.image.failure.is_some())
    }

    /// The status as it is now.
    pub fn status(&self) -> Value {
        crate::status::of(self)
    }

    /// Whether all containers run.
    pub fn is_ready(&self) -> bool {
        self.record.containers.values().all(|one| matches!(one.stage, Stage::Running { .. }))
    }

    /// The phase as Kubernetes counts it (`getPhase` of the kubelet).
    pub fn phase(&self) -> Phase {
        if let Some(phase) = self.record.ended {
            return phase;
        }
        let records = || self.record.containers.values();
        let ended = |record: &ContainerRecord| match &record.stage {
            Stage::Exited(exit) => Some(exit.is_success()),
            Stage::Waiting | Stage::Running { .. } => None,
        };
        if self.is_stopping() && records().all(|one| !matches!(one.stage, Stage::Running { .. })) {
            let good = records().all(|one| ended(one) == Some(true));
            return if good { Phase::Succeeded } else { Phase::Failed };
        }
        if records().any(|one| one.stage == Stage::Waiting) {
            return Phase::Pending;
        }
        if records().any(|one| self.wants_start(one) || ended(one).is_none()) {
            return Phase::Running;
        }
        if records().all(|one| ended(one) == Some(true)) { Phase::Succeeded } else { Phase::Failed }
    }

    fn take_over(&mut self, found: Vec<FoundContainer>, now: Timestamp) {
        let mut running = Vec::new();
        for one in found {
            let Some(record) = self.record.containers.get_mut(&one.name) else { continue };
            if one.attempt < record.attempt {
                continue;
            }
            if one.attempt > record.attempt {
                // It was started, and the agent died before it wrote that down.
                if let Stage::Exited(exit) = std::mem::take(&mut record.stage) {
                    record.last = Some(exit);
                }
                record.attempt = one.attempt;
            }
            match one.state {
                FoundState::Running(started_at) => {
                    record.stage = Stage::Running { started_at };
                    running.push(one.name);
                }
                FoundState::Exited(exit) => {
                    if !matches!(record.stage, Stage::Exited(_)) {
                        record.ended(exit);
                    }
                }
            }
        }
        for (name, record) in &mut self.record.containers {
            if let Stage::Running { started_at } = record.stage
                && !running.contains(name)
            {
                record.ended(Exit::unknown(Some(started_at), now));
            }
        }
    }

    pub(crate) fn wants_start(&self, record: &ContainerRecord) -> bool {
        match &record.stage {
            Stage::Waiting => true,
            Stage::Running { .. } => false,
            Stage::Exited(exit) => match self.spec.restart_policy {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => !exit.is_success(),
                RestartPolicy::Never => false,
            },
        }
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
