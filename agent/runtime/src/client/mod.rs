//! The agent's side: handles to the zygote and to the shims.

mod attach;
mod connection;
mod exec;
mod pod;

use std::{
    collections::HashSet,
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::unix::AsyncFd,
    sync::Mutex,
    time::{Instant, timeout, timeout_at},
};

use self::connection::Connection;
pub use self::{
    attach::Attach,
    exec::{Exec, ExecIo},
    pod::Pod,
};
use crate::{
    cgroup::Cgroups,
    child,
    error::{RuntimeError, because},
    model::{Adopted, ContainerState, DeadPod, GuestLimits, PodSandbox, UnadoptedPod, Usage},
    pods,
    record::{PodRecord, RecordError},
    sys, trash,
    wire::{self, ForkOutcome, ForkReply, ForkShim, PodConfig, Reply, Request},
    zygote::{Zygote, ZygoteConfig, guests_cgroup, instance_cgroup},
};

/// How long the zygote may take to fork.
const FORK_BOUND: Duration = Duration::from_secs(30);
/// How long a shim may take to make its pod.
const SETUP_BOUND: Duration = Duration::from_mins(1);
/// How long a killed shim may take to go: longer only where it hangs in the kernel.
const KILL_BOUND: Duration = Duration::from_secs(10);
/// How long one pod may take to be adopted: the agent's start waits for the slowest, and a shim answers within a
/// millisecond unless the machine is in trouble.
const ADOPT_BOUND: Duration = Duration::from_secs(10);
/// Longest uid of a pod in bytes; it names a directory and a cgroup.
const MAX_UID: usize = 63;
/// Longest host name, as sethostname(2).
const MAX_HOSTNAME: usize = 64;

/// Handle of the runtime; cheap to clone.
#[derive(Debug, Clone)]
pub struct Runtime(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: ZygoteConfig,
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    /// One request at a time: fork takes half a millisecond.
    socket: Mutex<ZygoteSocket>,
}

#[derive(Debug)]
struct ZygoteSocket {
    fd: AsyncFd<OwnedFd>,
    /// Id of the last request.
    last: u64,
}

/// A shim as the zygote forked it.
#[derive(Debug)]
struct Forked {
    pid: i32,
    /// None if it ended at once.
    pidfd: Option<OwnedFd>,
}

/// Runs blocking work of this crate off the async threads.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| RuntimeError::io(what, std::io::Error::other(e)))?
}

