//! The device: has it a session, and by what is it reached.

use std::time::Duration;

use hearth_proto::v1::{LineResponse, TunnelPath};
use hearth_types::{
    Reason, Status, Timestamp,
    condition::{self, Truth},
    time::human_duration,
};
use serde_json::{Value, json};

use super::{name::Subject, report::Step, within};
use crate::{
    context::{Context, now},
    target,
};

const STEP: &str = "device";
/// How long a device may take: five seconds until its tunnel is there, and six until it has looked at its line.
const PATIENCE: Duration = Duration::from_secs(15);
/// Relays that are told of.
const MAX_TOLD: usize = 4;

/// Asks the device.
pub(super) async fn look(context: &Context, subject: &Subject) -> Step {
    let Some(device) = subject.device() else {
        return match (&subject.route, &subject.install) {
            (None, None) => Step::unknown(STEP, "nobody has the name, so there is no device to look at"),
            _ => Step::broken(STEP, "no device runs it, nor did one before: see the app"),
        };
    };
    let Ok(client) = context.client() else { return Step::unknown(STEP, "the region cannot be asked") };
    let asked = within(PATIENCE, client.line(&device)).await;
    let object = async { context.get(target::kind("devices")?, &device).await };
    let object = within(super::REGION, object).await.and_then(Result::ok).map(|object| object.value());
    match asked {
        Some(Ok(line)) => reached(&device, &line),
        Some(Err(status)) => not_reached(&device, &status, object.as_ref(), now()),
        None => {
            let status = Status::new(Reason::Timeout, format!("no answer within {} s", PATIENCE.as_secs()));
            not_reached(&device, &status, object.as_ref(), now())
        }
    }
}

fn millis(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        more => format!("{} ms", more / 1000),
    }
}

/// The tunnel by which was asked, else any.
fn own(line: &LineResponse) -> Option<&TunnelPath> {
    line.tunnels.iter().find(|tunnel| tunnel.asked_by).or(line.tunnels.first())
}

fn reached(device: &str, line: &LineResponse) -> Step {
    let tunnel = own(line);
    let time = tunnel.and_then(|tunnel| tunnel.round_trip_micros).map(|micros| format!("; {}", millis(micros)));
    let time = time.unwrap_or_default();
    let (relay, direct) = tunnel.map(|one| (one.relay.as_str(), one.direct.as_str())).unwrap_or_default();
    let blocked = line.udp == Some(false);
    let says = match (relay, direct) {
        ("", "") => format!("device {device} is here; its path is being found out"),
        ("", gateway) => format!("device {device} is here; its tunnel goes straight to the gateway at {gateway}{time}"),
        (relay, _) if blocked => {
            format!("device {device} is here; its network blocks UDP, so it is reached by relay {relay}{time}")
        }
        (relay, _) => {
            format!("device {device} is here; no direct path was found, so it is reached by relay {relay}{time}")
        }
    };
    let mut step = Step::ok(STEP, says);
    if let Some(nat) = nat(line) {
        step = step.detail(nat);
    }
    let relays = line.relays.iter().take(MAX_TOLD);
    let relays: Vec<_> = relays.map(|one| format!("{} {}", one.relay, millis(one.round_trip_micros))).collect();
    if !relays.is_empty() {
        step = step.detail(format!("relays that it reaches: {}", relays.join(", ")));
    }
    if blocked && !relay.is_empty() {
        step = step.advise("this works, and would be faster if the router let UDP out");
    }
    step.facts(json!({
        "device": device,
        "path": match (relay, direct) { ("", "") => Value::Null, ("", _) => json!("Direct"), _ => json!("Relay") },
        "relay": Some(relay).filter(|relay| !relay.is_empty()),
        "gateway": Some(direct).filter(|direct| !direct.is_empty()),
        "roundTripMicros": tunnel.and_then(|tunnel| tunnel.round_trip_micros),
        "udp": line.udp,
        "portVaries": line.port_varies,
        "publicAddress": Some(line.public_address.as_str()).filter(|address| !address.is_empty()),
        "translated": line.translated,
        "relays": line.relays.iter().map(|one| json!({"name": one.relay, "roundTripMicros": one.round_trip_micros})).collect::<Vec<_>>(),
    }))
}

