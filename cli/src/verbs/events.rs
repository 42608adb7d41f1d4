//! `events`: what happened, the newest last.

use anyhow::Result;
use futures_util::{StreamExt as _, pin_mut};
use hearth_types::{Object, selector::text_at};
use serde_json::Value;

use crate::{
    args::Events,
    context::{Context, Selection},
    follow::{self, Change},
    output::{
        self,
        format::Format,
        printer::{Printer, Section},
        table::Style,
    },
    target,
};

/// Where events of cluster-scoped objects are, as in Kubernetes.
pub(crate) const CLUSTER_EVENTS: &str = "default";

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Events) -> Result<()> {
    let info = target::kind("events")?;
    let mut namespace = context.namespace();
    let fields = match args.regarding.as_deref() {
        Some(text) => {
            let target = target::one(text)?;
            if !target.info.is_namespaced() {
                namespace = CLUSTER_EVENTS;
            }
            format!("involvedObject.kind={},involvedObject.name={}", target.info.kind, target.name.unwrap_or_default())
        }
        None => String::new(),
    };
    let selection = Selection { all_namespaces: args.all_namespaces, labels: "", fields: &fields };
    let (objects, revision) = context.list_in(info, namespace, &selection).await?;
    let style = Style { wide: args.output == Some(Format::Wide), namespace: args.all_namespaces, ..Style::default() };
    let mut printer = Printer::new(args.output.clone(), style, args.no_headers);
    let section = Section { info, objects: sorted(&objects) };
    if !args.watch {
        if objects.is_empty() && Format::is_table(args.output.as_ref()) {
            let place = if args.all_namespaces { String::new() } else { format!(" in {namespace} namespace") };
            output::note(&format!("No events found{place}."));
            return Ok(());
        }
        return printer.all(&[section], false);
    }
    printer.begin(&[section])?;
    let changes = follow::after(context.source(info, namespace, &selection)?, &objects, revision, true);
    pin_mut!(changes);
    while let Some(change) = changes.next().await {
        // Events that grow old and go are no news.
        if let Change::Added(object) | Change::Modified(object) = change? {
            printer.object(info, &object.value())?;
        }
    }
    Ok(())
}

/// Events by when they were last seen.
pub(crate) fn sorted(objects: &[Object]) -> Vec<Value> {
    let mut events: Vec<_> = objects.iter().map(Object::value).collect();
    events.sort_by_cached_key(|event| (text_at(event, "lastTimestamp"), text_at(event, "metadata.name")));
    events
}
