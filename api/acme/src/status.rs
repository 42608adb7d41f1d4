//! What a Certificate's status says after each step. Pure.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_types::{
    Object, Timestamp,
    condition::{self, Condition, Truth},
    kinds::{CertificateChallenge, CertificateOrder, CertificateSpec, CertificateStatus, IssuedCertificate},
};
use serde_json::{Value, json};

use crate::{facts::Facts, pace::Issue};

/// What was issued is remembered for a week at least, as long as it counts for a limit, in milliseconds.
const REMEMBERED: i64 = 7 * 86_400_000;
/// Certificates that are remembered at most: the limits let no more through in a year.
const MAX_ISSUED: usize = 32;
/// The longest message in a condition.
const MAX_MESSAGE: usize = 512;

/// A Certificate as the orders see it.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) object: Object,
    pub(crate) names: BTreeSet<String>,
    /// The device's request and when it came.
    pub(crate) request: Option<(Vec<u8>, Timestamp)>,
    pub(crate) status: CertificateStatus,
}

fn time(text: Option<&String>) -> Option<Timestamp> {
    text.and_then(|text| Timestamp::parse(text))
}

impl View {
    /// Reads a Certificate; `None` where this release cannot.
    pub(crate) fn read(object: &Object) -> Option<Self> {
        let mut value = object.value();
        let spec: CertificateSpec = serde_json::from_value(value["spec"].take()).ok()?;
        let status: CertificateStatus = match value["status"].take() {
            Value::Null => CertificateStatus::default(),
            status => serde_json::from_value(status).ok()?,
        };
        let request = status.request.as_ref().and_then(|request| {
            Some((STANDARD.decode(&request.csr).ok()?, Timestamp::parse(&request.time).unwrap_or_default()))
        });
        Some(Self { object: object.clone(), names: spec.dns_names.into_iter().collect(), request, status })
    }

