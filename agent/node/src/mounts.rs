//! What of a pod's volumes is mounted where in a container. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use hearth_pod::Failure;
use hearth_runtime::{MemoryVolume, Mount, MountKind};
use hearth_types::{
    kinds::{Container, Pod, Volume, VolumeMount},
    quantity,
};

use crate::{
    config::Environment,
    container::{fs_group, pod_limits, wrong},
};

/// The mounts of a container, in the order in which they are made.
pub(crate) fn of(
    container: &Container,
    volumes: &HashMap<String, PathBuf>,
    pod: &Pod,
    env: &Environment,
) -> Result<Vec<Mount>, Failure> {
    let declared: BTreeMap<&str, &Volume> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
        .map(|volume| (volume.name.as_str(), volume))
        .collect();
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let missing = || wrong(format!("there is no volume {:?} in this pod", mount.name));
        let volume = declared.get(mount.name.as_str()).ok_or_else(missing)?;
        let fixed = is_fixed(volume);
        let (source, kind) = match (is_in_memory(volume), sub_path(mount, env)?) {
            (true, path) => (PathBuf::new(), MountKind::Memory { volume: mount.name.clone(), path }),
            (false, path) => {
                let kind = match path {
                    // The kubelet makes a directory there too, which stands in the way of the file that was meant.
                    Some(path) => MountKind::SubPath { path, create: !fixed },
                    None => MountKind::IdmappedBind,
                };
                (volumes.get(&mount.name).ok_or_else(missing)?.clone(), kind)
            }
        };
        mounts.push(Mount {
            source,
            target: Path::new(&mount.mount_path).to_owned(),
            read_only: fixed || mount.read_only.unwrap_or(false),
            kind,
        });
    }
    // An outer directory first, so that it does not hide an inner one.
    mounts.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(mounts)
}

/// Whether a volume is an empty directory in memory.
pub(crate) fn is_in_memory(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|one| one.medium.as_deref() == Some("Memory"))
}

/// The volumes of a pod in memory. Each is as large as the least of its own limit and the pod's memory, as in Kubernetes; with neither,
/// as large as the kernel has it, which is half of the machine's memory.
pub(crate) fn in_memory(pod: &Pod) -> Vec<MemoryVolume> {
    let group = fs_group(pod);
    let most = pod_limits(pod).memory_bytes;
    let of = |volume: &Volume| {
        let limit = size_limit(volume).map(|(bytes, _)| bytes);
        MemoryVolume { name: volume.name.clone(), size_bytes: limit.into_iter().chain(most).min(), group }
    };
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|volume| is_in_memory(volume)).map(of).collect()
}

/// How large an empty directory may be, in bytes and as it is written.
pub(crate) fn size_limit(volume: &Volume) -> Option<(u64, &str)> {
    let text = volume.empty_dir.as_ref()?.size_limit.as_ref()?.0.as_str();
    // Nothing is no limit, as in Kubernetes.
    quantity::bytes(text).ok().filter(|bytes| *bytes > 0).map(|bytes| (bytes, text))
}

/// Whether no container may write to a volume.
fn is_fixed(volume: &Volume) -> bool {
    let claim = volume.persistent_volume_claim.as_ref();
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || claim.is_some_and(|claim| claim.read_only == Some(true))
}

