//! Hearth's own kinds.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::Value;

use super::{Report, bandwidth, each, immutable, pod, text, volume};
use crate::{
    DeviceKey, domains, external,
    hours::Hours,
    kinds::{Lend, ON_RETURN},
    lease::VOLUME_POLICIES,
    names, quantity, relay,
};

/// Keys of one device at most: the one in use, and one that it is rotated to, with room to spare.
const MAX_KEYS: usize = 8;

/// Seconds of silence after which an Install is moved: more than a line that comes and goes takes, and a month.
const MOVE_AFTER_SECONDS: std::ops::RangeInclusive<i64> = 5..=2_592_000;

/// Services that one App asks for at most.
const MAX_SERVICES: usize = 64;

/// The architectures of Linux that Go and OCI images have names for (`GOARCH`).
const ARCHITECTURES: &[&str] = &[
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x",
];

fn architectures(spec: &Value, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for (path, one) in each(spec, "architectures", "spec") {
        let name = one.as_str().unwrap_or_default();
        if !ARCHITECTURES.contains(&name) {
            let known = ARCHITECTURES.join(", ");
            report.wrong(path, format!("{name:?} is no architecture's name; must be one of {known}"));
        } else if !seen.insert(name) {
            report.wrong(path, format!("{name:?} is there twice"));
        }
    }
}

pub(super) fn app(object: &Value, report: &mut Report) {
    let spec = &object["spec"];
    architectures(spec, report);
    let mut names_seen = BTreeSet::new();
    for (path, one) in each(spec, "volumes", "spec") {
        let name = text(one, "name");
        report.name(&format!("{path}.name"), name, names::dns_label);
        if !names_seen.insert(name) {
            report.wrong(format!("{path}.name"), format!("{name:?} is there twice"));
        }
        let sources: Vec<_> = ["size", "emptyDir", "configMap", "secret", "hostPath"]
            .into_iter()
            .filter(|field| one.get(*field).is_some())
            .collect();
        if sources.len() != 1 {
            report.wrong(path.clone(), "must have exactly one of size, emptyDir, configMap, secret, hostPath");
        }
        if sources == ["emptyDir"] {
            volume::empty_dir(&one["emptyDir"], &format!("{path}.emptyDir"), report);
        }
        pod::one_of(one, "policy", &VOLUME_POLICIES, &path, report);
        if one.get("policy").is_some() && sources != ["size"] {
            report.wrong(format!("{path}.policy"), "is of kept data: set it with size");
        }
        if sources == ["size"] && quantity::bytes(text(one, "size")) == Ok(0) {
            report.wrong(format!("{path}.size"), "must be above zero");
        }
    }
    pod::containers(spec, "spec", &names_seen, report);
    services(&spec["permissions"], "spec.permissions", report);
    for (path, capability) in each(&spec["permissions"], "capabilities", "spec.permissions") {
        pod::check_capability(capability.as_str().unwrap_or_default(), &path, report);
    }
    for (path, container) in each(spec, "initContainers", "spec").chain(each(spec, "containers", "spec")) {
        if container.pointer("/securityContext/capabilities/add").is_some() {
            report.wrong(
                format!("{path}.securityContext.capabilities.add"),
                "an App asks for capabilities in spec.permissions.capabilities",
            );
        }
    }
    if let Some(port) = spec.pointer("/ingress/port") {
        ingress_port(spec, port, report);
    }
}

fn ingress_port(spec: &Value, wanted: &Value, report: &mut Report) {
    // Of what runs while the app does: sidecars, too.
    let sidecars = each(spec, "initContainers", "").filter(|(_, one)| text(one, "restartPolicy") == "Always");
    let lasting = sidecars.chain(each(spec, "containers", ""));
    let mut ports = lasting.flat_map(|(_, one)| one.get("ports").and_then(Value::as_array).into_iter().flatten());
    let found = ports.any(|port| match wanted {
        Value::String(name) => text(port, "name") == name,
        number => port.get("containerPort") == Some(number),
    });
    // A number need not be declared, as in Kubernetes; a name has to lead somewhere.
    match wanted {
        Value::String(name) if !found => {
            report.wrong("spec.ingress.port", format!("no container has a port named {name:?}"))
        }
        Value::Number(number) if !number.as_i64().is_some_and(|port| (1..=65_535).contains(&port)) => {
            report.wrong("spec.ingress.port", "must be from 1 to 65535");
        }
        _ => {}
    }
}

