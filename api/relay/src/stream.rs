//! One caller's connection, as the relay protocol sees it: messages of bytes, counted and held to a rate.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream;
use futures_util::Sink;
use iroh_relay::{ExportKeyingMaterial, protos::streams::StreamError};
use n0_error::AnyError;
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};
use tokio_rustls::server::TlsStream;
use tokio_websockets::{Message, WebSocketStream};

use crate::metrics::{Account, Place};

/// A WebSocket over TLS.
pub(crate) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// The connection. Until it has an account, before the pass is shown, nothing is counted: that is a handshake's few messages.
pub(crate) struct Messages {
    socket: Socket,
    account: Option<(Arc<Account>, Place)>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Messages {
    pub(crate) fn new(socket: Socket) -> Self {
        Self { socket, account: None, pause: None }
    }

    /// From now on everything is on this account.
    pub(crate) fn charge(&mut self, account: Arc<Account>, place: Place) {
        self.account = Some((account, place));
    }

    fn received(&mut self, bytes: usize) {
        let Some((account, _)) = &self.account else { return };
        account.received.inc_by(bytes as u64);
        let ready = account.allowance.as_ref().and_then(|allowance| allowance.take(bytes, Instant::now()));
        self.pause = ready.map(|ready| Box::pin(sleep_until(ready)));
    }
}

impl Stream for Messages {
    type Item = Result<Bytes, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        loop {
            let message = match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(AnyError::from_std(error)))),
                Some(Ok(message)) => message,
            };
            if message.is_close() {
                return Poll::Ready(None);
            }
            // Pings are answered below; texts are not of the protocol.
            if message.is_binary() {
                let bytes = Bytes::from(message.into_payload());
                self.received(bytes.len());
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
    }
}

impl Sink<Bytes> for Messages {
    type Error = StreamError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Pin::new(&mut self.socket).poll_ready(cx).map_err(AnyError::from_std)
    }

    fn start_send(mut self: Pin<&mut Self>, bytes: Bytes) -> Result<(), StreamError> {
        if let Some((account, _)) = &self.account {
            account.sent.inc_by(bytes.len() as u64);
        }
        Pin::new(&mut self.socket).start_send(Message::binary(bytes)).map_err(AnyError::from_std)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(AnyError::from_std)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(AnyError::from_std)
    }
}

impl ExportKeyingMaterial for Messages {
    fn export_keying_material<T: AsMut<[u8]>>(&self, output: T, label: &[u8], context: Option<&[u8]>) -> Option<T> {
        self.socket.get_ref().get_ref().1.export_keying_material(output, label, context).ok()
    }
}
