//! ReplicaSet: as many pods as asked for.

mod bandwidth;
mod disconnect;

pub use disconnect::move_after;
use std::{cmp::Reverse, time::Duration};

use hearth_types::{Object, Timestamp, selector::LabelSelector};
use serde_json::{Value, json};

use crate::{
    action::{Action, Reconciled},
    meta::{self, list, number},
    refusal::REPLICA_FAILURE,
    view::SeenPod,
};

/// Pods that one call creates or deletes at most (Kubernetes' burst of replicas): one transaction holds them.
pub const BURST: usize = 500;
/// The pod annotation that counts how many failed pods in a row the pod replaces.
pub const REPLACES: &str = "hearth.dev/replaces";
/// The pod annotation that names the pod on a silent device which it stands for, by its uid.
pub const STANDS_FOR: &str = "hearth.dev/stands-for";
/// The first pause before a failed pod is replaced; doubles with every failure in a row.
pub const FIRST_BACKOFF: Duration = Duration::from_secs(10);
/// The longest pause before a failed pod is replaced.
pub const MAX_BACKOFF: Duration = Duration::from_mins(5);
/// A pod that lived this long before it failed starts a new row of failures (the reset of Kubernetes' container back-off).
pub const BACKOFF_RESET: Duration = Duration::from_mins(10);

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The ReplicaSet.
    pub replica_set: &'a Object,
    /// The pods of its namespace that it controls or that its selector selects.
    pub pods: &'a [SeenPod],
}

/// Makes the pods as many as asked for.
///
/// # Guarantees
/// A pod on a silent device counts as being there and is not replaced, unless the ReplicaSet says after how long
/// ([`hearth_types::kinds::MOVE_AFTER_ANNOTATION`]); then it stays until its device is back and one of both is chosen. A pod that failed is replaced after a back-off, so
/// that a crash makes no storm. Where pods keep data in claims, a pod that is still stopping counts too: two never write at once.
pub fn reconcile(inputs: Inputs<'_>, now: Timestamp) -> Reconciled {
    let mut out = Reconciled::default();
    let value = inputs.replica_set.value();
    if meta::is_deleting(&value) {
        return out;
    }
    let Ok(selector) = LabelSelector::from_json(&value["spec"]["selector"]) else {
        return out;
    };
    let mine = claim_pods(inputs, &selector, &mut out);
    let wanted = usize::try_from(number(&value, "/spec/replicas").unwrap_or(1)).unwrap_or(0);
    let active: Vec<&SeenPod> = mine.iter().copied().filter(|seen| seen.pod.is_active()).collect();
    let sorted = disconnect::sort(disconnect::Policy::of(&value), &active, now);
    scale(inputs.replica_set, &value, wanted, &mine, &sorted, now, &mut out);
    bandwidth::keep(&value, &active, &mut out);
    status(inputs.replica_set, value, &sorted.counted, now, &mut out);
    out
}

/// The pods that it controls; adopts those that nobody does, and releases those that its selector no longer selects.
fn claim_pods<'a>(inputs: Inputs<'a>, selector: &LabelSelector, out: &mut Reconciled) -> Vec<&'a SeenPod> {
    let mut mine = Vec::new();
    for seen in inputs.pods {
        let matches = selector.matches(seen.pod.object.labels());
        match &seen.pod.controller {
            Some(uid) if uid == inputs.replica_set.uid() && matches => mine.push(seen),
            Some(uid) if uid == inputs.replica_set.uid() => {
                let mut value = seen.pod.object.value();
                if let Some(owners) = value.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut) {
                    owners.retain(|owner| owner["uid"] != uid.as_str());
                }
                out.update(&seen.pod.object, value);
            }
            None if matches && seen.pod.is_active() => {
                let mut value = seen.pod.object.value();
                let mut owners: Vec<Value> = list(&value, "/metadata/ownerReferences").cloned().collect();
                owners.push(meta::owner_reference(inputs.replica_set));
                value["metadata"]["ownerReferences"] = Value::Array(owners);
                out.update(&seen.pod.object, value);
                mine.push(seen);
            }
            _ => {}
        }
    }
    mine
}

fn scale(
    set: &Object,
    value: &Value,
    wanted: usize,
    mine: &[&SeenPod],
    sorted: &disconnect::Sorted<'_>,
    now: Timestamp,
    out: &mut Reconciled,
) {
    let mut active = sorted.counted.clone();
    let stopping = mine.iter().filter(|seen| seen.pod.deleting).count();
    let mut room = wanted.saturating_sub(active.len());
    if keeps_data(value) {
        room = room.saturating_sub(stopping);
    }
    if active.len() > wanted {
        active.sort_by_key(|seen| removal_rank(seen));
        for seen in active.iter().take((active.len() - wanted).min(BURST)) {
            out.delete(&seen.pod.object);
            let message = format!("Deleted pod: {}", seen.pod.object.name());
            out.event(set, false, "SuccessfulDelete", message);
        }
    }
    supersede(set, wanted, sorted, out);
    let mut failed: Vec<_> = mine.iter().filter(|seen| seen.pod.is_finished() && !seen.pod.deleting).collect();
    failed.sort_by_key(|seen| (seen.pod.finished, seen.pod.object.name().to_owned()));
    for seen in failed {
        // One that nothing waits for goes at once.
        let left = if room == 0 { Duration::ZERO } else { backoff_left(seen, now) };
        if left > Duration::ZERO {
            room = room.saturating_sub(1);
            out.look_again(left);
            continue;
        }
        out.delete(&seen.pod.object);
        if room > 0 {
            room -= 1;
            out.actions.push(Action::Create { object: new_pod(set, value, failures(seen) + 1) });
        }
    }
    let mut lost = sorted.lost.iter();
    for _ in 0..room.min(BURST) {
        let mut pod = new_pod(set, value, 0);
        if let Some(seen) = lost.next() {
            let (name, device) = (seen.pod.object.name(), &seen.pod.device);
            let message = format!("device {device} is silent: another pod stands for {name}, which runs on there");
            out.event(set, true, "DeviceSilent", message);
            meta::set_in(&mut pod, "annotations", STANDS_FOR, seen.pod.object.uid().as_str());
        }
        out.actions.push(Action::Create { object: pod });
    }
    if room > BURST || active.len().saturating_sub(wanted) > BURST {
        out.look_again(Duration::ZERO);
    }
}

