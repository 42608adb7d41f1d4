//! Deployment: a ReplicaSet per template, scaled by strategy (Kubernetes' deployment controller).

mod rolling;
mod status;

use hearth_types::{
    Object, Timestamp,
    kinds::{BANDWIDTH_ANNOTATIONS, MOVE_AFTER_ANNOTATION, ON_RETURN_ANNOTATION, labels},
    object::canonical,
};
use serde_json::{Value, json};

use crate::{
    action::{Action, Reconciled},
    meta::{self, list, number, text, time},
    view::SeenPod,
};

/// The annotation that counts a Deployment's templates, as in Kubernetes.
pub const REVISION: &str = "deployment.kubernetes.io/revision";

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The Deployment.
    pub deployment: &'a Object,
    /// The ReplicaSets that it controls.
    pub replica_sets: &'a [Object],
    /// The pods that those control.
    pub pods: &'a [SeenPod],
}

/// A ReplicaSet as the strategies see it.
#[derive(Clone, Debug)]
struct Set {
    object: Object,
    value: Value,
    /// What it is scaled to; changed by the strategies.
    wanted: i64,
    replicas: i64,
    available: i64,
    revision: i64,
    created: Timestamp,
}

impl Set {
    fn read(object: &Object) -> Self {
        let value = object.value();
        Self {
            object: object.clone(),
            wanted: number(&value, "/spec/replicas").unwrap_or(1),
            replicas: number(&value, "/status/replicas").unwrap_or(0),
            available: number(&value, "/status/availableReplicas").unwrap_or(0),
            revision: meta::annotation(&value, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0),
            created: time(&value, "/metadata/creationTimestamp").unwrap_or_default(),
            value,
        }
    }
}

/// Makes a ReplicaSet for the template, scales old and new by the strategy, removes the oldest history, and keeps the status.
///
/// # Guarantees
/// `RollingUpdate` keeps to `maxSurge` (rounded up) and `maxUnavailable` (rounded down), of which at least one counts. `Recreate` starts the
/// new pods only when no old one is left: also none that is still stopping, or on a silent device.
pub fn reconcile(inputs: Inputs<'_>, now: Timestamp) -> Reconciled {
    let mut out = Reconciled::default();
    let deployment = inputs.deployment;
    let mut value = deployment.value();
    if meta::is_deleting(&value) {
        return out;
    }
    let mut old: Vec<Set> = inputs.replica_sets.iter().filter(|set| !set.is_deleting()).map(Set::read).collect();
    old.sort_by(|a, b| (a.created, a.object.name()).cmp(&(b.created, b.object.name())));
    let template = &value["spec"]["template"];
    let position = old.iter().position(|set| same_template(&set.value["spec"]["template"], template));
    let mut new = position.map(|index| old.remove(index));
    let desired = number(&value, "/spec/replicas").unwrap_or(1).max(0);
    let paused = value.pointer("/spec/paused") == Some(&Value::Bool(true));
    let was: Vec<i64> = old.iter().map(|set| set.wanted).collect();
    let new_was = new.as_ref().map_or(0, |set| set.wanted);
    let scaled = if paused {
        paused_scale(&mut old, new.as_mut(), desired)
    } else if text(&value, "/spec/strategy/type") == "Recreate" {
        recreate(&mut old, inputs.pods, new.as_ref(), desired)
    } else {
        Some(rolling::scale(&value, &mut old, new.as_ref(), desired))
    };
    let revision = next_revision(&old, new.as_ref());
    for (set, was) in old.iter().zip(was) {
        rescale(deployment, set, was, None, &mut out);
    }
    match (&mut new, scaled) {
        (Some(set), scaled) => {
            set.wanted = scaled.unwrap_or(set.wanted);
            rescale(deployment, set, new_was, Some(revision), &mut out);
        }
        (None, Some(replicas)) => {
            let set = new_set(deployment, &value, replicas, revision);
            if replicas > 0 {
                scaled_event(deployment, text(&set, "/metadata/name"), 0, replicas, &mut out);
            }
            out.actions.push(Action::Create { object: set });
        }
        (None, None) => {}
    }
    if new.is_some() || scaled.is_some() {
        meta::set_in(&mut value, "annotations", REVISION, &revision.to_string());
    }
    forget_history(&value, &old, inputs.pods, &mut out);
    status::keep(deployment, value, &old, new.as_ref(), now, &mut out);
    out
}

/// Whether a ReplicaSet's template is a Deployment's, but for the hash label.
fn same_template(of_set: &Value, of_deployment: &Value) -> bool {
    let strip = |template: &Value| {
        let mut template = template.clone();
        if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            labels.remove(labels::TEMPLATE_HASH);
        }
        template
    };
    strip(of_set) == strip(of_deployment)
}

/// The hash of a template: ten letters and digits without vowels, so that no words appear (Kubernetes `SafeEncodeString`).
fn template_hash(template: &Value) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    // FNV-1a: a stable hash is wanted, not a secret one.
    let mut hash = canonical(template)
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut out = String::with_capacity(10);
    for _ in 0..10 {
        out.push(char::from(ALPHABET[(hash % ALPHABET.len() as u64) as usize]));
        hash /= ALPHABET.len() as u64;
    }
    out
}

fn next_revision(old: &[Set], new: Option<&Set>) -> i64 {
    let newest_old = old.iter().map(|set| set.revision).max().unwrap_or(0);
    match new {
        Some(set) if set.revision > newest_old => set.revision,
        _ => newest_old + 1,
    }
}

