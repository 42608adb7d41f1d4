//! Volumes of a pod and where its containers mount them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Report, each,
    pod::{UNSUPPORTED, one_of, set},
    text,
};
use crate::{
    downward::{Field, Resource},
    names, quantity,
};

/// What a volume can be made of.
const SOURCES: &[&str] =
    &["emptyDir", "configMap", "secret", "downwardAPI", "projected", "persistentVolumeClaim", "hostPath"];
/// What a projected volume can join.
const PROJECTIONS: &[&str] = &["configMap", "secret", "downwardAPI"];

/// Validates the mounts of one container; `volumes` are the names that there are.
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
        for field in ["subPath", "subPathExpr"] {
            if let Err(why) = names::sub_path_of_volume(text(mount, field)) {
                report.wrong(format!("{path}.{field}"), why);
            }
        }
        if set(mount, "subPath") && set(mount, "subPathExpr") {
            report.wrong(format!("{path}.subPathExpr"), "subPathExpr and subPath are mutually exclusive");
        }
        for field in ["mountPropagation", "recursiveReadOnly"] {
            if set(mount, field) {
                report.wrong(format!("{path}.{field}"), UNSUPPORTED);
            }
        }
    }
}

/// An absolute path that leads to a place of its own.
fn absolute(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') || path.contains('\0') || path.len() > 4095 {
        return Err("must be an absolute path");
    }
    if path.split('/').any(|part| part == "..") {
        return Err("must not contain '..'");
    }
    if path.trim_matches('/').is_empty() {
        return Err("must not be the root directory");
    }
    Ok(())
}

fn mount_path(path: &str) -> Result<(), &'static str> {
    const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];
    absolute(path)?;
    let clean = path.trim_end_matches('/');
    if RESERVED.iter().any(|reserved| clean == *reserved || clean.starts_with(&format!("{reserved}/"))) {
        return Err("must not be in /proc, /sys or /dev");
    }
    Ok(())
}

/// Validates the volumes of a pod; returns their names.
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
        "secret" => report.name(&format!("{at}.secretName"), text(source, "secretName"), names::dns_subdomain),
        "configMap" => report.name(&format!("{at}.name"), text(source, "name"), names::dns_subdomain),
        "downwardAPI" => files(source, at, report),
        "projected" => projected(source, at, report),
        "hostPath" => {
            // Nothing is made on the owner's disk but by the app itself.
            one_of(source, "type", &["", "Directory", "File"], at, report);
            host_path(&format!("{at}.path"), text(source, "path"), report);
        }
        _ => empty_dir(source, at, report),
    }
    mode(source, "defaultMode", at, report);
    items(source, at, report);
}

/// Validates a path of a device. Whether a pod gets it is the device's to say.
pub(super) fn host_path(at: &str, path: &str, report: &mut Report) {
    if let Err(why) = absolute(path) {
        report.wrong(at, why);
    }
}

/// Validates an empty directory. Where it is on disk, its pod is evicted once it takes more than its limit.
pub(super) fn empty_dir(source: &Value, at: &str, report: &mut Report) {
    one_of(source, "medium", &["Memory"], at, report);
    let limit = source.get("sizeLimit").and_then(Value::as_str).filter(|text| !text.is_empty());
    if limit.is_some_and(|limit| quantity::millis(limit).is_ok_and(|millis| millis < 0)) {
        report.wrong(format!("{at}.sizeLimit"), "must not be negative");
    }
}

fn projected(source: &Value, at: &str, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for (path, one) in each(source, "sources", at) {
        let kinds: Vec<&str> = one.as_object().into_iter().flatten().map(|(kind, _)| kind.as_str()).collect();
        match kinds.as_slice() {
            [kind] if PROJECTIONS.contains(kind) => {
                let (projection, at) = (&one[*kind], format!("{path}.{kind}"));
                if *kind == "downwardAPI" {
                    files(projection, &at, report);
                } else {
                    report.name(&format!("{at}.name"), text(projection, "name"), names::dns_subdomain);
                }
                items(projection, &at, report);
                let fresh: BTreeSet<&str> = each(projection, "items", "").map(|(_, item)| text(item, "path")).collect();
                for path in fresh.into_iter().filter(|path| !seen.insert(*path)) {
                    report.wrong(
                        format!("{at}.items"),
                        format!("conflicting duplicate paths: {path:?} is another source's"),
                    );
                }
            }
            [kind] => {
                let known = PROJECTIONS.join(", ");
                report.wrong(format!("{path}.{kind}"), format!("not supported; a source is one of {known}"));
            }
            _ => report.wrong(path, format!("must have exactly one of {}", PROJECTIONS.join(", "))),
        }
    }
}

/// The files of a downward API volume, but for their paths.
fn files(source: &Value, at: &str, report: &mut Report) {
    for (path, item) in each(source, "items", at) {
        match (item.get("fieldRef"), item.get("resourceFieldRef")) {
            (Some(reference), None) => field(reference, true, &format!("{path}.fieldRef"), report),
            (None, Some(reference)) => resource(reference, true, &format!("{path}.resourceFieldRef"), report),
            _ => report.wrong(path, "must have exactly one of fieldRef, resourceFieldRef"),
        }
    }
}

