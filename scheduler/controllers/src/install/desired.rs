//! What an Install needs, made of its App.

use hearth_types::{
    Object,
    kinds::{
        API_VERSION, ARCHITECTURES_ANNOTATION, BANDWIDTH_ANNOTATIONS, CLAIM_FINALIZER, INTERNET_ANNOTATION,
        MOVE_AFTER_ANNOTATION, ON_RETURN_ANNOTATION, SERVICES_ANNOTATION, labels,
    },
    lease::{VOLUME_POLICIES, VOLUME_POLICY_ANNOTATION},
    quantity,
};
use serde_json::{Map, Value, json};

use crate::meta::{self, list, number, text};

/// The name of the claim for a volume of an Install.
pub(super) fn claim_name(install: &str, volume: &str) -> String {
    format!("{install}-{volume}")
}

/// Replicas that shall run: none where the owner stopped the app.
pub(super) fn replicas(install: &Value) -> i64 {
    if is_stopped(install) { 0 } else { number(install, "/spec/replicas").unwrap_or(1).max(0) }
}

pub(super) fn is_stopped(install: &Value) -> bool {
    install.pointer("/spec/stopped") == Some(&Value::Bool(true))
}

fn object_labels(install: &Object, app: &Value) -> Value {
    json!({labels::INSTALL: install.name(), labels::APP: text(app, "/metadata/name")})
}

/// The claims of the App's kept volumes. They have no owner: deleting the Install keeps the data.
pub(super) fn claims(install: &Object, app: &Value) -> Vec<Value> {
    let kept = list(app, "/spec/volumes").filter(|volume| volume.get("size").is_some());
    kept.map(|volume| {
        let mut claim = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": claim_name(install.name(), text(volume, "/name")),
                "namespace": install.namespace(),
                "labels": object_labels(install, app),
                "finalizers": [CLAIM_FINALIZER],
            },
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": volume["size"]}}},
        });
        if moves(volume) {
            claim["metadata"]["annotations"] = json!({VOLUME_POLICY_ANNOTATION: text(volume, "/policy")});
        }
        claim
    })
    .collect()
}

/// A claim that is there already: labelled, and grown where the App now wants more; never shrunk.
pub(super) fn kept_claim(stored: &Object, wanted: &Value) -> Value {
    let mut value = stored.value();
    for label in [labels::INSTALL, labels::APP] {
        let wanted = wanted["metadata"]["labels"][label].as_str().unwrap_or_default();
        meta::set_in(&mut value, "labels", label, wanted);
    }
    let size = |claim: &Value| quantity::bytes(text(claim, "/spec/resources/requests/storage")).unwrap_or(0);
    if size(wanted) > size(&value) {
        value["spec"]["resources"]["requests"]["storage"] = wanted["spec"]["resources"]["requests"]["storage"].clone();
    }
    value
}

/// The Deployment. What others set beside what is said here stays.
pub(super) fn deployment(install: &Object, value: &Value, app: &Value, stored: Option<Value>) -> Value {
    let mut deployment = stored.unwrap_or_else(|| {
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": install.name(), "namespace": install.namespace()},
            "spec": {"selector": {"matchLabels": {labels::INSTALL: install.name()}}},
        })
    });
    for label in [labels::INSTALL, labels::APP] {
        let text = object_labels(install, app)[label].as_str().unwrap_or_default().to_owned();
        meta::set_in(&mut deployment, "labels", label, &text);
    }
    deployment["metadata"]["ownerReferences"] = json!([meta::owner_reference(install)]);
    let keeps_data = keeps_data(app);
    let stays = list(app, "/spec/volumes").any(|volume| volume.get("size").is_some() && !moves(volume));
    disconnect(&mut deployment, value, stays);
    bandwidth(&mut deployment, value);
    let spec = &mut deployment["spec"];
    spec["replicas"] = json!(replicas(value));
    // Two pods must never write the same data, not even for the moment of an update.
    let kind = if keeps_data { "Recreate" } else { "RollingUpdate" };
    if spec["strategy"]["type"] != kind {
        spec["strategy"] = json!({"type": kind});
    }
    spec["template"] = template(install, value, app);
    deployment
}

