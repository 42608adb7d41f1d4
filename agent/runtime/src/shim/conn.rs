//! A connection of the shim: bytes in until a frame is whole, bytes out as the other side takes them.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use serde::Serialize;

use crate::{model::PodLease, wire};

/// Most bytes that may wait for a client that does not read; then it is cut off.
const MAX_PENDING: usize = 256 << 10;

/// What the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its request is still to come.
    Fresh,
    /// The one that the shim was born with, until the agent has said that it wants the pod.
    Maker,
    /// Waits for the helper of this number.
    Waiting(u64),
    /// Gets all events.
    Subscriber,
    /// Lives as long as the exec of this number.
    Exec(u64),
    /// Gets a container's output, and what it is given for that is with the container.
    Attached,
    /// Is closed once its last bytes are out.
    Closing,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: u64,
    pub(crate) fd: OwnedFd,
    pub(crate) role: Role,
    /// The client closed its half; only its answer is still to be sent.
    pub(crate) parked: bool,
    pub(crate) inbuf: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    out: VecDeque<(Vec<u8>, usize, Option<OwnedFd>)>,
    pending: usize,
}

impl Conn {
    pub(crate) fn new(id: u64, fd: OwnedFd, lease: Option<PodLease>) -> io::Result<Self> {
        // SAFETY: plain integers on a descriptor we own.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut conn = Self {
            id,
            fd,
            role: Role::Fresh,
            parked: false,
            inbuf: Vec::new(),
            fds: Vec::new(),
            out: VecDeque::new(),
            pending: 0,
        };
        let version = if lease.is_some() { wire::PROTOCOL } else { wire::WITHOUT_LEASE };
        let hello = wire::Hello { magic: wire::HELLO_MAGIC.to_owned(), version, pid: std::process::id(), lease };
        conn.push(&hello, None)?;
        Ok(conn)
    }

    pub(crate) fn wants_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Reads what is there; false at the end of the stream.
    pub(crate) fn read(&mut self) -> io::Result<bool> {
        let mut buf = [0; 4096];
        loop {
            match wire::recv(self.fd.as_fd(), &mut buf, &mut self.fds) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.inbuf.extend_from_slice(&buf[..n]);
                    if self.inbuf.len() > wire::MAX_FRAME + 4 || self.fds.len() > wire::MAX_FDS {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "more than one request may hold"));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            }
        }
    }

    /// Queues a frame, with a descriptor on its first byte, and sends what the socket takes.
    pub(crate) fn push<T: Serialize>(&mut self, value: &T, fd: Option<OwnedFd>) -> io::Result<()> {
        let bytes = wire::frame(value)?;
        self.pending += bytes.len();
        if self.pending > MAX_PENDING {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"));
        }
        self.out.push_back((bytes, 0, fd));
        self.flush()
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some((bytes, sent, fd)) = self.out.front_mut() {
            let raw: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
            match wire::send(self.fd.as_fd(), &bytes[*sent..], &raw) {
                Ok(n) => {
                    *fd = None;
                    *sent += n;
                    self.pending -= n;
                    if *sent == bytes.len() {
                        self.out.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
