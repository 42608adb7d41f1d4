//! The printer columns of each kind: what `get` shows. The texts are kubectl's where it has the kind.

use serde_json::Value;

use crate::{Timestamp, condition, kinds::DeviceNetwork, selector::text_at, time::human_duration};

/// What a column shows of an object.
pub type Cell = fn(&Value, Timestamp) -> String;

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The heading.
    pub name: &'static str,
    /// Whether only `-o wide` shows it.
    pub wide: bool,
    /// What it shows.
    pub cell: Cell,
}

const fn column(name: &'static str, cell: Cell) -> Column {
    Column { name, wide: false, cell }
}

const fn wide(name: &'static str, cell: Cell) -> Column {
    Column { name, wide: true, cell }
}

const NAME: Column = column("NAME", |object, _| text_at(object, "metadata.name"));
const AGE: Column = column("AGE", |object, now| age(object, "metadata.creationTimestamp", now));
const IMAGES: Column = wide("IMAGES", |object, _| images(object));

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}

fn age(object: &Value, path: &str, now: Timestamp) -> String {
    Timestamp::parse(&text_at(object, path)).map_or_else(|| "<unknown>".into(), |then| human_duration(now.since(then)))
}

fn number(object: &Value, path: &str) -> String {
    let text = text_at(object, path);
    if text.is_empty() { "0".into() } else { text }
}

fn list<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn images(object: &Value) -> String {
    list(object, "/spec/template/spec/containers").map(|one| text_at(one, "image")).collect::<Vec<_>>().join(",")
}

fn condition_text(object: &Value, r#type: &str) -> String {
    match condition::get(object, r#type) {
        Some(found) => format!("{:?}", found.status),
        None => "Unknown".into(),
    }
}

pub(super) static NAMESPACE: &[Column] = &[NAME, column("STATUS", |object, _| text_at(object, "status.phase")), AGE];

pub(super) static NODE: &[Column] = &[
    NAME,
    column("STATUS", |object, _| node_status(object)),
    column("OWNER", |object, _| or_none(label(object, "hearth.dev/owner"))),
    AGE,
    column("VERSION", |object, _| text_at(object, "status.nodeInfo.kubeletVersion")),
    wide("ARCH", |object, _| text_at(object, "status.nodeInfo.architecture")),
    wide("OS-IMAGE", |object, _| text_at(object, "status.nodeInfo.osImage")),
    wide("KERNEL-VERSION", |object, _| text_at(object, "status.nodeInfo.kernelVersion")),
    wide("CPU", |object, _| text_at(object, "status.allocatable.cpu")),
    wide("MEMORY", |object, _| text_at(object, "status.allocatable.memory")),
];

fn label(object: &Value, key: &str) -> String {
    object
        .pointer("/metadata/labels")
        .and_then(|labels| labels.get(key))
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn node_status(object: &Value) -> String {
    let ready = match condition::get(object, "Ready").map(|found| found.status) {
        Some(condition::Truth::True) => "Ready",
        Some(condition::Truth::False) => "NotReady",
        _ => "Unknown",
    };
    let cordoned = object.pointer("/spec/unschedulable") == Some(&Value::Bool(true));
    format!("{ready}{}", if cordoned { ",SchedulingDisabled" } else { "" })
}

pub(super) static POD: &[Column] = &[
    NAME,
    column("READY", |object, _| {
        let sidecars = list(object, "/spec/initContainers").filter(|one| one["restartPolicy"] == "Always").count();
        let first = list(object, "/status/initContainerStatuses").filter(|one| is_sidecar(object, &one["name"]));
        let ready = list(object, "/status/containerStatuses").chain(first).filter(|one| one["ready"] == true).count();
        format!("{ready}/{}", list(object, "/spec/containers").count() + sidecars)
    }),
    column("STATUS", |object, _| pod_status(object)),
    column("RESTARTS", restarts),
    AGE,
    wide("IP", |object, _| or_none(text_at(object, "status.podIP"))),
    wide("NODE", |object, _| or_none(text_at(object, "spec.nodeName"))),
];

/// kubectl's STATUS of a pod: its phase, unless a container has something more telling to say.
pub(crate) fn pod_status(object: &Value) -> String {
    let mut status = text_at(object, "status.reason");
    if status.is_empty() {
        status = text_at(object, "status.phase");
    }
    let mut running = false;
    let initializing = initializing(object);
    let begun = initializing.is_none();
    status = initializing.unwrap_or(status);
    for container in list(object, "/status/containerStatuses").filter(|_| begun) {
        let state = &container["state"];
        let waiting = text_at(state, "waiting.reason");
        if !waiting.is_empty() {
            status = waiting;
        } else if let Some(how) = how_it_ended(state) {
            status = how;
        } else if state.get("running").is_some() && container["ready"] == true {
            running = true;
        }
    }
    if status == "Completed" && running {
        status = "Running".into();
    }
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        status = if text_at(object, "status.reason") == "NodeLost" { "Unknown".into() } else { "Terminating".into() };
    }
    if status.is_empty() { "Pending".into() } else { status }
}

