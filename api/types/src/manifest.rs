//! Reading manifests: YAML or JSON, several documents, `List` objects; with the place of what is wrong.

use serde::Deserialize;
use serde_json::Value;

/// The largest manifest in bytes that is read.
pub const MAX_MANIFEST_BYTES: usize = 16 << 20;
/// Documents in one manifest at most.
pub const MAX_DOCUMENTS: usize = 10_000;

/// Why a manifest cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not YAML (or JSON).
    #[error("{source_name}: document {document}: cannot be read as YAML: {why}")]
    Syntax {
        /// The file, or `stdin`.
        source_name: String,
        /// The document, from 1.
        document: usize,
        /// What the parser said, with line and column.
        why: String,
    },
    /// A document is something else than an object.
    #[error(
        "{source_name}: document {document}: an object with apiVersion, kind and metadata is expected, found {found}"
    )]
    NotAnObject {
        /// The file, or `stdin`.
        source_name: String,
        /// The document, from 1.
        document: usize,
        /// What was found.
        found: &'static str,
    },
    /// Too large.
    #[error("{source_name}: larger than {MAX_MANIFEST_BYTES} bytes or {MAX_DOCUMENTS} documents")]
    TooLarge {
        /// The file, or `stdin`.
        source_name: String,
    },
}

/// One object of a manifest and where it stood.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// `file` or `file: document 2`, for messages.
    pub origin: String,
    /// The object.
    pub value: Value,
}

/// Reads every object of a text. Empty documents are skipped; a `List` is taken apart.
pub fn parse(source_name: &str, text: &str) -> Result<Vec<Document>, ManifestError> {
    let too_large = || ManifestError::TooLarge { source_name: source_name.into() };
    if text.len() > MAX_MANIFEST_BYTES {
        return Err(too_large());
    }
    let mut documents = Vec::new();
    for (index, deserializer) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let number = index + 1;
        if number > MAX_DOCUMENTS {
            return Err(too_large());
        }
        let syntax = |why: String| ManifestError::Syntax { source_name: source_name.into(), document: number, why };
        let yaml = serde_yaml_ng::Value::deserialize(deserializer).map_err(|error| syntax(error.to_string()))?;
        let mut value = to_json(yaml).map_err(syntax)?;
        octal_modes(&mut value);
        let origin = if index == 0 { source_name.to_owned() } else { format!("{source_name}: document {number}") };
        let found = match &value {
            Value::Null => continue,
            Value::Object(_) => {
                flatten(value, origin, &mut documents);
                continue;
            }
            Value::Array(_) => "a list",
            Value::String(_) => "a text",
            Value::Number(_) => "a number",
            Value::Bool(_) => "a boolean",
        };
        return Err(ManifestError::NotAnObject { source_name: source_name.into(), document: number, found });
    }
    Ok(documents)
}

fn flatten(mut value: Value, origin: String, documents: &mut Vec<Document>) {
    let is_list = value.get("kind").and_then(Value::as_str) == Some("List");
    match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) if is_list => {
            for (index, item) in items.into_iter().enumerate() {
                documents.push(Document { origin: format!("{origin}: items[{index}]"), value: item });
            }
        }
        Some(items) => {
            value["items"] = items;
            documents.push(Document { origin, value });
        }
        None => documents.push(Document { origin, value }),
    }
}

/// Reads the modes of files as kubectl does: `0400` is a number of base 8 in the YAML 1.1 that manifests are written in, and a text in
/// YAML 1.2. Nothing else is taken for a number.
fn octal_modes(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(octal_modes),
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match (name.as_str(), value) {
                    ("volumes", Value::Array(volumes)) => volumes.iter_mut().for_each(modes_of_files),
                    // Texts of the user's own.
                    ("data" | "stringData" | "metadata", _) => {}
                    (_, value) => octal_modes(value),
                }
            }
        }
        _ => {}
    }
}

/// Those of a volume and its sources.
fn modes_of_files(volume: &mut Value) {
    match volume {
        Value::Array(items) => items.iter_mut().for_each(modes_of_files),
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if let ("defaultMode" | "mode", Value::String(text)) = (name.as_str(), &*value)
                    && let Some(mode) = octal(text)
                {
                    *value = mode.into();
                }
                modes_of_files(value);
            }
        }
        _ => {}
    }
}

