//! What of its namespace a pod uses. Pure.

use std::collections::HashSet;

use hearth_types::{GroupKind, ObjectKey, kinds::Pod};

use crate::container;

/// Whether a pod mounts a claim.
pub(crate) fn uses_claim(pod: &Pod, claim: &str) -> bool {
    claims_of(pod).any(|one| one == claim)
}

/// The names of the claims that a pod mounts.
pub(crate) fn claims_of(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

/// Whether a pod uses one of these ConfigMaps, Secrets or claims.
pub(crate) fn uses_any(pod: &Pod, namespace: &str, keys: &HashSet<ObjectKey>) -> bool {
    if keys.is_empty() {
        return false;
    }
    let has = |kind: GroupKind, name: &str| keys.contains(&ObjectKey::new(kind, namespace, name));
    let config = |name: &str| has(GroupKind::CONFIG_MAP, name);
    let secret = |name: &str| has(GroupKind::SECRET, name);
    let Some(spec) = &pod.spec else { return false };
    let volumes = spec.volumes.iter().flatten().any(|volume| {
        volume.config_map.as_ref().is_some_and(|one| config(&one.name))
            || volume.secret.as_ref().and_then(|one| one.secret_name.as_deref()).is_some_and(secret)
            || volume.projected.iter().flat_map(|one| one.sources.iter().flatten()).any(|source| {
                source.config_map.as_ref().is_some_and(|one| config(&one.name))
                    || source.secret.as_ref().is_some_and(|one| secret(&one.name))
            })
    });
    let pulls = spec.image_pull_secrets.iter().flatten().any(|one| secret(&one.name));
    let claims = claims_of(pod).any(|claim| has(GroupKind::PERSISTENT_VOLUME_CLAIM, claim));
    let environment = container::all(pod).any(|container| {
        let from = container.env_from.iter().flatten().any(|from| {
            from.config_map_ref.as_ref().is_some_and(|one| config(&one.name))
                || from.secret_ref.as_ref().is_some_and(|one| secret(&one.name))
        });
        let mut env = container.env.iter().flatten().filter_map(|env| env.value_from.as_ref());
        from || env.any(|from| {
            from.config_map_key_ref.as_ref().is_some_and(|one| config(&one.name))
                || from.secret_key_ref.as_ref().is_some_and(|one| secret(&one.name))
        })
    });
    volumes || pulls || claims || environment
}

/// Whether a pod has files in which it is told of itself, which change with its labels and annotations.
pub(crate) fn tells_itself(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| {
        let sources = volume.projected.iter().flat_map(|all| all.sources.iter().flatten());
        volume.downward_api.is_some() || sources.into_iter().any(|one| one.downward_api.is_some())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_hears_of_what_it_uses_alone() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "imagePullSecrets": [{"name": "login"}],
            "volumes": [{"name": "a", "configMap": {"name": "files"}},
                {"name": "p", "projected": {"sources": [{"secret": {"name": "joined"}}]}},
                {"name": "d", "persistentVolumeClaim": {"claimName": "data"}}],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "first"}}]}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "from"}}],
                "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "key", "key": "k"}}}]}],
            "ephemeralContainers": [{"name": "e", "envFrom": [{"configMapRef": {"name": "debug"}}]}],
        }}))
        .expect("a pod");
        let uses = |kind: GroupKind, namespace: &str, name: &str| {
            uses_any(&pod, "n", &HashSet::from([ObjectKey::new(kind, namespace, name)]))
        };
        assert!(uses(GroupKind::CONFIG_MAP, "n", "files"));
        assert!(uses(GroupKind::CONFIG_MAP, "n", "key") && uses(GroupKind::CONFIG_MAP, "n", "first"));
        assert!(uses(GroupKind::SECRET, "n", "joined") && !uses(GroupKind::CONFIG_MAP, "n", "joined"));
        assert!(uses(GroupKind::SECRET, "n", "from") && uses(GroupKind::SECRET, "n", "login"));
        assert!(uses(GroupKind::PERSISTENT_VOLUME_CLAIM, "n", "data"));
        assert!(uses(GroupKind::CONFIG_MAP, "n", "debug"));
        assert!(!uses(GroupKind::SECRET, "n", "files"));
        assert!(!uses(GroupKind::CONFIG_MAP, "other", "files"));
        assert!(uses_claim(&pod, "data") && !uses_claim(&pod, "other"));
    }
}
