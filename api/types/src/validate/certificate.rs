//! Validation of Certificates.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Report, each, immutable, own};
use crate::{acme, names};

pub(super) fn body(object: &Value, old: Option<&Value>, zone: &str, report: &mut Report) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let namespace = text("/metadata/namespace");
    own::owner("metadata.namespace", namespace, report);
    report.name("spec.device", text("/spec/device"), names::dns_label);
    immutable(old, object, "/spec/device", "make a Certificate for the other device", report);
    let all: Vec<_> = each(&object["spec"], "dnsNames", "spec").collect();
    if all.is_empty() || all.len() > acme::MAX_NAMES {
        report.wrong("spec.dnsNames", format!("must have 1 to {}", acme::MAX_NAMES));
    }
    let mut seen = BTreeSet::new();
    for (path, name) in all.into_iter().take(acme::MAX_NAMES) {
        let name = name.as_str().unwrap_or_default();
        if let Err(why) = acme::may_have(name, namespace, zone) {
            report.wrong(path.clone(), format!("{name:?}: {why}"));
        }
        if !seen.insert(name) {
            report.wrong(path, format!("{name:?} is there twice"));
        }
    }
}
