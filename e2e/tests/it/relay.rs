//! Devices whose networks let no tunnel through are reached by the region's relays, in servers or by themselves.

use std::{
    fs::File,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command::{self, LIMIT},
    eventually,
    instance::{Instance, binary},
    nat::{Behaviour, Home, Host, Internet, Kind},
};
use serde_json::Value;

const ZONE: &str = "example.test";
const HOST: &str = "notes.alice.example.test";
const API: &str = "198.51.100.2";
const GATEWAY: &str = "198.51.100.3";
const RELAY: &str = "198.51.100.4";
/// How long the app may not answer when a relay dies.
const FAILOVER: Duration = Duration::from_secs(5);

/// A process in the foreground that ends with the test.
struct Role(Child);

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(instance: &Instance, log: &str, mut command: std::process::Command) -> Result<Role> {
    std::fs::create_dir_all(instance.path().join("logs"))?;
    let log = File::create(instance.path().join("logs").join(log))?;
    Ok(Role(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?))
}

/// A region of one server, every part of which answers at port 443 of an address of its own.
struct Region {
    instance: Instance,
    cafe: Host,
    _server: Role,
    host: Host,
}

impl Region {
    /// With a relay in its server, or with none.
    fn start(internet: &Internet, relay: bool) -> Result<Self> {
        let (host, cafe) = (internet.host("srv", 100)?, internet.host("cafe", 110)?);
        for address in [GATEWAY, RELAY] {
            host.netns.run(&format!("ip address add {address}/24 dev eth0"))?;
        }
        let instance = Instance::empty()?.in_netns(host.netns.name());
        let mut server =
            instance.hearth(["server", "--zone", ZONE, "--listen-metrics", "127.0.0.1:9643", "--data-dir"]);
        server.arg(instance.path()).args(["--listen-dns", &format!("{API}:53")]);
        for (flag, host, port) in [
            ("--listen-api", API, 443),
            ("--listen-gateway", GATEWAY, 443),
            ("--listen-tunnel", GATEWAY, 0),
            ("--listen-relay", RELAY, 443),
        ]
        .into_iter()
        .take(if relay { 4 } else { 3 })
        {
            server.args([flag, &format!("{host}:{port}")]);
        }
        let server = start(&instance, "server.log", server)?;
        instance.eventually("the server answers", || {
            instance.run("get ns")?;
            ensure!(instance.status()?["api"].is_string());
            ensure!(!relay || instance.run("get relays")?.contains("https://198.51.100.4:443"));
            Ok(())
        })?;
        Ok(Self { instance, cafe, _server: server, host })
    }

    /// A home whose device runs an app.
    fn device(&self, home: &Home) -> Result<(Instance, Role)> {
        let device = Instance::empty()?.in_netns(home.netns.name());
        let token = self.instance.run("token create --owner alice")?;
        let mut join = device.hearth(["join", token.trim(), "--name", "nas", "--data-dir"]);
        command::succeed(join.arg(device.path()))?;
        let examples = binary().parent().context("a folder")?.join("hearth-examples/notes");
        device.import(&examples.join("image.tar"))?;
        let mut agent = device.hearth(["agent", "--data-dir"]);
        agent.arg(device.path());
        let agent = start(&device, "agent.log", agent)?;
        for file in ["app.yaml", "install.yaml"] {
            self.instance.run(&format!("apply -f {}", examples.join(file).display()))?;
        }
        self.instance
            .run("wait install/notes -n alice --for condition=Ready --timeout 60s")
            .with_context(|| device.logs() + &self.instance.logs())?;
        Ok((device, agent))
    }

    /// A relay that runs by itself and joins by a token, at port 443 of a machine of its own.
    fn relay(&self, internet: &Internet, name: &str, net: u8) -> Result<Relay> {
        let host = internet.host("relay", net)?;
        let instance = Instance::empty()?.in_netns(host.netns.name());
        let token = self.instance.run("token create --relay")?;
        let mut relay = instance.hearth(["relay", "--listen", &format!("{}:443", host.address), "--name", name]);
        relay.args(["--join", token.trim(), "--data-dir"]).arg(instance.path());
        let role = start(&instance, "relay.log", relay)?;
        Ok(Relay { role, instance, host, name: name.to_owned() })
    }

    /// What the trace of the app says of the device.
    fn device_step(&self) -> Result<Value> {
        let done =
            command::output(&mut self.instance.hearth(["trace", "notes", "-n", "alice", "-o", "json"]), b"", LIMIT)?;
        let said: Value =
            serde_json::from_slice(&done.stdout).with_context(|| String::from_utf8_lossy(&done.stderr).into_owned())?;
        let step = said["steps"].as_array().into_iter().flatten().find(|step| step["step"] == "device");
        step.cloned().with_context(|| format!("{said:#}"))
    }

    /// What somebody in a cafe gets of the app.
    fn page(&self, path: &str) -> Result<String> {
        self.page_within(path, 20.0)
    }

    fn page_within(&self, path: &str, seconds: f32) -> Result<String> {
        let ca = self.instance.path().join("ca.pem").display().to_string();
        let resolve = format!("{HOST}:443:{GATEWAY}");
        let mut curl = self.cafe.netns.program("curl");
        curl.args([
            "-sS",
            "--fail-with-body",
            "--max-time",
            &seconds.to_string(),
            "--cacert",
            &ca,
            "--resolve",
            &resolve,
        ]);
        command::succeed(curl.arg(format!("https://{HOST}{path}")))
    }

    fn metrics(&self) -> Result<String> {
        let mut curl = self.host.netns.program("curl");
        command::succeed(curl.args(["-sS", "http://127.0.0.1:9643/metrics"]))
    }
}

