//! The forms in which objects are asked for (`-o`).

use std::{fs, str::FromStr};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::jsonpath::{self, Path, Template};

/// The largest file with a template in bytes that is read.
const MAX_FILE_BYTES: u64 = 8 << 10;

/// The form of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Format {
    /// A table with more columns.
    Wide,
    Json,
    Yaml,
    /// `kind/name` lines.
    Name,
    /// A text with values in it.
    JsonPath(Template),
    /// A table of chosen fields.
    Columns(Vec<Column>),
}

/// A column of chosen fields.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Column {
    pub(crate) heading: String,
    path: Path,
}

impl Column {
    /// Its text for an object.
    pub(crate) fn cell(&self, object: &Value) -> String {
        let values: Vec<_> = self.path.values(object).into_iter().filter(|value| !value.is_null()).collect();
        if values.is_empty() {
            return "<none>".into();
        }
        values.into_iter().map(jsonpath::text).collect::<Vec<_>>().join(",")
    }
}

impl Format {
    /// Whether it is a table of the kind's own columns.
    pub(crate) fn is_table(format: Option<&Self>) -> bool {
        matches!(format, None | Some(Self::Wide))
    }
}

impl FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("wide", None) => Ok(Self::Wide),
            ("json", None) => Ok(Self::Json),
            ("yaml", None) => Ok(Self::Yaml),
            ("name", None) => Ok(Self::Name),
            ("jsonpath", Some(template)) => Template::parse(template).map(Self::JsonPath),
            ("jsonpath-file", Some(file)) => Template::parse(read(file)?.trim_end_matches('\n')).map(Self::JsonPath),
            ("custom-columns", Some(columns)) => columns_of(columns).map(Self::Columns),
            ("jsonpath" | "custom-columns", None) => bail!("{name} needs a value, as {name}={}", example(name)),
            _ => bail!(
                "the form must be wide, json, yaml, name, jsonpath=TEMPLATE, jsonpath-file=FILE or custom-columns=HEADING:PATH,..."
            ),
        }
    }
}

fn example(name: &str) -> &'static str {
    if name == "jsonpath" { "{.metadata.name}" } else { "NAME:.metadata.name" }
}

fn read(file: &str) -> Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let opened = fs::File::open(file).with_context(|| format!("cannot read {file}"))?;
    opened.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).with_context(|| format!("cannot read {file}"))?;
    Ok(text)
}

/// Reads `NAME:.metadata.name,UID:.metadata.uid`. Commas within brackets belong to the path.
fn columns_of(text: &str) -> Result<Vec<Column>> {
    let mut columns = Vec::new();
    let mut depth = 0_usize;
    let split = |c: char| {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    for column in text.split(split) {
        match column.split_once(':') {
            Some((heading, path)) if !heading.is_empty() && !path.is_empty() => {
                columns.push(Column { heading: heading.to_owned(), path: Path::parse(path)? });
            }
            _ => bail!("custom-columns: {column:?} must be HEADING:PATH, as NAME:.metadata.name"),
        }
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn forms_are_read_and_unknown_ones_refused() {
        assert_eq!("wide".parse::<Format>().expect("a form"), Format::Wide);
        for bad in [
            "xml",
            "json=x",
            "jsonpath",
            "custom-columns",
            "custom-columns=NAME",
            "custom-columns=A:.x,",
            "jsonpath={.a",
        ] {
            assert!(bad.parse::<Format>().is_err(), "{bad}");
        }
    }

    #[test]
    fn chosen_columns_show_fields_and_what_is_missing() {
        let Format::Columns(columns) =
            "custom-columns=NAME:.metadata.name,IMAGES:spec.containers[*].image,BOTH:.m['a','b'],X:.x"
                .parse()
                .expect("columns")
        else {
            panic!("columns")
        };
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"image": "i"}, {"image": "j"}]}, "m": {"a": 1, "b": 2}});
        let cells: Vec<_> = columns.iter().map(|column| column.cell(&pod)).collect();
        assert_eq!(cells, ["p", "i,j", "1,2", "<none>"]);
    }
}