/// How a container ended, where it did.
fn how_it_ended(state: &Value) -> Option<String> {
    state.get("terminated")?;
    let reason = text_at(state, "terminated.reason");
    if !reason.is_empty() {
        return Some(reason);
    }
    Some(match text_at(state, "terminated.signal") {
        signal if !signal.is_empty() && signal != "0" => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", number(state, "terminated.exitCode")),
    })
}

fn is_sidecar(object: &Value, name: &Value) -> bool {
    list(object, "/spec/initContainers").any(|one| one["name"] == *name && one["restartPolicy"] == "Always")
}

/// What is said of a pod that is being initialised: of the first container that has not done its part.
fn initializing(object: &Value) -> Option<String> {
    let total = list(object, "/spec/initContainers").count();
    for (done, container) in list(object, "/status/initContainerStatuses").enumerate() {
        let state = &container["state"];
        let waiting = text_at(state, "waiting.reason");
        if number(state, "terminated.exitCode") == "0" && state.get("terminated").is_some() {
            continue;
        }
        if container["started"] == true && is_sidecar(object, &container["name"]) {
            continue;
        }
        return Some(match how_it_ended(state) {
            Some(how) => format!("Init:{how}"),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{done}/{total}"),
        });
    }
    None
}

fn restarts(object: &Value, now: Timestamp) -> String {
    let sidecars = || list(object, "/status/initContainerStatuses").filter(|one| is_sidecar(object, &one["name"]));
    let count: u64 = list(object, "/status/containerStatuses")
        .chain(sidecars())
        .filter_map(|one| one["restartCount"].as_u64())
        .sum();
    let last = list(object, "/status/containerStatuses")
        .chain(sidecars())
        .filter_map(|one| Timestamp::parse(&text_at(one, "lastState.terminated.finishedAt")))
        .max();
    match last {
        Some(last) if count > 0 => format!("{count} ({} ago)", human_duration(now.since(last))),
        _ => count.to_string(),
    }
}

pub(super) static CONFIG_MAP: &[Column] = &[NAME, column("DATA", |object, _| data_count(object).to_string()), AGE];

fn data_count(object: &Value) -> usize {
    ["data", "binaryData"].iter().filter_map(|field| object.get(field)?.as_object()).map(serde_json::Map::len).sum()
}

pub(super) static SECRET: &[Column] = &[
    NAME,
    column("TYPE", |object, _| text_at(object, "type")),
    column("DATA", |object, _| data_count(object).to_string()),
    AGE,
];

pub(super) static CLAIM: &[Column] = &[
    NAME,
    column("STATUS", |object, _| {
        if object.pointer("/metadata/deletionTimestamp").is_some() {
            "Terminating".into()
        } else {
            text_at(object, "status.phase")
        }
    }),
    column("DEVICE", |object, _| {
        let annotations = object.pointer("/metadata/annotations");
        or_none(
            annotations
                .and_then(|all| all.get(crate::store::CLAIM_DEVICE))
                .and_then(Value::as_str)
                .unwrap_or_default()
                .into(),
        )
    }),
    column("CAPACITY", |object, _| text_at(object, "spec.resources.requests.storage")),
    column("ACCESS MODES", |object, _| {
        list(object, "/spec/accessModes").filter_map(Value::as_str).map(access_mode).collect::<Vec<_>>().join(",")
    }),
    AGE,
];

fn access_mode(mode: &str) -> &str {
    match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        other => other,
    }
}

pub(super) static EVENT: &[Column] = &[
    column("LAST SEEN", |object, now| age(object, "lastTimestamp", now)),
    column("TYPE", |object, _| text_at(object, "type")),
    column("REASON", |object, _| text_at(object, "reason")),
    column("OBJECT", |object, _| {
        format!("{}/{}", text_at(object, "involvedObject.kind").to_lowercase(), text_at(object, "involvedObject.name"))
    }),
    wide("SOURCE", |object, _| text_at(object, "source.component")),
    column("MESSAGE", |object, _| text_at(object, "message")),
    wide("COUNT", |object, _| number(object, "count")),
    wide("NAME", |object, _| text_at(object, "metadata.name")),
];

pub(super) static SERVICE: &[Column] = &[
    NAME,
    column("TYPE", |object, _| text_at(object, "spec.type")),
    // Each device that runs pods of the namespace has an address of its own for it.
    column("CLUSTER-IP", |object, _| match text_at(object, "spec.clusterIP").as_str() {
        "None" => "None".into(),
        _ => "<per-device>".into(),
    }),
    column("EXTERNAL-IP", |_, _| "<none>".into()),
    column("PORT(S)", |object, _| {
        let ports = list(object, "/spec/ports");
        let ports = ports.map(|one| format!("{}/{}", number(one, "port"), text_at(one, "protocol")));
        or_none(ports.collect::<Vec<_>>().join(","))
    }),
    AGE,
    wide("SELECTOR", |object, _| {
        let selector = object.pointer("/spec/selector").and_then(Value::as_object).into_iter().flatten();
        let pairs = selector.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
        or_none(pairs.collect::<Vec<_>>().join(","))
    }),
];