/// Registers a descriptor with tokio.
fn watch(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, RuntimeError> {
    // SAFETY: the descriptor is owned by the AsyncFd from here on and is closed with it, not before.
    let registered = unsafe { AsyncFd::register(fd) };
    registered.map_err(|e| RuntimeError::io("register a descriptor", std::io::Error::from(e)))
}

impl Runtime {
    /// Takes over the zygote. Call it inside a tokio runtime.
    pub fn new(zygote: Zygote) -> Result<Self, RuntimeError> {
        let Zygote { socket, pidfd, pid, config } = zygote;
        nix::fcntl::fcntl(socket.as_raw_fd(), nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .map_err(|e| RuntimeError::io("register the zygote", e))?;
        Ok(Self(Arc::new(Inner {
            config,
            pid: pid.as_raw(),
            pidfd: watch(pidfd)?,
            socket: Mutex::new(ZygoteSocket { fd: watch(socket)?, last: 0 }),
        })))
    }

    /// Resolves when the zygote is gone. The agent then has to execute itself again, for only a process without threads
    /// can fork another; its pods live on and are adopted.
    pub async fn zygote_exited(&self) {
        // An error of epoll would mean that we cannot watch it any more, which asks for the same remedy.
        let _ = self.0.pidfd.readable().await;
        // Or it would stay a zombie of the agent, which keeps its pid when it executes itself.
        // SAFETY: plain integers; the pid is our child's until this call.
        unsafe { libc::waitpid(self.0.pid, std::ptr::null_mut(), libc::WNOHANG) };
    }

    /// What all pods of this instance use, their shims included.
    pub fn usage(&self) -> Usage {
        let cgroups = Cgroups::find();
        cgroups.map_or_else(|_| Usage::default(), |cgroups| cgroups.usage(&instance_cgroup(&self.0.config.instance)))
    }

    /// Bytes of memory that all pods of this instance may take together; none where that is not limited.
    pub fn memory_limit(&self) -> Option<u64> {
        Cgroups::find().ok()?.memory_limit(&instance_cgroup(&self.0.config.instance))
    }

    /// Pid of the zygote.
    pub fn zygote_pid(&self) -> u32 {
        self.0.pid as u32
    }

    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.0.config.pods_dir().join(uid)
    }

    /// Makes a pod: a shim with its namespaces, and no container yet.
    ///
    /// # Guarantees
    /// After an error nothing is left of it, unless its shim hangs in the kernel, which the error then says. Nor is
    /// anything left where this future is dropped or the agent dies meanwhile: the shim then ends by itself.
    ///
    /// # Errors
    /// [`RuntimeError::BadSandbox`], [`RuntimeError::ZygoteGone`], or [`RuntimeError::CreatePod`] with the step that
    /// failed; a user namespace that cannot be made is such an error, never a pod without one.
    pub async fn create_pod(&self, sandbox: PodSandbox) -> Result<Pod, RuntimeError> {
        check_sandbox(&sandbox)?;
        let PodSandbox {
            uid,
            namespace,
            name,
            hostname,
            netns,
            id_map,
            resolv_conf,
            hosts,
            limits,
            guest,
            share_processes,
            memory,
            lease,
        } = sandbox;
        if self.pod_dir(&uid).exists() {
            let reason = "a pod of this uid is there already: destroy or forget it first".to_owned();
            return Err(RuntimeError::CreatePod { uid, reason });
        }
        let (ours, theirs) = wire::stream_pair().map_err(|e| RuntimeError::io("make a socket pair", e))?;
        let shim = self.fork_shim(&uid, &netns, theirs).await?;
        let config = PodConfig {
            uid: uid.clone(),
            namespace,
            name,
            hostname,
            id_map,
            resolv_conf,
            hosts,
            limits,
            guest,
            share_processes,
            memory,
            lease,
        };
        match self.set_up(ours, config).await {
            Ok(pod) => Ok(pod),
            Err(e) => match self.abandon(&uid, shim).await {
                Ok(()) => Err(e),
                Err(left) => {
                    Err(RuntimeError::CreatePod { uid, reason: format!("{e}; and what was made of it stays: {left}") })
                }
            },
        }
    }

    /// Tells a new shim what its pod is, and takes it over.
    async fn set_up(&self, ours: OwnedFd, config: PodConfig) -> Result<Pod, RuntimeError> {
        let uid = config.uid.clone();
        let mut maker = Connection::from_fd(&uid, ours).await?;
        maker.send(&Request::Setup(Box::new(config)), &[]).await?;
        let failed = |reason: String| RuntimeError::CreatePod { uid: uid.clone(), reason };
        match timeout(SETUP_BOUND, maker.receive::<Reply>()).await {
            Ok(Ok(Reply::Done)) => {}
            Ok(Ok(Reply::Refused { reason })) => return Err(failed(reason)),
            Ok(Ok(other)) => return Err(failed(format!("unexpected answer {other:?}"))),
            Ok(Err(e)) => return Err(failed(because("the shim ended", e))),
            Err(_) => return Err(failed(format!("not made within {} s", SETUP_BOUND.as_secs()))),
        }
        let record = PodRecord::read(&self.pod_dir(&uid)).map_err(|e| failed(because("read its record", e)))?;
        let pod = Pod::open(self.pod_dir(&uid), self.0.config.clone(), record).await?;
        // Until this is said the shim takes the end of the connection as the end of the pod.
        maker.send(&Request::Keep, &[]).await?;
        Ok(pod)
    }

    /// Ends a shim whose pod did not come about, and removes what it made. Its pod is ours to remove: there was none of
    /// this uid before, and none is there if another one answers now.
    async fn abandon(&self, uid: &str, shim: Forked) -> Result<(), RuntimeError> {
        if let Some(pidfd) = shim.pidfd {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
            if timeout(KILL_BOUND, watch(pidfd)?.readable()).await.is_err() {
                let reason = format!("its shim (pid {}) hangs in the kernel", shim.pid);
                return Err(RuntimeError::CreatePod { uid: uid.to_owned(), reason });
            }
        }
        let pod_dir = self.pod_dir(uid);
        if !pod_dir.exists() || !matches!(Connection::open(uid, &pod_dir).await, Err(RuntimeError::ShimGone { .. })) {
            return Ok(());
        }
        self.forget(uid).await
    }

    async fn fork_shim(&self, uid: &str, netns: &OwnedFd, conn: OwnedFd) -> Result<Forked, RuntimeError> {
        let mut socket = self.0.socket.lock().await;
        socket.last += 1;
        let request = ForkShim { id: socket.last, uid: uid.to_owned() };
        let fds = [netns.as_raw_fd(), conn.as_raw_fd()];
        let io = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => RuntimeError::ZygoteGone,
            _ => RuntimeError::io("speak with the zygote", e),
        };
        let failed = |reason: String| RuntimeError::CreatePod { uid: uid.to_owned(), reason };
        let late = |_| failed("the zygote does not answer".to_owned());
        let deadline = Instant::now() + FORK_BOUND;
        let send = socket.fd.async_io(tokio::io::Interest::WRITABLE, |s| wire::send_message(s.as_fd(), &request, &fds));
        timeout_at(deadline, send).await.map_err(late)?.map_err(io)?;
        loop {
            let receive = socket.fd.async_io(tokio::io::Interest::READABLE, |s| {
                wire::recv_message::<ForkReply>(s.as_fd(), &mut Vec::new())
            });
            let reply = timeout_at(deadline, receive).await.map_err(late)?.map_err(io)?;
            match reply.ok_or(RuntimeError::ZygoteGone)? {
                // Nobody waits for it any more: its shim has ended with its connection.
                ForkReply { id, .. } if id != request.id => {}
                ForkReply { outcome: ForkOutcome::Forked { pid }, .. } => {
                    // The zygote does not wait for its children, so it may be gone. Nobody else's pid is it within the
                    // microseconds since it was forked: the kernel gives pids out in turn.
                    return Ok(Forked { pid, pidfd: sys::pidfd_open(pid).ok() });
                }
                ForkReply { outcome: ForkOutcome::Failed { reason }, .. } => return Err(failed(reason)),
            }
        }
    }

    /// Finds the pods that the agent before left running, and those whose shim died meanwhile.
    ///
    /// # Guarantees
    /// Of a pod in [`Adopted::dead`] no process and no cgroup is left; its record stays until [`Runtime::forget`], so
    /// that an agent that dies before it acted on it hears of it again. One pod that cannot be adopted keeps no other
    /// from it: it is in [`Adopted::failed`], and nothing was done to it.
    ///
    /// # Errors
    /// The directory of pods cannot be listed.
    pub async fn adopt(&self) -> Result<Adopted, RuntimeError> {
        let mut found = tokio::task::JoinSet::new();
        let dir = self.0.config.pods_dir();
        let entries = fs::read_dir(&dir).map_err(|e| RuntimeError::io(format!("list {}", dir.display()), e))?;
        for entry in entries.flatten() {
            let Ok(uid) = entry.file_name().into_string() else { continue };
            let runtime = self.clone();
            found.spawn(async move {
                let adopted = runtime.adopt_one(uid.clone()).await;
                adopted.unwrap_or_else(|error| Found::Failed(runtime.unadopted(uid, error)))
            });
        }
        let mut adopted = Adopted::default();
        while let Some(joined) = found.join_next().await {
            match joined.map_err(|e| RuntimeError::io("adopt pods", std::io::Error::other(e)))? {
                Found::Alive(pod) => adopted.pods.push(pod),
                Found::Dead(dead) => adopted.dead.push(dead),
                Found::Failed(failed) => adopted.failed.push(failed),
            }
        }
        adopted.pods.sort_by(|a, b| a.uid().cmp(b.uid()));
        adopted.dead.sort_by(|a, b| a.uid.cmp(&b.uid));
        adopted.failed.sort_by(|a, b| a.uid.cmp(&b.uid));
        Ok(adopted)
    }

    async fn adopt_one(&self, uid: String) -> Result<Found, RuntimeError> {
        let pod_dir = self.pod_dir(&uid);
        let record = match PodRecord::read(&pod_dir) {
            Ok(record) => Some(record),
            Err(e @ RecordError::Newer { .. }) => return Err(RuntimeError::Record { uid, source: e }),
            // Cut off while it was made, or damaged: there is nothing to go on with.
            Err(RecordError::Unreadable(_)) => None,
        };
        if let Some(record) = &record {
            let open = Pod::open(pod_dir.clone(), self.0.config.clone(), record.clone());
            match timeout(ADOPT_BOUND, open).await {
                Ok(Ok(pod)) => return Ok(Found::Alive(pod)),
                Ok(Err(RuntimeError::ShimGone { .. })) => {}
                // A shim that is there but cannot be spoken with keeps its pod; somebody has to look.
                Ok(Err(e)) => return Err(e),
                Err(_) => {
                    let reason = format!("no answer within {} s", ADOPT_BOUND.as_secs());
                    return Err(RuntimeError::Protocol { uid, reason });
                }
            }
        }
        let (namespace, name) = record.map(|r| (r.namespace, r.name)).unwrap_or_default();
        let instance = self.0.config.instance.clone();
        blocking("clear a dead pod", move || {
            let records = pods::container_records(&uid, &pod_dir)?;
            pods::kill_dead(&instance, &uid)?;
            let containers = records.into_iter().map(|r| ended(r.status)).collect();
            Ok(Found::Dead(DeadPod { uid, namespace, name, containers }))
        })
        .await
    }

    /// A pod that could not be adopted; with a handle if its shim lives, so that it can be asked again.
    fn unadopted(&self, uid: String, error: RuntimeError) -> UnadoptedPod {
        let record = PodRecord::read(&self.pod_dir(&uid)).ok();
        let pod = record.and_then(|record| Pod::unheard(self.pod_dir(&uid), self.0.config.clone(), record));
        UnadoptedPod { uid, error, pod }
    }

    /// Deletes what starts and pods that were cut off left in the directory of writable layers, which has one of each
    /// pod by its uid: all but that of the pods of `keep`. Returns how many pods it was of.
    ///
    /// # Assumptions
    /// No pod is made or started meanwhile; pods that are not in `keep` have no processes.
    pub async fn sweep_scratch(&self, scratch: PathBuf, keep: HashSet<String>) -> Result<usize, RuntimeError> {
        let aside = blocking("sweep writable layers", move || pods::set_aside_stale(&scratch, &keep)).await?;
        let count = aside.len();
        // A thread of its own, for which no runtime waits as it ends: it dies with the agent, and the next one goes on.
        let sweep = std::thread::Builder::new().name("sweep".to_owned()).spawn(move || trash::delete(&aside));
        sweep.map(|_| count).map_err(|e| RuntimeError::io("make a thread that deletes writable layers", e))
    }

    /// Limits all pods of other owners together, those that run and those to come, in the place of earlier limits.
    ///
    /// # Errors
    /// Where the kernel refuses, as version 1 of cgroups does while more memory is in use: what held before holds on.
    pub async fn limit_guests(&self, limits: GuestLimits) -> Result<(), RuntimeError> {
        let cgroup = guests_cgroup(&self.0.config.instance);
        let limit = move || {
            let cgroups = Cgroups::find().map_err(|e| RuntimeError::io("find cgroups", e))?;
            cgroups.limit_guests(&cgroup, &limits).map_err(|e| RuntimeError::io("limit the pods of other owners", e))
        };
        blocking("limit the pods of other owners", limit).await
    }

    /// Deletes what is left of a pod without a shim: processes, cgroups, writable layers, records.
    pub async fn forget(&self, uid: &str) -> Result<(), RuntimeError> {
        check_uid(uid)?;
        let (config, uid) = (self.0.config.clone(), uid.to_owned());
        blocking("forget a pod", move || pods::clear_dead(&config.run_dir, &config.instance, &uid)).await
    }
}

