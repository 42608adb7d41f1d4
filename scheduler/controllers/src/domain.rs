//! A Route whose hostname is a domain of its owner's: whether that is shown, and what is missing.

use std::{net::IpAddr, time::Duration};

use hearth_types::{
    Object, Timestamp,
    acme::CHALLENGE,
    condition::{self, Condition, Truth},
    domains::{Found, challenge_name, is_challenge},
};
use serde_json::{Value, json};

use crate::{
    action::{Action, Reconciled},
    meta::{self, text},
};

/// How long a domain goes on after its record was last seen: whoever moves it to another DNS provider forgets such a record, and finds out in
/// a week. An error of DNS counts as nothing.
pub const GRACE: Duration = Duration::from_hours(7 * 24);

/// What is known of a domain besides its Route.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// What DNS says, or why nobody knows.
    pub found: Result<Found, String>,
    /// What the record has to hold.
    pub token: String,
    /// Another owner has shown that the domain is theirs, and still has it.
    pub taken: bool,
    /// The gateways' addresses, and those that the owner publishes of the device that serves it.
    pub gateways: &'a [IpAddr],
    /// A name that has them, for a CNAME.
    pub alias: String,
    /// Where a public authority is led for proofs, by a CNAME.
    pub proofs: String,
    /// Whether certificates are ordered from a public authority.
    pub ordered: bool,
    /// The Certificate for the domain on the device that serves it, where there is one.
    pub certificate: Option<&'a Object>,
}

/// The device that serves a Route: the first of its endpoints, which has a ready pod if any has.
pub fn serving(route: &Value) -> Option<&str> {
    route.pointer("/status/endpoints/0/device")?.as_str().filter(|device| !device.is_empty())
}

/// The name of the Certificate for a domain on a device: another device has another key.
pub fn certificate_name(device: &str, hostname: &str) -> String {
    format!("{device}.{hostname}")
}

/// Keeps `status.domain`, the conditions `DomainVerified`, `DomainPointsHere` and `CertificateReady`, and the Certificate of what is verified.
/// Routed is what is verified.
pub fn reconcile(route: &Object, seen: &Seen<'_>, now: Timestamp) -> Reconciled {
    let mut out = Reconciled::default();
    let mut value = route.value();
    if meta::is_deleting(&value) {
        return out;
    }
    let hostname = text(&value, "/spec/hostname").to_owned();
    let (verified, domain) = judge(&value, &hostname, seen, now);
    if !value["status"].is_object() {
        value["status"] = json!({});
    }
    value["status"]["domain"] = domain;
    let is_verified = verified.status == Truth::True;
    let certificate = certified(&hostname, is_verified, seen);
    for mut one in [verified, points_here(&hostname, seen), certificate] {
        one.observed_generation = meta::number(&value, "/metadata/generation");
        condition::set(&mut value, &one, now);
    }
    match (seen.certificate, serving(&value)) {
        (None, Some(device)) if is_verified && seen.ordered => {
            let object = json!({
                "apiVersion": "hearth.dev/v1alpha1", "kind": "Certificate",
                "metadata": {
                    "name": certificate_name(device, &hostname), "namespace": route.namespace(),
                    "ownerReferences": [meta::owner_reference(route)],
                },
                "spec": {"device": device, "dnsNames": [hostname]},
            });
            out.actions.push(Action::Create { object });
        }
        // It would be renewed for somebody who has the domain no longer.
        (Some(certificate), _) if !is_verified && !meta::is_deleting(&certificate.value()) => {
            out.actions.push(Action::Delete { base: certificate.clone(), grace_seconds: None });
        }
        _ => {}
    }
    out.update(route, value);
    out
}

