//! Pods: what a device can run. A field that would change what runs and is not supported is refused, so
//! that nothing is silently run in another way than asked for.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Report, each, text};
use crate::{names, quantity};

/// Containers of one pod at most.
pub(super) const MAX_CONTAINERS: usize = 16;

/// Capabilities that an app may ask for: those that Docker gives by default. Within the user namespace of
/// a pod they reach no further than the pod; others are refused until somebody needs them.
pub(super) const ALLOWED_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const REFUSED_IN_POD: &[&str] = &[
    "initContainers",
    "ephemeralContainers",
    "shareProcessNamespace",
    "affinity",
    "topologySpreadConstraints",
    "hostAliases",
    "runtimeClassName",
    "dnsConfig",
    "overhead",
    "readinessGates",
    "resourceClaims",
    "schedulingGates",
    "imagePullSecrets",
    "activeDeadlineSeconds",
    "priorityClassName",
];
const REFUSED_IN_CONTAINER: &[&str] = &["lifecycle", "volumeDevices", "resizePolicy", "restartPolicy"];
const IGNORED_IN_CONTAINER: &[&str] = &["livenessProbe", "readinessProbe", "startupProbe"];
const SOURCES: &[&str] = &["emptyDir", "configMap", "secret", "persistentVolumeClaim"];

/// Validates a pod's spec.
pub(super) fn spec(spec: &Value, path: &str, report: &mut Report) {
    for field in REFUSED_IN_POD {
        if set(spec, field) {
            report.wrong(format!("{path}.{field}"), "not supported by this version of Hearth");
        }
    }
    for field in ["hostNetwork", "hostPID", "hostIPC", "hostUsers"] {
        if spec.get(field) == Some(&Value::Bool(true)) {
            report.wrong(format!("{path}.{field}"), "refused: an app is a guest and has namespaces of its own");
        }
    }
    one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path, report);
    one_of(spec, "dnsPolicy", &["ClusterFirst", "Default"], path, report);
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace.is_some_and(|seconds| !(0..=86_400).contains(&seconds)) {
        report.wrong(format!("{path}.terminationGracePeriodSeconds"), "must be from 0 to 86400");
    }
    security(spec, path, &["runAsUser", "runAsGroup", "runAsNonRoot", "seccompProfile"], report);
    let volumes = volumes(spec, path, report);
    containers(spec, path, &volumes, report);
}

/// A pod's spec is fixed: a change of what runs is a new pod.
pub(super) fn unchanged(old: &Value, new: &Value, report: &mut Report) {
    for (field, value) in new.as_object().into_iter().flatten() {
        if old.get(field) != Some(value) {
            let hint = if field == "nodeName" {
                "placement sets it"
            } else {
                "change the Deployment or Install behind it, or delete the pod and create it anew"
            };
            report.wrong(format!("spec.{field}"), format!("a pod's spec cannot be changed; {hint}"));
        }
    }
    for (field, _) in old.as_object().into_iter().flatten().filter(|(field, _)| new.get(field.as_str()).is_none()) {
        report.wrong(format!("spec.{field}"), "a pod's spec cannot be changed");
    }
}

/// Validates a list of containers against the volumes they may mount.
pub(super) fn containers(spec: &Value, path: &str, volumes: &BTreeSet<&str>, report: &mut Report) {
    let count = spec.get("containers").and_then(Value::as_array).map_or(0, Vec::len);
    if count == 0 || count > MAX_CONTAINERS {
        report.wrong(format!("{path}.containers"), format!("must have 1 to {MAX_CONTAINERS}"));
    }
    let mut seen = BTreeSet::new();
    for (at, container) in each(spec, "containers", path) {
        let name = text(container, "name");
        report.name(&format!("{at}.name"), name, names::dns_label);
        if !seen.insert(name) {
            report.wrong(format!("{at}.name"), format!("{name:?} is there twice"));
        }
        self::container(container, &at, volumes, report);
    }
}

fn container(container: &Value, at: &str, volumes: &BTreeSet<&str>, report: &mut Report) {
    if text(container, "image").trim().is_empty() {
        report.wrong(format!("{at}.image"), "required");
    }
    for field in REFUSED_IN_CONTAINER {
        if set(container, field) {
            report.wrong(format!("{at}.{field}"), "not supported by this version of Hearth");
        }
    }
    for field in IGNORED_IN_CONTAINER {
        if set(container, field) {
            report.warn(
                &format!("{at}.{field}"),
                "not acted on by this version of Hearth: the container counts as ready when it runs",
            );
        }
    }
    for field in ["stdin", "tty", "stdinOnce"] {
        if container.get(field) == Some(&Value::Bool(true)) {
            report.wrong(format!("{at}.{field}"), "not supported by this version of Hearth; use exec -it");
        }
    }
    one_of(container, "imagePullPolicy", &["IfNotPresent", "Never", "Always"], at, report);
    if !text(container, "workingDir").is_empty() && !text(container, "workingDir").starts_with('/') {
        report.wrong(format!("{at}.workingDir"), "must be an absolute path");
    }
    ports(container, at, report);
    env(container, at, report);
    mounts(container, at, volumes, report);
    resources(container, at, report);
    security(
        container,
        at,
        &[
            "runAsUser",
            "runAsGroup",
            "runAsNonRoot",
            "seccompProfile",
            "capabilities",
            "readOnlyRootFilesystem",
            "allowPrivilegeEscalation",
            "privileged",
        ],
        report,
    );
}

