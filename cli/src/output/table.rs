//! Tables with columns three spaces apart, as kubectl prints them.

use hearth_types::{Timestamp, registry::KindInfo};
use serde_json::Value;

/// Columns are at least this far apart.
const GAP: usize = 3;

/// What of a kind's table to show.
#[derive(Clone, Debug, Default)]
pub(crate) struct Style {
    pub(crate) wide: bool,
    pub(crate) namespace: bool,
    pub(crate) labels: bool,
    /// Labels that have columns of their own.
    pub(crate) label_columns: Vec<String>,
    /// Prefix names with their kind, as `get` does for several kinds at once.
    pub(crate) kind_in_name: bool,
}

/// The headings of a kind's table.
pub(crate) fn headings(info: &KindInfo, style: &Style) -> Vec<String> {
    let columns =
        info.columns().iter().filter(|column| style.wide || !column.wide).map(|column| column.name.to_owned());
    let namespace = (style.namespace && info.is_namespaced()).then(|| "NAMESPACE".to_owned());
    // A label's heading is its name without the prefix, as kubectl has it.
    let label = |key: &String| key.rsplit('/').next().unwrap_or(key).to_uppercase();
    let labels = style.label_columns.iter().map(label);
    namespace.into_iter().chain(columns).chain(labels).chain(style.labels.then(|| "LABELS".to_owned())).collect()
}

/// An object's row.
pub(crate) fn row(info: &KindInfo, object: &Value, now: Timestamp, style: &Style) -> Vec<String> {
    let columns = info.columns().iter().filter(|column| style.wide || !column.wide);
    let cells = columns.map(|column| {
        let cell = (column.cell)(object, now);
        if style.kind_in_name && column.name == "NAME" { info.display_name(&cell) } else { cell }
    });
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let namespace = (style.namespace && info.is_namespaced()).then_some(namespace);
    let label = |key: &String| object["metadata"]["labels"][key].as_str().unwrap_or_default().to_owned();
    let chosen = style.label_columns.iter().map(label);
    let all = style.labels.then(|| labels(object));
    namespace.into_iter().chain(cells).chain(chosen).chain(all).map(|cell| one_line(&cell)).collect()
}

fn labels(object: &Value) -> String {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    let list: Vec<_> = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    if list.is_empty() { "<none>".into() } else { list.join(",") }
}

/// What came from others must not move the cursor or start a line of its own.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Lays rows out in columns.
pub(crate) fn layout(rows: &[Vec<String>]) -> Vec<String> {
    let widths = widths(rows);
    rows.iter().map(|row| line(row, &widths)).collect()
}

/// The width of each column.
pub(crate) fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    (0..columns)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect()
}

/// One row in columns of given widths.
pub(crate) fn line(row: &[String], widths: &[usize]) -> String {
    let mut out = String::new();
    for (at, cell) in row.iter().enumerate() {
        out.push_str(cell);
        if at + 1 < row.len() {
            let width = widths.get(at).copied().unwrap_or(0);
            let fill = width.saturating_sub(cell.chars().count()) + GAP;
            out.extend(std::iter::repeat_n(' ', fill));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["NAME".to_owned(), "AGE".into()], vec!["a-long-name".into(), "5s".into()]];
        assert_eq!(layout(&rows), ["NAME          AGE", "a-long-name   5s"]);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
