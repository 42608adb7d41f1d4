//! How an object that somebody sent becomes one that may be stored: strict schema, defaults, validation,
//! and the metadata that the region owns. Every door and every controller goes through here, so that
//! nothing reaches the store another way.

mod defaults;
mod delete;

use serde_json::{Map, Value, json};

pub use delete::{DeletePlan, plan_delete, plan_removal};

use crate::{
    Object, ObjectKey, Reason, Status, Timestamp, Uid,
    kinds::NAMESPACE_FINALIZER,
    names, recovery,
    registry::{self, KindInfo},
    status::Cause,
    store::CLAIM_ANNOTATIONS,
    validate,
};

/// What the region adds to an object. Ids and times are inputs, since `apply` and this crate have none.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The time now.
    pub now: Timestamp,
    /// A fresh uid, used when an object is created.
    pub uid: Uid,
    /// A fresh suffix for `metadata.generateName`: at least 5 characters of `a-z0-9`.
    pub suffix: &'a str,
    /// The zone under which owners' hostnames are; without a dot at either end.
    pub zone: &'a str,
}

/// An object that may be stored, and what its sender should be told all the same.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// The object.
    pub object: Object,
    /// Warnings: fields that are accepted and not acted on.
    pub warnings: Vec<String>,
}

/// Which part of an object a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but `status`. What is the region's stays as it is: the annotations [`CLAIM_ANNOTATIONS`] of a claim, and the
    /// finalizer of a Namespace, whatever was sent.
    Main,
    /// Everything but `status`, by the region's own controllers: they alone change what is the region's.
    Region,
    /// `status` alone.
    Status,
    /// `spec.ephemeralContainers` of a Pod alone, the rest of what was sent being passed over (Kubernetes' subresource
    /// `ephemeralcontainers`).
    EphemeralContainers,
}

/// The registry entry of an object that somebody sent.
pub fn kind_of(object: &Value) -> Result<&'static KindInfo, Status> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if api_version.is_empty() || kind.is_empty() {
        return Err(Status::new(
            Reason::BadRequest,
            "apiVersion and kind are required, as `apiVersion: hearth.dev/v1alpha1`, `kind: App`",
        ));
    }
    registry::by_api_version(api_version, kind).ok_or_else(|| {
        let near = registry::all().iter().find(|info| info.kind.eq_ignore_ascii_case(kind));
        let hint = near.map_or_else(
            || {
                let known: Vec<_> = registry::all().iter().map(|info| info.kind).collect();
                format!("; this region has {}", known.join(", "))
            },
            |info| format!("; did you mean kind {:?} in version {:?}?", info.kind, info.api_version()),
        );
        Status::new(Reason::BadRequest, format!("no matches for kind {kind:?} in version {api_version:?}{hint}"))
    })
}

/// The namespace and name that an object has, whatever else may be wrong with it. For messages.
pub fn key_of(info: &KindInfo, object: &Value) -> ObjectKey {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    ObjectKey::new(info.group_kind(), &text("/metadata/namespace"), &text("/metadata/name"))
}

/// Brings an object that somebody sent into the form in which it is stored, as far as that decides which fields are there:
/// `stringData` of a Secret goes into `data`. To be done to both sides of a merge. What is malformed stays as it is.
pub fn normalise(object: &mut Value) {
    if object["apiVersion"] == "v1" && object["kind"] == "Secret" {
        defaults::string_data(object);
    }
}

/// Makes of a sent object one that can be created.
pub fn prepare_create(info: &KindInfo, mut object: Value, context: &Context<'_>) -> Result<Admitted, Status> {
    generate_name(&mut object, context.suffix);
    let key = key_of(info, &object);
    reject(&key, check_shape(info, &mut object))?;
    let Some(meta) = object["metadata"].as_object_mut() else {
        return Err(Status::invalid(&key, vec![Cause::new("metadata", "required")]));
    };
    for owned in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields"] {
        meta.remove(owned);
    }
    meta.insert("uid".into(), json!(context.uid.as_str()));
    meta.insert("creationTimestamp".into(), json!(context.now.seconds().to_string()));
    meta.insert("generation".into(), json!(1));
    if !info.is_namespaced() {
        meta.remove("namespace");
    }
    if info.has_status {
        object["status"] = defaults::first_status(info, &object);
    }
    defaults::fill(info, &mut object);
    let warnings = validated(info, &key, &object, None, context)?;
    finish(&key, object).map(|object| Admitted { object, warnings })
}

