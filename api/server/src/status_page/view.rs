//! What an owner is told of what they have. Pure.

use std::time::Duration;

use hearth_types::{
    Object, Timestamp,
    condition::{self, Truth},
    kinds::{Device, Install, Route, RouteProtocol},
};

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Light {
    Good,
    Bad,
    /// Nobody knows.
    Unknown,
}

/// A line of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) light: Light,
    pub(super) name: String,
    /// How it is.
    pub(super) says: String,
    /// Where it answers: hostnames of HTTPS.
    pub(super) hosts: Vec<String>,
}

/// The page's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) owner: String,
    pub(super) devices: Vec<Line>,
    pub(super) apps: Vec<Line>,
    /// Domains that are not in order: with those that are there is nothing to see.
    pub(super) domains: Vec<Line>,
    pub(super) now: Timestamp,
}

impl View {
    pub(super) fn of(owner: &str, devices: &[Object], installs: &[Object], routes: &[Object], now: Timestamp) -> Self {
        let mut devices: Vec<_> = devices.iter().map(|object| device(object, now)).collect();
        let mut apps: Vec<_> = installs.iter().map(|object| app(object, routes)).collect();
        let domains = routes.iter().filter_map(domain).collect();
        for lines in [&mut devices, &mut apps] {
            lines.sort_by(|one, other| one.name.cmp(&other.name));
        }
        Self { owner: owner.to_owned(), devices, apps, domains, now }
    }
}

fn device(object: &Object, now: Timestamp) -> Line {
    let status = object.view::<Device>().ok().and_then(|device| device.status);
    let value = object.value();
    let connected = condition::get(&value, "Connected");
    let since = connected.as_ref().and_then(|one| Timestamp::parse(one.last_transition_time.as_deref()?));
    let since = since.map(|at| format!("since {at} ({})", ago(now, at))).unwrap_or_default();
    let (light, how) = match connected.map(|one| one.status) {
        Some(Truth::True) => (Light::Good, format!("here {since}")),
        Some(_) => (
            Light::Bad,
            format!(
                "away {since}: it is off, or its home has no internet; its apps are where they were once it is back"
            ),
        ),
        None => (Light::Unknown, "it was never here: it joined, and its agent has not come yet".to_owned()),
    };
    let mut says = vec![how];
    if let Some(network) = status.as_ref().and_then(|status| status.network.as_ref()).filter(|_| light == Light::Good) {
        let path = network.path_text();
        if !path.is_empty() {
            says.push(format!("its path: {path}"));
        }
    }
    for (kind, what) in [("MemoryPressure", "memory"), ("DiskPressure", "room on its disk")] {
        if condition::is_true(&value, kind) {
            says.push(format!("it runs short of {what}"));
        }
    }
    Line { light, name: object.name().to_owned(), says: says.join("; "), hosts: Vec::new() }
}

/// `3 hours ago`.
fn ago(now: Timestamp, at: Timestamp) -> String {
    let past = Duration::from_millis(now.0.saturating_sub(at.0).max(0).unsigned_abs()).as_secs();
    let (number, unit) = match past {
        0..60 => return "just now".into(),
        60..3600 => (past / 60, "minute"),
        3600..86_400 => (past / 3600, "hour"),
        _ => (past / 86_400, "day"),
    };
    format!("{number} {unit}{} ago", if number == 1 { "" } else { "s" })
}

fn app(object: &Object, routes: &[Object]) -> Line {
    let value = object.value();
    let install = object.view::<Install>().ok();
    let device = install.as_ref().and_then(|install| install.status.as_ref()?.device.clone());
    let on = device.map(|device| format!(" on {device}")).unwrap_or_default();
    let not = |kind: &str| condition::get(&value, kind).filter(|one| one.status != Truth::True);
    let (light, says) =
        if let Some(why) = ["AppFound", "PermissionsGranted", "Deployed", "Ready"].iter().find_map(|kind| not(kind)) {
            let light = if why.status == Truth::False { Light::Bad } else { Light::Unknown };
            let message = if why.message.is_empty() { why.reason } else { why.message };
            (light, format!("not running as it should{on}: {message}"))
        } else if condition::is_true(&value, "Ready") {
            (Light::Good, format!("running{on}"))
        } else {
            (Light::Unknown, "nothing is known of it yet".to_owned())
        };
    let own = |route: &&Object| {
        let labels = route.value();
        let owner = labels.pointer("/metadata/ownerReferences/0/uid").and_then(|uid| uid.as_str().map(str::to_owned));
        owner.is_some_and(|uid| uid == object.uid().as_str())
    };
    let hosts = routes.iter().filter(own).filter_map(https).collect();
    Line { light, name: object.name().to_owned(), says, hosts }
}

fn https(route: &Object) -> Option<String> {
    let spec = route.view::<Route>().ok()?.spec;
    matches!(spec.protocol, None | Some(RouteProtocol::Https)).then_some(spec.hostname)
}

