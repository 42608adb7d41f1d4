//! What happened changes what is known.

use std::time::Duration;

use hearth_types::Timestamp;

use crate::{
    Addresses, Command, ContainerView, Event, EventType, Exit, Failure, ImageFacts, PodMachine, PodView, Role, Stage,
    StartFailure,
    action::{Actions, Attempted, ContainerActions, State},
    machine::{Intent, event},
};

impl PodMachine {
    pub(crate) fn observe(&mut self, event: Event, now: Timestamp, out: &mut Vec<Command>) {
        match event {
            Event::Tick => {}
            Event::Desired(spec) => self.desired(*spec, now),
            Event::Vanished(grace) => {
                self.vanished = true;
                self.stop(grace, now);
            }
            Event::ImagesChanged => self.containers.values_mut().for_each(|one| one.image.hurry()),
            Event::ConfigChanged => {
                self.actions.volumes.hurry();
                for one in self.containers.values_mut() {
                    // A pull secret may have come.
                    one.image.hurry();
                    one.start.hurry();
                }
            }
            Event::ImageProgress { container, message } => {
                if let Some(one) = self.containers.get_mut(&container).filter(|one| one.image.is_under_way()) {
                    one.progress = Some(message);
                }
            }
            Event::Image { container, result } => self.image(&container, result, now, out),
            Event::VolumesLost(why) => self.volumes_lost(why, now, out),
            Event::Held(why) => self.hold(why, now, out),
            Event::NetworkLost(why) => self.network_lost(why, now, out),
            Event::Evicted(why) => self.evict(why, now, out),
            Event::Volumes(result) => {
                let news = settle(&mut self.actions.volumes, result, now);
                tell(news, out);
            }
            Event::Network(result) => self.network(result, now, out),
            Event::Sandbox(result) => {
                if result.is_err() {
                    // The namespace went with it.
                    self.actions.network.state = State::Idle;
                } else {
                    // What initialised the sandbox before went with it.
                    self.record.containers.values_mut().for_each(|one| one.passed = false);
                }
                tell(settle(&mut self.actions.sandbox, result, now), out);
            }
            Event::Started { container, attempt, result } => self.started(&container, attempt, result, now, out),
            Event::PostStarted { container, attempt, result } => {
                self.post_started(&container, attempt, result, now, out);
            }
            Event::Probed { container, attempt, kind, answer } => {
                self.probed(&container, attempt, kind, answer, now, out);
            }
            Event::PreStopped { container, attempt, result } => self.pre_stopped(&container, attempt, result, out),
            Event::Removed { container, result } => {
                if let Some(one) = self.containers.get_mut(&container) {
                    tell(settle(&mut one.removal, result, now), out);
                }
            }
            Event::Exited { container, attempt, exit } => self.exited(&container, attempt, exit, out),
            Event::SandboxLost => self.lost(now, out),
            Event::SandboxDestroyed(result) => {
                let done = result.is_ok();
                tell(settle(&mut self.actions.destroy, result, now), out);
                if done {
                    let teardown = std::mem::take(&mut self.actions.teardown);
                    self.actions = Actions { teardown, volumes: self.actions.volumes.clone(), ..Actions::default() };
                }
            }
            Event::TornDown(result) => self.torn_down(result, now, out),
        }
    }

    fn desired(&mut self, spec: PodView, now: Timestamp) {
        assert_eq!(spec.uid, self.spec.uid, "a machine lives and dies with one pod");
        self.spec.scheduled_at = spec.scheduled_at.or(self.spec.scheduled_at.take());
        self.spec.deletion = spec.deletion;
        for view in spec.containers.into_iter().filter(|view| view.role == Role::Ephemeral) {
            self.add(view);
        }
        if let Some(grace) = spec.deletion {
            self.stop(grace, now);
        }
    }

    /// Takes a container in that was put beside the others. None is ever changed or taken away, whatever the region says.
    fn add(&mut self, view: ContainerView) {
        if self.spec.container(&view.name).is_none() {
            self.record.containers.entry(view.name.clone()).or_default();
            self.containers.insert(view.name.clone(), ContainerActions::default());
            self.spec.containers.push(view);
        }
    }

