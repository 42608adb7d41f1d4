//! How containers are stopped: what is to be done before, the signal, and the kill at the end of the grace (the kubelet's
//! `killContainer`; the order of sidecars is KEP-753's).

use std::time::Duration;

use hearth_types::Timestamp;

use crate::{
    Command, ContainerView, EventType, Failure, PodMachine, Role,
    machine::{Intent, KILL_WAIT, event},
};

/// What a container gets after its signal where waiting for its turn used up the grace, as the kubelet has it.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// A container that is on its way to its end.
#[derive(Clone, Debug)]
pub(crate) struct Stopping {
    grace: Duration,
    deadline: Timestamp,
    pre_stop: Hook,
    told: bool,
    signalled: bool,
    /// Its turn came at the end of the grace only.
    late: bool,
    pub(crate) killed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Due,
    UnderWay,
    Done,
}

impl Stopping {
    fn new(view: &ContainerView, grace: Duration, deadline: Timestamp) -> Self {
        let pre_stop = if view.pre_stop { Hook::Due } else { Hook::Done };
        Self { grace, deadline, pre_stop, told: false, signalled: false, late: false, killed: false }
    }

    /// When it is killed.
    fn kill_at(&self) -> Timestamp {
        if self.late { self.deadline.plus(LEAST_GRACE) } else { self.deadline }
    }

    /// Never longer than it was. A clock that was set back must not make a short grace a long one.
    fn shorten(&mut self, grace: Duration, deadline: Timestamp, now: Timestamp) {
        self.grace = self.grace.min(grace);
        self.deadline = self.deadline.min(deadline).min(now.plus(self.grace));
    }
}

impl PodMachine {
    /// Stops a container that is ill, so that it is started anew.
    pub(crate) fn restart(&mut self, name: &str, grace: Duration, why: &str, now: Timestamp, out: &mut Vec<Command>) {
        let (Some(one), Some(record)) = (self.containers.get_mut(name), self.record.containers.get_mut(name)) else {
            return;
        };
        let Some(view) = self.spec.container(name).filter(|_| one.stopping.is_none()) else { return };
        let again = view.role == Role::Sidecar || self.spec.restart_policy != crate::RestartPolicy::Never;
        record.restart = again;
        let text = if again { format!("{why}, will be restarted") } else { why.to_owned() };
        event(out, EventType::Normal, "Killing", text);
        one.stopping = Some(Stopping { told: true, ..Stopping::new(view, grace, now.plus(grace)) });
    }

    /// What was to be done before a container is asked to stop was done, or not.
    pub(crate) fn pre_stopped(
        &mut self,
        name: &str,
        attempt: u32,
        result: Result<(), Failure>,
        out: &mut Vec<Command>,
    ) {
        let (Some(one), Some(record)) = (self.containers.get_mut(name), self.record.containers.get(name)) else {
            return;
        };
        let running = record.attempt == attempt && record.running_since().is_some();
        let Some(stopping) = one.stopping.as_mut().filter(|_| running) else { return };
        if std::mem::replace(&mut stopping.pre_stop, Hook::Done) == Hook::UnderWay
            && let Err(failure) = result
        {
            event(out, EventType::Warning, &failure.reason, failure.message);
        }
    }

    /// Takes each container that is to stop one step further on its way; `all` are, where the pod is to stop.
    pub(crate) fn advance_stops(&mut self, all: Option<(Duration, Timestamp)>, now: Timestamp, out: &mut Vec<Command>) {
        for index in 0..self.spec.containers.len() {
            let view = &self.spec.containers[index];
            let turn = all.is_none() || self.is_turn(index);
            let (Some(one), Some(record)) =
                (self.containers.get_mut(&view.name), self.record.containers.get(&view.name))
            else {
                continue;
            };
            if record.running_since().is_none() {
                continue;
            }
            if let Some((grace, deadline)) = all {
                one.stopping.get_or_insert_with(|| Stopping::new(view, grace, deadline)).shorten(grace, deadline, now);
            }
            let Some(stopping) = &mut one.stopping else { continue };
            stopping.shorten(stopping.grace, stopping.deadline, now);
            advance(view, record.attempt, stopping, turn, now, out);
        }
    }

    /// Whether a container may be asked to stop: sidecars go last, in the reverse order of their start.
    fn is_turn(&self, index: usize) -> bool {
        let view = &self.spec.containers[index];
        let goes_before = |(at, other): (usize, &ContainerView)| {
            let goes = self.record.containers[&other.name].running_since().is_some()
                || self.containers[&other.name].start.is_under_way();
            match other.role {
                Role::Sidecar => goes && at > index,
                // Nobody who looks on keeps others waiting.
                Role::Ephemeral => false,
                Role::Init | Role::Main => goes,
            }
        };
        view.role != Role::Sidecar || !self.spec.containers.iter().enumerate().any(goes_before)
    }

    /// When a container on its way to its end is to be seen to.
    pub(crate) fn next_stop(&self) -> Option<Timestamp> {
        let running =
            self.containers.iter().filter(|(name, _)| self.record.containers[*name].running_since().is_some());
        let wakes = running.filter_map(|(_, one)| {
            let stopping = one.stopping.as_ref()?;
            match (stopping.killed, self.intent == Intent::Run) {
                (false, _) => Some(stopping.kill_at()),
                (true, true) => None,
                (true, false) => Some(stopping.deadline.plus(KILL_WAIT)),
            }
        });
        wakes.min()
    }
}

fn advance(
    view: &ContainerView,
    attempt: u32,
    stopping: &mut Stopping,
    turn: bool,
    now: Timestamp,
    out: &mut Vec<Command>,
) {
    if stopping.killed {
        return;
    }
    let container = view.name.clone();
    let over = stopping.deadline <= now;
    let held = stopping.pre_stop == Hook::UnderWay || !turn;
    if over && held && !stopping.signalled {
        stopping.late = true;
    }
    if stopping.grace.is_zero() || stopping.kill_at() <= now {
        stopping.killed = true;
        out.push(Command::Kill { container });
        return;
    }
    if !std::mem::replace(&mut stopping.told, true) {
        event(out, EventType::Normal, "Killing", format!("Stopping container {container}"));
    }
    if stopping.pre_stop == Hook::Due && !over {
        stopping.pre_stop = Hook::UnderWay;
        out.push(Command::PreStop { container, attempt, bound: stopping.deadline.since(now) });
        return;
    }
    if !stopping.signalled && (over || !held) {
        stopping.signalled = true;
        out.push(Command::Signal { container });
    }
}
