//! What each pod takes of what is short.

use std::{collections::HashMap, sync::Arc, time::Instant};

use hearth_pod::{
    Phase,
    pressure::{Candidate, Part, Resource},
};
use hearth_types::{
    kinds::{Container, Pod},
    quantity,
};
use hearth_volume::Taken;

use crate::{
    container,
    files::chain,
    mounts::empty_dirs,
    pod::REST,
    shared::{PodEntry, Shared, blocking, running},
};

/// The namespace of what a region runs for itself.
const SYSTEM: &str = "kube-system";

/// What pods took of the disk when it was walked last.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// When their disk may be walked again, so that no more than a hundredth of a core goes into it.
    again: Option<Instant>,
    pods: HashMap<String, OfPod>,
}

#[derive(Clone, Debug, Default)]
struct OfPod {
    volumes: Taken,
    containers: Vec<(String, Taken)>,
}

/// Those that may go, and those that are still going.
pub(super) async fn candidates(shared: &Arc<Shared>, walked: &mut Walked, resource: Resource) -> Vec<Candidate> {
    let mut pods = shared.pods.all();
    pods.retain(|pod| !is_gone(pod));
    if resource == Resource::Memory {
        return blocking({
            let owner = shared.owner.clone();
            move || pods.iter().map(|pod| candidate(pod, &owner, resource, 0, memory(pod))).collect()
        })
        .await;
    }
    let mut had = std::mem::take(walked);
    if had.again.is_none_or(|again| again <= Instant::now()) {
        had.pods.clear();
    }
    let site = Arc::clone(shared);
    let (found, list) = blocking(move || {
        let begun = Instant::now();
        for pod in &pods {
            had.pods.entry(pod.uid.to_string()).or_insert_with(|| walk(&site, pod));
        }
        let rest = begun.elapsed() * REST;
        had.again = Some(had.again.unwrap_or(begun).max(Instant::now() + rest));
        let amount = |taken: Taken| if resource == Resource::Inodes { taken.inodes } else { taken.bytes };
        let of = |pod: &Arc<PodEntry>| {
            let taken = had.pods.get(pod.uid.as_str()).cloned().unwrap_or_default();
            let containers = taken.containers.into_iter().map(|(name, taken)| (name, amount(taken))).collect();
            candidate(pod, &site.owner, resource, amount(taken.volumes), containers)
        };
        let list = pods.iter().map(of).collect();
        (had, list)
    })
    .await;
    *walked = found;
    list
}

/// Whether nothing is left of a pod but its logs.
pub(super) fn is_gone(pod: &PodEntry) -> bool {
    let snapshot = pod.snapshot.borrow();
    matches!(snapshot.phase, Phase::Succeeded | Phase::Failed) && snapshot.sandbox.is_none()
}

fn candidate(pod: &PodEntry, owner: &str, resource: Resource, shared: u64, used: Vec<(String, u64)>) -> Candidate {
    let snapshot = pod.snapshot.borrow();
    let ended = matches!(snapshot.phase, Phase::Succeeded | Phase::Failed);
    let of = Arc::clone(&snapshot.pod);
    let part = |(name, used): (String, u64)| {
        let request = container::named(&of, &name).map_or(0, |one| request(&one, resource));
        Part { name, used, request }
    };
    let containers: Vec<Part> = used.into_iter().map(part).collect();
    Candidate {
        uid: pod.uid.to_string(),
        guest: *pod.key.namespace != *owner,
        critical: &*pod.key.namespace == SYSTEM,
        // Where something ends it, its status says why from the first moment on.
        ending: ended || snapshot.stopping || snapshot.status.get("reason").is_some(),
        used: containers.iter().fold(shared, |sum, one| sum.saturating_add(one.used)),
        request: request_of(&of, resource),
        containers,
    }
}

/// What a container asked for; nobody asks for inodes.
fn request(container: &Container, resource: Resource) -> u64 {
    let requests = container.resources.as_ref().and_then(|all| all.requests.as_ref());
    requests.and_then(|all| quantity::bytes(&all.get(resource.as_str())?.0).ok()).unwrap_or_default()
}

/// What a pod asked for: the most of its containers that run beside each other (KEP-753).
fn request_of(pod: &Pod, resource: Resource) -> u64 {
    container::most_beside(pod, |one| Some(request(one, resource))).unwrap_or(u64::MAX)
}

/// Bytes of memory of each running container.
fn memory(pod: &PodEntry) -> Vec<(String, u64)> {
    let snapshot = pod.snapshot.borrow().clone();
    let Some(sandbox) = snapshot.sandbox else { return Vec::new() };
    let used = running(&snapshot.status).into_iter().map(|(name, attempt)| {
        let used = sandbox.usage(&name, attempt).working_set_bytes.unwrap_or_default();
        (name, used)
    });
    used.collect()
}

/// Walks what a pod has on the disk. What cannot be measured counts for nothing.
fn walk(shared: &Shared, pod: &PodEntry) -> OfPod {
    let uid = pod.uid.as_str();
    let told = |result: Result<Taken, hearth_volume::VolumeError>| {
        result.unwrap_or_else(|error| {
            tracing::warn!(pod = %pod.key, error = chain(&error), "what a pod takes of the disk cannot be measured");
            Taken::default()
        })
    };
    let mut found = OfPod::default();
    for volume in empty_dirs(&pod.pod()) {
        found.volumes += told(shared.volumes.usage(uid, &volume.name, u64::MAX));
    }
    let status = pod.snapshot.borrow().status.clone();
    for (name, _) in running(&status) {
        let mut taken = Taken::default();
        for directory in pod.places.written_by(&name) {
            taken += told(hearth_volume::taken(&directory, u64::MAX));
        }
        found.containers.push((name, taken));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_asks_for_what_its_containers_do_beside_each_other() {
        let pod = json!({"spec": {
            "initContainers": [{"name": "i", "resources": {"requests": {"memory": "50Mi"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"memory": "20Mi", "ephemeral-storage": "1Gi"}}},
                {"name": "b", "resources": {"requests": {"memory": "10Mi"}}}, {"name": "c"}]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        for (resource, expected) in
            [(Resource::Memory, 50 << 20), (Resource::EphemeralStorage, 1 << 30), (Resource::Inodes, 0)]
        {
            assert_eq!(request_of(&pod, resource), expected, "{resource:?}");
        }
    }
}
