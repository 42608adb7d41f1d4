//! The laboratory of lines: a gateway and a device behind lines of every kind, two relays between them, and what becomes of what they say
//! to each other when something breaks. The ends are processes made of the product's own tunnels.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, sync_channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hearth_e2e::{
    command, eventually,
    nat::{Behaviour, Home, Host, Internet, Kind},
    netns::Netns,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long two ends may take to hear of each other, whatever is between them.
const CONNECT: Duration = Duration::from_secs(15);
/// Lines that an end may say before somebody reads them: it waits then.
const UNREAD: usize = 64;
/// How long traffic may stand still when a relay dies.
const FAILOVER: Duration = Duration::from_secs(5);

#[test]
fn every_line_of_the_laboratory_maps_and_filters_as_it_is_said_to() -> Result<()> {
    let internet = Internet::new()?;
    for (number, kind) in (1..).zip(Kind::ALL) {
        let home = internet.home(kind, number)?;
        let measured = Behaviour::measure(&home.netns, &internet).with_context(|| format!("{kind:?}"))?;
        assert_eq!(measured, kind.behaviour(), "{kind:?}");
    }
    Ok(())
}

/// A process that speaks lines of JSON.
struct End {
    child: Child,
    input: ChildStdin,
    lines: Receiver<Value>,
}

