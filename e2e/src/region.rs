//! A region on the internet of the laboratory, relays of its own, and homes whose devices it reaches.

use std::{fs::File, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    command::{self, LIMIT, Running},
    instance::{Instance, binary},
    nat::{Home, Host, Internet},
};

/// Its zone.
pub const ZONE: &str = "example.test";
/// The name of the example that [`Region::device`] has.
pub const HOST: &str = "notes.alice.example.test";
/// Its API, at port 443; and the gateway where all share one port.
pub const API: &str = "198.51.100.2";
/// Its gateway, at port 443.
pub const GATEWAY: &str = "198.51.100.3";
const RELAY: &str = "198.51.100.4";

/// Starts a role whose log is among its instance's.
pub fn start(instance: &Instance, log: &str, mut command: std::process::Command) -> Result<Running> {
    std::fs::create_dir_all(instance.path().join("logs"))?;
    let log = File::create(instance.path().join("logs").join(log))?;
    Ok(Running(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?))
}

/// A region of one server.
pub struct Region {
    gateway: &'static str,
    /// Its data directory, and the verbs that ask it.
    pub instance: Instance,
    /// Where its users are.
    pub cafe: Host,
    _server: Running,
    /// Where it runs.
    pub host: Host,
}

impl Region {
    /// Every part answers at port 443 of an address of its own; with a relay in its server, or with none.
    pub fn start(internet: &Internet, relay: bool) -> Result<Self> {
        let flags = [
            ("--listen-api", format!("{API}:443")),
            ("--listen-gateway", format!("{GATEWAY}:443")),
            ("--listen-tunnel", format!("{GATEWAY}:0")),
            ("--listen-relay", format!("{RELAY}:443")),
        ];
        Self::start_with(
            internet,
            GATEWAY,
            &flags[..if relay { 4 } else { 3 }],
            relay.then_some("https://198.51.100.4:443"),
        )
    }

    /// All that is TCP shares the gateway's port.
    pub fn start_shared(internet: &Internet) -> Result<Self> {
        let flags = [
            ("--listen-api", "gateway".to_owned()),
            ("--listen-gateway", format!("{API}:443")),
            ("--listen-relay", "gateway".to_owned()),
        ];
        Self::start_with(internet, API, &flags, Some("https://198-51-100-2.relay.api.example.test:443"))
    }

    fn start_with(
        internet: &Internet,
        gateway: &'static str,
        flags: &[(&str, String)],
        relay: Option<&str>,
    ) -> Result<Self> {
        let (host, cafe) = (internet.host("srv", 100)?, internet.host("cafe", 110)?);
        for address in [GATEWAY, RELAY] {
            host.netns.run(&format!("ip address add {address}/24 dev eth0"))?;
        }
        let instance = Instance::empty()?.in_netns(host.netns.name());
        let mut server =
            instance.hearth(["server", "--zone", ZONE, "--listen-metrics", "127.0.0.1:9643", "--data-dir"]);
        server.arg(instance.path()).args(["--listen-dns", &format!("{API}:53")]);
        for (flag, value) in flags {
            server.args([flag, value.as_str()]);
        }
        let server = start(&instance, "server.log", server)?;
        instance.eventually("the server answers", || {
            instance.run("get ns")?;
            ensure!(instance.status()?["api"].is_string());
            if let Some(url) = relay {
                ensure!(instance.run("get relays")?.contains(url));
            }
            Ok(())
        })?;
        Ok(Self { gateway, instance, cafe, _server: server, host })
    }

    /// A home whose device runs an app; `at` are more arguments for the making of its token.
    pub fn device(&self, home: &Home, at: &str) -> Result<(Instance, Running)> {
        let device = Instance::empty()?.in_netns(home.netns.name());
        let token = self.instance.run(&format!("token create --owner alice {at}"))?;
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
    pub fn relay(&self, internet: &Internet, name: &str, net: u8) -> Result<Relay> {
        let host = internet.host("relay", net)?;
        let instance = Instance::empty()?.in_netns(host.netns.name());
        let token = self.instance.run("token create --relay")?;
        let mut relay = instance.hearth(["relay", "--listen", &format!("{}:443", host.address), "--name", name]);
        relay.args(["--join", token.trim(), "--data-dir"]).arg(instance.path());
        let role = start(&instance, "relay.log", relay)?;
        Ok(Relay { role, instance, host, name: name.to_owned() })
    }

    /// What the trace of the app says of the device.
    pub fn device_step(&self) -> Result<Value> {
        let done =
            command::output(&mut self.instance.hearth(["trace", "notes", "-n", "alice", "-o", "json"]), b"", LIMIT)?;
        let said: Value =
            serde_json::from_slice(&done.stdout).with_context(|| String::from_utf8_lossy(&done.stderr).into_owned())?;
        let step = said["steps"].as_array().into_iter().flatten().find(|step| step["step"] == "device");
        step.cloned().with_context(|| format!("{said:#}"))
    }

    /// What somebody in a cafe gets of the app.
    pub fn page(&self, path: &str) -> Result<String> {
        self.page_within(path, 20.0)
    }

    /// The same, in at most so many seconds.
    pub fn page_within(&self, path: &str, seconds: f32) -> Result<String> {
        let ca = self.instance.path().join("ca.pem").display().to_string();
        let resolve = format!("{HOST}:443:{}", self.gateway);
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

    /// What it says of itself.
    pub fn metrics(&self) -> Result<String> {
        let mut curl = self.host.netns.program("curl");
        command::succeed(curl.args(["-sS", "http://127.0.0.1:9643/metrics"]))
    }
}

/// A relay that is a process of its own.
pub struct Relay {
    role: Running,
    /// Its data directory.
    pub instance: Instance,
    host: Host,
    /// The name of its object.
    pub name: String,
}

impl Relay {
    /// Sends it a signal, such as `-STOP`.
    pub fn signal(&self, name: &str) -> Result<()> {
        self.role.signal(name)
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.instance.path().join("logs/relay.log")).unwrap_or_default()
    }

    /// The bytes that it counted for an owner.
    pub fn bytes_of(&self, owner: &str) -> Result<f64> {
        let mut curl = self.host.netns.program("curl");
        bytes_of(&command::succeed(curl.args(["-sS", "http://127.0.0.1:9645/metrics"]))?, owner)
    }
}

/// The bytes that devices of an owner sent to a relay, by its metrics.
pub fn bytes_of(metrics: &str, owner: &str) -> Result<f64> {
    let owner = format!("owner=\"{owner}\"");
    let mut lines =
        metrics.lines().filter(|line| line.starts_with("hearth_relay_bytes_total") && line.contains(&owner));
    let line = lines.find(|line| line.contains("received")).context("the owner's bytes are counted")?;
    Ok(line.rsplit_once(' ').context("a number")?.1.parse()?)
}
