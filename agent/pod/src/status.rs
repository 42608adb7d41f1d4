//! The status of a pod, as Kubernetes writes it (`core/v1` PodStatus).

use hearth_types::Timestamp;
use serde_json::{Map, Value, json};

use crate::{ContainerRecord, ContainerView, Exit, Phase, PodMachine, Role, Stage, machine::Intent};

/// The conditions that the device decides; `PodScheduled` is placement's.
const CONDITIONS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];

/// Bytes of the last messages of all containers of a pod, of which each has its share: the kubelet's
/// `MaxPodTerminationMessageLogLength`.
const MAX_MESSAGES_BYTES: usize = 12 << 10;

/// The whole status.
pub(crate) fn of(pod: &PodMachine) -> Value {
    let phase = pod.phase();
    let mut status = Map::new();
    status.insert("phase".into(), json!(phase));
    status.insert("startTime".into(), time(pod.record.start_time));
    status.insert("conditions".into(), conditions(pod, phase));
    if let Some(cause) = pod.record.ended_by.as_ref().or(pod.held.as_ref()) {
        status.insert("reason".into(), json!(cause.reason));
        status.insert("message".into(), json!(cause.message));
    }
    let of = |which: fn(Role) -> bool| {
        let views = pod.spec.containers.iter().filter(move |view| which(view.role));
        views.map(|view| container(pod, view)).collect::<Vec<Value>>()
    };
    let (init, ephemeral) = (of(Role::initialises), of(|role| role == Role::Ephemeral));
    status.insert("containerStatuses".into(), Value::Array(of(|role| role == Role::Main)));
    for (field, list) in [("initContainerStatuses", init), ("ephemeralContainerStatuses", ephemeral)] {
        if !list.is_empty() {
            status.insert(field.into(), Value::Array(list));
        }
    }
    if let Some(addresses) = &pod.record.addresses {
        for (first, all, list) in [("podIP", "podIPs", &addresses.pod), ("hostIP", "hostIPs", &addresses.host)] {
            if let Some(one) = list.first() {
                status.insert(first.into(), json!(one));
                status.insert(all.into(), list.iter().map(|ip| json!({"ip": ip})).collect());
            }
        }
    }
    Value::Object(status)
}

/// Notes when conditions changed.
pub(crate) fn note_conditions(pod: &mut PodMachine, now: Timestamp) {
    for name in CONDITIONS {
        let holds = holds(pod, name);
        let entry = pod.record.conditions.entry(name.to_owned()).or_insert((holds, now));
        if entry.0 != holds {
            *entry = (holds, now);
        }
    }
}

fn holds(pod: &PodMachine, condition: &str) -> bool {
    match condition {
        "PodReadyToStartContainers" => pod.has_sandbox(),
        "Initialized" => pod.is_initialized(),
        _ => pod.record.ended.is_none() && pod.is_ready(),
    }
}

