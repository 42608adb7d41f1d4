//! Backups as streams: written by a thread, sent as fast as the caller reads.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use hearth_proto::v1::BackupChunk;
use hearth_types::{BoxFuture, Reason, Status};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;

use super::convert::grpc;

/// Backups under way at most: each keeps the state of its moment in memory.
const MAX_BACKUPS: usize = 2;
/// Bytes of a chunk at most.
const CHUNK: usize = 256 << 10;
/// Chunks that wait for the caller.
const CHUNKS_AHEAD: usize = 4;
/// How long a caller may take none before the backup is given up.
const STALL: Duration = Duration::from_mins(1);

/// Writes a backup. Blocks.
pub type Frozen = Box<dyn FnOnce(&mut dyn io::Write) -> io::Result<()> + Send>;

/// What backups are made of.
pub trait BackupSource: Send + Sync + 'static {
    /// Takes the region as it is now, with every write that was acknowledged before; what it returns writes it out.
    fn freeze(&self) -> BoxFuture<'_, Result<Frozen, Status>>;
}

/// The source of a server that makes no backups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoBackups;

impl BackupSource for NoBackups {
    fn freeze(&self) -> BoxFuture<'_, Result<Frozen, Status>> {
        Box::pin(std::future::ready(Err(Status::unavailable("this server makes no backups"))))
    }
}

/// A backup on its way.
pub(crate) type Chunks = ReceiverStream<Result<BackupChunk, tonic::Status>>;

/// Makes backups, a bounded number at a time.
pub(crate) struct Backups {
    source: Arc<dyn BackupSource>,
    room: Arc<Semaphore>,
}

impl Backups {
    pub(crate) fn new(source: Arc<dyn BackupSource>) -> Self {
        Self { source, room: Arc::new(Semaphore::new(MAX_BACKUPS)) }
    }

    /// Begins a backup.
    pub(crate) async fn begin(&self) -> Result<Chunks, Status> {
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            let why = format!("{MAX_BACKUPS} backups are being made; try again when one is done");
            Status::new(Reason::TooManyRequests, why)
        })?;
        let frozen = self.source.freeze().await?;
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let runtime = Handle::current();
        // Ends by itself: with the backup, with its caller, or when that takes nothing for too long.
        tokio::task::spawn_blocking(move || send(frozen, Sender { sender, runtime }, room));
        Ok(ReceiverStream::new(receiver))
    }
}

fn send(frozen: Frozen, mut out: Sender, _room: OwnedSemaphorePermit) {
    match frozen(&mut out) {
        Ok(()) => tracing::info!("a backup of the region was taken"),
        Err(error) => {
            tracing::warn!(%error, "a backup was not finished");
            let _ = out.send(Err(grpc(Status::internal(format!("the backup was not finished: {error}")))));
        }
    }
}

/// Sends what is written to it.
struct Sender {
    sender: mpsc::Sender<Result<BackupChunk, tonic::Status>>,
    runtime: Handle,
}

impl Sender {
    fn send(&self, chunk: Result<BackupChunk, tonic::Status>) -> io::Result<()> {
        match self.runtime.block_on(tokio::time::timeout(STALL, self.sender.send(chunk))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "its caller is gone")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "its caller takes nothing")),
        }
    }
}

impl io::Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(CHUNK)];
        self.send(Ok(BackupChunk { data: Bytes::copy_from_slice(bytes) }))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
