//! Conditions: what is true of an object now, with a reason and a message (Kubernetes API conventions,
//! "Typical status properties").

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Timestamp;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody knows: a device is silent, or nothing was observed yet.
    Unknown,
}

/// One condition of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about, in CamelCase.
    pub r#type: String,
    /// Whether it holds.
    pub status: Truth,
    /// Why, as one CamelCase word for programs.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// When `status` last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
    /// The generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl Condition {
    /// A condition without times; [`set`] adds them.
    pub fn new(r#type: &str, status: Truth, reason: &str, message: impl Into<String>) -> Self {
        Self {
            r#type: r#type.into(),
            status,
            reason: reason.into(),
            message: message.into(),
            last_transition_time: None,
            observed_generation: None,
        }
    }
}

/// Puts a condition into `status.conditions` of an object's JSON: `lastTransitionTime` changes only when
/// the status does. Returns whether anything changed.
pub fn set(object: &mut Value, condition: &Condition, now: Timestamp) -> bool {
    if !object.get("status").is_some_and(Value::is_object) {
        object["status"] = json!({});
    }
    let status = &mut object["status"];
    if !status.get("conditions").is_some_and(Value::is_array) {
        status["conditions"] = json!([]);
    }
    let Some(list) = status["conditions"].as_array_mut() else {
        return false;
    };
    let mut new = json!(condition);
    let time = Value::String(now.seconds().to_string());
    if let Some(old) = list.iter_mut().find(|one| one["type"] == new["type"]) {
        let same = old["status"] == new["status"];
        new["lastTransitionTime"] = match old.get("lastTransitionTime") {
            Some(kept) if same => kept.clone(),
            _ => time,
        };
        if *old == new {
            return false;
        }
        *old = new;
    } else {
        new["lastTransitionTime"] = time;
        list.push(new);
    }
    true
}

/// Finds a condition in `status.conditions` of an object's JSON.
pub fn get(object: &Value, r#type: &str) -> Option<Condition> {
    let list = object.get("status")?.get("conditions")?.as_array()?;
    let found = list.iter().find(|one| one.get("type").and_then(Value::as_str) == Some(r#type))?;
    // Kubernetes leaves reason and message out of many conditions.
    let text = |field: &str| found.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let status = match found.get("status").and_then(Value::as_str) {
        Some("True") => Truth::True,
        Some("False") => Truth::False,
        _ => Truth::Unknown,
    };
    Some(Condition {
        last_transition_time: found.get("lastTransitionTime").and_then(Value::as_str).map(str::to_owned),
        observed_generation: found.get("observedGeneration").and_then(Value::as_i64),
        ..Condition::new(r#type, status, &text("reason"), text("message"))
    })
}

/// Takes a condition out of an object's JSON; whether it was there.
pub fn remove(object: &mut Value, r#type: &str) -> bool {
    let list = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    list.is_some_and(|list| {
        let before = list.len();
        list.retain(|one| one.get("type").and_then(Value::as_str) != Some(r#type));
        list.len() < before
    })
}

/// Whether a condition is there and true.
pub fn is_true(object: &Value, r#type: &str) -> bool {
    get(object, r#type).is_some_and(|condition| condition.status == Truth::True)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_changes_with_the_status_only() {
        let mut object = json!({});
        let ready = |truth, reason| Condition::new("Ready", truth, reason, "m");
        assert!(set(&mut object, &ready(Truth::False, "Starting"), Timestamp(1000)));
        assert!(!set(&mut object, &ready(Truth::False, "Starting"), Timestamp(9000)));
        assert!(set(&mut object, &ready(Truth::False, "Waiting"), Timestamp(9000)));
        assert_eq!(get(&object, "Ready").and_then(|c| c.last_transition_time), Some("1970-01-01T00:00:01Z".into()));
        assert!(set(&mut object, &ready(Truth::True, "Up"), Timestamp(9000)));
        assert_eq!(get(&object, "Ready").and_then(|c| c.last_transition_time), Some("1970-01-01T00:00:09Z".into()));
        assert!(is_true(&object, "Ready"));
        assert!(!is_true(&object, "Other"));
        assert!(!remove(&mut object, "Other") && remove(&mut object, "Ready") && !is_true(&object, "Ready"));
    }
}
