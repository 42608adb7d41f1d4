//! The store of a region of three servers beside three members of etcd: all on this machine, one disk, every write on it at a majority
//! before it is acknowledged. Clients speak gRPC; Hearth's over mutual TLS and with admission in front, etcd's in the clear.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hearth_e2e::{
    command, eventually, free_port,
    server::{PATIENCE, Server, place, three},
};
use serde_json::Value;

use crate::{
    memory::pss_mib,
    report::{Better, Report, median},
};

/// Rounds of each case; the two stores take turns.
const ROUNDS: usize = 5;
/// Seconds of load a round.
const SECONDS: &str = "3";
const CLIENTS: [&str; 4] = ["1", "32", "128", "1000"];
const BYTES: [&str; 2] = ["256", "1024"];
/// How often the leader is killed.
const KILLS: usize = 50;
const WATCHES: &str = "10000";
/// Longer than a server lets pass before it trims its heap.
const SETTLED: Duration = Duration::from_secs(70);

/// Three members of etcd; ended when dropped.
struct Etcd {
    members: Vec<Child>,
    endpoints: Vec<String>,
    /// Theirs, gone with them.
    dir: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

impl Etcd {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ports: Vec<(u16, u16)> = (0..3).map(|_| Ok((free_port()?, free_port()?))).collect::<Result<_>>()?;
        let cluster: Vec<String> =
            ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://127.0.0.1:{peer}")).collect();
        let mut etcd = Self { members: Vec::new(), endpoints: Vec::new(), dir };
        for (n, (client, peer)) in ports.iter().enumerate() {
            let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
            let mut member = Command::new("etcd");
            member.args(["--name", &format!("m{n}"), "--initial-cluster", &cluster.join(","), "--log-level", "error"]);
            member.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            member.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            member.arg("--data-dir").arg(etcd.dir.path().join(format!("m{n}")));
            etcd.members.push(member.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
            etcd.endpoints.push(client.trim_start_matches("http://").to_owned());
        }
        eventually("etcd answers", PATIENCE, || load("etcd", "puts", "1", "1", "256", &etcd.endpoints))?;
        Ok(etcd)
    }
}

/// The program that makes the load; `make bench` builds it.
pub(crate) fn program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.parent().map(|folder| folder.join("examples/load")).filter(|path| path.is_file());
    found.context("the program `load` is missing: cargo build --release -p hearth-client --example load")
}

fn load(store: &str, act: &str, clients: &str, seconds: &str, bytes: &str, endpoints: &[String]) -> Result<Value> {
    let mut load = Command::new(program()?);
    load.args([store, act, clients, seconds, bytes]).args(endpoints);
    let done = command::output(&mut load, b"", command::LIMIT)?;
    let figures: Value = serde_json::from_slice(&done.stdout)?;
    if let Some(error) = figures["error"].as_str() {
        bail!("{store}: {error}");
    }
    Ok(figures)
}

fn config(path: &Path) -> String {
    path.join("client.yaml").display().to_string()
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let mut servers = three()?;
    let endpoints: Vec<String> = servers.iter().map(|server| config(server.instance.path())).collect();
    let etcd = if command::run("etcd", ["--version"]).is_ok() { Some(Etcd::start()?) } else { None };
    for act in ["puts", "reads"] {
        for bytes in BYTES {
            for clients in CLIENTS {
                compare(report, act, clients, bytes, &endpoints, etcd.as_ref())?;
            }
        }
    }
    drop(etcd);
    watches(report, &servers[0])?;
    failover(report, &mut servers)?;
    drop(servers);
    memory(report)
}

fn compare(
    report: &mut Report,
    act: &str,
    clients: &str,
    bytes: &str,
    endpoints: &[String],
    etcd: Option<&Etcd>,
) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(load("hearth", act, clients, SECONDS, bytes, endpoints)?);
        if let Some(etcd) = etcd {
            theirs.push(load("etcd", act, clients, SECONDS, bytes, &etcd.endpoints)?);
        }
    }
    for (what, unit, better) in [("rate", "a second", Better::Higher), ("p99_ms", "ms p99", Better::Lower)] {
        let of = |all: &[Value]| {
            let mut values: Vec<f64> = all.iter().filter_map(|one| one[what].as_f64()).collect();
            median(&mut values)
        };
        let peer = etcd.map(|_| ("etcd", of(&theirs)));
        report.figure(&format!("{act}/{clients}/{bytes}B"), of(&ours), unit, better, peer)?;
    }
    Ok(())
}

