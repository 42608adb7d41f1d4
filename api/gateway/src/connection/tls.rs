//! A TLS connection: routed by its name, copied to the device, never opened.

use std::{net::SocketAddr, sync::Arc};

use hearth_types::{
    routes::RouteEntry,
    tunnel::{Dialer, IngressHeader, StreamKind},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use super::{Shared, bounded, refuse};
use crate::{
    alert::Alert,
    copy::{End, both_ways},
    limits,
};

/// Serves a connection whose hello has been read, and says what became of it.
pub(super) async fn serve<D>(
    shared: &Arc<Shared<D>>,
    socket: TcpStream,
    caller: SocketAddr,
    hello: Vec<u8>,
    name: Option<String>,
) -> &'static str
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    let Some(name) = name else {
        refuse(socket, &Alert::UnrecognizedName.record()).await;
        return "no_name";
    };
    let Some(route) = shared.routes.lookup(&name) else {
        tracing::debug!(name, "refused a name that nobody has");
        refuse(socket, &Alert::UnrecognizedName.record()).await;
        return "unknown_name";
    };
    let begun = Instant::now();
    let opened = tokio::select! {
        () = shared.cut.cancelled() => None,
        opened = open(shared, &route, caller, &hello) => opened,
    };
    let Some(stream) = opened else {
        refuse(socket, &Alert::InternalError.record()).await;
        return "unreachable";
    };
    shared.metrics.open_seconds.observe(begun.elapsed().as_secs_f64());
    drop(hello);
    copy(shared, socket, stream, &name).await;
    "routed"
}

/// A stream to the first device of the route that answers, with the caller's address and the hello on their way.
async fn open<D>(shared: &Shared<D>, route: &RouteEntry, caller: SocketAddr, hello: &[u8]) -> Option<D::Stream>
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    let caller = SocketAddr::new(caller.ip().to_canonical(), caller.port());
    let mut beginning = IngressHeader { caller }.encode();
    beginning.extend_from_slice(hello);
    for device in route.devices.iter().take(limits::MAX_DEVICES_TRIED) {
        let attempt = async {
            let mut stream =
                shared.dialer.dial(device, StreamKind::Ingress).await.map_err(|error| error.to_string())?;
            stream.write_all(&beginning).await.map_err(|error| error.to_string())?;
            stream.flush().await.map_err(|error| error.to_string())?;
            Ok::<_, String>(stream)
        };
        match bounded(limits::DIAL_TIMEOUT, attempt).await {
            Some(Ok(stream)) => return Some(stream),
            Some(Err(error)) => tracing::debug!(host = route.hostname, %device, error, "a device cannot be reached"),
            None => tracing::debug!(host = route.hostname, %device, "a device did not answer in time"),
        }
    }
    tracing::info!(host = route.hostname, devices = route.devices.len(), "no device of a route can be reached");
    None
}

async fn copy<D>(shared: &Shared<D>, socket: TcpStream, stream: D::Stream, name: &str)
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    let metrics = &shared.metrics;
    let copied = both_ways(socket, stream, shared.limits.idle, (&metrics.to_device, &metrics.to_caller));
    let reason = tokio::select! {
        () = shared.cut.cancelled() => "shutdown",
        copied = copied => match copied {
            Ok(End::Done) => "done",
            Ok(End::Idle) => "idle",
            Err(error) => {
                tracing::debug!(name, %error, "a connection broke");
                "error"
            }
        },
    };
    metrics.ended.with_label_values(&[reason]).inc();
}
