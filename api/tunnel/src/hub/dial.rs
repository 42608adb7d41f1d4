//! From a device's name to a stream.
//!
//! # Flow
//! A usable tunnel is reused: one that is not silent, and that was opened in the session that its device has now.
//! Without one, the first caller starts a flight and the others join it: the flight asks the device through its
//! session, and waits until a tunnel whose key is among the device's has arrived. Then each opens its own stream. A tunnel that fails at that is closed, and the caller tries once more from the
//! beginning, all within [`limits::DIAL_TIMEOUT`].

use std::sync::{Arc, atomic::Ordering};

use hearth_types::{
    DeviceKey, DeviceName,
    tunnel::{DialError, StreamKind},
};
use tokio::{
    io::AsyncWriteExt,
    sync::{Notify, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{
    Inner,
    table::{Flight, FlightEnd, Tunnel},
};
use crate::{
    TunnelStream, limits,
    quic::code,
    stream::{StreamGuard, TunnelStream as Stream},
};

/// A tunnel and a place for one stream on it.
type Reserved = (Arc<Tunnel>, StreamGuard);

/// How often a stream is tried: once more after a tunnel that turns out to be dead.
const ATTEMPTS: usize = 2;

/// Opens a stream of a kind, and counts how it went.
pub(super) async fn dial(inner: &Arc<Inner>, device: &DeviceName, kind: StreamKind) -> Result<TunnelStream, DialError> {
    let begun = Instant::now();
    let result = attempts(inner, device, kind, begun + limits::DIAL_TIMEOUT).await;
    let label = match &result {
        Ok(_) => "ok",
        Err(DialError::Unknown(_)) => "unknown",
        Err(DialError::Away(_)) => "away",
        Err(DialError::Timeout { .. }) => "timeout",
        Err(DialError::Broken { .. }) => "broken",
    };
    inner.metrics.dials.with_label_values(&[label]).inc();
    inner.metrics.dial_seconds.observe(begun.elapsed().as_secs_f64());
    result
}

async fn attempts(
    inner: &Arc<Inner>,
    device: &DeviceName,
    kind: StreamKind,
    deadline: Instant,
) -> Result<TunnelStream, DialError> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let (tunnel, guard) = tunnel(inner, device, deadline).await?;
        match open(inner, &tunnel, guard, kind, deadline).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                if tunnel.connection.close_reason().is_some() {
                    // Its monitor takes it out of the table too, but perhaps later than the next attempt looks.
                    take_out(inner, &tunnel);
                    last = Some(error);
                } else {
                    return Err(error);
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| broken(device, "no attempt was made")))
}

fn take_out(inner: &Inner, tunnel: &Arc<Tunnel>) {
    let mut tables = inner.tables();
    if tables.holds(tunnel) {
        tables.remove(&tunnel.device);
    }
}

async fn open(
    inner: &Inner,
    tunnel: &Tunnel,
    guard: StreamGuard,
    kind: StreamKind,
    deadline: Instant,
) -> Result<TunnelStream, DialError> {
    let failed = |error: &dyn std::error::Error| broken(&tunnel.device, &format!("cannot open a stream: {error}"));
    let halves = match timeout_at(deadline, tunnel.connection.open_bi()).await {
        Ok(Ok(halves)) => halves,
        Ok(Err(error)) => return Err(failed(&error)),
        Err(_) => return Err(broken(&tunnel.device, "it carries as many streams as are allowed, or stalls")),
    };
    let mut stream = Stream::new(halves, &tunnel.connection, inner.metrics.bytes.clone(), guard);
    match timeout_at(deadline, stream.write_all(&[kind as u8])).await {
        Ok(Ok(())) => Ok(stream),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(broken(&tunnel.device, "it stalls")),
    }
}

/// The device's tunnel, dialled if there is none, with a place for a stream.
async fn tunnel(inner: &Arc<Inner>, device: &DeviceName, deadline: Instant) -> Result<Reserved, DialError> {
    loop {
        if inner.shutdown.is_cancelled() {
            return Err(broken(device, "the gateway is shutting down"));
        }
        close_if_revoked(inner, device);
        let session = inner.notifier.session_of(device);
        let mut flight = {
            let mut tables = inner.tables();
            if let Some(reserved) = tables.reserve(device, session, &inner.metrics.streams) {
                return Ok(reserved);
            }
            match tables.flights.get(device) {
                Some(flight) => flight.clone(),
                None if tables.flights.len() >= limits::MAX_DIALS => {
                    return Err(broken(device, "too many devices are being dialled"));
                }
                None => {
                    let (flight, end) = new_flight();
                    tables.flights.insert(device.clone(), flight.clone());
                    // A task of its own, so that a caller who gives up takes nothing from the others.
                    inner.tasks.spawn(fly(inner.clone(), device.clone(), flight.arrived.clone(), end));
                    flight
                }
            }
        };
        match timeout_at(deadline, flight.end.wait_for(Option::is_some)).await {
            Ok(Ok(end)) => {
                if let Some(Err(error)) = &*end {
                    // Where the session ended meanwhile, the tunnel that is there will do.
                    close_if_revoked(inner, device);
                    let session = inner.notifier.session_of(device);
                    let reserved = inner.tables().reserve(device, session, &inner.metrics.streams);
                    return reserved.ok_or_else(|| error.clone());
                }
            }
            Ok(Err(_)) => return Err(broken(device, "the dial was given up")),
            Err(_) => return Err(timed_out(device)),
        }
    }
}

