//! What is known says what to do next.

use std::time::Duration;

use hearth_types::Timestamp;

use crate::{
    Command, ContainerRecord, EventType, Failure, Phase, PodMachine, Role, Stage,
    action::Actions,
    backoff::CONTAINER_BACKOFF_MAX,
    machine::{Intent, KILL_WAIT, event},
};

/// What containers get to stop where their pod is evicted at once, as the kubelet's `immediateEvictionGracePeriodSeconds`.
const EVICTION_GRACE: Duration = Duration::from_secs(1);

impl PodMachine {
    pub(crate) fn reconcile(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        if let Some(grace) = self.spec.deletion
            && !self.is_stopping()
        {
            self.stop(grace, now);
        }
        self.release_if_free(now);
        if self.intent == Intent::Run {
            self.note_sidecars();
            self.end_if_over(now, out);
        }
        match &mut self.intent {
            Intent::Run => {
                self.bring_up(now, out);
                self.post_start(out);
                self.advance_stops(None, now, out);
            }
            Intent::Ended { grace, deadline } | Intent::Stop { grace, deadline } | Intent::Held { grace, deadline } => {
                // A clock that was set back must not make a short grace a long one.
                *deadline = (*deadline).min(now.plus(*grace));
                let (grace, deadline) = (*grace, *deadline);
                self.bring_down(grace, deadline, now, out);
            }
        }
        self.probe(now, out);
    }

    /// What was held runs again once it may, and nothing is left of what ran before.
    fn release_if_free(&mut self, now: Timestamp) {
        if !matches!(self.intent, Intent::Held { .. }) || self.held.is_some() || !self.actions.teardown.is_done() {
            return;
        }
        self.intent = Intent::Run;
        self.record.kill_at = None;
        self.actions = Actions::default();
        for (name, record) in &mut self.record.containers {
            record.forgive(now);
            if let Some(one) = self.containers.get_mut(name) {
                one.forget_attempt();
            }
        }
    }

    /// A sidecar has done its part of initialising the pod once it has started.
    fn note_sidecars(&mut self) {
        for view in self.spec.containers.iter().filter(|view| view.role == Role::Sidecar) {
            if let Some(record) = self.record.containers.get_mut(&view.name) {
                record.passed |= record.has_started();
            }
        }
    }

    fn end_if_over(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let end = self.end();
        let late = self.active_until().is_some_and(|until| until <= now);
        let Some(phase) = end.or(late.then_some(Phase::Failed)) else { return };
        if end.is_none() {
            let text = "Pod was active on the node longer than the specified deadline";
            event(out, EventType::Normal, "DeadlineExceeded", text.to_owned());
            self.record.ended_by = Some(Failure::new("DeadlineExceeded", text));
        }
        let grace = self.spec.grace;
        self.record.ended = Some(phase);
        let deadline = *self.record.kill_at.get_or_insert(now.plus(grace));
        self.intent = Intent::Ended { grace, deadline };
    }

    /// Ends the pod, which then has failed.
    pub(crate) fn evict(&mut self, why: Failure, now: Timestamp, out: &mut Vec<Command>) {
        if self.intent != Intent::Run {
            return;
        }
        event(out, EventType::Warning, &why.reason, why.message.clone());
        self.record.ended = Some(Phase::Failed);
        self.record.ended_by = Some(why);
        let grace = EVICTION_GRACE;
        let deadline = now.plus(grace);
        self.record.kill_at = Some(self.record.kill_at.map_or(deadline, |before| before.min(deadline)));
        self.intent = Intent::Ended { grace, deadline };
    }

    /// Has done what is to be done when a container has started.
    fn post_start(&mut self, out: &mut Vec<Command>) {
        for (name, one) in &mut self.containers {
            let record = &self.record.containers[name];
            let due = record.running_since().is_some() && record.post_start_due;
            if due && !one.post_start && one.stopping.is_none() {
                one.post_start = true;
                out.push(Command::PostStart { container: name.clone(), attempt: record.attempt });
            }
        }
    }

    fn bring_up(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        if self.actions.lost {
            if self.is_quiet() && self.actions.destroy.is_due(now) {
                self.actions.destroy.begin();
                out.push(Command::DestroySandbox);
            }
            return;
        }
        if self.actions.volumes.is_due(now) {
            self.actions.volumes.begin();
            out.push(Command::EnsureVolumes);
        }
        let (mut startable, mut makes_sandbox) = (Vec::new(), false);
        for view in &self.spec.containers {
            let record = &self.record.containers[&view.name];
            if !self.may_start(view) {
                continue;
            }
            let has_target = self.missing_target(view).is_none();
            let Some(one) = self.containers.get_mut(&view.name) else { continue };
            if one.image.is_due(now) {
                one.image.begin();
                out.push(Command::EnsureImage { container: view.name.clone() });
            }
            if one.image.is_done() && is_restart_due(record, now) && has_target {
                startable.push(view.name.clone());
                // Of no use alone.
                makes_sandbox |= view.role != Role::Ephemeral;
            }
        }
        let sandbox = self.actions.sandbox.is_done();
        let wanted = sandbox || (self.actions.volumes.is_done() && makes_sandbox);
        let needed = sandbox || self.actions.sandbox.is_due(now);
        if wanted && needed && self.actions.network.is_due(now) {
            self.actions.network.begin();
            out.push(Command::AttachNetwork);
        }
        if !sandbox {
            if wanted && self.actions.network.is_done() && self.actions.sandbox.is_due(now) {
                self.actions.sandbox.begin();
                out.push(Command::CreateSandbox);
            }
            return;
        }
        if self.actions.volumes.is_done() {
            for name in &startable {
                self.start(name, now, out);
            }
        }
    }

    fn start(&mut self, name: &str, now: Timestamp, out: &mut Vec<Command>) {
        let record = &self.record.containers[name];
        let Some(one) = self.containers.get_mut(name) else { return };
        if matches!(record.stage, Stage::Exited(_)) && !one.removal.is_done() {
            if one.removal.is_due(now) {
                one.removal.begin();
                out.push(Command::RemoveContainer { container: name.to_owned() });
            }
            return;
        }
        if one.start.is_due(now) {
            one.start.begin();
            out.push(Command::StartContainer { container: name.to_owned(), attempt: record.next_attempt() });
        }
    }

    /// Whether no command is out that works on sandbox, network or volumes.
    fn is_quiet(&self) -> bool {
        let actions = &self.actions;
        let busy = [&actions.volumes, &actions.network, &actions.sandbox, &actions.destroy];
        !busy.iter().any(|one| one.is_under_way())
            && !self.containers.values().any(|one| one.start.is_under_way() || one.removal.is_under_way())
    }

    fn bring_down(&mut self, grace: Duration, deadline: Timestamp, now: Timestamp, out: &mut Vec<Command>) {
        self.advance_stops(Some((grace, deadline)), now, out);
        if !self.runs() || deadline.plus(KILL_WAIT) <= now {
            self.tear_down(now, out);
        }
    }

    fn tear_down(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        if self.is_quiet() && self.actions.teardown.is_due(now) {
            self.actions.teardown.begin();
            out.push(Command::TearDown);
        }
    }
}

fn is_restart_due(record: &ContainerRecord, now: Timestamp) -> bool {
    match record.stage {
        // A clock that was set back must not make a short wait a long one.
        Stage::Exited(_) => record.restart_at <= now || record.restart_at.since(now) > CONTAINER_BACKOFF_MAX,
        Stage::Waiting | Stage::Running { .. } => true,
    }
}
