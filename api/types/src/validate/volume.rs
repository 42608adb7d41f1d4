//! Volumes of a pod and where its containers mount them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Report, each,
    pod::{UNSUPPORTED, set},
    text,
};
use crate::{
    downward::{Field, Resource},
    names,
};

/// What a volume can be made of.
const SOURCES: &[&str] = &["emptyDir", "configMap", "secret", "downwardAPI", "projected", "persistentVolumeClaim"];
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
        for field in ["subPath", "subPathExpr", "mountPropagation", "recursiveReadOnly"] {
            if set(mount, field) {
                report.wrong(format!("{path}.{field}"), UNSUPPORTED);
            }
        }
    }
}

fn mount_path(path: &str) -> Result<(), &'static str> {
    const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];
    if !path.starts_with('/') || path.contains('\0') || path.len() > 4095 {
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
        _ => {
            for field in ["medium", "sizeLimit"] {
                if set(source, field) {
                    report.wrong(format!("{at}.{field}"), UNSUPPORTED);
                }
            }
        }
    }
    mode(source, "defaultMode", at, report);
    items(source, at, report);
}

fn projected(source: &Value, at: &str, report: &mut Report) {
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
