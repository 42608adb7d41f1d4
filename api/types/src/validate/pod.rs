//! Pods: what a device can run. A field that would change what runs and is not supported is refused, so
//! that nothing is silently run in another way than asked for.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Report, each, ephemeral, life, process, text, volume};
use crate::{names, quantity};

/// The longest grace in seconds: a day.
pub(super) const MAX_GRACE_SECONDS: i64 = 86_400;
/// Containers of one pod at most, of each list.
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

/// What becomes of a field that says something.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use {
    /// It is acted on, and checked elsewhere.
    Acted,
    /// Accepted with these values, since they say what is so anyway: what Kubernetes fills in, as a rule.
    Only(&'static [&'static str]),
    /// Refused: something else would run than was asked for.
    Refused(&'static str),
}

pub(super) const UNSUPPORTED: &str = "not supported by this version of Hearth";
/// Owners lend their devices and volumes are on one, which placement alone looks at: `Bind` names the device.
const PLACED: &str =
    "placement sets it; choose a device by spec.nodeSelector, or an Install's by spec.placement.device";
const GUEST: &str = "refused: an app is a guest and has namespaces of its own";

/// Every field of a pod's spec that passes the schema is here; what is not here is refused.
const POD_FIELDS: &[(&str, Use)] = &[
    ("activeDeadlineSeconds", Use::Acted),
    ("containers", Use::Acted),
    ("dnsPolicy", Use::Acted),
    ("hostname", Use::Acted),
    ("imagePullSecrets", Use::Acted),
    ("initContainers", Use::Acted),
    ("nodeSelector", Use::Acted),
    ("restartPolicy", Use::Acted),
    ("securityContext", Use::Acted),
    ("terminationGracePeriodSeconds", Use::Acted),
    ("tolerations", Use::Acted),
    ("volumes", Use::Acted),
    // Addresses of Services are found by their names, and never in the environment.
    ("enableServiceLinks", Use::Only(&["true", "false"])),
    // Nothing is ever preempted.
    ("preemptionPolicy", Use::Only(&["PreemptLowerPriority", "Never"])),
    ("os", Use::Only(&[r#"{"name":"linux"}"#])),
    ("priority", Use::Only(&["0"])),
    ("schedulerName", Use::Only(&["default-scheduler"])),
    ("serviceAccount", Use::Only(&["default"])),
    ("serviceAccountName", Use::Only(&["default"])),
    ("nodeName", Use::Refused(PLACED)),
    ("hostIPC", Use::Refused(GUEST)),
    ("hostNetwork", Use::Refused(GUEST)),
    ("hostPID", Use::Refused(GUEST)),
    ("hostUsers", Use::Refused(GUEST)),
    ("affinity", Use::Refused(UNSUPPORTED)),
    ("automountServiceAccountToken", Use::Refused("not supported: there are no service accounts")),
    ("dnsConfig", Use::Refused(UNSUPPORTED)),
    ("ephemeralContainers", Use::Acted),
    ("hostAliases", Use::Refused(UNSUPPORTED)),
    ("hostnameOverride", Use::Refused(UNSUPPORTED)),
    ("overhead", Use::Refused(UNSUPPORTED)),
    ("priorityClassName", Use::Refused(UNSUPPORTED)),
    ("readinessGates", Use::Refused(UNSUPPORTED)),
    ("resourceClaims", Use::Refused(UNSUPPORTED)),
    ("resources", Use::Refused("not supported by this version of Hearth; give each container its resources")),
    ("runtimeClassName", Use::Refused(UNSUPPORTED)),
    ("schedulingGates", Use::Refused(UNSUPPORTED)),
    ("setHostnameAsFQDN", Use::Refused(UNSUPPORTED)),
    ("shareProcessNamespace", Use::Acted),
    ("subdomain", Use::Refused(UNSUPPORTED)),
    ("topologySpreadConstraints", Use::Refused(UNSUPPORTED)),
];

/// What of `securityContext` is acted on for a whole pod.
const POD_SECURITY: &[&str] = &[
    "runAsUser",
    "runAsGroup",
    "runAsNonRoot",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "supplementalGroups",
];

/// The same for a container.
const CONTAINER_FIELDS: &[(&str, Use)] = &[
    ("args", Use::Acted),
    ("command", Use::Acted),
    ("env", Use::Acted),
    ("envFrom", Use::Acted),
    ("image", Use::Acted),
    ("imagePullPolicy", Use::Acted),
    ("lifecycle", Use::Acted),
    ("livenessProbe", Use::Acted),
    ("name", Use::Acted),
    ("ports", Use::Acted),
    ("readinessProbe", Use::Acted),
    ("resources", Use::Acted),
    // Of an init container, which it makes a sidecar.
    ("restartPolicy", Use::Acted),
    ("securityContext", Use::Acted),
    ("startupProbe", Use::Acted),
    ("volumeMounts", Use::Acted),
    ("workingDir", Use::Acted),
    ("terminationMessagePath", Use::Acted),
    ("terminationMessagePolicy", Use::Acted),
    ("resizePolicy", Use::Refused(UNSUPPORTED)),
    ("restartPolicyRules", Use::Refused(UNSUPPORTED)),
    ("stdin", Use::Acted),
    ("stdinOnce", Use::Acted),
    ("tty", Use::Acted),
    ("volumeDevices", Use::Refused(UNSUPPORTED)),
];

/// Validates a pod's spec.
pub(super) fn spec(spec: &Value, path: &str, report: &mut Report) {
    classify(spec, POD_FIELDS, path, report);
    one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path, report);
    one_of(spec, "dnsPolicy", &["ClusterFirst", "Default"], path, report);
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace.is_some_and(|seconds| !(0..=MAX_GRACE_SECONDS).contains(&seconds)) {
        report.wrong(format!("{path}.terminationGracePeriodSeconds"), "must be from 0 to 86400");
    }
    let active = spec.get("activeDeadlineSeconds").and_then(Value::as_i64);
    if active.is_some_and(|seconds| seconds < 1) {
        report.wrong(format!("{path}.activeDeadlineSeconds"), "must be at least 1");
    }
    let hostname = text(spec, "hostname");
    if !hostname.is_empty() {
        report.name(&format!("{path}.hostname"), hostname, names::dns_label);
    }
    if let Some(selector) = spec.get("nodeSelector") {
        super::labels(selector, &format!("{path}.nodeSelector"), report);
    }
    pull_secrets(spec, path, report);
    security(spec, path, POD_SECURITY, report);
    one_of(
        &spec["securityContext"],
        "fsGroupChangePolicy",
        &["Always", "OnRootMismatch"],
        &format!("{path}.securityContext"),
        report,
    );
    let volumes = volume::volumes(spec, path, report);
    containers(spec, path, &volumes, report);
    if set(spec, "ephemeralContainers") {
        let why =
            if path == "spec" { "cannot be set on create" } else { "ephemeral containers not allowed in pod template" };
        report.wrong(format!("{path}.ephemeralContainers"), why);
    }
}

pub(super) fn pull_secrets(spec: &Value, path: &str, report: &mut Report) {
    for (at, secret) in each(spec, "imagePullSecrets", path) {
        report.name(&format!("{at}.name"), text(secret, "name"), names::dns_subdomain);
    }
}

/// Holds what is set against what is known of each field.
pub(super) fn classify(owner: &Value, fields: &[(&str, Use)], path: &str, report: &mut Report) {
    for (field, value) in owner.as_object().into_iter().flatten().filter(|(field, _)| set(owner, field)) {
        let at = format!("{path}.{field}");
        let known = fields.iter().find(|(name, _)| name == field).map(|(_, used)| *used);
        let plain = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let among = |values: &[&str]| values.iter().any(|one| *one == plain);
        match known.unwrap_or(Use::Refused(UNSUPPORTED)) {
            Use::Acted => {}
            Use::Only(values) if among(values) => {}
            Use::Only(values) => {
                let values = values.join(", ");
                report.wrong(at, format!("{plain} is not supported; must be one of {values}, or left out"));
            }
            Use::Refused(why) => report.wrong(at, why),
        }
    }
}

/// A pod's spec is fixed: a change of what runs is a new pod.
pub(super) fn unchanged(old: &Value, new: &Value, report: &mut Report) {
    for (field, value) in new.as_object().into_iter().flatten() {
        if old.get(field) != Some(value) {
            let hint = match field.as_str() {
                "nodeName" => "placement sets it",
                "ephemeralContainers" => ephemeral::HOW,
                _ => "change the Deployment or Install behind it, or delete the pod and create it anew",
            };
            report.wrong(format!("spec.{field}"), format!("a pod's spec cannot be changed; {hint}"));
        }
    }
    for (field, _) in old.as_object().into_iter().flatten().filter(|(field, _)| new.get(field.as_str()).is_none()) {
        let hint = if field == "ephemeralContainers" { format!("; {}", ephemeral::HOW) } else { String::new() };
        report.wrong(format!("spec.{field}"), format!("a pod's spec cannot be changed{hint}"));
    }
}

/// Validates a list of containers against the volumes they may mount.
pub(super) fn containers(spec: &Value, path: &str, volumes: &BTreeSet<&str>, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for (list, least) in [("initContainers", 0), ("containers", 1)] {
        let count = spec.get(list).and_then(Value::as_array).map_or(0, Vec::len);
        if !(least..=MAX_CONTAINERS).contains(&count) {
            report.wrong(format!("{path}.{list}"), format!("must have {least} to {MAX_CONTAINERS}"));
        }
        for (at, container) in each(spec, list, path) {
            let name = text(container, "name");
            report.name(&format!("{at}.name"), name, names::dns_label);
            if !seen.insert(name) {
                report.wrong(format!("{at}.name"), format!("{name:?} is there twice"));
            }
            self::container(container, &at, volumes, report);
            life::container(container, list == "initContainers", &at, report);
            process::container(container, &at, report);
        }
    }
}

fn container(container: &Value, at: &str, volumes: &BTreeSet<&str>, report: &mut Report) {
    classify(container, CONTAINER_FIELDS, at, report);
    ports(container, at, report);
    resources(container, at, report);
    common(container, at, volumes, report);
}

/// Validates what every container has, also an ephemeral one.
pub(super) fn common(container: &Value, at: &str, volumes: &BTreeSet<&str>, report: &mut Report) {
    if text(container, "image").trim().is_empty() {
        report.wrong(format!("{at}.image"), "required");
    }
    one_of(container, "imagePullPolicy", &["IfNotPresent", "Never", "Always"], at, report);
    if !text(container, "workingDir").is_empty() && !text(container, "workingDir").starts_with('/') {
        report.wrong(format!("{at}.workingDir"), "must be an absolute path");
    }
    env(container, at, report);
    volume::mounts(container, at, volumes, report);
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
        for (kind, reference) in source {
            let at = format!("{path}.valueFrom.{kind}");
            match kind.as_str() {
                "configMapKeyRef" | "secretKeyRef" => {}
                "fieldRef" => volume::field(reference, false, &at, report),
                "resourceFieldRef" => volume::resource(reference, false, &at, report),
                _ => report.wrong(at, UNSUPPORTED),
            }
        }
    }
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
            if !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                report.wrong(path, "not supported by this version of Hearth; cpu, memory and ephemeral-storage are");
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
            "runAsUser" | "runAsGroup" | "fsGroup" => check_id(value, path, report),
            "supplementalGroups" => {
                for (path, id) in
                    each(&owner["securityContext"], "supplementalGroups", &format!("{at}.securityContext"))
                {
                    check_id(id, path, report);
                }
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

/// An id of a user or a group of a pod.
fn check_id(id: &Value, path: String, report: &mut Report) {
    if !id.as_i64().is_some_and(|id| (0..65_536).contains(&id)) {
        report.wrong(path, "must be from 0 to 65535: a pod has 65,536 ids");
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

/// Whether a field says anything: not absent, null, false, or empty.
pub(super) fn set(value: &Value, field: &str) -> bool {
    match value.get(field) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    }
}

pub(super) fn one_of(value: &Value, field: &str, words: &[&str], at: &str, report: &mut Report) {
    let word = text(value, field);
    if !word.is_empty() && !words.contains(&word) {
        report
            .wrong(format!("{at}.{field}"), format!("{word:?} is not supported; must be one of {}", words.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds;

    /// A new version of Kubernetes' types brings new fields: each has to be thought of.
    #[test]
    fn every_field_of_the_schema_is_classified() {
        let of = |schema: schemars::Schema| {
            let schema = schema.to_value();
            let properties = schema["properties"].as_object().expect("a struct");
            properties.keys().cloned().collect::<BTreeSet<String>>()
        };
        for (fields, schema) in [
            (POD_FIELDS, of(schemars::schema_for!(kinds::PodSpec))),
            (CONTAINER_FIELDS, of(schemars::schema_for!(kinds::Container))),
            (ephemeral::FIELDS, of(schemars::schema_for!(kinds::EphemeralContainer))),
        ] {
            let known: BTreeSet<String> = fields.iter().map(|(name, _)| (*name).to_owned()).collect();
            assert_eq!(known.len(), fields.len(), "a field is there twice");
            assert_eq!(known, schema);
        }
    }

    fn checked(spec: &Value) -> (Vec<String>, Vec<String>) {
        let mut report = Report::default();
        self::spec(spec, "spec", &mut report);
        (report.causes.iter().map(ToString::to_string).collect(), report.warnings)
    }

    /// As `kubectl get pod -o yaml` shows a pod that asked for nothing special.
    #[test]
    fn what_kubernetes_fills_in_is_accepted_without_a_word() {
        let spec = json!({
            "containers": [{"name": "a", "image": "x", "imagePullPolicy": "Always", "resources": {}, "stdin": false,
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "protocol": "TCP"}]}],
            "affinity": {}, "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "hostNetwork": false,
            "automountServiceAccountToken": false, "nodeSelector": {"kubernetes.io/arch": "arm64"}, "os": {"name": "linux"},
            "preemptionPolicy": "PreemptLowerPriority", "priority": 0, "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "securityContext": {}, "serviceAccount": "default",
            "serviceAccountName": "default", "terminationGracePeriodSeconds": 30, "initContainers": [], "hostname": "web",
            "tolerations": [{"effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
        });
        assert_eq!(checked(&spec), (vec![], vec![]));
    }

    #[test]
    fn amounts_of_what_containers_share_are_checked() {
        for (resources, expected) in [
            (json!({"limits": {"ephemeral-storage": "1Gi"}, "requests": {"ephemeral-storage": "1Gi"}}), None),
            (json!({"requests": {"ephemeral-storage": "1Gi", "cpu": "1"}}), None),
            (
                json!({"limits": {"ephemeral-storage": "1Gi"}, "requests": {"ephemeral-storage": "2Gi"}}),
                Some("requests.ephemeral-storage: must not exceed the limit, 1Gi"),
            ),
            (json!({"limits": {"ephemeral-storage": "-1"}}), Some("limits.ephemeral-storage: must not be negative")),
            (json!({"limits": {"hugepages-2Mi": "2Mi"}}), Some("limits.hugepages-2Mi: not supported")),
        ] {
            let (causes, _) = checked(&json!({"containers": [{"name": "a", "image": "x", "resources": resources}]}));
            let found = causes.first().map(|cause| cause.trim_start_matches("spec.containers[0].resources."));
            assert_eq!(causes.len(), usize::from(expected.is_some()), "{causes:?}");
            assert!(found.zip(expected).is_none_or(|(found, expected)| found.starts_with(expected)), "{causes:?}");
        }
    }

    #[test]
    fn what_would_run_otherwise_than_asked_for_is_refused() {
        for (field, value, expected) in [
            ("activeDeadlineSeconds", json!(0), "spec.activeDeadlineSeconds: must be at least 1"),
            ("resources", json!({"limits": {"cpu": "1"}}), "spec.resources: not supported"),
            ("hostnameOverride", json!("x"), "spec.hostnameOverride: not supported"),
            ("subdomain", json!("x"), "spec.subdomain: not supported"),
            (
                "ephemeralContainers",
                json!([{"name": "d", "image": "x"}]),
                "spec.ephemeralContainers: cannot be set on create",
            ),
            (
                "schedulerName",
                json!("mine"),
                "spec.schedulerName: mine is not supported; must be one of default-scheduler",
            ),
            ("securityContext", json!({"fsGroup": 70000}), "spec.securityContext.fsGroup: must be from 0 to 65535"),
            (
                "securityContext",
                json!({"supplementalGroups": [7, -1]}),
                "spec.securityContext.supplementalGroups[1]: must be from 0 to 65535",
            ),
            (
                "securityContext",
                json!({"fsGroupChangePolicy": "Sometimes"}),
                "spec.securityContext.fsGroupChangePolicy: \"Sometimes\" is not supported",
            ),
            ("priority", json!(10), "spec.priority: 10 is not supported"),
            ("os", json!({"name": "windows"}), "spec.os: {\"name\":\"windows\"} is not supported"),
            ("serviceAccountName", json!("robot"), "spec.serviceAccountName: robot is not supported"),
            ("hostname", json!("Not_a.label"), "spec.hostname: \"Not_a.label\": must be a lowercase"),
            ("nodeSelector", json!({"a": "-"}), "spec.nodeSelector.a: \"-\": must be letters"),
            ("ofTheFuture", json!(1), "spec.ofTheFuture: not supported"),
            ("imagePullSecrets", json!([{"name": "A_b"}]), "spec.imagePullSecrets[0].name: \"A_b\""),
        ] {
            let mut spec = json!({"containers": [{"name": "a", "image": "x"}]});
            spec[field] = value;
            let (causes, _) = checked(&spec);
            assert!(causes.len() == 1 && causes[0].starts_with(expected), "{expected}: {causes:?}");
        }
        let spec = json!({"containers": [{"name": "a", "image": "x", "restartPolicyRules": [{"action": "Restart"}]}]});
        let (causes, _) = checked(&spec);
        assert!(causes.len() == 1 && causes[0].starts_with("spec.containers[0].restartPolicyRules: not supported"));
    }
}