/// Names of Services that are asked for or granted.
fn services(value: &Value, path: &str, report: &mut Report) {
    let all: Vec<_> = each(value, "services", path).collect();
    if all.len() > MAX_SERVICES {
        report.wrong(format!("{path}.services"), format!("at most {MAX_SERVICES}"));
    }
    for (path, one) in all.into_iter().take(MAX_SERVICES) {
        report.name(&path, one.as_str().unwrap_or_default(), names::dns_label);
    }
}

pub(super) fn install(object: &Value, old: Option<&Value>, zone: &str, report: &mut Report) {
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    owner("metadata.namespace", namespace, report);
    report.name("spec.app", object.pointer("/spec/app").and_then(Value::as_str).unwrap_or_default(), names::dns_label);
    immutable(old, object, "/spec/app", "delete the Install and install the other App; claims are kept", report);
    let replicas = object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
    if !(0..=super::workload::MAX_REPLICAS).contains(&replicas) {
        report.wrong("spec.replicas", format!("must be from 0 to {}", super::workload::MAX_REPLICAS));
    }
    pod::env(&object["spec"], "spec", report);
    pod::pull_secrets(&object["spec"], "spec", report);
    for (path, capability) in each(&object["spec"]["grants"], "capabilities", "spec.grants") {
        pod::check_capability(capability.as_str().unwrap_or_default(), &path, report);
    }
    services(&object["spec"]["grants"], "spec.grants", report);
    let mut volumes = BTreeSet::new();
    for (path, one) in each(&object["spec"]["grants"], "hostPaths", "spec.grants") {
        let volume = text(one, "volume");
        report.name(&format!("{path}.volume"), volume, names::dns_label);
        if !volumes.insert(volume) {
            report.wrong(format!("{path}.volume"), format!("{volume:?} is there twice"));
        }
        volume::host_path(&format!("{path}.path"), text(one, "path"), report);
    }
    if let Some(device) = object.pointer("/spec/placement/device").and_then(Value::as_str) {
        report.name("spec.placement.device", device, names::dns_label);
    }
    disconnect(&object["spec"]["placement"], report);
    bandwidth::field(&object["spec"], "spec", report);
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    if name.len() + namespace.len() + zone.len() + 2 > names::MAX_SUBDOMAIN {
        report.wrong(
            "metadata.name",
            format!("the hostname {name}.{namespace}.{zone} would be longer than 253 characters"),
        );
    }
}

fn disconnect(placement: &Value, report: &mut Report) {
    let Some(disconnect) = placement.get("disconnect").filter(|one| one.is_object()) else {
        return;
    };
    let path = "spec.placement.disconnect";
    let seconds = disconnect.get("moveAfterSeconds").and_then(Value::as_i64).unwrap_or_default();
    if !MOVE_AFTER_SECONDS.contains(&seconds) {
        let (first, last) = MOVE_AFTER_SECONDS.into_inner();
        report.wrong(format!("{path}.moveAfterSeconds"), format!("must be from {first} to {last}"));
    }
    pod::one_of(disconnect, "onReturn", &ON_RETURN, path, report);
    if placement.get("device").is_some_and(|device| !device.is_null()) {
        report.wrong(path, "there is no other device where spec.placement.device names one; remove either");
    }
}

/// Checks that a name can be an owner's.
pub(super) fn owner(path: &str, name: &str, report: &mut Report) {
    if names::RESERVED_OWNERS.contains(&name) {
        report.wrong(path, format!("{name:?} is reserved and no owner's namespace; give the owner with -n"));
    } else {
        report.name(path, name, names::dns_label);
    }
}

pub(super) fn device(object: &Value, old: Option<&Value>, report: &mut Report) {
    owner("spec.owner", object.pointer("/spec/owner").and_then(Value::as_str).unwrap_or_default(), report);
    immutable(old, object, "/spec/owner", "remove the device and let it join its new owner", report);
    bandwidth::field(&object["spec"], "spec", report);
    bandwidth::field(&object["spec"]["lend"], "spec.lend", report);
    hours(&object["spec"]["lend"], report);
    external_ips(&object["spec"]["publish"], report);
    let keys = each(&object["spec"], "keys", "spec").collect::<Vec<_>>();
    if keys.len() > MAX_KEYS {
        report.wrong("spec.keys", format!("at most {MAX_KEYS}"));
    }
    for (path, key) in keys {
        if let Err(why) = key.as_str().unwrap_or_default().parse::<DeviceKey>() {
            report.wrong(path, why.to_string());
        }
    }
}

