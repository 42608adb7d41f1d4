//! Homes keep their apps on flash that wears: a device with nothing to do writes next to nothing.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, eventually, instance::Instance, server::Server};

/// Pods that have nothing to do.
const PODS: usize = 10;
/// What such a device may write in a day.
const BYTES_A_DAY: f64 = 10e6;
/// How long it is watched, once it has settled. Two turns of the agent's housekeeping.
const WATCHED: Duration = Duration::from_secs(130);

/// Bytes that were written to the disk of a directory since it was mounted, whoever wrote them.
fn written(instance: &Instance) -> Result<u64> {
    // What waits in memory is written now, so that it is not forgotten and not counted later.
    command::run("sync", ["--file-system", &instance.path().display().to_string()])?;
    let source = command::run("findmnt", ["-no", "SOURCE", &instance.path().display().to_string()])?;
    let name = source.trim().rsplit('/').next().context("a device")?.to_owned();
    let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat"))?;
    // Documentation/block/stat.rst: the seventh field is sectors of 512 bytes that were written.
    let sectors: u64 = stat.split_whitespace().nth(6).context("seven fields")?.parse()?;
    Ok(sectors * 512)
}

#[test]
fn an_idle_device_with_ten_idle_pods_hardly_writes() -> Result<()> {
    let region = Server::start(None)?;
    let device = Instance::on_disk(600)?;
    let token = region.instance.run("token create --owner alice")?;
    let dir = device.path().display().to_string();
    command::succeed(&mut device.hearth(["join", token.trim(), "--name", "nas", "--data-dir", &dir]))?;
    device.import_busybox()?;
    let mut agent = device.hearth(["agent", "--data-dir", &dir]);
    let mut agent = agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let result = (|| {
        for n in 0..PODS {
            region.instance.apply(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: idle-{n}, namespace: alice}}\nspec:\n  containers:\n  - {{name: app, image: \
                 busybox, args: [sleep, \"100000\"]}}\n"
            ))?;
        }
        region.instance.eventually("all run", || {
            let running = region.instance.run("get pods -n alice")?.matches("Running").count();
            ensure!(running == PODS, "{running} run");
            Ok(())
        })?;
        // A new file system goes on writing its own tables for a while.
        let (mut before, mut since) = (written(&device)?, Instant::now());
        eventually("it settles", Duration::from_secs(120), || {
            let now = written(&device)?;
            if now != before {
                (before, since) = (now, Instant::now());
            }
            ensure!(since.elapsed() > Duration::from_secs(20), "{now} bytes so far");
            Ok(())
        })?;
        let begin = Instant::now();
        let most = BYTES_A_DAY * WATCHED.as_secs_f64() / 86_400.0;
        while begin.elapsed() < WATCHED {
            let now = written(&device)? - before;
            ensure!(now as f64 <= most, "{now} bytes in {:?}: more than {BYTES_A_DAY} a day", begin.elapsed());
            std::thread::park_timeout(Duration::from_secs(1));
        }
        let running = region.instance.run("get pods -n alice")?.matches("Running").count();
        ensure!(running == PODS, "{running} run at the end");
        Ok(())
    })();
    let _ = agent.kill();
    let _ = agent.wait();
    result
}
