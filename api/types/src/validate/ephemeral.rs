//! Ephemeral containers: what is put beside a running pod to look into it (KEP-277). The rules are those of Kubernetes' own validation
//! (`ValidatePodEphemeralContainersUpdate`).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Report, each,
    pod::{self, UNSUPPORTED, Use, set},
    process, text,
};
use crate::names;

/// Ephemeral containers of one pod at most. They are never removed, and a device has room for 64 containers of a pod, of which 16 of each
/// other list may be.
const MAX_EPHEMERAL: usize = 32;
/// How they are changed, for who tries it otherwise.
pub(super) const HOW: &str = "ephemeral containers are added by `hearth debug`, by the subresource ephemeralcontainers";

const FORBIDDEN: Use = Use::Refused("cannot be set for an Ephemeral Container");

/// Every field of an ephemeral container: none that would make it a part of what the pod is for.
pub(super) const FIELDS: &[(&str, Use)] = &[
    ("args", Use::Acted),
    ("command", Use::Acted),
    ("env", Use::Acted),
    ("envFrom", Use::Acted),
    ("image", Use::Acted),
    ("imagePullPolicy", Use::Acted),
    ("name", Use::Acted),
    ("securityContext", Use::Acted),
    ("stdin", Use::Acted),
    ("stdinOnce", Use::Acted),
    ("targetContainerName", Use::Acted),
    ("terminationMessagePath", Use::Acted),
    ("terminationMessagePolicy", Use::Acted),
    ("tty", Use::Acted),
    ("volumeMounts", Use::Acted),
    ("workingDir", Use::Acted),
    ("lifecycle", FORBIDDEN),
    ("livenessProbe", FORBIDDEN),
    ("ports", FORBIDDEN),
    ("readinessProbe", FORBIDDEN),
    ("resizePolicy", FORBIDDEN),
    ("resources", FORBIDDEN),
    ("restartPolicy", FORBIDDEN),
    ("restartPolicyRules", FORBIDDEN),
    ("startupProbe", FORBIDDEN),
    ("volumeDevices", Use::Refused(UNSUPPORTED)),
];

/// Validates a change of `spec.ephemeralContainers`: what is there stays as it is, in whatever order; what is new is checked.
pub(super) fn update(old: &Value, new: &Value, report: &mut Report) {
    const LIST: &str = "spec.ephemeralContainers";
    let of = |spec: &Value, name: &str| -> Option<Value> {
        each(spec, "ephemeralContainers", "").find(|(_, one)| text(one, "name") == name).map(|(_, one)| one.clone())
    };
    for (_, before) in each(old, "ephemeralContainers", "spec") {
        let name = text(before, "name");
        match of(new, name) {
            None => report.wrong(LIST, format!("existing ephemeral containers {name:?} may not be removed")),
            Some(after) if after != *before => {
                report.wrong(LIST, format!("existing ephemeral containers {name:?} may not be changed"));
            }
            Some(_) => {}
        }
    }
    let count = each(new, "ephemeralContainers", "spec").count();
    if count > MAX_EPHEMERAL {
        report.wrong(
            LIST,
            format!("must have at most {MAX_EPHEMERAL}, and none is ever removed: delete the pod to have a new one"),
        );
    }
    let names = |field: &'static str| each(new, field, "").map(|(_, one)| text(one, "name"));
    let others: BTreeSet<&str> = names("initContainers").chain(names("containers")).collect();
    let volumes: BTreeSet<&str> = names("volumes").collect();
    let mut seen = others.clone();
    for (at, container) in each(new, "ephemeralContainers", "spec") {
        let name = text(container, "name");
        if !seen.insert(name) {
            report.wrong(format!("{at}.name"), format!("{name:?} is there twice"));
        }
        // What is unchanged was accepted once.
        if of(old, name).as_ref() != Some(container) {
            added(container, &at, &others, &volumes, report);
        }
    }
}

