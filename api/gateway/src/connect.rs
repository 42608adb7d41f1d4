//! The way to a device: the first of a route that answers a caller's hello.

use std::{io, time::Instant};

use hearth_types::{
    DeviceName,
    tunnel::{DialError, Dialer, StreamKind},
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
}

/// A device that has answered.
pub(crate) struct Answered<S> {
    /// The stream to it.
    pub(crate) stream: S,
    /// Its first bytes, for the caller.
    pub(crate) first: Vec<u8>,
}

/// Opens a stream to the first device that answers `hello`, which is all that the caller has sent, after the header.
///
/// Flow: devices are tried in order. A stream that opens but breaks, ends or stays silent before the device's first
/// byte is dialled once more, since its tunnel may have died unnoticed; then comes the next device.
///
/// Guarantees: ends within [`Limits::connect`]. A hello is only ever sent to another stream while no byte of an answer
/// has been seen; it changes nothing at a device, so that a second one is harmless.
pub(crate) async fn connect<D>(
    dialer: &D,
    devices: &[DeviceName],
    hello: &[u8],
    limits: &Limits,
    metrics: &Metrics,
) -> Option<Answered<D::Stream>>
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    let tried = async {
        for device in devices.iter().take(MAX_DEVICES_TRIED) {
            let mut result = attempt(dialer, device, hello, limits, metrics).await;
            if !matches!(result, Ok(_) | Err(AttemptError::Dial(_))) {
                log_failure(device, &result);
                result = attempt(dialer, device, hello, limits, metrics).await;
            }
            log_failure(device, &result);
            if let Ok(answered) = result {
                return Some(answered);
            }
        }
        None
    };
    timeout(limits.connect, tried).await.unwrap_or_else(|_| {
        tracing::debug!("no device answered in time");
        None
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
    hello: &[u8],
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
    let answer = async {
        stream.write_all(hello).await?;
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
