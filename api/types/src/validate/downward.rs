//! What a pod is told of itself (Kubernetes' downward API): in its environment, and in files.

use serde_json::Value;

use super::{Report, each, pod::set, text};
use crate::{names, quantity};

/// Fields that a variable may have (Kubernetes' `validEnvDownwardAPIFieldPathExpressions`).
const OF_VARIABLES: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields that a file may have (`validVolumeDownwardAPIFieldPathExpressions`).
const OF_FILES: &[&str] =
    &["metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "metadata.uid"];
const RESOURCES: &[&str] = &["limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
const CPU_DIVISORS: &[&str] = &["1m", "1"];
const MEMORY_DIVISORS: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
const SOURCES: &[&str] = &["configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef"];

/// Validates where the value of a variable is from.
pub(super) fn variable(source: &Value, at: &str, report: &mut Report) {
    let given: Vec<&str> = source
        .as_object()
        .into_iter()
        .flatten()
        .map(|(kind, _)| kind.as_str())
        .filter(|kind| set(source, kind))
        .collect();
    match given.as_slice() {
        ["fieldRef"] => field(&source["fieldRef"], OF_VARIABLES, &format!("{at}.fieldRef"), report),
        ["resourceFieldRef"] => resource(&source["resourceFieldRef"], &format!("{at}.resourceFieldRef"), report),
        [one] if SOURCES.contains(one) => {}
        [one] => report.wrong(
            format!("{at}.{one}"),
            format!("not supported by this version of Hearth; use one of {}", SOURCES.join(", ")),
        ),
        [] => report.wrong(at, format!("must specify one of {}", SOURCES.join(", "))),
        _ => report.wrong(at, "may not have more than one field specified at a time"),
    }
}

/// Validates the files of a volume; their paths are looked at elsewhere.
pub(super) fn files(source: &Value, at: &str, report: &mut Report) {
    for (path, item) in each(source, "items", at) {
        match (set(item, "fieldRef"), set(item, "resourceFieldRef")) {
            (true, true) => {
                report.wrong(path, "fieldRef and resourceFieldRef can not be specified simultaneously");
            }
            (false, false) => report.wrong(path, "one of fieldRef and resourceFieldRef is required"),
            (true, false) => field(&item["fieldRef"], OF_FILES, &format!("{path}.fieldRef"), report),
            (false, true) => {
                let at = format!("{path}.resourceFieldRef");
                resource(&item["resourceFieldRef"], &at, report);
                if text(&item["resourceFieldRef"], "containerName").is_empty() {
                    report.wrong(format!("{at}.containerName"), "required");
                }
            }
        }
    }
}

fn field(reference: &Value, known: &[&str], at: &str, report: &mut Report) {
    if !matches!(text(reference, "apiVersion"), "" | "v1") {
        report.wrong(format!("{at}.apiVersion"), "must be v1, or left out");
    }
    let (at, path) = (format!("{at}.fieldPath"), text(reference, "fieldPath"));
    if path.is_empty() {
        return report.wrong(at, "required");
    }
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        // As in Kubernetes, whose keys of annotations are looked at in small letters.
        let checked = match map {
            "metadata.labels" => names::label_key(key),
            "metadata.annotations" => names::label_key(&key.to_ascii_lowercase()),
            _ => return report.wrong(at, format!("{path:?}: {map} has no keys; labels and annotations have")),
        };
        if let Err(why) = checked {
            report.wrong(at, format!("{key:?}: {why}"));
        }
    } else if !known.contains(&path) {
        report.wrong(
            at,
            format!(
                "{path:?} is not supported; must be one of {}, metadata.labels['KEY'], metadata.annotations['KEY']",
                known.join(", ")
            ),
        );
    }
}

fn resource(reference: &Value, at: &str, report: &mut Report) {
    let name = text(reference, "resource");
    if !RESOURCES.contains(&name) {
        return report.wrong(
            format!("{at}.resource"),
            format!("{name:?} is not supported; must be one of {}", RESOURCES.join(", ")),
        );
    }
    let divisors = if name.ends_with("cpu") { CPU_DIVISORS } else { MEMORY_DIVISORS };
    let divisor = text(reference, "divisor");
    // Nothing said is 0, which stands for 1.
    let is_zero = divisor.is_empty() || quantity::millis(divisor).is_ok_and(|millis| millis == 0);
    if !is_zero && !divisors.contains(&divisor) {
        let divisors = divisors.join(", ");
        report.wrong(format!("{at}.divisor"), format!("{divisor:?} is not supported; must be one of {divisors}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_have_what_kubernetes_gives_them() {
        let causes = |source: &Value| {
            let mut report = Report::default();
            variable(source, "v", &mut report);
            report.causes.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        for path in OF_VARIABLES.iter().chain(&["metadata.labels['app']", "metadata.annotations['a.b/C']"]) {
            assert_eq!(
                causes(&json!({"fieldRef": {"apiVersion": "v1", "fieldPath": path}})),
                Vec::<String>::new(),
                "{path}"
            );
        }
        for (resource, divisor) in
            [("limits.cpu", "1m"), ("requests.cpu", ""), ("limits.memory", "1Mi"), ("requests.memory", "0")]
        {
            let source = json!({"resourceFieldRef": {"resource": resource, "divisor": divisor}});
            assert_eq!(causes(&source), Vec::<String>::new(), "{source}");
        }
        for (source, expected) in [
            (
                json!({"fieldRef": {"fieldPath": "metadata.labels"}}),
                "v.fieldRef.fieldPath: \"metadata.labels\" is not supported",
            ),
            (
                json!({"fieldRef": {"fieldPath": "spec.hostname"}}),
                "v.fieldRef.fieldPath: \"spec.hostname\" is not supported",
            ),
            (json!({"fieldRef": {"fieldPath": "metadata.labels['-']"}}), "v.fieldRef.fieldPath: \"-\": must"),
            (
                json!({"fieldRef": {"fieldPath": "metadata.uid['a']"}}),
                "v.fieldRef.fieldPath: \"metadata.uid['a']\": metadata.uid has no keys",
            ),
            (
                json!({"fieldRef": {"apiVersion": "v2", "fieldPath": "metadata.uid"}}),
                "v.fieldRef.apiVersion: must be v1",
            ),
            (
                json!({"resourceFieldRef": {"resource": "limits.gpu"}}),
                "v.resourceFieldRef.resource: \"limits.gpu\" is not supported",
            ),
            (
                json!({"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1Mi"}}),
                "v.resourceFieldRef.divisor: \"1Mi\" is not supported",
            ),
            (json!({"fileKeyRef": {"path": "x"}}), "v.fileKeyRef: not supported"),
            (json!({}), "v: must specify one of"),
            (
                json!({"fieldRef": {"fieldPath": "metadata.uid"}, "secretKeyRef": {"name": "s"}}),
                "v: may not have more than one",
            ),
        ] {
            let causes = causes(&source);
            assert!(causes.len() == 1 && causes[0].starts_with(expected), "{expected}: {causes:?}");
        }
    }

    #[test]
    fn files_have_what_kubernetes_gives_them() {
        let causes = |item: Value| {
            let mut report = Report::default();
            files(&json!({"items": [item]}), "v", &mut report);
            report.causes.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        for path in OF_FILES {
            assert!(causes(json!({"path": "x", "fieldRef": {"fieldPath": path}})).is_empty(), "{path}");
        }
        for (item, expected) in [
            (
                json!({"fieldRef": {"fieldPath": "status.podIP"}}),
                "v.items[0].fieldRef.fieldPath: \"status.podIP\" is not",
            ),
            (json!({"path": "x"}), "v.items[0]: one of fieldRef and resourceFieldRef is required"),
            (
                json!({"resourceFieldRef": {"resource": "limits.cpu"}}),
                "v.items[0].resourceFieldRef.containerName: required",
            ),
            (
                json!({"fieldRef": {"fieldPath": "metadata.uid"}, "resourceFieldRef": {"resource": "limits.cpu"}}),
                "v.items[0]: fieldRef and resourceFieldRef can not",
            ),
        ] {
            let causes = causes(item);
            assert!(causes.len() == 1 && causes[0].starts_with(expected), "{expected}: {causes:?}");
        }
    }
}
