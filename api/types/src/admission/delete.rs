//! Deletion: at once, or by a mark that the ones concerned act on (grace periods and finalizers).

use serde_json::{Value, json};

use crate::{GroupKind, Object, Timestamp};

/// How an object is to be deleted.
#[derive(Clone, Debug, PartialEq)]
pub enum DeletePlan {
    /// Remove it from the store.
    Remove,
    /// Store this: the object with `metadata.deletionTimestamp` set. It is removed once its device has
    /// stopped it, or its last finalizer is gone.
    Mark(Object),
    /// It is marked already and waits; nothing to do.
    Waiting,
}

/// Plans the deletion of an object. `grace_seconds` overrides a pod's own grace period; 0 removes a pod
/// without waiting for its device.
pub fn plan_delete(object: &Object, grace_seconds: Option<i64>, now: Timestamp) -> DeletePlan {
    let mut value = object.value();
    let finalizers =
        value.pointer("/metadata/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    let bound = *object.kind() == GroupKind::POD && value.pointer("/spec/nodeName").is_some_and(|name| name != "");
    let finished = matches!(value.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"));
    let own_grace = value.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let grace = grace_seconds.or(own_grace).unwrap_or(30).max(0);
    let graceful = bound && !finished && grace > 0;
    if !graceful && !finalizers {
        return DeletePlan::Remove;
    }
    let marked = value.pointer("/metadata/deletionTimestamp").is_some();
    let old_grace = value.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    // A second deletion may only shorten the grace period.
    if marked && (!graceful || old_grace.is_some_and(|old| old <= grace)) {
        return DeletePlan::Waiting;
    }
    let seconds = if graceful { grace } else { 0 };
    value["metadata"]["deletionTimestamp"] =
        json!(now.plus(std::time::Duration::from_secs(seconds.unsigned_abs())).seconds().to_string());
    value["metadata"]["deletionGracePeriodSeconds"] = json!(seconds);
    Object::from_value(value).map_or(DeletePlan::Waiting, DeletePlan::Mark)
}

/// Whether an object that is about to be stored has nothing left to wait for and is to be removed
/// instead: it is marked, has no finalizers, and is no pod that its device still has to stop.
pub fn plan_removal(object: &Object) -> bool {
    let value = object.value();
    let marked = value.pointer("/metadata/deletionTimestamp").is_some();
    let finalizers =
        value.pointer("/metadata/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    let bound = *object.kind() == GroupKind::POD && value.pointer("/spec/nodeName").is_some_and(|name| name != "");
    let finished = matches!(value.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"));
    marked && !finalizers && (!bound || finished)
}