/// A relay that is a process of its own.
struct Relay {
    role: Role,
    instance: Instance,
    host: Host,
    name: String,
}

impl Relay {
    fn signal(&self, name: &str) -> Result<()> {
        command::run("kill", [name, &self.role.0.id().to_string()]).map(drop)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.instance.path().join("logs/relay.log")).unwrap_or_default()
    }

    /// The bytes that it counted for an owner.
    fn bytes_of(&self, owner: &str) -> Result<f64> {
        let mut curl = self.host.netns.program("curl");
        count(&command::succeed(curl.args(["-sS", "http://127.0.0.1:9645/metrics"]))?, owner)
    }
}

/// The bytes that devices of an owner sent to a relay, by its metrics.
fn count(metrics: &str, owner: &str) -> Result<f64> {
    let owner = format!("owner=\"{owner}\"");
    let mut lines =
        metrics.lines().filter(|line| line.starts_with("hearth_relay_bytes_total") && line.contains(&owner));
    let line = lines.find(|line| line.contains("received")).context("the owner's bytes are counted")?;
    Ok(line.rsplit_once(' ').context("a number")?.1.parse()?)
}

#[test]
fn a_device_that_lets_only_tcp_443_out_is_reached_by_the_relay_which_counts_its_owners_bytes() -> Result<()> {
    let internet = Internet::new()?;
    let region = Region::start(&internet, true)?;
    let home = internet.home(Kind::Only443, 1)?;
    assert_eq!(Behaviour::measure(&home.netns, &internet)?, Behaviour::Blocked);
    let (device, _agent) = region.device(&home)?;
    eventually("the app answers in the cafe", Duration::from_secs(30), || region.page("/healthz"))
        .with_context(|| device.logs() + &region.instance.logs())?;
    // Whoever asks is told why.
    let step = region.device_step().with_context(|| device.logs())?;
    let facts = &step["facts"];
    assert_eq!(
        (&facts["path"], &facts["relay"], &facts["udp"]),
        (&"Relay".into(), &"home-1".into(), &false.into()),
        "{step:#}"
    );
    let says = step["says"].as_str().unwrap_or_default();
    assert!(says.contains("its network blocks UDP, so it is reached by relay home-1; "), "{step:#}");
    let count = count(&region.metrics()?, "alice")?;
    ensure!(count > 1000.0, "{count}");
    Ok(())
}

#[test]
fn relays_of_their_own_join_by_token_and_one_that_stands_still_is_left_for_another_in_five_seconds() -> Result<()> {
    let internet = Internet::new()?;
    let region = Region::start(&internet, false)?;
    let relays = [region.relay(&internet, "fra-1", 120)?, region.relay(&internet, "fra-2", 130)?];
    region.instance.eventually("both relays have joined", || {
        let there = region.instance.run("get relays -o wide")?;
        ensure!(there.contains("https://198.51.120.2:443") && there.contains("https://198.51.130.2:443"), "{there}");
        ensure!(region.instance.run("token ls")?.contains("used by relay fra-2"));
        Ok(())
    })?;
    let home = internet.home(Kind::Only443, 1)?;
    let (device, _agent) = region.device(&home)?;
    let logs = || device.logs() + &region.instance.logs() + &relays[0].log() + &relays[1].log();
    // The gateway may go to a nearer relay while the first page is under way.
    let used = eventually("the app answers in the cafe by a relay that counts it", Duration::from_secs(30), || {
        region.page("/healthz")?;
        let step = region.device_step()?;
        let used = relays.iter().position(|relay| step["facts"]["relay"] == relay.name.as_str());
        let used = used.with_context(|| format!("{step:#}"))?;
        let bytes = relays[used].bytes_of("alice")?;
        ensure!(bytes > 1000.0, "{bytes} bytes by {}", relays[used].name);
        Ok(used)
    })
    .with_context(logs)?;
    let (used, other) = (&relays[used], &relays[1 - used]);

    used.signal("-STOP")?;
    let broken = Instant::now();
    eventually("the app is reached by the other relay", FAILOVER, || region.page_within("/healthz", 1.5))
        .with_context(logs)?;
    ensure!(broken.elapsed() <= FAILOVER + Duration::from_secs(1), "{:?}", broken.elapsed());
    assert_eq!(region.device_step()?["facts"]["relay"], other.name.as_str());
    ensure!(other.bytes_of("alice")? > 0.0);
    used.signal("-CONT")?;

    // One whose Relay is deleted is none of the region any more, and says so when it starts again.
    region.instance.run(&format!("delete relay {}", used.name))?;
    let mut again =
        used.instance.hearth(["relay", "--listen", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0", "--data-dir"]);
    used.signal("-KILL")?;
    let said = command::fail(again.arg(used.instance.path()))?;
    assert!(said.contains("no Relay of the region has this relay's key"), "{said}");
    let token = region.instance.run("token create --relay")?;
    let mut again = used.instance.hearth([
        "relay",
        "--listen",
        "127.0.0.1:0",
        "--listen-metrics",
        "127.0.0.1:0",
        "--join",
        token.trim(),
    ]);
    again.arg("--data-dir").arg(used.instance.path());
    let _again = start(&used.instance, "again.log", again)?;
    region.instance.eventually("it has joined anew under its name", || {
        let there = region.instance.run("get relays")?;
        ensure!(
            there
                .lines()
                .any(|line| line.starts_with(&format!("{} ", used.name)) && line.contains("https://127.0.0.1:")),
            "{there}"
        );
        Ok(())
    })
}