    /// A later word may shorten the grace and never lengthens it; nor does an agent that starts again.
    pub(crate) fn stop(&mut self, grace: Duration, now: Timestamp) {
        let wanted = now.plus(grace);
        let wanted = self.record.kill_at.map_or(wanted, |before| before.min(wanted));
        self.record.kill_at = Some(wanted);
        self.intent = match self.intent {
            Intent::Stop { deadline, grace: before }
            | Intent::Ended { deadline, grace: before }
            | Intent::Held { deadline, grace: before } => {
                Intent::Stop { grace: grace.min(before), deadline: wanted.min(deadline) }
            }
            Intent::Run => Intent::Stop { grace, deadline: wanted },
        };
    }

    /// A pod that is held is stopped to its end, also where it may run again before that.
    fn hold(&mut self, why: Option<Failure>, now: Timestamp, out: &mut Vec<Command>) {
        if self.held == why {
            return;
        }
        if let (Some(why), None) = (&why, &self.held)
            && !self.is_finished()
        {
            event(out, EventType::Warning, &why.reason, why.message.clone());
        }
        self.held = why;
        if self.held.is_some() && self.intent == Intent::Run {
            let grace = self.spec.grace;
            // What is left of a grace that an agent before began; one that is over was another stop's.
            let deadline =
                self.record.kill_at.filter(|at| *at > now).unwrap_or_else(|| now.plus(grace)).min(now.plus(grace));
            self.record.kill_at = Some(deadline);
            self.intent = Intent::Held { grace, deadline };
        }
    }

    fn image(&mut self, name: &str, result: Result<ImageFacts, Failure>, now: Timestamp, out: &mut Vec<Command>) {
        let Some(one) = self.containers.get_mut(name) else { return };
        one.progress = None;
        let result = result.map(|facts| one.facts = Some(facts));
        let is_of_pull = result.as_ref().is_err_and(Failure::is_of_pull);
        let news = settle(&mut one.image, result, now);
        if !is_of_pull {
            return tell(news, out);
        }
        // In the words of the kubelet, which people look for.
        if let Some(failure) = news {
            event(out, EventType::Warning, "Failed", failure.message);
        }
        if one.image.wake().is_some() {
            let text = format!("Back-off pulling image of container {name} in pod {}", self.full_name());
            event(out, EventType::Normal, "BackOff", text);
        }
    }

    fn network(&mut self, result: Result<Addresses, Failure>, now: Timestamp, out: &mut Vec<Command>) {
        let result = result.map(|addresses| self.record.addresses = Some(addresses));
        tell(settle(&mut self.actions.network, result, now), out);
    }

    fn started(
        &mut self,
        name: &str,
        attempt: u32,
        result: Result<Timestamp, StartFailure>,
        now: Timestamp,
        out: &mut Vec<Command>,
    ) {
        let (Some(one), Some(record)) = (self.containers.get_mut(name), self.record.containers.get_mut(name)) else {
            return;
        };
        let Some(view) = self.spec.container(name) else { return };
        // Its end may have been told before its start.
        let ended = record.attempt == attempt && matches!(record.stage, Stage::Exited(_));
        match result {
            Err(StartFailure::Config(failure)) => tell(settle(&mut one.start, Err(failure), now), out),
            Err(StartFailure::SandboxGone) => {
                one.start = Attempted::default();
                self.lost(now, out);
            }
            Err(StartFailure::Run(failure)) => {
                one.start = Attempted::default();
                if !ended {
                    record.begin(view, attempt, one.facts.clone());
                    event(out, EventType::Warning, &failure.reason, format!("container {name}: {}", failure.message));
                    record.ended(Exit::start_failed(failure, now));
                }
            }
            Ok(started_at) => {
                one.start = Attempted::default();
                if !ended {
                    record.begin(view, attempt, one.facts.clone());
                    record.stage = Stage::Running { started_at };
                    if self.intent == Intent::Run {
                        // It is wanted again: the time that was set for its end is of the past.
                        self.record.kill_at = None;
                    }
                    if self.actions.lost {
                        // The sandbox went while it was started, and this container with it.
                        record.ended(Exit::unknown(Some(started_at), now));
                        return;
                    }
                    one.forget_attempt();
                    event(out, EventType::Normal, "Started", format!("Started container {name}"));
                    for view in self.spec.containers.iter().filter(|view| view.target.as_deref() == Some(name)) {
                        // It came too early for one that had ended.
                        self.containers.get_mut(&view.name).into_iter().for_each(|one| one.start.hurry());
                    }
                }
            }
        }
    }

