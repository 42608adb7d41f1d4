//! Domains of owners, asked for at Debian's Knot DNS.

use std::{
    net::{TcpListener, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};

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

/// The name server of `example.test`; ends when dropped.
struct Knot {
    process: Child,
    zone: PathBuf,
    port: u16,
}

impl Knot {
    fn start(instance: &Instance) -> Result<Self> {
        let port = (0..100)
            .find_map(|_| {
                let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
                UdpSocket::bind(("127.0.0.1", port)).ok().map(|_| port)
            })
            .context("a port")?;
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
        let knot = |process| Self { process, zone, port };
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
        command::run("kill", ["-HUP", &self.process.id().to_string()]).map(drop)
    }
}

impl Drop for Knot {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
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
    let metrics = instance.address("metrics")?;
    instance.eventually("the gateway asks the device", || {
        let said = refused()?;
        ensure!(!said.contains("unrecognized name"), "{said}");
        let metrics = command::run("curl", ["-sS", &format!("http://{metrics}/metrics")])?;
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
