//! What is asked of a container while it lives: probes, hooks, and what makes a sidecar. The rules are those of Kubernetes' own validation
//! (`pkg/apis/core/validation`).

use serde_json::Value;

use super::{
    Report, each,
    pod::{MAX_GRACE_SECONDS, set},
    text,
};

/// The handlers of a probe, and those of a hook.
const PROBES: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
const HOOKS: [&str; 3] = ["exec", "httpGet", "sleep"];

/// Validates probes, hooks and the restart policy of a container.
pub(super) fn container(container: &Value, is_init: bool, at: &str, report: &mut Report) {
    let policy = text(container, "restartPolicy");
    let is_sidecar = is_init && policy == "Always";
    if !policy.is_empty() && !is_sidecar {
        let why = if is_init {
            "must be Always, which makes it a sidecar, or left out"
        } else {
            "only an initContainer has one; a pod's is spec.restartPolicy"
        };
        report.wrong(format!("{at}.restartPolicy"), why);
    }
    let ends = is_init && !is_sidecar;
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if !set(container, kind) {
            continue;
        }
        let path = format!("{at}.{kind}");
        if ends {
            report.wrong(
                path,
                "an initContainer that runs to its end has no probes; a sidecar (restartPolicy: Always) has",
            );
        } else {
            probe(container, &container[kind], kind, &path, report);
        }
    }
    for hook in ["postStart", "preStop"] {
        let Some(value) = container.pointer(&format!("/lifecycle/{hook}")).filter(|value| !value.is_null()) else {
            continue;
        };
        let path = format!("{at}.lifecycle.{hook}");
        if ends {
            report.wrong(
                path,
                "an initContainer that runs to its end has no hooks; a sidecar (restartPolicy: Always) has",
            );
        } else {
            handler(container, value, &HOOKS, &path, report);
        }
    }
    if set(&container["lifecycle"], "stopSignal") {
        report.wrong(
            format!("{at}.lifecycle.stopSignal"),
            "not supported by this version of Hearth; an image says its own",
        );
    }
}

fn probe(container: &Value, probe: &Value, kind: &str, path: &str, report: &mut Report) {
    handler(container, probe, &PROBES, path, report);
    let number = |field: &str| probe.get(field).and_then(Value::as_i64);
    for (field, least) in [
        ("initialDelaySeconds", 0),
        ("timeoutSeconds", 1),
        ("periodSeconds", 1),
        ("successThreshold", 1),
        ("failureThreshold", 1),
    ] {
        if number(field).is_some_and(|value| value < least) {
            report.wrong(format!("{path}.{field}"), format!("must be at least {least}"));
        }
    }
    if kind != "readinessProbe" && number("successThreshold").is_some_and(|value| value > 1) {
        report.wrong(format!("{path}.successThreshold"), "must be 1: one good answer is enough here");
    }
    match number("terminationGracePeriodSeconds") {
        Some(_) if kind == "readinessProbe" => {
            report.wrong(format!("{path}.terminationGracePeriodSeconds"), "nothing is killed for not being ready");
        }
        Some(seconds) if !(1..=MAX_GRACE_SECONDS).contains(&seconds) => {
            report.wrong(
                format!("{path}.terminationGracePeriodSeconds"),
                format!("must be from 1 to {MAX_GRACE_SECONDS}"),
            );
        }
        _ => {}
    }
}

fn handler(container: &Value, owner: &Value, known: &[&str], path: &str, report: &mut Report) {
    let all = PROBES.iter().chain(&HOOKS[2..]);
    let given: Vec<&str> = all.copied().filter(|name| owner.get(*name).is_some_and(|value| !value.is_null())).collect();
    let [one] = given[..] else {
        return report.wrong(path, format!("must have exactly one of {}", known.join(", ")));
    };
    if !known.contains(&one) {
        return report.wrong(format!("{path}.{one}"), format!("not supported here; use one of {}", known.join(", ")));
    }
    let (action, at) = (&owner[one], format!("{path}.{one}"));
    match one {
        "exec" if each(action, "command", &at).next().is_none() => {
            report.wrong(format!("{at}.command"), "required");
        }
        "httpGet" => {
            port(container, &action["port"], &format!("{at}.port"), report);
            let scheme = text(action, "scheme");
            if !["", "HTTP", "HTTPS"].contains(&scheme) {
                report.wrong(format!("{at}.scheme"), "must be HTTP or HTTPS");
            }
            if !text(action, "host").is_empty() {
                report.wrong(
                    format!("{at}.host"),
                    "refused: only the pod itself is asked; a Host header can be set in httpHeaders",
                );
            }
            for (at, header) in each(action, "httpHeaders", &at) {
                let name = text(header, "name");
                let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
                if name.is_empty() || !name.bytes().all(token) {
                    report.wrong(format!("{at}.name"), "must be the name of an HTTP header");
                }
                if text(header, "value").bytes().any(|byte| byte != b'\t' && byte.is_ascii_control()) {
                    report.wrong(format!("{at}.value"), "must not have control characters");
                }
            }
        }
        "tcpSocket" => {
            port(container, &action["port"], &format!("{at}.port"), report);
            if !text(action, "host").is_empty() {
                report.wrong(format!("{at}.host"), "refused: only the pod itself is asked");
            }
        }
        "grpc" => port(container, &action["port"], &format!("{at}.port"), report),
        "sleep" => {
            let seconds = action.get("seconds").and_then(Value::as_i64).unwrap_or_default();
            if !(0..=MAX_GRACE_SECONDS).contains(&seconds) {
                report.wrong(format!("{at}.seconds"), format!("must be from 0 to {MAX_GRACE_SECONDS}"));
            }
        }
        _ => {}
    }
}

