//! Queries of names whose records change all the time, beside knot with the same zone and the same changes: ours come through the region's store,
//! knot's by dynamic updates (RFC 2136) into its journal.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, eventually, free_port, instance::Instance};

use super::{cpu, crowd::Load};
use crate::report::{Better, Report, median};

const ZONE: &str = "hearth.internal";
/// Names with a record, each of which changes once a second at the rate below.
const NAMES: usize = 1_000;
/// Changes a second.
const RATE: usize = 1_000;
/// Changes that travel together.
const BATCH: usize = 100;
const ROUNDS: usize = 3;
const SECONDS: &str = "5";

/// Asks for all names in turn for some seconds; returns queries per second.
fn ask(address: &str, questions: &Path, dnssec: bool) -> Result<f64> {
    let (ip, port) = address.rsplit_once(':').context("an address")?;
    let mut dnsperf = Command::new("dnsperf");
    dnsperf.args(["-s", ip, "-p", port, "-l", SECONDS, "-c", "8", "-T", "1", "-q", "200", "-d"]).arg(questions);
    let text = command::succeed(dnsperf.args(dnssec.then_some("-D")))?;
    let value = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let codes = value("Response codes:").context(text.clone())?;
    ensure!(codes.starts_with("NOERROR") && codes.ends_with("(100.00%)"), "{text}");
    let lost: u64 =
        value("Queries lost:").and_then(|lost| lost.split(' ').next()?.parse().ok()).context(text.clone())?;
    ensure!(lost < 100, "{text}");
    value("Queries per second:").and_then(|rate| rate.parse().ok()).context(text.clone())
}

/// A process that is killed when it is no longer needed.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// knot with the zone.
struct Knot {
    process: Killed,
    folder: tempfile::TempDir,
    port: u16,
}

