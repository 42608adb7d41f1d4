//! Domains of owners, asked for at Debian's Knot DNS, and their certificates, whose proofs Pebble finds by Debian's Unbound.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command::{self, Running},
    free_port,
    instance::Instance,
};

use crate::acme::Pebble;

const HOST: &str = "shop.example.test";
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: shop, namespace: alice, labels: {app: shop}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: shop
    image: busybox
    args: [httpd, -f, -p, '8080', -h, /]
    ports: [{name: http, containerPort: 8080}]
";

/// A name server that follows CNAMEs from one zone to another, as those of providers do.
fn unbound(instance: &Instance, port: u16, zones: &[(&str, &str)]) -> Result<Running> {
    let dir = instance.path().join("unbound");
    std::fs::create_dir_all(&dir)?;
    let server = format!(
        "server:\n interface: 127.0.0.1@{port}\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n use-syslog: no\n\
         \x20directory: \"{}\"\n do-not-query-localhost: no\n module-config: \"iterator\"\n local-zone: \"test.\" nodefault\n\
         \x20cache-max-ttl: 0\n cache-max-negative-ttl: 0\nremote-control:\n control-enable: no\n",
        dir.display()
    );
    let forward = zones.iter().map(|(zone, address)| {
        format!("forward-zone:\n name: \"{zone}\"\n forward-addr: {}\n", address.replace(':', "@"))
    });
    let config: Vec<String> = std::iter::once(server).chain(forward).collect();
    std::fs::write(dir.join("unbound.conf"), config.concat())?;
    let log = std::fs::File::create(dir.join("log"))?;
    let mut daemon = Command::new("/usr/sbin/unbound");
    daemon.arg("-c").arg(dir.join("unbound.conf")).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Running(daemon.spawn().context("Debian's unbound is needed: scripts/deps.sh test")?))
}

/// The name server of `example.test`; ends when dropped.
struct Knot {
    process: Running,
    zone: PathBuf,
    port: u16,
}

impl Knot {
    fn start(instance: &Instance) -> Result<Self> {
        let port = free_port()?;
        let dir = instance.path().join("knot");
        std::fs::create_dir_all(&dir)?;
        let (zone, here) = (dir.join("zone"), dir.display().to_string());
        let config = format!(
            "server:\n  listen: 127.0.0.1@{port}\n  rundir: {here}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
             database:\n  storage: {here}\nlog:\n  - target: stderr\n    any: info\n\
             template:\n  - id: default\n    zonefile-load: whole\n    journal-content: none\n\
             zone:\n  - domain: example.test\n    file: {}\n",
            zone.display()
        );
        std::fs::write(dir.join("knot.conf"), config)?;
        let knot = |process| Self { process: Running(process), zone, port };
        let log = std::fs::File::create(dir.join("log"))?;
        let mut daemon = Command::new("knotd");
        daemon.env("PATH", "/usr/sbin:/sbin:/usr/local/sbin").arg("-c").arg(dir.join("knot.conf"));
        let daemon = daemon.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        std::fs::write(dir.join("zone"), Self::text(1, ""))?;
        Ok(knot(daemon.spawn().context("Debian's knot is needed: scripts/deps.sh test")?))
    }

    fn text(serial: u32, records: &str) -> String {
        format!("@ 1 SOA ns hostmaster {serial} 1 1 1 1\n@ 1 NS ns\n{records}")
    }

    /// The zone is this now.
    fn set(&self, serial: u32, records: &str) -> Result<()> {
        std::fs::write(&self.zone, Self::text(serial, records))?;
        command::run("kill", ["-HUP", &self.process.0.id().to_string()]).map(drop)
    }
}

fn route(namespace: &str) -> String {
    format!(
        "{{apiVersion: hearth.dev/v1alpha1, kind: Route, metadata: {{name: shop, namespace: {namespace}}}, \
         spec: {{hostname: {HOST}, target: {{selector: {{app: shop}}, port: http}}}}}}"
    )
}

