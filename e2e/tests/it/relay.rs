//! Devices whose networks let no tunnel through are reached by the region's relays.

use std::{
    fs::File,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command, eventually,
    instance::{Instance, binary},
    nat::{Behaviour, Home, Host, Internet, Kind},
};

const ZONE: &str = "example.test";
const HOST: &str = "notes.alice.example.test";
const API: &str = "198.51.100.2";
const GATEWAY: &str = "198.51.100.3";
const RELAY: &str = "198.51.100.4";

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
    fn start(internet: &Internet) -> Result<Self> {
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

    /// What somebody in a cafe gets of the app.
    fn page(&self, path: &str) -> Result<String> {
        let ca = self.instance.path().join("ca.pem").display().to_string();
        let resolve = format!("{HOST}:443:{GATEWAY}");
        let mut curl = self.cafe.netns.program("curl");
        curl.args(["-sS", "--fail-with-body", "--max-time", "20", "--cacert", &ca, "--resolve", &resolve]);
        command::succeed(curl.arg(format!("https://{HOST}{path}")))
    }

    fn metrics(&self) -> Result<String> {
        let mut curl = self.host.netns.program("curl");
        command::succeed(curl.args(["-sS", "http://127.0.0.1:9643/metrics"]))
    }
}

#[test]
fn a_device_that_lets_only_tcp_443_out_is_reached_by_the_relay_which_counts_its_owners_bytes() -> Result<()> {
    let internet = Internet::new()?;
    let region = Region::start(&internet)?;
    let home = internet.home(Kind::Only443, 1)?;
    assert_eq!(Behaviour::measure(&home.netns, &internet)?, Behaviour::Blocked);
    let (device, _agent) = region.device(&home)?;
    eventually("the app answers in the cafe", Duration::from_secs(30), || region.page("/healthz"))
        .with_context(|| device.logs() + &region.instance.logs())?;
    // Whoever asks is told why.
    let said = region.instance.run("trace notes -n alice -o json").with_context(|| device.logs())?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let step = said["steps"].as_array().into_iter().flatten().find(|step| step["step"] == "device");
    let step = step.with_context(|| format!("{said:#}"))?;
    let facts = &step["facts"];
    assert_eq!(
        (&facts["path"], &facts["relay"], &facts["udp"]),
        (&"Relay".into(), &"home-1".into(), &false.into()),
        "{step:#}"
    );
    assert!(
        step["says"]
            .as_str()
            .is_some_and(|text| text.contains("its network blocks UDP, so it is reached by relay home-1; ")),
        "{step:#}"
    );
    let metrics = region.metrics()?;
    let bytes = metrics.lines().find(|line| line.starts_with("hearth_relay_bytes_total") && line.contains("\"alice\""));
    let bytes = bytes.context("alice's bytes are counted")?;
    let count: f64 = bytes.rsplit_once(' ').context("a number")?.1.parse()?;
    ensure!(count > 1000.0, "{bytes}");
    Ok(())
}