fn ports(container: &Value, at: &str, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for (path, port) in each(container, "ports", at) {
        let number = port.get("containerPort").and_then(Value::as_i64).unwrap_or_default();
        if !(1..=65_535).contains(&number) {
            report.wrong(format!("{path}.containerPort"), "must be from 1 to 65535");
        }
        for field in ["hostPort", "hostIP"] {
            if set(port, field) {
                report.wrong(format!("{path}.{field}"), "refused: apps are reached by name, not by ports of the host");
            }
        }
        one_of(port, "protocol", &["TCP", "UDP"], &path, report);
        let name = text(port, "name");
        if !name.is_empty() {
            report.name(&format!("{path}.name"), name, names::dns_label);
            if !seen.insert(name) {
                report.wrong(format!("{path}.name"), format!("{name:?} is there twice"));
            }
        }
    }
}

pub(super) fn env(container: &Value, at: &str, report: &mut Report) {
    for (path, variable) in each(container, "env", at) {
        report.name(&format!("{path}.name"), text(variable, "name"), names::env_name);
        let Some(source) = variable.get("valueFrom").and_then(Value::as_object) else {
            continue;
        };
        if set(variable, "value") && !text(variable, "value").is_empty() {
            report.wrong(path.clone(), "value and valueFrom exclude each other");
        }
        for kind in source.keys().filter(|kind| !matches!(kind.as_str(), "configMapKeyRef" | "secretKeyRef")) {
            report.wrong(
                format!("{path}.valueFrom.{kind}"),
                "not supported by this version of Hearth; use configMapKeyRef or secretKeyRef",
            );
        }
    }
}

fn mounts(container: &Value, at: &str, volumes: &BTreeSet<&str>, report: &mut Report) {
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
                report.wrong(format!("{path}.{field}"), "not supported by this version of Hearth");
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

fn resources(container: &Value, at: &str, report: &mut Report) {
    let Some(resources) = container.get("resources") else {
        return;
    };
    if set(resources, "claims") {
        report.wrong(format!("{at}.resources.claims"), "not supported by this version of Hearth");
    }
    for part in ["limits", "requests"] {
        for (name, value) in resources.get(part).and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{at}.resources.{part}.{name}");
            let Some(amount) = value.as_str().and_then(|text| quantity::millis(text).ok()) else {
                continue;
            };
            if !matches!(name.as_str(), "cpu" | "memory") {
                report.wrong(path, "not supported by this version of Hearth; cpu and memory are");
            } else if amount < 0 {
                report.wrong(path, "must not be negative");
            } else if part == "requests"
                && let Some(limit) = resources.pointer(&format!("/limits/{name}")).and_then(Value::as_str)
                && quantity::millis(limit).is_ok_and(|limit| limit < amount)
            {
                report.wrong(path, format!("must not exceed the limit, {limit}"));
            }
        }
    }
}

fn security(owner: &Value, at: &str, known: &[&str], report: &mut Report) {
    let Some(context) = owner.get("securityContext").and_then(Value::as_object) else {
        return;
    };
    for (field, value) in context {
        let path = format!("{at}.securityContext.{field}");
        match field.as_str() {
            _ if !known.contains(&field.as_str()) => {
                report.wrong(path, "not supported by this version of Hearth");
            }
            "privileged" | "allowPrivilegeEscalation" if value == &Value::Bool(true) => {
                report.wrong(path, "refused: an app is a guest");
            }
            "runAsUser" | "runAsGroup" if !value.as_i64().is_some_and(|id| (0..65_536).contains(&id)) => {
                report.wrong(path, "must be from 0 to 65535: a pod has 65,536 ids");
            }
            "seccompProfile" if text(value, "type") != "RuntimeDefault" => {
                report.wrong(path, "only the type RuntimeDefault");
            }
            "capabilities" => {
                for (path, capability) in each(value, "add", &path) {
                    check_capability(capability.as_str().unwrap_or_default(), &path, report);
                }
            }
            _ => {}
        }
    }
}

pub(super) fn check_capability(name: &str, path: &str, report: &mut Report) {
    if !ALLOWED_CAPABILITIES.contains(&name) {
        report.wrong(
            path,
            format!("{name:?} is not among the capabilities that an app may have: {}", ALLOWED_CAPABILITIES.join(", ")),
        );
    }
}

fn volumes<'a>(spec: &'a Value, path: &str, report: &mut Report) -> BTreeSet<&'a str> {
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

/// Whether a field says anything: not absent, null, false, or empty.
fn set(value: &Value, field: &str) -> bool {
    match value.get(field) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    }
}

fn one_of(value: &Value, field: &str, words: &[&str], at: &str, report: &mut Report) {
    let word = text(value, field);
    if !word.is_empty() && !words.contains(&word) {
        report
            .wrong(format!("{at}.{field}"), format!("{word:?} is not supported; must be one of {}", words.join(", ")));
    }
}
