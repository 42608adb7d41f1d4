//! A device without its region: runs what it has, from its own disk.

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command,
    instance::{Instance, binary},
};

/// An agent alone, as a device has it whose region is out of reach.
struct LoneAgent(Child);

impl LoneAgent {
    fn start(instance: &Instance) -> Result<Self> {
        let log = std::fs::File::create(instance.path().join("logs/agent.log"))?;
        let mut agent = Command::new(binary());
        // Port 1 of loopback refuses: there is no region.
        agent.args(["agent", "--server", "127.0.0.1:1", "--data-dir"]).arg(instance.path());
        let child = agent.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Self(child))
    }

    fn stop(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for LoneAgent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shims(instance: &Instance) -> usize {
    instance.pids("hearth shim").len()
}

#[test]
fn an_agent_that_starts_with_no_region_in_reach_brings_its_pods_up_from_its_own_disk() -> Result<()> {
    let instance = Instance::up("notes")?;
    let host = "notes.alice.hearth.internal";
    let post =
        ["--fail-with-body", "-X", "POST", "-H", "content-type: application/json", "-d", r#"{"text":"at home"}"#];
    command::succeed(&mut instance.curl(host, "/api/notes", &post)?)?;
    // `down` stops the containers too: what starts next has only the disk, as after a power cut.
    instance.down()?;
    ensure!(shims(&instance) == 0);
    let agent = LoneAgent::start(&instance)?;
    instance.eventually("the pod runs without a region", || {
        ensure!(shims(&instance) == 1);
        Ok(())
    })?;
    // Killed and started again, still alone: the same pod is adopted.
    let before = instance.pids("hearth shim");
    agent.stop()?;
    let agent = LoneAgent::start(&instance)?;
    instance.eventually("the agent is back", || {
        ensure!(std::fs::read_to_string(instance.path().join("agent.json"))?.contains("nas"));
        Ok(())
    })?;
    assert_eq!(instance.pids("hearth shim"), before);
    agent.stop()?;
    // With its region again, everything is as it was.
    instance.start("notes")?;
    assert_eq!(instance.pids("hearth shim"), before);
    ensure!(instance.fetch(host, "/api/notes")?.contains("at home"));
    Ok(())
}

#[test]
fn a_region_that_lost_its_disks_stops_and_deletes_nothing() -> Result<()> {
    let instance = Instance::up("notes")?;
    let before = instance.pids("hearth shim");
    ensure!(before.len() == 1);
    for verb in [" up ", " server ", " agent "] {
        for pid in instance.pids(verb) {
            let _ = instance.kill9(pid);
        }
    }
    // Everything of the region but its CA is gone; it starts anew as another incarnation that knows the device.
    let raft = instance.path().join("server/raft");
    std::fs::remove_dir_all(&raft).with_context(|| raft.display().to_string())?;
    // The fresh region does not know the device: `up` cannot see it connect, and says so in bounded time;
    // what matters is what runs.
    let mut up = instance.up_command("none");
    let mut child = up.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    instance.eventually("the agent runs and is refused by the fresh region", || {
        let log = std::fs::read_to_string(instance.path().join("logs/agent.log"))?;
        ensure!(log.lines().rev().take(50).any(|line| line.contains("belongs to no device of this region")), "{log}");
        Ok(())
    })?;
    assert_eq!(instance.pids("hearth shim"), before, "nothing was stopped");
    child.kill()?;
    child.wait()?;
    Ok(())
}
