//! `get`: tables, or objects as JSON, YAML, names or templates; once or as they change.

use std::cmp::Ordering;

use anyhow::{Result, bail};
use futures_util::{StreamExt as _, stream::select_all};
use hearth_types::{Object, ObjectKey, Revision, Status, registry::KindInfo};
use serde_json::Value;

use crate::{
    args::Get,
    context::{Context, Selection, refusal},
    follow::{self, Change},
    output::{
        self,
        format::Format,
        jsonpath::{self, Path},
        printer::{self, Printer},
        table::Style,
    },
    target,
};

/// One list of objects: a kind's, or, by its name, one object's.
struct Part<'a> {
    info: &'static KindInfo,
    name: Option<&'a str>,
    objects: Vec<Object>,
    revision: Revision,
}

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Get) -> Result<()> {
    let targets = target::parse(&args.what)?;
    let by_name = targets.iter().any(|target| target.name.is_some());
    if by_name && args.all_namespaces {
        bail!("a resource cannot be retrieved by name across all namespaces");
    }
    if by_name && (args.selector.is_some() || args.field_selector.is_some()) {
        bail!("name cannot be provided when a selector is specified");
    }
    let sort = args.sort_by.as_deref().map(Path::parse).transpose()?;
    let mut errors = Vec::new();
    let mut parts = Vec::new();
    for target in &targets {
        match fetch(context, args, target.info, target.name).await {
            Ok(part) => parts.push(part),
            Err(error) => errors.push(error),
        }
    }
    let sections = sections(&parts, sort.as_ref());
    let style = Style {
        wide: args.output == Some(Format::Wide),
        namespace: args.all_namespaces,
        labels: args.show_labels,
        label_columns: args.label_columns.clone(),
        kind_in_name: targets.iter().any(|target| target.info.kind != targets[0].info.kind),
    };
    let mut printer = Printer::new(args.output.clone(), style, args.no_headers);
    if args.watch || args.watch_only {
        output::failures(&errors)?;
        if !args.watch_only {
            printer.begin(&sections)?;
        }
        return watch(context, args, parts, printer).await;
    }
    let empty = sections.iter().all(|section| section.objects.is_empty());
    if empty && by_name {
        // Nothing of what was named: its errors say it.
    } else if empty && Format::is_table(args.output.as_ref()) {
        if !args.ignore_not_found {
            output::note(&nothing(context, args.all_namespaces, &sections));
        }
    } else {
        printer.all(&sections, by_name && targets.len() == 1)?;
    }
    output::failures(&errors)
}

/// What kubectl says where there is nothing.
fn nothing(context: &Context, all_namespaces: bool, sections: &[printer::Section]) -> String {
    let namespaced = sections.iter().any(|section| section.info.is_namespaced());
    if namespaced && !all_namespaces {
        format!("No resources found in {} namespace.", context.namespace())
    } else {
        "No resources found".into()
    }
}

async fn fetch<'a>(context: &Context, args: &Get, info: &'static KindInfo, name: Option<&'a str>) -> Result<Part<'a>> {
    let Some(name) = name else {
        let (objects, revision) = context.list(info, &selection(args)).await?;
        return Ok(Part { info, name: None, objects, revision });
    };
    let key = context.key(info, name);
    let (objects, revision) = if args.watch || args.watch_only {
        // The watch goes on from the list: an object may have been unchanged for longer than the history reaches.
        let (objects, revision) = context.list(info, &one(&fields_of(&key))).await?;
        if objects.is_empty() && !args.ignore_not_found {
            return Err(refusal(&Status::not_found(&key)));
        }
        (objects, revision)
    } else {
        let found = context.find(&key).await?;
        if found.is_none() && !args.ignore_not_found {
            return Err(refusal(&Status::not_found(&key)));
        }
        (found.into_iter().collect(), Revision(0))
    };
    Ok(Part { info, name: Some(name), objects, revision })
}

fn fields_of(key: &ObjectKey) -> String {
    format!("metadata.name={}", key.name)
}

fn one(fields: &str) -> Selection<'_> {
    Selection { all_namespaces: false, labels: "", fields }
}

fn selection(args: &Get) -> Selection<'_> {
    Selection {
        all_namespaces: args.all_namespaces,
        labels: args.selector.as_deref().unwrap_or_default(),
        fields: args.field_selector.as_deref().unwrap_or_default(),
    }
}

/// The objects by kind, in order.
fn sections(parts: &[Part<'_>], sort: Option<&Path>) -> Vec<printer::Section> {
    let mut sections: Vec<printer::Section> = Vec::new();
    for part in parts {
        let objects = part.objects.iter().map(Object::value);
        match sections.iter_mut().find(|section| std::ptr::eq(section.info, part.info)) {
            Some(section) => section.objects.extend(objects),
            None => sections.push(printer::Section { info: part.info, objects: objects.collect() }),
        }
    }
    if let Some(path) = sort {
        for section in &mut sections {
            section.objects.sort_by(|left, right| order(path.values(left).first(), path.values(right).first()));
        }
    }
    sections
}

/// Absent before present, numbers by size, texts by their words and numbers (`pod-2` before `pod-10`).
fn order(left: Option<&&Value>, right: Option<&&Value>) -> Ordering {
    match (left, right) {
        (Some(left), Some(right)) => match (left.as_f64(), right.as_f64()) {
            (Some(left), Some(right)) => left.total_cmp(&right),
            _ => natural(&jsonpath::text(left), &jsonpath::text(right)),
        },
        (left, right) => left.is_some().cmp(&right.is_some()),
    }
}

fn natural(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left, right);
    loop {
        let (a, b) = (chunk(left), chunk(right));
        if a.is_empty() || b.is_empty() {
            return left.cmp(right);
        }
        let order = match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            _ => a.cmp(b),
        };
        if order != Ordering::Equal {
            return order;
        }
        (left, right) = (&left[a.len()..], &right[b.len()..]);
    }
}

/// The digits or the other characters that a text begins with.
fn chunk(text: &str) -> &str {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    &text[..end]
}

async fn watch(context: &Context, args: &Get, parts: Vec<Part<'_>>, mut printer: Printer) -> Result<()> {
    let mut streams = Vec::new();
    for part in parts {
        let fields = part.name.map(|name| format!("metadata.name={name}"));
        let selection = fields.as_deref().map_or_else(|| selection(args), one);
        let source = context.source(part.info, context.namespace(), &selection)?;
        let changes = follow::after(source, &part.objects, part.revision, true);
        streams.push(changes.map(move |change| (part.info, change)).boxed());
    }
    let mut changes = select_all(streams);
    while let Some((info, change)) = changes.next().await {
        match change? {
            Change::Added(object) | Change::Modified(object) | Change::Deleted(object) => {
                printer.object(info, &object.value())?;
            }
            Change::Listed => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sorting_knows_numbers_and_what_is_absent() {
        let path = Path::parse("{.x}").expect("a path");
        let mut values = [json!({"x": "pod-10"}), json!({"x": "pod-2"}), json!({}), json!({"x": "pod"})];
        values.sort_by(|left, right| order(path.values(left).first(), path.values(right).first()));
        assert_eq!(values, [json!({}), json!({"x": "pod"}), json!({"x": "pod-2"}), json!({"x": "pod-10"})]);
        let mut values = [json!({"x": 10}), json!({"x": 9})];
        values.sort_by(|left, right| order(path.values(left).first(), path.values(right).first()));
        assert_eq!(values, [json!({"x": 9}), json!({"x": 10})]);
    }
}
