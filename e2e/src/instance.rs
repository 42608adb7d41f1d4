//! An instance of Hearth: a data directory, the `hearth` binary, and what runs from it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::{command, disk, eventually, traces};

/// The binary under test: `$HEARTH_BIN`, else the one that was built beside this program.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("HEARTH_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().expect("this program has a file");
    let found = own.ancestors().skip(1).take(3).map(|folder| folder.join("hearth")).find(|path| path.is_file());
    found.expect("the hearth binary stands beside the tests: run `make test`, or `cargo build -p hearth` first")
}

/// No test depends on how full the disk is of the machine that runs it.
const ANY_DISK: &str =
    "evictionHard: {nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}\n";

/// An instance with a data directory of its own. Dropping it stops everything and removes the directory.
pub struct Instance {
    dir: TempDir,
    netns: Option<String>,
    /// The data directory is a file system of its own.
    mounted: bool,
    keep_down: bool,
}

impl Instance {
    /// A data directory with nothing in it.
    pub fn empty() -> Result<Self> {
        // Short: unix sockets in it have 108 bytes for their path.
        let dir = tempfile::Builder::new()
            .prefix("he")
            .rand_bytes(5)
            .tempdir_in("/tmp")
            .context("cannot make a directory")?;
        let instance = Self { dir, netns: None, mounted: false, keep_down: false };
        instance.say_evictions(ANY_DISK)?;
        instance.allow_registries("allow: []")?;
        Ok(instance)
    }

    /// A running instance: `hearth up --detach` on ports that are free, with an example or `none`.
    pub fn up(example: &str) -> Result<Self> {
        let instance = Self::empty()?;
        instance.start(example)?;
        Ok(instance)
    }

    /// Its data directory is a disk of its own of this size, so that it can be filled.
    pub fn on_disk(mib: u64) -> Result<Self> {
        let mut instance = Self::empty()?;
        instance.live_on(|at| disk::nameless(&at.with_extension("disk"), mib, disk::EXT4, at))?;
        instance.allow_registries("allow: []")?;
        Ok(instance)
    }

    /// Its data directory is what `mount` puts there, in the place of what was there before.
    pub fn live_on(&mut self, mount: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        mount(self.path())?;
        self.mounted = true;
        self.say_evictions(ANY_DISK)
    }

    /// What its owner says of registries; none is asked until this is said.
    pub fn allow_registries(&self, yaml: &str) -> Result<()> {
        std::fs::write(self.path().join("registries.yaml"), yaml).context("cannot write registries.yaml")
    }

    /// What its owner says of when it counts as short of something.
    pub fn say_evictions(&self, yaml: &str) -> Result<()> {
        std::fs::write(self.path().join("eviction.yaml"), yaml).context("cannot write eviction.yaml")
    }

    /// Everything of it runs in a network namespace.
    #[must_use]
    pub fn in_netns(mut self, name: &str) -> Self {
        self.netns = Some(name.to_owned());
        self
    }

    /// Starts it with `hearth up --detach`; returns what that printed.
    pub fn start(&self, example: &str) -> Result<String> {
        let done = command::output(&mut self.up_command(example), b"", command::LIMIT)?;
        let out = String::from_utf8_lossy(&done.stdout).into_owned();
        if !done.status.success() {
            bail!("hearth up: {}\n{}\n{}\n{}", done.status, out, String::from_utf8_lossy(&done.stderr), self.logs());
        }
        Ok(out)
    }

    /// The command that starts it, to be changed.
    pub fn up_command(&self, example: &str) -> Command {
        let mut command = self.hearth(["up", "--detach", "--example", example, "--device", "nas"]);
        command.arg("--data-dir").arg(self.path());
        for flag in ["--listen-api", "--listen-gateway", "--listen-dns", "--listen-metrics", "--listen-device-metrics"]
        {
            command.args([flag, "127.0.0.1:0"]);
        }
        command
    }

    /// The data directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A program in the instance's network namespace.
    pub fn program(&self, program: &str) -> Command {
        match &self.netns {
            Some(name) => crate::netns::program_in(name, program),
            None => Command::new(program),
        }
    }

