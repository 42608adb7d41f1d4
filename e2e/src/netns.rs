//! Network namespaces with unique names, and links between them.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;

use crate::command::run;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A program in a namespace. (Not `ip netns exec`: that mounts /sys anew and hides the cgroups.)
pub fn program_in(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

/// A network namespace; removed when dropped.
pub struct Netns {
    name: String,
}

impl Netns {
    /// A new one with loopback up; `role` is a part of its name.
    pub fn new(role: &str) -> Result<Self> {
        let name = format!("he2e-{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", ["netns", "add", &name])?;
        let netns = Self { name };
        netns.run("ip link set lo up")?;
        Ok(netns)
    }

    /// Its name, as in /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a thread enters it by.
    pub fn file(&self) -> Result<std::fs::File> {
        Ok(std::fs::File::open(format!("/run/netns/{}", self.name))?)
    }

    /// A program in it.
    pub fn program(&self, program: &str) -> Command {
        program_in(&self.name, program)
    }

    /// Runs a line of words in it.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.program(words.next().unwrap_or_default());
        crate::command::succeed(command.args(words))
    }

    /// Connects it to another by a veth pair with an address (`192.0.2.1/24`) at each end.
    pub fn link(
        &self,
        device: &str,
        addresses: &[&str],
        other: &Self,
        other_device: &str,
        other_addresses: &[&str],
    ) -> Result<()> {
        run(
            "ip",
            [
                "link",
                "add",
                device,
                "netns",
                &self.name,
                "type",
                "veth",
                "peer",
                "name",
                other_device,
                "netns",
                &other.name,
            ],
        )?;
        for (netns, device, addresses) in [(self, device, addresses), (other, other_device, other_addresses)] {
            for address in addresses {
                let nodad = if address.contains(':') { " nodad" } else { "" };
                netns.run(&format!("ip address add {address} dev {device}{nodad}"))?;
            }
            netns.run(&format!("ip link set {device} up"))?;
        }
        Ok(())
    }

    /// Loads firewall rules.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut command = self.program("nft");
        let done = crate::command::output(command.args(["-f", "-"]), rules.as_bytes(), crate::command::LIMIT)?;
        anyhow::ensure!(done.status.success(), "nft: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Nothing can be done about a namespace that is gone already.
        let _ = run("ip", ["netns", "delete", &self.name]);
    }
}