impl Knot {
    fn start() -> Result<Option<Self>> {
        let known = ["knotd", "/usr/sbin/knotd"];
        let Some(program) = known.into_iter().find(|program| command::run(program, ["--version"]).is_ok()) else {
            return Ok(None);
        };
        let folder = tempfile::tempdir()?;
        let (path, port) = (folder.path().display().to_string(), free_port()?);
        let mut zone =
            format!("$ORIGIN {ZONE}.\n@ 60 SOA ns1 hostmaster 1 3600 600 86400 60\n@ 60 NS ns1\nns1 60 A 127.0.0.1\n");
        for number in 0..NAMES {
            writeln!(zone, "r{number}.alice 60 A 11.0.0.1")?;
        }
        fs::write(folder.path().join("zone"), zone)?;
        let config = format!(
            "server:\n  rundir: {path}\n  listen: 127.0.0.1@{port}\n  udp-workers: 2\ndatabase:\n  storage: {path}\n\
             acl:\n  - id: change\n    address: 127.0.0.1\n    action: update\n\
             policy:\n  - id: p256\n    algorithm: ecdsap256sha256\n    nsec3: off\n\
             template:\n  - id: default\n    storage: {path}\n    zonefile-sync: -1\n    zonefile-load: difference\n    journal-content: changes\n\
             zone:\n  - domain: {ZONE}\n    file: zone\n    acl: change\n    dnssec-signing: on\n    dnssec-policy: p256\n"
        );
        let file = folder.path().join("knot.conf");
        fs::write(&file, config)?;
        let mut knot = Command::new(program);
        knot.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Killed(knot.spawn()?);
        let knot = Self { process, folder, port };
        eventually("knot answers", Duration::from_secs(20), || {
            let asked =
                ["@127.0.0.1", "-p", &port.to_string(), "+short", "+timeout=1", &format!("r0.alice.{ZONE}"), "A"];
            let answer = command::run("kdig", asked)?;
            ensure!(answer.contains("11.0.0.1"), "{answer:?}");
            Ok(())
        })?;
        Ok(Some(knot))
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Changes its records until told to stop; returns how many a second it took.
    fn change(&self, stop: &AtomicBool) -> Result<f64> {
        let mut update = Command::new("knsupdate");
        update.args(["-v", "-t", "5"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let errors = fs::File::create(self.folder.path().join("knsupdate.log"))?;
        let mut update = Killed(update.stderr(errors).spawn().context("knsupdate")?);
        let mut input = update.0.stdin.take().context("its input")?;
        write!(input, "server 127.0.0.1 {}\nzone {ZONE}.\n", self.port)?;
        let (begun, mut done) = (Instant::now(), 0);
        while !stop.load(Ordering::Relaxed) {
            let mut batch = String::new();
            for number in done..done + BATCH {
                let (name, [_, b, c, d]) = (number % NAMES, (number as u32 + 2).to_be_bytes());
                writeln!(batch, "del r{name}.alice.{ZONE}. A\nadd r{name}.alice.{ZONE}. 60 A 11.{b}.{c}.{d}")?;
            }
            // It takes the next line once this is answered.
            writeln!(batch, "send")?;
            input.write_all(batch.as_bytes())?;
            done += BATCH;
            let due = begun + Duration::from_secs_f64(done as f64 / RATE as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        drop(input);
        // It has all answers then.
        eventually("knsupdate ends", Duration::from_secs(30), || update.0.try_wait()?.context("it runs"))?;
        let rate = done as f64 / begun.elapsed().as_secs_f64();
        let said = fs::read_to_string(self.folder.path().join("knsupdate.log"))?;
        ensure!(said.trim().is_empty(), "knsupdate: {said}");
        Ok(rate)
    }
}

/// Queries per second, and per second of processor time.
type Figures = (f64, f64);

fn measured(address: &str, pids: &[u32], questions: &Path, dnssec: bool) -> Result<Figures> {
    let before = cpu(pids);
    let rate = ask(address, questions, dnssec)?;
    let seconds: f64 = SECONDS.parse()?;
    Ok((rate, rate * seconds / (cpu(pids) - before)))
}

/// While knot's records change; beside the figures, how many a second it took.
fn knots(knot: &Knot, questions: &Path, dnssec: bool) -> Result<(Figures, f64)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| knot.change(&stop));
        let figures = measured(&knot.address(), &[knot.process.0.id()], questions, dnssec);
        stop.store(true, Ordering::Relaxed);
        let rate = changing.join().map_err(|_| anyhow::anyhow!("the changes panicked"))??;
        Ok((figures?, rate))
    })
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let instance = Instance::up("none")?;
    let address = instance.address("dns")?;
    let pids = instance.pids(" server ");
    let config = instance.path().join("client.yaml").display().to_string();
    let folder = tempfile::tempdir()?;
    let questions = folder.path().join("questions");
    let names: Vec<String> = (0..NAMES).map(|n| format!("r{n}.alice.{ZONE} A\n")).collect();
    fs::write(&questions, names.concat())?;
    // Made once; what changes them is started anew for each round, and makes them again.
    let knot = Knot::start()?;
    let (mut rates, mut knot_rates) = (Vec::new(), Vec::new());
    for (case, dnssec) in [("dns/qps", false), ("dns/qps-signed", true)] {
        let (mut ours, mut theirs): (Vec<Figures>, Vec<Figures>) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let mut changes = Load::start(&["records", &NAMES.to_string(), "0", &RATE.to_string(), &config])?;
            ensure!(changes.next()?["made"] == NAMES, "the records are made");
            changes.go()?;
            ours.push(measured(&address, &pids, &questions, dnssec)?);
            let done = changes.end()?;
            rates.push(done["changed"].as_f64().context("a count")? / done["seconds"].as_f64().context("a time")?);
            if let Some(knot) = &knot {
                let (figures, rate) = knots(knot, &questions, dnssec)?;
                theirs.push(figures);
                knot_rates.push(rate);
            }
        }
        for (case, unit, pick) in [
            (case.to_owned(), "queries/s", (|one| one.0) as fn(&Figures) -> f64),
            (format!("{case}/cpu"), "queries/CPU-s", |one| one.1),
        ] {
            let of = |all: &[Figures]| median(&mut all.iter().map(pick).collect::<Vec<_>>());
            let peer = knot.as_ref().map(|_| ("knot", of(&theirs)));
            report.figure(&case, of(&ours), unit, Better::Higher, peer)?;
        }
    }
    // So that it can be seen whether they changed as fast as they should.
    let peer = knot.as_ref().map(|_| ("knot", median(&mut knot_rates)));
    report.figure("dns/changes", median(&mut rates), "records/s", Better::Higher, peer)
}
