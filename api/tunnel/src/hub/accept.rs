//! Tunnels as they come in, and the task that watches each.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hearth_types::DeviceKey;
use iroh::endpoint::{Connection, ConnectionError, Incoming};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{Inner, table::Tunnel};
use crate::{limits, quic::code};

/// Accepts tunnels until the endpoint closes.
pub(super) async fn run(inner: Arc<Inner>) {
    let handshakes = Arc::new(Semaphore::new(limits::MAX_HANDSHAKES));
    while let Some(incoming) = inner.endpoint.accept().await {
        if let Ok(permit) = handshakes.clone().try_acquire_owned() {
            inner.tasks.spawn(handshake(inner.clone(), incoming, permit));
        } else {
            inner.metrics.refused.with_label_values(&["full"]).inc();
            incoming.refuse();
        }
    }
}

async fn handshake(inner: Arc<Inner>, incoming: Incoming, permit: OwnedSemaphorePermit) {
    let connection = match tokio::time::timeout(limits::DIAL_TIMEOUT, incoming.into_future()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            inner.metrics.refused.with_label_values(&["handshake"]).inc();
            tracing::debug!(%error, "an incoming tunnel's handshake failed");
            return;
        }
        Err(_) => {
            inner.metrics.refused.with_label_values(&["handshake"]).inc();
            return;
        }
    };
    drop(permit);
    if let Some(tunnel) = admit(&inner, connection) {
        inner.metrics.tunnels.inc();
        let reason = watch(&inner, &tunnel).await;
        inner.metrics.tunnels.dec();
        inner.metrics.ended.with_label_values(&[reason]).inc();
        inner.tables().ended(&tunnel);
        tracing::debug!(device = %tunnel.device, reason, "a tunnel ended");
    }
}

/// Puts the connection into the table, if its key is a device's.
fn admit(inner: &Arc<Inner>, connection: Connection) -> Option<Arc<Tunnel>> {
    let key = DeviceKey(*connection.remote_id().as_bytes());
    let Some(device) = inner.notifier.device_of_key(&key) else {
        inner.metrics.refused.with_label_values(&["unknown_key"]).inc();
        tracing::debug!(%key, "refused a tunnel by a key that is no device's");
        connection.close(code::UNKNOWN_KEY, b"this key belongs to no device of the region");
        return None;
    };
    let session = inner.notifier.session_of(&device);
    let mut tables = inner.tables();
    if tables.open() >= limits::MAX_TUNNELS || inner.shutdown.is_cancelled() {
        drop(tables);
        inner.metrics.refused.with_label_values(&["full"]).inc();
        connection.close(code::FULL, b"the gateway has too many tunnels");
        return None;
    }
    tracing::debug!(%device, session, "a tunnel opened");
    let tunnel = Arc::new(Tunnel::new(device, key, session, connection));
    // One that was replaced ends with its last stream: its monitor sees to that.
    let _ = tables.insert(tunnel.clone());
    Some(tunnel)
}

/// Watches a tunnel until it has ended, and says why it did.
async fn watch(inner: &Arc<Inner>, tunnel: &Arc<Tunnel>) -> &'static str {
    let mut tick = tokio::time::interval(limits::MONITOR_TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut used = Instant::now();
    let mut heard = (0, Instant::now());
    loop {
        tokio::select! {
            error = tunnel.connection.closed() => return reason(&error),
            _ = tick.tick() => {}
        }
        note_silence(inner, tunnel, &mut heard);
        if !tunnel.idle() {
            used = Instant::now();
        }
        let replaced = !inner.tables().holds(tunnel);
        let bound = if replaced { Duration::ZERO } else { inner.idle };
        if used.elapsed() >= bound && inner.tables().take_if_idle(tunnel) {
            let (code, reason) = if replaced { (code::REPLACED, "replaced") } else { (code::IDLE, "idle") };
            tunnel.close(code, reason.as_bytes());
            return reason;
        }
    }
}

/// Marks a tunnel of which nothing was heard, and unmarks it when something is.
fn note_silence(inner: &Inner, tunnel: &Tunnel, heard: &mut (u64, Instant)) {
    let datagrams = tunnel.connection.stats().udp_rx.datagrams;
    if datagrams != heard.0 {
        *heard = (datagrams, Instant::now());
    }
    let silent = heard.1.elapsed() >= limits::SUSPECT_AFTER;
    if tunnel.suspect.swap(silent, Ordering::AcqRel) && !silent {
        inner.tables().wake(&tunnel.device);
    }
}

fn reason(error: &ConnectionError) -> &'static str {
    match error {
        ConnectionError::ApplicationClosed(close) if close.error_code == code::IDLE => "idle",
        ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) => "closed",
        ConnectionError::LocallyClosed => "replaced",
        _ => "lost",
    }
}
