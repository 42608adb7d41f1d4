//! What of a pod's volumes is mounted where in a container. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use hearth_pod::Failure;
use hearth_runtime::{MemoryVolume, Mount, MountKind};
use hearth_types::{
    kinds::{Container, Pod, Volume, VolumeMount},
    names::sub_path_of_volume,
    quantity,
};
use k8s_openapi::api::core::v1::EmptyDirVolumeSource;

use crate::{
    config::{Environment, wrong},
    host_paths::HostPaths,
};

/// The mounts of a container, in the order in which they are made.
pub(crate) fn of(
    container: &Container,
    volumes: &HashMap<String, PathBuf>,
    pod: &Pod,
    env: &Environment,
    host_paths: &HostPaths,
) -> Result<Vec<Mount>, Failure> {
    let declared: BTreeMap<&str, &Volume> = volumes_of(pod).map(|volume| (volume.name.as_str(), volume)).collect();
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let missing = || wrong(format!("there is no volume {:?} in this pod", mount.name));
        let source = volumes.get(&mount.name).ok_or_else(missing)?;
        let volume = declared.get(mount.name.as_str()).ok_or_else(missing)?;
        let host = volume.host_path.as_ref().map(|source| host_paths.part(&source.path)).transpose();
        let host = host.map_err(|error| wrong(error.to_string()))?;
        let fixed = is_fixed(volume) || host.as_ref().is_some_and(|part| part.read_only);
        let below = host.and_then(|part| part.rest);
        let kind = match (memory(volume), sub_path(mount, env)?) {
            (Some(_), path) => MountKind::Memory { volume: volume.name.clone(), path },
            // The kubelet makes a directory there too, which stands in the way of the file that was meant.
            (None, Some(path)) => {
                let path = below.map_or_else(|| path.clone(), |below| below.join(&path));
                MountKind::SubPath { path, create: !fixed }
            }
            (None, None) => below.map_or(MountKind::IdmappedBind, |path| MountKind::SubPath { path, create: false }),
        };
        mounts.push(Mount {
            source: source.clone(),
            target: Path::new(&mount.mount_path).to_owned(),
            read_only: fixed || mount.read_only.unwrap_or(false),
            kind,
        });
    }
    // An outer directory first, so that it does not hide an inner one.
    mounts.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(mounts)
}

