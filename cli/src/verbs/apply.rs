//! `apply`: make objects be as manifests say, all of them or, where one is bad, none.

use anyhow::{Result, anyhow, bail};
use hearth_client::{Outcome, WriteOptions};
use hearth_types::{
    Reason, Status, admission,
    manifest::Document,
    registry::{self, KindInfo},
};
use serde_json::Value;

use crate::{
    args::Apply,
    context::{Context, refusal},
    output, sources,
};

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Apply) -> Result<()> {
    let mut documents = sources::read(&args.filename, args.recursive, context.namespace())?;
    for document in &mut documents {
        fill_namespace(&mut document.value, context.namespace());
    }
    // Namespaces and Apps first, so that what needs them finds them.
    documents.sort_by_key(|document| order(&document.value));
    check_all(context, &documents).await?;
    let options = WriteOptions { dry_run: args.dry_run, ..WriteOptions::default() };
    for document in &documents {
        let written =
            context.client()?.apply(&document.value, &options).await.map_err(|status| told(document, &status))?;
        for warning in &written.warnings {
            output::note(&format!("Warning: {warning}"));
        }
        let outcome = match written.outcome {
            Outcome::Created => "created",
            Outcome::Configured => "configured",
            Outcome::Unchanged => "unchanged",
        };
        let info = registry::of_kind(written.object.kind());
        let name =
            info.map_or_else(|| written.object.key().to_string(), |info| info.display_name(written.object.name()));
        output::line(&format!("{name} {outcome}{}", if args.dry_run { " (dry run)" } else { "" }));
    }
    Ok(())
}

/// Asks the region about every object before the first is changed, and reports all that is wrong.
async fn check_all(context: &Context, documents: &[Document]) -> Result<()> {
    let options = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let mut wrong = 0;
    for document in documents {
        if let Err(status) = context.client()?.apply(&document.value, &options).await {
            if matches!(status.reason, Reason::ServiceUnavailable | Reason::Unauthorized | Reason::Forbidden) {
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
fn told(document: &Document, status: &Status) -> anyhow::Error {
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

/// Puts objects that name no namespace into that of the command line.
pub(crate) fn fill_namespace(object: &mut Value, namespace: &str) {
    let namespaced = admission::kind_of(object).is_ok_and(KindInfo::is_namespaced);
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if namespaced && meta.get("namespace").and_then(Value::as_str).unwrap_or_default().is_empty() {
        meta.insert("namespace".into(), Value::String(namespace.to_owned()));
    }
}
