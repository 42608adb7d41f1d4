//! A connection of the agent to a shim.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream as StdStream,
    },
    path::Path,
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::Interest, net::UnixStream, time::timeout};

use crate::{
    error::RuntimeError,
    model::PodLease,
    wire::{self, Hello},
};

/// How long a shim may take to say hello: it answers within a millisecond unless the machine is in trouble.
pub(super) const HELLO_BOUND: Duration = Duration::from_secs(30);
/// Pause before trying again while the shim's queue of connections is full.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Connection {
    uid: String,
    stream: UnixStream,
    inbuf: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    /// Pid of the shim, as it says.
    pub(super) shim_pid: u32,
    /// The lease that it keeps its pod to, as it said in its hello.
    pub(super) lease: Option<PodLease>,
}

impl Connection {
    /// Connects through the directory's descriptor: the path may be longer than the 107 bytes of an address.
    pub(super) async fn open(uid: &str, pod_dir: &Path) -> Result<Self, RuntimeError> {
        let gone = |_| RuntimeError::ShimGone { uid: uid.to_owned() };
        let dir = File::open(pod_dir).map_err(gone)?;
        let address = UnixAddr::new(format!("/proc/self/fd/{}/shim.sock", dir.as_raw_fd()).as_str())
            .map_err(|e| RuntimeError::io("address of a shim", e))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let deadline = tokio::time::Instant::now() + HELLO_BOUND;
        loop {
            let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
                .map_err(|e| RuntimeError::io("make a socket", e))?;
            match connect(fd.as_raw_fd(), &address) {
                Ok(()) => return Self::from_fd(uid, fd).await,
                Err(nix::errno::Errno::EAGAIN) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Err(nix::errno::Errno::ECONNREFUSED | nix::errno::Errno::ENOENT) => {
                    return Err(RuntimeError::ShimGone { uid: uid.to_owned() });
                }
                Err(e) => return Err(RuntimeError::io(format!("connect to the shim of pod {uid}"), e)),
            }
        }
    }

    /// Takes over a connected socket and waits for the hello.
    pub(super) async fn from_fd(uid: &str, fd: OwnedFd) -> Result<Self, RuntimeError> {
        let stream = StdStream::from(fd);
        let made = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        let stream = made.map_err(|e| RuntimeError::io("register a socket", e))?;
        let mut conn =
            Self { uid: uid.to_owned(), stream, inbuf: Vec::new(), fds: VecDeque::new(), shim_pid: 0, lease: None };
        let hello = timeout(HELLO_BOUND, conn.receive::<Hello>()).await;
        let hello = hello.map_err(|_| conn.protocol("no hello in time"))??;
        if hello.magic != wire::HELLO_MAGIC {
            return Err(conn.protocol("not a shim"));
        }
        if !(wire::OLDEST_PROTOCOL..=wire::PROTOCOL).contains(&hello.version) {
            let (theirs, ours) = (hello.version, wire::PROTOCOL);
            return Err(RuntimeError::Version { uid: uid.to_owned(), theirs, ours });
        }
        conn.shim_pid = hello.pid;
        conn.lease = hello.lease;
        Ok(conn)
    }

    pub(super) fn protocol(&self, reason: impl Into<String>) -> RuntimeError {
        RuntimeError::Protocol { uid: self.uid.clone(), reason: reason.into() }
    }

    fn broken(&self, e: &io::Error) -> RuntimeError {
        match e.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                RuntimeError::ShimGone { uid: self.uid.clone() }
            }
            _ => self.protocol(e.to_string()),
        }
    }

    /// Sends a frame with descriptors on its first byte.
    pub(super) async fn send<T: Serialize>(&mut self, value: &T, fds: &[RawFd]) -> Result<(), RuntimeError> {
        let bytes = wire::frame(value).map_err(|e| self.protocol(e.to_string()))?;
        let mut sent = 0;
        while sent < bytes.len() {
            let attach = if sent == 0 { fds } else { &[] };
            let stream = &self.stream;
            let write = || wire::send(stream.as_fd(), &bytes[sent..], attach);
            sent += stream.async_io(Interest::WRITABLE, write).await.map_err(|e| self.broken(&e))?;
        }
        Ok(())
    }

    /// Receives a frame. Cancel-safe: what arrived stays in the buffer.
    pub(super) async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, RuntimeError> {
        loop {
            match wire::take_frame(&mut self.inbuf) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(e) => return Err(self.protocol(e.to_string())),
            }
            let (stream, inbuf, fds) = (&self.stream, &mut self.inbuf, &mut self.fds);
            let read = || {
                let mut buf = [0; 16 << 10];
                let mut received = Vec::new();
                let n = wire::recv(stream.as_fd(), &mut buf, &mut received)?;
                inbuf.extend_from_slice(&buf[..n]);
                fds.extend(received);
                Ok(n)
            };
            match stream.async_io(Interest::READABLE, read).await {
                Ok(0) => return Err(RuntimeError::ShimGone { uid: self.uid.clone() }),
                Ok(_) => {}
                Err(e) => return Err(self.broken(&e)),
            }
        }
    }

    /// The next descriptor that came with a frame.
    pub(super) fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }

    /// Closes our half; the shim kills the command that this connection is for and still answers.
    pub(super) fn shut_down(&self) -> io::Result<()> {
        Ok(nix::sys::socket::shutdown(self.stream.as_raw_fd(), nix::sys::socket::Shutdown::Write)?)
    }
}
