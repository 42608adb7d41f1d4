//! How agent, zygote, shim and helpers speak: JSON in frames, descriptors as ancillary data.
//!
//! Agent and shim speak over a stream: the shim says [`Hello`], then each frame is a little-endian u32 and that many
//! bytes. JSON, because an agent and a shim of other releases meet: fields they do not know are ignored. Helpers (the
//! shim's short-lived children) and the zygote use SOCK_SEQPACKET pairs, where a message is a frame.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use hearth_types::lease::Deadline;
use nix::{
    cmsg_space,
    sys::socket::{self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::StartError,
    model::{ContainerSpec, ContainerStatus, ExecSpec, IdMap, MemoryVolume, PodLease, PodLimits},
};

/// Version of the protocol between agent and shim. An agent speaks all versions from [`OLDEST_PROTOCOL`] on. A shim says the lowest that its
/// pod needs: one that keeps a lease says 2, so that an agent of an older release, which would not renew it, leaves it alone.
pub(crate) const PROTOCOL: u32 = 2;
/// What a shim without a lease says.
pub(crate) const WITHOUT_LEASE: u32 = 1;
/// Oldest version of a shim that this agent can speak with.
pub(crate) const OLDEST_PROTOCOL: u32 = 1;
/// Largest frame in bytes: the environment of a container is the largest part, an API object is 1.5 MiB at most.
pub(crate) const MAX_FRAME: usize = 2 << 20;
/// Largest message of a helper or the zygote in bytes; texts of errors are cut to fit.
pub(crate) const MAX_MESSAGE: usize = 16 << 10;
/// Largest number of descriptors with one message: input, output, errors.
pub(crate) const MAX_FDS: usize = 3;

/// First frame on every connection, sent by the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Always "hearth-shim".
    pub(crate) magic: String,
    pub(crate) version: u32,
    pub(crate) pid: u32,
    /// The lease that it keeps its pod to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lease: Option<PodLease>,
}

pub(crate) const HELLO_MAGIC: &str = "hearth-shim";

/// What a shim must know of its pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodConfig {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) hostname: String,
    pub(crate) id_map: IdMap,
    pub(crate) resolv_conf: String,
    pub(crate) hosts: String,
    pub(crate) limits: PodLimits,
    /// Of another owner than the device's.
    #[serde(default)]
    pub(crate) guest: bool,
    /// Its containers have one PID namespace.
    #[serde(default)]
    pub(crate) share_processes: bool,
    #[serde(default)]
    pub(crate) memory: Vec<MemoryVolume>,
    /// Shims are forked of the agent that makes the pod, so none of an older release gets it.
    #[serde(default)]
    pub(crate) lease: Option<PodLease>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// First on the connection that the shim was born with.
    Setup(Box<PodConfig>),
    /// On that connection too: the pod is wanted. If it ends without this, the shim removes the pod again.
    Keep,
    Start(Box<ContainerSpec>),
    /// The same of one that joins the PID namespace of another: a kind of its own, so that a shim of an older release refuses it and does
    /// not start it in another place.
    StartBeside(Box<ContainerSpec>),
    Status,
    Subscribe,
    Signal {
        container: String,
        signal: i32,
    },
    Remove {
        container: String,
    },
    /// With the descriptors of its streams. The connection lives as long as the command.
    Exec(Box<ExecSpec>),
    /// With the write ends for output and errors. The connection lives as long as somebody is attached; its end in this direction is that of
    /// their input.
    Attach {
        container: String,
        stdin: bool,
    },
    /// The pod may run until then.
    Renew {
        deadline: Deadline,
    },
    Destroy,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Started(ContainerStatus),
    StartFailed(StartError),
    Status(Vec<ContainerStatus>),
    /// Many, on a subscribed connection.
    Exited(ContainerStatus),
    /// With the master of the terminal, if one was asked for.
    ExecStarted,
    ExecExited {
        code: i32,
    },
    /// With the container's input, or the master of its terminal, where there is one for this caller. [`Reply::Done`] follows when the
    /// container has ended.
    Attached {
        terminal: bool,
    },
    NoSuchContainer,
    StillRunning,
    /// There is no lease, or it is over for good: the pod has to be made anew.
    LeaseOver,
    Refused {
        reason: String,
    },
}

/// From agent to zygote, with the network namespace and the shim's end of its first connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ForkShim {
    /// Names the request, for an answer may come after nobody waits for it any more.
    pub(crate) id: u64,
    pub(crate) uid: String,
}