/// Deletes the pods in whose place another one stays, and what is kept on silent devices beyond what is asked for.
fn supersede(set: &Object, wanted: usize, sorted: &disconnect::Sorted<'_>, out: &mut Reconciled) {
    for (seen, stays) in sorted.superseded.iter().take(BURST) {
        out.delete(&seen.pod.object);
        let (name, other, device) = (seen.pod.object.name(), stays.pod.object.name(), &stays.pod.device);
        out.event(set, false, "Superseded", format!("Deleted pod: {name}, since {other} stays, on device {device}"));
    }
    let mut kept: Vec<&SeenPod> = sorted.lost.iter().chain(&sorted.spare).copied().collect();
    let surplus = kept.len().saturating_sub(wanted);
    kept.sort_by_key(|seen| removal_rank(seen));
    for seen in kept.into_iter().take(surplus.min(BURST)) {
        out.delete(&seen.pod.object);
        out.event(set, false, "SuccessfulDelete", format!("Deleted pod: {}", seen.pod.object.name()));
    }
    if let Some(again) = sorted.again {
        out.look_again(again);
    }
}

/// Whether the pods of a template mount claims.
pub(crate) fn keeps_data(value: &Value) -> bool {
    list(value, "/spec/template/spec/volumes").any(|volume| volume.get("persistentVolumeClaim").is_some())
}

/// Those that come first are deleted first: what does the least.
fn removal_rank(seen: &SeenPod) -> impl Ord + use<> {
    let pod = &seen.pod;
    (pod.is_bound(), seen.ready(), pod.phase, Reverse(pod.restarts), Reverse(pod.created), pod.object.name().to_owned())
}

/// Failures in a row that a failed pod stands for, without its own.
fn failures(seen: &SeenPod) -> u32 {
    let pod = &seen.pod;
    let lived = pod.finished.map_or(Duration::ZERO, |finished| finished.since(pod.created));
    if lived >= BACKOFF_RESET { 0 } else { pod.replaces }
}

fn backoff_left(seen: &SeenPod, now: Timestamp) -> Duration {
    let pause = FIRST_BACKOFF.saturating_mul(1 << failures(seen).min(10)).min(MAX_BACKOFF);
    let since = now.since(seen.pod.finished.unwrap_or(seen.pod.created));
    pause.saturating_sub(since)
}

fn new_pod(set: &Object, value: &Value, replaces: u32) -> Value {
    let template = &value["spec"]["template"];
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": format!("{}-", set.name()),
            "namespace": set.namespace(),
            "labels": template.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({})),
            "annotations": template.pointer("/metadata/annotations").cloned().unwrap_or_else(|| json!({})),
            "ownerReferences": [meta::owner_reference(set)],
        },
        "spec": template["spec"],
    });
    bandwidth::set(value, &mut pod);
    if replaces > 0 {
        meta::set_in(&mut pod, "annotations", REPLACES, &replaces.to_string());
    }
    pod
}

/// `active`: those that count for what is asked for.
fn status(set: &Object, mut value: Value, active: &[&SeenPod], now: Timestamp, out: &mut Reconciled) {
    let min_ready = Duration::from_secs(number(&value, "/spec/minReadySeconds").unwrap_or(0).unsigned_abs());
    let ready: Vec<_> = active.iter().filter(|seen| seen.ready()).collect();
    let mut available = 0;
    for seen in &ready {
        let left = min_ready.saturating_sub(now.since(seen.pod.ready_since.unwrap_or(now)));
        if left.is_zero() {
            available += 1;
        } else {
            out.look_again(left);
        }
    }
    // What is done now was not refused: a refusal of before is over.
    let conditions: Vec<Value> =
        list(&value, "/status/conditions").filter(|one| one["type"] != REPLICA_FAILURE).cloned().collect();
    value["status"] = json!({
        "replicas": active.len(),
        "fullyLabeledReplicas": active.len(),
        "readyReplicas": ready.len(),
        "availableReplicas": available,
        "observedGeneration": number(&value, "/metadata/generation").unwrap_or(1),
    });
    if !conditions.is_empty() {
        value["status"]["conditions"] = Value::Array(conditions);
    }
    out.update(set, value);
}

#[cfg(test)]
mod tests;