fn external_ips(publish: &Value, report: &mut Report) {
    let path = "spec.publish";
    let ips: Vec<_> = each(publish, "externalIPs", path).collect();
    if ips.len() > external::MAX_ADDRESSES {
        report.wrong(format!("{path}.externalIPs"), format!("at most {}", external::MAX_ADDRESSES));
    }
    for (path, ip) in ips {
        let text = ip.as_str().unwrap_or_default();
        match text.parse::<IpAddr>() {
            Err(_) => report.wrong(path, format!("{text:?} is no IP address")),
            Ok(ip) if !external::is_global(ip) => report.wrong(
                path,
                format!("{ip} is no address by which the internet reaches a machine; give the one that your router has outside"),
            ),
            Ok(_) => {}
        }
    }
}

fn hours(lend: &Value, report: &mut Report) {
    // What does not read is the schema's to say.
    let Ok(lend) = serde_json::from_value::<Lend>(lend.clone()) else { return };
    for bad in Hours::read(&lend).err().into_iter().flatten() {
        report.wrong(format!("spec.lend.{}", bad.field), bad.why);
    }
}

pub(super) fn relay(object: &Value, report: &mut Report) {
    let url = object.pointer("/spec/url").and_then(Value::as_str).unwrap_or_default();
    if let Err(why) = relay::check_url(url) {
        report.wrong("spec.url", format!("{url:?}: {why}"));
    }
    if object.pointer("/spec/discoveryPort").is_some_and(|port| *port == 0) {
        report.wrong("spec.discoveryPort", "must be 1 to 65535; leave it away where there is none");
    }
    let key = object.pointer("/spec/key").and_then(Value::as_str);
    if key.is_some_and(|key| key.parse::<DeviceKey>().is_err()) {
        report.wrong("spec.key", "must be an Ed25519 public key, 64 hex digits");
    }
}

pub(super) fn route(object: &Value, zone: &str, report: &mut Report) {
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    owner("metadata.namespace", namespace, report);
    let hostname = object.pointer("/spec/hostname").and_then(Value::as_str).unwrap_or_default();
    let suffix = format!(".{namespace}.{zone}");
    let own = hostname.ends_with(&suffix) && hostname.len() > suffix.len();
    let https = matches!(object.pointer("/spec/protocol").and_then(Value::as_str), None | Some("HTTPS"));
    // A domain of one label is a top-level one; and its record has a name, too.
    let custom = https
        && domains::is_custom(hostname, zone)
        && hostname.contains('.')
        && domains::challenge_name(hostname).len() <= names::MAX_SUBDOMAIN
        && hostname.rsplit('.').next().is_some_and(|last| !last.bytes().all(|byte| byte.is_ascii_digit()));
    if names::dns_subdomain(hostname).is_err() || !(own || custom) {
        let why = format!(
            "{hostname:?}: must be a lowercase hostname that ends in {suffix}, or with HTTPS a domain outside of {zone}"
        );
        report.wrong("spec.hostname", why);
    }
    let selector = object.pointer("/spec/target/selector").and_then(Value::as_object);
    if selector.is_none_or(serde_json::Map::is_empty) {
        report.wrong("spec.target.selector", "must not be empty: it would select every pod");
    }
    let port = object.pointer("/spec/port").filter(|port| !port.is_null());
    let proxy = object.pointer("/spec/proxyProtocol").filter(|one| !one.is_null());
    match object.pointer("/spec/protocol").and_then(Value::as_str) {
        Some(protocol @ ("TCP" | "UDP")) => {
            if !port.and_then(Value::as_u64).is_some_and(|port| (1..=u64::from(u16::MAX)).contains(&port)) {
                let why = format!("must be a port between 1 and 65535: with protocol {protocol} it tells Routes apart");
                report.wrong("spec.port", why);
            }
        }
        None | Some("HTTPS") => {
            if port.is_some() {
                report.wrong("spec.port", "may be set with protocol TCP or UDP only: HTTPS has the gateway's own port");
            }
            if proxy.is_some() {
                let why = "may be set with protocol TCP or UDP only: behind HTTPS, X-Forwarded-For says who calls";
                report.wrong("spec.proxyProtocol", why);
            }
        }
        Some(other) => report.wrong("spec.protocol", format!("{other:?}: must be HTTPS, TCP or UDP")),
    }
}