fn port(container: &Value, port: &Value, path: &str, report: &mut Report) {
    match port {
        Value::Number(number) if number.as_i64().is_some_and(|port| (1..=65_535).contains(&port)) => {}
        Value::String(name) if each(container, "ports", "").any(|(_, port)| text(port, "name") == name.as_str()) => {}
        Value::String(name) => report.wrong(path, format!("the container has no port named {name:?}")),
        _ => report.wrong(path, "must be from 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(container: Value, is_init: bool) -> Vec<String> {
        let mut report = Report::default();
        super::container(&container, is_init, "c", &mut report);
        report.causes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_kubernetes_allows_is_accepted() {
        let handlers = [
            json!({"exec": {"command": ["true"]}}),
            json!({"httpGet": {"port": "web", "path": "/", "scheme": "HTTPS", "httpHeaders": [{"name": "Host", "value": "a b"}]}}),
            json!({"tcpSocket": {"port": 80}}),
            json!({"grpc": {"port": 80, "service": ""}, "periodSeconds": 1, "failureThreshold": 5}),
        ];
        for handler in handlers {
            let container = json!({"name": "c", "ports": [{"name": "web", "containerPort": 1}],
                "livenessProbe": handler, "startupProbe": handler, "readinessProbe": handler});
            assert_eq!(causes(container.clone(), false), Vec::<String>::new());
            let mut sidecar = container;
            sidecar["restartPolicy"] = json!("Always");
            sidecar["lifecycle"] =
                json!({"postStart": {"exec": {"command": ["a"]}}, "preStop": {"sleep": {"seconds": 5}}});
            assert_eq!(causes(sidecar, true), Vec::<String>::new());
        }
        assert_eq!(causes(json!({"name": "c"}), true), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        let exec = || json!({"exec": {"command": ["true"]}});
        let with = |field: &str, value: Value| {
            let mut probe = exec();
            probe[field] = value;
            probe
        };
        for (container, is_init, expected) in [
            (json!({"restartPolicy": "Always"}), false, "c.restartPolicy: only an initContainer"),
            (json!({"restartPolicy": "Never"}), true, "c.restartPolicy: must be Always"),
            (json!({"livenessProbe": exec()}), true, "c.livenessProbe: an initContainer"),
            (json!({"lifecycle": {"preStop": exec()}}), true, "c.lifecycle.preStop: an initContainer"),
            (json!({"livenessProbe": {"periodSeconds": 5}}), false, "c.livenessProbe: must have exactly one"),
            (json!({"livenessProbe": {"exec": {"command": []}}}), false, "c.livenessProbe.exec.command: required"),
            (
                json!({"livenessProbe": with("tcpSocket", json!({"port": 1}))}),
                false,
                "c.livenessProbe: must have exactly one",
            ),
            (
                json!({"livenessProbe": with("successThreshold", json!(2))}),
                false,
                "c.livenessProbe.successThreshold: must be 1",
            ),
            (
                json!({"readinessProbe": with("periodSeconds", json!(0))}),
                false,
                "c.readinessProbe.periodSeconds: must be at least 1",
            ),
            (
                json!({"readinessProbe": with("terminationGracePeriodSeconds", json!(3))}),
                false,
                "c.readinessProbe.termination",
            ),
            (
                json!({"startupProbe": with("terminationGracePeriodSeconds", json!(0))}),
                false,
                "c.startupProbe.termination",
            ),
            (
                json!({"startupProbe": {"tcpSocket": {"port": 0}}}),
                false,
                "c.startupProbe.tcpSocket.port: must be from 1",
            ),
            (
                json!({"startupProbe": {"httpGet": {"port": "web"}}}),
                false,
                "c.startupProbe.httpGet.port: the container has no port",
            ),
            (
                json!({"startupProbe": {"httpGet": {"port": 1, "host": "192.168.1.1"}}}),
                false,
                "c.startupProbe.httpGet.host: refused",
            ),
            (
                json!({"startupProbe": {"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}}}),
                false,
                "c.startupProbe.httpGet.httpHeaders[0].name",
            ),
            (
                json!({"lifecycle": {"preStop": {"tcpSocket": {"port": 1}}}}),
                false,
                "c.lifecycle.preStop.tcpSocket: not supported",
            ),
            (json!({"lifecycle": {"stopSignal": "SIGINT"}}), false, "c.lifecycle.stopSignal: not supported"),
        ] {
            let found = causes(container.clone(), is_init);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{container}: {found:?}");
        }
    }
}
