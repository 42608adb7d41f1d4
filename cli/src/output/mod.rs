//! How objects are shown: tables as kubectl prints them, JSON, YAML, names, templates.

pub(crate) mod format;
pub(crate) mod jsonpath;
pub(crate) mod printer;
pub(crate) mod table;

use anyhow::Result;
use serde_json::{Value, json};

use crate::args::Output;

/// What went wrong was told already, object by object; the program only has to end with a failure.
#[derive(Debug)]
pub(crate) struct Told;

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("what went wrong was told")
    }
}

impl std::error::Error for Told {}

/// Prints an error: a refusal by the region reads as kubectl's; everything else begins with `error:`.
pub(crate) fn failure(error: &anyhow::Error) {
    if error.downcast_ref::<Told>().is_some() {
        return;
    }
    let text = format!("{error:#}");
    if text.starts_with("from server") {
        note(&format!("Error {text}"));
    } else {
        note(&format!("error: {text}"));
    }
}

/// Tells the errors of several objects and makes one of them that says no more.
pub(crate) fn failures(errors: &[anyhow::Error]) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    for error in errors {
        failure(error);
    }
    Err(Told.into())
}

/// Prints a text as it is.
pub(crate) fn raw(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    // A reader that went away (`| head`) ends the program quietly.
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints a line.
pub(crate) fn line(text: &str) {
    raw(&format!("{text}\n"));
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

/// Replaces the last line of a terminal on stderr, which no newline ended.
pub(crate) fn overwrite(text: &str) {
    use std::io::Write as _;
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "\r\x1b[K{text}").and_then(|()| err.flush());
}

/// Objects as one: one as itself, several as a `List`.
pub(crate) fn gathered(objects: &[Value], as_list: bool) -> Value {
    match objects {
        [one] if !as_list => one.clone(),
        many => json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": many}),
    }
}

/// Prints objects as JSON or YAML: one as itself, several as a `List`.
pub(crate) fn documents(objects: &[Value], as_list: bool, output: Output) -> Result<()> {
    let value = gathered(objects, as_list);
    if output == Output::Yaml {
        line(serde_yaml_ng::to_string(&value)?.trim_end());
    } else {
        line(&serde_json::to_string_pretty(&value)?);
    }
    Ok(())
}