/// Has a device dial anew, whose tunnel is not to be used any more.
pub(super) fn ask_anew(inner: &Arc<Inner>, device: DeviceName) {
    let mut tables = inner.tables();
    if let Some(tunnel) = tables.get(&device) {
        tunnel.suspect.store(true, Ordering::Release);
    }
    if tables.flights.contains_key(&device) || tables.flights.len() >= limits::MAX_DIALS {
        return;
    }
    let (flight, end) = new_flight();
    tables.flights.insert(device.clone(), flight.clone());
    inner.tasks.spawn(fly(inner.clone(), device, flight.arrived, end));
}

/// A tunnel whose key is no longer its device's must not be used.
fn close_if_revoked(inner: &Inner, device: &DeviceName) {
    let mut tables = inner.tables();
    let Some(tunnel) = tables.get(device).cloned() else { return };
    if inner.notifier.device_of_key(&tunnel.key).as_ref() != Some(device) {
        tables.remove(device);
        drop(tables);
        tracing::info!(%device, key = %tunnel.key, "closed a tunnel: its key is no longer the device's");
        tunnel.close(code::UNKNOWN_KEY, b"this key is no longer the device's");
    }
}

fn new_flight() -> (Flight, watch::Sender<FlightEnd>) {
    let (sender, end) = watch::channel(None);
    (Flight { arrived: Arc::new(Notify::new()), end }, sender)
}

/// Takes the flight out of the table however its task ends.
struct FlightEntry<'a>(&'a Inner, &'a DeviceName);

impl Drop for FlightEntry<'_> {
    fn drop(&mut self) {
        self.0.tables().flights.remove(self.1);
    }
}

/// Asks the device to dial, and waits until it has.
async fn fly(inner: Arc<Inner>, device: DeviceName, arrived: Arc<Notify>, end: watch::Sender<FlightEnd>) {
    let entry = FlightEntry(&inner, &device);
    let deadline = Instant::now() + limits::DIAL_TIMEOUT;
    let result = tokio::select! {
        () = inner.shutdown.cancelled() => Err(broken(&device, "the gateway is shutting down")),
        result = timeout_at(deadline, ask_and_wait(&inner, &device, &arrived)) =>
            result.unwrap_or_else(|_| Err(timed_out(&device))),
    };
    // First out of the table, then told: who is told looks into the table again.
    drop(entry);
    end.send_replace(Some(result));
}

async fn ask_and_wait(inner: &Inner, device: &DeviceName, arrived: &Notify) -> Result<(), DialError> {
    loop {
        let session = inner.notifier.session_of(device);
        let has_other = inner.tables().get(device).is_some();
        inner.metrics.notices.inc();
        let moved = inner.moved.notified();
        tokio::pin!(moved);
        moved.as_mut().enable();
        let asked = tokio::select! {
            asked = inner.notifier.ask_to_dial(device, inner.notice_now()) => asked,
            // It was told of a relay that this gateway has left.
            () = &mut moved => continue,
        };
        let keys = match asked {
            Ok(keys) => keys,
            // The session ended over it, since the device opened another: that one is asked.
            Err(DialError::Away(_)) if has_newer_session(inner, device, session) => continue,
            Err(error) => return Err(error),
        };
        let patience = if has_other { limits::ASK_AGAIN } else { limits::DIAL_TIMEOUT };
        tokio::select! {
            arrival = timeout(patience, arrival(inner, device, &keys, arrived)) => if arrival.is_ok() {
                return Ok(());
            },
            () = moved => {}
        }
    }
}

fn has_newer_session(inner: &Inner, device: &DeviceName, than: Option<u64>) -> bool {
    let session = inner.notifier.session_of(device);
    session.is_some() && session != than
}

/// Waits for a usable tunnel by one of the keys.
async fn arrival(inner: &Inner, device: &DeviceName, keys: &[DeviceKey], arrived: &Notify) {
    loop {
        let woken = arrived.notified();
        tokio::pin!(woken);
        // Listening before looking, so that nothing is missed in between.
        woken.as_mut().enable();
        if has_tunnel_by(inner, device, keys) {
            return;
        }
        woken.await;
    }
}

fn has_tunnel_by(inner: &Inner, device: &DeviceName, keys: &[DeviceKey]) -> bool {
    let session = inner.notifier.session_of(device);
    inner.tables().get(device).is_some_and(|tunnel| tunnel.usable(session) && keys.contains(&tunnel.key))
}

fn broken(device: &DeviceName, why: &str) -> DialError {
    DialError::Broken { device: device.clone(), why: why.to_owned() }
}

fn timed_out(device: &DeviceName) -> DialError {
    DialError::Timeout { device: device.clone(), seconds: limits::DIAL_TIMEOUT.as_secs() }
}