fn conditions(pod: &PodMachine, phase: Phase) -> Value {
    let those = |which: &dyn Fn(&ContainerView, &ContainerRecord) -> bool| {
        let views = pod.spec.containers.iter().filter(|view| which(view, &pod.record.containers[&view.name]));
        views.map(|view| view.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    let mut list = Vec::new();
    for name in CONDITIONS {
        let holds = holds(pod, name);
        let since = pod.record.conditions.get(name).map_or(pod.record.start_time, |(_, since)| *since);
        let mut condition = json!({
            "type": name,
            "status": if holds { "True" } else { "False" },
            "lastTransitionTime": time(since),
        });
        if !holds && name.ends_with("Ready") {
            if matches!(phase, Phase::Succeeded) {
                condition["reason"] = json!("PodCompleted");
            } else {
                condition["reason"] = json!("ContainersNotReady");
                let unready = those(&|view, record| view.role.serves() && !record.is_ready());
                condition["message"] = json!(format!("containers with unready status: [{unready}]"));
            }
        }
        if !holds && name == "Initialized" {
            condition["reason"] = json!("ContainersNotInitialized");
            let incomplete = those(&|view, record| view.role.initialises() && !record.passed);
            condition["message"] = json!(format!("containers with incomplete status: [{incomplete}]"));
        }
        list.push(condition);
    }
    let scheduled = pod.spec.scheduled_at.as_ref().map_or_else(|| time(pod.record.start_time), |at| json!(at));
    list.push(json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": scheduled}));
    Value::Array(list)
}

fn container(pod: &PodMachine, view: &ContainerView) -> Value {
    let (name, image) = (view.name.as_str(), view.image.as_str());
    let record = &pod.record.containers[name];
    let ready = match view.role {
        Role::Init => matches!(&record.stage, Stage::Exited(exit) if exit.is_success()),
        Role::Sidecar | Role::Main => record.is_ready(),
        // Nobody waits for it, and the kubelet says so.
        Role::Ephemeral => false,
    };
    let facts = record.image.as_ref().or(pod.containers.get(name).and_then(|one| one.facts.as_ref()));
    let mut status = json!({
        "name": name,
        "image": facts.map_or(image, |facts| facts.reference.as_str()),
        "imageID": facts.map_or("", |facts| facts.id.as_str()),
        "ready": ready,
        "restartCount": record.attempt,
        "state": state(pod, view, record),
        "lastState": {},
    });
    if view.role != Role::Ephemeral {
        status["started"] = json!(record.has_started());
    }
    if record.stage != Stage::Waiting {
        status["containerID"] = container_id(pod, name, record.attempt);
    }
    let waits = is_waiting_to_restart(pod, view);
    match (&record.stage, &record.last) {
        (Stage::Exited(exit), _) if waits => {
            status["lastState"] = json!({"terminated": terminated(pod, name, record.attempt, exit)});
        }
        (_, Some(exit)) => {
            let attempt = record.attempt.saturating_sub(1);
            status["lastState"] = json!({"terminated": terminated(pod, name, attempt, exit)});
        }
        _ => {}
    }
    status
}

fn state(pod: &PodMachine, view: &ContainerView, record: &ContainerRecord) -> Value {
    let name = &view.name;
    match &record.stage {
        // As in Kubernetes, it runs once what is to be done at its start is done.
        Stage::Running { .. } if record.post_start_due && !pod.is_stopping() => {
            json!({"waiting": {"reason": creating(pod)}})
        }
        Stage::Running { started_at } => json!({"running": {"startedAt": time(*started_at)}}),
        Stage::Exited(exit) if !is_waiting_to_restart(pod, view) => {
            json!({"terminated": terminated(pod, name, record.attempt, exit)})
        }
        Stage::Exited(exit) => {
            if let Some(failure) = obstacle(pod, name) {
                return json!({"waiting": failure});
            }
            let wait = record.restart_at.since(exit.finished_at).as_secs();
            let full = pod.full_name();
            json!({"waiting": {
                "reason": "CrashLoopBackOff",
                "message": format!("back-off {wait}s restarting failed container={name} pod={full}"),
            }})
        }
        Stage::Waiting => {
            let reason = if pod.record.ended.is_some() || pod.is_stopping() { "PodStopped" } else { creating(pod) };
            let obstacle = obstacle(pod, name).or_else(|| without_target(pod, view)).filter(|_| pod.may_start(view));
            json!({"waiting": obstacle.unwrap_or_else(|| waiting(pod, name, reason))})
        }
    }
}

/// What Kubernetes says of a container that is on its way.
fn creating(pod: &PodMachine) -> &'static str {
    let has_init = pod.spec.containers.iter().any(|view| view.role.initialises());
    if has_init { "PodInitializing" } else { "ContainerCreating" }
}

/// Whether an ended container waits for its next attempt, be it for time or for something that is missing.
fn is_waiting_to_restart(pod: &PodMachine, view: &ContainerView) -> bool {
    let record = &pod.record.containers[&view.name];
    let wanted = record.is_exited() && !pod.is_stopping() && pod.record.ended.is_none() && pod.wants_start(view);
    let actions = &pod.actions;
    let held = matches!(pod.intent, Intent::Held { .. });
    wanted && (held || record.waits || actions.volumes.failure.is_some() || actions.network.failure.is_some())
}

fn waiting(pod: &PodMachine, name: &str, reason: &str) -> Value {
    match pod.containers.get(name).and_then(|one| one.progress.as_ref()) {
        Some(message) => json!({"reason": reason, "message": message}),
        None => json!({"reason": reason}),
    }
}

/// What keeps a container from being started.
fn obstacle(pod: &PodMachine, name: &str) -> Option<Value> {
    let one = pod.containers.get(name)?;
    if let Some(why) = pod.held.as_ref().filter(|_| matches!(pod.intent, Intent::Held { .. })) {
        return Some(json!({"reason": why.reason, "message": why.message}));
    }
    if one.progress.is_some() {
        // It is being seen to.
        return None;
    }
    if let Some(failure) = one.image.failure.as_ref().filter(|failure| failure.is_of_pull())
        && one.image.wake().is_some()
    {
        let message = format!("Back-off: {}: {}", failure.reason, failure.message);
        return Some(json!({"reason": "ImagePullBackOff", "message": message}));
    }
    let actions = &pod.actions;
    let steps = [&one.image, &actions.volumes, &actions.network, &actions.sandbox, &one.removal, &one.start];
    let failure = steps.iter().find_map(|step| step.failure.as_ref())?;
    Some(json!({"reason": failure.reason, "message": failure.message}))
}

/// What keeps a container from being started that is to see the processes of another.
fn without_target(pod: &PodMachine, view: &ContainerView) -> Option<Value> {
    let target = pod.missing_target(view).filter(|_| pod.has_sandbox() && !pod.is_stopping())?;
    let message = format!("unable to find target container {target}: it is not running");
    Some(json!({"reason": "CreateContainerConfigError", "message": message}))
}

fn terminated(pod: &PodMachine, name: &str, attempt: u32, exit: &Exit) -> Value {
    let mut value = json!({
        "exitCode": exit.code,
        "reason": exit.reason,
        "finishedAt": time(exit.finished_at),
        "containerID": container_id(pod, name, attempt),
    });
    if let Some(started) = exit.started_at {
        value["startedAt"] = time(started);
    }
    let message =
        &exit.message[..exit.message.floor_char_boundary(MAX_MESSAGES_BYTES / pod.spec.containers.len().max(1))];
    if !message.is_empty() {
        value["message"] = json!(message);
    }
    value
}

fn container_id(pod: &PodMachine, name: &str, attempt: u32) -> Value {
    json!(format!("hearth://{}/{name}/{attempt}", pod.spec.uid))
}

fn time(at: Timestamp) -> Value {
    json!(at.seconds().to_string())
}
