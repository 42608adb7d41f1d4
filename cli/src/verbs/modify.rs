//! What verbs that change fields of objects share: which objects, and a change of what was read that is not lost
//! when others change the object meanwhile.

use anyhow::{Result, bail};
use hearth_client::{Outcome, WriteOptions, Written};
use hearth_types::{ObjectKey, Reason, Status, registry::KindInfo};
use serde_json::{Value, json};

use crate::{
    args::DryRun,
    context::{Context, Selection, refusal},
    output, target,
};

/// How often a change is tried anew where others changed the object in between.
const MAX_ATTEMPTS: usize = 5;

/// Objects of a command line: named, or selected by labels or `--all`.
pub(crate) async fn chosen(
    context: &Context,
    what: &[String],
    selector: Option<&str>,
    all: bool,
) -> Result<Vec<(&'static KindInfo, ObjectKey)>> {
    let mut chosen = Vec::new();
    for target in target::parse(what)? {
        match target.name {
            Some(_) if selector.is_some() || all => {
                bail!("name cannot be provided when a selector or --all is specified")
            }
            Some(name) => chosen.push((target.info, context.key(target.info, name))),
            None if selector.is_some() || all => {
                let selection = Selection { labels: selector.unwrap_or_default(), ..Selection::default() };
                let (objects, _) = context.list(target.info, &selection).await?;
                chosen.extend(objects.iter().map(|object| (target.info, object.key().clone())));
            }
            None => bail!("one or more {} must be named, or selected by -l or --all", target.info.plural),
        }
    }
    if chosen.is_empty() {
        output::note("No resources found");
    }
    Ok(chosen)
}

/// Changes an object by a merge patch that `make` makes of what is stored; `None` leaves it as it is. The patch is
/// for what was read: where others changed it meanwhile, it is read and made anew.
pub(crate) async fn modify(
    context: &Context,
    key: &ObjectKey,
    dry_run: DryRun,
    make: impl Fn(&Value) -> Result<Option<Value>>,
) -> Result<bool> {
    let options = WriteOptions { dry_run: dry_run == DryRun::Server, ..WriteOptions::default() };
    let mut last = None;
    for _ in 0..MAX_ATTEMPTS {
        let Some(object) = context.find(key).await? else { return Err(refusal(&Status::not_found(key))) };
        let Some(mut patch) = make(&object.value())? else { return Ok(false) };
        if dry_run == DryRun::Client {
            return Ok(true);
        }
        patch["metadata"]["resourceVersion"] = json!(object.revision().to_string());
        match context.client()?.patch(key, &patch, false, &options).await {
            Ok(written) => return Ok(changed(&written)),
            Err(status) if status.reason == Reason::Conflict => last = Some(status),
            Err(status) => return Err(refusal(&status)),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("no attempt was made"), |status| refusal(&status)))
}

/// Tells warnings of a write, and says whether it changed something.
pub(crate) fn changed(written: &Written) -> bool {
    for warning in &written.warnings {
        output::note(&format!("Warning: {warning}"));
    }
    written.outcome != Outcome::Unchanged
}

/// Splits words into objects and the marks after them (`key=value`, `key-`, `key:Effect`).
pub(crate) fn split_marks(words: &[String]) -> Result<(&[String], &[String])> {
    let is_mark = |word: &String| word.contains(['=', ':']) || word.ends_with('-');
    let at = words.iter().position(is_mark).unwrap_or(words.len());
    let (what, marks) = words.split_at(at);
    if what.is_empty() {
        bail!("name the objects before what to set: KIND NAME KEY=VALUE");
    }
    match (marks.first(), marks.iter().find(|word| !is_mark(word))) {
        (None, _) => bail!("say what to set (KEY=VALUE) or to remove (KEY-)"),
        (_, Some(odd)) => bail!("{odd:?} must be KEY=VALUE or KEY-"),
        _ => Ok((what, marks)),
    }
}
