//! `events`: what happened, the newest last.

use anyhow::Result;
use futures_util::StreamExt as _;
use hearth_types::{Object, registry::KindInfo, selector::text_at, store::WatchEvent};
use serde_json::Value;

use crate::{
    args::{Events, Output},
    context::{Context, Selection, now},
    output::{
        self,
        table::{self, Style},
    },
    target,
};

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Events) -> Result<()> {
    let info = target::kind("events")?;
    let fields = match args.regarding.as_deref() {
        Some(text) => {
            let target = target::one(text)?;
            format!("involvedObject.kind={},involvedObject.name={}", target.info.kind, target.name.unwrap_or_default())
        }
        None => String::new(),
    };
    let selection = Selection { all_namespaces: args.all_namespaces, labels: "", fields: &fields };
    let (objects, revision) = context.list(info, &selection).await?;
    let events = sorted(&objects);
    if let Some(output @ (Output::Json | Output::Yaml)) = args.output {
        output::documents(&events, true, output)?;
    } else if events.is_empty() && !args.watch {
        let place = if args.all_namespaces { String::new() } else { format!(" in {} namespace", context.namespace()) };
        output::note(&format!("No events found{place}."));
    } else {
        let style = style(args);
        let rows = std::iter::once(table::headings(info, style))
            .chain(events.iter().map(|event| table::row(info, event, now(), style)));
        let rows: Vec<_> = rows.collect();
        output::lines(&table::layout(&rows));
        if args.watch {
            return follow(context, info, &selection, revision, style, &table::widths(&rows)).await;
        }
    }
    Ok(())
}

fn style(args: &Events) -> Style {
    Style { wide: args.output == Some(Output::Wide), namespace: args.all_namespaces, ..Style::default() }
}

async fn follow(
    context: &Context,
    info: &'static KindInfo,
    selection: &Selection<'_>,
    revision: hearth_types::Revision,
    style: Style,
    widths: &[usize],
) -> Result<()> {
    let mut events = context.watch(info, selection, revision).await?;
    while let Some(event) = events.next().await {
        if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event? {
            output::line(&table::line(&table::row(info, &object.value(), now(), style), widths));
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
