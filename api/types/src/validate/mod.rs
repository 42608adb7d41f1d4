//! Validation beyond the schema. Every mistake is reported at once, each with its field's path.

mod bandwidth;
mod certificate;
mod dns;
mod ephemeral;
mod life;
mod own;
mod pod;
mod process;
mod service;
mod volume;
mod workload;

use serde_json::Value;

use crate::{names, patch, registry::KindInfo, status::Cause};

/// Annotations of one object in bytes at most, as in Kubernetes; without what `apply` keeps of itself.
pub const MAX_ANNOTATION_BYTES: usize = 262_144;

/// What validation found.
#[derive(Debug, Default)]
pub struct Report {
    /// What makes the object unacceptable.
    pub causes: Vec<Cause>,
    /// What the sender should know.
    pub warnings: Vec<String>,
}

impl Report {
    /// A field is wrong.
    pub fn wrong(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.causes.push(Cause::new(path, message));
    }

    /// A field is accepted and not acted on.
    pub fn warn(&mut self, path: &str, message: &str) {
        self.warnings.push(format!("{path}: {message}"));
    }

    fn name(&mut self, path: &str, name: &str, check: fn(&str) -> Result<(), &'static str>) {
        if let Err(why) = check(name) {
            self.wrong(path, format!("{name:?}: {why}"));
        }
    }
}

/// Validates `metadata`.
pub fn metadata(info: &KindInfo, object: &Value, report: &mut Report) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let name = text("/metadata/name");
    if name.is_empty() {
        report.wrong("metadata.name", "required");
    } else {
        // What becomes a part of a hostname or of a name derived from it has to be a label.
        let label = matches!(info.kind, "Namespace" | "Install" | "App" | "Device" | "Node" | "Service");
        report.name("metadata.name", name, if label { names::dns_label } else { names::dns_subdomain });
    }
    let namespace = text("/metadata/namespace");
    if info.is_namespaced() {
        if namespace.is_empty() {
            report.wrong("metadata.namespace", "required; give one with -n");
        } else {
            report.name("metadata.namespace", namespace, names::dns_label);
        }
    }
    labels_and_annotations(&object["metadata"], "metadata", report);
    for (path, owner) in each(&object["metadata"], "ownerReferences", "metadata") {
        // An owner that cannot be told from its namesakes counts as gone, and takes the object along.
        for field in ["apiVersion", "kind", "name", "uid"] {
            if self::text(owner, field).is_empty() {
                report.wrong(format!("{path}.{field}"), "must not be empty");
            }
        }
    }
}

/// Validates the labels and annotations of an object or a template.
fn labels_and_annotations(meta: &Value, path: &str, report: &mut Report) {
    labels(&meta["labels"], &format!("{path}.labels"), report);
    let mut size = 0;
    for (key, value) in meta["annotations"].as_object().into_iter().flatten() {
        report.name(&format!("{path}.annotations.{key}"), key, names::label_key);
        // What apply keeps grows with the object, which has a limit of its own.
        if key != patch::LAST_APPLIED {
            size += key.len() + value.as_str().map_or(0, str::len);
        }
    }
    if size > MAX_ANNOTATION_BYTES {
        report.wrong(format!("{path}.annotations"), format!("{size} bytes; at most {MAX_ANNOTATION_BYTES}"));
    }
}

/// Validates a map of labels.
fn labels(map: &Value, path: &str, report: &mut Report) {
    for (key, value) in map.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        report.name(&path, key, names::label_key);
        report.name(&path, value.as_str().unwrap_or_default(), names::label_value);
    }
}

/// Validates everything but `metadata`; `old` is the stored object where this is an update.
pub fn body(info: &KindInfo, object: &Value, old: Option<&Value>, zone: &str, report: &mut Report) {
    match info.kind {
        "Pod" => {
            bandwidth::annotations(object, old, "/metadata", report);
            if let Some(old) = old {
                // What is unchanged was accepted once, maybe by an earlier version: the rest of the pod must still be changeable.
                pod::unchanged(&old["spec"], &object["spec"], report);
            } else {
                pod::spec(&object["spec"], "spec", report);
            }
        }
        "Deployment" => workload::deployment(object, old, report),
        "ReplicaSet" => workload::replica_set(object, old, report),
        "ConfigMap" | "Secret" => workload::config(object, old, report),
        "PersistentVolumeClaim" => workload::claim(object, old, report),
        "Service" => service::service(object, report),
        "App" => own::app(object, report),
        "Install" => own::install(object, old, zone, report),
        "Device" => own::device(object, old, report),
        "Route" => own::route(object, zone, report),
        "DNSEndpoint" => dns::endpoint(object, zone, report),
        "Relay" => own::relay(object, report),
        "Certificate" => certificate::body(object, old, zone, report),
        _ => {}
    }
}

/// Validates the ephemeral containers of a pod whose `spec.ephemeralContainers` alone is changed.
pub fn ephemeral_containers(old: &Value, new: &Value, report: &mut Report) {
    ephemeral::update(&old["spec"], &new["spec"], report);
}

/// The items of a list at a pointer, with their paths.
fn each<'a>(value: &'a Value, field: &'a str, path: &'a str) -> impl Iterator<Item = (String, &'a Value)> + 'a {
    let items = value.get(field).and_then(Value::as_array).into_iter().flatten();
    items.enumerate().map(move |(index, item)| (format!("{path}.{field}[{index}]"), item))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// A field that must not change once the object exists.
fn immutable(old: Option<&Value>, new: &Value, pointer: &str, hint: &str, report: &mut Report) {
    if let Some(old) = old
        && old.pointer(pointer) != new.pointer(pointer)
    {
        let path = pointer.trim_start_matches('/').replace('/', ".");
        report.wrong(path, format!("cannot be changed; {hint}"));
    }
}
