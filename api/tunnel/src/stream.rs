//! A stream of a tunnel, as bytes.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use hearth_types::tunnel::HeaderVersion;
use iroh::endpoint::{Connection, RecvStream, SendStream};
use prometheus::{IntCounter, IntGauge};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::quic::{self, code};

/// Counts a tunnel's streams, so that a tunnel without any can close. One is held from before a stream is opened
/// until it is dropped.
#[derive(Debug)]
pub(crate) struct StreamGuard {
    live: Arc<AtomicUsize>,
    gauge: IntGauge,
}

impl StreamGuard {
    pub(crate) fn new(live: &Arc<AtomicUsize>, gauge: &IntGauge) -> Self {
        live.fetch_add(1, Ordering::AcqRel);
        gauge.inc();
        Self { live: live.clone(), gauge: gauge.clone() }
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::AcqRel);
        self.gauge.dec();
    }
}

/// Counters of bytes, as this end sees them.
#[derive(Clone, Debug)]
pub(crate) struct ByteCounters {
    pub(crate) received: IntCounter,
    pub(crate) sent: IntCounter,
}

/// Who is at the other end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPeer {
    /// Its Ed25519 public key.
    pub key: [u8; 32],
}

/// One bidirectional stream of a tunnel.
///
/// Guarantees: bytes arrive complete and in order, or reading fails. `shutdown` ends this end's direction alone
/// (half close): the peer reads an end of file once it has read everything before it, and can still write.
/// A stream that is dropped before its `shutdown` is reset: the peer's reads fail instead of ending early, and bytes
/// not yet delivered are given up. Flushing is not needed.
#[derive(Debug)]
pub struct TunnelStream {
    send: SendStream,
    recv: RecvStream,
    peer: StreamPeer,
    version: HeaderVersion,
    finished: bool,
    bytes: ByteCounters,
    _guard: StreamGuard,
}

impl TunnelStream {
    pub(crate) fn new(
        (send, recv): (SendStream, RecvStream),
        connection: &Connection,
        bytes: ByteCounters,
        guard: StreamGuard,
    ) -> Self {
        let peer = StreamPeer { key: *connection.remote_id().as_bytes() };
        let version = quic::header_version(connection);
        Self { send, recv, peer, version, finished: false, bytes, _guard: guard }
    }

    /// The newest header of an ingress stream that the other end reads.
    pub fn header_version(&self) -> HeaderVersion {
        self.version
    }

    /// Who is at the other end.
    pub fn peer(&self) -> StreamPeer {
        self.peer
    }

    /// Ends both directions at once; the peer's reads and writes fail.
    pub fn reset(self) {
        // Dropping does it.
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        if !self.finished {
            // An error means that it has ended already, which is what is wanted.
            let _ = self.send.reset(code::ABORTED);
        }
        let _ = self.recv.stop(code::ABORTED);
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf));
        self.bytes.received.inc_by((buf.filled().len() - before) as u64);
        Poll::Ready(result)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf))?;
        self.bytes.sent.inc_by(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        self.finished = true;
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}

impl tonic::transport::server::Connected for TunnelStream {
    type ConnectInfo = StreamPeer;

    fn connect_info(&self) -> StreamPeer {
        self.peer
    }
}
