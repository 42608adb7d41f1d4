//! What is under way.

use std::time::Duration;

use hearth_types::Timestamp;

use crate::{Failure, ImageFacts, backoff, probe::Probes, stop::Stopping};

/// A step that is tried until it succeeds, with waits in between.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempted {
    pub(crate) state: State,
    /// Why it failed last; stays until it succeeds, so that the status does not flicker.
    pub(crate) failure: Option<Failure>,
    tries: u32,
    /// How long the wait is that it is in.
    wait: Duration,
    /// What it depends on changed while it was under way.
    again: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// To be tried when it is needed.
    #[default]
    Idle,
    /// A command is out.
    UnderWay,
    /// It failed; not again before then.
    Waiting(Timestamp),
    /// It holds.
    Done,
}

impl Attempted {
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.state == State::UnderWay
    }

    /// Whether it may be tried now.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        match self.state {
            State::Idle => true,
            // A clock that was set back must not make a short wait a long one.
            State::Waiting(until) => until <= now || until.since(now) > self.wait,
            State::UnderWay | State::Done => false,
        }
    }

    pub(crate) fn begin(&mut self) {
        self.state = State::UnderWay;
        self.again = false;
    }

    pub(crate) fn succeeded(&mut self) {
        *self = Self { state: State::Done, ..Self::default() };
    }

    /// Returns whether the failure is another than before, so that people want to hear of it.
    pub(crate) fn failed(&mut self, failure: Failure, now: Timestamp) -> bool {
        self.tries = self.tries.saturating_add(1);
        self.wait = if failure.is_of_pull() { backoff::pull(self.tries) } else { backoff::step(self.tries) };
        self.state = if self.again { State::Idle } else { State::Waiting(now.plus(self.wait)) };
        self.again = false;
        let news = self.failure.as_ref() != Some(&failure);
        self.failure = Some(failure);
        news
    }

    /// What it depends on changed: no more waiting.
    pub(crate) fn hurry(&mut self) {
        match self.state {
            State::Waiting(_) => self.state = State::Idle,
            State::UnderWay => self.again = true,
            State::Idle | State::Done => {}
        }
    }

    pub(crate) fn wake(&self) -> Option<Timestamp> {
        match self.state {
            State::Waiting(until) => Some(until),
            _ => None,
        }
    }
}

/// What is under way for one container.
#[derive(Clone, Debug, Default)]
pub(crate) struct ContainerActions {
    pub(crate) image: Attempted,
    /// How far the image's pull has come, for people.
    pub(crate) progress: Option<String>,
    pub(crate) facts: Option<ImageFacts>,
    /// `Done` while nothing is left of the attempt before.
    pub(crate) removal: Attempted,
    /// Waiting here means that the configuration is wrong.
    pub(crate) start: Attempted,
    /// The command is out.
    pub(crate) post_start: bool,
    pub(crate) probes: Probes,
    /// It is on its way to its end.
    pub(crate) stopping: Option<Stopping>,
    /// It ran when the agent started.
    pub(crate) adopted: bool,
}

impl ContainerActions {
    /// Forgets what was under way for an attempt.
    pub(crate) fn forget_attempt(&mut self) {
        self.post_start = false;
        self.probes = Probes::default();
        self.stopping = None;
        self.adopted = false;
    }
}

/// What is under way for a pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Actions {
    pub(crate) volumes: Attempted,
    pub(crate) network: Attempted,
    pub(crate) sandbox: Attempted,
    /// `Idle` means that there is nothing to destroy, once `lost` is false.
    pub(crate) destroy: Attempted,
    /// The sandbox died and has to be destroyed first.
    pub(crate) lost: bool,
    pub(crate) teardown: Attempted,
}
