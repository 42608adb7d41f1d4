//! `apply`: make objects be as manifests say, all of them or, where one is bad, none.

use anyhow::{Result, anyhow, bail};
use hearth_client::{Outcome, WriteOptions, Written};
use hearth_types::{
    Reason, Status, admission,
    manifest::Document,
    object::canonical,
    patch,
    registry::{self, KindInfo},
};
use serde_json::Value;

use crate::{
    args::{Apply, DryRun},
    context::{Context, refusal},
    output::{
        self,
        format::Format,
        printer::{Printer, Section},
        table::Style,
    },
    sources,
};

/// Objects that are applied at once: what the region takes in one request.
const MAX_STEP_OBJECTS: usize = 400;
/// Bytes of objects that are applied at once: well under what the region takes in one request (16 MiB), in which
/// each object has a copy of what was applied.
const MAX_STEP_BYTES: usize = 6 << 20;

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Apply) -> Result<()> {
    let mut documents = sources::read_for(context, &args.files.filename, args.files.recursive)?;
    for document in &documents {
        // The region keeps what was applied in an annotation of the object.
        let mut with_annotation = document.value.clone();
        patch::set_last_applied(&mut with_annotation, &document.value);
        sources::refuse_large(&format!("{} (with the copy that apply keeps)", document.origin), &with_annotation)?;
    }
    // Namespaces and Apps first, so that what needs them finds them.
    documents.sort_by_key(|document| order(&document.value));
    let dry_run = args.files.dry_run;
    let mut printed = Vec::new();
    if dry_run == DryRun::Client {
        for document in &documents {
            printed.push(tried_here(context, args, document).await?);
        }
        return show(args, printed);
    }
    let options = WriteOptions { dry_run: dry_run == DryRun::Server, ..WriteOptions::default() };
    let steps: Vec<_> = steps(&documents);
    if steps.len() > 1 {
        // Not one transaction: everything is checked before the first is changed.
        for step in &steps {
            apply_step(context, step, &WriteOptions { dry_run: true, ..WriteOptions::default() }).await?;
        }
    }
    for step in steps {
        for written in apply_step(context, step, &options).await? {
            printed.push(outcome(args, &written));
        }
    }
    show(args, printed)
}

