//! What a Route or a Service leads to: pods by their labels, and a port of theirs by its name. Pure.

use std::collections::BTreeMap;

use hearth_types::kinds::Pod;

/// Whether a pod has these labels. A selector that selects everything is none.
pub(crate) fn selects(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// The port of this name, and of this protocol if one is asked for, of the containers that run while the app does: sidecars, too.
pub(crate) fn named_port(pod: &Pod, name: &str, protocol: Option<&str>) -> Option<u16> {
    let sidecars = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let containers = sidecars.chain(pod.spec.iter().flat_map(|spec| &spec.containers));
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let found = ports.find(|one| {
        one.name.as_deref() == Some(name)
            && protocol.is_none_or(|protocol| one.protocol.as_deref().unwrap_or("TCP") == protocol)
    });
    found.and_then(|one| u16::try_from(one.container_port).ok())
}
