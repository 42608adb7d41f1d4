//! A server of a region by itself: a process that is killed, started again, and asked.

use std::{
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{eventually, instance::Instance};

/// How long anything may take that is no election.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server by itself, in a data directory of its own; ended with the test.
pub struct Server {
    // Ended before its directory goes.
    child: Child,
    /// Its data directory, and the verbs that ask it.
    pub instance: Instance,
    /// Where its API answers.
    pub api: String,
    /// The feature level of the release that it is started as, where that is not its own.
    pub feature_level: Option<u64>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process of a server; what it says goes to a file in its data directory.
fn spawn(instance: &Instance, api: &str, level: Option<u64>, join: Option<&str>) -> Result<Child> {
    let mut server = instance.hearth(["server", "--listen-api", api]);
    server.arg("--data-dir").arg(instance.path());
    for flag in ["--listen-gateway", "--listen-dns", "--listen-metrics"] {
        server.args([flag, "127.0.0.1:0"]);
    }
    server.args(level.iter().map(|level| format!("--emulated-feature-level={level}")));
    server.args(join.iter().flat_map(|token| ["--join", token]));
    let log = std::fs::File::options().create(true).append(true).open(log_of(instance))?;
    Ok(server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?)
}

fn log_of(instance: &Instance) -> std::path::PathBuf {
    instance.path().join("server.stderr")
}

impl Server {
    /// Starts a region's first server, or with a token another one; returns once it answers.
    pub fn start(join: Option<&str>) -> Result<Self> {
        let mut server = Self::spawned(Instance::empty()?, join)?;
        server.answers()?;
        Ok(server)
    }

    /// The process alone, which need not come to answer.
    pub fn spawned(instance: Instance, join: Option<&str>) -> Result<Self> {
        Self::spawned_as(instance, "127.0.0.1:0", None, join)
    }

    /// The same with its API at an address, and as the release of a feature level.
    pub fn spawned_as(instance: Instance, api: &str, feature_level: Option<u64>, join: Option<&str>) -> Result<Self> {
        let child = spawn(&instance, api, feature_level, join)?;
        Ok(Self { child, instance, api: String::new(), feature_level })
    }

    /// Starts its process again, which need not come to answer.
    pub fn spawn(&mut self, api: &str, join: Option<&str>) -> Result<()> {
        self.child = spawn(&self.instance, api, self.feature_level, join)?;
        Ok(())
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it answers, and notes where.
    pub fn answers(&mut self) -> Result<()> {
        let api = eventually("the server answers", PATIENCE, || {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Err(status));
            }
            self.instance.address("api").map(Ok)
        });
        match api.with_context(|| self.log())? {
            Ok(api) => self.api = api,
            Err(status) => bail!("the server ended ({status}): {}", self.log()),
        }
        Ok(())
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_of(&self.instance)).unwrap_or_default()
    }

    /// As a power cut does it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again, at an address.
    pub fn again(&mut self, api: &str, join: Option<&str>) -> Result<()> {
        self.child = spawn(&self.instance, api, self.feature_level, join)?;
        self.answers()
    }

    /// Waits until it ended by itself; returns what it said.
    pub fn ended(&mut self) -> Result<String> {
        eventually("the server ends", PATIENCE, || self.child.try_wait()?.context("it runs"))
            .with_context(|| self.log())?;
        Ok(self.log())
    }

    /// A token by which another server joins.
    pub fn token(&self) -> Result<String> {
        Ok(self.instance.run("token create --server")?.trim().to_owned())
    }

    /// Who belongs, as this server says.
    pub fn members(&self) -> Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&self.instance.run("region members -o json")?)?;
        list["items"].as_array().cloned().with_context(|| format!("not a list: {list}"))
    }

    /// Waits until these servers belong, all of them voters that answer.
    pub fn all_well(&self, ids: &[u64]) -> Result<Vec<Value>> {
        let well = eventually("all servers are well", PATIENCE, || {
            let members = self.members()?;
            let found: Vec<_> = members.iter().filter_map(|one| one["id"].as_u64()).collect();
            ensure!(found == ids, "{found:?}");
            for one in &members {
                let answers = one["silentSeconds"].as_f64().is_some_and(|silent| silent < 3.0);
                ensure!(one["role"] == "voter" && answers && !one["behind"].is_null(), "{one}");
            }
            Ok(members)
        });
        well.with_context(|| self.log())
    }

    /// Who leads, as this server says.
    pub fn leader(&self) -> Result<u64> {
        let members = self.members()?;
        let leader = members.iter().find(|one| one["leads"] == true).context("nobody leads")?;
        leader["id"].as_u64().context("a number")
    }

    /// Writes an object through this server.
    pub fn write(&self, name: &str) -> Result<String> {
        self.instance.apply(&format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, namespace: default}}, data: {{a: b}}}}"
        ))
    }

    /// Reads an object through this server.
    pub fn has(&self, name: &str) -> Result<()> {
        self.instance.get("cm", name, "default").map(drop)
    }
}

/// A region of three; server `n` is at place `n - 1`.
pub fn three() -> Result<Vec<Server>> {
    three_by(|_, join| Server::spawned(Instance::empty()?, join))
}

/// The same of servers that are started by the caller, from a place and a token.
pub fn three_by(mut spawned: impl FnMut(usize, Option<&str>) -> Result<Server>) -> Result<Vec<Server>> {
    let mut servers: Vec<Server> = Vec::new();
    for place in 0..3 {
        // The second one lets the third one in as well as the first could.
        let token = servers.last().map(Server::token).transpose()?;
        let mut server = spawned(place, token.as_deref())?;
        server.answers()?;
        servers.push(server);
    }
    servers[0].all_well(&[1, 2, 3])?;
    Ok(servers)
}

/// The place of a server among those that [`three`] made.
pub fn place(id: u64) -> usize {
    id as usize - 1
}