#[test]
fn a_domain_is_routed_once_its_record_shows_whose_it_is_and_is_nobody_elses_then() -> Result<()> {
    let instance = Instance::empty()?;
    let knot = Knot::start(&instance)?;
    let mut up = instance.up_command("none");
    up.args(["--resolver", &format!("127.0.0.1:{}", knot.port)]);
    command::succeed(&mut up).with_context(|| instance.logs())?;
    instance.import_busybox()?;
    instance.apply(POD)?;
    instance.apply(&route("alice"))?;
    let says = |namespace: &str, condition: &str, reason: &str| {
        instance.eventually("the route is told", || {
            let one = instance.condition("route", "shop", namespace, condition)?;
            ensure!(one["reason"] == reason, "{one}");
            Ok(one["message"].as_str().unwrap_or_default().to_owned())
        })
    };
    let message = says("alice", "DomainVerified", "ChallengeMissing")?;
    says("alice", "DomainPointsHere", "NoAddress")?;
    let domain = instance.get("route", "shop", "alice")?["status"]["domain"].clone();
    let (name, value) = (domain["challengeName"].as_str(), domain["challengeValue"].as_str());
    let (name, value) = name.zip(value).context("a challenge")?;
    ensure!(
        name == format!("_hearth-challenge.{HOST}") && message.contains(name) && message.contains(value),
        "{message}"
    );
    instance.run("wait pod/shop -n alice --for=condition=Ready --timeout=60s").with_context(|| instance.logs())?;
    let refused = || command::fail(&mut instance.curl(HOST, "/", &[])?);
    ensure!(refused()?.contains("unrecognized name"), "it is nobody's yet");

    knot.set(2, &format!("shop 1 A 127.0.0.1\n_hearth-challenge.shop 1 TXT \"{value}\"\n"))?;
    says("alice", "DomainVerified", "Verified")?;
    says("alice", "DomainPointsHere", "PointsHere")?;
    // The gateway leads to the device, which has no certificate that browsers would take, and says so.
    ensure!(says("alice", "CertificateReady", "NeedsPublicAuthority")?.contains("ACME"));
    instance.eventually("the gateway asks the device", || {
        let said = refused()?;
        ensure!(!said.contains("unrecognized name"), "{said}");
        let metrics = instance.scrape("metrics")?;
        ensure!(metrics.contains("hearth_gateway_dials_total{result=\"ok\"}"));
        Ok(())
    })?;

    instance.apply(&route("bob"))?;
    let message = says("bob", "DomainVerified", "Taken")?;
    ensure!(!message.contains("alice"), "{message}");
    // Another owner's record is of no use to them.
    instance.run("delete route shop -n alice")?;
    says("bob", "DomainVerified", "ChallengeWrong")?;
    instance.eventually("it is nobody's", || {
        ensure!(refused()?.contains("unrecognized name"));
        Ok(())
    })
}

#[test]
fn a_domain_gets_a_certificate_of_an_authority_once_its_proofs_are_led_to_the_region() -> Result<()> {
    let instance = Instance::empty()?;
    let (knot, port) = (Knot::start(&instance)?, free_port()?);
    let resolver = format!("127.0.0.1:{port}");
    command::succeed(instance.up_command("none").args(["--resolver", &resolver])).with_context(|| instance.logs())?;
    let zones = [("example.test", format!("127.0.0.1:{}", knot.port)), ("hearth.internal", instance.address("dns")?)];
    let _unbound = unbound(&instance, port, &zones.each_ref().map(|(zone, address)| (*zone, address.as_str())))?;
    let pebble = Pebble::start(&resolver, 3600)?;
    let account = pebble.account(&instance, &pebble.directory())?;
    instance.run(&format!("region acme --contact ops@hearth.internal {account}"))?;
    instance.import_busybox()?;
    instance.apply(POD)?;
    instance.apply(&route("alice"))?;
    let domain = instance.eventually("it is told what to set", || {
        let domain = instance.get("route", "shop", "alice")?["status"]["domain"].clone();
        ensure!(domain["acmeTarget"].is_string(), "{domain}");
        Ok(domain)
    })?;
    let said = |field: &str| domain[field].as_str().context("told").map(str::to_owned);
    ensure!(said("acmeName")? == format!("_acme-challenge.{HOST}"), "{domain}");
    knot.set(
        2,
        &format!(
            "shop 1 A 127.0.0.1\n_hearth-challenge.shop 1 TXT \"{}\"\n_acme-challenge.shop 1 CNAME {}.\n",
            said("challengeValue")?,
            said("acmeTarget")?
        ),
    )?;
    let ready = instance.eventually("there is a certificate", || {
        let one = instance.condition("route", "shop", "alice", "CertificateReady")?;
        ensure!(one["status"] == "True", "{one}");
        Ok(one)
    });
    ready.with_context(|| instance.run("get certificates -n alice -o yaml").unwrap_or_default())?;
    let root = pebble.root()?;
    instance.eventually("a browser takes it", || {
        let mut curl = instance.curl(HOST, "/", &[])?;
        let shown = command::succeed(curl.arg("--cacert").arg(&root).args(["-o", "/dev/null", "-w", "%{http_code}"]))?;
        // The pod has no page; what answers is its app.
        ensure!(shown == "404", "{shown}");
        Ok(())
    })?;
    // It goes with its Route.
    instance.run("delete route shop -n alice")?;
    instance.eventually("it is gone", || {
        let left = instance.list("certificates", "alice")?;
        ensure!(left.iter().all(|one| one["spec"]["dnsNames"][0] != HOST), "{left:?}");
        Ok(())
    })
}
