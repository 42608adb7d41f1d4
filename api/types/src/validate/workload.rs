//! Deployments, ReplicaSets, configuration and claims.

use serde_json::Value;

use super::{Report, immutable, pod};
use crate::{names, quantity, selector::LabelSelector};

/// Replicas of one workload at most: a region has room for 100,000 pods in all.
pub(super) const MAX_REPLICAS: i64 = 10_000;
/// The data of one ConfigMap or Secret in bytes at most, as in Kubernetes.
pub(super) const MAX_CONFIG_BYTES: usize = 1 << 20;

pub(super) fn deployment(object: &Value, old: Option<&Value>, report: &mut Report) {
    workload(object, old, report);
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
    if spec.pointer("/template/spec/nodeName").is_some() {
        report.wrong("spec.template.spec.nodeName", super::PLACED);
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
