//! Label selectors (`a=b,c!=d,e in (f,g),h,!i`) and field selectors (`status.phase=Running`), with the
//! syntax and meaning of Kubernetes.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{LabelMap, Object, names, registry};

/// The longest selector in bytes that is read: a limit against abuse, far above what people write.
pub const MAX_SELECTOR_BYTES: usize = 16_384;

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Requirement {
    /// The label is there with one of the values.
    In(String, Vec<String>),
    /// The label is not there, or has none of the values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    Absent(String),
}

impl Requirement {
    /// Whether labels meet it; `label` looks one up.
    fn meets<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::In(key, values) => label(key).is_some_and(|value| values.iter().any(|one| one == value)),
            Self::NotIn(key, values) => !label(key).is_some_and(|value| values.iter().any(|one| one == value)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
        }
    }
}

/// Why a selector cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the selector {text:?}: {why}")]
pub struct SelectorError {
    /// The selector.
    pub text: String,
    /// What is wrong.
    pub why: String,
}

/// Requirements on labels that must all be met; the empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LabelSelector(pub Vec<Requirement>);

impl LabelSelector {
    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let fail = |why: String| SelectorError { text: text.chars().take(200).collect(), why };
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(fail(format!("longer than {MAX_SELECTOR_BYTES} bytes")));
        }
        let mut requirements = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                if text.trim().is_empty() {
                    continue;
                }
                return Err(fail(
                    "an empty requirement; write key=value, key!=value, key in (a,b), key or !key".into(),
                ));
            }
            requirements.push(parse_requirement(part).map_err(fail)?);
        }
        Ok(Self(requirements))
    }

    /// The selector of `matchLabels` and `matchExpressions`, from its JSON.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for (key, one) in value.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let one = one.as_str().ok_or_else(|| format!("matchLabels.{key}: a string"))?;
            requirements.push(Requirement::In(key.clone(), vec![one.to_owned()]));
        }
        for expression in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key =
                expression.get("key").and_then(Value::as_str).ok_or("matchExpressions: key is required")?.to_owned();
            let values: Vec<String> = expression
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|value| value.as_str().map(str::to_owned))
                .collect();
            requirements.push(match expression.get("operator").and_then(Value::as_str) {
                Some("In") => Requirement::In(key, values),
                Some("NotIn") => Requirement::NotIn(key, values),
                Some("Exists") => Requirement::Exists(key),
                Some("DoesNotExist") => Requirement::Absent(key),
                _ => {
                    return Err("matchExpressions: operator is In, NotIn, Exists or DoesNotExist".into());
                }
            });
        }
        Ok(Self(requirements))
    }

    /// Whether the labels of a stored object meet every requirement.
    pub fn matches(&self, labels: &LabelMap) -> bool {
        self.0.iter().all(|one| one.meets(|key| labels.get(key)))
    }

    /// Whether labels of a typed view meet every requirement.
    pub fn matches_map(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|one| one.meets(|key| labels.get(key).map(AsRef::as_ref)))
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, one) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match one {
                Requirement::In(key, values) if values.len() == 1 => {
                    write!(f, "{key}={}", values[0])?;
                }
                Requirement::NotIn(key, values) if values.len() == 1 => {
                    write!(f, "{key}!={}", values[0])?;
                }
                Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(","))?,
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(","))?,
                Requirement::Exists(key) => f.write_str(key)?,
                Requirement::Absent(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b',' if depth <= 0 => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_requirement(part: &str) -> Result<Requirement, String> {
    let key = |text: &str| -> Result<String, String> {
        let text = text.trim();
        names::label_key(text).map_err(|why| format!("label key {text:?}: {why}"))?;
        Ok(text.to_owned())
    };
    let value = |text: &str| -> Result<String, String> {
        let text = text.trim();
        names::label_value(text).map_err(|why| format!("label value {text:?}: {why}"))?;
        Ok(text.to_owned())
    };
    if let Some(rest) = part.strip_suffix(')') {
        let (head, list) = rest.split_once('(').ok_or("a ')' without its '('")?;
        let values = list.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
        let head = head.trim_end();
        if let Some(name) = head.strip_suffix(" notin") {
            return Ok(Requirement::NotIn(key(name)?, values));
        }
        if let Some(name) = head.strip_suffix(" in") {
            return Ok(Requirement::In(key(name)?, values));
        }
        return Err("before '(' stands `key in` or `key notin`".into());
    }
    if let Some((name, text)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(key(name)?, vec![value(text)?]));
    }
    if let Some((name, text)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(key(name)?, vec![value(text)?]));
    }
    if let Some(name) = part.strip_prefix('!') {
        return Ok(Requirement::Absent(key(name)?));
    }
    Ok(Requirement::Exists(key(part)?))
}

