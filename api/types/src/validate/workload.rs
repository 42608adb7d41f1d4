//! Deployments, ReplicaSets, configuration and claims.

use serde_json::Value;

use super::{Report, immutable, pod};
use crate::{
    lease::{VOLUME_POLICIES, VOLUME_POLICY_ANNOTATION, VolumePolicy},
    names, quantity,
    selector::LabelSelector,
    store::CLAIM_ANNOTATIONS,
};

/// Replicas of one workload at most: a region has room for 100,000 pods in all.
pub(super) const MAX_REPLICAS: i64 = 10_000;
/// The data of one ConfigMap or Secret in bytes at most, as in Kubernetes.
pub(super) const MAX_CONFIG_BYTES: usize = 1 << 20;

/// The longest name of a Deployment: its ReplicaSets have a hyphen and ten characters more. Names of pods are cut to fit.
const MAX_DEPLOYMENT_NAME: usize = names::MAX_SUBDOMAIN - 11;

pub(super) fn deployment(object: &Value, old: Option<&Value>, report: &mut Report) {
    workload(object, old, report);
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    if name.len() > MAX_DEPLOYMENT_NAME {
        let why = "names of its ReplicaSets are made of it";
        report.wrong("metadata.name", format!("{} characters; at most {MAX_DEPLOYMENT_NAME}: {why}", name.len()));
    }
    let strategy = object.pointer("/spec/strategy/type").and_then(Value::as_str).unwrap_or_default();
    if !matches!(strategy, "Recreate" | "RollingUpdate") {
        report.wrong(
            "spec.strategy.type",
            format!("{strategy:?} is not supported; must be one of Recreate, RollingUpdate"),
        );
    }
}

pub(super) fn replica_set(object: &Value, old: Option<&Value>, report: &mut Report) {
    workload(object, old, report);
}

fn workload(object: &Value, old: Option<&Value>, report: &mut Report) {
    let spec = &object["spec"];
    let replicas = spec.get("replicas").and_then(Value::as_i64).unwrap_or(1);
    if !(0..=MAX_REPLICAS).contains(&replicas) {
        report.wrong("spec.replicas", format!("must be from 0 to {MAX_REPLICAS}"));
    }
    if let Some(labels) = spec.pointer("/selector/matchLabels") {
        super::labels(labels, "spec.selector.matchLabels", report);
    }
    super::labels_and_annotations(&spec["template"]["metadata"], "spec.template.metadata", report);
    for pointer in ["/metadata", "/spec/template/metadata"] {
        super::bandwidth::annotations(object, old, pointer, report);
    }
    match LabelSelector::from_json(&spec["selector"]) {
        Err(why) => report.wrong("spec.selector", why),
        Ok(selector) if selector.is_empty() => {
            report.wrong("spec.selector", "must not be empty: it would select every pod")
        }
        Ok(selector) => {
            let labels = spec.pointer("/template/metadata/labels").and_then(Value::as_object).into_iter().flatten();
            let labels = labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
            if !selector.matches_map(&labels) {
                report.wrong("spec.template.metadata.labels", "must match spec.selector");
            }
        }
    }
    immutable(old, object, "/spec/selector", "delete the object and create it anew", report);
    let restart = spec.pointer("/template/spec/restartPolicy").and_then(Value::as_str);
    if restart.is_some_and(|policy| policy != "Always") {
        report.wrong("spec.template.spec.restartPolicy", "must be Always: a Deployment keeps its pods running");
    }
    pod::spec(&spec["template"]["spec"], "spec.template.spec", report);
}

pub(super) fn config(object: &Value, old: Option<&Value>, report: &mut Report) {
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in object.get(field).and_then(Value::as_object).into_iter().flatten() {
            report.name(&format!("{field}.{key}"), key, names::config_key);
            size += value.as_str().map_or(0, str::len);
        }
    }
    if size > MAX_CONFIG_BYTES {
        report.wrong("data", format!("{size} bytes; at most {MAX_CONFIG_BYTES}; larger data belongs on a volume"));
    }
    if let Some(old) = old
        && old.get("immutable") == Some(&Value::Bool(true))
    {
        for field in ["data", "binaryData", "immutable"] {
            immutable(Some(old), object, &format!("/{field}"), "it is immutable; delete it and create it anew", report);
        }
    }
}

pub(super) fn claim(object: &Value, old: Option<&Value>, report: &mut Report) {
    if old.is_none() {
        let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object).into_iter().flatten();
        for (key, _) in annotations.filter(|(key, _)| CLAIM_ANNOTATIONS.contains(&key.as_str())) {
            let why = "the region sets it, when the first pod that uses the claim is placed; leave it out";
            report.wrong(format!("metadata.annotations.{key}"), why);
        }
    }
    policy(object, old, report);
    let spec = &object["spec"];
    let size = spec.pointer("/resources/requests/storage").and_then(Value::as_str);
    match size.map(quantity::bytes) {
        None => report.wrong("spec.resources.requests.storage", "required"),
        Some(Ok(0)) => report.wrong("spec.resources.requests.storage", "must be above zero"),
        _ => {}
    }
    for (path, mode) in super::each(spec, "accessModes", "spec") {
        if mode != "ReadWriteOnce" && mode != "ReadWriteOncePod" {
            report.wrong(path, "a volume is a directory of one device: ReadWriteOnce or ReadWriteOncePod");
        }
    }
    if spec.get("volumeMode").is_some_and(|mode| mode != "Filesystem") {
        report.wrong("spec.volumeMode", "must be Filesystem");
    }
    for field in ["dataSource", "dataSourceRef", "selector", "storageClassName", "volumeName"] {
        if spec.get(field).is_some_and(|value| value != "") {
            report.wrong(format!("spec.{field}"), "not supported by this version of Hearth");
        }
    }
    immutable(old, object, "/spec/accessModes", "delete the claim (and its data) and create it anew", report);
}

/// What becomes of the volume while its device is silent: said once, since who has it already is not held by a lease.
fn policy(object: &Value, old: Option<&Value>, report: &mut Report) {
    let path = format!("metadata.annotations.{VOLUME_POLICY_ANNOTATION}");
    let annotations = object.pointer("/metadata/annotations");
    match annotations.and_then(|all| all.get(VOLUME_POLICY_ANNOTATION)).and_then(Value::as_str) {
        Some(said) if !VOLUME_POLICIES.contains(&said) => {
            report.wrong(path, format!("{said:?}: must be one of {}", VOLUME_POLICIES.join(", ")));
        }
        _ => {
            if old.is_some_and(|old| VolumePolicy::of_claim(old) != VolumePolicy::of_claim(object)) {
                report.wrong(path, "cannot be changed; delete the claim (and its data) and create it anew");
            }
        }
    }
}
