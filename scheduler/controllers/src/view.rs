//! A pod as controllers see it: a plain struct, parsed once.

use std::{sync::Arc, time::Duration};

use hearth_types::{Object, Timestamp, Uid, kinds::BANDWIDTH_ANNOTATIONS};
use serde_json::Value;

use crate::{
    meta::{self, list, text, time},
    replicaset,
};

/// Where a pod is in its life (`status.phase`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not all containers have started.
    #[default]
    Pending,
    /// It runs.
    Running,
    /// It ended well and will not be started again.
    Succeeded,
    /// It ended badly and will not be started again.
    Failed,
}

/// A pod as controllers see it.
#[derive(Clone, Debug)]
pub struct PodView {
    /// The object itself.
    pub object: Object,
    /// The uid of what controls it.
    pub controller: Option<Uid>,
    /// Whether its deletion was asked for.
    pub deleting: bool,
    /// The device it is bound to; empty where it is not.
    pub device: Box<str>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since when it has been ready; `None` where it is not.
    pub ready_since: Option<Timestamp>,
    /// When it was made.
    pub created: Timestamp,
    /// When its last container ended, where all have.
    pub finished: Option<Timestamp>,
    /// Restarts of its containers.
    pub restarts: u64,
    /// What keeps it from being ready, where a container or the device says so: reason and message.
    pub trouble: Option<(Box<str>, Box<str>)>,
    /// What placement said where it has no device.
    pub unscheduled: Option<Box<str>>,
    /// The claims that it mounts.
    pub claims: Vec<Box<str>>,
    /// The ConfigMaps that it mounts or reads variables from.
    pub config_maps: Vec<Box<str>>,
    /// The Secrets that it mounts, reads variables from, or pulls its images with.
    pub secrets: Vec<Box<str>>,
    /// How many failed pods in a row it replaces.
    pub replaces: u32,
    /// What its annotations say of its bandwidth, in the order of [`BANDWIDTH_ANNOTATIONS`].
    pub bandwidth: [Option<Box<str>>; 2],
    /// The pod on a silent device that it was made for, where it was.
    pub stands_for: Option<Uid>,
}

/// A pod and whether its device is in contact.
#[derive(Clone, Debug)]
pub struct SeenPod {
    /// The pod.
    pub pod: Arc<PodView>,
    /// Whether its device has a session; `false` for a pod without device. What a silent device reported last is not known to hold.
    pub connected: bool,
    /// Since when its device has had one, or none; `None` where that is not known.
    pub since: Option<Timestamp>,
}

impl SeenPod {
    /// Whether it is known to be ready now.
    pub fn ready(&self) -> bool {
        self.connected && self.pod.is_ready()
    }

    /// How long its device has been as it is now: in contact, or silent.
    pub(crate) fn contact_for(&self, now: Timestamp) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.since(since))
    }
}

impl PodView {
    /// Reads a pod; what is odd counts as absent. `value` is the parsed JSON of `object`.
    pub fn read(object: &Object, value: &Value) -> Self {
        let conditions = || list(value, "/status/conditions");
        let condition = |wanted: &str| conditions().find(|one| one["type"] == wanted);
        let ready = condition("Ready").filter(|one| one["status"] == "True");
        let phase = match text(value, "/status/phase") {
            "Running" => Phase::Running,
            "Succeeded" => Phase::Succeeded,
            "Failed" => Phase::Failed,
            _ => Phase::Pending,
        };
        let ended =
            list(value, "/status/containerStatuses").filter_map(|one| time(one, "/state/terminated/finishedAt"));
        let scheduled = condition("PodScheduled").filter(|one| one["status"] == "False");
        Self {
            object: object.clone(),
            controller: meta::controller(value),
            deleting: meta::is_deleting(value),
            device: text(value, "/spec/nodeName").into(),
            phase,
            ready_since: ready.map(|one| time(one, "/lastTransitionTime").unwrap_or_default()),
            created: time(value, "/metadata/creationTimestamp").unwrap_or_default(),
            finished: matches!(phase, Phase::Succeeded | Phase::Failed).then(|| ended.max()).flatten(),
            restarts: list(value, "/status/containerStatuses").filter_map(|one| one["restartCount"].as_u64()).sum(),
            trouble: trouble(value, phase),
            unscheduled: scheduled.map(|one| text(one, "/message").into()),
            claims: sources(value, "/persistentVolumeClaim/claimName", ""),
            config_maps: sources(value, "/configMap/name", "configMap"),
            secrets: sources(value, "/secret/secretName", "secret"),
            replaces: meta::annotation(value, replicaset::REPLACES).and_then(|text| text.parse().ok()).unwrap_or(0),
            bandwidth: BANDWIDTH_ANNOTATIONS.map(|key| meta::annotation(value, key).map(Into::into)),
            stands_for: meta::annotation(value, replicaset::STANDS_FOR).map(Uid::from),
        }
    }