pub(super) static DEPLOYMENT: &[Column] = &[
    NAME,
    column("READY", |object, _| {
        format!("{}/{}", number(object, "status.readyReplicas"), number(object, "spec.replicas"))
    }),
    column("UP-TO-DATE", |object, _| number(object, "status.updatedReplicas")),
    column("AVAILABLE", |object, _| number(object, "status.availableReplicas")),
    AGE,
    IMAGES,
];

pub(super) static REPLICA_SET: &[Column] = &[
    NAME,
    column("DESIRED", |object, _| number(object, "spec.replicas")),
    column("CURRENT", |object, _| number(object, "status.replicas")),
    column("READY", |object, _| number(object, "status.readyReplicas")),
    AGE,
    IMAGES,
];

pub(super) static APP: &[Column] = &[
    NAME,
    column("VERSION", |object, _| or_none(text_at(object, "spec.version"))),
    column("DISPLAY NAME", |object, _| or_none(text_at(object, "spec.displayName"))),
    AGE,
    wide("IMAGES", |object, _| {
        list(object, "/spec/containers").map(|one| text_at(one, "image")).collect::<Vec<_>>().join(",")
    }),
];

pub(super) static INSTALL: &[Column] = &[
    NAME,
    column("APP", |object, _| text_at(object, "spec.app")),
    column("READY", |object, _| condition_text(object, "Ready")),
    column("STATUS", |object, _| condition::get(object, "Ready").map(|found| found.reason).unwrap_or_default()),
    column("HOSTNAME", |object, _| or_none(text_at(object, "status.hostname"))),
    AGE,
    wide("DEVICE", |object, _| or_none(text_at(object, "status.device"))),
    wide("MESSAGE", |object, _| condition::get(object, "Ready").map(|found| found.message).unwrap_or_default()),
];

pub(super) static DEVICE: &[Column] = &[
    NAME,
    column("OWNER", |object, _| text_at(object, "spec.owner")),
    column("CONNECTED", |object, _| condition_text(object, "Connected")),
    column("VERSION", |object, _| text_at(object, "status.info.agentVersion")),
    AGE,
    wide("LENDING", |object, _| {
        or_none(condition::get(object, "Lending").map(|found| format!("{:?}", found.status)).unwrap_or_default())
    }),
    wide("PATH", |object, _| or_none(network(object).map(|one| one.path_text()).unwrap_or_default())),
    wide("UDP", |object, _| or_none(text_at(object, "status.network.udp"))),
    wide("NAT", |object, _| or_none(text_at(object, "status.network.mapping"))),
    wide("ARCH", |object, _| text_at(object, "status.info.architecture")),
    wide("KERNEL-VERSION", |object, _| text_at(object, "status.info.kernelVersion")),
    wide("OS-IMAGE", |object, _| text_at(object, "status.info.osImage")),
];

fn network(object: &Value) -> Option<DeviceNetwork> {
    DeviceNetwork::read(object.pointer("/status/network")?)
}

pub(super) static RELAY: &[Column] = &[
    NAME,
    column("URL", |object, _| text_at(object, "spec.url")),
    column("DISCOVERY", |object, _| or_none(text_at(object, "spec.discoveryPort"))),
    wide("KEY", |object, _| or_none(text_at(object, "spec.key"))),
    AGE,
];

pub(super) static CERTIFICATE: &[Column] = &[
    NAME,
    column("DEVICE", |object, _| text_at(object, "spec.device")),
    column("READY", |object, _| condition_text(object, "Ready")),
    column("STATUS", |object, _| condition::get(object, "Issuing").map(|found| found.reason).unwrap_or_default()),
    column("EXPIRES", |object, _| or_none(text_at(object, "status.notAfter"))),
    AGE,
    wide("NAMES", |object, _| {
        or_none(list(object, "/spec/dnsNames").filter_map(Value::as_str).collect::<Vec<_>>().join(","))
    }),
    wide("RENEWAL", |object, _| or_none(text_at(object, "status.renewalTime"))),
    wide("ISSUER", |object, _| or_none(text_at(object, "status.issuer"))),
];

pub(super) static ROUTE: &[Column] = &[
    NAME,
    column("HOSTNAME", |object, _| text_at(object, "spec.hostname")),
    column("READY", |object, _| condition_text(object, "Ready")),
    column("DEVICES", |object, _| {
        let mut devices: Vec<_> = list(object, "/status/endpoints").map(|one| text_at(one, "device")).collect();
        devices.sort();
        devices.dedup();
        or_none(devices.join(","))
    }),
    AGE,
];

pub(super) static DNS_ENDPOINT: &[Column] = &[
    NAME,
    column("RECORDS", |object, _| {
        let records = list(object, "/spec/endpoints")
            .map(|one| format!("{} {}", text_at(one, "dnsName"), text_at(one, "recordType")));
        or_none(records.collect::<Vec<_>>().join(","))
    }),
    AGE,
];
