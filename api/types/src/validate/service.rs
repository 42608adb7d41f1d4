//! Services.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Report, each, pod::one_of, text};
use crate::names;

/// Ports of one Service at most.
const MAX_PORTS: usize = 100;
/// The longest name of a port (RFC 6335 section 5.1).
const MAX_PORT_NAME: usize = 15;
/// What a Service is not, and what is instead.
const ROUTE: &str = "a Service leads from pods to pods of the same device; what is to be reached from outside has a Route (kind Route, \
     hearth.dev/v1alpha1)";

/// Fields that would lead to or from the outside.
const OUTSIDE: [&str; 9] = [
    "allocateLoadBalancerNodePorts",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "sessionAffinityConfig",
];

pub(super) fn service(object: &Value, report: &mut Report) {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        report.wrong("metadata.name", format!("{name:?}: must start with a letter (RFC 1035 section 2.3.1)"));
    }
    let spec = &object["spec"];
    let kind = text(spec, "type");
    if kind != "ClusterIP" {
        report.wrong("spec.type", format!("{kind:?}: must be ClusterIP; {ROUTE}"));
    }
    for field in OUTSIDE.into_iter().filter(|field| says_something(&spec[field])) {
        let why = if field == "sessionAffinityConfig" { "not supported by this version of Hearth" } else { ROUTE };
        report.wrong(format!("spec.{field}"), why);
    }
    let headless = text(spec, "clusterIP") == "None";
    addresses(spec, headless, report);
    if text(spec, "sessionAffinity") != "None" {
        report.wrong("spec.sessionAffinity", "must be None: connections of one caller go to whichever pod is ready");
    }
    one_of(spec, "internalTrafficPolicy", &["Cluster", "Local"], "spec", report);
    one_of(spec, "ipFamilyPolicy", &["SingleStack", "PreferDualStack", "RequireDualStack"], "spec", report);
    for field in ["ipFamilyPolicy", "ipFamilies", "trafficDistribution"] {
        if says_something(&spec[field]) {
            report.warn(
                &format!("spec.{field}"),
                "not acted on: a Service has the families of its pods, on their device",
            );
        }
    }
    match spec.get("selector").and_then(Value::as_object) {
        Some(selector) if !selector.is_empty() => super::labels(&spec["selector"], "spec.selector", report),
        _ => report.wrong("spec.selector", "required: a Service leads to the pods that have these labels"),
    }
    ports(spec, headless, report);
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Number(number) => number.as_i64() != Some(0),
        Value::Bool(true) | Value::Object(_) => true,
    }
}

fn addresses(spec: &Value, headless: bool, report: &mut Report) {
    let why = "must be None or left out: each device chooses an address of its own, which the name leads to";
    let ip = text(spec, "clusterIP");
    if !headless && !ip.is_empty() {
        report.wrong("spec.clusterIP", format!("{ip:?}: {why}"));
    }
    for (path, one) in each(spec, "clusterIPs", "spec") {
        if !(headless && one == "None") {
            report.wrong(path, format!("{one}: {why}"));
        }
    }
}

fn ports(spec: &Value, headless: bool, report: &mut Report) {
    let all: Vec<_> = each(spec, "ports", "spec").collect();
    if all.is_empty() {
        if headless {
            report.warn("spec.ports", "none: the name leads to the pods, and no connection to them is let through");
        } else {
            report.wrong("spec.ports", "required");
        }
    }
    if all.len() > MAX_PORTS {
        report.wrong("spec.ports", format!("at most {MAX_PORTS}"));
    }
    let several = all.len() > 1;
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (path, port) in all.iter().take(MAX_PORTS) {
        let name = text(port, "name");
        if !name.is_empty() {
            report.name(&format!("{path}.name"), name, names::dns_label);
            if !names.insert(name) {
                report.wrong(format!("{path}.name"), format!("{name:?} is there twice"));
            }
        } else if several {
            report.wrong(format!("{path}.name"), "required where there are several ports");
        }
        let protocol = text(port, "protocol");
        if !matches!(protocol, "TCP" | "UDP") {
            report.wrong(format!("{path}.protocol"), format!("{protocol:?}: must be one of TCP, UDP"));
        }
        number(&port["port"], &format!("{path}.port"), report);
        if !numbers.insert((protocol, port["port"].as_i64())) {
            report.wrong(format!("{path}.port"), format!("{} of {protocol} is there twice", port["port"]));
        }
        match port.get("targetPort") {
            Some(Value::String(name)) => target_name(name, &format!("{path}.targetPort"), report),
            Some(target) => number(target, &format!("{path}.targetPort"), report),
            None => {}
        }
        if says_something(&port["nodePort"]) {
            report.wrong(format!("{path}.nodePort"), ROUTE);
        }
    }
}

