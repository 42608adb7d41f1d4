//! Homes keep their apps on flash that wears: what a device with nothing to do writes, by the counters of its disk.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, eventually, instance::Instance, server::Server};

use crate::report::{Better, Report};

/// Pods that have nothing to do.
const PODS: usize = 10;
/// How long nothing may be written before it counts as settled: longer than the agent's housekeeping takes to come round, and than a new file
/// system goes on with its own tables.
const SETTLED: Duration = Duration::from_secs(75);
const SETTLE_LIMIT: Duration = Duration::from_secs(600);
/// How long it is watched then.
const WATCHED: Duration = Duration::from_secs(600);
const DAY: f64 = 86_400.0;

/// Bytes that were written to the disk of the instance, whoever wrote them.
fn written(disk: &str) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/sys/block/{disk}/stat"))?;
    // Documentation/block/stat.rst: the seventh field is sectors of 512 bytes that were written.
    let sectors: u64 = stat.split_whitespace().nth(6).context("seven fields")?.parse()?;
    Ok(sectors * 512)
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let region = Server::start(None)?;
    let device = Instance::on_disk(600)?;
    let dir = device.path().display().to_string();
    let source = command::run("findmnt", ["-no", "SOURCE", &dir])?;
    let disk = source.trim().rsplit('/').next().context("a device")?.to_owned();
    let token = region.instance.run("token create --owner alice")?;
    command::succeed(&mut device.hearth(["join", token.trim(), "--name", "nas", "--data-dir", &dir]))?;
    device.import_busybox()?;
    let agent = command::Running::quiet(&mut device.hearth(["agent", "--data-dir", &dir]))?;
    for n in 0..PODS {
        region.instance.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: idle-{n}, namespace: alice}}, spec: {{containers: [{{name: app, image: busybox, \
             args: [sleep, '100000']}}]}}}}"
        ))?;
    }
    let all_run = || {
        let running = region.instance.run("get pods -n alice")?.matches("Running").count();
        ensure!(running == PODS, "{running} pods run");
        Ok(())
    };
    region.instance.eventually("all run", all_run)?;
    let (mut before, mut since) = (written(&disk)?, Instant::now());
    eventually("it settles", SETTLE_LIMIT, || {
        let now = written(&disk)?;
        if now != before {
            (before, since) = (now, Instant::now());
        }
        ensure!(since.elapsed() >= SETTLED, "{now} bytes so far");
        Ok(())
    })?;
    let begin = Instant::now();
    std::thread::sleep(WATCHED);
    // What waits in memory counts too.
    command::run("sync", ["--file-system", &dir])?;
    let bytes = written(&disk)? - before;
    let a_day = bytes as f64 * DAY / begin.elapsed().as_secs_f64() / 1e6;
    all_run()?;
    drop(agent);
    report.figure(&format!("writes/{PODS}pods"), a_day, "MB a day, idle", Better::Lower, None)
}
