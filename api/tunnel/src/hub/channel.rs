//! gRPC over a stream of a tunnel.

use std::sync::{Arc, Mutex, Weak};

use hearth_types::{
    DeviceName,
    tunnel::{DialError, StreamKind},
};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{Inner, dial};
use crate::{TunnelStream, limits, stream::StreamGuard};

/// A channel that is kept for the next caller.
#[derive(Debug)]
pub(super) struct CachedChannel {
    channel: Channel,
    /// Whether its stream is still there.
    stream: Weak<StreamGuard>,
    /// When it was last asked for.
    pub(super) asked: Instant,
}

/// The device's channel: the kept one, or a new one.
pub(super) async fn device_channel(inner: &Arc<Inner>, device: &DeviceName) -> Result<Channel, DialError> {
    let deadline = Instant::now() + limits::DIAL_TIMEOUT;
    let (tunnel, _place) = dial::tunnel(inner, device, deadline).await?;
    if let Some(cached) = tunnel.channel().as_mut().filter(|cached| cached.stream.strong_count() > 0) {
        cached.asked = Instant::now();
        return Ok(cached.channel.clone());
    }
    let stream = dial::dial(inner, device, StreamKind::Rpc).await?;
    let guard = Arc::downgrade(stream.guard());
    let channel = over(stream, device).await?;
    *tunnel.channel() = Some(CachedChannel { channel: channel.clone(), stream: guard, asked: Instant::now() });
    Ok(channel)
}

/// A channel over one stream. It does not reconnect: the tunnel it was made on may be another's by then.
async fn over(stream: TunnelStream, device: &DeviceName) -> Result<Channel, DialError> {
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        async move {
            let ended = || std::io::Error::new(std::io::ErrorKind::NotConnected, "the tunnel's stream has ended");
            stream.map(TokioIo::new).ok_or_else(ended)
        }
    });
    // Inside the tunnel both ends are proven and nobody reads along: no TLS. The authority is not looked at.
    let endpoint = Endpoint::from_static("http://device.invalid").connect_timeout(limits::DIAL_TIMEOUT);
    match tokio::time::timeout(limits::DIAL_TIMEOUT, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(dial::broken(device, &format!("cannot speak gRPC: {error}"))),
        Err(_) => Err(dial::broken(device, "gRPC was not answered")),
    }
}
