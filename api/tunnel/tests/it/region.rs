//! A region of one hub and some devices, with the session that carries notices between them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hearth_tunnel::{DeviceTunnel, DeviceTunnelConfig, HubConfig, IncomingStreams, TunnelHub, TunnelStream};
use hearth_types::{
    BoxFuture, DeviceKey, DeviceName,
    tunnel::{DialError, DialNotice, DialNotifier, StreamKind},
};
use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What the region knows of a device.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) keys: Vec<DeviceKey>,
    /// Its end, while it has a session.
    pub(crate) session: Option<DeviceTunnel>,
    /// The runtime that the device lives on, where that is not the hub's.
    pub(crate) runtime: Option<tokio::runtime::Handle>,
    /// Which session it has, also where that is another process's: counted by [`Sessions::set`].
    pub(crate) number: Option<u64>,
}

/// The region's table of devices and their sessions.
#[derive(Default)]
pub(crate) struct Sessions {
    pub(crate) devices: Mutex<HashMap<DeviceName, Known>>,
    pub(crate) notices: AtomicUsize,
    opened: AtomicU64,
}

impl Sessions {
    pub(crate) fn notices(&self) -> usize {
        self.notices.load(Ordering::SeqCst)
    }

    /// Takes what is known of a device; its session, if there is one, is a new one.
    pub(crate) fn set(&self, device: &DeviceName, known: Known) {
        let number = self.opened.fetch_add(1, Ordering::SeqCst);
        self.devices.lock().unwrap().insert(device.clone(), Known { number: Some(number), ..known });
    }

    /// The device's session breaks, and it opens another, from the same process.
    pub(crate) fn reconnect(&self, device: &DeviceName) {
        let number = self.opened.fetch_add(1, Ordering::SeqCst);
        self.devices.lock().unwrap().get_mut(device).expect("a known device").number = Some(number);
    }

    /// The device's session breaks.
    pub(crate) fn hang_up(&self, device: &DeviceName) {
        let mut devices = self.devices.lock().unwrap();
        let known = devices.get_mut(device).expect("a known device");
        (known.session, known.number) = (None, None);
    }
}

impl DialNotifier for Sessions {
    fn ask_to_dial<'a>(
        &'a self,
        device: &'a DeviceName,
        notice: DialNotice,
    ) -> BoxFuture<'a, Result<Vec<DeviceKey>, DialError>> {
        Box::pin(async move {
            self.notices.fetch_add(1, Ordering::SeqCst);
            let devices = self.devices.lock().unwrap();
            let known = devices.get(device).ok_or_else(|| DialError::Unknown(device.clone()))?;
            let session = known.session.clone().ok_or_else(|| DialError::Away(device.clone()))?;
            let runtime = known.runtime.clone().unwrap_or_else(tokio::runtime::Handle::current);
            runtime.spawn(async move { session.dial(notice).await });
            Ok(known.keys.clone())
        })
    }

    fn device_of_key(&self, key: &DeviceKey) -> Option<DeviceName> {
        let devices = self.devices.lock().unwrap();
        devices.iter().find(|(_, known)| known.keys.contains(key)).map(|(name, _)| name.clone())
    }

    fn session_of(&self, device: &DeviceName) -> Option<u64> {
        self.devices.lock().unwrap().get(device)?.number
    }
}

pub(crate) struct Region {
    pub(crate) hub: TunnelHub,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) registry: Registry,
}

pub(crate) const GATEWAY_SEED: [u8; 32] = [7; 32];

impl Region {
    pub(crate) async fn start(idle: Duration) -> Self {
        Self::start_at("127.0.0.1:0", idle).await
    }

    pub(crate) async fn start_at(listen: &str, idle: Duration) -> Self {
        let sessions = Arc::new(Sessions::default());
        let registry = Registry::new();
        let config = HubConfig { idle, ..HubConfig::new(GATEWAY_SEED, listen.parse().unwrap(), vec![]) };
        let hub = TunnelHub::start(config, sessions.clone(), &registry).await.expect("a hub");
        Self { hub, sessions, registry }
    }

    /// Starts a device that is known and has a session.
    pub(crate) fn device(&self, name: &str, seed: u8) -> (DeviceName, DeviceTunnel, IncomingStreams) {
        let name = DeviceName::from(name);
        let (tunnel, incoming) = device(seed, self.hub.notice().gateway_key);
        self.sessions.set(
            &name,
            Known {
                keys: vec![key(seed)],
                session: Some(tunnel.clone()),
                runtime: tokio::runtime::Handle::try_current().ok(),
                ..Known::default()
            },
        );
        (name, tunnel, incoming)
    }

    pub(crate) fn count(&self, metric: &str, label: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == metric);
        let metrics = family.map(prometheus::proto::MetricFamily::get_metric).unwrap_or_default();
        let found = metrics.iter().find(|it| it.get_label().iter().any(|pair| pair.value() == label));
        found.map_or(0, |it| it.get_counter().get_value() as u64)
    }
}

/// The public key of a seed.
pub(crate) fn key(seed: u8) -> DeviceKey {
    DeviceKey(*iroh::SecretKey::from_bytes(&[seed; 32]).public().as_bytes())
}

pub(crate) fn device(seed: u8, gateway: [u8; 32]) -> (DeviceTunnel, IncomingStreams) {
    device_idle(seed, gateway, Duration::from_secs(90))
}

pub(crate) fn device_idle(seed: u8, gateway: [u8; 32], idle: Duration) -> (DeviceTunnel, IncomingStreams) {
    let config = DeviceTunnelConfig { idle, ..DeviceTunnelConfig::new([seed; 32], move |key| *key == gateway) };
    DeviceTunnel::start(config, &Registry::new()).expect("a device")
}

/// Serves all streams by sending back what they bring, then ending.
pub(crate) fn echo(mut incoming: IncomingStreams) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(stream) = incoming.next().await {
            assert_eq!(stream.kind, StreamKind::Ingress);
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(stream.stream);
                if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
                    let _ = writer.shutdown().await;
                }
            });
        }
    })
}

/// Sends bytes, half closes, and returns all that comes back.
pub(crate) async fn exchange(stream: TunnelStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut back = Vec::new();
    let write = async {
        writer.write_all(bytes).await?;
        writer.shutdown().await
    };
    let read = async { reader.read_to_end(&mut back).await.map(|_| ()) };
    tokio::try_join!(write, read)?;
    Ok(back)
}

/// Waits until something holds, for at most 10 s.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begun = tokio::time::Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
