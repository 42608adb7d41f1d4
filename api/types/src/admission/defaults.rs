//! Defaults, so that readers never meet an absent field that Kubernetes would have filled.

use serde_json::{Value, json};

use crate::registry::KindInfo;

/// The status of an object that was just created.
pub(super) fn first_status(info: &KindInfo, _object: &Value) -> Value {
    match info.kind {
        "Pod" | "PersistentVolumeClaim" => json!({"phase": "Pending"}),
        "Namespace" => json!({"phase": "Active"}),
        "Service" => json!({"loadBalancer": {}}),
        _ => json!({}),
    }
}

/// Fills what is absent. Filling twice changes nothing.
pub(super) fn fill(info: &KindInfo, object: &mut Value) {
    match info.kind {
        "Pod" => pod_spec(&mut object["spec"]),
        "Deployment" => deployment(object),
        "ReplicaSet" => {
            set(&mut object["spec"], "replicas", json!(1));
            pod_spec(&mut object["spec"]["template"]["spec"]);
        }
        "Secret" => secret(object),
        "Service" => service(&mut object["spec"]),
        "PersistentVolumeClaim" => {
            let spec = &mut object["spec"];
            set(spec, "accessModes", json!(["ReadWriteOnce"]));
            set(spec, "volumeMode", json!("Filesystem"));
        }
        "App" => {
            for list in ["initContainers", "containers"] {
                items(&mut object["spec"][list]).for_each(fill_container);
            }
            set(&mut object["spec"], "permissions", json!({}));
            set(&mut object["spec"]["permissions"], "internet", json!(true));
        }
        "Install" => set(&mut object["spec"], "replicas", json!(1)),
        _ => {}
    }
    // Looking into an absent field leaves a null behind.
    crate::object::drop_nulls(object);
}

fn set(map: &mut Value, field: &str, value: Value) {
    if let Some(map) = map.as_object_mut() {
        let slot = map.entry(field).or_insert(Value::Null);
        if slot.is_null() {
            *slot = value;
        }
    }
}

fn items(list: &mut Value) -> impl Iterator<Item = &mut Value> {
    list.as_array_mut().into_iter().flatten()
}

fn deployment(object: &mut Value) {
    let spec = &mut object["spec"];
    set(spec, "replicas", json!(1));
    set(spec, "strategy", json!({}));
    set(&mut spec["strategy"], "type", json!("RollingUpdate"));
    if spec["strategy"]["type"] == "RollingUpdate" {
        set(&mut spec["strategy"], "rollingUpdate", json!({}));
        set(&mut spec["strategy"]["rollingUpdate"], "maxSurge", json!("25%"));
        set(&mut spec["strategy"]["rollingUpdate"], "maxUnavailable", json!("25%"));
    }
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "progressDeadlineSeconds", json!(600));
    pod_spec(&mut spec["template"]["spec"]);
}

fn service(spec: &mut Value) {
    set(spec, "type", json!("ClusterIP"));
    set(spec, "sessionAffinity", json!("None"));
    for port in items(&mut spec["ports"]) {
        set(port, "protocol", json!("TCP"));
        if let Some(number) = port.get("port").cloned() {
            set(port, "targetPort", number);
        }
    }
}

fn secret(object: &mut Value) {
    set(object, "type", json!("Opaque"));
    string_data(object);
}

/// `stringData` of a Secret is written into `data`, as Kubernetes does. What is malformed is left as it is, for the schema
/// to refuse.
pub(super) fn string_data(object: &mut Value) {
    use base64::Engine as _;
    let plain = object.get("stringData").and_then(Value::as_object);
    let data = object.get("data").is_none_or(|data| data.is_object() || data.is_null());
    if !data || !plain.is_some_and(|plain| plain.values().all(|value| value.is_string() || value.is_null())) {
        return;
    }
    let Some(Value::Object(plain)) = object.as_object_mut().and_then(|map| map.remove("stringData")) else {
        return;
    };
    set(object, "data", json!({}));
    for (key, value) in plain {
        if let Some(text) = value.as_str() {
            object["data"][key] = json!(base64::engine::general_purpose::STANDARD.encode(text));
        }
    }
}

fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    set(spec, "restartPolicy", json!("Always"));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set(spec, "dnsPolicy", json!("ClusterFirst"));
    set(spec, "schedulerName", json!("default-scheduler"));
    set(spec, "securityContext", json!({}));
    for list in ["initContainers", "containers"] {
        for container in items(&mut spec[list]) {
            fill_container(container);
        }
    }
    for volume in items(&mut spec["volumes"]) {
        for source in ["configMap", "secret"] {
            if volume.get(source).is_some() {
                set(&mut volume[source], "defaultMode", json!(0o644));
            }
        }
    }
}

/// No default is added for a field that older releases stored without one (`terminationMessagePath`): every template that is there would be
/// another than before, so that an update of the region would replace all pods, and stored pods, which are fixed, could not be labelled.
/// Devices take what is absent for Kubernetes' default.
fn fill_container(container: &mut Value) {
    set(container, "imagePullPolicy", json!("IfNotPresent"));
    set(container, "resources", json!({}));
    if let Some(limits) = container.pointer("/resources/limits").cloned() {
        set(&mut container["resources"], "requests", json!({}));
        for (resource, limit) in limits.as_object().into_iter().flatten() {
            set(&mut container["resources"]["requests"], resource, limit.clone());
        }
    }
    for port in items(&mut container["ports"]) {
        set(port, "protocol", json!("TCP"));
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        // What is absent stays so.
        let Some(probe) = container.get_mut(kind) else { continue };
        for (field, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            set(probe, field, json!(value));
        }
        fill_http(probe);
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|hooks| hooks.get_mut(hook)) {
            fill_http(hook);
        }
    }
}

fn fill_http(handler: &mut Value) {
    if let Some(action) = handler.get_mut("httpGet") {
        set(action, "path", json!("/"));
        set(action, "scheme", json!("HTTP"));
    }
}
