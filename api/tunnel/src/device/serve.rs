//! One tunnel, as the device serves it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hearth_types::tunnel::StreamKind;
use iroh::endpoint::{Connection, RecvStream, SendStream};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{IncomingStream, Inner, endpoint::EndpointUse};
use crate::{
    TunnelStream, limits,
    quic::code,
    stream::{StreamGuard, TunnelStream as Stream},
};

/// Takes the streams of a tunnel until it ends; ends it when it is idle. The caller has counted it.
pub(super) async fn serve(
    inner: Arc<Inner>,
    connection: Connection,
    _socket: EndpointUse,
    sender: mpsc::Sender<IncomingStream>,
) {
    run(&inner, &connection, &sender).await;
    inner.metrics.tunnels.dec();
}

async fn run(inner: &Arc<Inner>, connection: &Connection, sender: &mpsc::Sender<IncomingStream>) {
    let gateway_key = *connection.remote_id().as_bytes();
    let live = Arc::new(AtomicUsize::new(0));
    let mut used = Instant::now();
    let mut tick = tokio::time::interval(limits::MONITOR_TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let halves = tokio::select! {
            () = inner.shutdown.cancelled() => {
                connection.close(code::SHUTDOWN, b"the device ends");
                return;
            }
            halves = connection.accept_bi() => halves,
            _ = tick.tick() => {
                if live.load(Ordering::Acquire) > 0 {
                    used = Instant::now();
                } else if used.elapsed() >= inner.idle {
                    connection.close(code::IDLE, b"idle");
                    return;
                }
                continue;
            }
        };
        let halves = match halves {
            Ok(halves) => halves,
            Err(error) => {
                tracing::debug!(%error, "a tunnel ended");
                return;
            }
        };
        used = Instant::now();
        if !(inner.allow)(&gateway_key) {
            inner.metrics.accepted.with_label_values(&["refused"]).inc();
            tracing::info!("closed a tunnel: its gateway is no longer in the roster");
            connection.close(code::NOT_IN_ROSTER, b"this gateway is not in the device's roster");
            return;
        }
        let guard = StreamGuard::new(&live, &inner.metrics.streams);
        // At most as many tasks as the transport allows streams, each bounded in time.
        inner.tasks.spawn(hand_over(inner.clone(), halves, connection.clone(), guard, sender.clone()));
    }
}

/// Reads a stream's kind and hands it to who takes them.
async fn hand_over(
    inner: Arc<Inner>,
    (mut send, mut recv): (SendStream, RecvStream),
    connection: Connection,
    guard: StreamGuard,
    sender: mpsc::Sender<IncomingStream>,
) {
    let count = |label| inner.metrics.accepted.with_label_values(&[label]).inc();
    let mut byte = [0];
    let read = tokio::select! {
        () = inner.shutdown.cancelled() => return,
        read = timeout(limits::ACCEPT_TIMEOUT, recv.read_exact(&mut byte)) => read,
    };
    let kind = match read {
        Ok(Ok(())) => StreamKind::from_byte(byte[0]),
        Ok(Err(_)) | Err(_) => None,
    };
    let Some(kind) = kind else {
        count("unknown_kind");
        // An error means that the stream has ended, which is what is wanted.
        let _ = send.reset(code::UNKNOWN_KIND);
        let _ = recv.stop(code::UNKNOWN_KIND);
        return;
    };
    let permit = tokio::select! {
        () = inner.shutdown.cancelled() => return,
        permit = timeout(limits::ACCEPT_TIMEOUT, sender.reserve()) => permit,
    };
    let Ok(Ok(permit)) = permit else {
        count("busy");
        let _ = send.reset(code::BUSY);
        let _ = recv.stop(code::BUSY);
        return;
    };
    count(match kind {
        StreamKind::Ingress => "ingress",
        StreamKind::Rpc => "rpc",
    });
    let stream: TunnelStream = Stream::new((send, recv), &connection, inner.metrics.bytes.clone(), guard);
    let gateway_key = stream.peer().key;
    permit.send(IncomingStream { kind, stream, gateway_key });
}