/// Requirements on fields that must all be met. Each is a path, whether it must be equal, and a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FieldSelector(pub Vec<(String, bool, String)>);

impl FieldSelector {
    /// Reads `a.b=c,d.e!=f`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let fail = |why: &str| SelectorError { text: text.chars().take(200).collect(), why: why.into() };
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(fail("too long"));
        }
        let mut requirements = Vec::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (path, equal, value) = if let Some((path, value)) = part.split_once("!=") {
                (path, false, value)
            } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (path, true, value)
            } else {
                return Err(fail("write field=value or field!=value"));
            };
            requirements.push((path.trim().to_owned(), equal, value.trim().to_owned()));
        }
        Ok(Self(requirements))
    }

    /// One field that must equal a value.
    pub fn equal(path: &str, value: &str) -> Self {
        Self(vec![(path.to_owned(), true, value.to_owned())])
    }

    /// Checks that a kind offers every field for selection.
    pub fn check(&self, kind: &registry::KindInfo) -> Result<(), SelectorError> {
        for (path, _, _) in &self.0 {
            if !kind.selectable_fields().any(|field| field == path) {
                let known = kind.selectable_fields().collect::<Vec<_>>().join(", ");
                return Err(SelectorError {
                    text: path.clone(),
                    why: format!("{} can be selected by {known}", kind.resource()),
                });
            }
        }
        Ok(())
    }

    /// Whether an object meets every requirement. A field that is absent equals the empty text.
    pub fn matches(&self, object: &Object) -> bool {
        let needs_body = |path: &str| path != "metadata.name" && path != "metadata.namespace";
        let body = self.0.iter().any(|(path, _, _)| needs_body(path)).then(|| object.value());
        self.0.iter().all(|(path, equal, wanted)| {
            let found = match path.as_str() {
                "metadata.name" => object.name().to_owned(),
                "metadata.namespace" => object.namespace().to_owned(),
                _ => body.as_ref().map(|body| text_at(body, path)).unwrap_or_default(),
            };
            (found == *wanted) == *equal
        })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The text of the scalar at a dotted path; empty where there is none.
pub fn text_at(value: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(value, |value, field| value.get(field));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(flag)) => flag.to_string(),
        _ => String::new(),
    }
}

/// Both selectors of a list or watch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Selector {
    /// By labels.
    pub labels: LabelSelector,
    /// By fields.
    pub fields: FieldSelector,
}

impl Selector {
    /// Whether an object meets both.
    pub fn matches(&self, object: &Object) -> bool {
        self.labels.matches(object.labels()) && (self.fields.is_empty() || self.fields.matches(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> LabelMap {
        pairs.iter().copied().collect()
    }

    #[test]
    fn label_selectors_mean_what_kubernetes_means() {
        let have = labels(&[("app", "web"), ("tier", "front")]);
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("color!=red", true),
            ("app in (web,db)", true),
            ("app notin (web, db)", false),
            ("color notin (red)", true),
            ("app", true),
            ("!app", false),
            ("!color", true),
            ("hearth.dev/x", false),
        ] {
            let selector = LabelSelector::parse(text).expect(text);
            assert_eq!(selector.matches(&have), expected, "{text}");
            assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector), "{text}");
        }
        for text in ["app=web,,x", "a b=c", "x in web)", "=a", "app=-bad-"] {
            LabelSelector::parse(text).expect_err(text);
        }
    }

    #[test]
    fn field_selectors_look_into_the_object() {
        let pod = Object::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "nas"}}))
        .expect("an object");
        for (text, expected) in [
            ("metadata.name=a", true),
            ("spec.nodeName=nas,metadata.namespace=n", true),
            ("spec.nodeName!=nas", false),
            ("status.phase=", true),
        ] {
            assert_eq!(FieldSelector::parse(text).expect(text).matches(&pod), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,80}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }
    }
}
