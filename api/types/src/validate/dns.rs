//! Validation of DNSEndpoints.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Report, each, own, text};
use crate::dns::record::{RecordKind, record_name};

/// Sets of records in one DNSEndpoint at most.
const MAX_ENDPOINTS: usize = 100;
/// Records in one set at most: with the longest text, a set fits an answer over TCP.
const MAX_TARGETS: usize = 32;
/// The longest TTL in seconds: a rollover of the zone's keys waits for no longer.
const MAX_TTL: i64 = 3600;

pub(super) fn endpoint(object: &Value, zone: &str, report: &mut Report) {
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    own::owner("metadata.namespace", namespace, report);
    let all: Vec<_> = each(&object["spec"], "endpoints", "spec").collect();
    if all.len() > MAX_ENDPOINTS {
        report.wrong("spec.endpoints", format!("at most {MAX_ENDPOINTS}"));
    }
    let (mut seen, mut aliases, mut others) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (path, one) in all.into_iter().take(MAX_ENDPOINTS) {
        let (name, kind) = (text(one, "dnsName"), text(one, "recordType"));
        if let Err(why) = name_of(name, namespace, zone) {
            report.wrong(format!("{path}.dnsName"), format!("{name:?}: {why}"));
        }
        if !seen.insert((name, kind)) {
            report.wrong(path.clone(), format!("{kind} of {name:?} is there twice; put all targets into one"));
        }
        if one.get("recordTTL").and_then(Value::as_i64).is_some_and(|ttl| !(0..=MAX_TTL).contains(&ttl)) {
            report.wrong(format!("{path}.recordTTL"), format!("must be 0 to {MAX_TTL} seconds"));
        }
        let Some(known) = RecordKind::of_label(kind) else {
            let all = RecordKind::ALL.map(RecordKind::label).join(", ");
            report.wrong(format!("{path}.recordType"), format!("{kind:?}: must be one of {all}"));
            continue;
        };
        let names = if known == RecordKind::Cname { &mut aliases } else { &mut others };
        names.insert(name);
        targets(&path, one, known, report);
    }
    for name in aliases.intersection(&others) {
        report.wrong(
            "spec.endpoints",
            format!("{name:?} has a CNAME, beside which there is nothing else (RFC 1034 section 3.6.2)"),
        );
    }
}

fn targets(path: &str, one: &Value, kind: RecordKind, report: &mut Report) {
    let all: Vec<_> = each(one, "targets", path).collect();
    let most = if kind == RecordKind::Cname { 1 } else { MAX_TARGETS };
    if all.is_empty() || all.len() > most {
        report.wrong(format!("{path}.targets"), format!("must have 1 to {most}"));
    }
    for (path, target) in all.into_iter().take(most) {
        if let Err(why) = kind.parse(target.as_str().unwrap_or_default()) {
            report.wrong(path, why);
        }
    }
}

/// A name that an owner may set records at.
fn name_of(name: &str, namespace: &str, zone: &str) -> Result<(), String> {
    record_name(name)?;
    let owner = format!("{namespace}.{zone}");
    let below = name.strip_suffix(&owner).filter(|rest| rest.is_empty() || rest.ends_with('.'));
    let Some(below) = below else { return Err(format!("must be {owner} or end in .{owner}")) };
    if below == "lan." || below.ends_with(".lan.") {
        return Err(format!("names below lan.{owner} are for addresses inside the home, which nobody sets"));
    }
    Ok(())
}
