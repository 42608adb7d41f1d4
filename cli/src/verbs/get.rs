//! `get`: tables, or objects as JSON, YAML or names; once or as they change.

use anyhow::{Result, bail};
use futures_util::{StreamExt as _, stream::select_all};
use hearth_types::{Object, store::WatchEvent};
use serde_json::Value;

use crate::{
    args::{Get, Output},
    context::{Context, Selection, now},
    output::{
        self,
        table::{self, Style},
    },
    target::{self, Target},
};

/// Objects of one kind, and what was asked of it.
struct Section<'a> {
    target: Target<'a>,
    objects: Vec<Object>,
    revision: hearth_types::Revision,
}

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Get) -> Result<()> {
    let targets = target::parse(&args.what)?;
    let by_name = targets.iter().any(|target| target.name.is_some());
    if by_name && (args.selector.is_some() || args.field_selector.is_some() || args.all_namespaces) {
        bail!("a name cannot be combined with a selector or with --all-namespaces");
    }
    let mut missing = Vec::new();
    let mut sections: Vec<Section<'_>> = Vec::new();
    for target in &targets {
        match fetch(context, args, target).await {
            Ok((objects, revision)) => {
                match sections.iter_mut().find(|section| section.target.info.kind == target.info.kind) {
                    Some(section) => section.objects.extend(objects),
                    None => sections.push(Section { target: *target, objects, revision }),
                }
            }
            Err(error) if targets.len() > 1 && !args.watch => missing.push(error),
            Err(error) => return Err(error),
        }
    }
    show(args, &sections, by_name && targets.len() == 1)?;
    if args.watch {
        return watch(context, args, &sections).await;
    }
    if sections.iter().all(|section| section.objects.is_empty())
        && missing.is_empty()
        && matches!(args.output, None | Some(Output::Wide))
    {
        let namespaced = sections.iter().any(|section| section.target.info.is_namespaced());
        let place = if args.all_namespaces || !namespaced {
            String::new()
        } else {
            format!(" in {} namespace", context.namespace())
        };
        output::note(&format!("No resources found{place}."));
    }
    for error in &missing {
        output::note(&format!("error: {error}"));
    }
    if missing.is_empty() { Ok(()) } else { bail!("{} of {} objects could not be shown", missing.len(), targets.len()) }
}

async fn fetch(context: &Context, args: &Get, target: &Target<'_>) -> Result<(Vec<Object>, hearth_types::Revision)> {
    match target.name {
        Some(name) => {
            let object = context.get(target.info, name).await?;
            let revision = object.revision();
            Ok((vec![object], revision))
        }
        None => context.list(target.info, &selection(args)).await,
    }
}

fn selection(args: &Get) -> Selection<'_> {
    Selection {
        all_namespaces: args.all_namespaces,
        labels: args.selector.as_deref().unwrap_or_default(),
        fields: args.field_selector.as_deref().unwrap_or_default(),
    }
}

fn style(args: &Get, several: bool) -> Style {
    Style {
        wide: args.output == Some(Output::Wide),
        namespace: args.all_namespaces,
        labels: args.show_labels,
        kind_in_name: several,
    }
}

fn show(args: &Get, sections: &[Section<'_>], one: bool) -> Result<()> {
    let values = |section: &Section<'_>| section.objects.iter().map(Object::value).collect::<Vec<Value>>();
    match args.output {
        Some(output @ (Output::Json | Output::Yaml)) => {
            let all: Vec<_> = sections.iter().flat_map(values).collect();
            output::documents(&all, !one, output)?;
        }
        Some(Output::Name) => {
            for section in sections {
                for object in values(section) {
                    output::name(section.target.info, &object);
                }
            }
        }
        None | Some(Output::Wide) => {
            let style = style(args, sections.len() > 1);
            let filled: Vec<_> = sections.iter().filter(|section| !section.objects.is_empty()).collect();
            for (at, section) in filled.iter().enumerate() {
                if at > 0 {
                    output::line("");
                }
                let heading = (!args.no_headers).then(|| table::headings(section.target.info, style));
                let rows =
                    values(section).into_iter().map(|object| table::row(section.target.info, &object, now(), style));
                let rows: Vec<_> = heading.into_iter().chain(rows).collect();
                output::lines(&table::layout(&rows));
            }
        }
    }
    Ok(())
}

async fn watch(context: &Context, args: &Get, sections: &[Section<'_>]) -> Result<()> {
    let several = sections.len() > 1;
    let mut streams = Vec::new();
    for section in sections {
        let info = section.target.info;
        let selection = match section.target.name {
            Some(_) => Selection { all_namespaces: false, labels: "", fields: "" },
            None => selection(args),
        };
        // The widths of the first table hold on, so that later rows stand under it.
        let style = style(args, several);
        let rows = section.objects.iter().map(|object| table::row(info, &object.value(), now(), style));
        let widths = table::widths(&std::iter::once(table::headings(info, style)).chain(rows).collect::<Vec<_>>());
        let name = section.target.name.map(str::to_owned);
        let stream = context.watch(info, &selection, section.revision).await?;
        streams.push(stream.map(move |event| (info, widths.clone(), style, name.clone(), event)).boxed());
    }
    let mut events = select_all(streams);
    while let Some((info, widths, style, name, event)) = events.next().await {
        let (WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object)) = event? else {
            continue;
        };
        if name.is_some_and(|name| name != object.name()) {
            continue;
        }
        let value = object.value();
        match args.output {
            Some(output @ (Output::Json | Output::Yaml)) => output::documents(&[value], false, output)?,
            Some(Output::Name) => output::name(info, &value),
            None | Some(Output::Wide) => output::line(&table::line(&table::row(info, &value, now(), style), &widths)),
        }
    }
    Ok(())
}
