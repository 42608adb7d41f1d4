//! Queries in datagrams.

use tokio::net::UdpSocket;

use crate::{Transport, limits, server::Responder};

/// Answers datagrams for ever. Several tasks may read one socket.
pub(crate) async fn serve(socket: &UdpSocket, responder: &Responder) {
    let mut buffer = vec![0; limits::MAX_QUERY];
    loop {
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "cannot receive DNS queries over UDP; trying again");
                tokio::time::sleep(limits::ERROR_PAUSE).await;
                continue;
            }
        };
        // Nobody can receive at port 0.
        if source.port() == 0 {
            continue;
        }
        let Some(answer) = responder.respond(&buffer[..length], Transport::Udp, source.ip()) else { continue };
        if let Err(error) = socket.send_to(&answer, source).await {
            // Whoever forges addresses that have no route makes these, so they are no news.
            tracing::debug!(%error, %source, "cannot send a DNS answer over UDP");
            responder.metrics.unsent.inc();
        }
    }
}
