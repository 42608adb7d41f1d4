//! The conditions of an Install: what is true at every step.

use hearth_types::{
    Timestamp,
    condition::{self, Condition, Truth},
};
use serde_json::{Value, json};

use super::{Deployed, Inputs, Progress, desired};
use crate::{
    action::Reconciled,
    meta::{number, text},
    view::SeenPod,
};

pub(super) fn keep(
    inputs: Inputs<'_>,
    mut value: Value,
    app: Option<&Value>,
    missing: &[String],
    deployed: &Deployed,
    now: Timestamp,
    out: &mut Reconciled,
) {
    let generation = number(&value, "/metadata/generation");
    let ready = ready(inputs, &value, app, missing, deployed);
    let conditions = [
        app_found(&value, app),
        permissions(app, missing),
        match deployed {
            Ok(_) if stays_with_data(&value, app) => {
                let message = "the Deployment is as this Install asks for, but spec.placement.disconnect: the app keeps data, which has one home";
                Condition::new("Deployed", Truth::True, "Deployed", message)
            }
            Ok(_) => Condition::new("Deployed", Truth::True, "Deployed", "the Deployment is as this Install asks for"),
            Err((reason, message)) => Condition::new("Deployed", Truth::False, reason, message),
        },
        available(inputs, &ready),
        ready,
    ];
    if !value["status"].is_object() {
        value["status"] = json!({});
    }
    for mut one in conditions {
        one.observed_generation = generation;
        condition::set(&mut value, &one, now);
    }
    value["status"]["observedGeneration"] = json!(generation);
    let door = match app {
        Some(app) => app.pointer("/spec/ingress").is_some(),
        None => inputs.route.is_some(),
    };
    let hostname = door.then(|| desired::hostname(inputs.install, inputs.zone));
    set_or_remove(&mut value["status"], "hostname", hostname);
    let runs = inputs.pods.iter().filter(|seen| seen.pod.is_bound() && seen.pod.is_active());
    let best = runs.min_by_key(|seen| (!seen.ready(), seen.pod.object.name().to_owned()));
    set_or_remove(&mut value["status"], "device", best.map(|seen| seen.pod.device.to_string()));
    out.update(inputs.install, value);
}

/// Whether it shall be moved off a silent device, and cannot be.
fn stays_with_data(install: &Value, app: Option<&Value>) -> bool {
    install.pointer("/spec/placement/disconnect").is_some() && app.is_some_and(desired::keeps_data)
}

fn set_or_remove(status: &mut Value, field: &str, text: Option<String>) {
    if let Some(map) = status.as_object_mut() {
        match text {
            Some(text) => drop(map.insert(field.to_owned(), Value::String(text))),
            None => drop(map.remove(field)),
        }
    }
}

fn app_found(install: &Value, app: Option<&Value>) -> Condition {
    let name = text(install, "/spec/app");
    if app.is_some() {
        return Condition::new("AppFound", Truth::True, "AppFound", format!("App {name} is there"));
    }
    let message = format!("there is no App {name:?}; publish it, or correct spec.app");
    Condition::new("AppFound", Truth::False, "AppNotFound", message)
}

fn permissions(app: Option<&Value>, missing: &[String]) -> Condition {
    let new = |status, reason: &str, message: String| Condition::new("PermissionsGranted", status, reason, message);
    if app.is_none() {
        return new(Truth::Unknown, "AppNotFound", "what the App asks for is not known".into());
    }
    if missing.is_empty() {
        return new(Truth::True, "Granted", "everything that the App asks for is granted".into());
    }
    let list = missing.join(", ");
    new(Truth::False, "PermissionNotGranted", format!("the App asks for {list}; grant it there, or use another App"))
}

