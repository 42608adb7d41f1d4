//! Install: an App's claims, Deployment and Route for one owner, and conditions that tell the truth.

mod desired;
mod status;

use std::collections::BTreeMap;

use hearth_types::{
    Object, Status, Timestamp, Uid,
    admission::{self, Context, Part},
    registry,
};
use serde_json::Value;

use crate::{
    action::{Action, Reconciled},
    meta::{self, list, number, text},
    view::SeenPod,
};

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The Install.
    pub install: &'a Object,
    /// The App that it names; `None` where there is none.
    pub app: Option<&'a Object>,
    /// The Deployment of its name, whoever made it.
    pub deployment: Option<&'a Object>,
    /// The Route of its name, whoever made it.
    pub route: Option<&'a Object>,
    /// The claims of its namespace, by name.
    pub claims: &'a BTreeMap<String, Object>,
    /// The pods of its namespace that carry its label.
    pub pods: &'a [SeenPod],
    /// The region's zone.
    pub zone: &'a str,
}

/// Why what an Install asks for cannot be deployed: reason and message of the condition `Deployed`.
type Refused = (&'static str, String);

/// How far the Deployment is with what is asked for, or why it does not get that far.
type Deployed = Result<Progress, Refused>;

/// How far a Deployment is with what an Install asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It was not told yet, or pods of what was asked for before are still there.
    RollingOut,
    /// Every pod that there is is of what is asked for.
    Complete,
}

/// Makes and keeps what an Install needs, and says in its conditions how far it is.
///
/// # Guarantees
/// `Ready` is True only where what is asked for now runs; `Available` also where something older still serves.
/// Claims are made and never deleted: deleting an Install keeps its data. An App that is gone, that asks for more than was granted,
/// or that cannot be deployed leaves what runs as it is, and the conditions tell. Only what was granted is ever deployed: where a granted
/// permission was taken back, the app is stopped.
pub fn reconcile(inputs: Inputs<'_>, now: Timestamp) -> Reconciled {
    let mut out = Reconciled::default();
    let value = inputs.install.value();
    if meta::is_deleting(&value) {
        return out;
    }
    let app = inputs.app.map(Object::value);
    let missing = app.as_ref().map_or_else(Vec::new, |app| missing_permissions(app, &value));
    let deployed = match &app {
        Some(app) if missing.is_empty() => deploy(inputs, &value, app, now, &mut out),
        _ => held_back(inputs, &value, now, &mut out),
    };
    status::keep(inputs, value, app.as_ref(), &missing, &deployed, now, &mut out);
    out
}

/// What the App asks for and the Install does not grant, and where it would be granted.
fn missing_permissions(app: &Value, install: &Value) -> Vec<String> {
    let granted: Vec<&str> = list(install, "/spec/grants/capabilities").filter_map(Value::as_str).collect();
    let asked = list(app, "/spec/permissions/capabilities").filter_map(Value::as_str);
    let capabilities = asked.filter(|one| !granted.contains(one));
    let capabilities: Vec<_> = capabilities.map(|one| format!("{one} (spec.grants.capabilities)")).collect();
    let granted: Vec<&str> = list(install, "/spec/grants/services").filter_map(Value::as_str).collect();
    let services = list(app, "/spec/permissions/services").filter_map(Value::as_str);
    let services = services.filter(|one| !granted.contains(one));
    let services = services.map(|one| format!("your Service {one:?} (spec.grants.services)"));
    let named = list(app, "/spec/volumes").filter(|volume| volume.get("hostPath").is_some());
    let named = named.map(|volume| text(volume, "/name")).filter(|name| desired::granted_path(install, name).is_none());
    let paths = named.map(|name| format!("a directory of yours as its volume {name:?} (spec.grants.hostPaths)"));
    capabilities.into_iter().chain(services).chain(paths).collect()
}