impl End {
    fn start(netns: &Netns, arguments: &[&str], log: &std::path::Path) -> Result<Self> {
        let mut command: Command = netns.program(env!("CARGO_BIN_EXE_lab-end"));
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        command.args(arguments).env("HEARTH_LOG", std::env::var("HEARTH_LOG").unwrap_or("warn".into()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let (input, output) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        let (sender, lines) = sync_channel(UNREAD);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(value) = serde_json::from_str(&line) else { return };
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let end = Self { child, input, lines };
        end.next(CONNECT)?;
        Ok(end)
    }

    fn tell(&mut self, value: &Value) -> Result<()> {
        writeln!(self.input, "{value}").context("an end is gone")
    }

    fn next(&self, limit: Duration) -> Result<Value> {
        self.lines.recv_timeout(limit).context("an end says nothing")
    }

    fn signal(&self, name: &str) -> Result<()> {
        command::run("kill", [name, &self.child.id().to_string()]).map(drop)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The relays, and what proves them.
struct Relays {
    folder: TempDir,
    hosts: Vec<Host>,
    ends: Vec<End>,
}

impl Relays {
    fn start(internet: &Internet, count: u8) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        certificates(folder.path())?;
        let mut relays = Self { folder, hosts: Vec::new(), ends: Vec::new() };
        for n in 0..count {
            let host = internet.host("relay", 100 + 2 * n)?;
            let listen = format!("{}:443", host.address);
            let path = relays.folder.path().display().to_string();
            relays.ends.push(End::start(&host.netns, &["relay", &path, &listen], &relays.log())?);
            relays.hosts.push(host);
        }
        Ok(relays)
    }

    fn log(&self) -> std::path::PathBuf {
        self.folder.path().join("log")
    }

    fn arguments(&self) -> Vec<String> {
        self.hosts.iter().enumerate().map(|(n, host)| format!("r{n}={}:443", host.address)).collect()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

/// An authority and a certificate for relays.
fn certificates(folder: &std::path::Path) -> Result<()> {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let (authority_key, relay_key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);
    let relay = CertificateParams::new(vec!["relay.api.example.test".to_owned()])?.signed_by(&relay_key, &issuer)?;
    std::fs::write(folder.join("ca.pem"), certificate.pem())?;
    std::fs::write(folder.join("relay.pem"), relay.pem())?;
    std::fs::write(folder.join("relay.key"), relay_key.serialize_pem())?;
    Ok(())
}

/// A gateway and a device, and the session that carries notices from the one to the other.
struct Pair {
    gateway: End,
    device: Arc<Mutex<End>>,
}

impl Pair {
    fn start(relays: &Relays, gateway: &Home, device: &Home) -> Result<Self> {
        let folder = relays.folder.path().display().to_string();
        let arguments = relays.arguments();
        let behind = |first: &[&'static str]| -> Vec<String> {
            let mut all: Vec<String> = vec![first[0].to_owned(), folder.clone()];
            all.extend(first[1..].iter().map(|one| (*one).to_owned()));
            all.extend(arguments.clone());
            all
        };
        let start = |home: &Home, arguments: Vec<String>| {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            End::start(&home.netns, &arguments, &relays.log())
        };
        let gateway = start(gateway, behind(&["gateway", "0.0.0.0:0"]))?;
        let device = start(device, behind(&["device"]))?;
        Ok(Self { gateway, device: Arc::new(Mutex::new(device)) })
    }

    /// Has bytes sent there and back, and says how long that took.
    fn echo(&mut self, bytes: usize, stream: u64, limit: Duration) -> Result<Duration> {
        self.gateway.tell(&json!({"echo": bytes, "stream": stream}))?;
        let deadline = Instant::now() + limit;
        loop {
            let said = self.gateway.next(deadline.saturating_duration_since(Instant::now()))?;
            if said.get("notice").is_some() {
                self.device.lock().unwrap().tell(&said)?;
            } else if said.get("failed").is_some() {
                bail!("{said}");
            } else {
                return Ok(Duration::from_millis(said["millis"].as_u64().context("millis")?));
            }
        }
    }

    /// The relay at which the gateway is.
    fn relay(&mut self) -> Result<String> {
        self.gateway.tell(&json!({"relay": true}))?;
        let said = self.gateway.next(CONNECT)?;
        said["done"].as_str().map(str::to_owned).context("the gateway is at no relay")
    }

    /// By what the tunnel goes: the relay's name, or `direct`.
    fn path(&self) -> Result<String> {
        let mut device = self.device.lock().unwrap();
        device.tell(&json!({}))?;
        let said = device.next(CONNECT)?;
        let path = said["paths"].get(0).with_context(|| said.to_string())?;
        if path.get("direct").is_some() {
            return Ok("direct".into());
        }
        path["relay"].as_str().map(str::to_owned).context("no path yet")
    }

    /// Takes notices to the device that came while nobody asked for anything.
    fn carry(&self, limit: Duration) -> Result<()> {
        if let Ok(said) = self.gateway.next(limit)
            && said.get("notice").is_some()
        {
            self.device.lock().unwrap().tell(&said)?;
        }
        Ok(())
    }

    /// The first word, tried until the gateway is at a relay.
    fn connect(&mut self) -> Result<()> {
        eventually("the two hear of each other", CONNECT, || self.echo(1000, 0, CONNECT).map(drop))
    }
}

/// One gateway's line against those of all devices.
fn against_all(gateway: Kind) -> Result<()> {
    let internet = Internet::new()?;
    let relays = Relays::start(&internet, 2)?;
    let there = internet.home(gateway, 1)?;
    for (number, kind) in (2..).zip(Kind::ALL) {
        let here = internet.home(kind, number)?;
        let mut pair = Pair::start(&relays, &there, &here)?;
        pair.connect().with_context(|| format!("{gateway:?} to {kind:?}: {}", relays.said()))?;
        if gateway.can_be_direct(kind) {
            let direct = eventually("a direct path is found", CONNECT, || {
                let path = pair.path()?;
                ensure!(path == "direct", "it goes by {path}");
                Ok(())
            });
            direct.with_context(|| format!("{gateway:?} to {kind:?}: {}", relays.said()))?;
        } else {
            let path = pair.path()?;
            ensure!(path.starts_with('r'), "{gateway:?} to {kind:?} cannot be {path}");
        }
        pair.echo(100_000, 0, CONNECT).with_context(|| format!("{gateway:?} to {kind:?}"))?;
    }
    Ok(())
}

#[test]
fn a_gateway_on_the_internet_reaches_devices_behind_every_line() -> Result<()> {
    against_all(Kind::Public)
}

#[test]
fn a_gateway_behind_a_home_router_reaches_devices_behind_every_line() -> Result<()> {
    against_all(Kind::PortRestricted)
}

#[test]
fn a_gateway_behind_a_symmetric_router_reaches_devices_behind_every_line() -> Result<()> {
    against_all(Kind::Symmetric)
}

#[test]
fn a_gateway_whose_udp_is_blocked_reaches_devices_behind_every_line() -> Result<()> {
    against_all(Kind::UdpBlocked)
}

/// A device that is reached by the relay at which its gateway is, and the number of that one. A gateway may have gone to a nearer relay
/// while its device was coming by another; such a pair is none that needs to notice anything.
fn relayed(relays: &Relays, there: &Home, here: &Home) -> Result<(Pair, usize)> {
    for _ in 0..10 {
        let mut pair = Pair::start(relays, there, here)?;
        pair.connect().with_context(|| relays.said())?;
        let path = pair.path()?;
        if pair.relay()? == path {
            let number = path.strip_prefix('r').context("it is not relayed")?.parse()?;
            return Ok((pair, number));
        }
    }
    bail!("gateway and device are never at the same relay: {}", relays.said())
}

/// The relay in use breaks in some way; the device is reached by the other one in time.
fn goes_on_without(break_it: impl Fn(&Internet, &Relays, usize) -> Result<()>) -> Result<()> {
    let internet = Internet::new()?;
    let relays = Relays::start(&internet, 2)?;
    let (there, here) = (internet.home(Kind::Public, 1)?, internet.home(Kind::UdpBlocked, 2)?);
    let (mut pair, used) = relayed(&relays, &there, &here)?;
    break_it(&internet, &relays, used)?;
    let broken = Instant::now();
    // A new stream each time: those on the dead relay are given up with it.
    let mut stream = 1;
    eventually("the device is reached by the other relay", FAILOVER, || {
        stream += 1;
        pair.carry(Duration::from_millis(50))?;
        pair.echo(1000, stream, Duration::from_millis(1500))?;
        ensure!(pair.path()? != format!("r{used}"), "still by the dead one");
        Ok(())
    })
    .with_context(|| relays.said())?;
    ensure!(broken.elapsed() <= FAILOVER + Duration::from_secs(1), "{:?}", broken.elapsed());
    Ok(())
}

#[test]
fn a_relay_that_is_stopped_without_a_word_is_left_for_the_other_one() -> Result<()> {
    goes_on_without(|_, relays, used| relays.ends[used].signal("-STOP"))
}

#[test]
fn a_relay_whose_packets_vanish_is_left_for_the_other_one() -> Result<()> {
    goes_on_without(|internet, relays, used| internet.vanish(&relays.hosts[used].address))
}

#[test]
fn bytes_arrive_whole_where_one_packet_in_twenty_is_lost_direct_and_relayed() -> Result<()> {
    for kind in [Kind::PortRestricted, Kind::UdpBlocked] {
        let internet = Internet::new()?;
        let relays = Relays::start(&internet, 1)?;
        let (there, here) = (internet.home(Kind::Public, 1)?, internet.home(kind, 2)?);
        let mut pair = Pair::start(&relays, &there, &here)?;
        pair.connect()?;
        internet.lose(5)?;
        pair.echo(4 << 20, 0, Duration::from_secs(60)).with_context(|| format!("{kind:?}: {}", relays.said()))?;
    }
    Ok(())
}

#[test]
fn a_direct_connection_outlives_a_change_of_the_homes_address() -> Result<()> {
    let internet = Internet::new()?;
    let relays = Relays::start(&internet, 1)?;
    let (there, here) = (internet.home(Kind::Public, 1)?, internet.home(Kind::PortRestricted, 2)?);
    let mut pair = Pair::start(&relays, &there, &here)?;
    pair.connect()?;
    pair.echo(1000, 7, CONNECT)?;
    // The provider gives the router another address, and what was mapped to the old one is gone.
    let router = &here.routers[0];
    router.run("ip address del 203.0.2.2/24 dev wan")?;
    router.run("ip address add 203.0.2.77/24 dev wan")?;
    router.run("ip route replace default via 203.0.2.1")?;
    pair.echo(1000, 7, CONNECT).with_context(|| relays.said())?;
    Ok(())
}