fn ready(
    inputs: Inputs<'_>,
    install: &Value,
    app: Option<&Value>,
    missing: &[String],
    deployed: &Deployed,
) -> Condition {
    let new = |status, reason: &str, message: String| Condition::new("Ready", status, reason, message);
    let active: Vec<&SeenPod> = inputs.pods.iter().filter(|seen| seen.pod.is_active()).collect();
    if desired::is_stopped(install) {
        return match active.len() + inputs.pods.iter().filter(|seen| seen.pod.deleting).count() {
            0 => new(Truth::False, "Stopped", "stopped by its owner; data and name are kept".into()),
            count => new(Truth::False, "Stopped", format!("stopped by its owner; {count} pods are still stopping")),
        };
    }
    if let Some(up) = active.iter().find(|seen| seen.ready()) {
        return running(&up.pod.device, &active, app.is_some(), install, deployed);
    }
    if active.is_empty() {
        if app.is_none() {
            return new(Truth::False, "AppNotFound", app_found(install, None).message);
        }
        if !missing.is_empty() {
            return new(Truth::False, "PermissionNotGranted", permissions(app, missing).message);
        }
        if let Err((reason, message)) = deployed {
            return new(Truth::False, reason, message.clone());
        }
        if desired::replicas(install) == 0 {
            return new(Truth::False, "ScaledToZero", "spec.replicas is 0".into());
        }
        if let Some(failed) = inputs.pods.iter().find(|seen| seen.pod.is_finished()) {
            let (reason, message) = failed.pod.trouble.clone().unwrap_or_else(|| ("Failed".into(), "".into()));
            return new(Truth::False, &reason, message.into());
        }
        if inputs.pods.iter().any(|seen| seen.pod.deleting) {
            return new(Truth::False, "Restarting", "the pod of the former version is stopping".into());
        }
        return new(Truth::False, "Starting", "its pod is being made".into());
    }
    of_pods(&active)
}

/// Whether anything serves, also what was asked for before.
fn available(inputs: Inputs<'_>, ready: &Condition) -> Condition {
    let mut up = inputs.pods.iter().filter(|seen| seen.ready());
    match up.next() {
        Some(seen) => Condition::new("Available", Truth::True, "Running", format!("running on {}", seen.pod.device)),
        None => Condition { r#type: "Available".into(), ..ready.clone() },
    }
}

/// Something runs: whether it is what is asked for now.
fn running(device: &str, active: &[&SeenPod], found: bool, install: &Value, deployed: &Deployed) -> Condition {
    let new = |status, reason: &str, message: String| Condition::new("Ready", status, reason, message);
    match deployed {
        Err(_) if !found => {
            let why = app_found(install, None).message;
            new(Truth::False, "AppNotFound", format!("{why}; what was deployed before runs on {device}"))
        }
        Err((reason, why)) => new(Truth::False, reason, format!("{why}; what was deployed before runs on {device}")),
        Ok(Progress::Complete) => new(Truth::True, "Running", format!("running on {device}")),
        Ok(Progress::RollingOut) => {
            let behind: Vec<&SeenPod> = active.iter().copied().filter(|seen| !seen.ready()).collect();
            let how = if behind.is_empty() {
                "a pod of it is being made".to_owned()
            } else {
                let first = of_pods(&behind);
                format!("{}: {}", first.reason, first.message)
            };
            let message = format!("{device} still runs what was asked for before; of what is asked for now: {how}");
            new(Truth::False, "Updating", message)
        }
    }
}

/// Of pods of which none is ready: the one that is furthest says why.
fn of_pods(active: &[&SeenPod]) -> Condition {
    let new = |status, reason: &str, message: String| Condition::new("Ready", status, reason, message);
    if let Some(silent) = active.iter().find(|seen| seen.pod.is_bound() && !seen.connected) {
        let message = format!("device {} is silent: what runs there runs on, but nobody knows", silent.pod.device);
        return new(Truth::Unknown, "DeviceSilent", message);
    }
    let bound: Vec<_> = active.iter().filter(|seen| seen.pod.is_bound()).collect();
    if let Some((reason, message)) = bound.iter().find_map(|seen| seen.pod.trouble.as_ref()) {
        return new(Truth::False, reason, message.to_string());
    }
    if let Some(first) = bound.first() {
        return new(Truth::False, "Starting", format!("starting on {}", first.pod.device));
    }
    let message = active.iter().find_map(|seen| seen.pod.unscheduled.as_deref());
    new(Truth::False, "Pending", message.unwrap_or("waiting for placement").to_owned())
}