/// From zygote to agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ForkReply {
    /// Of the request; 0 is the zygote's word that it is ready.
    pub(crate) id: u64,
    pub(crate) outcome: ForkOutcome,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ForkOutcome {
    Forked { pid: i32 },
    Failed { reason: String },
}

/// From a helper to its shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum HelperMsg {
    /// The process exists.
    Created {
        pid: i32,
    },
    /// With the master of the command's terminal.
    Terminal,
    /// The next step is execve; end of file after this means that it worked.
    Executing,
    Failed(StartError),
    /// For helpers that start nothing.
    Done,
}

/// A connected pair of SOCK_SEQPACKET sockets, close-on-exec.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A connected pair of stream sockets, close-on-exec.
pub(crate) fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socket::socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends bytes with descriptors attached to the first; returns how many bytes went.
pub(crate) fn send(sock: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let iov = [IoSlice::new(bytes)];
    let rights = [ControlMessage::ScmRights(fds)];
    let cmsgs: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    loop {
        match socket::sendmsg::<()>(sock.as_raw_fd(), &iov, cmsgs, MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Receives bytes and descriptors (close-on-exec); 0 bytes is end of file.
pub(crate) fn recv(sock: BorrowedFd<'_>, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(buf)];
    let msg = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match socket::recvmsg::<()>(sock.as_raw_fd(), &mut iov, Some(&mut space), flags) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    for cmsg in msg.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = cmsg {
            // SAFETY: the kernel just installed these descriptors for us; nobody else knows them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(msg.bytes)
}

/// A value as a frame of the stream protocol.
pub(crate) fn frame<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, value)?;
    let len = out.len() - 4;
    if len > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("message of {len} bytes, at most {MAX_FRAME}"),
        ));
    }
    out[..4].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(out)
}

/// Takes the first complete frame out of `buf`, if there is one.
///
/// # Errors
/// A length above [`MAX_FRAME`], or bytes that are no such value: the stream cannot be used any more.
pub(crate) fn take_frame<T: DeserializeOwned>(buf: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some(head) = buf.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_le_bytes(*head) as usize;
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {len} bytes, at most {MAX_FRAME}")));
    }
    let Some(body) = buf.get(4..4 + len) else { return Ok(None) };
    let value = serde_json::from_slice(body)?;
    buf.drain(..4 + len);
    Ok(Some(value))
}

/// Sends one message over a SOCK_SEQPACKET socket.
pub(crate) fn send_message<T: Serialize>(sock: BorrowedFd<'_>, value: &T, fds: &[RawFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long"));
    }
    send(sock, &bytes, fds).map(drop)
}

/// Receives one message over a SOCK_SEQPACKET socket; none is end of file.
pub(crate) fn recv_message<T: DeserializeOwned>(sock: BorrowedFd<'_>, fds: &mut Vec<OwnedFd>) -> io::Result<Option<T>> {
    let mut buf = [0; MAX_MESSAGE];
    let n = recv(sock, &mut buf, fds)?;
    if n == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&buf[..n])?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_taken_one_by_one_and_only_when_complete() {
        let mut buf = frame(&Request::Status).expect("small");
        buf.extend(frame(&Request::Destroy).expect("small"));
        let tail = buf.split_off(buf.len() - 1);
        assert!(matches!(take_frame(&mut buf), Ok(Some(Request::Status))));
        assert!(matches!(take_frame::<Request>(&mut buf), Ok(None)), "one byte is missing");
        buf.extend(tail);
        assert!(matches!(take_frame(&mut buf), Ok(Some(Request::Destroy))));
        assert!(buf.is_empty());
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_its_bytes_arrive() {
        let mut buf = u32::MAX.to_le_bytes().to_vec();
        assert!(take_frame::<Request>(&mut buf).is_err());
    }

    #[test]
    fn fields_of_a_newer_release_are_ignored() {
        let mut hello = br#"....{"magic":"hearth-shim","version":7,"pid":1,"later":[1]}"#.to_vec();
        let len = (hello.len() - 4) as u32;
        hello[..4].copy_from_slice(&len.to_le_bytes());
        let hello: Hello = take_frame(&mut hello).expect("parses").expect("complete");
        assert_eq!(hello.version, 7);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = take_frame::<Request>(&mut bytes);
            let _ = take_frame::<Reply>(&mut bytes);
        }
    }
}
