//! How objects are shown: tables as kubectl prints them, JSON, YAML, names.

pub(crate) mod table;

use anyhow::Result;
use hearth_types::registry::KindInfo;
use serde_json::{Value, json};

use crate::args::Output;

/// Prints a line. A reader that went away (`| head`) ends the program quietly.
pub(crate) fn line(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints lines.
pub(crate) fn lines(texts: &[String]) {
    for text in texts {
        line(text);
    }
}

/// Prints a warning or progress to stderr.
pub(crate) fn note(text: &str) {
    use std::io::Write as _;
    // Nobody to tell if stderr is closed.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints objects as JSON or YAML: one as itself, several as a `List`.
pub(crate) fn documents(objects: &[Value], as_list: bool, output: Output) -> Result<()> {
    let value = match objects {
        [one] if !as_list => one.clone(),
        many => json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": many}),
    };
    if output == Output::Yaml {
        line(serde_yaml_ng::to_string(&value)?.trim_end());
    } else {
        line(&serde_json::to_string_pretty(&value)?);
    }
    Ok(())
}

/// Prints `kind/name` lines.
pub(crate) fn name(info: &KindInfo, object: &Value) {
    line(&info.display_name(object["metadata"]["name"].as_str().unwrap_or_default()));
}
