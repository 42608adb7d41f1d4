//! The volumes of pods, and where containers mount them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Report, downward, each,
    pod::{one_of, set},
    text,
};
use crate::{names, quantity};

/// The longest path that Linux takes, with its end (`PATH_MAX`).
const MAX_PATH: usize = 4095;
const SOURCES: &[&str] = &["emptyDir", "configMap", "secret", "downwardAPI", "projected", "persistentVolumeClaim"];
const PROJECTED: &[&str] = &["configMap", "secret", "downwardAPI"];

/// Validates the volumes of a pod; their names.
pub(super) fn volumes<'a>(spec: &'a Value, path: &str, report: &mut Report) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    for (index, volume) in spec.get("volumes").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let at = format!("{path}.volumes[{index}]");
        let name = text(volume, "name");
        report.name(&format!("{at}.name"), name, names::dns_label);
        if !seen.insert(name) {
            report.wrong(format!("{at}.name"), format!("{name:?} is there twice"));
        }
        let sources: Vec<&str> = volume
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.as_str())
            .filter(|key| *key != "name")
            .collect();
        match sources.as_slice() {
            [one] if SOURCES.contains(one) => {
                source(one, &volume[*one], &format!("{at}.{one}"), report);
            }
            [one] => {
                report.wrong(format!("{at}.{one}"), format!("not supported; a volume is one of {}", SOURCES.join(", ")))
            }
            _ => report.wrong(at, format!("must have exactly one of {}", SOURCES.join(", "))),
        }
    }
    seen
}

fn source(kind: &str, source: &Value, at: &str, report: &mut Report) {
    match kind {
        "persistentVolumeClaim" => {
            report.name(&format!("{at}.claimName"), text(source, "claimName"), names::dns_subdomain)
        }
        "configMap" => report.name(&format!("{at}.name"), text(source, "name"), names::dns_subdomain),
        "secret" => report.name(&format!("{at}.secretName"), text(source, "secretName"), names::dns_subdomain),
        "downwardAPI" => downward::files(source, at, report),
        "projected" => return projected(source, at, report),
        _ => empty_dir(source, at, report),
    }
    items(source, at, report);
}

/// Validates an empty directory.
pub(super) fn empty_dir(source: &Value, at: &str, report: &mut Report) {
    one_of(source, "medium", &["Memory"], at, report);
    let limit = source.get("sizeLimit").and_then(Value::as_str).filter(|text| !text.is_empty());
    if limit.is_some_and(|limit| quantity::millis(limit).is_ok_and(|millis| millis < 0)) {
        report.wrong(format!("{at}.sizeLimit"), "must not be negative");
    }
}

/// Validates a volume of several sources.
fn projected(volume: &Value, at: &str, report: &mut Report) {
    mode(volume, "defaultMode", at, report);
    let mut seen = BTreeSet::new();
    for (path, one) in each(volume, "sources", at) {
        let kinds: Vec<&str> = one.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
        let [kind] = kinds.as_slice() else {
            report.wrong(path, format!("must have exactly one of {}", PROJECTED.join(", ")));
            continue;
        };
        let (at, source) = (format!("{path}.{kind}"), &one[*kind]);
        match *kind {
            "configMap" | "secret" => {
                report.name(&format!("{at}.name"), text(source, "name"), names::dns_subdomain);
            }
            "downwardAPI" => downward::files(source, &at, report),
            "serviceAccountToken" => {
                report.wrong(at, "not supported: there are no service accounts");
                continue;
            }
            _ => {
                report.wrong(at, format!("not supported; a source is one of {}", PROJECTED.join(", ")));
                continue;
            }
        }
        items(source, &at, report);
        for (path, item) in each(source, "items", &at) {
            if !seen.insert(text(item, "path").to_owned()) {
                report.wrong(format!("{path}.path"), "conflicting duplicate paths");
            }
        }
    }
}

/// Validates which files of a source are where in a volume, and their modes.
fn items(source: &Value, at: &str, report: &mut Report) {
    mode(source, "defaultMode", at, report);
    for (path, item) in each(source, "items", at) {
        mode(item, "mode", &path, report);
        let file = text(item, "path");
        if file.is_empty() || file.starts_with('/') || file.split('/').any(|part| part == ".." || part.is_empty()) {
            report.wrong(format!("{path}.path"), "must be a relative path without '..'");
        }
    }
}

fn mode(owner: &Value, field: &str, at: &str, report: &mut Report) {
    let mode = owner.get(field).and_then(Value::as_i64);
    if mode.is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        report.wrong(format!("{at}.{field}"), "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// Validates where a container mounts the volumes of its pod.
pub(super) fn mounts(container: &Value, at: &str, volumes: &BTreeSet<&str>, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for (path, mount) in each(container, "volumeMounts", at) {
        let name = text(mount, "name");
        if !volumes.contains(name) {
            report.wrong(format!("{path}.name"), format!("there is no volume {name:?} in this pod"));
        }
        let target = text(mount, "mountPath");
        if let Err(why) = mount_path(target) {
            report.wrong(format!("{path}.mountPath"), why);
        }
        if !seen.insert(target.trim_end_matches('/')) {
            report.wrong(format!("{path}.mountPath"), "mounted twice");
        }
        for field in ["subPath", "subPathExpr"].into_iter().filter(|field| set(mount, field)) {
            if let Err(why) = local_path(text(mount, field)) {
                report.wrong(format!("{path}.{field}"), why);
            }
        }
        if set(mount, "subPath") && set(mount, "subPathExpr") {
            report.wrong(format!("{path}.subPathExpr"), "subPathExpr and subPath are mutually exclusive");
        }
        for field in ["mountPropagation", "recursiveReadOnly"] {
            if set(mount, field) {
                report.wrong(format!("{path}.{field}"), "not supported by this version of Hearth");
            }
        }
    }
}

fn mount_path(path: &str) -> Result<(), &'static str> {
    const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];
    if !path.starts_with('/') || path.contains('\0') || path.len() > MAX_PATH {
        return Err("must be an absolute path");
    }
    if path.split('/').any(|part| part == "..") {
        return Err("must not contain '..'");
    }
    let clean = path.trim_end_matches('/');
    if clean.is_empty() {
        return Err("must not be the root directory");
    }
    if RESERVED.iter().any(|reserved| clean == *reserved || clean.starts_with(&format!("{reserved}/"))) {
        return Err("must not be in /proc, /sys or /dev");
    }
    Ok(())
}

