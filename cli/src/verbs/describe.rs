//! `describe`: everything about an object in words, with its events.

use anyhow::Result;
use hearth_types::{
    Object,
    registry::KindInfo,
    selector::text_at,
    time::{Timestamp, human_duration},
};
use serde_json::Value;

use crate::{
    args::Describe,
    context::{Context, Selection, now},
    output::{
        self,
        table::{self, one_line},
    },
    target,
};

/// Annotations that only programs read.
const HIDDEN_ANNOTATIONS: [&str; 1] = [hearth_types::patch::LAST_APPLIED];

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Describe) -> Result<()> {
    let mut first = true;
    for target in target::parse(&args.what)? {
        let objects = if let Some(name) = target.name {
            vec![context.get(target.info, name).await?]
        } else {
            let labels = args.selector.as_deref().unwrap_or_default();
            context.list(target.info, &Selection { all_namespaces: args.all_namespaces, labels, fields: "" }).await?.0
        };
        for object in objects {
            if !first {
                output::line("\n");
            }
            first = false;
            let events = events_of(context, &object).await?;
            output::lines(&describe(target.info, &object.value(), &events, now()));
        }
    }
    Ok(())
}

async fn events_of(context: &Context, object: &Object) -> Result<Vec<Value>> {
    let fields = format!("involvedObject.kind={},involvedObject.name={}", object.kind().kind, object.name());
    // Events of cluster-scoped objects are in `default`, as in Kubernetes.
    let namespace = if object.namespace().is_empty() { "default" } else { object.namespace() };
    let selection = Selection { all_namespaces: false, labels: "", fields: &fields };
    let (events, _) = context.list_in(target::kind("events")?, namespace, &selection).await?;
    let same = |event: &Value| {
        let uid = text_at(event, "involvedObject.uid");
        uid.is_empty() || uid == object.uid().as_str()
    };
    Ok(super::events::sorted(&events).into_iter().filter(same).collect())
}

fn describe(info: &KindInfo, object: &Value, events: &[Value], now: Timestamp) -> Vec<String> {
    let mut page = Page::default();
    page.field("Name", &text_at(object, "metadata.name"));
    if info.is_namespaced() {
        page.field("Namespace", &text_at(object, "metadata.namespace"));
    }
    page.pairs("Labels", &object["metadata"]["labels"], &[]);
    page.pairs("Annotations", &object["metadata"]["annotations"], &HIDDEN_ANNOTATIONS);
    let created = text_at(object, "metadata.creationTimestamp");
    let age = Timestamp::parse(&created).map(|then| human_duration(now.since(then))).unwrap_or_default();
    page.field("Created", &format!("{created} ({age} ago)"));
    if let Some(owner) = object.pointer("/metadata/ownerReferences/0") {
        page.field("Controlled By", &format!("{}/{}", text_at(owner, "kind"), text_at(owner, "name")));
    }
    let deleted = text_at(object, "metadata.deletionTimestamp");
    if !deleted.is_empty() {
        page.field("Status", &format!("Terminating (until {deleted})"));
    }
    match info.kind {
        "ConfigMap" => page.tree("Data", &object["data"]),
        "Secret" => secret(&mut page, object),
        _ => {
            for (heading, value) in object.as_object().into_iter().flatten() {
                if !matches!(heading.as_str(), "apiVersion" | "kind" | "metadata" | "status") {
                    page.tree(&title(heading), value);
                }
            }
            let mut status = object["status"].clone();
            let conditions = status.as_object_mut().and_then(|status| status.remove("conditions"));
            if status.as_object().is_some_and(|status| !status.is_empty()) {
                page.tree("Status", &status);
            }
            page.conditions(conditions.as_ref());
        }
    }
    page.events(events, now);
    page.lines
}

/// Secrets are described without their values.
fn secret(page: &mut Page, object: &Value) {
    use base64::Engine as _;
    page.field("Type", &text_at(object, "type"));
    page.lines.push("Data:".into());
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        let size = base64::engine::general_purpose::STANDARD.decode(text).map_or(0, |bytes| bytes.len());
        page.lines.push(format!("  {key}:  {size} bytes"));
    }
}

