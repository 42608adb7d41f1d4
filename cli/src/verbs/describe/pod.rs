//! Pods, and the templates of pods.

use hearth_types::{
    registry::{KindInfo, SchemaView},
    selector::text_at,
};
use serde_json::Value;

use super::{page::Page, page::scalar_text, without};

pub(super) fn pod(page: &mut Page, info: &KindInfo, object: &Value) {
    let (spec_value, status) = (&object["spec"], &object["status"]);
    let node = text_at(spec_value, "nodeName");
    page.field("Node", if node.is_empty() { "<none>" } else { &node });
    page.some("Start Time", &text_at(status, "startTime"));
    page.field("Status", &text_at(status, "phase"));
    page.some("Reason", &text_at(status, "reason"));
    page.some("Message", &text_at(status, "message"));
    let ips: Vec<_> = list(&status["podIPs"]).map(|one| text_at(one, "ip")).collect();
    page.field("IPs", &if ips.is_empty() { text_at(status, "podIP") } else { ips.join(", ") });
    let view = info.schema().field("spec");
    spec(page, view, spec_value, status);
    page.conditions(&status["conditions"]);
}

/// The spec of a pod or template, with the state of its containers where there is one.
pub(super) fn spec(page: &mut Page, view: Option<SchemaView>, spec: &Value, status: &Value) {
    for (heading, field, statuses) in [
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
        ("Ephemeral Containers", "ephemeralContainers", "ephemeralContainerStatuses"),
    ] {
        if spec[field].is_null() {
            continue;
        }
        page.line(&format!("{heading}:"));
        let container_view = view.and_then(|view| view.field(field)).and_then(SchemaView::item);
        for one in list(&spec[field]) {
            let name = text_at(one, "name");
            let state = list(&status[statuses]).find(|state| state["name"] == name.as_str());
            page.indented(1, |page| {
                page.line(&format!("{name}:"));
                page.indented(1, |page| container(page, container_view, one, state));
            });
        }
    }
    volumes(page, view, spec);
    let shown = ["containers", "initContainers", "ephemeralContainers", "volumes", "nodeName", "tolerations"];
    let rest = without(spec, &shown);
    for (key, value) in rest.as_object().into_iter().flatten() {
        page.tree(&super::page::title(key), value, view.and_then(|view| view.field(key)));
    }
    let tolerations: Vec<_> = list(&spec["tolerations"]).map(toleration).collect();
    if !tolerations.is_empty() {
        page.field("Tolerations", &tolerations.join("; "));
    }
}

fn container(page: &mut Page, view: Option<SchemaView>, container: &Value, state: Option<&Value>) {
    if let Some(state) = state {
        page.some("Container ID", &text_at(state, "containerID"));
    }
    page.field("Image", &text_at(container, "image"));
    if let Some(state) = state {
        page.some("Image ID", &text_at(state, "imageID"));
    }
    let ports: Vec<_> = list(&container["ports"])
        .map(|port| {
            let protocol = text_at(port, "protocol");
            let name = text_at(port, "name");
            let protocol = if protocol.is_empty() { "TCP" } else { &protocol };
            let name = if name.is_empty() { String::new() } else { format!(" ({name})") };
            format!("{}/{protocol}{name}", text_at(port, "containerPort"))
        })
        .collect();
    page.some("Ports", &ports.join(", "));
    page.words("Command", &container["command"]);
    page.words("Args", &container["args"]);
    if let Some(status) = state {
        states(page, status);
    }
    for (heading, field) in [("Limits", "limits"), ("Requests", "requests")] {
        if let Some(amounts) = container["resources"][field].as_object().filter(|amounts| !amounts.is_empty()) {
            page.line(&format!("{heading}:"));
            page.indented(1, |page| {
                for (resource, amount) in amounts {
                    page.field(resource, &scalar_text(amount));
                }
            });
        }
    }
    environment(page, container);
    let mounts: Vec<_> = list(&container["volumeMounts"]).collect();
    if mounts.is_empty() {
        page.field("Mounts", "<none>");
    } else {
        page.line("Mounts:");
        for mount in mounts {
            let access = if mount["readOnly"] == true { "ro" } else { "rw" };
            let sub = text_at(mount, "subPath");
            let sub = if sub.is_empty() { String::new() } else { format!(",path={sub:?}") };
            page.indented(1, |page| {
                page.line(&format!("{} from {} ({access}{sub})", text_at(mount, "mountPath"), text_at(mount, "name")))
            });
        }
    }
    let shown = ["name", "image", "ports", "command", "args", "env", "volumeMounts", "resources"];
    let rest = without(container, &shown);
    for (key, value) in rest.as_object().into_iter().flatten() {
        page.tree(&super::page::title(key), value, view.and_then(|view| view.field(key)));
    }
}

