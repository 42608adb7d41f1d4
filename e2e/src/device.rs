//! A device by itself: its agent is a process that joined a region, and is stopped and started.

use std::{path::PathBuf, process::Stdio};

use anyhow::Result;

use crate::{
    command::{self, Running},
    instance::Instance,
};

/// A device in a data directory of its own. What runs on it ends with the test.
pub struct Device {
    // Ended before its directory goes.
    agent: Option<Running>,
    /// Its data directory.
    pub instance: Instance,
    /// Its name in the region.
    pub name: &'static str,
}

impl Device {
    /// Joins a region as a device of an owner, and starts.
    pub fn join(region: &Instance, name: &'static str, owner: &str) -> Result<Self> {
        let token = region.run(&format!("token create --owner {owner}"))?;
        let instance = Instance::empty()?;
        let mut join = instance.hearth(["join", token.trim(), "--name", name, "--data-dir"]);
        command::succeed(join.arg(instance.path()))?;
        let mut device = Self { agent: None, instance, name };
        device.start()?;
        Ok(device)
    }

    /// Starts its agent, once more.
    pub fn start(&mut self) -> Result<()> {
        let mut agent = self.instance.hearth(["agent", "--data-dir"]);
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        agent.arg(self.instance.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.agent = Some(Running(agent.spawn()?));
        Ok(())
    }

    /// Kills its agent; containers run on.
    pub fn stop(&mut self) {
        self.agent = None;
    }

    fn log(&self) -> PathBuf {
        self.instance.path().join("agent.log")
    }

    /// What its agent said.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}
