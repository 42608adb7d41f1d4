//! Who is connected and who is being dialled.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use hearth_types::{DeviceKey, DeviceName, tunnel::DialError};
use iroh::{
    RelayUrl, TransportAddr,
    endpoint::{Connection, VarInt},
};
use prometheus::IntGauge;
use tokio::sync::{Notify, watch};

use crate::stream::StreamGuard;

/// A device's open tunnel.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) device: DeviceName,
    pub(super) key: DeviceKey,
    /// The device's session when the tunnel came in: that of the process that dialled, or of none.
    session: Option<u64>,
    pub(super) connection: Connection,
    pub(super) streams: Arc<AtomicUsize>,
    /// Nothing was heard for a while: a dial asks for another tunnel.
    pub(super) suspect: AtomicBool,
}

impl Tunnel {
    pub(super) fn new(device: DeviceName, key: DeviceKey, session: Option<u64>, connection: Connection) -> Self {
        Self { device, key, session, connection, streams: Arc::default(), suspect: AtomicBool::new(false) }
    }

    /// Whether new streams may be opened on it, if its device's session is this one now.
    pub(super) fn usable(&self, session: Option<u64>) -> bool {
        // Without a session nobody can ask for another tunnel, and this one may well be alive.
        let current = session.is_none() || session == self.session;
        current && !self.suspect.load(Ordering::Acquire) && self.connection.close_reason().is_none()
    }

    pub(super) fn idle(&self) -> bool {
        self.streams.load(Ordering::Acquire) == 0
    }

    pub(super) fn close(&self, code: VarInt, reason: &[u8]) {
        self.connection.close(code, reason);
    }
}

/// What a flight ends with; empty while it is under way.
pub(super) type FlightEnd = Option<Result<(), DialError>>;

/// A dial under way, shared by all who want the device.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    /// Woken when a tunnel of the device may have become usable.
    pub(super) arrived: Arc<Notify>,
    /// The end, for those who wait.
    pub(super) end: watch::Receiver<FlightEnd>,
}

/// All tunnels and dials, under one lock that is never held over an await.
#[derive(Debug, Default)]
pub(super) struct Tables {
    tunnels: HashMap<DeviceName, Arc<Tunnel>>,
    /// Tunnels that a newer one of their device replaced, and that end with their streams.
    replaced: usize,
    pub(super) flights: HashMap<DeviceName, Flight>,
}

impl Tables {
    /// The device's tunnel that is usable in its session, with a place taken for one stream: from here on it is not
    /// idle.
    pub(super) fn reserve(
        &self,
        device: &DeviceName,
        session: Option<u64>,
        gauge: &IntGauge,
    ) -> Option<(Arc<Tunnel>, StreamGuard)> {
        let tunnel = self.tunnels.get(device).filter(|tunnel| tunnel.usable(session))?;
        Some((tunnel.clone(), StreamGuard::new(&tunnel.streams, gauge)))
    }

    pub(super) fn get(&self, device: &DeviceName) -> Option<&Arc<Tunnel>> {
        self.tunnels.get(device)
    }

    /// Puts a tunnel in its device's place; returns the one that was there.
    pub(super) fn insert(&mut self, tunnel: Arc<Tunnel>) -> Option<Arc<Tunnel>> {
        self.wake(&tunnel.device);
        let old = self.tunnels.insert(tunnel.device.clone(), tunnel);
        self.replaced += usize::from(old.is_some());
        old
    }

    /// Wakes those who wait for the device.
    pub(super) fn wake(&self, device: &DeviceName) {
        if let Some(flight) = self.flights.get(device) {
            flight.arrived.notify_waiters();
        }
    }

    /// Takes the tunnel out if it has no stream, so that nobody can reserve one while it is closed.
    pub(super) fn take_if_idle(&mut self, tunnel: &Arc<Tunnel>) -> bool {
        let idle = tunnel.idle();
        if idle && self.holds(tunnel) {
            self.tunnels.remove(&tunnel.device);
            self.replaced += 1;
        }
        idle
    }

    /// Whether it is its device's tunnel, and none that was replaced.
    pub(super) fn holds(&self, tunnel: &Arc<Tunnel>) -> bool {
        self.tunnels.get(&tunnel.device).is_some_and(|held| Arc::ptr_eq(held, tunnel))
    }

    /// Takes a device's tunnel out. Its monitor counts it until it has ended.
    pub(super) fn remove(&mut self, device: &DeviceName) -> Option<Arc<Tunnel>> {
        let tunnel = self.tunnels.remove(device)?;
        self.replaced += 1;
        Some(tunnel)
    }

    /// Forgets a tunnel that has ended.
    pub(super) fn ended(&mut self, tunnel: &Arc<Tunnel>) {
        if self.holds(tunnel) {
            self.tunnels.remove(&tunnel.device);
        } else {
            self.replaced -= 1;
        }
    }

    /// Takes all tunnels out.
    pub(super) fn drain(&mut self) -> Vec<Arc<Tunnel>> {
        let all: Vec<_> = self.tunnels.drain().map(|(_, tunnel)| tunnel).collect();
        self.replaced += all.len();
        all
    }

    /// The devices whose tunnels now go by one of these relays.
    pub(super) fn reached_by(&self, relays: &[RelayUrl]) -> Vec<DeviceName> {
        let by = |tunnel: &Tunnel| {
            let paths = tunnel.connection.paths();
            paths.iter().any(|path| {
                path.is_selected() && matches!(path.remote_addr(), TransportAddr::Relay(url) if relays.contains(url))
            })
        };
        self.tunnels.values().filter(|tunnel| by(tunnel)).map(|tunnel| tunnel.device.clone()).collect()
    }

    /// How many tunnels there are, with those that are about to end.
    pub(super) fn open(&self) -> usize {
        self.tunnels.len() + self.replaced
    }
}