    /// Whether it ended for good.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Whether it runs or shall run: not ended and not to be deleted.
    pub fn is_active(&self) -> bool {
        !self.deleting && !self.is_finished()
    }

    /// Whether its device reported it ready.
    pub fn is_ready(&self) -> bool {
        self.is_active() && self.ready_since.is_some()
    }

    /// Whether it has a device.
    pub fn is_bound(&self) -> bool {
        !self.device.is_empty()
    }
}

/// Names in volumes at `pointer`, and in `envFrom` and `valueFrom` of containers by `reference` (`configMap` or `secret`).
fn sources(value: &Value, pointer: &str, reference: &str) -> Vec<Box<str>> {
    let mut names: Vec<Box<str>> =
        list(value, "/spec/volumes").map(|volume| text(volume, pointer)).map(Into::into).collect();
    if !reference.is_empty() {
        let joined = format!("/{reference}/name");
        for volume in list(value, "/spec/volumes") {
            names.extend(list(volume, "/projected/sources").map(|source| Box::from(text(source, &joined))));
        }
        let (all, one) = (format!("/{reference}Ref/name"), format!("/valueFrom/{reference}KeyRef/name"));
        let lists = ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"];
        for container in lists.into_iter().flat_map(|field| list(value, field)) {
            names.extend(list(container, "/envFrom").map(|from| Box::from(text(from, &all))));
            names.extend(list(container, "/env").map(|variable| Box::from(text(variable, &one))));
        }
    }
    if reference == "secret" {
        names.extend(list(value, "/spec/imagePullSecrets").map(|one| Box::from(text(one, "/name"))));
    }
    names.retain(|name| !name.is_empty());
    names.sort_unstable();
    names.dedup();
    names
}

fn trouble(value: &Value, phase: Phase) -> Option<(Box<str>, Box<str>)> {
    /// What a container that is on its way says; no trouble.
    const STARTING: [&str; 3] = ["", "ContainerCreating", "PodInitializing"];
    let statuses = list(value, "/status/initContainerStatuses").chain(list(value, "/status/containerStatuses"));
    for container in statuses.filter(|one| one["ready"] != true) {
        let reason = text(container, "/state/waiting/reason");
        if !STARTING.contains(&reason) {
            return Some((reason.into(), text(container, "/state/waiting/message").into()));
        }
        if let Some(ended) = container.pointer("/state/terminated") {
            let reason = match text(ended, "/reason") {
                "" => "ContainerTerminated",
                reason => reason,
            };
            let message = match text(ended, "/message") {
                "" => format!(
                    "container {} exited with code {}",
                    text(container, "/name"),
                    meta::number(ended, "/exitCode").unwrap_or_default()
                ),
                message => message.to_owned(),
            };
            return Some((reason.into(), message.into()));
        }
    }
    let reason = text(value, "/status/reason");
    if !reason.is_empty() || phase == Phase::Failed {
        let reason = if reason.is_empty() { "Failed" } else { reason };
        return Some((reason.into(), text(value, "/status/message").into()));
    }
    None
}
