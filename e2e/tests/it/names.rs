//! The zone's names: signed answers before a validator, and owners' records.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};
use serde_json::Value;

/// What `hearth region dnssec` says.
fn dnssec(instance: &Instance, more: &str) -> Result<Value> {
    Ok(serde_json::from_str(&instance.run(&format!("region dnssec {more} -o json"))?)?)
}

/// What delv says of a question, with the DS records of the parent that it is given.
fn delv(instance: &Instance, ds: &Value, name: &str, kind: &str) -> Result<String> {
    let mut anchors = String::from("trust-anchors {\n");
    for line in ds.as_array().context("DS records")?.iter().filter_map(Value::as_str) {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, .., tag, algorithm, kind, digest] = words[..] else { anyhow::bail!("{line}") };
        writeln!(anchors, "{name} static-ds {tag} {algorithm} {kind} \"{digest}\";")?;
    }
    let path = instance.path().join("anchors");
    std::fs::write(&path, anchors + "};\n")?;
    let dns = instance.address("dns")?;
    let (ip, port) = dns.rsplit_once(':').context("an address")?;
    let (server, path) = (format!("@{ip}"), path.display().to_string());
    command::run("delv", [&*server, "-p", port, "-a", &path, "+root=hearth.internal", name, kind])
}

#[test]
fn a_validator_believes_a_running_region_and_owners_records_through_restart_and_rollover() -> Result<()> {
    let instance = Instance::up("none")?;
    let before = dnssec(&instance, "")?;
    assert_eq!(before["ds"].as_array().map(Vec::len), Some(1), "{before}");
    let believed = |name: &str, kind: &str, part: &str| {
        let text = delv(&instance, &before["ds"], name, kind)?;
        ensure!(text.contains("fully validated") && text.contains(part), "{name} {kind}: {text}");
        Ok(())
    };
    instance.eventually("the zone is signed", || believed("hearth.internal", "SOA", "hostmaster"))?;
    believed("nobody.alice.hearth.internal", "A", "negative response")?;
    instance.apply(
        "{apiVersion: externaldns.k8s.io/v1alpha1, kind: DNSEndpoint, metadata: {name: mine, namespace: alice}, spec: {endpoints: [
            {dnsName: _acme-challenge.alice.hearth.internal, recordType: TXT, targets: [token], recordTTL: 60},
            {dnsName: '*.alice.hearth.internal', recordType: CNAME, targets: [host.example]}]}}",
    )?;
    instance
        .eventually("the record is there", || believed("_acme-challenge.alice.hearth.internal", "TXT", "\"token\""))?;
    believed("any.alice.hearth.internal", "CNAME", "host.example.")?;
    let refused = instance.apply_refused(
        "{apiVersion: externaldns.k8s.io/v1alpha1, kind: DNSEndpoint, metadata: {name: hers, namespace: alice}, spec: {endpoints: [
            {dnsName: bob.hearth.internal, recordType: A, targets: [192.168.1.1]}]}}",
    )?;
    assert!(refused.contains("must be alice.hearth.internal") && refused.contains("home's network"), "{refused}");
    let rolled = dnssec(&instance, "--roll zsk")?;
    assert_eq!(rolled["keys"][2]["phase"], "published", "{rolled}");
    assert!(instance.refused("region dnssec --roll zsk")?.contains("under way"));
    believed("hearth.internal", "DNSKEY", "256 3 13")?;
    instance.kill9_all()?;
    instance.start("none")?;
    assert_eq!(dnssec(&instance, "")?["ds"], before["ds"], "the keys are the region's");
    instance
        .eventually("the zone is signed", || believed("_acme-challenge.alice.hearth.internal", "TXT", "\"token\""))?;
    instance.run("delete dnsendpoint mine -n alice")?;
    instance.eventually("the records are gone", || believed("any.alice.hearth.internal", "A", "negative response"))
}
