//! How an app at home is reached: requests through gateway, tunnel and ingress, bytes directly and by a relay, names, and many devices that
//! wait. Beside nginx, which ends TLS on the spot, rathole with TLS, and knot.

mod bulk;
mod client;
mod crowd;
mod names;
mod peers;

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};

use crate::report::{Better, Report, median};
use client::Target;
use peers::{Nginx, Rathole};

const HOST: &str = "notes.alice.hearth.internal";
const ROUNDS: usize = 5;
const REQUESTS: u32 = 5_000;
const CONNECTIONS: u32 = 16;
/// Requests on connections of their own: as many as a gateway lets come to one owner at once, with room.
const NEW: u32 = 600;
/// Until a gateway lets so many come again.
const PAUSE: Duration = Duration::from_secs(3);
/// Requests one after the other, of which the slowest hundredth is looked at.
const ONE_BY_ONE: usize = 2_000;
/// User and system time in /proc are in ticks of 10 ms.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds that processes have used.
fn cpu(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| -> Option<f64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<f64>() / TICKS_PER_SECOND
}

/// One round of load; returns requests per second.
fn load(address: &str, arguments: &[String]) -> Result<f64> {
    let port = address.rsplit_once(':').context("an address")?.1;
    let mut h2load = Command::new("h2load");
    h2load.arg(format!("--connect-to={address}")).args(arguments).arg(format!("https://{HOST}:{port}/healthz"));
    let text = command::succeed(&mut h2load)?;
    ensure!(text.contains(" 0 failed, 0 errored"), "{text}");
    let line = text.lines().find(|line| line.starts_with("finished in")).context(text.clone())?;
    let rate = line.split(", ").nth(1).and_then(|part| part.split(' ').next()).context(line.to_owned())?;
    Ok(rate.parse()?)
}

/// One round over connections that are kept, to the example at a gateway; requests per second.
pub(crate) fn load_of_notes(gateway: &str) -> Result<f64> {
    let (requests, connections) = (REQUESTS.to_string(), CONNECTIONS.to_string());
    load(gateway, &["-n", &requests, "-c", &connections, "-m", "4", "-t", "1"].map(str::to_owned))
}

/// A way to the app, and the processes on it.
struct Way {
    name: &'static str,
    address: String,
    pids: Vec<u32>,
}

/// What was measured on one way, a sample a round.
#[derive(Default)]
struct Samples(Vec<f64>, Vec<f64>);

/// All ways in turn, round after round; the first one is ours. `run` says what to count, and how many requests that were.
fn compare(
    report: &mut Report,
    ways: &[Way],
    (case, unit): (&str, &str),
    mut run: impl FnMut(&Way) -> Result<(f64, f64)>,
) -> Result<()> {
    let mut samples: Vec<Samples> = ways.iter().map(|_| Samples::default()).collect();
    for _ in 0..ROUNDS {
        for (way, samples) in ways.iter().zip(&mut samples) {
            let before = cpu(&way.pids);
            let (value, requests) = run(way).with_context(|| format!("{case} by {}", way.name))?;
            samples.0.push(value);
            samples.1.push(requests / (cpu(&way.pids) - before).max(1.0 / TICKS_PER_SECOND));
        }
    }
    let medians: Vec<(f64, f64)> =
        samples.iter_mut().map(|samples| (median(&mut samples.0), median(&mut samples.1))).collect();
    let (ours, theirs) = medians.split_first().context("a way")?;
    let mut figure = |case: &str, unit: &str, pick: fn(&(f64, f64)) -> f64| {
        if theirs.is_empty() {
            return report.figure(case, pick(ours), unit, Better::Higher, None);
        }
        ways[1..].iter().zip(theirs).try_for_each(|(way, theirs)| {
            report.figure(case, pick(ours), unit, Better::Higher, Some((way.name, pick(theirs))))
        })
    };
    figure(case, unit, |one| one.0)?;
    figure(&format!("{case}/cpu"), &format!("{}/CPU-s", unit.trim_end_matches("/s")), |one| one.1)
}