/// Whether an App keeps data.
pub(super) fn keeps_data(app: &Value) -> bool {
    list(app, "/spec/volumes").any(|volume| volume.get("size").is_some())
}

/// Whether a kept volume may begin anew on another device.
fn moves(volume: &Value) -> bool {
    text(volume, "/policy") == VOLUME_POLICIES[1]
}

/// What becomes of its pods while their device is silent.
fn disconnect(deployment: &mut Value, install: &Value, stays: bool) {
    let said = install.pointer("/spec/placement/disconnect").filter(|_| !stays);
    let after = said.and_then(|one| number(one, "/moveAfterSeconds")).map(|seconds| seconds.to_string());
    let on_return = said.and_then(|one| one["onReturn"].as_str()).map(str::to_owned);
    for (key, text) in [(MOVE_AFTER_ANNOTATION, after), (ON_RETURN_ANNOTATION, on_return)] {
        match text {
            Some(text) => meta::set_in(deployment, "annotations", key, &text),
            None => meta::unset_in(deployment, "annotations", key),
        }
    }
}

/// What its pods may send and receive. It is no part of the template, so that changing it restarts nothing.
fn bandwidth(deployment: &mut Value, install: &Value) {
    for (key, way) in BANDWIDTH_ANNOTATIONS.into_iter().zip(["ingress", "egress"]) {
        match install.pointer("/spec/bandwidth").and_then(|both| both[way].as_str()) {
            Some(text) => meta::set_in(deployment, "annotations", key, text),
            None => meta::unset_in(deployment, "annotations", key),
        }
    }
}

fn template(install: &Object, value: &Value, app: &Value) -> Value {
    let asked = app.pointer("/spec/permissions/internet") != Some(&Value::Bool(false));
    let internet = asked && value.pointer("/spec/grants/internet") != Some(&Value::Bool(false));
    let mut selector = Map::new();
    if let Some(device) = value.pointer("/spec/placement/device").and_then(Value::as_str) {
        selector.insert(labels::HOSTNAME.into(), json!(device));
    }
    if value.pointer("/spec/placement/ownDevicesOnly") == Some(&Value::Bool(true)) {
        selector.insert(labels::OWNER.into(), json!(install.namespace()));
    }
    let containers = |pointer: &str| list(app, pointer).map(|one| container(one, value, app)).collect::<Vec<_>>();
    let mut spec = json!({"containers": containers("/spec/containers"), "restartPolicy": "Always"});
    let first = containers("/spec/initContainers");
    if !first.is_empty() {
        spec["initContainers"] = Value::Array(first);
    }
    let volumes: Vec<Value> = list(app, "/spec/volumes").map(|one| volume(install, value, one)).collect();
    if !volumes.is_empty() {
        spec["volumes"] = Value::Array(volumes);
    }
    let secrets: Vec<&Value> = list(value, "/spec/imagePullSecrets").collect();
    if !secrets.is_empty() {
        spec["imagePullSecrets"] = json!(secrets);
    }
    if !selector.is_empty() {
        spec["nodeSelector"] = Value::Object(selector);
    }
    let mut annotations = json!({INTERNET_ANNOTATION: internet.to_string()});
    let architectures: Vec<&str> = list(app, "/spec/architectures").filter_map(Value::as_str).collect();
    if !architectures.is_empty() {
        // A node selector has one value and cannot say "one of these".
        annotations[ARCHITECTURES_ANNOTATION] = json!(architectures.join(","));
    }
    // Asked for and granted, as capabilities are.
    let services: Vec<&str> = list(app, "/spec/permissions/services").filter_map(Value::as_str).collect();
    if !services.is_empty() {
        annotations[SERVICES_ANNOTATION] = json!(services.join(","));
    }
    json!({
        "metadata": {"labels": object_labels(install, app), "annotations": annotations},
        "spec": spec,
    })
}

