//! What `wait --for` waits for.

use anyhow::{Result, bail};
use hearth_types::{condition, selector::text_at};
use serde_json::Value;

/// Something that can be true of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// A condition has a status.
    Condition {
        /// Its type.
        r#type: String,
        /// The status, in any case.
        status: String,
    },
    /// A field has a value, or any where there is none.
    Field {
        /// The dotted path.
        path: String,
        /// The value.
        value: Option<String>,
    },
    /// It is gone.
    Deleted,
    /// It is there.
    Created,
}

impl Awaited {
    /// Reads the argument of `--for`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text == "delete" {
            return Ok(Self::Deleted);
        }
        if text == "create" {
            return Ok(Self::Created);
        }
        if let Some(rest) = text.strip_prefix("condition=") {
            let (r#type, status) = rest.split_once('=').unwrap_or((rest, "True"));
            if r#type.is_empty() {
                bail!("--for condition= needs a type, as condition=Ready");
            }
            return Ok(Self::Condition { r#type: r#type.into(), status: status.into() });
        }
        if let Some(rest) = text.strip_prefix("jsonpath=") {
            let rest = &rest.replace('\'', "");
            let (path, value) = match rest.split_once('}') {
                Some((path, "")) => (path, None),
                Some((path, value)) => match value.strip_prefix('=') {
                    Some(value) => (path, Some(value.trim_matches('"').to_owned())),
                    None => bail!("--for jsonpath={rest:?}: after '}}' comes =VALUE"),
                },
                None => bail!("--for jsonpath takes {{.path.to.field}} or {{.path.to.field}}=VALUE"),
            };
            let Some(path) = path.strip_prefix("{.") else { bail!("--for jsonpath: the path begins with {{.") };
            if path.is_empty() || path.contains(['[', ' ', '@', '*']) {
                bail!("--for jsonpath: only plain paths of fields, as {{.status.phase}}");
            }
            return Ok(Self::Field { path: path.into(), value });
        }
        bail!("--for {text:?}: must be condition=TYPE[=STATUS], jsonpath={{.path}}[=VALUE], delete or create");
    }

    /// Whether it is true of an object (`None`: there is none).
    pub(crate) fn holds(&self, object: Option<&Value>) -> bool {
        match (self, object) {
            (Self::Deleted, found) => found.is_none(),
            (_, None) => false,
            (Self::Created, Some(_)) => true,
            (Self::Condition { r#type, status }, Some(object)) => {
                let stale = |found: &condition::Condition| {
                    // A condition that speaks of an older spec says nothing of this one.
                    let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
                    found.observed_generation.zip(generation).is_some_and(|(observed, now)| observed < now)
                };
                condition::get(object, r#type)
                    .is_some_and(|found| format!("{:?}", found.status).eq_ignore_ascii_case(status) && !stale(&found))
            }
            (Self::Field { path, value }, Some(object)) => {
                let found = text_at(object, path);
                value.as_ref().map_or(!found.is_empty(), |value| *value == found)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_fields_and_deletion() {
        let pod = json!({"metadata": {"generation": 2}, "status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Old", "status": "True", "observedGeneration": 1}]}});
        for (text, expected) in [
            ("condition=Ready", true),
            ("condition=ready", false),
            ("condition=Ready=true", true),
            ("condition=Ready=False", false),
            ("condition=Old", false),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath='{.status.phase}'=Pending", false),
            ("jsonpath={.status.phase}", true),
            ("jsonpath={.status.reason}", false),
            ("delete", false),
            ("create", true),
        ] {
            assert_eq!(Awaited::parse(text).expect(text).holds(Some(&pod)), expected, "{text}");
        }
        assert!(Awaited::Deleted.holds(None));
        for bad in ["Ready", "condition=", "jsonpath=.x", "jsonpath={.x[0]}", "jsonpath={.x}y"] {
            assert!(Awaited::parse(bad).is_err(), "{bad}");
        }
    }
}