/// What its router does, in a sentence (RFC 4787).
fn nat(line: &LineResponse) -> Option<String> {
    let public = line.public_address.as_str();
    Some(match (line.udp, line.translated, line.port_varies) {
        (Some(false), ..) => "UDP does not get out of its network and back".to_owned(),
        (_, Some(false), _) => format!("it has an address of the internet, {public}"),
        (_, _, Some(true)) => {
            format!(
                "its router ({public}) takes another port for each destination (a symmetric NAT), so that others behind routers reach it by relays"
            )
        }
        (_, _, Some(false)) => {
            format!("its router ({public}) keeps one port for all destinations, so that direct paths are found")
        }
        (_, Some(true), None) => format!("it is behind a router, whose address is {public}"),
        _ => return None,
    })
}

fn not_reached(device: &str, status: &Status, object: Option<&Value>, now: Timestamp) -> Step {
    let Some(object) = object else {
        return Step::broken(
            STEP,
            format!("device {device} is not known to the region (any more): {}", status.message),
        )
        .advise("the app is placed elsewhere once it may be: see `hearth get devices`");
    };
    let connected = condition::get(object, "Connected");
    let since = connected.filter(|one| one.status != Truth::True).and_then(|one| one.last_transition_time);
    let since = since.as_deref().and_then(Timestamp::parse);
    let facts = json!({"device": device, "awaySince": since.map(|since| since.to_string())});
    let text = status.message.as_str();
    let step = if text.contains("has no session") {
        let since = match since {
            Some(since) => format!("since {since} ({} ago)", human_duration(now.since(since))),
            None => "since a moment ago".to_owned(),
        };
        let owner = object.pointer("/spec/owner").and_then(Value::as_str).unwrap_or_default();
        Step::broken(STEP, format!("device {device} of {owner} is away {since}: it is switched off or without network"))
            .advise("see that it has power and network; on it: `systemctl status hearth-agent`, `hearth agent check`. Its apps run on meanwhile")
    } else if status.reason == Reason::Timeout {
        Step::broken(STEP, format!("device {device} has a session, and no tunnel to it comes about: {text}")).advise(
            "its network lets neither UDP out nor TCP to a relay's port: see `hearth get relays`; a relay at port 443 is let out nearly everywhere",
        )
    } else if text.contains("older release") {
        Step::unknown(STEP, text.to_owned())
    } else {
        Step::broken(STEP, format!("device {device} is not reached: {text}"))
    };
    step.facts(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::trace::report::Verdict;

    fn line(relay: &str, direct: &str, udp: Option<bool>) -> LineResponse {
        let tunnel = TunnelPath {
            asked_by: true,
            relay: relay.into(),
            direct: direct.into(),
            round_trip_micros: Some(38_400),
            ..TunnelPath::default()
        };
        LineResponse { tunnels: vec![TunnelPath::default(), tunnel], udp, ..LineResponse::default() }
    }

    #[test]
    fn the_path_is_told_in_plain_words() {
        let says = |line: &LineResponse| reached("nas", line).says;
        assert_eq!(
            says(&line("fra-2", "", Some(false))),
            "device nas is here; its network blocks UDP, so it is reached by relay fra-2; 38 ms"
        );
        assert!(says(&line("fra-2", "", Some(true))).contains("no direct path was found"));
        assert!(says(&line("", "192.0.2.1:7", None)).contains("straight to the gateway at 192.0.2.1:7; 38 ms"));
        let symmetric = LineResponse { port_varies: Some(true), translated: Some(true), ..line("a", "", Some(true)) };
        assert!(reached("nas", &symmetric).details[0].contains("symmetric"));
        assert_eq!((millis(400), millis(9_990), millis(10_000)), ("0.4 ms".into(), "9.9 ms".into(), "10 ms".into()));
    }

    #[test]
    fn why_a_device_is_not_reached_is_told_apart() {
        let device = json!({"spec": {"owner": "alice"}, "status": {"conditions": [{"type": "Connected", "status": "Unknown",
            "reason": "DeviceSilent", "message": "", "lastTransitionTime": "2024-01-01T00:00:00Z"}]}});
        let now = Timestamp::parse("2024-01-01T01:00:00Z").expect("a time");
        let told = |status: &Status, object| not_reached("nas", status, object, now);
        let away = told(
            &Status::unavailable("cannot ask device \"nas\", which has no session with this region"),
            Some(&device),
        );
        assert!(away.says.contains("away since 2024-01-01T00:00:00Z (60m ago)"), "{}", away.says);
        let timeout = told(&Status::new(Reason::Timeout, "which did not open a tunnel within 5 s"), Some(&device));
        assert!(timeout.says.contains("has a session, and no tunnel"));
        let old =
            told(&Status::unavailable("device \"nas\" runs an older release, which cannot do this"), Some(&device));
        assert_eq!(old.verdict, Verdict::Unknown);
        assert_eq!(told(&Status::unavailable("x"), None).verdict, Verdict::Broken);
    }
}
