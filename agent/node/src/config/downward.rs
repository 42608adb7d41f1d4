//! What a pod is told of itself (Kubernetes' downward API). Pure.

use hearth_pod::{Addresses, Failure};
use hearth_types::{
    downward::{Field, Resource},
    kinds::{Container, Pod},
    quantity,
};
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, ObjectFieldSelector, ResourceFieldSelector};

use super::wrong;
use crate::{container, facts::Machine};

/// What there is to tell.
#[derive(Clone, Copy)]
pub(crate) struct Myself<'a> {
    pub(crate) pod: &'a Pod,
    /// Where it is reached; not known before it has a network.
    pub(crate) addresses: Option<&'a Addresses>,
    /// Finds out what the device has, which is told where there is no limit. May block for a moment.
    pub(crate) machine: &'a (dyn Fn() -> Machine + Sync),
}

impl Myself<'_> {
    /// The text of a field, for a variable or for a file.
    pub(super) fn field(&self, selector: &ObjectFieldSelector, file: bool) -> Result<String, Failure> {
        let field = Field::parse(&selector.field_path, file).map_err(|error| wrong(error.to_string()))?;
        let meta = &self.pod.metadata;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let spec = |get: fn(&hearth_types::kinds::PodSpec) -> &Option<String>| {
            self.pod.spec.as_ref().map(|spec| text(get(spec))).unwrap_or_default()
        };
        let addresses = |get: fn(&Addresses) -> &Vec<String>| self.addresses.map(get).cloned().unwrap_or_default();
        let first = |all: Vec<String>| all.into_iter().next().unwrap_or_default();
        let one = |map: &Option<std::collections::BTreeMap<String, String>>, key: &str| {
            map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
        };
        Ok(match field {
            Field::Name => text(&meta.name),
            Field::Namespace => text(&meta.namespace),
            Field::Uid => text(&meta.uid),
            Field::Labels => lines(meta.labels.iter().flatten()),
            Field::Annotations => lines(meta.annotations.iter().flatten()),
            Field::Label(key) => one(&meta.labels, &key),
            Field::Annotation(key) => one(&meta.annotations, &key),
            Field::NodeName => spec(|spec| &spec.node_name),
            Field::ServiceAccountName => spec(|spec| &spec.service_account_name),
            Field::HostIp => first(addresses(|all| &all.host)),
            Field::HostIps => addresses(|all| &all.host).join(","),
            Field::PodIp => first(addresses(|all| &all.pod)),
            Field::PodIps => addresses(|all| &all.pod).join(","),
        })
    }

    /// What a container may use, in the units that are asked for, rounded up.
    pub(super) fn resource(
        &self,
        own: Option<&Container>,
        selector: &ResourceFieldSelector,
    ) -> Result<String, Failure> {
        let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
        let container = named.map_or(own, |name| container::lasting(self.pod).find(|one| one.name == name));
        let missing = || wrong(format!("container {:?} not found", named.unwrap_or_default()));
        let resources = container.ok_or_else(missing)?.resources.as_ref();
        let limit = |name: &str| resources.and_then(|all| all.limits.as_ref()).and_then(|all| all.get(name));
        let request = |name: &str| resources.and_then(|all| all.requests.as_ref()).and_then(|all| all.get(name));
        let resource = Resource::parse(&selector.resource).map_err(|error| wrong(error.to_string()))?;
        let Machine { cpu_millis, memory_bytes, storage_bytes } = (self.machine)();
        let (said, else_millis) = match resource {
            Resource::LimitsCpu => (limit("cpu"), i128::from(cpu_millis)),
            Resource::LimitsMemory => (limit("memory"), i128::from(memory_bytes) * 1000),
            Resource::LimitsStorage => (limit("ephemeral-storage"), i128::from(storage_bytes) * 1000),
            Resource::RequestsCpu => (request("cpu"), 0),
            Resource::RequestsMemory => (request("memory"), 0),
            Resource::RequestsStorage => (request("ephemeral-storage"), 0),
        };
        let millis = match said {
            Some(amount) => quantity::millis(&amount.0)
                .map_err(|error| wrong(format!("{}: {:?} {error}", selector.resource, amount.0)))?,
            None => else_millis,
        };
        let divisor = selector.divisor.as_ref().map(|unit| unit.0.as_str()).unwrap_or_default();
        let divisor = resource.divisor(divisor).map_err(|error| wrong(error.to_string()))?;
        Ok((millis + divisor - 1).div_euclid(divisor).to_string())
    }

    /// The content of a file of a volume.
    pub(super) fn file(&self, file: &DownwardAPIVolumeFile) -> Result<String, Failure> {
        match (&file.field_ref, &file.resource_field_ref) {
            (Some(field), _) => self.field(field, true),
            (None, Some(resource)) => self.resource(None, resource),
            (None, None) => Err(wrong(format!("file {:?} names neither a field nor a resource", file.path))),
        }
    }
}

