//! Handle of a pod.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hearth_types::lease::Deadline;
use tokio::{sync::Mutex, time::timeout};

use super::{
    attach::{self, Attach},
    blocking,
    connection::Connection,
    exec::{self, Exec},
};
use crate::{
    cgroup::Cgroups,
    error::RuntimeError,
    model::{ContainerSpec, ContainerStatus, ExecSpec, IdMap, PodEvent, PodLease, Usage},
    pods,
    record::PodRecord,
    shim::container_id,
    sys,
    wire::{Reply, Request},
    zygote::ZygoteConfig,
};

/// How long the shim may take to answer what it answers at once.
const ANSWER_BOUND: Duration = Duration::from_secs(30);
/// How long what runs in helpers may take: a start (60 s), or killing what is slow to go (20 s), and a removal.
const WORK_BOUND: Duration = Duration::from_mins(3);

/// Handle of a pod, through its shim; cheap to clone. Dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Pod(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    config: ZygoteConfig,
    record: PodRecord,
    shim_pid: u32,
    shim: OwnedFd,
    /// As it was when this handle was made.
    lease: Option<PodLease>,
    /// The subscription; none after it was lost.
    events: Mutex<Option<Connection>>,
}

impl Pod {
    pub(super) async fn open(dir: PathBuf, config: ZygoteConfig, record: PodRecord) -> Result<Self, RuntimeError> {
        let events = subscribe(&record.uid, &dir).await?;
        let (shim_pid, lease) = (events.shim_pid, events.lease.clone());
        let gone = |_| RuntimeError::ShimGone { uid: record.uid.clone() };
        let shim = sys::pidfd_open(shim_pid as i32).map_err(gone)?;
        Ok(Self(Arc::new(Inner { dir, config, record, shim_pid, shim, lease, events: Mutex::new(Some(events)) })))
    }

    /// A handle of a pod whose shim lives and could not be spoken with; none if no such process lives.
    pub(super) fn unheard(dir: PathBuf, config: ZygoteConfig, record: PodRecord) -> Option<Self> {
        let shim = pods::living_shim(&config.instance, &record)?;
        let (shim_pid, events) = (record.shim_pid, Mutex::new(None));
        Some(Self(Arc::new(Inner { dir, config, shim_pid, shim, record, lease: None, events })))
    }

    /// Unique id.
    pub fn uid(&self) -> &str {
        &self.0.record.uid
    }

    /// Namespace of the pod.
    pub fn namespace(&self) -> &str {
        &self.0.record.namespace
    }

    /// Name of the pod.
    pub fn name(&self) -> &str {
        &self.0.record.name
    }

    /// Its ids on the host.
    pub fn id_map(&self) -> IdMap {
        self.0.record.id_map
    }

    /// Pid of the shim.
    pub fn shim_pid(&self) -> u32 {
        self.0.shim_pid
    }

    async fn ask(&self, request: &Request, bound: Duration) -> Result<Reply, RuntimeError> {
        let asked = async {
            let mut conn = Connection::open(self.uid(), &self.0.dir).await?;
            conn.send(request, &[]).await?;
            conn.receive().await
        };
        let late = |_| self.protocol(format!("no answer within {} s", bound.as_secs()));
        timeout(bound, asked).await.map_err(late)?
    }

    fn protocol(&self, reason: String) -> RuntimeError {
        RuntimeError::Protocol { uid: self.uid().to_owned(), reason }
    }

    /// Answers that mean the same for every request.
    fn other(&self, reply: Reply, container: &str) -> RuntimeError {
        let (uid, name) = (self.uid().to_owned(), container.to_owned());
        match reply {
            Reply::Refused { reason } => RuntimeError::Refused { uid, reason },
            Reply::NoSuchContainer => RuntimeError::NoSuchContainer { uid, name },
            Reply::StillRunning => RuntimeError::StillRunning { uid, name },
            Reply::StartFailed(e) => RuntimeError::Start(e),
            reply => self.protocol(format!("unexpected answer {reply:?}")),
        }
    }

    /// What an attempt of a container uses. Reads a few small files; nothing is told of one that is gone.
    pub fn usage(&self, container: &str, attempt: u32) -> Usage {
        let Ok(cgroups) = Cgroups::find() else { return Usage::default() };
        let id = container_id(container, attempt);
        // Whose guest a pod is, its shim alone knows.
        let found = pods::cgroups_of(&self.0.config.instance, self.uid()).map(|pod| cgroups.usage(&pod.join(&id)));
        found.into_iter().find(|usage| *usage != Usage::default()).unwrap_or_default()
    }

    /// A descriptor of the pod's network namespace.
    pub fn netns(&self) -> Result<OwnedFd, RuntimeError> {
        let gone = |_| RuntimeError::ShimGone { uid: self.uid().to_owned() };
        let file = std::fs::File::open(format!("/proc/{}/ns/net", self.0.shim_pid)).map_err(gone)?;
        // The shim lives, so the pid was its own when the file was opened.
        sys::pidfd_send_signal(self.0.shim.as_fd(), 0).map_err(gone)?;
        Ok(file.into())
    }

    /// Starts a container; returns when its program was executed.
    ///
    /// # Guarantees
    /// After a [`RuntimeError::Start`] nothing is left of the attempt, its writable layer included.
    ///
    /// # Errors
    /// [`RuntimeError::Start`] says why not.
    pub async fn start_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, RuntimeError> {
        let name = spec.name.clone();
        let beside = spec.processes_of.is_some();
        let spec = Box::new(spec);
        let request = if beside { Request::StartBeside(spec) } else { Request::Start(spec) };
        match self.ask(&request, WORK_BOUND).await? {
            Reply::Started(status) => Ok(status),
            reply => Err(self.other(reply, &name)),
        }
    }