fn states(page: &mut Page, status: &Value) {
    state(page, "State", &status["state"]);
    if status["lastState"].as_object().is_some_and(|last| !last.is_empty()) {
        state(page, "Last State", &status["lastState"]);
    }
    page.field("Ready", if status["ready"] == true { "True" } else { "False" });
    page.field("Restart Count", &status["restartCount"].as_u64().unwrap_or_default().to_string());
}

fn state(page: &mut Page, heading: &str, state: &Value) {
    let details = |page: &mut Page, of: &Value| {
        page.indented(1, |page| {
            page.some("Reason", &text_at(of, "reason"));
            page.some("Message", &text_at(of, "message"));
            page.some("Exit Code", &text_at(of, "exitCode"));
            page.some("Signal", &text_at(of, "signal"));
            page.some("Started", &text_at(of, "startedAt"));
            page.some("Finished", &text_at(of, "finishedAt"));
        });
    };
    for (field, word) in [("running", "Running"), ("waiting", "Waiting"), ("terminated", "Terminated")] {
        if let Some(of) = state.get(field).filter(|of| !of.is_null()) {
            page.field(heading, word);
            details(page, of);
            return;
        }
    }
    page.field(heading, "Waiting");
}

fn environment(page: &mut Page, container: &Value) {
    let variables: Vec<_> = list(&container["env"]).collect();
    if variables.is_empty() {
        page.field("Environment", "<none>");
        return;
    }
    page.line("Environment:");
    page.indented(1, |page| {
        for variable in variables {
            let from = &variable["valueFrom"];
            let of_key = |field: &str, what: &str| {
                let reference = &from[field];
                let optional = reference["optional"] == true;
                format!(
                    "<set to the key '{}' in {what} '{}'>  Optional: {optional}",
                    text_at(reference, "key"),
                    text_at(reference, "name")
                )
            };
            let value = if from["secretKeyRef"].is_object() {
                of_key("secretKeyRef", "secret")
            } else if from["configMapKeyRef"].is_object() {
                of_key("configMapKeyRef", "config map")
            } else if from["fieldRef"].is_object() {
                format!("({})", text_at(from, "fieldRef.fieldPath"))
            } else if from.is_object() {
                from.to_string()
            } else {
                text_at(variable, "value")
            };
            page.field(&text_at(variable, "name"), &value);
        }
    });
}

fn volumes(page: &mut Page, view: Option<SchemaView>, spec: &Value) {
    if list(&spec["volumes"]).next().is_none() {
        page.field("Volumes", "<none>");
        return;
    }
    let view = view.and_then(|view| view.field("volumes")).and_then(SchemaView::item);
    page.line("Volumes:");
    page.indented(1, |page| {
        for volume in list(&spec["volumes"]) {
            page.line(&format!("{}:", text_at(volume, "name")));
            let source = without(volume, &["name"]);
            page.indented(1, |page| {
                for (kind, value) in source.as_object().into_iter().flatten() {
                    page.field("Type", &super::page::title(kind));
                    page.rest(value, view.and_then(|view| view.field(kind)), 0);
                }
            });
        }
    });
}

fn toleration(toleration: &Value) -> String {
    let text = |field: &str| text_at(toleration, field);
    let value = if text("value").is_empty() { String::new() } else { format!("={}", text("value")) };
    let effect = if text("effect").is_empty() { String::new() } else { format!(":{}", text("effect")) };
    let operator = if text("operator") == "Exists" { " op=Exists" } else { "" };
    format!("{}{value}{effect}{operator}", text("key"))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
