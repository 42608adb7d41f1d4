//! A root file system, pods and what tests ask of them.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use hearth_runtime::{
    ContainerSpec, ContainerState, ContainerStatus, ExecIo, ExecSpec, IDS_PER_POD, IdMap, Limits, LogPolicy, Pod,
    PodEvent, PodLimits, PodSandbox, Runtime,
};
use tokio::io::AsyncReadExt;

/// How long a test waits for anything.
pub const BOUND: Duration = Duration::from_secs(30);
const BUSYBOX: &str = "/bin/busybox";

/// Makes a layer with busybox in it.
pub fn make_rootfs(dir: &Path) {
    let rootfs = dir.join("layer");
    for sub in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        fs::create_dir_all(rootfs.join(sub)).expect("makes the layer");
    }
    fs::copy(BUSYBOX, rootfs.join("bin/busybox")).expect("/bin/busybox is missing: apt-get install busybox-static");
    let applets = [
        "sh", "cat", "echo", "ls", "id", "env", "pwd", "sleep", "true", "false", "touch", "stat", "mount", "unshare",
        "hostname", "head", "dd", "seq", "stty", "kill", "tail", "wc", "grep", "ps", "mkdir", "chroot", "tr", "tty",
        "mknod", "sync", "yes", "readlink",
    ];
    for applet in applets {
        symlink("busybox", rootfs.join("bin").join(applet)).expect("links an applet");
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n")
        .expect("writes passwd");
    fs::write(rootfs.join("etc/group"), "root:x:0:\napp:x:1001:\nmedia:x:44:app\n").expect("writes group");
    fs::write(rootfs.join("bin/no-exec"), "#!/bin/sh\n").expect("writes a file");
    fs::write(rootfs.join("bin/no-interpreter"), "#!/not/there\n").expect("writes a file");
    fs::set_permissions(rootfs.join("bin/no-interpreter"), fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod");
}

/// A new network namespace, with nobody in it.
pub fn netns() -> OwnedFd {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root can make a network namespace");
        fs::File::open("/proc/thread-self/ns/net").expect("is there").into()
    })
    .join()
    .expect("the thread ends")
}

/// Removes the instance when the tests are over, panicked or not.
pub struct Instance {
    pub dir: tempfile::TempDir,
    pub name: String,
}

impl Instance {
    pub fn new(what: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("hearth-runtime-").tempdir().expect("temporary directory");
        // As /root would be: what runs in a pod need not be able to walk to it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
        make_rootfs(dir.path());
        Self { dir, name: format!("rt-{what}-{}", std::process::id()) }
    }

    pub fn config(&self) -> hearth_runtime::ZygoteConfig {
        hearth_runtime::ZygoteConfig {
            run_dir: self.dir.path().join("run"),
            instance: self.name.clone(),
            data_dir: self.dir.path().to_path_buf(),
        }
    }

    pub fn cgroup_dirs(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("is there");
        let points = mounts.lines().filter(|l| l.contains(" - cgroup")).filter_map(|l| l.split(' ').nth(4));
        points.map(|p| Path::new(p).join(format!("hearth-{}", self.name))).filter(|p| p.exists()).collect()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = hearth_runtime::teardown(&self.dir.path().join("run"), &self.name);
    }
}

/// What every test gets.
#[derive(Clone)]
pub struct Ctx {
    pub runtime: Runtime,
    pub instance: Arc<Instance>,
}

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A pod that is destroyed at the end of the test.
pub struct TestPod {
    pub pod: Pod,
    pub map: IdMap,
    dir: PathBuf,
    layer: PathBuf,
    instance: String,
}

pub fn sandbox(uid: &str, map: IdMap) -> PodSandbox {
    PodSandbox {
        uid: uid.to_owned(),
        namespace: "alice".to_owned(),
        name: format!("pod-{uid}"),
        hostname: "notes-0".to_owned(),
        netns: netns(),
        id_map: map,
        resolv_conf: "nameserver 10.9.8.7\n".to_owned(),
        hosts: "127.0.0.1 localhost\n10.0.0.2 notes-0\n".to_owned(),
        limits: PodLimits { pids: Some(500), ..PodLimits::default() },
        guest: false,
        share_processes: false,
        memory: Vec::new(),
        lease: None,
    }
}

impl Ctx {
    pub async fn pod(&self) -> TestPod {
        self.pod_of(false).await
    }

    /// A pod of another owner than the device's.
    pub async fn guest(&self) -> TestPod {
        self.pod_of(true).await
    }

    /// A pod whose containers share their processes.
    pub async fn sharing(&self) -> TestPod {
        self.pod_with(|sandbox| sandbox.share_processes = true).await
    }

    async fn pod_of(&self, guest: bool) -> TestPod {
        self.pod_with(|sandbox| sandbox.guest = guest).await
    }

