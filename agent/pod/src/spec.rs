//! What is asked for: the part of a Pod's JSON that its life depends on.

use std::time::Duration;

use hearth_types::kinds::Pod;
use serde_json::Value;

/// The grace that Kubernetes gives where nothing is said, in seconds (`terminationGracePeriodSeconds`).
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// The longest grace that is honoured, in seconds: a day, as validation has it.
const MAX_GRACE_SECONDS: i64 = 86_400;

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

/// One container as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    /// Its name, unique in the pod.
    pub name: String,
    /// The image's reference, as written.
    pub image: String,
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
    /// Its containers, in order.
    pub containers: Vec<ContainerView>,
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
            containers: spec
                .containers
                .iter()
                .map(|one| ContainerView { name: one.name.clone(), image: one.image.clone().unwrap_or_default() })
                .collect(),
            scheduled_at: scheduled
                .and_then(|condition| condition.last_transition_time.as_ref())
                .and_then(|time| serde_json::to_value(time).ok())
                .and_then(|time| time.as_str().map(str::to_owned)),
        })
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