/// `containerStatuses` -> `Container Statuses`.
fn title(field: &str) -> String {
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

#[derive(Default)]
struct Page {
    lines: Vec<String>,
}

impl Page {
    fn field(&mut self, name: &str, value: &str) {
        self.lines.push(format!("{:<16}{}", format!("{name}:"), one_line(value)));
    }

    fn pairs(&mut self, name: &str, map: &Value, hidden: &[&str]) {
        let pairs = map.as_object().into_iter().flatten().filter(|(key, _)| !hidden.contains(&key.as_str()));
        let mut texts = pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
        self.field(name, &texts.next().unwrap_or_else(|| "<none>".into()));
        for text in texts {
            self.lines.push(format!("{:<16}{}", "", one_line(&text)));
        }
    }

    fn tree(&mut self, heading: &str, value: &Value) {
        self.lines.push(format!("{heading}:"));
        self.branch(value, 1);
    }

    fn branch(&mut self, value: &Value, depth: usize) {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match value {
                        Value::Object(_) | Value::Array(_) => {
                            self.lines.push(format!("{indent}{}:", title(key)));
                            self.branch(value, depth + 1);
                        }
                        scalar => {
                            self.lines.push(format!("{indent}{}:  {}", title(key), one_line(&scalar_text(scalar))))
                        }
                    }
                }
            }
            Value::Array(items) => {
                for item in items {
                    match item {
                        Value::Object(_) => {
                            // The first line of an item carries the dash, as in YAML.
                            let start = self.lines.len();
                            self.branch(item, depth + 1);
                            if let Some(line) = self.lines.get_mut(start) {
                                line.replace_range(indent.len()..=indent.len(), "-");
                            }
                        }
                        other => self.lines.push(format!("{indent}- {}", one_line(&scalar_text(other)))),
                    }
                }
            }
            scalar => self.lines.push(format!("{indent}{}", one_line(&scalar_text(scalar)))),
        }
    }

    fn conditions(&mut self, conditions: Option<&Value>) {
        let Some(list) = conditions.and_then(Value::as_array) else { return };
        self.lines.push("Conditions:".into());
        let heading = ["Type", "Status", "Reason", "Since", "Message"].map(str::to_owned).to_vec();
        let cell = |condition: &Value, field: &str| one_line(condition[field].as_str().unwrap_or_default());
        let rows = list.iter().map(|one| {
            ["type", "status", "reason", "lastTransitionTime", "message"].map(|field| cell(one, field)).to_vec()
        });
        let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
        self.lines.extend(table::layout(&rows).iter().map(|line| format!("  {}", line.trim_end())));
    }

    fn events(&mut self, events: &[Value], now: Timestamp) {
        if events.is_empty() {
            self.field("Events", "<none>");
            return;
        }
        self.lines.push("Events:".into());
        let heading = ["Type", "Reason", "Age", "From", "Message"].map(str::to_owned).to_vec();
        let rows = events.iter().map(|event| {
            let last = Timestamp::parse(&text_at(event, "lastTimestamp"))
                .map(|then| human_duration(now.since(then)))
                .unwrap_or_default();
            let age = match event["count"].as_u64() {
                Some(count) if count > 1 => format!("{last} (x{count})"),
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
        let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
        self.lines.extend(table::layout(&rows).iter().map(|line| format!("  {}", line.trim_end())));
    }
}

fn scalar_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_told_whole_and_a_secret_keeps_its_values() {
        let info = target::kind("pod").expect("a kind");
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "a", "labels": {"x": "1", "y": "2"}, "creationTimestamp": "2023-11-14T22:13:20Z",
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 devices"}]}});
        let event = json!({"type": "Warning", "reason": "FailedScheduling", "message": "0/1 devices\n", "count": 3,
            "lastTimestamp": "2023-11-14T22:13:20Z", "source": {"component": "placement"}});
        let text = describe(info, &pod, &[event], Timestamp(1_700_000_060_000)).join("\n");
        for part in [
            "Name:           p",
            "x=1",
            "  - Image:  i\n      Name:  c",
            "PodScheduled",
            "60s (x3)",
            "Created:        2023-11-14T22:13:20Z (60s ago)",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("last-applied"));
        let info = target::kind("secret").expect("a kind");
        let secret = json!({"metadata": {"name": "s", "namespace": "a"}, "type": "Opaque", "data": {"password": "aHVudGVyMg=="}});
        let text = describe(info, &secret, &[], Timestamp(0)).join("\n");
        assert!(text.contains("password:  7 bytes") && !text.contains("aHVudGVyMg"), "{text}");
    }
}