    /// A pod that is another than usual.
    pub async fn pod_with(&self, change: impl FnOnce(&mut PodSandbox)) -> TestPod {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let map = IdMap { host_base: n * IDS_PER_POD, size: IDS_PER_POD };
        let uid = format!("pod-{n}");
        let mut sandbox = sandbox(&uid, map);
        change(&mut sandbox);
        let pod = self.runtime.create_pod(sandbox).await.expect("makes a pod");
        let base = self.instance.dir.path();
        let instance = self.instance.name.clone();
        TestPod { pod, map, dir: base.join("work").join(uid), layer: base.join("layer"), instance }
    }
}

pub fn spec(dir: &Path, layer: &Path, name: &str, script: &str) -> ContainerSpec {
    ContainerSpec {
        name: name.to_owned(),
        attempt: 0,
        layers: vec![layer.to_path_buf()],
        scratch: dir.join("scratch").join(name),
        args: ["sh", "-c", script].map(String::from).to_vec(),
        env: vec![("PATH".to_owned(), "/bin".to_owned())],
        cwd: String::new(),
        user: String::new(),
        run_as_user: None,
        run_as_group: None,
        groups: Vec::new(),
        mounts: Vec::new(),
        limits: Limits::default(),
        oom_score_adj: 750,
        capabilities: Vec::new(),
        read_only_root: false,
        log_path: dir.join("log").join(name).join("0.log"),
        log: LogPolicy::default(),
        termination_log: None,
        stdin: false,
        stdin_once: false,
        terminal: false,
        processes_of: None,
        #[cfg(feature = "unprotected")]
        without: Vec::new(),
    }
}

impl TestPod {
    /// Command lines of its processes.
    pub fn lines(&self) -> Vec<String> {
        lines_in(&self.instance, self.pod.uid())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn spec(&self, name: &str, script: &str) -> ContainerSpec {
        spec(&self.dir, &self.layer, name, script)
    }

    /// Waits until the container ended.
    pub async fn ended(&self, name: &str) -> ContainerStatus {
        let wait = async {
            loop {
                let all = self.pod.status().await.expect("status");
                let found = all.into_iter().rev().find(|c| c.name == name).expect("the container is known");
                if matches!(found.state, ContainerState::Exited { .. }) {
                    return found;
                }
                assert_ne!(self.pod.wait_event().await.expect("event"), PodEvent::ShimGone);
            }
        };
        tokio::time::timeout(BOUND, wait).await.expect("the container ends in time")
    }

    /// Runs a container to its end; its exit and its standard output and errors.
    pub async fn run(&self, spec: ContainerSpec) -> (ContainerState, String, String) {
        let (name, log) = (spec.name.clone(), spec.log_path.clone());
        self.pod.start_container(spec).await.expect("starts");
        let state = self.ended(&name).await.state;
        (state, read_log(&log, "stdout"), read_log(&log, "stderr"))
    }

    /// Runs a script that must succeed; its output.
    pub async fn output(&self, spec: ContainerSpec) -> String {
        let (state, out, err) = self.run(spec).await;
        assert!(matches!(state, ContainerState::Exited { exit_code: Some(0), .. }), "{state:?}\n{out}\n{err}");
        out
    }

    pub async fn destroy(self) {
        self.pod.destroy().await.expect("destroys");
    }
}

/// Text of one stream of a log.
pub fn read_log(path: &Path, stream: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut out = String::new();
    for line in text.lines() {
        let mut parts = line.splitn(4, ' ');
        let (_, s, tag, text) = (parts.next(), parts.next(), parts.next(), parts.next().unwrap_or_default());
        if s == Some(stream) {
            out += text;
            if tag == Some("F") {
                out.push('\n');
            }
        }
    }
    out
}

pub fn exec_spec(container: &str, script: &str) -> ExecSpec {
    ExecSpec {
        container: container.to_owned(),
        args: ["sh", "-c", script].map(String::from).to_vec(),
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
        stdin: false,
    }
}

pub async fn read_all(fd: OwnedFd) -> String {
    let mut out = String::new();
    let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(fd).expect("a pipe");
    pipe.read_to_string(&mut out).await.expect("reads");
    out
}

/// Runs a command; its exit code, output and errors.
pub async fn exec(pod: &Pod, spec: ExecSpec) -> (i32, String, String) {
    let run = async {
        let mut exec = pod.exec(spec).await.expect("starts");
        let Some(ExecIo::Pipes { stdout, stderr, .. }) = exec.take_io() else { panic!("pipes") };
        let (out, err) = tokio::join!(read_all(stdout), read_all(stderr));
        (exec.wait().await.expect("ends"), out, err)
    };
    tokio::time::timeout(BOUND, run).await.expect("the command ends in time")
}

/// Waits for a condition.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < BOUND, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process of this pid exists and is no zombie.
pub fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Command lines of the processes in a cgroup of an instance's.
fn lines_in(instance: &str, uid: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("is there").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let line = |pid: u32| {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let part = format!("hearth-{instance}/{uid}/");
        cgroup.lines().any(|line| line.contains(&part)).then_some(())?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    };
    pids.filter_map(line).collect()
}
