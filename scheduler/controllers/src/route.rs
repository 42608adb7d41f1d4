//! Route: the pods behind it.

use std::ops::RangeInclusive;

use hearth_types::{
    LabelMap, Object, Timestamp,
    condition::{self, Condition, Truth},
    routes::PortClaim,
};
use serde_json::{Value, json};

use crate::{
    action::Reconciled,
    meta::{self, list, number, text},
    view::SeenPod,
};

/// Endpoints of one Route at most: more than a gateway tries, and a bound on the object.
pub const MAX_ENDPOINTS: usize = 100;

/// Whether a Route's selector (`spec.target.selector`) selects labels.
pub fn selects(route: &Value, labels: &LabelMap) -> bool {
    let selector = route.pointer("/spec/target/selector").and_then(Value::as_object);
    selector
        .is_some_and(|wanted| !wanted.is_empty() && wanted.iter().all(|(key, value)| labels.get(key) == value.as_str()))
}

/// What decides whether a Route has the public port that it wants.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    /// The ports that the region's operator allows.
    pub allowed: Option<RangeInclusive<u16>>,
    /// The first of the Routes that want the same port.
    pub holder: Option<PortClaim>,
}

/// Keeps `status.endpoints` and the conditions `Ready` and, of a Route that wants a port of its own, `Accepted`. `pods` are those of
/// the Route's namespace; others are left out here.
pub fn reconcile(route: &Object, pods: &[SeenPod], ports: &Ports, now: Timestamp) -> Reconciled {
    let mut out = Reconciled::default();
    let mut value = route.value();
    if meta::is_deleting(&value) {
        return out;
    }
    let mut behind: Vec<&SeenPod> = pods
        .iter()
        .filter(|seen| seen.pod.object.namespace() == route.namespace() && selects(&value, seen.pod.object.labels()))
        .filter(|seen| seen.pod.is_bound() && !seen.pod.is_finished())
        .collect();
    behind.sort_by_key(|seen| (!seen.ready(), seen.pod.object.name().to_owned()));
    let mut endpoints: Vec<Value> = behind
        .iter()
        .take(MAX_ENDPOINTS)
        .map(|seen| json!({"device": seen.pod.device, "pod": seen.pod.object.name(), "ready": seen.ready()}))
        .collect();
    if endpoints.is_empty() {
        // The last device goes on answering for the name, so that a visitor is told what is going on.
        let last = list(&value, "/status/endpoints").map(|one| text(one, "/device")).find(|device| !device.is_empty());
        endpoints.extend(last.map(|device| json!({"device": device, "ready": false})));
    }
    let mut ready = readiness(&value, &behind);
    ready.observed_generation = number(&value, "/metadata/generation");
    if !value["status"].is_object() {
        value["status"] = json!({});
    }
    if endpoints.is_empty() {
        value["status"].as_object_mut().map(|status| status.remove("endpoints"));
    } else {
        value["status"]["endpoints"] = Value::Array(endpoints);
    }
    condition::set(&mut value, &ready, now);
    match accepted(&value, ports) {
        Some(mut accepted) => {
            accepted.observed_generation = ready.observed_generation;
            condition::set(&mut value, &accepted, now);
        }
        None => {
            if let Some(conditions) = value.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
                conditions.retain(|one| one["type"] != "Accepted");
            }
        }
    }
    out.update(route, value);
    out
}

/// Whether the Route has its port; `None` where it wants none. The words are those of a Listener's conditions in Gateway API.
fn accepted(route: &Value, ports: &Ports) -> Option<Condition> {
    let own = PortClaim::of(route)?;
    let port = own.port;
    let number = port.number;
    let refused = |why: String| Some(Condition::new("Accepted", Truth::False, "PortUnavailable", why));
    match &ports.allowed {
        None => {
            return refused(format!("port {port} is not served: the region's operator allows no ports (--port-range)"));
        }
        Some(allowed) if !allowed.contains(&number) => {
            return refused(format!(
                "port {port} is not served: the region's operator allows {} to {} (--port-range)",
                allowed.start(),
                allowed.end()
            ));
        }
        Some(_) => {}
    }
    match &ports.holder {
        // Another owner's names are not this one's to know.
        Some(holder) if *holder != own && holder.namespace != own.namespace => {
            refused(format!("port {port} belongs to an older Route of another owner; choose another port"))
        }
        Some(holder) if *holder != own => {
            refused(format!("port {port} belongs to the older Route {}; choose another port", holder.name))
        }
        _ => Some(Condition::new("Accepted", Truth::True, "Accepted", format!("port {port} leads to it"))),
    }
}