fn volumes_of(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
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

/// Of a volume that is memory, what is said of it.
pub(crate) fn memory(volume: &Volume) -> Option<&EmptyDirVolumeSource> {
    volume.empty_dir.as_ref().filter(|source| source.medium.as_deref() == Some("Memory"))
}

/// The empty directories of a pod that are on the disk.
pub(crate) fn empty_dirs(pod: &Pod) -> impl Iterator<Item = &Volume> {
    volumes_of(pod).filter(|volume| volume.empty_dir.is_some() && memory(volume).is_none())
}

/// The volumes of a pod that are memory: each has its own limit, and at most the pod's (`most`), as in Kubernetes.
pub(crate) fn memory_volumes(pod: &Pod, most: Option<u64>, group: Option<u32>) -> Vec<MemoryVolume> {
    let named = |volume: &Volume| MemoryVolume {
        name: volume.name.clone(),
        size_bytes: size_limit(volume).map(|(bytes, _)| bytes).into_iter().chain(most).min(),
        group,
    };
    volumes_of(pod).filter(|volume| memory(volume).is_some()).map(named).collect()
}

/// How large an empty directory may be, in bytes and as it is written. Nothing is no limit, as in Kubernetes.
pub(crate) fn size_limit(volume: &Volume) -> Option<(u64, &str)> {
    let text = volume.empty_dir.as_ref()?.size_limit.as_ref()?.0.as_str();
    quantity::bytes(text).ok().filter(|bytes| *bytes > 0).map(|bytes| (bytes, text))
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
    sub_path_of_volume(&path).map_err(refused)?;
    Ok(Some(path.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn built(mounts: &Value) -> Result<Vec<Mount>, Failure> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "containers": [{"name": "c", "volumeMounts": mounts}],
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "cache", "emptyDir": {"medium": "Memory"}},
                {"name": "joined", "projected": {"sources": []}}, {"name": "conf", "configMap": {"name": "c"}},
                {"name": "old", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}},
                {"name": "films", "hostPath": {"path": "/srv/films"}}, {"name": "all", "hostPath": {"path": "/srv"}},
                {"name": "none", "hostPath": {"path": "/etc"}}]}}))
        .expect("a pod");
        let names = ["data", "cache", "joined", "conf", "old", "films", "all", "none"];
        let known = names.map(|name| (name.to_owned(), PathBuf::from("/v").join(name)));
        let given = ["/srv/films", "/srv:ro"].map(|path| path.parse().expect("a path")).to_vec();
        let given = HostPaths::open(given, Path::new("/d"), PathBuf::new()).expect("may be given");
        let env = Environment { list: vec![("POD".into(), "web-0".into()), ("UP".into(), "../x".into())] };
        of(&pod.spec.as_ref().expect("a spec").containers[0], &known.into(), &pod, &env, &given)
    }

    #[test]
    fn a_part_of_a_volume_is_mounted_and_made_where_it_may_be_written() {
        let sub = |path: &str, create| MountKind::SubPath { path: path.into(), create };
        let memory = |path: Option<&str>| MountKind::Memory { volume: "cache".into(), path: path.map(Into::into) };
        for (mount, kind, read_only) in [
            (json!({"name": "cache"}), memory(None), false),
            (json!({"name": "cache", "subPath": "a"}), memory(Some("a")), false),
            (json!({"name": "joined", "subPath": "a"}), sub("a", false), true),
            (json!({"name": "data"}), MountKind::IdmappedBind, false),
            (json!({"name": "data", "subPath": ""}), MountKind::IdmappedBind, false),
            (json!({"name": "data", "subPath": "a/b"}), sub("a/b", true), false),
            (json!({"name": "data", "subPath": "a", "readOnly": true}), sub("a", true), true),
            (json!({"name": "conf", "subPath": "app.conf"}), sub("app.conf", false), true),
            (json!({"name": "old", "subPath": "a"}), sub("a", false), true),
            (json!({"name": "films"}), MountKind::IdmappedBind, false),
            (json!({"name": "films", "subPath": "new"}), sub("new", true), false),
            (json!({"name": "all"}), MountKind::IdmappedBind, true),
            (json!({"name": "all", "subPath": "a"}), sub("a", false), true),
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
            ("/$(POD)", "subPath \"/web-0\" of volume \"data\" must be a relative path"),
        ] {
            let failed = built(&json!([{"name": "data", "mountPath": "/m", "subPathExpr": expression}]));
            let failed = failed.expect_err("refused");
            assert_eq!((failed.reason.as_str(), failed.message.as_str()), ("CreateContainerConfigError", why));
        }
    }

    #[test]
    fn memory_has_its_own_limit_and_at_most_the_pods() {
        for (most, size, expected) in [
            (None, Value::Null, None),
            (None, json!("16Mi"), Some(16 << 20)),
            (Some(64 << 20), Value::Null, Some(64 << 20)),
            (Some(64 << 20), json!("16Mi"), Some(16 << 20)),
            (Some(64 << 20), json!("1Gi"), Some(64 << 20)),
            (Some(64 << 20), json!("0"), Some(64 << 20)),
        ] {
            let pod: Pod =
                serde_json::from_value(json!({"spec": {"containers": [], "volumes": [{"name": "disk", "emptyDir": {}},
                {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": size}}]}}))
                .expect("a pod");
            let expected = MemoryVolume { name: "m".into(), size_bytes: expected, group: Some(7) };
            assert_eq!(memory_volumes(&pod, most, Some(7)), [expected]);
        }
    }
}