enum Found {
    Alive(Pod),
    Dead(DeadPod),
    Failed(UnadoptedPod),
}

/// A container that ran when its shim died: nobody knows how it ended.
fn ended(mut status: crate::model::ContainerStatus) -> crate::model::ContainerStatus {
    if let ContainerState::Running { started_at, .. } = status.state {
        let finished_at = std::time::SystemTime::now();
        status.state =
            ContainerState::Exited { exit_code: None, signal: None, oom_killed: false, started_at, finished_at };
    }
    status
}

fn check_uid(uid: &str) -> Result<(), RuntimeError> {
    let ok = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
    if uid.is_empty() || uid.len() > MAX_UID || !uid.bytes().all(ok) || matches!(uid, "shims" | "guests") {
        let reason = format!("{uid:?} must be 1 to {MAX_UID} of letters, digits, '-', '_'");
        return Err(RuntimeError::BadSandbox { field: "uid", reason });
    }
    Ok(())
}

fn check_sandbox(sandbox: &PodSandbox) -> Result<(), RuntimeError> {
    check_uid(&sandbox.uid)?;
    if sandbox.hostname.is_empty() || sandbox.hostname.len() > MAX_HOSTNAME || sandbox.hostname.contains('\0') {
        let reason = format!("must be 1 to {MAX_HOSTNAME} bytes");
        return Err(RuntimeError::BadSandbox { field: "hostname", reason });
    }
    child::check_memory(&sandbox.memory, sandbox.id_map)
        .map_err(|reason| RuntimeError::BadSandbox { field: "memory", reason })?;
    child::check_id_map(sandbox.id_map).map_err(|e| RuntimeError::BadSandbox { field: "id_map", reason: e.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_came_too_late_is_not_taken_for_the_next() {
        let (ours, theirs) = wire::packet_pair().expect("pairs");
        let own = std::process::id() as i32;
        let dir = tempfile::tempdir().expect("temporary directory");
        let config = ZygoteConfig {
            run_dir: dir.path().to_path_buf(),
            instance: "late".to_owned(),
            data_dir: dir.path().to_path_buf(),
        };
        let pidfd = sys::pidfd_open(own).expect("this process lives");
        let zygote = Zygote { socket: ours, pidfd, pid: nix::unistd::Pid::from_raw(own), config };
        let runtime = Runtime::new(zygote).expect("starts");
        let say = move |id, outcome| wire::send_message(theirs.as_fd(), &ForkReply { id, outcome }, &[]);
        // Of a request that was given up before this one.
        say(0, ForkOutcome::Failed { reason: "of another".to_owned() }).expect("sends");
        say(1, ForkOutcome::Forked { pid: own }).expect("sends");
        say(1, ForkOutcome::Failed { reason: "of the first".to_owned() }).expect("sends");
        say(2, ForkOutcome::Failed { reason: "of the second".to_owned() }).expect("sends");
        let netns = || fs::File::open("/dev/null").expect("is there").into();
        let fork = async |uid| {
            let (_, conn) = wire::stream_pair().expect("pairs");
            runtime.fork_shim(uid, &netns(), conn).await
        };
        assert_eq!(fork("a").await.expect("its own answer").pid, own);
        let error = fork("b").await.expect_err("its own answer");
        assert_eq!(error.to_string(), "pod b: of the second");
    }
}