/// Makes of a sent object one that can replace `old`. The caller checks the revision.
pub fn prepare_update(
    info: &KindInfo,
    old: &Object,
    mut new: Value,
    part: Part,
    context: &Context<'_>,
) -> Result<Admitted, Status> {
    if part == Part::Main && recovery::is_regions_own(old.key()) {
        let text = format!("{} is forbidden to be changed: it is what the region knows of its recovery", old.key());
        return Err(Status { object: Some(Box::new(old.key().clone())), ..Status::new(Reason::Forbidden, text) });
    }
    let key = old.key();
    reject(key, check_shape(info, &mut new))?;
    let before = old.value();
    if let Some(uid) = new.pointer("/metadata/uid").and_then(Value::as_str)
        && uid != old.uid().as_str()
    {
        return Err(Status::conflict(key, "the object was deleted and made anew since it was read (its uid differs)"));
    }
    if part == Part::Status {
        let mut object = before;
        object["status"] = new.get("status").cloned().unwrap_or_else(|| json!({}));
        return finish(key, object).map(|object| Admitted { object, warnings: Vec::new() });
    }
    if part == Part::EphemeralContainers {
        return add_ephemeral_containers(key, &before, &new);
    }
    let meta = new["metadata"]
        .as_object_mut()
        .ok_or_else(|| Status::invalid(key, vec![Cause::new("metadata", "required")]))?;
    for kept in
        ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "resourceVersion"]
    {
        match before["metadata"].get(kept) {
            Some(value) => meta.insert(kept.into(), value.clone()),
            None => meta.remove(kept),
        };
    }
    meta.remove("managedFields");
    if part == Part::Main {
        keep_owned(info, &before["metadata"], meta);
    }
    if info.has_status {
        match before.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => drop(new.as_object_mut().and_then(|map| map.remove("status"))),
        }
    }
    defaults::fill(info, &mut new);
    count_generation(&before, &mut new);
    let warnings = validated(info, key, &new, Some(&before), context)?;
    finish(key, new).map(|object| Admitted { object, warnings })
}

/// The stored pod with the ephemeral containers of the sent one. No default is added: devices take what is absent for Kubernetes' default.
fn add_ephemeral_containers(key: &ObjectKey, before: &Value, new: &Value) -> Result<Admitted, Status> {
    let mut object = before.clone();
    if let Some(spec) = object["spec"].as_object_mut() {
        match new.pointer("/spec/ephemeralContainers").filter(|list| list.as_array().is_some_and(|all| !all.is_empty()))
        {
            Some(list) => spec.insert("ephemeralContainers".into(), list.clone()),
            None => spec.remove("ephemeralContainers"),
        };
    }
    let mut report = validate::Report::default();
    validate::ephemeral_containers(before, &object, &mut report);
    reject(key, report.causes)?;
    count_generation(before, &mut object);
    finish(key, object).map(|object| Admitted { object, warnings: report.warnings })
}

fn count_generation(before: &Value, new: &mut Value) {
    if desired(before) != desired(new) {
        let generation = before.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(1);
        new["metadata"]["generation"] = json!(generation + 1);
    }
}

/// Keeps what only the region changes as it is stored.
fn keep_owned(info: &KindInfo, before: &Value, meta: &mut Map<String, Value>) {
    match info.kind {
        "PersistentVolumeClaim" => {
            for key in CLAIM_ANNOTATIONS {
                let kept = before.get("annotations").and_then(|all| all.get(key)).cloned();
                match (kept, meta.get_mut("annotations").and_then(Value::as_object_mut)) {
                    (Some(value), Some(annotations)) => drop(annotations.insert(key.into(), value)),
                    (Some(value), None) => drop(meta.insert("annotations".into(), json!({key: value}))),
                    (None, Some(annotations)) => drop(annotations.remove(key)),
                    (None, None) => {}
                }
            }
        }
        "Namespace" => {
            let finalizer = json!(NAMESPACE_FINALIZER);
            let has = |list: Option<&Value>| list.and_then(Value::as_array).is_some_and(|all| all.contains(&finalizer));
            if has(before.get("finalizers")) && !has(meta.get("finalizers")) {
                match meta.get_mut("finalizers").and_then(Value::as_array_mut) {
                    Some(list) => list.push(finalizer),
                    None => drop(meta.insert("finalizers".into(), json!([finalizer]))),
                }
            }
        }
        _ => {}
    }
}

/// Everything but metadata and status: what a generation counts.
fn desired(object: &Value) -> Map<String, Value> {
    let fields = object.as_object().into_iter().flatten();
    let wanted = fields.filter(|(field, _)| !matches!(field.as_str(), "metadata" | "status" | "apiVersion" | "kind"));
    wanted.map(|(field, value)| (field.clone(), value.clone())).collect()
}

fn check_shape(info: &KindInfo, object: &mut Value) -> Vec<Cause> {
    info.check_schema(object)
}

fn validated(
    info: &KindInfo,
    key: &ObjectKey,
    object: &Value,
    old: Option<&Value>,
    context: &Context<'_>,
) -> Result<Vec<String>, Status> {
    let mut report = validate::Report::default();
    validate::metadata(info, object, &mut report);
    validate::body(info, object, old, context.zone, &mut report);
    reject(key, report.causes)?;
    Ok(report.warnings)
}

fn reject(key: &ObjectKey, causes: Vec<Cause>) -> Result<(), Status> {
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid(key, causes)) }
}

fn finish(key: &ObjectKey, object: Value) -> Result<Object, Status> {
    Object::from_value(object).map_err(|error| Status::invalid(key, vec![Cause::new("", error.to_string())]))
}

fn generate_name(object: &mut Value, suffix: &str) {
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    if meta.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty()) {
        return;
    }
    if let Some(prefix) = meta.get("generateName").and_then(Value::as_str) {
        // The longest name that is also a hostname, less the suffix.
        let prefix: String = prefix.chars().take(names::MAX_LABEL - 5).collect();
        let suffix: String = suffix.chars().take(5).collect();
        let name = format!("{prefix}{suffix}");
        meta.insert("name".into(), Value::String(name));
    }
}

#[cfg(test)]
mod tests;
