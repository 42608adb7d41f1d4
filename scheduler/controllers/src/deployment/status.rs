//! The status of a Deployment.

use std::time::Duration;

use hearth_types::{
    Object, Timestamp,
    condition::{self, Condition, Truth},
};
use serde_json::{Value, json};

use super::{Set, images, resolve};
use crate::{
    action::Reconciled,
    meta::{list, number, text, time},
    refusal::REPLICA_FAILURE,
};

/// Keeps counts and the conditions `Available` and `Progressing`.
pub(super) fn keep(
    deployment: &Object,
    mut value: Value,
    old: &[Set],
    new: Option<&Set>,
    now: Timestamp,
    out: &mut Reconciled,
) {
    let desired = number(&value, "/spec/replicas").unwrap_or(1).max(0);
    let sum = |pointer: &str| -> i64 { old.iter().chain(new).filter_map(|set| number(&set.value, pointer)).sum() };
    let of_new = |pointer: &str| new.and_then(|set| number(&set.value, pointer)).unwrap_or(0);
    let (replicas, available) = (sum("/status/replicas"), sum("/status/availableReplicas"));
    let updated = of_new("/status/replicas");
    let counts = json!({
        "observedGeneration": number(&value, "/metadata/generation").unwrap_or(1),
        "replicas": replicas,
        "updatedReplicas": updated,
        "readyReplicas": sum("/status/readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": (desired.max(replicas) - available).max(0),
    });
    let before = value.get("status").cloned().unwrap_or_default();
    let moved =
        counts.as_object().is_some_and(|counts| counts.iter().any(|(field, count)| before.get(field) != Some(count)));
    let mut status = counts;
    status["conditions"] = before.get("conditions").cloned().unwrap_or_else(|| json!([]));
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.retain(|one| one["type"] != REPLICA_FAILURE);
        // As in Kubernetes: what keeps the ReplicaSet from making pods is told of the Deployment too.
        let failure =
            new.and_then(|set| list(&set.value, "/status/conditions").find(|one| one["type"] == REPLICA_FAILURE));
        conditions.extend(failure.cloned());
    }
    value["status"] = status;

    let max_unavailable = match text(&value, "/spec/strategy/type") {
        "RollingUpdate" => resolve(value.pointer("/spec/strategy/rollingUpdate/maxUnavailable"), desired, false),
        _ => 0,
    };
    let enough = available >= desired - max_unavailable;
    let available_now = if enough {
        Condition::new("Available", Truth::True, "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        let message = format!("{available} of {desired} replicas are available");
        Condition::new("Available", Truth::False, "MinimumReplicasUnavailable", message)
    };
    condition::set(&mut value, &available_now, now);
    let complete = updated == desired && replicas == desired && of_new("/status/availableReplicas") == desired;
    progress(&mut value, &before, moved, complete, now, out);
    out.update(deployment, value);
}

/// The condition `Progressing`. Its `lastUpdateTime` is when something last moved; the deadline counts from it.
fn progress(value: &mut Value, before: &Value, moved: bool, complete: bool, now: Timestamp, out: &mut Reconciled) {
    let old = list(before, "/conditions").find(|one| one["type"] == "Progressing").cloned();
    let last = old.as_ref().and_then(|old| time(old, "/lastUpdateTime")).filter(|_| !moved).unwrap_or(now);
    let seconds = number(value, "/spec/progressDeadlineSeconds").unwrap_or(600).unsigned_abs();
    let left = Duration::from_secs(seconds).saturating_sub(now.since(last));
    let what = images(value);
    let condition = if complete {
        Condition::new("Progressing", Truth::True, "NewReplicaSetAvailable", format!("rolled out {what}"))
    } else if left.is_zero() && value.pointer("/spec/paused") != Some(&Value::Bool(true)) {
        let message = format!("nothing moved for {seconds} s while rolling out {what}");
        Condition::new("Progressing", Truth::False, "ProgressDeadlineExceeded", message)
    } else {
        out.look_again(left.max(Duration::from_secs(1)));
        Condition::new("Progressing", Truth::True, "ReplicaSetUpdated", format!("rolling out {what}"))
    };
    let update_time = match &old {
        Some(old) if !moved && old["reason"] == condition.reason.as_str() => old.get("lastUpdateTime").cloned(),
        Some(old) if !moved && !complete => old.get("lastUpdateTime").cloned(),
        _ => None,
    };
    // `condition::set` writes only its own fields: compare without the update time.
    if let Some(list) = value.pointer_mut("/status/conditions").and_then(Value::as_array_mut)
        && let Some(one) = list.iter_mut().find(|one| one["type"] == "Progressing")
        && let Some(map) = one.as_object_mut()
    {
        map.remove("lastUpdateTime");
    }
    condition::set(value, &condition, now);
    let update_time = update_time.unwrap_or_else(|| json!(now.seconds().to_string()));
    if let Some(list) = value.pointer_mut("/status/conditions").and_then(Value::as_array_mut)
        && let Some(one) = list.iter_mut().find(|one| one["type"] == "Progressing")
    {
        one["lastUpdateTime"] = update_time;
    }
}