/// What is applied in one transaction each: everything, unless it is more than the region takes at once.
fn steps(documents: &[Document]) -> Vec<&[Document]> {
    let (mut steps, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (at, document) in documents.iter().enumerate() {
        let size = canonical(&document.value).len();
        if at > begin && (at - begin == MAX_STEP_OBJECTS || bytes + size > MAX_STEP_BYTES) {
            steps.push(&documents[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += size;
    }
    steps.push(&documents[begin..]);
    steps
}

/// All of them or none.
async fn apply_step(context: &Context, step: &[Document], options: &WriteOptions) -> Result<Vec<Written>> {
    let objects: Vec<_> = step.iter().map(|document| document.value.clone()).collect();
    match context.client()?.apply_all(&objects, options).await {
        Ok(written) => Ok(written),
        Err(status) => Err(all_that_is_wrong(context, step, &status).await?),
    }
}

/// Tells an outcome, and keeps the object for those who want to see it.
fn outcome(args: &Apply, written: &Written) -> (Option<&'static KindInfo>, Value) {
    for warning in &written.warnings {
        output::note(&format!("Warning: {warning}"));
    }
    let object = &written.object;
    let info = registry::of_kind(object.kind());
    if object.is_deleting() {
        let what = info.map_or_else(|| object.kind().to_string(), KindInfo::resource);
        output::note(&format!(
            "Warning: Detected changes to resource {what}/{} which is currently being deleted: what was applied goes with it.",
            object.name()
        ));
    }
    if args.output.is_none() {
        let done = match written.outcome {
            Outcome::Created => "created",
            Outcome::Configured => "configured",
            Outcome::Unchanged => "unchanged",
        };
        let name = info.map_or_else(|| object.key().to_string(), |info| info.display_name(object.name()));
        output::line(&format!("{name} {done}{}", args.files.dry_run.suffix()));
    }
    (info, object.value())
}

fn show(args: &Apply, objects: Vec<(Option<&'static KindInfo>, Value)>) -> Result<()> {
    let Some(format) = args.output.clone() else { return Ok(()) };
    if format == Format::Wide {
        bail!("-o wide is a form of get; apply takes json, yaml, name or jsonpath=TEMPLATE");
    }
    let one = objects.len() == 1;
    let known = objects.into_iter().filter_map(|(info, value)| info.map(|info| (info, value)));
    let sections: Vec<_> = known.map(|(info, value)| Section { info, objects: vec![value] }).collect();
    Printer::new(Some(format), Style::default(), false).all(&sections, one)
}

/// What an apply would do, by this program's own checks: nothing is sent but a question for the object.
async fn tried_here(
    context: &Context,
    args: &Apply,
    document: &Document,
) -> Result<(Option<&'static KindInfo>, Value)> {
    let mut object = document.value.clone();
    let info = admission::kind_of(&object).map_err(|status| told(document, &status))?;
    let causes = info.check_schema(&mut object);
    let key = admission::key_of(info, &object);
    if !causes.is_empty() {
        return Err(told(document, &Status::invalid(&key, causes)));
    }
    let found = context.find(&key).await?;
    let done = match &found {
        None => "created",
        Some(found) => {
            let current = found.value();
            let merged = patch::three_way(&current, patch::last_applied(&current).as_ref(), &object);
            if merged == current { "unchanged" } else { "configured" }
        }
    };
    if args.output.is_none() {
        output::line(&format!("{} {done}{}", info.display_name(&key.name), args.files.dry_run.suffix()));
    }
    Ok((Some(info), object))
}

/// The region tells the first object that cannot be applied. People want to know of all, and where each stands.
async fn all_that_is_wrong(context: &Context, documents: &[Document], first: &Status) -> Result<anyhow::Error> {
    if matches!(first.reason, Reason::ServiceUnavailable | Reason::Unauthorized | Reason::Timeout) {
        return Ok(refusal(first));
    }
    let options = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let mut wrong = 0;
    for document in documents {
        match context.client()?.apply(&document.value, &options).await {
            // What only waits for an object before it is not wrong in itself.
            Err(status) if status.reason != Reason::NotFound || *first == status => {
                output::note(&format!("error: {}", told(document, &status)));
                wrong += 1;
            }
            _ => {}
        }
    }
    if wrong == 0 {
        return Ok(refusal(first));
    }
    Ok(anyhow!("nothing was applied: {wrong} of {} objects cannot be", documents.len()))
}

/// A refusal with the place of the object.
pub(crate) fn told(document: &Document, status: &Status) -> anyhow::Error {
    anyhow!("{}: {status}", document.origin)
}

fn order(object: &Value) -> u8 {
    match object["kind"].as_str() {
        Some("Namespace") => 0,
        Some("App") => 1,
        Some("ConfigMap" | "Secret" | "PersistentVolumeClaim") => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_more_than_the_region_takes_is_applied_in_steps() {
        let document = |text: &str| Document { origin: "f".into(), value: json!({"data": {"x": text}}) };
        let sizes = |documents: &[Document]| steps(documents).iter().map(|step| step.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&vec![document("x"); MAX_STEP_OBJECTS]), [MAX_STEP_OBJECTS]);
        assert_eq!(sizes(&vec![document("x"); MAX_STEP_OBJECTS + 1]), [MAX_STEP_OBJECTS, 1]);
        let large = document(&"x".repeat(MAX_STEP_BYTES / 2));
        assert_eq!(sizes(&[large.clone(), document("x"), large.clone(), large]), [2, 1, 1]);
    }
}
