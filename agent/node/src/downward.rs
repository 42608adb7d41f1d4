//! What a pod is told of itself: Kubernetes' downward API (`pkg/fieldpath`, `pkg/api/v1/resource`). Pure.

use std::collections::BTreeMap;

use hearth_pod::{Addresses, Failure};
use hearth_types::{
    kinds::{Container, Pod, Quantity},
    quantity,
};
use k8s_openapi::api::core::v1::{ObjectFieldSelector, ResourceFieldSelector};

use crate::container::{named, wrong};

/// What the device has: the limit of a container that has none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room {
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
}

/// A pod, as it may know itself.
#[derive(Clone, Copy)]
pub(crate) struct Oneself<'a> {
    pub(crate) pod: &'a Pod,
    /// Where it is reached, once it is.
    pub(crate) addresses: Option<&'a Addresses>,
    pub(crate) room: Room,
}

impl Oneself<'_> {
    /// A field of the pod.
    pub(crate) fn field(&self, selector: &ObjectFieldSelector) -> Result<String, Failure> {
        let path = selector.field_path.as_str();
        let (meta, spec) = (&self.pod.metadata, self.pod.spec.as_ref());
        let text = |value: Option<&String>| value.cloned().unwrap_or_default();
        if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
            let map = match map {
                "metadata.labels" => &meta.labels,
                "metadata.annotations" => &meta.annotations,
                _ => return Err(unknown(path)),
            };
            return Ok(text(map.as_ref().and_then(|map| map.get(key))));
        }
        let addresses = |of: fn(&Addresses) -> &Vec<String>| {
            let missing = || wrong(format!("{path}: the pod has no address yet"));
            self.addresses.map(of).filter(|list| !list.is_empty()).ok_or_else(missing)
        };
        let first = |list: &Vec<String>| text(list.first());
        Ok(match path {
            "metadata.name" => text(meta.name.as_ref()),
            "metadata.namespace" => text(meta.namespace.as_ref()),
            "metadata.uid" => text(meta.uid.as_ref()),
            "metadata.labels" => lines(meta.labels.as_ref()),
            "metadata.annotations" => lines(meta.annotations.as_ref()),
            "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
            "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
            "status.podIP" => first(addresses(|all| &all.pod)?),
            "status.podIPs" => addresses(|all| &all.pod)?.join(","),
            "status.hostIP" => first(addresses(|all| &all.host)?),
            "status.hostIPs" => addresses(|all| &all.host)?.join(","),
            _ => return Err(unknown(path)),
        })
    }

    /// What a container may or wants to use, by default `own`.
    pub(crate) fn resource(
        &self,
        selector: &ResourceFieldSelector,
        own: Option<&Container>,
    ) -> Result<String, Failure> {
        let name = selector.container_name.as_deref().filter(|name| !name.is_empty());
        let container = match name {
            Some(name) => named(self.pod, name).ok_or_else(|| wrong(format!("no container {name}")))?,
            None => own.ok_or_else(|| wrong("resourceFieldRef: containerName is required"))?,
        };
        let resources = container.resources.as_ref();
        let read = |map: Option<&BTreeMap<String, Quantity>>, name: &str| {
            let Some(text) = map.and_then(|map| map.get(name)) else { return Ok(None) };
            let amount = quantity::millis(&text.0);
            let amount = amount.map_err(|error| wrong(format!("resources: {name} {:?} {error}", text.0)))?;
            Ok::<_, Failure>(Some(amount).filter(|amount| *amount > 0))
        };
        let limit = |name: &str| read(resources.and_then(|all| all.limits.as_ref()), name);
        let request = |name: &str| match read(resources.and_then(|all| all.requests.as_ref()), name)? {
            // Who names a limit alone asks for that.
            None => Ok::<_, Failure>(limit(name)?.unwrap_or(0)),
            Some(request) => Ok(request),
        };
        let millis = match selector.resource.as_str() {
            "limits.cpu" => limit("cpu")?.unwrap_or_else(|| self.room.cpu_millis.into()),
            "limits.memory" => limit("memory")?.unwrap_or_else(|| i128::from(self.room.memory_bytes) * 1000),
            "requests.cpu" => request("cpu")?,
            "requests.memory" => request("memory")?,
            other => return Err(wrong(format!("resource {other:?} is not supported by this device"))),
        };
        let divisor = selector.divisor.as_ref().map_or("", |one| one.0.as_str());
        let divisor = if divisor.is_empty() { Ok(0) } else { quantity::millis(divisor) };
        let divisor = divisor.map_err(|error| wrong(format!("resourceFieldRef: divisor {error}")))?;
        let divisor = if divisor <= 0 { 1000 } else { divisor };
        Ok(((millis + divisor - 1) / divisor).to_string())
    }
}

