//! Netlink sockets. They belong to the network namespace of the thread that opens them, and stay there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with, sockopt,
};

use super::{Batch, Message, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, error_code, messages};

/// One datagram of the kernel is at most 32 KiB (`NLMSG_GOODSIZE` and the dump's skb size), whatever the reader asks.
const RECEIVE_BYTES: usize = 32 * 1024;
/// Room for notifications that are not read yet: replacing the largest table of ours makes some MiB of them. Only what is used is taken.
const NOTIFICATIONS_BYTES: usize = 16 << 20;
/// The kernel answers at once; RTNL may be held for seconds by a driver, but not for this long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// A dump interrupted by changes is repeated; a host that changes faster than this is not going to settle.
const DUMP_ATTEMPTS: usize = 20;

/// Which part of the kernel a socket talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nf_tables.
    Netfilter,
}

/// A blocking netlink socket, or a nonblocking one that listens to notifications.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace; a nonzero mask of `groups` subscribes to notifications
    /// and makes it nonblocking.
    pub(crate) fn open(protocol: Protocol, groups: u32) -> io::Result<Self> {
        let protocol = match protocol {
            Protocol::Route => None,
            Protocol::Netfilter => Some(netlink::NETFILTER),
        };
        let mut flags = SocketFlags::CLOEXEC;
        if groups != 0 {
            flags |= SocketFlags::NONBLOCK;
        }
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        if groups != 0 {
            // Beyond the host's limit, which needs the privilege that the rest needs, too. Without, some are lost, which is noticed.
            let _ = sockopt::set_socket_recv_buffer_size_force(&fd, NOTIFICATIONS_BYTES);
        }
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { fd })
    }

    /// Sends all requests in one datagram and collects the answer to each, in order.
    pub(crate) fn transact(&self, batch: &Batch) -> io::Result<Vec<io::Result<()>>> {
        self.send(batch)?;
        let mut answers: Vec<Option<io::Result<()>>> = batch.doings().iter().map(|_| None).collect();
        let mut missing = answers.len();
        let mut buffer = vec![0u8; RECEIVE_BYTES];
        while missing > 0 {
            let len = self.receive(&mut buffer)?;
            for message in messages(&buffer[..len]).filter(|m| m.kind == NLMSG_ERROR) {
                let Some(slot) = (message.sequence as usize).checked_sub(1).and_then(|i| answers.get_mut(i)) else {
                    continue;
                };
                if slot.is_none() {
                    missing -= 1;
                }
                *slot = Some(match error_code(message.payload) {
                    Some(0) => Ok(()),
                    Some(code) => Err(io::Error::from_raw_os_error(code)),
                    None => Err(io::ErrorKind::InvalidData.into()),
                });
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Sends a transaction, of which the kernel does all or nothing: of its requests only number `acknowledged` (from 1)
    /// asks for an answer, and others answer where they fail. An error comes with the number of the request.
    pub(crate) fn transact_whole(&self, batch: &Batch, acknowledged: u32) -> Result<(), (u32, io::Error)> {
        self.send(batch).map_err(|e| (0, e))?;
        let mut buffer = vec![0u8; RECEIVE_BYTES];
        loop {
            let len = self.receive(&mut buffer).map_err(|e| (0, e))?;
            for message in messages(&buffer[..len]).filter(|m| m.kind == NLMSG_ERROR) {
                match error_code(message.payload) {
                    Some(0) if message.sequence == acknowledged => return Ok(()),
                    Some(0) => {}
                    code => {
                        let error = io::Error::from_raw_os_error(code.unwrap_or(libc::EIO));
                        return Err((message.sequence, error));
                    }
                }
            }
        }
    }

    /// Asks for a dump and maps each message of type `wanted` through `read`; repeated while changes interrupt it.
    pub(crate) fn dump<T>(
        &self,
        request: u16,
        fixed: &[u8],
        wanted: u16,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut batch = Batch::new();
            batch.push("dump", request, NLM_F_DUMP, fixed, |_| {});
            self.send(&batch)?;
            if let Some(found) = self.dump_once(wanted, &read)? {
                return Ok(found);
            }
        }
        Err(io::Error::other("the kernel's tables kept changing while they were read"))
    }

    /// Sends one question (without `NLM_F_ACK`) and reads the answer, a message of type `wanted`.
    pub(crate) fn get<T>(&self, question: &Batch, wanted: u16, read: impl Fn(&[u8]) -> Option<T>) -> io::Result<T> {
        self.send(question)?;
        let mut buffer = vec![0u8; RECEIVE_BYTES];
        loop {
            let len = self.receive(&mut buffer)?;
            for message in messages(&buffer[..len]) {
                if message.kind == NLMSG_ERROR {
                    return Err(io::Error::from_raw_os_error(error_code(message.payload).unwrap_or(libc::EIO)));
                }
                if message.kind == wanted {
                    return read(message.payload).ok_or_else(|| io::ErrorKind::InvalidData.into());
                }
            }
        }
    }

    fn dump_once<T>(&self, wanted: u16, read: &impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<Vec<T>>> {
        let mut found = Vec::new();
        let mut interrupted = false;
        let mut buffer = vec![0u8; RECEIVE_BYTES];
        loop {
            let len = self.receive(&mut buffer)?;
            for Message { kind, flags, payload, .. } in messages(&buffer[..len]) {
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match kind {
                    NLMSG_DONE => return Ok((!interrupted).then_some(found)),
                    NLMSG_ERROR => {
                        return Err(io::Error::from_raw_os_error(error_code(payload).unwrap_or(libc::EIO)));
                    }
                    kind if kind == wanted => found.extend(read(payload)),
                    _ => {}
                }
            }
        }
    }

    fn send(&self, batch: &Batch) -> io::Result<()> {
        sendto(&self.fd, batch.bytes(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    /// Reads one datagram of a notification socket; `WouldBlock` when there is none, `ENOBUFS` after an overflow.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(&self.fd, &mut *buffer, RecvFlags::empty()) {
                Ok((len, _)) => return Ok(len),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::os::fd::AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}
