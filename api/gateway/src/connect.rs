//! The way to a device: the first of a route that answers a caller's hello.

use std::{io, net::SocketAddr, time::Instant};

use hearth_types::{
    DeviceName,
    routes::Transport,
    tunnel::{DialError, Dialer, HeaderVersion, IngressHeader, StreamKind, proxy::ProxyHeader},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::{
    limits::{Limits, MAX_DEVICES_TRIED},
    metrics::Metrics,
};

/// How much of a device's answer is read ahead: most first flights of a TLS server fit.
const ANSWER_READ: usize = 4096;

/// Why one device did not answer.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("no stream")]
    Dial(#[source] DialError),
    #[error("the stream broke before the device's first byte")]
    Broken(#[source] io::Error),
    #[error("the device ended the stream without a byte")]
    Ended,
    #[error("the device said nothing in time")]
    Silent,
    #[error("the device's release knows no ports of Routes: update it")]
    TooOld,
}

/// Why there is no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoDevice {
    /// None of them has a session, or there is none.
    Away,
    /// One that has a session did not answer.
    Unreachable,
}

/// A device that has answered.
pub(crate) struct Answered<S> {
    /// The stream to it.
    pub(crate) stream: S,
    /// Its first bytes, for the caller.
    pub(crate) first: Vec<u8>,
}

/// Who calls whom, and what was said so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) transport: Transport,
    pub(crate) caller: SocketAddr,
    /// The gateway's address that was called.
    pub(crate) called: SocketAddr,
    /// The Route's hostname.
    pub(crate) name: &'a str,
    /// All that the caller has sent: a whole ClientHello, or nothing on a port of a Route.
    pub(crate) hello: &'a [u8],
}

impl Call<'_> {
    /// The header and what the caller has sent.
    fn greeting(&self, version: HeaderVersion) -> Vec<u8> {
        let mut out = match version {
            HeaderVersion::Text => IngressHeader { caller: self.caller }.encode(),
            HeaderVersion::Proxy => {
                let Self { transport, caller, called, .. } = *self;
                ProxyHeader { transport, caller, called, authority: Some(self.name.to_owned()) }.encode()
            }
        };
        out.extend_from_slice(self.hello);
        out
    }
}

/// Opens a stream to the first device that answers the call's hello.
///
/// Flow: devices are tried in order. A stream that opens but breaks, ends or stays silent before the device's first
/// byte is dialled once more, since its tunnel may have died unnoticed; then comes the next device.
///
/// Guarantees: ends within [`Limits::connect`]. A hello is only ever sent to another stream while no byte of an answer
/// has been seen; it changes nothing at a device, so that a second one is harmless.
pub(crate) async fn connect<D>(
    dialer: &D,
    devices: &[DeviceName],
    call: &Call<'_>,
    limits: &Limits,
    metrics: &Metrics,
) -> Result<Answered<D::Stream>, NoDevice>
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    let tried = async {
        let mut why = NoDevice::Away;
        for device in devices.iter().take(MAX_DEVICES_TRIED) {
            let mut result = attempt(dialer, device, call, limits, metrics).await;
            if !matches!(result, Ok(_) | Err(AttemptError::Dial(_) | AttemptError::TooOld)) {
                log_failure(device, &result);
                result = attempt(dialer, device, call, limits, metrics).await;
            }
            log_failure(device, &result);
            match result {
                Ok(answered) => return Ok(answered),
                Err(AttemptError::Dial(DialError::Away(_) | DialError::Unknown(_))) => {}
                Err(_) => why = NoDevice::Unreachable,
            }
        }
        Err(why)
    };
    timeout(limits.connect, tried).await.unwrap_or_else(|_| {
        tracing::debug!("no device answered in time");
        Err(NoDevice::Unreachable)
    })
}

fn log_failure<T>(device: &DeviceName, result: &Result<T, AttemptError>) {
    if let Err(error) = result {
        let source = std::error::Error::source(error).map(ToString::to_string);
        tracing::debug!(%device, %error, source, "a device did not answer");
    }
}

async fn attempt<D>(
    dialer: &D,
    device: &DeviceName,
    call: &Call<'_>,
    limits: &Limits,
    metrics: &Metrics,
) -> Result<Answered<D::Stream>, AttemptError>
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    let begun = Instant::now();
    let dialled = dialer.dial(device, StreamKind::Ingress).await;
    metrics.dialled(dialled.as_ref().map(|_| ()), begun.elapsed());
    let mut stream = dialled.map_err(AttemptError::Dial)?;
    let version = dialer.header_version(&stream);
    let greeting = call.greeting(version);
    if call.hello.is_empty() {
        // A port of a Route: either side may speak first, so there is nothing to wait for.
        if version < HeaderVersion::Proxy {
            return Err(AttemptError::TooOld);
        }
        return match timeout(limits.answer, stream.write_all(&greeting)).await {
            Ok(Ok(())) => Ok(Answered { stream, first: Vec::new() }),
            Ok(Err(error)) => Err(AttemptError::Broken(error)),
            Err(_) => Err(AttemptError::Silent),
        };
    }
    let answer = async {
        stream.write_all(&greeting).await?;
        stream.flush().await?;
        let mut first = Vec::with_capacity(ANSWER_READ);
        stream.read_buf(&mut first).await?;
        Ok(first)
    };
    let result = match timeout(limits.answer, answer).await {
        Ok(Ok(first)) if !first.is_empty() => return Ok(Answered { stream, first }),
        Ok(Ok(_)) => AttemptError::Ended,
        Ok(Err(error)) => AttemptError::Broken(error),
        Err(_) => AttemptError::Silent,
    };
    metrics.silent();
    Err(result)
}