    /// The binary with arguments, and with this instance's client config.
    pub fn hearth<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = self.program(&binary().display().to_string());
        command.args(arguments).env("HEARTH_CONFIG", self.path().join("client.yaml"));
        command
    }

    /// Runs a client verb, given as one line of words, that must succeed.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut command = self.hearth([]);
        command.args(line.split_whitespace());
        command::succeed(&mut command)
    }

    /// Runs a client verb that must fail; returns its message.
    pub fn refused(&self, line: &str) -> Result<String> {
        let mut command = self.hearth([]);
        command.args(line.split_whitespace());
        command::fail(&mut command)
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let done = command::output(&mut self.hearth(["apply", "-f", "-"]), manifest.as_bytes(), command::LIMIT)?;
        if !done.status.success() {
            bail!("apply: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Applies a manifest that must be refused; returns the message.
    pub fn apply_refused(&self, manifest: &str) -> Result<String> {
        let done = command::output(&mut self.hearth(["apply", "-f", "-"]), manifest.as_bytes(), command::LIMIT)?;
        if done.status.success() {
            bail!("the manifest was expected to be refused: {}", String::from_utf8_lossy(&done.stdout));
        }
        Ok(String::from_utf8_lossy(&done.stderr).into_owned())
    }

    /// An object as JSON.
    pub fn get(&self, kind: &str, name: &str, namespace: &str) -> Result<Value> {
        let text = self.run(&format!("get {kind} {name} -n {namespace} -o json"))?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// A condition of an object, where it has one of this type.
    pub fn condition(&self, kind: &str, name: &str, namespace: &str, which: &str) -> Result<Value> {
        let object = self.get(kind, name, namespace)?;
        let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        conditions.find(|one| one["type"] == which).cloned().with_context(|| format!("no condition {which}: {object}"))
    }

    /// Objects of a kind as JSON.
    pub fn list(&self, kind: &str, namespace: &str) -> Result<Vec<Value>> {
        let text = self.run(&format!("get {kind} -n {namespace} -o json"))?;
        let mut list: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("not a list: {text}"),
        }
    }

    /// What `hearth status -o json` says.
    pub fn status(&self) -> Result<Value> {
        let mut command = self.hearth(["status", "-o", "json", "--data-dir"]);
        let text = command::succeed(command.arg(self.path()))?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// One address of the status.
    pub fn address(&self, field: &str) -> Result<String> {
        let status = self.status()?;
        status[field].as_str().map(str::to_owned).with_context(|| format!("no {field} in {status}"))
    }

    /// What Prometheus is told at one address of the status: `metrics` or `deviceMetrics`.
    pub fn scrape(&self, field: &str) -> Result<String> {
        let url = format!("http://{}/metrics", self.address(field)?);
        command::run("curl", ["-sS", "--fail", "--max-time", "5", &url])
    }

    /// curl, through the gateway, trusting the region's CA alone. Arguments go before the URL.
    pub fn curl(&self, host: &str, path: &str, arguments: &[&str]) -> Result<Command> {
        let gateway = self.address("gateway")?;
        let (ip, port) = gateway.rsplit_once(':').context("an address")?;
        let mut command = self.program("curl");
        command.args(["-sS", "--max-time", "20", "--cacert"]).arg(self.path().join("ca.pem"));
        command
            .args(["--resolve", &format!("{host}:{port}:{ip}")])
            .args(arguments)
            .arg(format!("https://{host}:{port}{path}"));
        Ok(command)
    }

    /// The body of a page that must come with success.
    pub fn fetch(&self, host: &str, path: &str) -> Result<String> {
        command::succeed(&mut self.curl(host, path, &["--fail-with-body"])?)
    }

    /// Waits until an Install is ready.
    pub fn wait_ready(&self, install: &str, namespace: &str) -> Result<()> {
        let waited = self.run(&format!("wait install/{install} -n {namespace} --for condition=Ready --timeout 60s"));
        waited.map(drop).with_context(|| self.logs())
    }

    /// Runs `hearth down`.
    pub fn down(&self) -> Result<String> {
        let mut command = self.hearth(["down", "--data-dir"]);
        command::succeed(command.arg(self.path()))
    }

    /// The ends of the processes' logs, for messages.
    pub fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = std::fs::read_to_string(self.path().join("logs").join(name)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(40)..].join("\n"))
        };
        ["up.log", "server.log", "agent.log"].map(tail).concat()
    }

    /// The pids of this instance's processes whose command line contains a text, in the order of age.
    pub fn pids(&self, contains: &str) -> Vec<u32> {
        let dir = self.path().display().to_string();
        let ours = |line: &str| line.contains(&dir) && line.contains(contains);
        traces::all_pids().into_iter().filter(|pid| ours(&traces::command_line(*pid))).collect()
    }

    /// What tells its cgroups, links and tables from those of another instance.
    pub fn id(&self) -> Result<String> {
        self.address("instance")
    }

    /// The pids of its containers' processes whose command line contains a text. Not by the command line alone: another
    /// instance may run the same program.
    pub fn container_pids(&self, id: &str, contains: &str) -> Vec<u32> {
        let ours = |pid: &u32| {
            let line = traces::command_line(*pid);
            line.contains(contains) && !line.starts_with("hearth shim") && traces::in_cgroup(*pid, id)
        };
        traces::all_pids().into_iter().filter(ours).collect()
    }

    /// Sends SIGKILL.
    pub fn kill9(&self, pid: u32) -> Result<()> {
        command::run("kill", ["-9", &pid.to_string()]).map(drop)
    }

    /// Sends SIGKILL to supervisor, server and agent, in this order, as a crash of all; returns when they are gone. Containers
    /// go on.
    pub fn kill9_all(&self) -> Result<()> {
        let verbs = [" up ", " server ", " agent "];
        for pid in verbs.iter().flat_map(|verb| self.pids(verb)) {
            // The zygote goes by itself with its agent.
            let _ = self.kill9(pid);
        }
        self.eventually("they are gone", || {
            anyhow::ensure!(verbs.iter().all(|verb| self.pids(verb).is_empty()));
            Ok(())
        })
    }

    /// Waits for something that the region or a client shows.
    pub fn eventually<T>(&self, what: &str, check: impl FnMut() -> Result<T>) -> Result<T> {
        eventually(what, Duration::from_secs(60), check).with_context(|| self.logs())
    }

    /// An image of Debian's static busybox in the device's store, by the name `busybox`.
    pub fn import_busybox(&self) -> Result<()> {
        let archive = self.path().join("busybox.tar");
        let mut build = self.hearth(["image", "build", "--tag", "busybox", "--copy", "/bin/busybox:/bin/busybox:0755"]);
        build
            .args([
                "--copy",
                "/bin/busybox:/bin/sh:0755",
                "--entrypoint",
                "/bin/busybox",
                "--env",
                "PATH=/bin",
                "--output",
            ])
            .arg(&archive);
        command::succeed(&mut build)?;
        self.import(&archive)
    }

    /// Imports an image into the device's store.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let mut import = self.hearth(["image", "import", "--data-dir"]);
        command::succeed(import.arg(self.path()).arg(archive)).map(drop)
    }

    /// Leaves the data directory and what runs from it as they are when this is dropped.
    pub fn leave(mut self) -> PathBuf {
        self.keep_down = true;
        self.path().to_owned()
    }
}

impl Drop for Instance {
    #[expect(clippy::print_stderr, reason = "a test's, which its runner shows where it failed")]
    fn drop(&mut self) {
        if self.keep_down {
            return;
        }
        eprintln!("{}", self.logs());
        // Also after a panic: an instance of a failed test must not outlive it.
        let down = self.down();
        if self.mounted {
            // Lazily: whatever still uses it must not keep it in the way.
            let _ = command::run("umount", ["--lazy", &self.path().display().to_string()]);
        }
        if let Err(error) = down
            && !std::thread::panicking()
        {
            panic!("hearth down failed: {error:#}");
        }
    }
}
