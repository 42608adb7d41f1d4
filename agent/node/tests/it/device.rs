//! A device: a data directory and an agent process that can be killed.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use hearth_agent::{Agent, AgentExit, Config, JoinOptions, Paths, join, teardown, zygote_config};
use hearth_image::{
    ImageStore, ImportOptions, Platform,
    build::{BuildFile, BuildSpec, build},
};
use hearth_types::{Clock, InstanceId, Timestamp};

use crate::{pressure::Disk, region::Region};

/// Where the data directory stands in the environment of an agent.
pub const DRIVER: &str = "HEARTH_AGENT_TEST_DIR";
const SERVER: &str = "HEARTH_AGENT_TEST_SERVER";

struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        now()
    }
}

pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp(i64::try_from(since.as_millis()).unwrap())
}

/// Plays the agent.
pub fn drive(dir: &Path) {
    let instance = InstanceId::of_data_dir(dir);
    let zygote =
        hearth_runtime::fork_zygote(&zygote_config(dir, &instance)).expect("the zygote is forked; are you root?");
    let _ = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter("info").with_ansi(false).init();
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let exit = tokio.block_on(async {
        let config = Config {
            data_dir: dir.to_owned(),
            instance,
            server: std::env::var(SERVER).ok(),
            zygote,
            clock: Arc::new(SystemClock),
            registry: prometheus::Registry::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            host_paths: Vec::new(),
            lan_port: 443,
        };
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let agent = Agent::new(config).unwrap();
        agent
            .run(
                async move {
                    term.recv().await;
                },
                || (),
            )
            .await
            .unwrap()
    });
    tokio.shutdown_timeout(std::time::Duration::from_secs(1));
    if exit == AgentExit::Reexec {
        use std::os::unix::process::CommandExt as _;
        let error = Command::new("/proc/self/exe").exec();
        panic!("cannot execute the agent again: {error}");
    }
}

pub struct Device {
    pub dir: PathBuf,
    pub instance: InstanceId,
    agent: Option<Child>,
    // After the agent and its pods, and before the directory that it is mounted at.
    disk: Option<Disk>,
    _temp: tempfile::TempDir,
}

impl Device {
    /// A device that has joined, with the busybox image.
    pub async fn new(region: &Region) -> Self {
        let device = Self::without_image(region).await;
        device.import("busybox:1");
        device
    }

    pub async fn without_image(region: &Region) -> Self {
        let temp = tempfile::Builder::new().prefix("hearth-agent-it-").tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        // No registry of the internet is asked by a test.
        std::fs::write(Paths::new(&dir).registries(), "allow: []\n").unwrap();
        // None depends on how full the disk is of the machine that runs it.
        let evictions = "evictionHard: {nodefs.available: 0%, nodefs.inodesFree: 0%}\n";
        std::fs::write(Paths::new(&dir).eviction(), evictions).unwrap();
        let device = Self { instance: InstanceId::of_data_dir(&dir), dir, agent: None, disk: None, _temp: temp };
        device.join(region).await.unwrap();
        device
    }

    /// A device on a disk of its own of this size, without an image.
    pub async fn on_disk(region: &Region, mib: u64) -> Self {
        let mut device = Self::without_image(region).await;
        device.disk = Some(Disk::at(&device.dir, mib));
        std::fs::write(device.paths().registries(), "allow: []\n").unwrap();
        device.join(region).await.unwrap();
        device
    }

    /// Bytes that are left where its data is.
    pub fn left(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.dir).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    pub async fn join(&self, region: &Region) -> Result<hearth_agent::Joined, hearth_agent::IdentityError> {
        join(JoinOptions {
            token: region.token(),
            name: Some("nas".into()),
            owner: Some("alice".into()),
            data_dir: self.dir.clone(),
            server: None,
            now: now(),
        })
        .await
    }

    pub fn paths(&self) -> Paths {
        Paths::new(&self.dir)
    }

    pub fn import(&self, name: &str) {
        let mut spec = BuildSpec::new(name, Platform::host());
        spec.files.push(BuildFile { host: "/bin/busybox".into(), in_image: "/bin/busybox".into(), mode: Some(0o755) });
        spec.entrypoint = vec!["/bin/busybox".into()];
        spec.cmd = vec!["sleep".into(), "1000000".into()];
        let archive = self.dir.join("image.tar");
        build(&spec, &archive).unwrap();
        ImageStore::open(&self.paths().images()).unwrap().import(&archive, &ImportOptions::default()).unwrap();
    }

    pub fn start(&mut self, server: &str) {
        assert!(self.agent.is_none());
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("agent.log")).unwrap();
        let agent = Command::new(std::env::current_exe().unwrap())
            .env(DRIVER, &self.dir)
            .env(SERVER, server)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(agent);
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| agent.try_wait().unwrap().is_none())
    }

    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.kill();
        // The zygote ends when its agent does; what it was doing may hold on for a moment.
        for tries in 0..5 {
            match teardown(&self.dir, &self.instance) {
                Ok(_) => break,
                Err(error) if tries == 4 => eprintln!("cannot clean up after a test: {error:?}"),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(200)),
            }
        }
        if std::thread::panicking() {
            eprintln!("--- agent of {}:\n{}", self.dir.display(), self.log());
        }
    }
}
