//! What servers keep for themselves in a Secret: one field with a document of a version.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::ObjectKey;

/// The document in a Secret's field; the error says what is wrong with it.
pub(crate) fn read<T: DeserializeOwned>(object: &Value, field: &str) -> Result<T, String> {
    let text = object.pointer("/data").and_then(|data| data.get(field)).and_then(Value::as_str);
    let text = text.ok_or_else(|| format!("it has no data {field:?}"))?;
    let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

/// Refuses a document of another version than the one that this release reads.
pub(crate) fn known_version(found: u32, known: u32) -> Result<(), String> {
    if found == known { Ok(()) } else { Err(format!("it is of version {found}, and this release reads {known}")) }
}

/// The Secret to be written: `old` with this document, or a new one.
pub(crate) fn write(old: Option<&Value>, key: &ObjectKey, field: &str, document: &impl Serialize) -> Value {
    let mut object = old.cloned().unwrap_or_else(
        || json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": key.name, "namespace": key.namespace}}),
    );
    let text = serde_json::to_vec(document).unwrap_or_default();
    object["data"] = json!({ field: STANDARD.encode(text) });
    object
}