    fn exited(&mut self, name: &str, attempt: u32, exit: Exit, out: &mut Vec<Command>) {
        let (Some(one), Some(record)) = (self.containers.get_mut(name), self.record.containers.get_mut(name)) else {
            return;
        };
        let Some(view) = self.spec.container(name) else { return };
        let starting = one.start.is_under_way() && attempt == record.next_attempt();
        if starting {
            record.begin(view, attempt, one.facts.clone());
        } else if attempt != record.attempt || !matches!(record.stage, Stage::Running { .. }) {
            return;
        }
        let (good, code) = (exit.is_success(), exit.code);
        let reason = exit.reason.clone();
        record.passed |= good && view.role == Role::Init;
        record.ended(exit);
        one.removal = Attempted::default();
        one.forget_attempt();
        let record = &self.record.containers[name];
        if self.intent == Intent::Run {
            if !good {
                let text = format!("container {name} ended with exit code {code} ({reason})");
                event(out, EventType::Warning, &reason, text);
            }
            if record.waits && self.wants_start(view) {
                let text = format!("Back-off restarting failed container {name} in pod {}", self.full_name());
                event(out, EventType::Warning, "BackOff", text);
            }
        }
    }

    fn lost(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        if !self.has_sandbox() {
            return;
        }
        self.actions.lost = true;
        self.end_all(now);
        event(
            out,
            EventType::Warning,
            "SandboxChanged",
            "the pod's sandbox is gone: it is killed and made anew".to_owned(),
        );
    }

    fn volumes_lost(&mut self, why: Failure, now: Timestamp, out: &mut Vec<Command>) {
        if self.intent != Intent::Run || !self.has_sandbox() || !self.actions.volumes.is_done() {
            return;
        }
        tell(settle(&mut self.actions.volumes, Err(why), now), out);
        self.stop_blameless(now);
        self.lost(now, out);
    }

    fn network_lost(&mut self, why: Failure, now: Timestamp, out: &mut Vec<Command>) {
        if self.intent != Intent::Run || !self.has_sandbox() {
            return;
        }
        event(out, EventType::Warning, &why.reason, why.message);
        self.stop_blameless(now);
        self.lost(now, out);
    }

    /// What ran has ended, and not by its own doing: it is started at once when it can be.
    fn stop_blameless(&mut self, now: Timestamp) {
        for (name, record) in &mut self.record.containers {
            if let Some(started_at) = record.running_since() {
                record.lost(Exit::unknown(Some(started_at), now));
                if let Some(one) = self.containers.get_mut(name) {
                    one.forget_attempt();
                }
            }
        }
    }

    /// What ran has ended, and nobody saw how.
    fn end_all(&mut self, now: Timestamp) {
        for (name, record) in &mut self.record.containers {
            if let Some(started_at) = record.running_since() {
                record.ended(Exit::unknown(Some(started_at), now));
                if let Some(one) = self.containers.get_mut(name) {
                    one.forget_attempt();
                }
            }
        }
    }

    fn torn_down(&mut self, result: Result<(), Failure>, now: Timestamp, out: &mut Vec<Command>) {
        if result.is_ok() {
            self.end_all(now);
            self.actions.sandbox = Attempted::default();
            self.actions.network = Attempted::default();
        }
        tell(settle(&mut self.actions.teardown, result, now), out);
    }
}

/// Notes a result; answers with a failure that people have not heard of.
fn settle(action: &mut Attempted, result: Result<(), Failure>, now: Timestamp) -> Option<Failure> {
    match result {
        Ok(()) => {
            action.succeeded();
            None
        }
        Err(failure) => action.failed(failure.clone(), now).then_some(failure),
    }
}

fn tell(news: Option<Failure>, out: &mut Vec<Command>) {
    if let Some(failure) = news {
        event(out, EventType::Warning, &failure.reason, failure.message);
    }
}