    /// All containers that were started and not removed, in the order of their start.
    pub async fn status(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        match self.ask(&Request::Status, ANSWER_BOUND).await? {
            Reply::Status(all) => Ok(all),
            reply => Err(self.other(reply, "")),
        }
    }

    /// Waits for the next event. Cancel-safe. Clones share one stream: an event goes to one of those who wait.
    pub async fn wait_event(&self) -> Result<PodEvent, RuntimeError> {
        let mut events = self.0.events.lock().await;
        if let Some(conn) = events.as_mut() {
            match conn.receive().await {
                Ok(Reply::Exited(status)) => return Ok(PodEvent::Exited(status)),
                Ok(reply) => return Err(self.other(reply, "")),
                Err(RuntimeError::ShimGone { .. }) => *events = None,
                Err(e) => {
                    *events = None;
                    return Err(e);
                }
            }
        }
        match subscribe(self.uid(), &self.0.dir).await {
            Ok(conn) => {
                *events = Some(conn);
                Ok(PodEvent::Resync)
            }
            Err(RuntimeError::ShimGone { .. }) => Ok(PodEvent::ShimGone),
            Err(e) => Err(e),
        }
    }

    /// Sends a signal to the first process of the latest attempt of a container; one that ended is no error.
    pub async fn signal(&self, container: &str, signal: i32) -> Result<(), RuntimeError> {
        let request = Request::Signal { container: container.to_owned(), signal };
        match self.ask(&request, ANSWER_BOUND).await? {
            Reply::Done => Ok(()),
            reply => Err(self.other(reply, container)),
        }
    }

    /// Removes all attempts of a container that ended: cgroups, state, records, writable layers. Logs stay.
    pub async fn remove_container(&self, name: &str) -> Result<(), RuntimeError> {
        match self.ask(&Request::Remove { container: name.to_owned() }, WORK_BOUND).await? {
            Reply::Done => Ok(()),
            reply => Err(self.other(reply, name)),
        }
    }

    /// Runs a command in a running container.
    pub async fn exec(&self, spec: ExecSpec) -> Result<Exec, RuntimeError> {
        let conn = Connection::open(self.uid(), &self.0.dir).await?;
        match timeout(WORK_BOUND, exec::start(conn, spec)).await {
            Ok(Ok(exec)) => Ok(exec),
            Ok(Err(exec::Failed::Reply(reply))) => Err(self.other(reply, "")),
            Ok(Err(exec::Failed::Error(e))) => Err(e),
            Err(_) => Err(self.protocol(format!("not started within {} s", WORK_BOUND.as_secs()))),
        }
    }

    /// Attaches to the first process of a running container.
    ///
    /// # Errors
    /// [`RuntimeError::Refused`] where it has no input and some is asked for, or too many are attached; a shim of an older release refuses too.
    pub async fn attach(&self, container: &str, stdin: bool) -> Result<Attach, RuntimeError> {
        let conn = Connection::open(self.uid(), &self.0.dir).await?;
        match timeout(ANSWER_BOUND, attach::start(conn, container, stdin)).await {
            Ok(Ok(attach)) => Ok(attach),
            Ok(Err(exec::Failed::Reply(reply))) => Err(self.other(reply, container)),
            Ok(Err(exec::Failed::Error(e))) => Err(e),
            Err(_) => Err(self.protocol("no answer in time".to_owned())),
        }
    }

    /// The lease that its shim kept it to when this handle was made; none where it has none, also since its shim is of an older release.
    pub fn lease(&self) -> Option<&PodLease> {
        self.0.lease.as_ref()
    }

    /// The pod may run until then. `false`: its lease is over for good, or it has none; it has to be made anew.
    ///
    /// # Errors
    /// The shim cannot be spoken with. It ends the pod by itself.
    pub async fn renew_lease(&self, deadline: Deadline) -> Result<bool, RuntimeError> {
        if self.0.lease.is_none() {
            return Ok(false);
        }
        match self.ask(&Request::Renew { deadline }, ANSWER_BOUND).await? {
            Reply::Done => Ok(true),
            Reply::LeaseOver => Ok(false),
            reply => Err(self.other(reply, "")),
        }
    }

    /// Kills everything in the pod, removes cgroups, state, records and writable layers, and ends the shim. Works
    /// without a shim too.
    pub async fn destroy(self) -> Result<(), RuntimeError> {
        match self.ask(&Request::Destroy, WORK_BOUND).await {
            Ok(Reply::Done) => Ok(()),
            Ok(reply) => Err(self.other(reply, "")),
            Err(RuntimeError::ShimGone { .. }) => {
                let (config, uid) = (self.0.config.clone(), self.uid().to_owned());
                blocking("destroy a pod", move || pods::clear_dead(&config.run_dir, &config.instance, &uid)).await
            }
            Err(e) => Err(e),
        }
    }
}

async fn subscribe(uid: &str, dir: &std::path::Path) -> Result<Connection, RuntimeError> {
    let mut conn = Connection::open(uid, dir).await?;
    conn.send(&Request::Subscribe, &[]).await?;
    match timeout(ANSWER_BOUND, conn.receive()).await {
        Ok(Ok(Reply::Done)) => Ok(conn),
        Ok(Ok(reply)) => Err(conn.protocol(format!("unexpected answer {reply:?}"))),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(conn.protocol("no answer in time")),
    }
}