/// Whether browsers take the domain, and what keeps them from it.
fn certified(hostname: &str, verified: bool, seen: &Seen<'_>) -> Condition {
    let no = |reason: &str, why: String| Condition::new("CertificateReady", Truth::False, reason, why);
    let record = format!("set a CNAME of {CHALLENGE}.{hostname} to {}", seen.proofs);
    if !seen.ordered && seen.certificate.is_none() {
        let why = "the region's own CA signs names of its zone alone: browsers take this domain once the region orders from a public \
                   authority (ACME: hearth region acme)";
        return no("NeedsPublicAuthority", why.into());
    }
    if !verified {
        return no("DomainNotVerified", format!("ordered once the domain is verified; {record}"));
    }
    let value = seen.certificate.map(Object::value).unwrap_or_default();
    match (condition::get(&value, "Ready"), condition::get(&value, "Issuing")) {
        (Some(ready), _) if ready.status == Truth::True => {
            Condition::new("CertificateReady", Truth::True, "Issued", ready.message)
        }
        // What stands in the way, in the words of whoever orders.
        (_, Some(issuing)) if issuing.status != Truth::True => {
            no(&issuing.reason, format!("{}; {record}", issuing.message))
        }
        _ => no("Ordering", format!("it is being ordered; {record}")),
    }
}

/// The condition, and what `status.domain` is now.
fn judge(route: &Value, hostname: &str, seen: &Seen<'_>, now: Timestamp) -> (Condition, Value) {
    let (name, token) = (challenge_name(hostname), seen.token.as_str());
    let time = |pointer: &str| Timestamp::parse(text(route, pointer));
    // What was shown for another hostname is not shown for this one.
    let same = text(route, "/status/domain/challengeValue") == token;
    let since = time("/status/domain/verifiedSince").filter(|_| same);
    let failing = time("/status/domain/failingSince").filter(|_| same);
    let proven = seen.found.as_ref().is_ok_and(|found| found.texts.iter().any(|text| text == token));
    let record = format!("set the TXT record {name} to {token}");
    let no = |reason: &str, why: String| (Truth::False, reason.to_owned(), why, None, None);
    let given_up = |failing| {
        let why = format!("{name} did not show it for a week; {record}");
        (Truth::False, "GivenUp".to_owned(), why, None, Some(failing))
    };
    let yes = |why: String, failing: Option<Timestamp>| {
        (Truth::True, "Verified".to_owned(), why, Some(since.unwrap_or(now)), failing)
    };
    let (truth, reason, message, since, failing) = match (&seen.found, since) {
        (_, None) if seen.taken => no("Taken", format!("another owner has shown that {hostname} is theirs")),
        (Ok(_), _) if proven => yes(format!("{name} says that it is this owner's"), None),
        (Err(_), Some(_)) => yes("shown before; DNS cannot be asked now".into(), failing),
        (Err(why), None) => no("LookupFailed", format!("DNS cannot be asked for {name}: {why}; {record}")),
        (Ok(_), Some(_)) => {
            let failing = failing.unwrap_or(now);
            let end = failing.plus(GRACE);
            if now >= end {
                given_up(failing)
            } else {
                yes(
                    format!("shown before, and {name} does so no longer: it ends at {}; {record}", end.seconds()),
                    Some(failing),
                )
            }
        }
        (Ok(found), None) if found.texts.iter().any(|text| is_challenge(text)) => {
            no("ChallengeWrong", format!("{name} is another owner's or another domain's; {record}"))
        }
        (Ok(_), None) => match failing {
            Some(failing) => given_up(failing),
            None => no("ChallengeMissing", record),
        },
    };
    let mut domain = json!({"challengeName": name, "challengeValue": token,
        "acmeName": format!("{CHALLENGE}.{hostname}"), "acmeTarget": seen.proofs});
    for (field, time) in [("verifiedSince", since), ("failingSince", failing)] {
        if let Some(time) = time {
            domain[field] = json!(time.seconds().to_string());
        }
    }
    (Condition::new("DomainVerified", truth, &reason, message), domain)
}