fn new_set(deployment: &Object, value: &Value, replicas: i64, revision: i64) -> Value {
    let mut template = value["spec"]["template"].clone();
    let hash = template_hash(&template);
    if !template["metadata"]["labels"].is_object() {
        template["metadata"]["labels"] = json!({});
    }
    template["metadata"]["labels"][labels::TEMPLATE_HASH] = json!(hash);
    let mut selector = value["spec"]["selector"].clone();
    if !selector["matchLabels"].is_object() {
        selector["matchLabels"] = json!({});
    }
    selector["matchLabels"][labels::TEMPLATE_HASH] = json!(hash);
    let mut spec = json!({"replicas": replicas, "selector": selector, "template": template});
    if let Some(seconds) = value.pointer("/spec/minReadySeconds") {
        spec["minReadySeconds"] = seconds.clone();
    }
    let mut set = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", deployment.name()),
            "namespace": deployment.namespace(),
            "labels": template["metadata"]["labels"],
            "annotations": {REVISION: revision.to_string()},
            "ownerReferences": [meta::owner_reference(deployment)],
        },
        "spec": spec,
    });
    pass_on(value, &mut set);
    set
}

/// What a Deployment says of silent devices and of bandwidth holds for each of its ReplicaSets. It is no part of the template: nothing is rolled out
/// for it.
fn pass_on(deployment: &Value, set: &mut Value) {
    for key in [MOVE_AFTER_ANNOTATION, ON_RETURN_ANNOTATION].into_iter().chain(BANDWIDTH_ANNOTATIONS) {
        match meta::annotation(deployment, key) {
            Some(text) => meta::set_in(set, "annotations", key, text),
            None => meta::unset_in(set, "annotations", key),
        }
    }
}

fn rescale(deployment: &Object, set: &Set, was: i64, revision: Option<i64>, out: &mut Reconciled) {
    let mut value = set.value.clone();
    value["spec"]["replicas"] = json!(set.wanted);
    pass_on(&deployment.value(), &mut value);
    if let Some(revision) = revision {
        meta::set_in(&mut value, "annotations", REVISION, &revision.to_string());
    }
    if was != set.wanted {
        scaled_event(deployment, set.object.name(), was, set.wanted, out);
    }
    out.update(&set.object, value);
}

fn scaled_event(deployment: &Object, name: &str, from: i64, to: i64, out: &mut Reconciled) {
    let way = if to > from { "up" } else { "down" };
    out.event(deployment, false, "ScalingReplicaSet", format!("Scaled {way} replica set {name} from {from} to {to}"));
}

/// A paused Deployment is scaled and not rolled out: the newest ReplicaSet that has pods takes the difference.
fn paused_scale(old: &mut [Set], new: Option<&mut Set>, desired: i64) -> Option<i64> {
    let total: i64 = old.iter().map(|set| set.wanted).sum::<i64>() + new.as_ref().map_or(0, |set| set.wanted);
    if let Some(set) = new {
        return Some((set.wanted + desired - total).max(0));
    }
    if let Some(set) = old.iter_mut().rev().find(|set| set.wanted > 0) {
        set.wanted = (set.wanted + desired - total).max(0);
    }
    None
}

/// Old ones to zero, and the new one once no pod of theirs is left.
fn recreate(old: &mut [Set], pods: &[SeenPod], new: Option<&Set>, desired: i64) -> Option<i64> {
    let mine = |seen: &SeenPod| old.iter().any(|set| Some(set.object.uid()) == seen.pod.controller.as_ref());
    let left = pods.iter().any(|seen| mine(seen) && !seen.pod.is_finished());
    for set in old.iter_mut() {
        set.wanted = 0;
    }
    if left { new.map(|set| set.wanted.min(desired)) } else { Some(desired) }
}

fn forget_history(value: &Value, old: &[Set], pods: &[SeenPod], out: &mut Reconciled) {
    // While a pod is still stopping, its ReplicaSet tells `recreate` that it is there.
    let has_pods = |set: &Set| pods.iter().any(|seen| seen.pod.controller.as_ref() == Some(set.object.uid()));
    let kept = usize::try_from(number(value, "/spec/revisionHistoryLimit").unwrap_or(10)).unwrap_or(0);
    let mut empty: Vec<&Set> = old
        .iter()
        .filter(|set| {
            set.wanted == 0 && set.replicas == 0 && number(&set.value, "/spec/replicas") == Some(0) && !has_pods(set)
        })
        .collect();
    empty.sort_by_key(|set| set.revision);
    let surplus = empty.len().saturating_sub(kept);
    empty.into_iter().take(surplus).for_each(|set| out.delete(&set.object));
}

/// Resolves an amount that is a number or a percentage of `total`.
fn resolve(amount: Option<&Value>, total: i64, round_up: bool) -> i64 {
    match amount {
        Some(Value::Number(number)) => number.as_i64().unwrap_or(0).max(0),
        Some(Value::String(text)) => {
            let percent = text.strip_suffix('%').and_then(|text| text.parse::<i64>().ok()).unwrap_or(0).clamp(0, 1000);
            (percent * total + if round_up { 99 } else { 0 }) / 100
        }
        _ => 0,
    }
}

/// The images of a template, for messages.
fn images(value: &Value) -> String {
    list(value, "/spec/template/spec/containers").map(|one| text(one, "/image")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
