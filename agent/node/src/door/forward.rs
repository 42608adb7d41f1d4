//! `port-forward`: one connection to a port of a pod's loopback, from inside its network namespace.

use std::{io, sync::Arc, time::Duration};

use hearth_proto::v1::{self, port_forward_input::Input, port_forward_output::Output};
use hearth_types::Reason;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming};

use super::{Answers, QUEUE, find_pod, refuse};
use crate::{files::chain, shared::Shared};

/// Forwarded connections of a device at a time: each has a stream of the tunnel, of which it has 1,000, and a few buffers.
pub(super) const MAX_FORWARDS: usize = 256;
/// How long a client may take to say where to.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of one message.
const CHUNK: usize = 32 << 10;

type Sender = mpsc::Sender<Result<v1::PortForwardOutput, Status>>;

pub(super) async fn serve(
    shared: &Arc<Shared>,
    forwards: &Arc<Semaphore>,
    mut input: Streaming<v1::PortForwardInput>,
) -> Result<Answers<v1::PortForwardOutput>, Status> {
    let permit = Arc::clone(forwards).try_acquire_owned().map_err(|_| {
        let text = format!("this device forwards {MAX_FORWARDS} connections already: close some of them");
        refuse(Reason::ServiceUnavailable, text)
    })?;
    let first = timeout(START_TIMEOUT, input.message()).await;
    let first = first.map_err(|_| refuse(Reason::BadRequest, "port-forward: nothing was asked for in time"))??;
    let Some(Input::Start(start)) = first.and_then(|message| message.input) else {
        return Err(refuse(Reason::BadRequest, "port-forward: the first message must say where to"));
    };
    let port = u16::try_from(start.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| refuse(Reason::BadRequest, "port-forward: the port must be from 1 to 65535"))?;
    let entry = find_pod(shared, &start.namespace, &start.pod)?;
    let sandbox = entry.snapshot.borrow().sandbox.clone();
    let sandbox = sandbox.ok_or_else(|| {
        let phase = entry.snapshot.borrow().phase;
        let text = format!("unable to forward port because pod is not running. Current status={phase:?}");
        refuse(Reason::BadRequest, text)
    })?;
    let netns = sandbox.netns().map_err(|error| refuse(Reason::InternalError, chain(&error)))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let connected = shared.network.connect_inside(netns, port).await;
        let done = match connected {
            Ok(stream) => carry(stream, input, &sender, permit).await.map_err(|error| error.to_string()),
            Err(error) => Err(chain(&error)),
        };
        if let Err(why) = done {
            // The client may be gone; then nobody needs to know.
            let _ = sender.send(Ok(message(Output::Error(why)))).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn message(output: Output) -> v1::PortForwardOutput {
    v1::PortForwardOutput { output: Some(output) }
}

/// Carries bytes both ways until both sides have said all, or the client is gone.
async fn carry(
    stream: TcpStream,
    input: Streaming<v1::PortForwardInput>,
    sender: &Sender,
    _permit: OwnedSemaphorePermit,
) -> io::Result<()> {
    // What is typed goes at once.
    let _ = stream.set_nodelay(true);
    if sender.send(Ok(message(Output::Connected(true)))).await.is_err() {
        return Ok(());
    }
    let (from_pod, to_pod) = stream.into_split();
    tokio::select! {
        both = async { tokio::try_join!(read(from_pod, sender), write(to_pod, input)) } => both.map(drop),
        // It does not come back for more, though the pod may have nothing to say for hours.
        () = sender.closed() => Ok(()),
    }
}

async fn read(mut from: OwnedReadHalf, sender: &Sender) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = from.read(&mut buffer).await?;
        let output = if count == 0 { Output::Closed(true) } else { Output::Data(buffer[..count].to_vec().into()) };
        if sender.send(Ok(message(output))).await.is_err() || count == 0 {
            return Ok(());
        }
    }
}

/// Ends once the client has closed its half. A client that breaks off is an error, with which both halves end.
async fn write(mut to: OwnedWriteHalf, mut input: Streaming<v1::PortForwardInput>) -> io::Result<()> {
    loop {
        match input.next().await {
            Some(Ok(v1::PortForwardInput { input: Some(Input::Data(data)) })) => match to.write_all(&data).await {
                Ok(()) => {}
                // It reads no more, and may still have something to say.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(error),
            },
            Some(Ok(v1::PortForwardInput { input: Some(Input::Closed(true)) })) => return to.shutdown().await,
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(io::Error::other("the client is gone")),
        }
    }
}