    /// Whether it is said already that its order waits.
    pub(crate) fn waits(&self, until: Timestamp, why: &str) -> bool {
        let message = wait_message(until, why);
        self.status.conditions.iter().any(|one| one.r#type == "Issuing" && one.message == message)
    }

    /// Whether a device made this key, and asked for a certificate for it.
    pub(crate) fn knows(&self, spki: &str) -> bool {
        let asked = || self.request.as_ref().and_then(|(csr, _)| crate::facts::request(csr).ok());
        self.status.issued.iter().any(|one| one.spki == spki) || asked().is_some_and(|asked| asked.spki == spki)
    }

    pub(crate) fn not_after(&self) -> Option<Timestamp> {
        time(self.status.not_after.as_ref())
    }

    /// How long the present certificate lives in all.
    pub(crate) fn life(&self) -> Option<std::time::Duration> {
        Some(self.not_after()?.since(time(self.status.not_before.as_ref())?))
    }

    pub(crate) fn renewal_time(&self) -> Option<Timestamp> {
        time(self.status.renewal_time.as_ref())
    }

    /// No try before.
    pub(crate) fn next_try(&self) -> Timestamp {
        time(self.status.next_try.as_ref()).unwrap_or_default()
    }

    /// Whether what was issued last was for these names: the next one is its renewal.
    pub(crate) fn is_renewal(&self) -> bool {
        let issued = self.status.certificate.as_deref().and_then(|pem| crate::facts::chain(pem).ok());
        issued.is_some_and(|facts| facts.names == self.names)
    }

    /// What was issued, as the limits count it.
    pub(crate) fn issues(&self) -> impl Iterator<Item = Issue> {
        self.status.issued.iter().filter_map(|one| {
            Some(Issue { at: Timestamp::parse(&one.time)?, names: self.names.clone(), renewal: one.renewal })
        })
    }
}

fn status(value: &mut Value) -> &mut Value {
    if !value["status"].is_object() {
        value["status"] = json!({});
    }
    &mut value["status"]
}

fn drop_fields(value: &mut Value, fields: &[&str]) {
    if let Some(status) = status(value).as_object_mut() {
        for field in fields {
            status.remove(*field);
        }
    }
}

fn issuing(value: &mut Value, truth: Truth, reason: &str, message: &str, now: Timestamp) {
    let message: String = message.chars().take(MAX_MESSAGE).collect();
    condition::set(value, &Condition::new("Issuing", truth, reason, message), now);
}

/// An order is under way, and the zone answers with these proofs.
pub(crate) fn ordering(value: &mut Value, url: &str, challenges: &[CertificateChallenge], now: Timestamp) {
    let order = CertificateOrder { url: url.to_owned(), challenges: challenges.to_vec() };
    status(value)["order"] = json!(order);
    issuing(value, Truth::True, "Ordering", "the authority looks at the proofs that the zone answers with", now);
}

/// What is said of an order that waits: a limit is used up until then.
fn wait_message(until: Timestamp, why: &str) -> String {
    let until = until.seconds();
    format!("the authority's limit of {why} is used up until {until}; the certificate that is in use serves meanwhile")
}

/// The order waits. No time is set before which nothing is tried: the limit itself may be another one tomorrow.
pub(crate) fn waiting(value: &mut Value, until: Timestamp, why: &str, now: Timestamp) {
    issuing(value, Truth::False, "LimitReached", &wait_message(until, why), now);
}

/// A try failed; the next one is at `next`. What was issued before stays. `resume`: the order goes on then.
pub(crate) fn failed(value: &mut Value, reason: &str, message: &str, next: Timestamp, resume: bool, now: Timestamp) {
    if !resume {
        drop_fields(value, &["order"]);
    }
    let failures = value.pointer("/status/failures").and_then(Value::as_u64).unwrap_or(0);
    status(value)["failures"] = json!(failures.saturating_add(1).min(u32::MAX.into()));
    status(value)["nextTry"] = json!(next.to_string());
    issuing(value, Truth::False, reason, &format!("{message}; tried again at {}", next.seconds()), now);
}

/// There is no account to order with. All wait for that, so that nothing is counted here.
pub(crate) fn no_account(value: &mut Value, reason: &str, message: &str, now: Timestamp) {
    issuing(value, Truth::False, reason, message, now);
}

/// There is another account: what others refused or could not do does not hold this one back.
pub(crate) fn begin_anew(value: &mut Value) {
    drop_fields(value, &["order", "failures", "nextTry"]);
}

/// The request is of no use; the device makes another.
pub(crate) fn refused(value: &mut Value, message: &str, now: Timestamp) {
    drop_fields(value, &["order", "request"]);
    issuing(value, Truth::False, "BadRequest", message, now);
}

/// The certificate is there.
pub(crate) fn issued(
    value: &mut Value,
    (pem, facts, issuer): (&str, &Facts, &str),
    renewal: bool,
    renewal_time: Timestamp,
    now: Timestamp,
) {
    let known = value.pointer("/status/issued").cloned().unwrap_or_default();
    let known: Vec<IssuedCertificate> = serde_json::from_value(known).unwrap_or_default();
    let one = IssuedCertificate {
        time: now.to_string(),
        not_after: facts.not_after.to_string(),
        serial: facts.serial.clone(),
        spki: facts.spki.clone(),
        renewal,
    };
    let counts = |one: &IssuedCertificate| {
        let at = |text: &str| Timestamp::parse(text).unwrap_or_default();
        at(&one.not_after) > now || now.0 - at(&one.time).0 < REMEMBERED
    };
    let all: Vec<_> = std::iter::once(one).chain(known.into_iter().filter(counts)).take(MAX_ISSUED).collect();
    drop_fields(value, &["order", "request", "failures", "nextTry"]);
    let status = status(value);
    status["issued"] = json!(all);
    status["issuer"] = json!(issuer);
    status["certificate"] = json!(pem);
    status["notBefore"] = json!(facts.not_before.to_string());
    status["notAfter"] = json!(facts.not_after.to_string());
    status["renewalTime"] = json!(renewal_time.to_string());
    let message = format!("valid until {}", facts.not_after.seconds());
    condition::set(value, &Condition::new("Ready", Truth::True, "Issued", message), now);
    issuing(value, Truth::False, "Issued", "the certificate is there", now);
}

/// The certificate's time of renewal is another now.
pub(crate) fn renew_at(value: &mut Value, at: Timestamp) {
    status(value)["renewalTime"] = json!(at.to_string());
}

/// The certificate is not valid any more.
pub(crate) fn expired(value: &mut Value, now: Timestamp) {
    let message = "it expired, and no other came in time; the region's own certificate serves";
    condition::set(value, &Condition::new("Ready", Truth::False, "Expired", message), now);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn facts(serial: &str, days: i64) -> Facts {
        Facts {
            names: BTreeSet::new(),
            spki: "s".into(),
            serial: serial.into(),
            not_before: NOW,
            not_after: Timestamp(NOW.0 + days * 86_400_000),
            id: None,
        }
    }

    #[test]
    fn a_failure_leaves_what_is_in_use_and_a_success_clears_it() {
        let mut value = json!({"spec": {}, "status": {"request": {"csr": "", "time": ""}}});
        issued(&mut value, ("PEM", &facts("1", 90), "dir"), false, NOW, NOW);
        assert!(value["status"].get("request").is_none());
        ordering(&mut value, "u", &[CertificateChallenge { dns_name: "a".into(), value: "v".into() }], NOW);
        failed(&mut value, "Refused", "no", NOW, false, NOW);
        failed(&mut value, "Refused", "no", NOW, false, NOW);
        assert_eq!((&value["status"]["certificate"], &value["status"]["failures"]), (&json!("PEM"), &json!(2)));
        assert!(value["status"].get("order").is_none(), "the zone answers with no proof of an order that is over");
        assert!(condition::is_true(&value, "Ready"));
        let later = Timestamp(NOW.0 + 10 * 86_400_000);
        issued(&mut value, ("NEW", &facts("2", 90), "dir"), true, NOW, later);
        let status: CertificateStatus = serde_json::from_value(value["status"].clone()).expect("a status");
        assert_eq!((status.failures, status.next_try), (None, None));
        assert_eq!(status.issued.iter().map(|one| &*one.serial).collect::<Vec<_>>(), ["2", "1"]);
        let much_later = Timestamp(NOW.0 + 200 * 86_400_000);
        issued(&mut value, ("LAST", &facts("3", 290), "dir"), true, NOW, much_later);
        assert_eq!(value["status"]["issued"].as_array().map(Vec::len), Some(1), "what expired long ago is forgotten");
    }
}