fn points_here(hostname: &str, seen: &Seen<'_>) -> Condition {
    let new = |truth, reason: &str, why: String| Condition::new("DomainPointsHere", truth, reason, why);
    let wanted = format!("set a CNAME of {hostname} to {}, or A and AAAA to the gateways' addresses", seen.alias);
    match &seen.found {
        Err(_) => new(Truth::Unknown, "LookupFailed", "DNS cannot be asked".into()),
        Ok(found) if found.addresses.iter().any(|ip| seen.gateways.contains(ip)) => {
            new(Truth::True, "PointsHere", "it has the address of a gateway, or of its device".into())
        }
        Ok(found) if found.addresses.is_empty() => {
            new(Truth::False, "NoAddress", format!("it has no address; {wanted}"))
        }
        Ok(_) => new(Truth::False, "PointsElsewhere", format!("its addresses are none of the gateways'; {wanted}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fix_point;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn route(status: Value) -> Object {
        Object::from_value(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Route",
            "metadata": {"name": "shop", "namespace": "alice", "uid": "r", "generation": 1},
            "spec": {"hostname": "shop.example.com", "target": {"selector": {"app": "shop"}, "port": 80}}, "status": status}))
        .expect("an object")
    }

    fn seen(found: Result<(&[&str], &[&str]), &str>) -> Seen<'static> {
        let found = found.map_err(str::to_owned).map(|(texts, addresses)| Found {
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
            addresses: addresses.iter().map(|ip| ip.parse().expect("an address")).collect(),
        });
        let gateway = IpAddr::from([192, 0, 2, 1]);
        let gateways: &'static [IpAddr] = Box::leak(Box::new([gateway]));
        Seen {
            found,
            token: "hearth-domain=t".into(),
            taken: false,
            gateways,
            alias: "api.zone".into(),
            proofs: "shop.example.com._acme-challenge.alice.zone".into(),
            ordered: false,
            certificate: None,
        }
    }

    /// The status, and the reason of a condition.
    fn after(status: &Value, seen: &Seen<'_>, now: Timestamp) -> Value {
        fix_point(&route(status.clone()), |route| reconcile(route, seen, now)).expect("kept").value()["status"].clone()
    }

    fn reason(status: &Value, name: &str) -> String {
        condition::get(&json!({"status": status}), name).map(|one| one.reason).unwrap_or_default()
    }

    #[test]
    fn what_is_missing_is_said() {
        for (found, verified, points) in [
            (Ok((&[][..], &[][..])), "ChallengeMissing", "NoAddress"),
            (Ok((&["v=spf1 -all"][..], &["203.0.113.1"][..])), "ChallengeMissing", "PointsElsewhere"),
            (Ok((&["hearth-domain=other"][..], &["192.0.2.1"][..])), "ChallengeWrong", "PointsHere"),
            (Err("SERVFAIL"), "LookupFailed", "LookupFailed"),
            (Ok((&["x", "hearth-domain=t"][..], &["203.0.113.1", "192.0.2.1"][..])), "Verified", "PointsHere"),
        ] {
            let status = after(&json!({}), &seen(found), NOW);
            assert_eq!(
                (reason(&status, "DomainVerified").as_str(), reason(&status, "DomainPointsHere").as_str()),
                (verified, points)
            );
            assert_eq!(status["domain"]["verifiedSince"].is_string(), verified == "Verified");
            assert_eq!(status["domain"]["challengeName"], "_hearth-challenge.shop.example.com");
            assert_eq!(reason(&status, "CertificateReady"), "NeedsPublicAuthority");
        }
    }

    #[test]
    fn what_was_shown_lasts_through_errors_and_a_week_without_its_record() {
        let proof = seen(Ok((&["hearth-domain=t"], &[])));
        let first = after(&json!({}), &proof, NOW);
        let later = NOW.plus(Duration::from_hours(24));
        assert_eq!(after(&first, &proof, later), first, "nothing is written while nothing changes");
        let unknown = after(&first, &seen(Err("timeout")), later);
        assert_eq!(unknown["domain"], first["domain"]);
        let gone = seen(Ok((&[], &[])));
        let failing = after(&first, &gone, later);
        assert_eq!(
            (reason(&failing, "DomainVerified").as_str(), failing["domain"]["failingSince"].is_string()),
            ("Verified", true)
        );
        assert_eq!(after(&failing, &proof, later)["domain"], first["domain"], "it is back");
        let last = after(&failing, &gone, later.plus(GRACE.saturating_sub(Duration::from_secs(1))));
        assert_eq!(last["domain"], failing["domain"]);
        let given_up = after(&last, &gone, later.plus(GRACE));
        assert_eq!(
            (reason(&given_up, "DomainVerified").as_str(), given_up["domain"].get("verifiedSince")),
            ("GivenUp", None)
        );
    }

    #[test]
    fn a_domain_is_the_first_owners_and_a_proof_is_of_one_hostname() {
        let mut proof = seen(Ok((&["hearth-domain=t"], &[])));
        proof.taken = true;
        assert_eq!(reason(&after(&json!({}), &proof, NOW), "DomainVerified"), "Taken");
        // Who has it keeps it.
        proof.taken = false;
        let had = after(&json!({}), &proof, NOW);
        proof.taken = true;
        assert_eq!(reason(&after(&had, &proof, NOW), "DomainVerified"), "Verified");
        let mut other = seen(Ok((&[], &[])));
        other.token = "hearth-domain=u".into();
        assert_eq!(after(&had, &other, NOW)["domain"].get("verifiedSince"), None, "shown for another name");
    }

    #[test]
    fn a_certificate_is_ordered_for_the_device_that_serves_what_is_verified_and_goes_with_the_proof() {
        let status = json!({"endpoints": [{"device": "nas"}]});
        let mut proof = seen(Ok((&["hearth-domain=t"], &[])));
        let at = |status: &Value, seen: &Seen<'_>| reconcile(&route(status.clone()), seen, NOW).actions;
        let creates = |actions: &[Action]| actions.iter().filter(|one| matches!(one, Action::Create { .. })).count();
        assert_eq!(creates(&at(&status, &proof)), 0, "nothing is ordered here");
        proof.ordered = true;
        assert_eq!(creates(&at(&json!({}), &proof)), 0, "nobody serves it");
        let actions = at(&status, &proof);
        let [Action::Create { object }, Action::Update { value, .. }] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(object["metadata"]["name"], "nas.shop.example.com");
        assert_eq!(object["spec"], json!({"device": "nas", "dnsNames": ["shop.example.com"]}));
        assert_eq!(value["status"]["domain"]["acmeTarget"], "shop.example.com._acme-challenge.alice.zone");

        let certificate = |conditions: Value| {
            let mut value = object.clone();
            value["metadata"]["uid"] = json!("c");
            value["status"] = json!({"conditions": conditions});
            Object::from_value(value).expect("an object")
        };
        let condition = |kind: &str, status: &str, message: &str| json!({"type": kind, "status": status, "reason": "Why", "message": message});
        for (conditions, ready, says) in [
            (json!([]), "False", "it is being ordered; set a CNAME"),
            (json!([condition("Issuing", "False", "no proof was found")]), "False", "no proof was found; set a CNAME"),
            (
                json!([condition("Ready", "True", "until spring"), condition("Issuing", "False", "x")]),
                "True",
                "until spring",
            ),
        ] {
            let certificate = certificate(conditions);
            let seen = Seen { certificate: Some(&certificate), ..proof.clone() };
            let actions = at(&status, &seen);
            let [Action::Update { value, .. }] = &actions[..] else { panic!("{actions:?}") };
            let told = condition::get(value, "CertificateReady").expect("told");
            assert!(
                serde_json::to_value(told.status).expect("a word") == ready && told.message.starts_with(says),
                "{told:?}"
            );
        }
        let certificate = certificate(json!([]));
        let gone = Seen { certificate: Some(&certificate), ordered: true, ..seen(Ok((&[], &[]))) };
        assert!(matches!(&at(&status, &gone)[0], Action::Delete { .. }));
    }
}
