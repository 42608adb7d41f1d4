//! Route: the pods behind it.

use hearth_types::{
    LabelMap, Object, Timestamp,
    condition::{self, Condition, Truth},
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

/// Keeps `status.endpoints` and the condition `Ready`. `pods` are those of the Route's namespace; others are left out here.
pub fn reconcile(route: &Object, pods: &[SeenPod], now: Timestamp) -> Reconciled {
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
    out.update(route, value);
    out
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
        fix_point(route, |route| reconcile(route, pods, Timestamp(0))).expect("kept").value()["status"].clone()
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
}
