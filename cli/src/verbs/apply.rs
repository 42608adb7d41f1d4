//! `apply`: make objects be as manifests say, all of them or, where one is bad, none.

use anyhow::{Result, anyhow, bail};
use hearth_client::{Outcome, WriteOptions, Written};
use hearth_types::{
    Reason, Status, admission,
    manifest::Document,
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
    check_all(context, &documents).await?;
    let options = WriteOptions { dry_run: dry_run == DryRun::Server, ..WriteOptions::default() };
    for document in &documents {
        let written =
            context.client()?.apply(&document.value, &options).await.map_err(|status| told(document, &status))?;
        printed.push(outcome(args, &written));
    }
    show(args, printed)
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

/// Asks the region about every object before the first is changed, and reports all that is wrong.
async fn check_all(context: &Context, documents: &[Document]) -> Result<()> {
    let options = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let mut wrong = 0;
    for document in documents {
        if let Err(status) = context.client()?.apply(&document.value, &options).await {
            if matches!(status.reason, Reason::ServiceUnavailable | Reason::Unauthorized) {
                return Err(refusal(&status));
            }
            output::note(&format!("error: {}", told(document, &status)));
            wrong += 1;
        }
    }
    if wrong > 0 {
        bail!("nothing was applied: {wrong} of {} objects cannot be", documents.len());
    }
    Ok(())
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
