//! `taint`: keeps pods that do not tolerate it off a node.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::modify::{chosen, modify, split_marks};
use crate::{args::Taint, context::Context, output};

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// What is asked of one taint.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mark<'a> {
    Set {
        key: &'a str,
        value: &'a str,
        effect: &'a str,
    },
    /// With this effect, or with any.
    Remove {
        key: &'a str,
        effect: Option<&'a str>,
    },
}

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Taint) -> Result<()> {
    let args = &args.marks;
    let (what, marks) = split_marks(&args.words)?;
    let marks: Vec<_> = marks.iter().map(|mark| read(mark)).collect::<Result<_>>()?;
    let done = match (
        marks.iter().any(|mark| matches!(mark, Mark::Set { .. })),
        marks.iter().any(|mark| matches!(mark, Mark::Remove { .. })),
    ) {
        (true, true) => "modified",
        (true, false) => "tainted",
        _ => "untainted",
    };
    let mut errors = Vec::new();
    for (info, key) in chosen(context, what, args.selector.as_deref(), args.all).await? {
        if info.kind != "Node" {
            bail!("only nodes can be tainted, not {}", info.plural);
        }
        let make = |node: &Value| {
            let taints = change(&key.name, &node["spec"]["taints"], &marks, args.overwrite)?;
            Ok(Some(json!({"spec": {"taints": taints}})))
        };
        match modify(context, &key, args.dry_run, make).await {
            Ok(_) => output::line(&format!("{} {done}{}", info.display_name(&key.name), args.dry_run.suffix())),
            Err(error) => errors.push(error),
        }
    }
    output::failures(&errors)
}

/// Reads `key=value:Effect`, `key:Effect`, `key:Effect-` and `key-`.
fn read(text: &str) -> Result<Mark<'_>> {
    let (rest, removes) = text.strip_suffix('-').map_or((text, false), |rest| (rest, true));
    let (name, effect) = rest.split_once(':').map_or((rest, None), |(name, effect)| (name, Some(effect)));
    if let Some(effect) = effect.filter(|effect| !EFFECTS.contains(effect)) {
        bail!("invalid taint effect: {effect}, unsupported taint effect; it must be one of {}", EFFECTS.join(", "));
    }
    let (key, value) = name.split_once('=').unwrap_or((name, ""));
    match (key, removes, effect) {
        ("", ..) => bail!("invalid taint spec: {text}; it has no key"),
        (key, true, effect) => Ok(Mark::Remove { key, effect }),
        (key, false, Some(effect)) => Ok(Mark::Set { key, value, effect }),
        (_, false, None) => bail!(
            "invalid taint spec: {text}; it must be KEY=VALUE:EFFECT or KEY:EFFECT, with - at the end to remove it"
        ),
    }
}

/// The taints of a node after the change.
fn change(node: &str, current: &Value, marks: &[Mark<'_>], overwrite: bool) -> Result<Vec<Value>> {
    let mut taints = current.as_array().cloned().unwrap_or_default();
    for mark in marks {
        match mark {
            Mark::Remove { key, effect } => {
                let before = taints.len();
                taints.retain(|one| one["key"] != *key || effect.is_some_and(|effect| one["effect"] != effect));
                if taints.len() == before {
                    bail!("taint \"{key}{}\" not found", effect.map(|effect| format!(":{effect}")).unwrap_or_default());
                }
            }
            Mark::Set { key, value, effect } => {
                let same = |one: &Value| one["key"] == *key && one["effect"] == *effect;
                if taints.iter().any(same) && !overwrite {
                    bail!("node {node} already has {key} taint(s) with same effect(s) and --overwrite is false");
                }
                taints.retain(|one| !same(one));
                let mut taint = json!({"key": key, "effect": effect});
                if !value.is_empty() {
                    taint["value"] = json!(value);
                }
                taints.push(taint);
            }
        }
    }
    Ok(taints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_set_and_removed() {
        let current = json!([{"key": "a", "value": "1", "effect": "NoSchedule"}, {"key": "a", "effect": "NoExecute"}]);
        let apply = |marks: &[&str], overwrite: bool| {
            let marks: Vec<_> = marks.iter().map(|mark| read(mark)).collect::<Result<_>>()?;
            change("nas", &current, &marks, overwrite).map(Value::from)
        };
        assert_eq!(apply(&["a-"], false).expect("gone"), json!([]));
        assert_eq!(
            apply(&["a:NoExecute-"], false).expect("gone"),
            json!([{"key": "a", "value": "1", "effect": "NoSchedule"}])
        );
        assert_eq!(
            apply(&["a-", "b=x:NoSchedule"], false).expect("one"),
            json!([{"key": "b", "value": "x", "effect": "NoSchedule"}])
        );
        assert_eq!(apply(&["a=2:NoSchedule"], true).expect("changed")[1]["value"], "2");
        for (bad, part) in [
            ("a=2:NoSchedule", "--overwrite is false"),
            ("b-", "not found"),
            ("b=1", "invalid taint spec"),
            ("b=1:Never", "NoSchedule, PreferNoSchedule"),
            (":NoExecute", "no key"),
        ] {
            let error = apply(&[bad], false).expect_err(bad).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
