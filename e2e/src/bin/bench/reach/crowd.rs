//! Many devices that have nothing to do: their sessions with a server, and their tunnels to a gateway. What they take of memory and processor,
//! and how long it takes them to come back when the other end was gone.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{netns::Netns, server::Server};
use serde_json::Value;

use super::cpu;
use crate::{
    memory::pss_mib,
    report::{Better, Report},
};

const SESSIONS: usize = 10_000;
const TUNNELS: usize = 1_000;
/// Seconds for which each tunnel has an echo a second.
const BUSY: u32 = 20;
/// Until what came with the beginning is over: new devices cause objects, and those events.
const SETTLED: Duration = Duration::from_secs(20);
/// How long those who have nothing to do are looked at: some heartbeats.
const WATCHED: Duration = Duration::from_secs(30);

/// A process that is told lines and answers with lines of JSON; killed when dropped.
pub(super) struct Load {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Load {
    /// The program `load`, for ours.
    pub(super) fn start(arguments: &[&str]) -> Result<Self> {
        let mut load = Command::new(crate::store::program()?);
        Self::of(load.arg("hearth").args(arguments))
    }

    fn of(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take().context("its output")?);
        Ok(Self { child, input, lines: BufReader::new(output).lines() })
    }

    /// What it says next.
    pub(super) fn next(&mut self) -> Result<Value> {
        let line = self.lines.next().context("it ended")??;
        let value: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        ensure!(value["error"].is_null(), "{line}");
        Ok(value)
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.input.as_mut().context("its input")?, "{line}").context("it ended")
    }

    /// Lets it go on.
    pub(super) fn go(&mut self) -> Result<()> {
        self.tell("go")
    }

    /// Ends its input; what it says then.
    pub(super) fn end(&mut self) -> Result<Value> {
        self.input = None;
        self.next()
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

fn millis(said: &Value) -> Result<f64> {
    said["millis"].as_f64().with_context(|| said.to_string())
}

/// Percent of a core.
fn idle_cpu(pid: u32) -> f64 {
    let (before, begun) = (cpu(&[pid]), Instant::now());
    std::thread::sleep(WATCHED);
    (cpu(&[pid]) - before) * 100.0 / begun.elapsed().as_secs_f64()
}

pub(super) fn sessions(report: &mut Report) -> Result<()> {
    let mut server = Server::start(None)?;
    let config = server.instance.path().join("client.yaml").display().to_string();
    let mut devices = Load::start(&["sessions", &SESSIONS.to_string(), "0", "0", &config])?;
    ensure!(devices.next()?["made"] == SESSIONS);
    std::thread::sleep(SETTLED);
    let before = pss_mib(server.pid())?;
    let spent = cpu(&[server.pid()]);
    devices.go()?;
    let open = devices.next()?;
    let spent = cpu(&[server.pid()]) - spent;
    std::thread::sleep(SETTLED);
    let memory = pss_mib(server.pid())? - before;
    let name = |what: &str| format!("sessions/{SESSIONS}/{what}");
    report.figure(&name("open"), millis(&open)? / 1e3, "s until all are open", Better::Lower, None)?;
    report.figure(&name("open/cpu"), spent * 1e3 / SESSIONS as f64, "CPU-ms each", Better::Lower, None)?;
    report.figure(&name("memory"), memory * 1024.0 / SESSIONS as f64, "KiB PSS each", Better::Lower, None)?;
    report.figure(&name("cpu"), idle_cpu(server.pid()), "% of a core, idle", Better::Lower, None)?;
    // All at once, as when a server's power comes back.
    devices.go()?;
    let api = server.api.clone();
    server.kill()?;
    let lost = devices.next()?;
    ensure!(lost["lost"].is_u64(), "{lost}");
    server.again(&api, None)?;
    let begun = Instant::now();
    let back = devices.next()?;
    ensure!(back["back"] == SESSIONS, "{back}");
    let taken = begun.elapsed().as_secs_f64();
    report.figure(&name("storm"), taken, "s from the start until all are back", Better::Lower, None)?;
    let spent = cpu(&[server.pid()]) * 1e3 / SESSIONS as f64;
    report.figure(&name("storm/cpu"), spent, "CPU-ms each", Better::Lower, None)?;
    report.figure(&name("storm/memory"), pss_mib(server.pid())?, "MiB PSS afterwards", Better::Lower, None)
}

/// The program that has one end of many tunnels; it is built with this one.
fn ends() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.parent().map(|folder| folder.join("crowd")).filter(|path| path.is_file());
    found.context("the program `crowd` is missing: cargo build --release -p hearth-e2e --bin crowd")
}

/// Carries notices from the gateway to the devices until the gateway says that all tunnels are open.
fn opened(gateway: &mut Load, devices: &mut Load) -> Result<f64> {
    gateway.go()?;
    loop {
        let said = gateway.next()?;
        if said["open"] == TUNNELS {
            return millis(&said);
        }
        ensure!(said["notice"].is_object(), "{said}");
        devices.tell(&said.to_string())?;
    }
}

pub(super) fn tunnels(report: &mut Report) -> Result<()> {
    // A network of their own: each socket of iroh's is bound anew whenever a link of its machine's comes or goes.
    let network = Netns::new("crowd")?;
    let program = ends()?.display().to_string();
    let start = |arguments: &[&str]| -> Result<Load> {
        let mut load = Load::of(network.program(&program).args(arguments))?;
        ensure!(load.next()?["ready"] == true);
        Ok(load)
    };
    let count = TUNNELS.to_string();
    let mut devices = start(&["devices", &count])?;
    let mut gateway = start(&["gateway", "127.0.0.1:0", &count])?;
    let before = pss_mib(gateway.pid())?;
    let open = opened(&mut gateway, &mut devices)?;
    let spent = cpu(&[gateway.pid()]);
    std::thread::sleep(SETTLED);
    let memory = pss_mib(gateway.pid())? - before;
    let name = |what: &str| format!("tunnels/{TUNNELS}/{what}");
    report.figure(&name("open"), open / 1e3, "s until all are open", Better::Lower, None)?;
    report.figure(&name("open/cpu"), spent * 1e3 / TUNNELS as f64, "CPU-ms each", Better::Lower, None)?;
    report.figure(&name("memory"), memory * 1024.0 / TUNNELS as f64, "KiB PSS each", Better::Lower, None)?;
    report.figure(&name("cpu"), idle_cpu(gateway.pid()), "% of a core, idle", Better::Lower, None)?;
    let before = cpu(&[gateway.pid()]);
    gateway.tell(&BUSY.to_string())?;
    let said = gateway.next()?;
    let spent = (cpu(&[gateway.pid()]) - before) * 100.0 / f64::from(BUSY);
    let echo = |name: &str| said[name].as_f64().with_context(|| said.to_string());
    report.figure(&name("busy/p50"), echo("p50_ms")?, "ms, an echo a second each", Better::Lower, None)?;
    report.figure(&name("busy/p99"), echo("p99_ms")?, "ms, an echo a second each", Better::Lower, None)?;
    report.figure(&name("busy/cpu"), spent, "% of a core", Better::Lower, None)?;
    // Another process in its place, for which all devices have to dial anew.
    drop(gateway);
    let mut gateway = start(&["gateway", "127.0.0.1:0", &count])?;
    let again = opened(&mut gateway, &mut devices)?;
    report.figure(&name("storm"), again / 1e3, "s until all are back", Better::Lower, None)?;
    let spent = cpu(&[gateway.pid()]) * 1e3 / TUNNELS as f64;
    report.figure(&name("storm/cpu"), spent, "CPU-ms each", Better::Lower, None)
}
