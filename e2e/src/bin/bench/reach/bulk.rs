//! Bytes from a device behind a home's router to somebody in a cafe: by a direct path, and by the relay where the router lets no UDP out. The
//! laboratory's links are as fast as the machine, so that this shows what the way costs and not what a line has.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command, eventually,
    nat::{Internet, Kind},
    region::{GATEWAY, Region, ZONE},
};

use super::{
    cpu,
    peers::{Nginx, Rathole},
};
use crate::report::{Better, Report, median};

const ROUNDS: usize = 3;
/// What is fetched each time.
const MIB: u64 = 256;
/// Of one CPU-second, so that it can be told from the clock's ticks.
const MEGABIT: f64 = 8.0 / 1e6;

fn app(host: &str) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: files, namespace: alice}}, \
         spec: {{selector: {{matchLabels: {{app: files}}}}, template: {{metadata: {{labels: {{app: files}}}}, \
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: main, image: busybox, \
         args: [sh, -c, 'mkdir -p /tmp/w; dd if=/dev/zero of=/tmp/w/big bs=1048576 count={MIB}; exec busybox httpd -f -p 8080 -h /tmp/w'], \
         volumeMounts: [{{name: tmp, mountPath: /tmp}}]}}], volumes: [{{name: tmp, emptyDir: {{}}}}]}}}}}}}}\n---\n\
         {{apiVersion: hearth.dev/v1alpha1, kind: Route, metadata: {{name: files, namespace: alice}}, \
         spec: {{hostname: {host}, target: {{selector: {{app: files}}, port: 8080}}}}}}"
    )
}

/// Fetches it; returns megabits a second.
fn fetch(region: &Region, host: &str, address: &str) -> Result<f64> {
    let port = address.rsplit_once(':').context("a port")?.1;
    let mut curl = region.cafe.netns.program("curl");
    curl.args(["-sS", "--fail", "--insecure", "--max-time", "110", "-o", "/dev/null", "-w", "%{size_download}"]);
    let url = format!("https://{host}:{port}/big");
    let begun = Instant::now();
    let got = command::succeed(curl.args(["--connect-to", &format!("::{address}"), &url]))?;
    let taken = begun.elapsed().as_secs_f64();
    let bytes: f64 = got.trim().parse()?;
    ensure!(bytes as u64 == MIB << 20, "{bytes} bytes arrived");
    Ok(bytes * MEGABIT / taken)
}

/// Bytes that the relay has passed on for the owner.
fn relayed(region: &Region) -> Result<f64> {
    let metrics = region.metrics()?;
    let ours =
        metrics.lines().filter(|line| line.starts_with("hearth_relay_bytes_total") && line.contains("\"alice\""));
    Ok(ours.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

fn case(report: &mut Report, name: &str, kind: Kind, by_relay: bool) -> Result<()> {
    let internet = Internet::new()?;
    let region = Region::start(&internet, true)?;
    let home = internet.home(kind, 1)?;
    let (device, _agent) = region.device(&home, "")?;
    device.import_busybox()?;
    let host = format!("files.alice.{ZONE}");
    region.instance.apply(&app(&host))?;
    let ours = format!("{GATEWAY}:443");
    let first = eventually("the file can be had", Duration::from_secs(60), || fetch(&region, &host, &ours));
    first.with_context(|| device.logs() + &region.instance.logs())?;
    if !by_relay {
        // It may have begun by the relay.
        eventually("a direct path is found", Duration::from_secs(30), || {
            let before = relayed(&region)?;
            fetch(&region, &host, &ours)?;
            ensure!(relayed(&region)? - before < 1e6, "it goes by the relay");
            Ok(())
        })?;
    }
    let backend = backend(&region)?;
    let nginx = Nginx::start(&device, &host, &backend)?;
    let rathole = match &nginx {
        Some(nginx) => Rathole::start(&region.instance, GATEWAY, &device, &nginx.address)?,
        None => None,
    };
    let own = [region.instance.pids(" server "), device.pids(" agent ")].concat();
    let (mut rates, mut costs, mut their_rates, mut their_costs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (before, passed) = (cpu(&own), relayed(&region)?);
        rates.push(fetch(&region, &host, &ours)?);
        costs.push((MIB << 20) as f64 * MEGABIT / (cpu(&own) - before));
        let passed = relayed(&region)? - passed;
        ensure!((passed > (MIB << 20) as f64) == by_relay, "{passed} bytes went by the relay");
        if let (Some(nginx), Some(rathole)) = (&nginx, &rathole) {
            let pids = [rathole.pids(), nginx.pids()].concat();
            eventually("rathole answers", Duration::from_secs(20), || fetch(&region, &host, &rathole.address))?;
            let before = cpu(&pids);
            their_rates.push(fetch(&region, &host, &rathole.address)?);
            their_costs.push((MIB << 20) as f64 * MEGABIT / (cpu(&pids) - before));
        }
    }
    let peer = |theirs: &mut Vec<f64>| rathole.as_ref().map(|_| ("rathole with TLS, nginx", median(theirs)));
    report.figure(name, median(&mut rates), "Mbit/s", Better::Higher, peer(&mut their_rates))?;
    let cpu = format!("{name}/cpu");
    report.figure(&cpu, median(&mut costs), "Mbit/CPU-s", Better::Higher, peer(&mut their_costs))
}

/// The app, as the home itself has it.
fn backend(region: &Region) -> Result<String> {
    let pods = region.instance.list("pods", "alice")?;
    let files = pods.iter().find(|pod| pod["metadata"]["labels"]["app"] == "files").context("its pod")?;
    Ok(format!("{}:8080", files["status"]["podIP"].as_str().context("an address")?))
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    case(report, "bulk/direct", Kind::PortRestricted, false)?;
    case(report, "bulk/relay", Kind::UdpBlocked, true)
}
