//! What `wait --for` waits for.

use anyhow::{Result, bail};
use hearth_types::condition;
use serde_json::Value;

use crate::output::jsonpath::{self, Path};

/// Something that can be true of an object.
#[derive(Clone, Debug, PartialEq)]
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
        /// The way to it.
        path: Path,
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
            let (path, value) = field(rest)?;
            return Ok(Self::Field { path, value });
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
                let found = path.values(object);
                match value {
                    // Present and not null: an empty text is a value.
                    None => found.iter().any(|found| !found.is_null()),
                    Some(value) => matches!(found.as_slice(), [one] if jsonpath::text(one) == *value),
                }
            }
        }
    }
}

/// Reads `{.path}`, `{.path}=VALUE`, or the same without braces; quotes around either are the shell's.
fn field(text: &str) -> Result<(Path, Option<String>)> {
    let unquoted = |text: &str| {
        let text = text.trim();
        let within = |quote: char| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
        within('\'').or_else(|| within('"')).unwrap_or(text).to_owned()
    };
    let end = match text.rfind('}') {
        Some(close) => text[close..].find('=').map(|at| close + at),
        None => text.find('='),
    };
    let (path, value) = match end {
        Some(at) => (&text[..at], Some(unquoted(&text[at + 1..]))),
        None => (text, None),
    };
    let path = unquoted(path);
    if path.trim_matches(['{', '}', '.', ' ']).is_empty() {
        bail!("--for jsonpath= needs a path, as jsonpath={{.status.phase}}=Running");
    }
    if value.as_deref() == Some("") {
        bail!("--for jsonpath={text}: the value after = is missing");
    }
    Ok((Path::parse(&path)?, value))
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
            ("jsonpath=.status.phase=Running", true),
            (r#"jsonpath={.status.phase}="Running""#, true),
            (r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}=True"#, true),
            (r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}=False"#, false),
            ("jsonpath={.status.conditions[*].status}=True", false),
            ("jsonpath={.metadata.generation}=2", true),
            ("delete", false),
            ("create", true),
        ] {
            assert_eq!(Awaited::parse(text).expect(text).holds(Some(&pod)), expected, "{text}");
        }
        assert!(Awaited::Deleted.holds(None));
        for bad in ["Ready", "condition=", "jsonpath=", "jsonpath={.x[}", "jsonpath={.x}y", "jsonpath={.x}="] {
            assert!(Awaited::parse(bad).is_err(), "{bad}");
        }
    }
}