/// What a server alone weighs: empty, with many pods and devices, and started again with them.
fn memory(report: &mut Report) -> Result<()> {
    let mut server = Server::start(None)?;
    let mut figure = |case: &str, server: &Server| {
        // Until it has given back what the work before left free in its heap.
        std::thread::sleep(SETTLED);
        report.figure(&format!("memory/{case}"), pss_mib(server.pid())?, "MiB PSS", Better::Lower, None)
    };
    figure("empty", &server)?;
    for part in 0..2 {
        server.instance.apply(&many(part)?)?;
    }
    figure("10000-pods", &server)?;
    let api = server.api.clone();
    server.kill()?;
    server.again(&api, None)?;
    figure("10000-pods/restarted", &server)
}

/// Half of 1,000 devices and 10,000 pods, of a size as people write them.
fn many(part: usize) -> Result<String> {
    let mut manifest = String::new();
    for device in part * 500..(part + 1) * 500 {
        write!(
            manifest,
            "---
apiVersion: hearth.dev/v1alpha1
kind: Device
metadata: {{name: nas-{device:04}, namespace: owner-{device:04}}}
spec: {{owner: owner-{device:04}, keys: [\"{device:064x}\"]}}
"
        )?;
        for pod in 0..10 {
            write!(
                manifest,
                "---
apiVersion: v1
kind: Pod
metadata: {{name: photos-{pod}, namespace: owner-{device:04}, labels: {{app: photos, tier: web}}}}
spec:
  containers:
  - name: web
    image: registry.example/photos:1.2.3
    ports: [{{containerPort: 8080, name: http}}]
    env: [{{name: DATA, value: /data}}, {{name: LEVEL, value: info}}]
    resources: {{requests: {{cpu: 100m, memory: 64Mi}}, limits: {{memory: 128Mi}}}}
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, emptyDir: {{}}}}]
"
            )?;
        }
    }
    Ok(manifest)
}

/// What idle watches take of a server's memory, and how long an event is on its way to all of them.
fn watches(report: &mut Report, server: &Server) -> Result<()> {
    let before = pss_mib(server.pid())?;
    let mut load = Command::new(program()?)
        .args(["hearth", "watches", WATCHES, "0", "0", &config(server.instance.path())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(load.stdout.take().context("its output")?).lines();
    let measured = (|| {
        let open: Value = serde_json::from_str(&lines.next().context("a line")??)?;
        anyhow::ensure!(open["open"].is_u64(), "{open}");
        let after = pss_mib(server.pid())?;
        load.stdin.take().context("its input")?.write_all(b"go\n")?;
        let told: Value = serde_json::from_str(&lines.next().context("a line")??)?;
        Ok((after - before, told["all_ms"].as_f64().with_context(|| told.to_string())?))
    })();
    let _ = load.kill();
    let _ = load.wait();
    let (memory, all) = measured?;
    report.figure(&format!("watches/{WATCHES}/memory"), memory, "MiB PSS", Better::Lower, None)?;
    report.figure(&format!("watches/{WATCHES}/event"), all, "ms to all", Better::Lower, None)
}

/// How long after a leader's death a write through another server is acknowledged.
fn failover(report: &mut Report, servers: &mut [Server]) -> Result<()> {
    let mut taken = Vec::new();
    for round in 0..KILLS {
        servers[0].all_well(&[1, 2, 3])?;
        let leader = place(servers[round % 3].leader()?);
        let other = (leader + 1) % 3;
        servers[leader].kill()?;
        let begun = Instant::now();
        eventually("a write", Duration::from_secs(30), || servers[other].write(&format!("after-{round}")))?;
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
        let api = servers[leader].api.clone();
        servers[leader].again(&api, None)?;
    }
    let worst = taken.iter().copied().fold(0.0, f64::max);
    report.figure(&format!("failover/p50 of {KILLS}"), median(&mut taken), "ms", Better::Lower, None)?;
    report.figure(&format!("failover/worst of {KILLS}"), worst, "ms", Better::Lower, None)
}
