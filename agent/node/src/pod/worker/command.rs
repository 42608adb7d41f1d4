//! Beginning what the machine asks for: each command is a task of its own, whose outcome comes back.

use hearth_pod::{Command, Event, Failure};
use tokio::task::AbortHandle;

use super::{
    super::{execute::Given, probe::Subject},
    SIGKILL, Worker,
    outcome::Outcome,
};
use crate::container::stop_signal;

impl Worker {
    pub(super) fn execute(&mut self, command: Command) {
        let site = self.site.clone();
        let sandbox = self.sandbox.clone();
        let kept = command.clone();
        let task = match command {
            Command::ReportStatus { status, finished } => {
                self.report = Some((status, finished));
                return;
            }
            Command::Event { kind, reason, message } => {
                tracing::info!(pod = %self.key, reason, message, "event");
                let now = site.shared.now();
                site.shared.reporter.event((&self.key, &self.uid), kind.as_str(), &reason, &message, now);
                return;
            }
            Command::EnsureImage { container } => {
                let sender = self.progress.0.clone();
                self.tasks.spawn(async move {
                    let tell = |message| {
                        // The next one says more.
                        let _ = sender.try_send(Event::ImageProgress { container: container.clone(), message });
                    };
                    let image = site.image(&container, tell).await.map(Box::new);
                    Outcome::Image(container, image)
                })
            }
            Command::EnsureVolumes => {
                let runs = sandbox.is_some();
                self.tasks.spawn(async move { Outcome::Volumes(site.volumes(runs).await) })
            }
            Command::AttachNetwork => {
                self.tasks.spawn(async move { Outcome::Network(site.network(sandbox.as_ref()).await) })
            }
            Command::CreateSandbox => {
                let network = self.network.take();
                self.tasks.spawn(async move {
                    Outcome::Sandbox(match network {
                        Some(network) => site.sandbox(network).await,
                        None => Err(Failure::new("FailedCreatePodSandBox", "the pod's network is gone")),
                    })
                })
            }
            Command::StartContainer { container, attempt } => {
                let image = self.images.get(&container).map(|(image, _)| image.clone());
                let given = Given { volumes: self.volumes.clone(), addresses: self.machine.record().addresses.clone() };
                self.tasks.spawn(async move {
                    let started = site.start(sandbox, &container, attempt, image, given).await;
                    Outcome::Started(container, attempt, started)
                })
            }
            Command::PostStart { container, attempt } => {
                let subject = self.subject(&container);
                self.inside(async move {
                    let result = subject.post_start().await;
                    Outcome::Event(Event::PostStarted { container, attempt, result })
                })
            }
            Command::Probe { container, attempt, kind } => {
                let subject = self.subject(&container);
                self.inside(async move {
                    let answer = subject.probe(kind).await;
                    Outcome::Event(Event::Probed { container, attempt, kind, answer })
                })
            }
            Command::PreStop { container, attempt, bound } => {
                let subject = self.subject(&container);
                self.inside(async move {
                    let result = subject.pre_stop(bound).await;
                    Outcome::Event(Event::PreStopped { container, attempt, result })
                })
            }
            Command::Signal { container } => {
                let image = self.images.get(&container).map(|(image, _)| image.clone());
                let id = self.machine.record().containers.get(&container).and_then(|one| one.image.clone());
                self.tasks.spawn(async move {
                    // An adopted container's image was not looked up yet.
                    let image = match (image, id) {
                        (None, Some(facts)) => site.image_by_id(facts.id).await,
                        (image, _) => image,
                    };
                    signal(sandbox, &container, stop_signal(image.as_ref())).await
                })
            }
            Command::Kill { container } => self.tasks.spawn(async move { signal(sandbox, &container, SIGKILL).await }),
            Command::RemoveContainer { container } => self.tasks.spawn(async move {
                let result = site.remove(sandbox, &container).await;
                Outcome::Event(Event::Removed { container, result })
            }),
            Command::DestroySandbox => {
                self.unwatch();
                self.leave_containers();
                self.tasks.spawn(async move { Outcome::Event(Event::SandboxDestroyed(site.destroy(sandbox).await)) })
            }
            Command::TearDown => {
                self.unwatch();
                self.leave_containers();
                self.network = None;
                self.tasks.spawn(async move { Outcome::Event(Event::TornDown(site.tear_down(sandbox).await)) })
            }
        };
        self.commands.insert(task.id(), kept);
    }

    fn subject(&self, container: &str) -> Subject {
        let addresses = self.machine.record().addresses.as_ref();
        Subject {
            site: self.site.clone(),
            sandbox: self.sandbox.clone(),
            address: addresses.and_then(|all| all.pod.first()?.parse().ok()),
            container: container.to_owned(),
        }
    }

    /// Begins what asks or does something in a container.
    fn inside(&mut self, work: impl Future<Output = Outcome> + Send + 'static) -> AbortHandle {
        let task = self.tasks.spawn(work);
        self.inside.insert(task.id(), task.clone());
        task
    }

    fn leave_containers(&mut self) {
        self.inside.values().for_each(AbortHandle::abort);
    }
}

async fn signal(sandbox: Option<hearth_runtime::Pod>, container: &str, number: i32) -> Outcome {
    let Some(pod) = &sandbox else { return Outcome::Nothing };
    match pod.signal(container, number).await {
        Ok(()) => Outcome::Nothing,
        // It has ended already: look, in case its end was missed.
        Err(_) => look(sandbox).await,
    }
}

pub(super) async fn look(sandbox: Option<hearth_runtime::Pod>) -> Outcome {
    let Some(sandbox) = sandbox else { return Outcome::Nothing };
    match sandbox.status().await {
        Ok(list) => Outcome::Status(list),
        Err(_) => Outcome::Nothing,
    }
}