fn octal(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'))?;
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| u32::from_str_radix(digits, 8).ok())?
}

/// YAML to JSON: keys must be texts (numbers and booleans are taken as their text), tags are refused.
fn to_json(yaml: serde_yaml_ng::Value) -> Result<Value, String> {
    use serde_yaml_ng::Value as Yaml;
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(flag) => Value::Bool(flag),
        Yaml::String(text) => Value::String(text),
        Yaml::Number(number) => {
            if let Some(n) = number.as_i64() {
                n.into()
            } else if let Some(n) = number.as_u64() {
                n.into()
            } else {
                let float = number.as_f64().unwrap_or(f64::NAN);
                serde_json::Number::from_f64(float).map(Value::Number).ok_or("a number that JSON cannot hold")?
            }
        }
        Yaml::Sequence(items) => Value::Array(items.into_iter().map(to_json).collect::<Result<_, _>>()?),
        Yaml::Mapping(map) => {
            let mut out = serde_json::Map::new();
            for (key, value) in map {
                let key = match key {
                    Yaml::String(text) => text,
                    Yaml::Bool(flag) => flag.to_string(),
                    Yaml::Number(number) => number.to_string(),
                    _ => return Err("a key of a map must be a text".into()),
                };
                out.insert(key, to_json(value)?);
            }
            Value::Object(out)
        }
        Yaml::Tagged(tagged) => {
            return Err(format!("the YAML tag {} is not supported", tagged.tag));
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn several_documents_lists_and_empty_ones() {
        let text = "apiVersion: v1\nkind: A\n---\n---\n# nothing\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n";
        let kinds: Vec<_> = parse("f.yaml", text)
            .expect("a manifest")
            .into_iter()
            .map(|document| (document.origin, document.value["kind"].as_str().unwrap_or_default().to_owned()))
            .collect();
        assert_eq!(
            kinds,
            [
                ("f.yaml".into(), "A".into()),
                ("f.yaml: document 4: items[0]".into(), "B".into()),
                ("f.yaml: document 4: items[1]".into(), "C".to_owned())
            ]
        );
        assert_eq!(parse("j", r#"{"kind":"J"}"#).expect("JSON is YAML")[0].value["kind"], "J");
    }

    #[test]
    fn modes_of_files_are_of_base_8_as_kubectl_reads_them() {
        let text = "spec:
  template:
    spec:
      volumes:
      - {name: a, secret: {secretName: s, defaultMode: 0400, items: [{key: k, path: p, mode: 0o644}]}}
      - {name: b, projected: {defaultMode: 420, sources: [{configMap: {name: '0400', items: [{key: k, path: p, mode: 0777}]}}]}}
      - {name: c, secret: {secretName: s, defaultMode: 0800}}
data: {mode: '0400', volumes: [{mode: '0400'}]}
";
        let value = &parse("f", text).expect("a manifest")[0].value;
        let volumes = &value["spec"]["template"]["spec"]["volumes"];
        assert_eq!(volumes[0]["secret"]["defaultMode"], 0o400);
        assert_eq!(volumes[0]["secret"]["items"][0]["mode"], 0o644);
        assert_eq!(volumes[1]["projected"]["defaultMode"], 420);
        let map = &volumes[1]["projected"]["sources"][0]["configMap"];
        assert_eq!((&map["name"], &map["items"][0]["mode"]), (&"0400".into(), &0o777.into()));
        assert_eq!(volumes[2]["secret"]["defaultMode"], "0800", "is no number of base 8, and refused with its place");
        assert_eq!(value["data"], serde_json::json!({"mode": "0400", "volumes": [{"mode": "0400"}]}));
    }

    #[test]
    fn bad_manifests_say_where() {
        let error = parse("f.yaml", "kind: A\n---\na: [1\n").expect_err("refused").to_string();
        assert!(error.starts_with("f.yaml: document 2: cannot be read as YAML"), "{error}");
        assert!(parse("f", "- a\n").expect_err("refused").to_string().contains("found a list"));
        let twice = parse("f", "kind: A\nkind: B\n").expect_err("a key twice").to_string();
        assert!(twice.contains("duplicate"), "{twice}");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,120}") {
            let _ = parse("x", &text);
        }
    }
}