fn deploy(inputs: Inputs<'_>, install: &Value, app: &Value, now: Timestamp, out: &mut Reconciled) -> Deployed {
    for (what, there) in [("Deployment", inputs.deployment), ("Route", inputs.route)] {
        if let Some(object) = there
            && !is_mine(inputs.install, object)
            && (what == "Deployment" || app.pointer("/spec/ingress").is_some())
        {
            return Err((
                "NameTaken",
                format!("{what} {} was not made for this Install; delete or rename it", object.name()),
            ));
        }
    }
    let keeps_data = list(app, "/spec/volumes").any(|volume| volume.get("size").is_some());
    if keeps_data && number(install, "/spec/replicas").unwrap_or(1) > 1 {
        let message = "the App keeps data on volumes, which one pod at a time may write; set spec.replicas to 1";
        return Err(("TooManyReplicas", message.into()));
    }
    let deployment = desired::deployment(inputs.install, install, app, inputs.deployment.map(Object::value));
    let mut actions = Vec::new();
    for claim in desired::claims(inputs.install, app) {
        actions.extend(match inputs.claims.get(text(&claim, "/metadata/name")) {
            None => admitted(None, claim, inputs.zone, now)?,
            Some(stored) => admitted(Some(stored), desired::kept_claim(stored, &claim), inputs.zone, now)?,
        });
    }
    let change = admitted(inputs.deployment, deployment, inputs.zone, now)?;
    let progress = inputs.deployment.filter(|_| change.is_none()).map_or(Progress::RollingOut, progress);
    actions.extend(change);
    let route = desired::route(inputs.install, install, app, inputs.zone, inputs.route.map(Object::value));
    if let Some(route) = route {
        actions.extend(admitted(inputs.route, route, inputs.zone, now)?);
    } else {
        let mine = inputs.route.filter(|route| is_mine(inputs.install, route) && !route.is_deleting());
        actions.extend(mine.map(|route| Action::Delete { base: route.clone(), grace_seconds: None }));
    }
    out.actions.extend(actions);
    Ok(progress)
}

/// How far a Deployment is, by its own status (the rule of `kubectl rollout status`, but for pods that are to be replaced).
fn progress(deployment: &Object) -> Progress {
    let value = deployment.value();
    let status = |field: &str| number(&value["status"], field).unwrap_or(0);
    let seen = status("/observedGeneration") >= number(&value, "/metadata/generation").unwrap_or(1);
    if seen && status("/replicas") <= status("/updatedReplicas") { Progress::Complete } else { Progress::RollingOut }
}

/// The App is gone or asks for more than was granted: what runs goes on, unless it has what was taken back, or is to stop.
fn held_back(inputs: Inputs<'_>, install: &Value, now: Timestamp, out: &mut Reconciled) -> Deployed {
    let Some(deployment) = inputs.deployment.filter(|deployment| is_mine(inputs.install, deployment)) else {
        return Err(("HeldBack", "nothing is deployed".into()));
    };
    let mut value = deployment.value();
    let granted: Vec<&str> = list(install, "/spec/grants/capabilities").filter_map(Value::as_str).collect();
    let first = list(&value, "/spec/template/spec/initContainers");
    let revoked = first
        .chain(list(&value, "/spec/template/spec/containers"))
        .flat_map(|one| list(one, "/securityContext/capabilities/add"))
        .filter_map(Value::as_str)
        .any(|one| !granted.contains(&one));
    let replicas = if revoked { 0 } else { desired::replicas(install) };
    value["spec"]["replicas"] = replicas.into();
    out.actions.extend(admitted(Some(deployment), value, inputs.zone, now)?);
    if let Some(route) = inputs.route.filter(|route| is_mine(inputs.install, route)) {
        let mut value = route.value();
        desired::set_stopped(&mut value, install);
        out.actions.extend(admitted(Some(route), value, inputs.zone, now)?);
    }
    let message = if revoked {
        "a permission that the running version has was taken back; it is stopped"
    } else {
        "the version that was deployed before is kept"
    };
    Err(("HeldBack", message.into()))
}

/// Whether an object was made for this Install, or for one of its name that was there before.
fn is_mine(install: &Object, object: &Object) -> bool {
    let value = object.value();
    let mut owners = list(&value, "/metadata/ownerReferences");
    owners.any(|owner| owner["kind"] == "Install" && owner["name"] == install.name())
}

/// The action that makes `wanted` of what is stored, if admission changes anything; or why admission refuses it.
fn admitted(stored: Option<&Object>, wanted: Value, zone: &str, now: Timestamp) -> Result<Option<Action>, Refused> {
    let refused = |status: Status| ("Invalid", status.message);
    // Only the shape matters here: whoever executes the action gives it its own uid.
    let context = Context { now, uid: Uid::from("00000000-0000-0000-0000-000000000000"), suffix: "00000", zone };
    let Some(stored) = stored else {
        let info = admission::kind_of(&wanted).map_err(refused)?;
        admission::prepare_create(info, wanted.clone(), &context).map_err(refused)?;
        return Ok(Some(Action::Create { object: wanted }));
    };
    let info =
        registry::of_kind(stored.kind()).ok_or_else(|| ("Invalid", format!("{} is not served", stored.kind())))?;
    let admitted = admission::prepare_update(info, stored, wanted, Part::Main, &context).map_err(refused)?.object;
    Ok((admitted != *stored).then(|| Action::Update { base: stored.clone(), value: admitted.value() }))
}

#[cfg(test)]
mod tests;