/// Of some times, the one below which so many of a thousand are, in milliseconds.
fn at(times: &mut [Duration], of_thousand: usize) -> f64 {
    times.sort_unstable();
    let place = (times.len() * of_thousand / 1000).min(times.len().saturating_sub(1));
    times.get(place).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// What each way adds to the time that the app itself takes.
fn added(report: &mut Report, ways: &[Way], backend: &str) -> Result<()> {
    let app = Target::plain(backend, HOST)?;
    let targets = ways.iter().map(|way| Target::https(&way.address, HOST)).collect::<Result<Vec<_>>>()?;
    let mut direct = Vec::new();
    let mut times: Vec<Vec<Duration>> = ways.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        direct.extend(client::one_by_one(&app, ONE_BY_ONE / ROUNDS)?);
        for (target, times) in targets.iter().zip(&mut times) {
            times.extend(client::one_by_one(target, ONE_BY_ONE / ROUNDS)?);
        }
    }
    for (name, of_thousand) in [("p50", 500), ("p99", 990)] {
        let app = at(&mut direct, of_thousand);
        let added: Vec<f64> = times.iter_mut().map(|times| at(times, of_thousand) - app).collect();
        let case = format!("https/added/{name}");
        if ways.len() == 1 {
            report.figure(&case, added[0], "ms", Better::Lower, None)?;
        }
        for (way, theirs) in ways.iter().zip(&added).skip(1) {
            report.figure(&case, added[0], "ms", Better::Lower, Some((way.name, *theirs)))?;
        }
    }
    Ok(())
}

fn requests(report: &mut Report) -> Result<()> {
    let instance = Instance::up("notes")?;
    let pod = &instance.list("pods", "alice")?[0];
    let backend = format!("{}:8080", pod["status"]["podIP"].as_str().context("an address")?);
    let nginx = Nginx::start(&instance, HOST, &backend)?;
    let rathole = match &nginx {
        Some(nginx) => Rathole::start(&instance, "127.0.0.1", &instance, &nginx.address)?,
        None => None,
    };
    let ours = [instance.pids(" server "), instance.pids(" agent ")].concat();
    let mut ways = vec![Way { name: "hearth", address: instance.address("gateway")?, pids: ours }];
    ways.extend(nginx.as_ref().map(|nginx| Way {
        name: "nginx, TLS proxy",
        address: nginx.address.clone(),
        pids: nginx.pids(),
    }));
    if let (Some(rathole), Some(nginx)) = (&rathole, &nginx) {
        let pids = [rathole.pids(), nginx.pids()].concat();
        ways.push(Way { name: "rathole with TLS, nginx", address: rathole.address.clone(), pids });
    } else {
        report.note("rathole or nginx is not in PATH (cargo install rathole): no column of it");
    }
    for way in &ways {
        let target = Target::https(&way.address, HOST)?;
        hearth_e2e::eventually(way.name, Duration::from_secs(20), || target.ask(&mut target.connect(0)?))?;
    }
    let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let (count, connections) = (REQUESTS.to_string(), CONNECTIONS.to_string());
    let h2 = text(&["-n", &count, "-c", &connections, "-m", "4", "-t", "1"]);
    let h1 = text(&["--h1", "-n", &count, "-c", &connections, "-t", "1"]);
    for (case, arguments) in [("https/keepalive", &h2), ("https/keepalive-h1", &h1)] {
        compare(report, &ways, (case, "requests/s"), |way| Ok((load(&way.address, arguments)?, f64::from(REQUESTS))))?;
    }
    compare(report, &ways, ("https/new", "requests/s"), |way| {
        if way.name == "hearth" {
            std::thread::sleep(PAUSE);
        }
        let (target, begun) = (Target::https(&way.address, HOST)?, Instant::now());
        client::on_new_connections(&target, NEW, CONNECTIONS)?;
        Ok((f64::from(NEW) / begun.elapsed().as_secs_f64(), f64::from(NEW)))
    })?;
    added(report, &ways, &backend)
}

type Part = fn(&mut Report) -> Result<()>;

/// The parts by name: a second argument (`PART=`) asks for one of them.
const PARTS: [(&str, Part); 5] = [
    ("https", requests),
    ("bulk", bulk::run),
    ("dns", names::run),
    ("tunnels", crowd::tunnels),
    ("sessions", crowd::sessions),
];

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let wanted = std::env::args().nth(2);
    let known = PARTS.map(|(name, _)| name).join(", ");
    let chosen = |name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    ensure!(PARTS.iter().any(|(name, _)| chosen(name)), "no part {wanted:?} of it; there are {known}");
    PARTS.iter().filter(|(name, _)| chosen(name)).try_for_each(|(_, part)| part(report))
}