/// What is common to the files of all kinds of volumes.
fn items(source: &Value, at: &str, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for (path, item) in each(source, "items", at) {
        let file = text(item, "path");
        if file.is_empty() || file.starts_with('/') || file.split('/').any(|part| part == ".." || part.is_empty()) {
            report.wrong(format!("{path}.path"), "must be a relative path without '..'");
        } else if !seen.insert(file) {
            report.wrong(format!("{path}.path"), format!("{file:?} is there twice"));
        }
        mode(item, "mode", &path, report);
    }
}

fn mode(value: &Value, name: &str, at: &str, report: &mut Report) {
    if value.get(name).and_then(Value::as_i64).is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        report.wrong(format!("{at}.{name}"), "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// A field that a pod is told of itself: in a file, or in a variable.
pub(super) fn field(reference: &Value, file: bool, at: &str, report: &mut Report) {
    if !matches!(text(reference, "apiVersion"), "" | "v1") {
        report.wrong(format!("{at}.apiVersion"), "must be v1");
    }
    if let Err(why) = Field::parse(text(reference, "fieldPath"), file) {
        report.wrong(format!("{at}.fieldPath"), why.to_string());
    }
}

/// What a container may use, told in a file, where it is named, or in a variable of its own.
pub(super) fn resource(reference: &Value, file: bool, at: &str, report: &mut Report) {
    if file && text(reference, "containerName").is_empty() {
        report.wrong(format!("{at}.containerName"), "required");
    }
    match Resource::parse(text(reference, "resource")) {
        Err(why) => report.wrong(format!("{at}.resource"), why.to_string()),
        Ok(resource) => {
            if let Err(why) = resource.divisor(text(reference, "divisor")) {
                report.wrong(format!("{at}.divisor"), why.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(volumes: Value, mounts: Value) -> Vec<String> {
        let mut report = Report::default();
        let spec = json!({"volumes": volumes});
        let names = super::volumes(&spec, "spec", &mut report);
        super::mounts(&json!({"volumeMounts": mounts}), "spec.containers[0]", &names, &mut report);
        report.causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn volumes_of_every_kind_are_checked_to_their_files() {
        let good = json!([
            {"name": "a", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
            {"name": "d", "downwardAPI": {"defaultMode": 256, "items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}]}},
            {"name": "p", "projected": {"sources": [{"configMap": {"name": "c"}}, {"secret": {"name": "s"}},
                {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}]);
        let mounts = json!([{"name": "a", "mountPath": "/a", "subPath": "x/y"}, {"name": "m", "mountPath": "/m", "subPathExpr": "$(A)"}]);
        assert_eq!(causes(good, mounts), Vec::<String>::new());
        let item = |item: Value| json!([{"name": "d", "downwardAPI": {"items": [item]}}]);
        for (volumes, wrong) in [
            (
                json!([{"name": "a", "emptyDir": {"medium": "HugePages"}}]),
                "spec.volumes[0].emptyDir.medium: \"HugePages\" is not supported",
            ),
            (
                json!([{"name": "a", "emptyDir": {"sizeLimit": "-1Gi"}}]),
                "spec.volumes[0].emptyDir.sizeLimit: must not be negative",
            ),
            (
                json!([{"name": "a", "secret": {"secretName": "s", "defaultMode": 512}}]),
                "spec.volumes[0].secret.defaultMode: must be a number between 0 and 0777",
            ),
            (
                item(json!({"path": "../x", "fieldRef": {"fieldPath": "metadata.name"}})),
                "spec.volumes[0].downwardAPI.items[0].path: must be a relative path",
            ),
            (
                item(json!({"path": "x", "fieldRef": {"fieldPath": "status.podIP"}})),
                "spec.volumes[0].downwardAPI.items[0].fieldRef.fieldPath: \"status.podIP\" is not supported",
            ),
            (item(json!({"path": "x"})), "spec.volumes[0].downwardAPI.items[0]: must have exactly one of"),
            (
                item(json!({"path": "x", "resourceFieldRef": {"resource": "limits.cpu"}})),
                "spec.volumes[0].downwardAPI.items[0].resourceFieldRef.containerName: required",
            ),
            (
                json!([{"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]),
                "spec.volumes[0].projected.sources[0].serviceAccountToken: not supported",
            ),
            (
                json!([{"name": "p", "projected": {"sources": [{"secret": {"name": "s", "items": [{"key": "k", "path": "x"}]}},
                    {"configMap": {"name": "c", "items": [{"key": "k", "path": "x"}]}}]}}]),
                "spec.volumes[0].projected.sources[1].configMap.items: conflicting duplicate paths: \"x\"",
            ),
            (
                json!([{"name": "p", "projected": {"sources": [{}]}}]),
                "spec.volumes[0].projected.sources[0]: must have exactly one of",
            ),
        ] {
            let found = causes(volumes, json!([]));
            assert!(found.len() == 1 && found[0].starts_with(wrong), "{found:?}");
        }
        for (mount, wrong) in [
            (json!({"subPath": "/x"}), "subPath: must be a relative path"),
            (json!({"subPath": "x/../y"}), "subPath: must not contain '..'"),
            (
                json!({"subPath": "x", "subPathExpr": "y"}),
                "subPathExpr: subPathExpr and subPath are mutually exclusive",
            ),
        ] {
            let mut full = json!({"name": "a", "mountPath": "/a"});
            full.as_object_mut().expect("a map").extend(mount.as_object().expect("a map").clone());
            let found = causes(json!([{"name": "a", "emptyDir": {}}]), json!([full]));
            assert_eq!(found, [format!("spec.containers[0].volumeMounts[0].{wrong}")]);
        }
    }
}
