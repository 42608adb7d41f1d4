//! Copying both ways between a caller and a device.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};

use crate::limits::{COPY_BUFFER, HALF_CLOSED_IDLE};

/// How a copied connection ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both directions ended.
    Done,
    /// Neither direction moved for too long.
    Idle,
}

/// Copies both ways until both directions have ended, one fails, or nothing moves for `idle`.
///
/// Guarantees: what one side does not take, the other is not read for: at most [`COPY_BUFFER`] bytes a
/// direction are held. An end of file is passed on as a half close. A failure of either direction ends both.
pub(crate) async fn both_ways<A, B>(
    caller: A,
    device: B,
    idle: Duration,
    (to_device, to_caller): (&IntCounter, &IntCounter),
) -> io::Result<End>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (caller_reads, caller_writes) = tokio::io::split(caller);
    let (device_reads, device_writes) = tokio::io::split(device);
    let progress = Progress::new();
    let inwards = one_way(caller_reads, device_writes, &progress, to_device);
    let outwards = one_way(device_reads, caller_writes, &progress, to_caller);
    let copied = async { tokio::try_join!(inwards, outwards) };
    tokio::select! {
        result = copied => result.map(|_| End::Done),
        () = progress.stalls(idle) => Ok(End::Idle),
    }
}

/// When something last moved, and whether a direction has ended.
struct Progress {
    begun: Instant,
    /// Milliseconds after `begun`.
    moved: AtomicU64,
    ended: AtomicU64,
}

impl Progress {
    fn new() -> Self {
        Self { begun: Instant::now(), moved: AtomicU64::new(0), ended: AtomicU64::new(0) }
    }

    fn note(&self) {
        self.moved.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns when nothing has moved for `idle`, or for the shorter bound when one direction has ended.
    async fn stalls(&self, idle: Duration) {
        loop {
            let half_closed = self.ended.load(Ordering::Relaxed) > 0;
            let bound = if half_closed { idle.min(HALF_CLOSED_IDLE) } else { idle };
            let due = self.begun + Duration::from_millis(self.moved.load(Ordering::Relaxed)) + bound;
            let now = Instant::now();
            if due <= now {
                return;
            }
            // Looking again from time to time notices a half close.
            tokio::time::sleep_until(due.min(now + HALF_CLOSED_IDLE)).await;
        }
    }
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    progress: &Progress,
    bytes: &IntCounter,
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BUFFER].into_boxed_slice();
    loop {
        let read = from.read(&mut buffer).await?;
        progress.note();
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read]).await?;
        bytes.inc_by(read as u64);
        progress.note();
    }
    progress.ended.fetch_add(1, Ordering::Relaxed);
    to.shutdown().await
}