fn unknown(path: &str) -> Failure {
    wrong(format!("field {path:?} is not supported by this device"))
}

/// A line for each, as `fieldpath.FormatMap` has it: sorted, with values as Go quotes them.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

/// Go's `%q`.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "x"},
                "annotations": {"text": "say \"hi\"\\\n\u{1}ä"}},
            "spec": {"nodeName": "nas", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "100m"}}},
                {"name": "free"}]}}))
        .expect("a pod")
    }

    fn with<T>(addresses: Option<&Addresses>, use_it: impl FnOnce(Oneself<'_>) -> T) -> T {
        let room = Room { cpu_millis: 2000, memory_bytes: 1 << 30 };
        use_it(Oneself { pod: &pod(), addresses, room })
    }

    #[test]
    fn fields_are_as_kubernetes_writes_them() {
        let addresses = Addresses { pod: vec!["10.0.0.2".into(), "fd00::2".into()], host: vec!["192.0.2.1".into()] };
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "n"),
            ("metadata.uid", "u"),
            ("metadata.labels", "a=\"x\"\nb=\"2\""),
            ("metadata.annotations", "text=\"say \\\"hi\\\"\\\\\\n\\x01ä\""),
            ("metadata.labels['a']", "x"),
            ("metadata.labels['none']", ""),
            ("spec.nodeName", "nas"),
            ("status.podIP", "10.0.0.2"),
            ("status.podIPs", "10.0.0.2,fd00::2"),
            ("status.hostIP", "192.0.2.1"),
        ] {
            let selector = ObjectFieldSelector { field_path: path.into(), ..ObjectFieldSelector::default() };
            let found = with(Some(&addresses), |one| one.field(&selector));
            assert_eq!(found.as_deref(), Ok(expected), "{path}");
        }
        for path in ["status.podIP", "status.hostIPs", "spec.x"] {
            let selector = ObjectFieldSelector { field_path: path.into(), ..ObjectFieldSelector::default() };
            with(None, |one| one.field(&selector)).expect_err(path);
        }
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        for (selector, expected) in [
            (json!({"resource": "limits.cpu"}), "2"),
            (json!({"resource": "limits.cpu", "divisor": "1m"}), "1500"),
            (json!({"resource": "requests.cpu", "divisor": "0"}), "1"),
            (json!({"resource": "limits.memory", "divisor": "1Mi"}), "64"),
            (json!({"resource": "limits.memory"}), "67108864"),
            (json!({"resource": "limits.memory", "divisor": "1G"}), "1"),
            (json!({"resource": "requests.memory", "divisor": "1Mi"}), "64"),
            (json!({"resource": "limits.cpu", "containerName": "free"}), "2"),
            (json!({"resource": "limits.memory", "containerName": "free", "divisor": "1Mi"}), "1024"),
            (json!({"resource": "requests.memory", "containerName": "free"}), "0"),
        ] {
            let read: ResourceFieldSelector = serde_json::from_value(selector.clone()).expect("a selector");
            let found = with(None, |one| one.resource(&read, named(one.pod, "c")));
            assert_eq!(found.as_deref(), Ok(expected), "{selector}");
        }
        let of = |selector: Value| -> ResourceFieldSelector { serde_json::from_value(selector).expect("a selector") };
        with(None, |one| one.resource(&of(json!({"resource": "limits.cpu"})), None)).expect_err("whose");
        with(None, |one| one.resource(&of(json!({"resource": "limits.cpu", "containerName": "x"})), None))
            .expect_err("no such");
    }
}
