//! The page that a description is written on.

use hearth_types::{
    registry::{SchemaView, by_argument},
    selector::text_at,
    time::{Timestamp, human_duration},
};
use serde_json::Value;

use crate::output::table::{self, Style, one_line};

/// Where values begin, in characters.
const COLUMN: usize = 16;

/// Lines, and how deep the next are indented.
pub(super) struct Page {
    pub(super) lines: Vec<String>,
    indent: usize,
    now: Timestamp,
}

impl Page {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { lines: Vec::new(), indent: 0, now }
    }

    /// Writes something deeper.
    pub(super) fn indented(&mut self, depth: usize, write: impl FnOnce(&mut Self)) {
        self.indent += depth;
        write(self);
        self.indent -= depth;
    }

    fn margin(&self) -> String {
        "  ".repeat(self.indent)
    }

    /// A line as it is.
    pub(super) fn line(&mut self, text: &str) {
        self.lines.push(format!("{}{text}", self.margin()).trim_end().to_owned());
    }

    pub(super) fn field(&mut self, name: &str, value: &str) {
        let name = format!("{name}:");
        let text = format!("{name:<width$} {}", one_line(value), width = COLUMN - 1);
        self.line(&text);
    }

    /// A field that is left out where there is nothing to say.
    pub(super) fn some(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.field(name, value);
        }
    }

    pub(super) fn pairs(&mut self, name: &str, map: &Value, hidden: &[&str]) {
        let pairs = map.as_object().into_iter().flatten().filter(|(key, _)| !hidden.contains(&key.as_str()));
        let mut texts = pairs.map(|(key, value)| format!("{key}={}", scalar_text(value)));
        let first = texts.next().unwrap_or_else(|| "<none>".into());
        self.field(name, &first);
        for text in texts {
            let text = format!("{:<COLUMN$}{}", "", one_line(&text));
            self.line(&text);
        }
    }

    /// The words of a list, one a line under a heading.
    pub(super) fn words(&mut self, name: &str, list: &Value) {
        let words: Vec<_> = list.as_array().into_iter().flatten().collect();
        if words.is_empty() {
            return;
        }
        self.line(&format!("{name}:"));
        self.indented(1, |page| {
            for word in words {
                for line in scalar_text(word).lines() {
                    page.line(&one_line(line));
                }
            }
        });
    }

    /// A heading and everything under it. Names of fields are titled; keys that people chose stay as they are.
    pub(super) fn tree(&mut self, heading: &str, value: &Value, view: Option<SchemaView>) {
        match value {
            Value::Null => {}
            Value::Object(map) if map.is_empty() => self.field(heading, "{}"),
            Value::Array(list) if list.is_empty() => self.field(heading, "<none>"),
            Value::Object(_) | Value::Array(_) => {
                self.line(&format!("{heading}:"));
                self.indented(1, |page| page.branch(value, view));
            }
            scalar => self.field(heading, &scalar_text(scalar)),
        }
    }

    /// The fields of a map, as the tree has them.
    pub(super) fn rest(&mut self, map: &Value, view: Option<SchemaView>, depth: usize) {
        self.indented(depth, |page| page.branch(map, view));
    }

    fn branch(&mut self, value: &Value, view: Option<SchemaView>) {
        match value {
            Value::Object(map) => {
                // A key is a field's name only where the schema says so.
                let fields = view.is_some_and(SchemaView::is_struct);
                for (key, value) in map {
                    let (name, inner) = match view {
                        Some(view) if fields => (title(key), view.field(key)),
                        _ => (one_line(key), view.and_then(SchemaView::item)),
                    };
                    match value {
                        Value::Object(_) | Value::Array(_) => self.tree(&name, value, inner),
                        scalar => {
                            let text = format!("{name}:  {}", one_line(&scalar_text(scalar)));
                            self.line(&text);
                        }
                    }
                }
            }
            Value::Array(items) => {
                let inner = view.and_then(SchemaView::item);
                for item in items {
                    match item {
                        Value::Object(_) => {
                            // The first line of an item carries the dash, as in YAML.
                            let (start, at) = (self.lines.len(), 2 * self.indent);
                            self.indented(1, |page| page.branch(item, inner));
                            if let Some(line) = self.lines.get_mut(start)
                                && line.get(at..=at) == Some(" ")
                            {
                                line.replace_range(at..=at, "-");
                            }
                        }
                        other => {
                            let text = format!("- {}", one_line(&scalar_text(other)));
                            self.line(&text);
                        }
                    }
                }
            }
            scalar => {
                let text = one_line(&scalar_text(scalar));
                self.line(&text);
            }
        }
    }

    fn table(&mut self, heading: &str, columns: &[&str], rows: Vec<Vec<String>>) {
        self.line(&format!("{heading}:"));
        let columns: Vec<_> = columns.iter().map(|name| (*name).to_owned()).collect();
        let under = columns.iter().map(|name| "-".repeat(name.chars().count())).collect();
        let rows: Vec<_> = [columns, under].into_iter().chain(rows).collect();
        self.indented(1, |page| {
            for line in table::layout(&rows) {
                page.line(&line);
            }
        });
    }

    pub(super) fn conditions(&mut self, conditions: &Value) {
        let Some(list) = conditions.as_array().filter(|list| !list.is_empty()) else { return };
        let cell = |condition: &Value, field: &str| one_line(condition[field].as_str().unwrap_or_default());
        let rows = list.iter().map(|one| {
            let since = Timestamp::parse(&cell(one, "lastTransitionTime"));
            let since = since.map(|then| human_duration(self.now.since(then))).unwrap_or_default();
            vec![cell(one, "type"), cell(one, "status"), cell(one, "reason"), since, cell(one, "message")]
        });
        let rows = rows.collect();
        self.table("Conditions", &["Type", "Status", "Reason", "For", "Message"], rows);
    }

    /// The pods of something.
    pub(super) fn pods(&mut self, pods: &[Value]) {
        let Some(info) = by_argument("pods").filter(|_| !pods.is_empty()) else {
            self.field("Pods", "<none>");
            return;
        };
        let style = Style { namespace: true, ..Style::default() };
        let columns = table::headings(info, &style);
        let rows = pods.iter().map(|pod| table::row(info, pod, self.now, &style)).collect();
        self.table("Pods", &columns.iter().map(String::as_str).collect::<Vec<_>>(), rows);
    }

    pub(super) fn events(&mut self, events: &[Value]) {
        if events.is_empty() {
            self.field("Events", "<none>");
            return;
        }
        let ago = |event: &Value, field: &str| {
            Timestamp::parse(&text_at(event, field)).map(|then| human_duration(self.now.since(then)))
        };
        let rows = events.iter().map(|event| {
            let last = ago(event, "lastTimestamp").unwrap_or_default();
            let age = match (event["count"].as_u64(), ago(event, "firstTimestamp")) {
                (Some(count), Some(first)) if count > 1 => format!("{last} (x{count} over {first})"),
                (Some(count), None) if count > 1 => format!("{last} (x{count})"),
                _ => last,
            };
            vec![
                text_at(event, "type"),
                text_at(event, "reason"),
                age,
                text_at(event, "source.component"),
                one_line(&text_at(event, "message")),
            ]
        });
        let rows = rows.collect();
        self.table("Events", &["Type", "Reason", "Age", "From", "Message"], rows);
    }
}

/// A value that is no list or map.
pub(super) fn scalar_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `containerStatuses` -> `Container Statuses`, `podIP` -> `Pod IP`.
pub(super) fn title(field: &str) -> String {
    let mut out = String::new();
    for (at, c) in field.chars().enumerate() {
        if at == 0 {
            out.extend(c.to_uppercase());
        } else {
            if c.is_uppercase() && !out.ends_with(|last: char| last.is_uppercase()) {
                out.push(' ');
            }
            out.push(c);
        }
    }
    out
}
