//! What pods may send and receive, as their ReplicaSet says: its own annotations go over those of its template, and living pods follow without
//! a restart.

use std::collections::BTreeSet;

use hearth_types::kinds::BANDWIDTH_ANNOTATIONS;
use serde_json::Value;

use crate::{
    action::{Action, Reconciled},
    meta,
    view::SeenPod,
};

/// What a ReplicaSet's pods shall say, in the order of [`BANDWIDTH_ANNOTATIONS`].
fn wanted(set: &Value) -> [Option<&str>; 2] {
    let template = &set["spec"]["template"];
    BANDWIDTH_ANNOTATIONS.map(|key| meta::annotation(set, key).or_else(|| meta::annotation(template, key)))
}

/// Writes it into a pod.
pub(super) fn set(set: &Value, pod: &mut Value) {
    for (key, text) in BANDWIDTH_ANNOTATIONS.into_iter().zip(wanted(set)) {
        match text {
            Some(text) => meta::set_in(pod, "annotations", key, text),
            None => meta::unset_in(pod, "annotations", key),
        }
    }
}

/// Brings the active pods to it. Those that the same look deletes stay as they are.
pub(super) fn keep(replica_set: &Value, active: &[&SeenPod], out: &mut Reconciled) {
    let wanted = wanted(replica_set);
    let going: BTreeSet<String> = out
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Delete { base, .. } => Some(base.uid().to_string()),
            _ => None,
        })
        .collect();
    for seen in active {
        let object = &seen.pod.object;
        let said = seen.pod.bandwidth.each_ref().map(Option::as_deref);
        if said != wanted && !going.contains(object.uid().as_str()) {
            let mut pod = object.value();
            set(replica_set, &mut pod);
            out.update(object, pod);
        }
    }
}