/// Where in its volume the mount begins, checked again where variables went into it.
fn sub_path(mount: &VolumeMount, env: &Environment) -> Result<Option<PathBuf>, Failure> {
    let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let path = match (said(&mount.sub_path), said(&mount.sub_path_expr)) {
        (Some(path), _) => path,
        (None, None) => return Ok(None),
        (None, Some(expression)) => {
            let missing = |name| wrong(format!("subPathExpr {expression:?}: missing value for {name:?}"));
            env.expand_all(&expression).map_err(missing)?
        }
    };
    let refused = |why: &str| wrong(format!("subPath {path:?} of volume {:?} {why}", mount.name));
    if path.is_empty() {
        return Ok(None);
    }
    if path.starts_with('/') {
        return Err(refused("must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") || path.contains('\0') {
        return Err(refused("must not contain '..'"));
    }
    Ok(Some(path.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn built(mounts: &Value) -> Result<Vec<Mount>, Failure> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "containers": [{"name": "c", "volumeMounts": mounts}],
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "c"}},
                {"name": "old", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}},
                {"name": "self", "downwardAPI": {}}, {"name": "all", "projected": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory"}}]}}))
        .expect("a pod");
        let known =
            ["data", "conf", "old", "self", "all"].map(|name| (name.to_owned(), PathBuf::from("/v").join(name)));
        let env = Environment { list: vec![("POD".into(), "web-0".into()), ("UP".into(), "../x".into())] };
        of(&pod.spec.as_ref().expect("a spec").containers[0], &known.into(), &pod, &env)
    }

    #[test]
    fn a_part_of_a_volume_is_mounted_and_made_where_it_may_be_written() {
        let sub = |path: &str, create| MountKind::SubPath { path: path.into(), create };
        for (mount, kind, read_only) in [
            (json!({"name": "data"}), MountKind::IdmappedBind, false),
            (json!({"name": "data", "subPath": ""}), MountKind::IdmappedBind, false),
            (json!({"name": "data", "subPath": "a/b"}), sub("a/b", true), false),
            (json!({"name": "data", "subPath": "a", "readOnly": true}), sub("a", true), true),
            (json!({"name": "conf", "subPath": "app.conf"}), sub("app.conf", false), true),
            (json!({"name": "old", "subPath": "a"}), sub("a", false), true),
            (json!({"name": "self"}), MountKind::IdmappedBind, true),
            (json!({"name": "all", "subPath": "x"}), sub("x", false), true),
            (json!({"name": "memory"}), MountKind::Memory { volume: "memory".into(), path: None }, false),
            (
                json!({"name": "memory", "subPath": "a", "readOnly": true}),
                MountKind::Memory { volume: "memory".into(), path: Some("a".into()) },
                true,
            ),
            (json!({"name": "data", "subPathExpr": "logs/$(POD)"}), sub("logs/web-0", true), false),
            (json!({"name": "data", "subPathExpr": "$$(POD)"}), sub("$(POD)", true), false),
        ] {
            let mut mount = mount;
            mount["mountPath"] = json!("/m");
            let found = built(&json!([mount])).expect("mounts");
            assert_eq!((&found[0].kind, found[0].read_only), (&kind, read_only), "{mount}");
        }
    }

    #[test]
    fn variables_lead_nowhere_else() {
        for (expression, why) in [
            ("$(NONE)", "subPathExpr \"$(NONE)\": missing value for \"NONE\""),
            ("$(UP)", "subPath \"../x\" of volume \"data\" must not contain '..'"),
            ("/$(POD)", "subPath \"/web-0\" of volume \"data\" must not be an absolute path"),
        ] {
            let failed = built(&json!([{"name": "data", "mountPath": "/m", "subPathExpr": expression}]));
            let failed = failed.expect_err("refused");
            assert_eq!((failed.reason.as_str(), failed.message.as_str()), ("CreateContainerConfigError", why));
        }
    }

    #[test]
    fn a_volume_in_memory_is_as_large_as_its_limit_and_the_pods() {
        for (limit, memory, expected) in [
            (None, None, None),
            (Some("8Mi"), None, Some(8 << 20)),
            (None, Some("64Mi"), Some(64 << 20)),
            (Some("8Mi"), Some("64Mi"), Some(8 << 20)),
            (Some("1Gi"), Some("64Mi"), Some(64 << 20)),
            (Some("0"), Some("64Mi"), Some(64 << 20)),
        ] {
            let mut pod = json!({"spec": {"securityContext": {"fsGroup": 7}, "containers": [{"name": "c"}], "volumes": [
                {"name": "disk", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]}});
            if let Some(limit) = limit {
                pod["spec"]["volumes"][1]["emptyDir"]["sizeLimit"] = json!(limit);
            }
            if let Some(memory) = memory {
                pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": memory}});
            }
            let found = in_memory(&serde_json::from_value(pod).expect("a pod"));
            let expected = MemoryVolume { name: "m".into(), size_bytes: expected, group: Some(7) };
            assert_eq!(found, [expected], "{limit:?} {memory:?}");
        }
    }
}