/// A path within a volume (Kubernetes' `validateLocalDescendingPath`).
fn local_path(path: &str) -> Result<(), &'static str> {
    if path.starts_with('/') {
        return Err("must be a relative path");
    }
    if path.split('/').any(|part| part == "..") {
        return Err("must not contain '..'");
    }
    if path.contains('\0') || path.len() > MAX_PATH { Err("must be a path of at most 4095 bytes") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(volumes: &Value, mounts: &Value) -> Vec<String> {
        let mut report = Report::default();
        let pod = json!({"volumes": volumes});
        let names = self::volumes(&pod, "spec", &mut report);
        self::mounts(&json!({"volumeMounts": mounts}), "c", &names, &mut report);
        report.causes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn parts_of_volumes_are_relative_paths() {
        for (mount, expected) in [
            (json!({"subPath": "a/b..c"}), None),
            (json!({"subPathExpr": "$(POD_NAME)/x"}), None),
            (json!({"subPath": ""}), None),
            (json!({"subPath": "/a"}), Some("subPath: must be a relative path")),
            (json!({"subPath": "a/../.."}), Some("subPath: must not contain '..'")),
            (json!({"subPathExpr": "../$(A)"}), Some("subPathExpr: must not contain '..'")),
            (
                json!({"subPath": "a", "subPathExpr": "b"}),
                Some("subPathExpr: subPathExpr and subPath are mutually exclusive"),
            ),
            (
                json!({"recursiveReadOnly": "Enabled"}),
                Some("recursiveReadOnly: not supported by this version of Hearth"),
            ),
        ] {
            let mut mount = mount;
            mount["name"] = json!("d");
            mount["mountPath"] = json!("/m");
            let found = causes(&json!([{"name": "d", "emptyDir": {}}]), &json!([mount]));
            let expected: Vec<String> = expected.iter().map(|one| format!("c.volumeMounts[0].{one}")).collect();
            assert_eq!(found, expected, "{mount}");
        }
    }

    #[test]
    fn volumes_are_those_of_kubernetes() {
        let wrong = |volume: Value| {
            let mut volume = volume;
            volume["name"] = json!("d");
            causes(&json!([volume]), &json!([]))
        };
        let downward = json!({"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]});
        for volume in [
            json!({"emptyDir": {}}),
            json!({"emptyDir": {"medium": "", "sizeLimit": "1Gi"}}),
            json!({"emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}),
            json!({"downwardAPI": downward}),
            json!({"projected": {"defaultMode": 0o400, "sources": [{"configMap": {"name": "c"}},
                {"secret": {"name": "s", "optional": true, "items": [{"key": "k", "path": "k", "mode": 0o440}]}},
                {"downwardAPI": downward}]}}),
        ] {
            assert_eq!(wrong(volume.clone()), Vec::<String>::new(), "{volume}");
        }
        let token = json!({"serviceAccountToken": {"path": "token"}});
        let twice = json!({"secret": {"name": "s", "items": [{"key": "k", "path": "labels"}]}});
        for (volume, expected) in [
            (
                json!({"emptyDir": {"medium": "HugePages"}}),
                "emptyDir.medium: \"HugePages\" is not supported; must be one of Memory",
            ),
            (json!({"emptyDir": {"sizeLimit": "-1"}}), "emptyDir.sizeLimit: must not be negative"),
            (
                json!({"configMap": {"name": "c", "defaultMode": 0o1777}}),
                "configMap.defaultMode: must be a number between 0 and 0777",
            ),
            (
                json!({"downwardAPI": {"items": [{"path": "../x", "fieldRef": {"fieldPath": "metadata.uid"}}]}}),
                "downwardAPI.items[0].path: must be a relative path",
            ),
            (
                json!({"projected": {"sources": [token]}}),
                "projected.sources[0].serviceAccountToken: not supported: there are no",
            ),
            (
                json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "x"}}]}}),
                "projected.sources[0].clusterTrustBundle: not supported",
            ),
            (json!({"projected": {"sources": [{}]}}), "projected.sources[0]: must have exactly one of"),
            (
                json!({"projected": {"sources": [{"downwardAPI": downward}, twice]}}),
                "projected.sources[1].secret.items[0].path: conflicting duplicate paths",
            ),
            (json!({"hostPath": {"path": "/"}}), "hostPath: not supported; a volume is one of"),
        ] {
            let causes = wrong(volume);
            let expected = format!("spec.volumes[0].{expected}");
            assert!(causes.len() == 1 && causes[0].starts_with(&expected), "{expected}: {causes:?}");
        }
    }
}
