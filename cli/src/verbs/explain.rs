//! `explain`: the fields of a kind, by its schema.

use anyhow::{Result, bail};
use hearth_types::registry::SchemaView;

use crate::{args::Explain, output, target};

/// How deep `--recursive` goes: schemas may contain themselves.
const MAX_DEPTH: usize = 12;

/// Runs the verb.
pub(crate) fn run(args: &Explain) -> Result<()> {
    let mut steps = args.what.split('.');
    let info = target::kind(steps.next().unwrap_or_default())?;
    let mut view = info.schema();
    let mut path = info.plural.to_owned();
    for step in steps {
        match view.field(step) {
            Some(next) => view = next,
            None => bail!("field {step:?} does not exist in {path}"),
        }
        path = format!("{path}.{step}");
    }
    if !info.group.is_empty() {
        output::line(&format!("GROUP:      {}", info.group));
    }
    output::line(&format!("KIND:       {}", info.kind));
    output::line(&format!("VERSION:    {}", info.version));
    output::line("");
    if path != info.plural {
        output::line(&format!("FIELD: {} <{}>", path.rsplit('.').next().unwrap_or_default(), view.type_name()));
        output::line("");
    }
    let mut lines = Vec::new();
    fields(view, 1, if args.recursive { MAX_DEPTH } else { 1 }, &mut lines);
    if !lines.is_empty() {
        output::line("FIELDS:");
        output::lines(&lines);
    }
    Ok(())
}

fn fields(view: SchemaView, depth: usize, deepest: usize, lines: &mut Vec<String>) {
    for (name, field, required) in view.fields() {
        let required = if required { " -required-" } else { "" };
        let indent = "  ".repeat(depth);
        lines.push(format!("{indent}{name}\t<{}>{required}", field.type_name()));
        let words = field.words();
        if !words.is_empty() {
            lines.push(format!("{indent}enum: {}", words.join(", ")));
        }
        if depth < deepest {
            fields(field, depth + 1, deepest, lines);
        }
    }
}