/// A line for each, as Kubernetes writes them (`fieldpath.FormatMap`).
fn lines<'a>(map: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    map.map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join("\n")
}

/// A text in double quotes, as Go's `%q` has it.
fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|one| match one {
        '"' => "\\\"".to_owned(),
        '\\' => "\\\\".to_owned(),
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        one if one.is_ascii_control() => format!("\\x{:02x}", one as u32),
        one => one.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const MACHINE: Machine = Machine { cpu_millis: 4000, memory_bytes: 8 << 30, storage_bytes: 90 << 30 };

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "web", "a": "1"},
                "annotations": {"note": "say \"hi\"\n\u{1}"}},
            "spec": {"nodeName": "nas", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "100Mi"}, "requests": {"cpu": "250m"}}},
                {"name": "free"}]}}))
        .expect("a pod")
    }

    #[test]
    fn fields_are_told_as_kubernetes_tells_them() {
        let (pod, list) = (pod(), |one: &[&str]| one.iter().map(|one| (*one).to_owned()).collect());
        let addresses = Addresses { pod: list(&["10.1.0.2", "fd00::2"]), host: list(&["192.0.2.1"]) };
        let myself = Myself { pod: &pod, addresses: Some(&addresses), machine: &|| MACHINE };
        for (path, file, expected) in [
            ("metadata.name", false, "p"),
            ("metadata.uid", true, "u"),
            ("metadata.labels", true, "a=\"1\"\napp=\"web\""),
            ("metadata.labels['app']", false, "web"),
            ("metadata.labels['none']", false, ""),
            ("metadata.annotations", true, r#"note="say \"hi\"\n\x01""#),
            ("spec.nodeName", false, "nas"),
            ("status.podIP", false, "10.1.0.2"),
            ("status.podIPs", false, "10.1.0.2,fd00::2"),
            ("status.hostIP", false, "192.0.2.1"),
        ] {
            let selector = ObjectFieldSelector { field_path: path.into(), ..ObjectFieldSelector::default() };
            assert_eq!(myself.field(&selector, file).expect("a field"), expected, "{path}");
        }
        let early = Myself { addresses: None, ..myself };
        let ip = ObjectFieldSelector { field_path: "status.podIP".into(), ..ObjectFieldSelector::default() };
        assert_eq!(early.field(&ip, false).expect("a field"), "");
        assert!(myself.field(&ip, true).is_err(), "not in a file");
    }

    #[test]
    fn amounts_are_rounded_up_and_the_devices_where_there_is_no_limit() {
        let pod = pod();
        let myself = Myself { pod: &pod, addresses: None, machine: &|| MACHINE };
        let asked = |container: &str, resource: &str, divisor: &str| {
            let selector: Value = json!({"containerName": container, "resource": resource, "divisor": divisor});
            myself.resource(None, &serde_json::from_value(selector).expect("a selector"))
        };
        for (container, resource, divisor, expected) in [
            ("c", "limits.cpu", "1", "2"),
            ("c", "limits.cpu", "1m", "1500"),
            ("c", "limits.memory", "1Mi", "100"),
            ("c", "limits.memory", "0", "104857600"),
            ("c", "requests.cpu", "1m", "250"),
            ("c", "requests.memory", "1", "0"),
            ("free", "limits.cpu", "1", "4"),
            ("free", "limits.memory", "1Gi", "8"),
            ("free", "requests.cpu", "1m", "0"),
            ("free", "limits.ephemeral-storage", "1Gi", "90"),
            ("c", "requests.ephemeral-storage", "1", "0"),
        ] {
            assert_eq!(asked(container, resource, divisor).expect("an amount"), expected, "{container} {resource}");
        }
        assert!(asked("other", "limits.cpu", "1").expect_err("refused").message.contains("not found"));
        let own = ResourceFieldSelector { resource: "limits.cpu".into(), ..ResourceFieldSelector::default() };
        assert_eq!(myself.resource(container::lasting(&pod).next(), &own).expect("its own"), "2");
    }
}
