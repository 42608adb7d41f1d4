//! The agent's side: handles to the zygote and to the shims.

mod connection;
mod exec;
mod pod;

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{io::unix::AsyncFd, sync::Mutex, time::timeout};

use self::connection::Connection;
pub use self::{
    exec::{Exec, ExecIo},
    pod::Pod,
};
use crate::{
    child,
    error::{RuntimeError, because},
    model::{Adopted, ContainerState, DeadPod, PodSandbox},
    pods,
    record::{ContainerRecord, PodRecord},
    wire::{self, ForkReply, ForkShim, PodConfig, Reply, Request},
    zygote::{Zygote, ZygoteConfig},
};

/// How long the zygote may take to fork.
const FORK_BOUND: Duration = Duration::from_secs(30);
/// How long a shim may take to make its pod.
const SETUP_BOUND: Duration = Duration::from_mins(1);
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
    socket: Mutex<AsyncFd<OwnedFd>>,
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
            socket: Mutex::new(watch(socket)?),
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
    /// After an error nothing is left of it.
    ///
    /// # Errors
    /// [`RuntimeError::BadSandbox`], [`RuntimeError::ZygoteGone`], or [`RuntimeError::CreatePod`] with the step that
    /// failed; a user namespace that cannot be made is such an error, never a pod without one.
    pub async fn create_pod(&self, sandbox: PodSandbox) -> Result<Pod, RuntimeError> {
        check_sandbox(&sandbox)?;
        let PodSandbox { uid, namespace, name, hostname, netns, id_map, resolv_conf, hosts, limits } = sandbox;
        let (ours, theirs) = wire::stream_pair().map_err(|e| RuntimeError::io("make a socket pair", e))?;
        self.fork_shim(&uid, &netns, theirs).await?;
        let mut conn = Connection::from_fd(&uid, ours).await?;
        let (record_namespace, record_name) = (namespace.clone(), name.clone());
        let config = PodConfig { uid: uid.clone(), namespace, name, hostname, id_map, resolv_conf, hosts, limits };
        conn.send(&Request::Setup(Box::new(config)), &[]).await?;
        let failed = |reason: String| RuntimeError::CreatePod { uid: uid.clone(), reason };
        match timeout(SETUP_BOUND, conn.receive::<Reply>()).await {
            Ok(Ok(Reply::Done)) => {}
            Ok(Ok(Reply::Refused { reason })) => return Err(failed(reason)),
            Ok(Ok(other)) => return Err(failed(format!("unexpected answer {other:?}"))),
            Ok(Err(e)) => return Err(failed(because("the shim ended", e))),
            Err(_) => return Err(failed(format!("not made within {} s", SETUP_BOUND.as_secs()))),
        }
        let record = PodRecord::new(&uid, &record_namespace, &record_name, id_map);
        Pod::open(self.pod_dir(&uid), self.0.config.clone(), record).await
    }

    async fn fork_shim(&self, uid: &str, netns: &OwnedFd, conn: OwnedFd) -> Result<(), RuntimeError> {
        let request = ForkShim { uid: uid.to_owned() };
        let fds = [netns.as_raw_fd(), conn.as_raw_fd()];
        let socket = self.0.socket.lock().await;
        let io = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => RuntimeError::ZygoteGone,
            _ => RuntimeError::io("speak with the zygote", e),
        };
        socket
            .async_io(tokio::io::Interest::WRITABLE, |s| wire::send_message(s.as_fd(), &request, &fds))
            .await
            .map_err(io)?;
        let receive = socket
            .async_io(tokio::io::Interest::READABLE, |s| wire::recv_message::<ForkReply>(s.as_fd(), &mut Vec::new()));
        match timeout(FORK_BOUND, receive).await {
            Ok(Ok(Some(ForkReply::Forked { .. }))) => Ok(()),
            Ok(Ok(Some(ForkReply::Failed { reason }))) => Err(RuntimeError::CreatePod { uid: uid.to_owned(), reason }),
            Ok(Ok(None)) => Err(RuntimeError::ZygoteGone),
            Ok(Err(e)) => Err(io(e)),
            Err(_) => {
                Err(RuntimeError::CreatePod { uid: uid.to_owned(), reason: "the zygote does not answer".to_owned() })
            }
        }
    }

    /// Finds the pods that the agent before left running, and those whose shim died meanwhile.
    ///
    /// # Guarantees
    /// Of a pod in [`Adopted::dead`] no process and no cgroup is left; its record stays until [`Runtime::forget`], so
    /// that an agent that dies before it acted on it hears of it again.
    pub async fn adopt(&self) -> Result<Adopted, RuntimeError> {
        let mut found = tokio::task::JoinSet::new();
        let dir = self.0.config.pods_dir();
        let entries = fs::read_dir(&dir).map_err(|e| RuntimeError::io(format!("list {}", dir.display()), e))?;
        for entry in entries.flatten() {
            let Ok(uid) = entry.file_name().into_string() else { continue };
            let runtime = self.clone();
            found.spawn(async move { runtime.adopt_one(uid).await });
        }
        let mut adopted = Adopted::default();
        while let Some(joined) = found.join_next().await {
            match joined.map_err(|e| RuntimeError::io("adopt pods", std::io::Error::other(e)))?? {
                Found::Alive(pod) => adopted.pods.push(pod),
                Found::Dead(dead) => adopted.dead.push(dead),
            }
        }
        adopted.pods.sort_by(|a, b| a.uid().cmp(b.uid()));
        adopted.dead.sort_by(|a, b| a.uid.cmp(&b.uid));
        Ok(adopted)
    }

    async fn adopt_one(&self, uid: String) -> Result<Found, RuntimeError> {
        let pod_dir = self.pod_dir(&uid);
        let record = PodRecord::read(&pod_dir);
        if let Ok(record) = &record {
            match Pod::open(pod_dir.clone(), self.0.config.clone(), record.clone()).await {
                Ok(pod) => return Ok(Found::Alive(pod)),
                Err(RuntimeError::ShimGone { .. }) => {}
                // A shim that is there but cannot be spoken with keeps its pod; somebody has to look.
                Err(e) => return Err(e),
            }
        }
        let (namespace, name) = record.map(|r| (r.namespace, r.name)).unwrap_or_default();
        let instance = self.0.config.instance.clone();
        blocking("clear a dead pod", move || {
            pods::kill_dead(&instance, &uid)?;
            let containers = ContainerRecord::read_all(&pod_dir).into_iter().map(|r| ended(r.status)).collect();
            Ok(Found::Dead(DeadPod { uid, namespace, name, containers }))
        })
        .await
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
    if uid.is_empty() || uid.len() > MAX_UID || !uid.bytes().all(ok) || uid == "shims" {
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
    child::check_id_map(sandbox.id_map).map_err(|e| RuntimeError::BadSandbox { field: "id_map", reason: e.to_owned() })
}
