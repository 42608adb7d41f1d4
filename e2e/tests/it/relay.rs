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
    netns::Netns,
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

/// A region of one server.
struct Region {
    gateway: &'static str,
    instance: Instance,
    cafe: Host,
    _server: Role,
    host: Host,
}

impl Region {
    /// Every part answers at port 443 of an address of its own; with a relay in its server, or with none.
    fn start(internet: &Internet, relay: bool) -> Result<Self> {
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
    fn start_shared(internet: &Internet) -> Result<Self> {
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

    /// A home whose device runs an app.
    fn device(&self, home: &Home, at: &str) -> Result<(Instance, Role)> {
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
    let (device, _agent) = region.device(&home, "")?;
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
    let (device, _agent) = region.device(&home, "")?;
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

/// How many packets a counter of [`watch_line`] has seen.
fn packets(netns: &Netns, counter: &str) -> Result<u64> {
    let said = netns.run(&format!("nft list counter ip line {counter}"))?;
    let count = said.split_whitespace().skip_while(|word| *word != "packets").nth(1).context("a count")?;
    count.parse().with_context(|| said.clone())
}

/// Counts what leaves a home: for the gateway's port, and everything else.
fn watch_line(internet: &Internet, home: &Home) -> Result<()> {
    let device = &home.device;
    internet.netns.nft(&format!(
        "table ip line {{
            counter gateway {{ }}
            counter other {{ }}
            chain through {{
                type filter hook forward priority filter;
                iifname {device} ip daddr {API} tcp dport 443 counter name gateway accept
                iifname {device} counter name other
            }}
        }}"
    ))
}

#[test]
fn where_all_shares_the_gateways_port_a_device_that_reaches_that_alone_joins_and_serves() -> Result<()> {
    let internet = Internet::new()?;
    let region = Region::start_shared(&internet)?;
    let home = internet.home(Kind::Only443, 1)?;
    // Not even another TCP 443.
    home.routers[0].nft(&format!(
        "table ip strict {{ chain through {{ type filter hook forward priority filter;
            oifname wan ip daddr {API} tcp dport 443 accept; oifname wan drop; }}\n}}"
    ))?;
    watch_line(&internet, &home)?;
    let (device, _agent) = region.device(&home, "--at https://198.51.100.2")?;
    eventually("the app answers in the cafe", Duration::from_secs(30), || region.page("/healthz"))
        .with_context(|| device.logs() + &region.instance.logs())?;
    let step = region.device_step().with_context(|| device.logs())?;
    let facts = &step["facts"];
    assert_eq!((&facts["path"], &facts["relay"]), (&"Relay".into(), &"home-1".into()), "{step:#}");
    ensure!(count(&region.metrics()?, "alice")? > 1000.0);

    // Its owner at home works with the region by the same port: calls, watches, and streams from the device.
    let at_home = |line: &str| {
        let mut hearth = home.netns.program(&binary().display().to_string());
        hearth.env("HEARTH_CONFIG", region.instance.path().join("client.yaml")).args(line.split_whitespace());
        command::succeed(&mut hearth)
    };
    ensure!(at_home("get devices -o wide")?.contains("nas"));
    at_home("wait install/notes -n alice --for condition=Ready --timeout 20s")?;
    ensure!(!at_home("logs install/notes -n alice")?.is_empty());

    // What else asks for those names at the port: the relay says that it is there, DNS says where, and no other name is known.
    let ca = region.instance.path().join("ca.pem").display().to_string();
    let ask = |name: &str, path: &str| {
        let mut curl = region.cafe.netns.program("curl");
        curl.args(["-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &ca]);
        curl.args(["--resolve", &format!("{name}:443:{API}")]).arg(format!("https://{name}{path}"));
        curl
    };
    assert_eq!(command::succeed(&mut ask("relay.api.example.test", "/ping"))?, "200");
    let refused = command::fail(&mut ask("relay.example.test", "/ping"))?;
    ensure!(refused.contains("unrecognized name"), "{refused}");
    for name in ["api.example.test", "198-51-100-2.relay.api.example.test"] {
        assert_eq!(region.cafe.netns.run(&format!("kdig @{API} +short {name} A"))?.trim(), API, "{name}");
    }
    let listening = region.host.netns.run("ss -tlnH")?;
    let mut ports: Vec<_> = listening.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    ports.sort_unstable();
    assert_eq!(ports, ["127.0.0.1:9643", "198.51.100.2:443", "198.51.100.2:53"]);
    // On the line was nothing else.
    assert_eq!(packets(&internet.netns, "other")?, 0);
    ensure!(packets(&internet.netns, "gateway")? > 100);
    Ok(())
}
