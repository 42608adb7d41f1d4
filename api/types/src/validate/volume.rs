//! The volumes of pods, and where containers mount them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Report, each, pod::set, text};
use crate::names;

/// The longest path that Linux takes, with its end (`PATH_MAX`).
const MAX_PATH: usize = 4095;
const SOURCES: &[&str] = &["emptyDir", "configMap", "secret", "persistentVolumeClaim"];

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
        _ => {
            for field in ["medium", "sizeLimit"] {
                if set(source, field) {
                    report.wrong(format!("{at}.{field}"), "not supported by this version of Hearth");
                }
            }
        }
    }
    for (path, item) in each(source, "items", at) {
        let file = text(item, "path");
        if file.is_empty() || file.starts_with('/') || file.split('/').any(|part| part == ".." || part.is_empty()) {
            report.wrong(format!("{path}.path"), "must be a relative path without '..'");
        }
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
}
