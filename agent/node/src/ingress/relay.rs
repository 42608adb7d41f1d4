//! A connection to a port of a Route: bytes to the pod and back, as they come.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{Ingress, RouteView, header::Call, place::Place, target};

/// How long a pod may take to accept a connection: it is on the same machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Carries the bytes until both sides have ended or one breaks. Nothing is kept but two small buffers: who does not read holds back
/// who writes. Where the app wants to know who calls, a PROXY header comes first. Silence is the gateway's to judge, which ends the stream.
pub(super) async fn connection<S>(ingress: &Ingress, route: &RouteView, call: &Call, mut stream: S, _place: Place)
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    // There are no words for why it does not answer: the stream is dropped, and the caller's connection closed.
    let target = match target::choose(route, &ingress.inner.pods) {
        Ok(target) => target.address,
        Err(outage) => return tracing::debug!(?outage, "no pod takes a connection to a port"),
    };
    let mut pod = match timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await {
        Ok(Ok(pod)) => pod,
        Ok(Err(error)) => return tracing::debug!(%target, %error, "a pod does not take a connection to a port"),
        Err(_) => return tracing::debug!(%target, "a pod does not take a connection to a port in time"),
    };
    if let Err(error) = pod.set_nodelay(true) {
        return tracing::debug!(%target, %error, "a pod has gone");
    }
    if route.proxy
        && let Err(error) = pod.write_all(&call.proxy_header()).await
    {
        return tracing::debug!(%target, %error, "a pod has gone");
    }
    // An end that breaks is an end.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut pod).await;
}
