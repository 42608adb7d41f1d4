//! What is asked for: the part of a Pod's JSON that its life depends on.

use std::time::Duration;

use hearth_types::kinds::{Container, EphemeralContainer, Pod, Probe};
use serde_json::Value;

/// The grace that Kubernetes gives where nothing is said, in seconds (`terminationGracePeriodSeconds`).
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// The longest grace that is honoured, in seconds: a day, as validation has it.
const MAX_GRACE_SECONDS: i64 = 86_400;
/// `periodSeconds` of a probe where nothing is said, as in Kubernetes.
const DEFAULT_PERIOD_SECONDS: u32 = 10;
/// `failureThreshold` of a probe where nothing is said, as in Kubernetes.
const DEFAULT_FAILURES: u32 = 3;

/// When an ended container is started again (`spec.restartPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever its exit code.
    Always,
    /// Where its exit code is not 0.
    OnFailure,
    /// Never.
    Never,
}

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It runs to its end before what follows it begins (`initContainers`).
    Init,
    /// It is started before what follows it and runs beside it (`initContainers` with `restartPolicy: Always`, KEP-753).
    Sidecar,
    /// It is what the pod is for (`containers`).
    Main,
    /// It was put beside the others to look into the pod, is started once, and counts for nothing (`ephemeralContainers`, KEP-277).
    Ephemeral,
}

impl Role {
    /// Whether it is one of `initContainers`.
    pub fn initialises(self) -> bool {
        matches!(self, Self::Init | Self::Sidecar)
    }

    /// Whether the pod is ready only while it is.
    pub fn serves(self) -> bool {
        matches!(self, Self::Sidecar | Self::Main)
    }
}

/// What a container is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Whether it has started; until then nothing else is asked.
    Startup,
    /// Whether it is alive; if not, it is killed.
    Liveness,
    /// Whether it can serve.
    Readiness,
}

impl ProbeKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// As events name it: `Liveness`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// When a container is asked, and what its answers mean; what is asked is the agent's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeView {
    /// How long after its start a container is left alone.
    pub initial_delay: Duration,
    /// From one question to the next.
    pub period: Duration,
    /// So many good answers in a row make a success.
    pub success_threshold: u32,
    /// So many bad answers in a row make a failure.
    pub failure_threshold: u32,
    /// The grace of a container that is killed over it, where it is not the pod's.
    pub grace: Option<Duration>,
}

/// One container as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    /// Its name, unique in the pod.
    pub name: String,
    /// The image's reference, as written.
    pub image: String,
    /// What it is for.
    pub role: Role,
    /// The container whose processes it sees, so that it starts while that one runs only (`targetContainerName`).
    pub target: Option<String>,
    /// `startupProbe`.
    pub startup: Option<ProbeView>,
    /// `livenessProbe`.
    pub liveness: Option<ProbeView>,
    /// `readinessProbe`.
    pub readiness: Option<ProbeView>,
    /// Whether something is to be done when it has started (`lifecycle.postStart`).
    pub post_start: bool,
    /// Whether something is to be done before it is asked to stop (`lifecycle.preStop`).
    pub pre_stop: bool,
}

impl ContainerView {
    /// Its probe of a kind.
    pub fn probe(&self, kind: ProbeKind) -> Option<&ProbeView> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
        }
    }

    fn of(one: &Container, role: Role) -> Self {
        let hooks = one.lifecycle.as_ref();
        // A container that runs to its end is asked nothing, as validation has it.
        let probe = |probe: &Option<Probe>| probe.as_ref().filter(|_| role != Role::Init).map(ProbeView::of);
        Self {
            name: one.name.clone(),
            image: one.image.clone().unwrap_or_default(),
            role,
            target: None,
            startup: probe(&one.startup_probe),
            liveness: probe(&one.liveness_probe),
            readiness: probe(&one.readiness_probe),
            post_start: role != Role::Init && hooks.is_some_and(|hooks| hooks.post_start.is_some()),
            pre_stop: role != Role::Init && hooks.is_some_and(|hooks| hooks.pre_stop.is_some()),
        }
    }
}

impl From<&EphemeralContainer> for ContainerView {
    /// Nothing is asked of it, as validation has it.
    fn from(one: &EphemeralContainer) -> Self {
        Self {
            name: one.name.clone(),
            image: one.image.clone().unwrap_or_default(),
            role: Role::Ephemeral,
            target: one.target_container_name.clone().filter(|name| !name.is_empty()),
            startup: None,
            liveness: None,
            readiness: None,
            post_start: false,
            pre_stop: false,
        }
    }
}

