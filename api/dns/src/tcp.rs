//! Queries over connections (RFC 7766): many on one, answered in their order.

use std::{io, net::IpAddr, sync::Arc};

use hearth_types::callers::{Full, Slot, Slots};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::{Transport, limits, server::Responder};

/// Bytes of the length before each message (RFC 1035 section 4.2.2).
const LENGTH: usize = 2;

/// Accepts and serves connections for ever; dropping this closes them.
pub(crate) async fn serve(listener: &TcpListener, slots: &Slots, responder: &Arc<Responder>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a DNS connection died of a defect");
                }
                continue;
            }
        };
        let (mut stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept DNS connections; trying again");
                tokio::time::sleep(limits::ERROR_PAUSE).await;
                continue;
            }
        };
        let slot = match slots.take(client.ip()) {
            Ok(slot) => slot,
            Err(full) => {
                let limit = match full {
                    Full::All => "connections",
                    Full::Caller => "connections_of_client",
                };
                responder.metrics.tcp_refused.with_label_values(&[limit]).inc();
                continue;
            }
        };
        responder.metrics.tcp_open.inc();
        let open = Open { responder: Arc::clone(responder), _slot: slot };
        connections.spawn(async move {
            if let Err(error) = converse(&mut stream, client.ip(), &open.responder).await {
                tracing::debug!(%error, %client, "a DNS connection ended early");
            }
        });
    }
}

/// An open connection, counted until it is dropped, also if its task is cut off.
struct Open {
    responder: Arc<Responder>,
    _slot: Slot,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.responder.metrics.tcp_open.dec();
    }
}

/// Answers until the client closes, is silent for too long, or sends what is no DNS.
async fn converse(stream: &mut TcpStream, client: IpAddr, responder: &Responder) -> io::Result<()> {
    // An answer is one small write; waiting for more to put into the packet only delays it.
    stream.set_nodelay(true)?;
    let mut message = Vec::new();
    loop {
        let mut first = [0];
        if timeout(responder.tcp_idle, stream.read(&mut first)).await?? == 0 {
            return Ok(());
        }
        timeout(responder.tcp_transfer, async {
            let length = usize::from(u16::from_be_bytes([first[0], stream.read_u8().await?]));
            if length > limits::MAX_QUERY {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a query of {length} bytes is too long"),
                ));
            }
            message.resize(length, 0);
            stream.read_exact(&mut message).await
        })
        .await??;
        let Some(answer) = responder.respond(&message, Transport::Tcp, client) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is no query"));
        };
        // One write, so that the length does not travel alone (RFC 7766 section 8).
        let mut framed = Vec::with_capacity(LENGTH + answer.len());
        framed.extend_from_slice(&(answer.len() as u16).to_be_bytes());
        framed.extend_from_slice(&answer);
        timeout(responder.tcp_transfer, stream.write_all(&framed)).await??;
    }
}
