//! `label` and `annotate`.

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

use super::modify::{chosen, modify, split_marks};
use crate::{
    args::{Annotate, Label},
    context::Context,
    output,
};

/// Sets and removes labels.
pub(crate) async fn label(context: &Context, args: &Label) -> Result<()> {
    run(context, &args.marks, "labels").await
}

/// Sets and removes annotations.
pub(crate) async fn annotate(context: &Context, args: &Annotate) -> Result<()> {
    run(context, &args.marks, "annotations").await
}

async fn run(context: &Context, args: &crate::args::Marks, field: &'static str) -> Result<()> {
    let (what, marks) = split_marks(&args.words)?;
    let wanted = read(marks)?;
    let only_removes = wanted.values().all(Value::is_null);
    let mut errors = Vec::new();
    for (info, key) in chosen(context, what, args.selector.as_deref(), args.all).await? {
        match modify(context, &key, args.dry_run, |object| change(object, field, &wanted, args.overwrite)).await {
            Ok(changed) => {
                let done = match (field, changed) {
                    ("annotations", _) => "annotated",
                    (_, false) => "not labeled",
                    (_, true) if only_removes => "unlabeled",
                    (_, true) => "labeled",
                };
                output::line(&format!("{} {done}{}", info.display_name(&key.name), args.dry_run.suffix()));
            }
            Err(error) => errors.push(error),
        }
    }
    output::failures(&errors)
}

/// Reads `key=value` and `key-`.
fn read(marks: &[String]) -> Result<Map<String, Value>> {
    let mut wanted = Map::new();
    for mark in marks {
        let (key, value) = match (mark.split_once('='), mark.strip_suffix('-')) {
            (Some((key, value)), _) => (key, json!(value)),
            (None, Some(key)) => (key, Value::Null),
            (None, None) => bail!("{mark:?} must be KEY=VALUE or KEY-"),
        };
        if key.is_empty() {
            bail!("{mark:?} has no key");
        }
        if wanted.insert(key.to_owned(), value).is_some() {
            bail!("can not both modify and remove, or set twice, {key:?} in the same command");
        }
    }
    Ok(wanted)
}

/// The patch, or `None` where all of it is so already.
fn change(object: &Value, field: &str, wanted: &Map<String, Value>, overwrite: bool) -> Result<Option<Value>> {
    let current = &object["metadata"][field];
    let differ: Vec<_> = wanted.iter().filter(|(key, value)| current[key.as_str()] != **value).collect();
    if !overwrite
        && let Some((key, _)) = differ.iter().find(|(key, value)| current[key.as_str()].is_string() && !value.is_null())
    {
        let value = current[key.as_str()].as_str().unwrap_or_default();
        bail!("'{key}' already has a value ({value}), and --overwrite is false");
    }
    if differ.is_empty() {
        return Ok(None);
    }
    Ok(Some(json!({"metadata": {field: wanted}})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_set_removed_and_not_overwritten_unasked() {
        let object = json!({"metadata": {"labels": {"a": "1"}}});
        let marks = |words: &[&str]| read(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        for (words, overwrite, expected) in [
            (&["b=2"][..], false, Some(json!({"metadata": {"labels": {"b": "2"}}}))),
            (&["a=1"], false, None),
            (&["a=2"], true, Some(json!({"metadata": {"labels": {"a": "2"}}}))),
            (&["a-"], false, Some(json!({"metadata": {"labels": {"a": null}}}))),
            (&["c-"], false, None),
            (&["x=y=z", "a-"], false, Some(json!({"metadata": {"labels": {"x": "y=z", "a": null}}}))),
        ] {
            let wanted = marks(words).expect("marks");
            assert_eq!(change(&object, "labels", &wanted, overwrite).expect("a change"), expected, "{words:?}");
        }
        let error = change(&object, "labels", &marks(&["a=2"]).expect("marks"), false).expect_err("set").to_string();
        assert_eq!(error, "'a' already has a value (1), and --overwrite is false");
        for bad in [&["a=1", "a-"][..], &["=x"], &["-"], &["plain"]] {
            assert!(marks(bad).is_err(), "{bad:?}");
        }
    }
}
