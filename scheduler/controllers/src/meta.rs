//! Reading and writing metadata in JSON.

use hearth_types::{Object, Timestamp, Uid};
use serde_json::{Map, Value, json};

pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn number(value: &Value, pointer: &str) -> Option<i64> {
    value.pointer(pointer).and_then(Value::as_i64)
}

pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

pub(crate) fn time(value: &Value, pointer: &str) -> Option<Timestamp> {
    Timestamp::parse(text(value, pointer))
}

pub(crate) fn is_deleting(value: &Value) -> bool {
    value.pointer("/metadata/deletionTimestamp").is_some()
}

pub(crate) fn annotation<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// Sets one entry of a map in `metadata` (`labels` or `annotations`).
pub(crate) fn set_in(value: &mut Value, map: &str, key: &str, text: &str) {
    let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    let entries = meta.entry(map).or_insert_with(|| Value::Object(Map::new()));
    if let Some(entries) = entries.as_object_mut() {
        entries.insert(key.to_owned(), Value::String(text.to_owned()));
    }
}

/// Takes a text out of a map of `metadata`; a map that is empty then goes too.
pub(crate) fn unset_in(value: &mut Value, map: &str, key: &str) {
    let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    if let Some(texts) = meta.get_mut(map).and_then(Value::as_object_mut)
        && texts.remove(key).is_some()
        && texts.is_empty()
    {
        meta.remove(map);
    }
}

/// The uid of the owner that controls an object.
pub(crate) fn controller(value: &Value) -> Option<Uid> {
    let mut owners = list(value, "/metadata/ownerReferences");
    owners.find(|owner| owner["controller"] == true).and_then(|owner| owner["uid"].as_str()).map(Uid::from)
}

/// The reference by which `owner` controls what is made for it.
pub(crate) fn owner_reference(owner: &Object) -> Value {
    json!({
        "apiVersion": owner.api_version(),
        "kind": owner.kind().kind,
        "name": owner.name(),
        "uid": owner.uid().as_str(),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

pub(crate) fn finalizers(value: &Value) -> Vec<&str> {
    list(value, "/metadata/finalizers").filter_map(Value::as_str).collect()
}

/// Sets the finalizers; none is no field.
pub(crate) fn set_finalizers(value: &mut Value, finalizers: &[&str]) {
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        if finalizers.is_empty() {
            meta.remove("finalizers");
        } else {
            meta.insert("finalizers".into(), json!(finalizers));
        }
    }
}
