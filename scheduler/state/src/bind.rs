//! Binding a pod to a device: re-checks what placement decided on, since other entries may have come between.

use hearth_types::{
    GroupKind, Object, ObjectKey,
    condition::{self, Condition, Truth},
    kinds::CLAIM_FINALIZER,
    lease::{Epoch, Tenure, VolumePolicy},
    store::{CLAIM_DEVICE, CLAIM_EPOCH, CLAIM_EPOCH_BEFORE, Expect, OpError},
};
use serde_json::{Map, Value, json};

use crate::ops::{Working, check_object, conflict};

/// Claims of one pod at most: a bound on the work of one operation, above any real pod.
const MAX_CLAIMS: usize = 256;

/// Does [`hearth_types::store::Op::Bind`]. Everything is checked and made before anything is stored.
pub(crate) fn bind(
    work: &mut Working<'_>,
    pod_key: &ObjectKey,
    expect: &Expect,
    device: &str,
    claims: &[ObjectKey],
) -> Result<Object, OpError> {
    if pod_key.kind != GroupKind::POD || device.is_empty() || claims.len() > MAX_CLAIMS {
        let why = format!("{pod_key}: a binding names a pod, a device and at most {MAX_CLAIMS} claims");
        return Err(OpError::Malformed(why));
    }
    let pod = work.expected(pod_key, expect)?;
    let mut value = pod.value();
    if let Some(node) = text(&value, "/spec/nodeName").filter(|node| !node.is_empty()) {
        return Err(conflict(pod_key, format!("the pod is already bound to {node}")));
    }
    if is_marked(&value) {
        return Err(conflict(pod_key, "the pod is being deleted".into()));
    }
    check_device(work, device).map_err(|why| conflict(pod_key, why))?;
    let mut pinned = Vec::new();
    for (index, key) in claims.iter().enumerate() {
        if key.kind != GroupKind::PERSISTENT_VOLUME_CLAIM {
            return Err(OpError::Malformed(format!("{pod_key}: {key} is no claim")));
        }
        if !claims[..index].contains(key)
            && let Some(change) = pin(work, key, device).map_err(|why| conflict(pod_key, why))?
        {
            pinned.push(change);
        }
    }
    set(&mut value, "spec", "nodeName", json!(device));
    let scheduled = Condition::new("PodScheduled", Truth::True, "Scheduled", format!("bound to {device}"));
    condition::set(&mut value, &scheduled, work.now);
    let bound = rebuilt(&pod, value)?;
    for (before, after) in pinned {
        work.store(Some(before), &after);
    }
    Ok(work.store(Some(pod), &bound))
}

/// Whether pods can be bound to a device now.
fn check_device(work: &Working<'_>, device: &str) -> Result<(), String> {
    let node = work.objects.get(&ObjectKey::new(GroupKind::NODE, "", device));
    let node = node.ok_or_else(|| format!("the device {device} is not known: there is no such Node"))?.value();
    if is_marked(&node) {
        return Err(format!("the device {device} is being deleted"));
    }
    if node.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true) {
        return Err(format!("the device {device} is cordoned"));
    }
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
    if ready { Ok(()) } else { Err(format!("the device {device} is not ready")) }
}

/// The claim before and after it is pinned; `None` where nothing changes.
fn pin(work: &Working<'_>, key: &ObjectKey, device: &str) -> Result<Option<(Object, Object)>, String> {
    let claim = work.objects.get(key).ok_or_else(|| format!("the claim {} is missing", key.name))?;
    let mut value = claim.value();
    if is_marked(&value) {
        return Err(format!("the claim {} is being deleted", key.name));
    }
    let annotations = value.pointer("/metadata/annotations");
    match annotations.and_then(|all| all.get(CLAIM_DEVICE)).and_then(Value::as_str) {
        Some(other) if !other.is_empty() && other != device => {
            return Err(format!("the claim {} has its data on the device {other}", key.name));
        }
        _ => {}
    }
    if work.epochs
        && let Some((epoch, before)) = next_epoch(&value, work.revision.0)
    {
        let annotations = child(&mut value["metadata"], "annotations");
        annotations[CLAIM_EPOCH] = json!(epoch.to_string());
        if let Some(before) = before {
            annotations[CLAIM_EPOCH_BEFORE] = json!(before.to_string());
        }
    }
    child(&mut value["metadata"], "annotations")[CLAIM_DEVICE] = json!(device);
    let finalizers = &mut value["metadata"]["finalizers"];
    if !finalizers.is_array() {
        *finalizers = json!([]);
    }
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|one| one == CLAIM_FINALIZER)
    {
        list.push(json!(CLAIM_FINALIZER));
    }
    let after = rebuilt(claim, value).map_err(|error| error.to_string())?;
    Ok((after != *claim).then(|| (claim.clone(), after)))
}

/// The epoch that a claim gets with a device, and the one before: none where it stays, or keeps both.
///
/// Epochs are revisions, which go on above all that were given out also after a restore; and rise in any case.
fn next_epoch(claim: &Value, revision: u64) -> Option<(Epoch, Option<Epoch>)> {
    if VolumePolicy::of_claim(claim) == VolumePolicy::Keep {
        return None;
    }
    let Some(known) = Tenure::of_claim(claim) else { return Some((Epoch(revision), None)) };
    let epoch = Epoch(revision.max(known.epoch.0.saturating_add(1)));
    known.device.is_none().then_some((epoch, Some(known.epoch)))
}

fn rebuilt(from: &Object, value: Value) -> Result<Object, OpError> {
    let object = Object::from_value(value).map_err(|error| OpError::Malformed(format!("{}: {error}", from.key())))?;
    check_object(&object).map(|()| object)
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

fn is_marked(value: &Value) -> bool {
    value.pointer("/metadata/deletionTimestamp").is_some()
}

fn set(value: &mut Value, parent: &str, field: &str, new: Value) {
    child(value, parent)[field] = new;
}

/// A field that is a map, made one where it is not. `value` must be a map itself.
fn child<'a>(value: &'a mut Value, field: &str) -> &'a mut Value {
    let child = &mut value[field];
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    child
}