impl ProbeView {
    fn of(probe: &Probe) -> Self {
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let seconds = |value: u32| Duration::from_secs(value.into());
        Self {
            initial_delay: seconds(count(probe.initial_delay_seconds, 0)),
            period: seconds(count(probe.period_seconds, DEFAULT_PERIOD_SECONDS)),
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, DEFAULT_FAILURES),
            grace: probe.termination_grace_period_seconds.map(self::seconds),
        }
    }
}

/// A pod as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its uid: the identity.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// When containers are started again.
    pub restart_policy: RestartPolicy,
    /// How long containers may take to stop where nobody says otherwise.
    pub grace: Duration,
    /// Marked for deletion, with this grace (`metadata.deletionGracePeriodSeconds`).
    pub deletion: Option<Duration>,
    /// Its containers in the order of their start: first those that initialise it, last the ephemeral ones.
    pub containers: Vec<ContainerView>,
    /// How long it may be active on its device (`activeDeadlineSeconds`).
    pub active_deadline: Option<Duration>,
    /// `lastTransitionTime` of the condition `PodScheduled`, which placement set.
    pub scheduled_at: Option<String>,
}

/// Why some JSON is no pod that can be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// It does not read as a Pod.
    #[error("not a Pod: {0}")]
    Json(String),
    /// A field without which nothing can be run.
    #[error("the pod has no {0}")]
    Missing(&'static str),
}

impl PodView {
    /// Reads a Pod's JSON.
    pub fn from_json(pod: &Value) -> Result<Self, ViewError> {
        let pod: Pod = serde_json::from_value(pod.clone()).map_err(|error| ViewError::Json(error.to_string()))?;
        Self::from_pod(&pod)
    }

    /// Takes what matters of a Pod.
    pub fn from_pod(pod: &Pod) -> Result<Self, ViewError> {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref().ok_or(ViewError::Missing("spec"))?;
        let text = |value: &Option<String>, what| {
            value.clone().filter(|text| !text.is_empty()).ok_or(ViewError::Missing(what))
        };
        if spec.containers.is_empty() {
            return Err(ViewError::Missing("containers"));
        }
        let init = spec.init_containers.iter().flatten().map(|one| {
            let sidecar = one.restart_policy.as_deref() == Some("Always");
            ContainerView::of(one, if sidecar { Role::Sidecar } else { Role::Init })
        });
        let main = spec.containers.iter().map(|one| ContainerView::of(one, Role::Main));
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(ContainerView::from);
        let grace = spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
        let deletion =
            meta.deletion_timestamp.as_ref().map(|_| seconds(meta.deletion_grace_period_seconds.unwrap_or(grace)));
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let scheduled = conditions.into_iter().flatten().find(|condition| condition.type_ == "PodScheduled");
        Ok(Self {
            uid: text(&meta.uid, "metadata.uid")?,
            namespace: text(&meta.namespace, "metadata.namespace")?,
            name: text(&meta.name, "metadata.name")?,
            restart_policy: match spec.restart_policy.as_deref() {
                Some("Never") => RestartPolicy::Never,
                Some("OnFailure") => RestartPolicy::OnFailure,
                _ => RestartPolicy::Always,
            },
            grace: seconds(grace),
            deletion,
            containers: init.chain(main).chain(ephemeral).collect(),
            active_deadline: spec
                .active_deadline_seconds
                .map(|value| Duration::from_secs(u64::try_from(value).unwrap_or_default())),
            scheduled_at: scheduled
                .and_then(|condition| condition.last_transition_time.as_ref())
                .and_then(|time| serde_json::to_value(time).ok())
                .and_then(|time| time.as_str().map(str::to_owned)),
        })
    }
}

impl PodView {
    /// One of its containers.
    pub fn container(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|one| one.name == name)
    }
}

fn seconds(value: i64) -> Duration {
    Duration::from_secs(value.clamp(0, MAX_GRACE_SECONDS).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_read_with_the_defaults_of_kubernetes() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let view = PodView::from_json(&pod).expect("a pod");
        assert_eq!(view.restart_policy, RestartPolicy::Always);
        assert_eq!(view.grace, Duration::from_secs(30));
        assert_eq!(view.deletion, None);
    }

    #[test]
    fn a_mark_carries_its_grace() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u",
                "deletionTimestamp": "2024-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5},
            "spec": {"containers": [{"name": "c"}]}});
        assert_eq!(PodView::from_json(&pod).expect("a pod").deletion, Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_is_no_pod_says_why() {
        let error = PodView::from_json(&json!({"metadata": {}, "spec": {"containers": [{"name": "c"}]}}));
        assert_eq!(error, Err(ViewError::Missing("metadata.uid")));
        assert!(PodView::from_json(&json!({"spec": 3})).is_err());
    }
}