fn container(container: &Value, install: &Value, app: &Value) -> Value {
    let mut container = container.clone();
    let over: Vec<&Value> = list(install, "/spec/env").collect();
    if !over.is_empty() {
        let replaced = |one: &Value| over.iter().any(|over| over["name"] == one["name"]);
        let mut env: Vec<Value> = list(&container, "/env").filter(|one| !replaced(one)).cloned().collect();
        env.extend(over.into_iter().cloned());
        container["env"] = Value::Array(env);
    }
    // Asked for and granted: `missing_permissions` made sure that what is asked for was granted.
    let capabilities: Vec<&Value> = list(app, "/spec/permissions/capabilities").collect();
    if !capabilities.is_empty() {
        if !container["securityContext"].is_object() {
            container["securityContext"] = json!({});
        }
        let security = &mut container["securityContext"];
        if !security["capabilities"].is_object() {
            security["capabilities"] = json!({});
        }
        security["capabilities"]["add"] = json!(capabilities);
    }
    let read_only: Vec<&str> =
        list(app, "/spec/volumes").filter_map(|volume| read_only_path(volume, install)).collect();
    for mount in container.get_mut("volumeMounts").and_then(Value::as_array_mut).into_iter().flatten() {
        if read_only.iter().any(|name| mount["name"] == *name) {
            mount["readOnly"] = json!(true);
        }
    }
    container
}

/// The directory of the device that the owner grants for a volume.
pub(super) fn granted_path<'a>(install: &'a Value, volume: &str) -> Option<&'a Value> {
    list(install, "/spec/grants/hostPaths").find(|one| one["volume"] == volume)
}

/// The name of a volume that is a directory of the device and must not be written.
fn read_only_path<'a>(volume: &'a Value, install: &Value) -> Option<&'a str> {
    let asked = volume.get("hostPath")?;
    let name = text(volume, "/name");
    let granted = granted_path(install, name)?;
    [asked, granted].iter().any(|one| one["readOnly"] == true).then_some(name)
}

fn volume(install: &Object, value: &Value, volume: &Value) -> Value {
    let name = text(volume, "/name");
    let of = |field: &str| volume.get(field).and_then(Value::as_str);
    let mut out = json!({"name": name});
    if volume.get("size").is_some() {
        out["persistentVolumeClaim"] = json!({"claimName": claim_name(install.name(), name)});
    } else if let Some(config_map) = of("configMap") {
        out["configMap"] = json!({"name": config_map});
    } else if let Some(secret) = of("secret") {
        out["secret"] = json!({"secretName": secret});
    } else if volume.get("hostPath").is_some() {
        let path = granted_path(value, name).map_or("", |grant| text(grant, "/path"));
        out["hostPath"] = json!({"path": path, "type": "Directory"});
    } else {
        out["emptyDir"] = volume.get("emptyDir").cloned().unwrap_or_else(|| json!({}));
    }
    out
}

/// The hostname of an Install.
pub(super) fn hostname(install: &Object, zone: &str) -> String {
    format!("{}.{}.{zone}", install.name(), install.namespace())
}

/// The Route, where the App has a door.
pub(super) fn route(install: &Object, value: &Value, app: &Value, zone: &str, stored: Option<Value>) -> Option<Value> {
    let port = app.pointer("/spec/ingress/port")?;
    let mut route = stored.unwrap_or_else(|| {
        json!({"apiVersion": API_VERSION, "kind": "Route", "metadata": {"name": install.name(), "namespace": install.namespace()}, "spec": {}})
    });
    for label in [labels::INSTALL, labels::APP] {
        let text = object_labels(install, app)[label].as_str().unwrap_or_default().to_owned();
        meta::set_in(&mut route, "labels", label, &text);
    }
    route["metadata"]["ownerReferences"] = json!([meta::owner_reference(install)]);
    route["spec"]["hostname"] = json!(hostname(install, zone));
    route["spec"]["target"] = json!({"selector": {labels::INSTALL: install.name()}, "port": port});
    set_stopped(&mut route, value);
    Some(route)
}

/// Says in a Route whether its Install is stopped.
pub(super) fn set_stopped(route: &mut Value, install: &Value) {
    if is_stopped(install) {
        route["spec"]["stopped"] = json!(true);
    } else if let Some(spec) = route["spec"].as_object_mut() {
        spec.remove("stopped");
    }
}