fn domain(route: &Object) -> Option<Line> {
    let value = route.value();
    let host = https(route)?;
    let why = ["DomainVerified", "DomainPointsHere", "CertificateReady"]
        .iter()
        .find_map(|kind| condition::get(&value, kind).filter(|one| one.status != Truth::True))?;
    let light = if why.status == Truth::False { Light::Bad } else { Light::Unknown };
    Some(Line { light, name: host, says: why.message, hosts: Vec::new() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn object(kind: &str, name: &str, spec: Value, status: Value) -> Object {
        let namespace = if kind == "Device" { Value::Null } else { json!("alice") };
        Object::from_value(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": namespace, "uid": name}, "spec": spec, "status": status}))
        .expect("an object")
    }

    fn conditions(all: &[(&str, &str, &str)]) -> Value {
        let all: Vec<_> = all
            .iter()
            .map(|(kind, status, message)| {
                json!({"type": kind, "status": status, "reason": "Why", "message": message,
                    "lastTransitionTime": Timestamp(NOW.0 - 7_200_000).to_string()})
            })
            .collect();
        json!({"conditions": all})
    }

    #[test]
    fn devices_are_here_or_away_and_say_since_when() {
        let spec = json!({"owner": "alice"});
        let mut here = conditions(&[("Connected", "True", ""), ("DiskPressure", "True", "")]);
        here["network"] = json!({"path": "Relay", "relay": "fra-2", "roundTripMillis": 38});
        let devices = [
            object("Device", "b", spec.clone(), here),
            object("Device", "a", spec.clone(), conditions(&[("Connected", "Unknown", "")])),
            object("Device", "c", spec, json!({})),
        ];
        let view = View::of("alice", &devices, &[], &[], NOW);
        let lines: Vec<_> =
            view.devices.iter().map(|line| (line.name.as_str(), line.light, line.says.as_str())).collect();
        let [("a", Light::Bad, away), ("b", Light::Good, here), ("c", Light::Unknown, _)] = lines[..] else {
            panic!("{lines:?}")
        };
        assert!(away.starts_with("away since 2027-01-15T06:00:00") && away.contains("(2 hours ago)"), "{away}");
        assert!(here.contains("its path: relay fra-2, 38 ms") && here.ends_with("short of room on its disk"), "{here}");
    }

    #[test]
    fn apps_say_what_keeps_them_and_where_they_answer() {
        let installs = [
            object(
                "Install",
                "photos",
                json!({"app": "photos"}),
                conditions(&[("Deployed", "True", ""), ("Ready", "True", "")]),
            ),
            object(
                "Install",
                "mail",
                json!({"app": "mail"}),
                conditions(&[("Deployed", "True", ""), ("Ready", "False", "no pod is ready")]),
            ),
            object("Install", "new", json!({"app": "new"}), json!({})),
        ];
        let route = |name: &str, owner: &str, more: Value| {
            let mut route = object(
                "Route",
                name,
                json!({"hostname": format!("{name}.alice.test"), "target": {"selector": {"a": "b"}, "port": 1}}),
                json!({}),
            )
            .value();
            route["metadata"]["ownerReferences"] =
                json!([{"apiVersion": "hearth.dev/v1alpha1", "kind": "Install", "name": owner, "uid": owner}]);
            route["spec"].as_object_mut().expect("a spec").extend(more.as_object().cloned().unwrap_or_default());
            Object::from_value(route).expect("an object")
        };
        let routes =
            [route("photos", "photos", json!({})), route("raw", "photos", json!({"protocol": "TCP", "port": 1}))];
        let view = View::of("alice", &[], &installs, &routes, NOW);
        let [mail, new, photos] = &view.apps[..] else { panic!("{:?}", view.apps) };
        assert_eq!((mail.light, mail.says.as_str()), (Light::Bad, "not running as it should: no pod is ready"));
        assert_eq!(new.light, Light::Unknown);
        assert_eq!((photos.light, photos.says.as_str()), (Light::Good, "running"));
        assert_eq!(photos.hosts, ["photos.alice.test"]);
    }

    #[test]
    fn of_domains_those_are_told_that_want_something_done() {
        let route = |name: &str, verified: &str| {
            let spec = json!({"hostname": name, "target": {"selector": {"a": "b"}, "port": 1}});
            object("Route", "r", spec, conditions(&[("DomainVerified", verified, "set the TXT record")]))
        };
        let view = View::of("alice", &[], &[], &[route("a.example", "True"), route("b.example", "False")], NOW);
        let [line] = &view.domains[..] else { panic!("{:?}", view.domains) };
        assert_eq!((line.name.as_str(), line.says.as_str()), ("b.example", "set the TXT record"));
    }

    #[test]
    fn times_are_told_as_people_tell_them() {
        for (seconds, expected) in
            [(-5, "just now"), (59, "just now"), (60, "1 minute ago"), (7_199, "1 hour ago"), (200_000, "2 days ago")]
        {
            assert_eq!(ago(NOW, Timestamp(NOW.0 - seconds * 1000)), expected);
        }
    }
}
