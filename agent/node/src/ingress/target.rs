//! Which pod answers a request, or why none does. Pure but for reading what the workers publish.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hearth_pod::Phase;
use hearth_types::kinds::Pod;
use serde_json::Value;

use super::{Port, RouteView};
use crate::{
    selecting::{named_port, selects},
    shared::{PodEntry, Pods, lasting_statuses},
};

/// What is going on with an app that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Its owner stopped it.
    Stopped,
    /// It is on its way: the reason and a sentence, where there are any.
    Starting(Option<String>),
    /// It does not come up by itself: why.
    Broken(String),
    /// It crashed and is started again: how it ended.
    Crashing(String),
    /// It is being taken down.
    Stopping,
    /// There is nothing of it on this device.
    Absent,
    /// Its container has no such port.
    NoPort(String),
    /// It runs and does not take connections.
    Unreachable,
    /// It took the request and did not answer in time.
    TimedOut,
}

/// Where to pass a request on to.
pub(super) struct Target {
    pub(super) address: SocketAddr,
    /// The pod that has the address.
    pub(super) pod: Arc<PodEntry>,
}

/// The first pod that takes requests, or why none does.
pub(super) fn choose(route: &RouteView, pods: &Pods) -> Result<Target, Outage> {
    if route.stopped {
        return Err(Outage::Stopped);
    }
    let mut outage = Outage::Absent;
    let mut best = 0;
    for entry in pods.all() {
        if &*entry.key.namespace != route.namespace.as_str() || !selects(&route.selector, &entry.pod()) {
            continue;
        }
        match address(&entry, &route.port) {
            Ok(address) => return Ok(Target { address, pod: entry }),
            Err(why) => {
                let weight = weight(&why);
                if weight >= best {
                    best = weight;
                    outage = why;
                }
            }
        }
    }
    Err(outage)
}

/// Of several pods, which reason says most.
fn weight(outage: &Outage) -> u8 {
    match outage {
        Outage::Absent => 0,
        Outage::Stopping | Outage::Stopped => 1,
        Outage::Starting(_) | Outage::Unreachable | Outage::TimedOut => 2,
        Outage::NoPort(_) | Outage::Crashing(_) | Outage::Broken(_) => 3,
    }
}

fn address(entry: &PodEntry, port: &Port) -> Result<SocketAddr, Outage> {
    let snapshot = entry.snapshot.borrow();
    if snapshot.stopping {
        return Err(Outage::Stopping);
    }
    if matches!(snapshot.phase, Phase::Succeeded | Phase::Failed) {
        return Err(Outage::Broken("the app has ended and is not started again".into()));
    }
    if !snapshot.ready {
        return Err(reason(&snapshot.status));
    }
    let port = number(&snapshot.pod, port)?;
    let ip = snapshot.addresses.iter().find(|ip| IpAddr::is_ipv4(ip)).or(snapshot.addresses.first());
    ip.map(|ip| SocketAddr::new(*ip, port)).ok_or(Outage::Starting(None))
}

fn number(pod: &Pod, port: &Port) -> Result<u16, Outage> {
    let name = match port {
        Port::Number(0) => return Err(Outage::NoPort("0".into())),
        Port::Number(number) => return Ok(*number),
        Port::Name(name) => name,
    };
    named_port(pod, name, None).ok_or_else(|| Outage::NoPort(name.clone()))
}

/// What a status says of an app that is not ready.
fn reason(status: &Value) -> Outage {
    for container in lasting_statuses(status) {
        if container.get("ready") == Some(&Value::Bool(true)) {
            continue;
        }
        let text = |path: &str| container.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let waiting = text("/state/waiting/reason");
        return match waiting {
            "CrashLoopBackOff" => {
                let last = |field: &str| container.pointer(&format!("/lastState/terminated/{field}"));
                let code = last("exitCode").and_then(Value::as_i64).unwrap_or_default();
                let why = last("reason").and_then(Value::as_str).unwrap_or("Error");
                Outage::Crashing(format!("it ended with exit code {code} ({why})"))
            }
            "" | "ContainerCreating" | "PodInitializing" => Outage::Starting(None),
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" => {
                Outage::Starting(Some("its image is not on the device yet".into()))
            }
            reason => Outage::Broken(reason.to_owned()),
        };
    }
    Outage::Starting(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_becomes_words_without_secrets() {
        let status = |state: Value, last: Value| json!({"containerStatuses": [{"ready": true}, {"ready": false, "state": state, "lastState": last}]});
        for (state, last, expected) in [
            (json!({"waiting": {"reason": "ContainerCreating"}}), json!({}), Outage::Starting(None)),
            (
                json!({"waiting": {"reason": "CrashLoopBackOff", "message": "x"}}),
                json!({"terminated": {"exitCode": 3, "reason": "Error"}}),
                Outage::Crashing("it ended with exit code 3 (Error)".into()),
            ),
            (
                json!({"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"x\" not found"}}),
                json!({}),
                Outage::Broken("CreateContainerConfigError".into()),
            ),
        ] {
            assert_eq!(reason(&status(state, last)), expected);
        }
        assert_eq!(reason(&json!({})), Outage::Starting(None));
        let waits = json!([{"ready": false, "state": {"waiting": {"reason": "PodInitializing"}}}]);
        assert_eq!(reason(&json!({"containerStatuses": waits})), Outage::Starting(None));
        let crashes = json!([{"ready": true}, {"ready": false, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}]);
        let status = json!({"initContainerStatuses": crashes, "containerStatuses": waits});
        assert_eq!(reason(&status), Outage::Crashing("it ended with exit code 1 (Error)".into()));
    }

    #[test]
    fn ports_are_found_by_name_and_number() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"initContainers": [
            {"name": "i", "ports": [{"name": "once", "containerPort": 1}]},
            {"name": "s", "restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 2}]}], "containers": [
            {"name": "a"}, {"name": "b", "ports": [{"name": "http", "containerPort": 8080}]}]}}))
        .expect("a pod");
        assert_eq!(number(&pod, &Port::Name("http".into())), Ok(8080));
        assert_eq!(number(&pod, &Port::Name("proxy".into())), Ok(2));
        assert_eq!(number(&pod, &Port::Name("once".into())), Err(Outage::NoPort("once".into())));
        assert_eq!(number(&pod, &Port::Number(81)), Ok(81));
        assert_eq!(number(&pod, &Port::Name("x".into())), Err(Outage::NoPort("x".into())));
    }
}