fn readiness(route: &Value, behind: &[&SeenPod]) -> Condition {
    let count = behind.iter().filter(|seen| seen.ready()).count();
    let new = |status, reason: &str, message: String| Condition::new("Ready", status, reason, message);
    if count > 0 {
        return new(Truth::True, "PodsReady", format!("{count} of {} pods are ready", behind.len()));
    }
    if route.pointer("/spec/stopped") == Some(&Value::Bool(true)) {
        return new(Truth::False, "Stopped", "the app was stopped by its owner".into());
    }
    if let Some(silent) = behind.iter().find(|seen| !seen.connected) {
        return new(Truth::Unknown, "DeviceSilent", format!("device {} is silent", silent.pod.device));
    }
    if behind.is_empty() {
        return new(Truth::False, "NoPods", "no pod is behind it yet".into());
    }
    new(Truth::False, "PodsNotReady", format!("none of {} pods is ready", behind.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Pods, fix_point};

    fn route(status: Value) -> Object {
        Object::from_value(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Route",
            "metadata": {"name": "notes", "namespace": "alice", "uid": "r", "generation": 1},
            "spec": {"hostname": "notes.alice.hearth.internal", "target": {"selector": {"app": "notes"}, "port": 80}},
            "status": status}))
        .expect("an object")
    }

    fn after(route: &Object, pods: &[SeenPod]) -> Value {
        fix_point(route, |route| reconcile(route, pods, &Ports::default(), Timestamp(0))).expect("kept").value()["status"].clone()
    }

    #[test]
    fn endpoints_are_the_bound_pods_the_ready_ones_first() {
        let pods = [
            Pods::named("c").label("app", "notes").on("nas").seen(true),
            Pods::named("b").label("app", "notes").on("pi").ready().seen(true),
            Pods::named("a").label("app", "notes").on("old").ready().seen(false),
            Pods::named("d").label("app", "notes").seen(false),
            Pods::named("e").label("app", "other").on("nas").ready().seen(true),
        ];
        let status = after(&route(json!({})), &pods);
        assert_eq!(
            status["endpoints"],
            json!([{"device": "pi", "pod": "b", "ready": true}, {"device": "old", "pod": "a", "ready": false},
                {"device": "nas", "pod": "c", "ready": false}])
        );
        assert_eq!(status["conditions"][0]["status"], "True");
        assert_eq!(status["conditions"][0]["message"], "1 of 3 pods are ready");
    }

    #[test]
    fn the_last_device_is_kept_and_the_condition_says_why() {
        let had = json!({"endpoints": [{"device": "pi", "pod": "b", "ready": true}]});
        let status = after(&route(had), &[]);
        assert_eq!(status["endpoints"], json!([{"device": "pi", "ready": false}]));
        assert_eq!(status["conditions"][0]["reason"], "NoPods");
        let silent = [Pods::named("a").label("app", "notes").on("old").ready().seen(false)];
        let status = after(&route(json!({})), &silent);
        assert_eq!(
            (&status["conditions"][0]["status"], &status["conditions"][0]["reason"]),
            (&json!("Unknown"), &json!("DeviceSilent"))
        );
    }

    #[test]
    fn a_route_is_told_whether_it_has_its_port_and_why_not() {
        let tcp = |namespace: &str, name: &str, created: &str| {
            let mut value = route(json!({})).value();
            value["metadata"] = json!({"name": name, "namespace": namespace, "uid": name, "generation": 1, "creationTimestamp": created});
            value["spec"]["protocol"] = json!("TCP");
            value["spec"]["port"] = json!(30_022);
            Object::from_value(value).expect("an object")
        };
        let own = tcp("alice", "git", "2026-01-02T00:00:00Z");
        let claim = |object: &Object| PortClaim::of(&object.value());
        let state = |allowed: Option<RangeInclusive<u16>>, holder: Option<PortClaim>| {
            let ports = Ports { allowed, holder };
            let after = fix_point(&own, |route| reconcile(route, &[], &ports, Timestamp(0))).expect("kept").value();
            let conditions = after["status"]["conditions"].as_array().expect("a list").clone();
            let one = conditions.into_iter().find(|one| one["type"] == "Accepted").expect("the condition");
            (
                one["status"].as_str().unwrap_or_default().to_owned(),
                one["message"].as_str().unwrap_or_default().to_owned(),
            )
        };
        let range = Some(30_000..=32_767);
        let (status, _) = state(range.clone(), claim(&own));
        assert_eq!(status, "True");
        for (allowed, holder, expected) in [
            (None, claim(&own), "allows no ports"),
            (Some(1..=1000), claim(&own), "allows 1 to 1000"),
            (range.clone(), claim(&tcp("alice", "old", "2026-01-01T00:00:00Z")), "the older Route old"),
            (range, claim(&tcp("bob", "secret", "2026-01-01T00:00:00Z")), "of another owner"),
        ] {
            let (status, message) = state(allowed, holder);
            assert_eq!(status, "False");
            assert!(message.contains(expected) && !message.contains("secret"), "{message}");
        }
        let plain = after(&route(json!({"conditions": [{"type": "Accepted", "status": "True"}]})), &[]);
        assert_eq!(
            plain["conditions"].as_array().map(Vec::len),
            Some(1),
            "one that wants no port has no such condition"
        );
    }
}