fn number(value: &Value, path: &str, report: &mut Report) {
    if !value.as_i64().is_some_and(|number| (1..=65_535).contains(&number)) {
        report.wrong(path, "must be 1 to 65535");
    }
}

/// The name of a container port (`IANA_SVC_NAME`).
fn target_name(name: &str, path: &str, report: &mut Report) {
    if names::dns_label(name).is_err() || name.len() > MAX_PORT_NAME || !name.bytes().any(|b| b.is_ascii_lowercase()) {
        let why =
            format!("must be a port, or the name of one: at most {MAX_PORT_NAME} of a-z, 0-9 and '-', with a letter");
        report.wrong(path, format!("{name:?}: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(spec: Value) -> Vec<String> {
        let mut report = Report::default();
        service(&json!({"metadata": {"name": "db"}, "spec": spec}), &mut report);
        report.causes.iter().map(ToString::to_string).collect()
    }

    fn with(field: &str, value: Value) -> Vec<String> {
        let mut spec = json!({"type": "ClusterIP", "sessionAffinity": "None", "selector": {"app": "db"},
            "ports": [{"port": 5432, "protocol": "TCP", "targetPort": "sql"}]});
        spec[field] = value;
        causes(spec)
    }

    #[test]
    fn what_charts_say_passes() {
        let named = |name: &str, port: i64, protocol: &str| json!({"name": name, "port": port, "protocol": protocol, "targetPort": port});
        for (field, value) in [
            ("clusterIP", json!("")),
            ("clusterIP", json!("None")),
            ("internalTrafficPolicy", json!("Cluster")),
            ("ipFamilyPolicy", json!("SingleStack")),
            ("ipFamilies", json!(["IPv4"])),
            ("externalIPs", json!([])),
            ("publishNotReadyAddresses", json!(true)),
            ("ports", json!([named("dns", 53, "UDP"), named("dns-tcp", 53, "TCP")])),
        ] {
            assert_eq!(with(field, value.clone()), Vec::<String>::new(), "{field} {value}");
        }
    }

    #[test]
    fn what_is_not_done_is_refused_and_says_what_is() {
        for (field, value, expected) in [
            (
                "type",
                json!("NodePort"),
                "spec.type: \"NodePort\": must be ClusterIP; a Service leads from pods to pods",
            ),
            ("type", json!("LoadBalancer"), "has a Route"),
            ("externalName", json!("example.com"), "spec.externalName: a Service leads"),
            ("externalTrafficPolicy", json!("Local"), "spec.externalTrafficPolicy"),
            ("clusterIP", json!("10.0.0.1"), "spec.clusterIP: \"10.0.0.1\": must be None or left out"),
            ("clusterIPs", json!(["10.0.0.1"]), "spec.clusterIPs[0]"),
            ("sessionAffinity", json!("ClientIP"), "spec.sessionAffinity: must be None"),
            ("selector", json!({}), "spec.selector: required"),
            ("selector", json!({"-": "x"}), "spec.selector.-"),
            ("ports", json!([]), "spec.ports: required"),
            ("ports", json!([{"port": 0, "protocol": "TCP"}]), "spec.ports[0].port: must be 1 to 65535"),
            ("ports", json!([{"port": 1, "protocol": "SCTP"}]), "spec.ports[0].protocol: \"SCTP\""),
            ("ports", json!([{"port": 1, "protocol": "TCP", "targetPort": 70000}]), "spec.ports[0].targetPort"),
            ("ports", json!([{"port": 1, "protocol": "TCP", "targetPort": "80"}]), "spec.ports[0].targetPort: \"80\""),
            ("ports", json!([{"port": 1, "protocol": "TCP", "nodePort": 30000}]), "spec.ports[0].nodePort: a Service"),
            (
                "ports",
                json!([{"port": 1, "protocol": "TCP"}, {"name": "x", "port": 2, "protocol": "TCP"}]),
                "spec.ports[0].name: required",
            ),
            (
                "ports",
                json!([{"name": "x", "port": 1, "protocol": "TCP"}, {"name": "x", "port": 1, "protocol": "TCP"}]),
                "spec.ports[1].port: 1 of TCP is there twice",
            ),
        ] {
            let found = with(field, value.clone());
            assert!(found.iter().any(|one| one.contains(expected)), "{field} {value}: {found:?}");
        }
    }
}
