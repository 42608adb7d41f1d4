//! What becomes of what was begun.

use std::sync::Arc;

use hearth_image::{Hold, Image};
use hearth_network::PodNetwork;
use hearth_pod::{Event, Failure, ImageFacts, StartFailure};
use hearth_runtime::{ContainerState, ContainerStatus};

use super::{
    super::{
        convert::broken,
        execute::{VolumePaths, addresses},
        measure::Measured,
        message::{Ended, LastWords},
    },
    Worker,
};
use crate::shared::{blocking, timestamp};

/// Result of a command.
pub(super) enum Outcome {
    Nothing,
    Event(Event),
    Image(String, Result<Box<(Image, Hold)>, Failure>),
    /// Images came or went: whether one is here that the pod waits for.
    Looked(bool),
    Volumes(Result<VolumePaths, Failure>),
    Refreshed(Result<VolumePaths, Failure>),
    Measured(Option<Failure>, Measured),
    Network(Result<PodNetwork, Failure>),
    Limited(Result<(), Failure>),
    Sandbox(Result<hearth_runtime::Pod, Failure>),
    Started(String, u32, Result<ContainerStatus, StartFailure>),
    Status(Vec<ContainerStatus>),
    Ended(Vec<Ended>),
    /// The shim has ended the pod, and starts nothing in it any more.
    LeaseOver,
}

impl Worker {
    pub(super) fn finished(&mut self, result: Result<(tokio::task::Id, Outcome), tokio::task::JoinError>) {
        let outcome = match result {
            Ok((id, outcome)) => {
                self.commands.remove(&id);
                self.inside.remove(&id);
                outcome
            }
            Err(error) => {
                let command = self.commands.remove(&error.id());
                self.inside.remove(&error.id());
                if error.is_cancelled() {
                    // Its sandbox goes, and the machine waits for nothing from inside.
                    return;
                }
                tracing::error!(pod = %self.key, ?command, %error, "a step of the agent broke; it is tried again");
                match command.and_then(|command| broken(&command)) {
                    Some(event) => Outcome::Event(event),
                    None => return,
                }
            }
        };
        match outcome {
            Outcome::Nothing | Outcome::Limited(Ok(())) => {}
            Outcome::Event(event) => {
                if matches!(event, Event::SandboxDestroyed(Ok(())) | Event::TornDown(Ok(()))) {
                    self.sandbox = None;
                }
                if matches!(event, Event::TornDown(Ok(()))) {
                    self.site.shared.claims.release(&self.uid);
                }
                self.step(event);
            }
            Outcome::LeaseOver => {
                if self.machine.has_sandbox() {
                    self.unwatch();
                    self.step(Event::SandboxLost);
                }
            }
            Outcome::Looked(is_here) => {
                if is_here {
                    self.step(Event::ImagesChanged);
                }
            }
            Outcome::Image(container, result) => {
                let result = result.map(|found| {
                    let (image, hold) = *found;
                    let (reference, id) = (image.reference.clone(), image.manifest_digest.to_string());
                    self.images.insert(container.clone(), (image, hold));
                    ImageFacts { reference, id }
                });
                self.step(Event::Image { container, result });
            }
            Outcome::Volumes(result) => {
                let result = result.map(|volumes| self.volumes = volumes);
                self.step(Event::Volumes(result));
            }
            Outcome::Refreshed(Ok(volumes)) => self.volumes = volumes,
            Outcome::Refreshed(Err(failure)) => {
                tracing::warn!(pod = %self.key, failure.message, "the pod's volumes keep their old content");
            }
            Outcome::Measured(lost, measured) => {
                self.gauge.ended(&measured);
                if let Some(why) = lost {
                    self.step(Event::VolumesLost(why));
                }
                if let Some(why) = measured.too_much {
                    self.step(Event::Evicted(why));
                }
            }
            Outcome::Network(result) => {
                let result = result.map(|network| {
                    let found = addresses(&network.addresses);
                    // Of a living sandbox the namespace is the shim's.
                    self.network = self.sandbox.is_none().then_some(network);
                    found
                });
                self.step(Event::Network(result));
            }
            // It does not run on without what was asked for.
            Outcome::Limited(Err(why)) => self.step(Event::NetworkLost(why)),
            Outcome::Sandbox(result) => {
                let result = result.map(|sandbox| self.watch(sandbox));
                self.step(Event::Sandbox(result));
            }
            Outcome::Started(container, attempt, result) => {
                let ended = result.as_ref().ok().cloned();
                let result = result.map(|status| match status.state {
                    ContainerState::Running { started_at, .. } | ContainerState::Exited { started_at, .. } => {
                        timestamp(started_at)
                    }
                });
                self.step(Event::Started { container, attempt, result });
                self.observed(ended.into_iter().collect());
            }
            Outcome::Status(list) => self.observed(list),
            Outcome::Ended(list) => {
                for Ended { container, attempt, exit } in list {
                    self.step(Event::Exited { container, attempt, exit });
                }
            }
        }
    }

    /// Tells the machine of what ended, once it is read what each said last.
    pub(super) fn observed(&mut self, mut list: Vec<ContainerStatus>) {
        let known = &self.machine.record().containers;
        let is_news = |one: &ContainerStatus| {
            let known = known.get(&one.name).is_some_and(|had| had.attempt == one.attempt && had.is_exited());
            matches!(one.state, ContainerState::Exited { .. }) && !known
        };
        list.retain(is_news);
        if !list.is_empty() {
            let words = LastWords { pod: Arc::clone(&self.site.pod), places: self.site.places.clone() };
            self.tasks.spawn(async move { Outcome::Ended(blocking(move || words.of_ended(list)).await) });
        }
    }
}