fn added(container: &Value, at: &str, others: &BTreeSet<&str>, volumes: &BTreeSet<&str>, report: &mut Report) {
    report.name(&format!("{at}.name"), text(container, "name"), names::dns_label);
    pod::classify(container, FIELDS, at, report);
    let target = text(container, "targetContainerName");
    if !target.is_empty() && !others.contains(target) {
        report.wrong(format!("{at}.targetContainerName"), format!("there is no container {target:?} in this pod"));
    }
    for (path, mount) in each(container, "volumeMounts", at) {
        for field in ["subPath", "subPathExpr"].into_iter().filter(|field| set(mount, field)) {
            report.wrong(format!("{path}.{field}"), "cannot be set for an Ephemeral Container");
        }
    }
    pod::common(container, at, volumes, report);
    process::container(container, at, report);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ephemeral: &Value) -> Value {
        json!({"initContainers": [{"name": "first", "image": "x"}], "containers": [{"name": "app", "image": "x"}],
            "volumes": [{"name": "data", "emptyDir": {}}], "ephemeralContainers": ephemeral})
    }

    fn causes(old: &Value, new: &Value) -> Vec<String> {
        let mut report = Report::default();
        update(&pod(old), &pod(new), &mut report);
        report.causes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_kubernetes_allows_is_added_and_stays() {
        let one = json!({"name": "one", "image": "busybox", "targetContainerName": "app", "stdin": true, "tty": true,
            "command": ["sh"], "args": ["-i"], "env": [{"name": "A", "value": "b"}], "envFrom": [{"secretRef": {"name": "s"}}],
            "imagePullPolicy": "Always", "workingDir": "/", "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "securityContext": {"runAsUser": 0, "capabilities": {"add": ["NET_RAW"]}}, "terminationMessagePolicy": "File",
            "resources": {}, "ports": []});
        let two = json!({"name": "two", "image": "busybox", "targetContainerName": "first"});
        assert_eq!(causes(&Value::Null, &json!([one])), Vec::<String>::new());
        assert_eq!(causes(&json!([one]), &json!([one, two])), Vec::<String>::new());
        assert_eq!(causes(&json!([one, two]), &json!([two, one])), Vec::<String>::new(), "in whatever order");
        // It was accepted by a release that knew no better.
        let odd = json!({"name": "odd", "image": "x", "ofTheFuture": 1});
        assert_eq!(causes(&json!([odd]), &json!([odd, two])), Vec::<String>::new());
    }

    #[test]
    fn what_is_there_is_neither_changed_nor_removed() {
        let one = json!({"name": "one", "image": "busybox"});
        for (new, expected) in [
            (json!([]), "spec.ephemeralContainers: existing ephemeral containers \"one\" may not be removed"),
            (
                json!([{"name": "two", "image": "busybox"}]),
                "spec.ephemeralContainers: existing ephemeral containers \"one\" may not be removed",
            ),
            (
                json!([{"name": "one", "image": "busybox:2"}]),
                "spec.ephemeralContainers: existing ephemeral containers \"one\" may not be changed",
            ),
        ] {
            assert_eq!(causes(&json!([one]), &new), [expected]);
        }
    }

    #[test]
    fn what_would_make_it_a_part_of_the_app_is_refused() {
        let at = |rest: &str| format!("spec.ephemeralContainers[0].{rest}");
        let exec = json!({"exec": {"command": ["true"]}});
        let forbidden = "cannot be set for an Ephemeral Container";
        for (field, value, place, why) in [
            ("ports", json!([{"containerPort": 80}]), "ports", forbidden),
            ("livenessProbe", exec.clone(), "livenessProbe", forbidden),
            ("readinessProbe", exec.clone(), "readinessProbe", forbidden),
            ("startupProbe", exec.clone(), "startupProbe", forbidden),
            ("lifecycle", json!({"preStop": exec}), "lifecycle", forbidden),
            ("resources", json!({"limits": {"cpu": "1"}}), "resources", forbidden),
            (
                "resizePolicy",
                json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}]),
                "resizePolicy",
                forbidden,
            ),
            ("restartPolicy", json!("Always"), "restartPolicy", forbidden),
            ("restartPolicyRules", json!([{"action": "Restart"}]), "restartPolicyRules", forbidden),
            ("volumeDevices", json!([{"name": "data", "devicePath": "/x"}]), "volumeDevices", "not supported"),
            (
                "volumeMounts",
                json!([{"name": "data", "mountPath": "/d", "subPath": "a"}]),
                "volumeMounts[0].subPath",
                forbidden,
            ),
            (
                "volumeMounts",
                json!([{"name": "data", "mountPath": "/d", "subPathExpr": "$(A)"}]),
                "volumeMounts[0].subPathExpr",
                forbidden,
            ),
            (
                "volumeMounts",
                json!([{"name": "other", "mountPath": "/d"}]),
                "volumeMounts[0].name",
                "there is no volume",
            ),
            (
                "targetContainerName",
                json!("other"),
                "targetContainerName",
                "there is no container \"other\" in this pod",
            ),
            (
                "targetContainerName",
                json!("debug"),
                "targetContainerName",
                "there is no container \"debug\" in this pod",
            ),
            ("name", json!("app"), "name", "\"app\" is there twice"),
            ("name", json!("first"), "name", "\"first\" is there twice"),
            ("name", json!("Not_a.label"), "name", "\"Not_a.label\": must be"),
            ("image", json!(" "), "image", "required"),
            ("imagePullPolicy", json!("Sometimes"), "imagePullPolicy", "\"Sometimes\" is not supported"),
            (
                "securityContext",
                json!({"privileged": true}),
                "securityContext.privileged",
                "refused: an app is a guest",
            ),
            (
                "securityContext",
                json!({"capabilities": {"add": ["SYS_PTRACE"]}}),
                "securityContext.capabilities.add[0]",
                "\"SYS_PTRACE\" is not among the capabilities",
            ),
            ("terminationMessagePath", json!("x"), "terminationMessagePath", "must be an absolute path"),
        ] {
            let mut container = json!({"name": "debug", "image": "busybox"});
            container[field] = value;
            let found = causes(&Value::Null, &json!([container]));
            let expected = format!("{}: {why}", at(place));
            assert!(found.len() == 1 && found[0].starts_with(&expected), "{expected}: {found:?}");
        }
    }

    #[test]
    fn there_are_so_many_and_no_two_of_a_name() {
        let many = |count: usize| -> Value {
            (0..count).map(|n| json!({"name": format!("d{n}"), "image": "x"})).collect::<Vec<_>>().into()
        };
        assert_eq!(causes(&many(31), &many(32)), Vec::<String>::new());
        let found = causes(&many(32), &many(33));
        assert!(found.len() == 1 && found[0].contains("at most 32"), "{found:?}");
        let twice = json!([{"name": "d0", "image": "x"}, {"name": "d0", "image": "x"}]);
        assert_eq!(causes(&many(1), &twice), ["spec.ephemeralContainers[1].name: \"d0\" is there twice"]);
    }
}
