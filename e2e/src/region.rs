//! A region on the internet of the laboratory, and homes whose devices it reaches.

use std::{
    fs::File,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command,
    instance::{Instance, binary},
    nat::{Home, Host, Internet},
};

/// Its zone.
pub const ZONE: &str = "example.test";
/// The name of the example that [`Region::device`] has.
pub const HOST: &str = "notes.alice.example.test";
const API: &str = "198.51.100.2";
/// Its gateway, at port 443.
pub const GATEWAY: &str = "198.51.100.3";
const RELAY: &str = "198.51.100.4";

/// A process in the foreground that ends with the test.
pub struct Role(Child);

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
pub struct Region {
    /// Its data directory, and the verbs that ask it.
    pub instance: Instance,
    /// Where its users are.
    pub cafe: Host,
    _server: Role,
    host: Host,
}

impl Region {
    /// Starts it, and waits until it answers.
    pub fn start(internet: &Internet) -> Result<Self> {
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
            ("--listen-relay", RELAY, 443),
            ("--listen-tunnel", GATEWAY, 0),
        ] {
            server.args([flag, &format!("{host}:{port}")]);
        }
        let server = start(&instance, "server.log", server)?;
        instance.eventually("the server answers", || {
            instance.run("get ns")?;
            ensure!(instance.status()?["relay"].is_string());
            ensure!(instance.run("get relays")?.contains("https://198.51.100.4:443"));
            Ok(())
        })?;
        Ok(Self { instance, cafe, _server: server, host })
    }

    /// A home whose device runs the example.
    pub fn device(&self, home: &Home) -> Result<(Instance, Role)> {
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

    /// What somebody in a cafe gets of the example.
    pub fn page(&self, path: &str) -> Result<String> {
        let ca = self.instance.path().join("ca.pem").display().to_string();
        let resolve = format!("{HOST}:443:{GATEWAY}");
        let mut curl = self.cafe.netns.program("curl");
        curl.args(["-sS", "--fail-with-body", "--max-time", "20", "--cacert", &ca, "--resolve", &resolve]);
        command::succeed(curl.arg(format!("https://{HOST}{path}")))
    }

    /// What it says of itself.
    pub fn metrics(&self) -> Result<String> {
        let mut curl = self.host.netns.program("curl");
        command::succeed(curl.args(["-sS", "http://127.0.0.1:9643/metrics"]))
    }
}
