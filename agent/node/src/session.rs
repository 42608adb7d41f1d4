//! The device's session with its region: one stream, dialled outwards, for as long as the agent runs.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hearth_client::device::{self, DeviceError};
use hearth_proto::{
    MAX_MESSAGE_BYTES, SESSION_VERSION,
    v1::{self, device_message::Message as Up, devices_client::DevicesClient, region_message::Message as Down},
};
use hearth_tunnel::DeviceTunnel;
use hearth_types::{Incarnation, kinds::DeviceInfo, tunnel::DialNotice};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    desired::Refusal,
    files::chain,
    identity::{Identity, IdentityError},
    ingress::Ingress,
    manager::Manager,
    recovery::Recovery,
    shared::{Shared, blocking},
};

/// Messages that wait to be sent.
const QUEUE: usize = 16;
/// How long connecting and the region's hello may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Heartbeats as often as the region says, within these bounds.
const MIN_HEARTBEAT: Duration = Duration::from_millis(500);
const MAX_HEARTBEAT: Duration = Duration::from_mins(1);
/// A region that said nothing for so many heartbeats is gone.
const SILENT_HEARTBEATS: u32 = 3;
/// Pauses before the next try: the first ones short, since most breaks are a restart of the server; half of each is left to
/// chance, so that thousands of devices do not come at once.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A session that held so long begins the pauses anew.
const STABLE: Duration = Duration::from_secs(10);
/// The longest pause that a region may ask for.
const MAX_ASKED_PAUSE: Duration = Duration::from_mins(5);
/// How often certificates are looked at that may be due for renewal.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(30);
/// How long a session is kept with a region that knows less than it did.
const ASK_AGAIN: Duration = Duration::from_secs(15);
/// Gateways that the region may name at once; the oldest go first.
const MAX_ROSTER: usize = 64;
/// Dials under way at once.
const MAX_DIALS: usize = 8;
/// Addresses in one notice.
const MAX_ADDRESSES: usize = 16;

/// The gateways that may open streams: those that the region named in its sessions, which are authenticated by its CA.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    keys: Mutex<VecDeque<[u8; 32]>>,
}

impl Roster {
    /// Whether a key is one of a gateway's.
    pub(crate) fn has(&self, key: &[u8; 32]) -> bool {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    fn add(&self, key: [u8; 32]) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if !keys.contains(&key) {
            if keys.len() >= MAX_ROSTER {
                keys.pop_front();
            }
            keys.push_back(key);
        }
    }
}

/// What a session works with.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) identity: Identity,
    pub(crate) recovery: Recovery,
    pub(crate) server: Option<String>,
    pub(crate) manager: Manager,
    pub(crate) ingress: Ingress,
    pub(crate) tunnel: DeviceTunnel,
    pub(crate) roster: Arc<Roster>,
    pub(crate) connected: watch::Sender<bool>,
    pub(crate) info: DeviceInfo,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the region does not answer within {} s", HELLO_TIMEOUT.as_secs())]
    NoHello,
    #[error("the region's first message is no hello")]
    NotHello,
    #[error("the region speaks version {0} of the session, this agent {SESSION_VERSION}: update the agent")]
    Version(u32),
    #[error("{0}")]
    Refused(hearth_types::Status),
    #[error("the server is not the one that this device trusts: {0}")]
    Untrusted(hearth_types::Status),
    #[error("the region ended the session")]
    Closed,
    #[error("the region ended the session: {reason}")]
    Goodbye { reason: String, pause: Duration },
    #[error("the region has been silent for {0} s")]
    Silent(u64),
    #[error("the region knows less than it did; asking it again")]
    Behind,
    #[error("the agent ends")]
    Shutdown,
}

impl End {
    fn label(&self) -> &'static str {
        match self {
            Self::Identity(_) | Self::Device(_) => "device",
            Self::NoHello | Self::NotHello | Self::Version(_) => "hello",
            Self::Refused(_) => "refused",
            Self::Untrusted(_) => "untrusted",
            Self::Closed => "closed",
            Self::Goodbye { .. } => "goodbye",
            Self::Silent(_) => "silent",
            Self::Behind => "behind",
            Self::Shutdown => "shutdown",
        }
    }
}

impl Session {
    /// Keeps a session for ever.
    pub(crate) async fn run(self) {
        let mut failures = 0_u32;
        let mut told = String::new();
        loop {
            let begin = Instant::now();
            let Err(end) = self.once().await else { return };
            self.shared.metrics.session_up.set(0);
            self.connected.send_replace(false);
            self.shared.metrics.sessions.with_label_values(&[end.label()]).inc();
            if matches!(end, End::Shutdown) {
                return;
            }
            if matches!(end, End::Untrusted(_)) && self.recovery.look(&self.region()).await {
                continue;
            }
            failures = if begin.elapsed() >= STABLE { 0 } else { failures.saturating_add(1) };
            let asked = if let End::Goodbye { pause, .. } = &end { *pause } else { Duration::ZERO };
            let pause = pause(failures, chance()).max(asked);
            let text = chain(&end);
            // The same failure again and again is told once.
            if text == told {
                tracing::debug!(error = text, ?pause, "no session; pods run on");
            } else {
                tracing::warn!(error = text, ?pause, "no session with the region; pods run on, trying again");
                told = text;
            }
            sleep(pause).await;
        }
    }

    /// What this machine is, and what it lacks now.
    fn info(&self) -> Vec<u8> {
        let mut info = self.info.clone();
        info.missing.extend(self.shared.network.notices().iter().map(ToString::to_string));
        serde_json::to_vec(&info).unwrap_or_default()
    }

    /// The region as this device knows it now.
    fn region(&self) -> device::Region {
        self.recovery.of(self.identity.region(self.server.as_deref(), self.shared.now()))
    }

    /// What the region says of its recovery key.
    async fn believe(&self, trust_json: bytes::Bytes) {
        if let Err(error) = self.recovery.told(trust_json).await {
            tracing::error!(
                error = chain(&error),
                "the region's recovery key is not the one that was pinned, or cannot be kept"
            );
        }
    }

    async fn once(&self) -> Result<(), End> {
        if let Some(incarnation) = self.recovery.incarnation() {
            self.manager.region_recovered(&incarnation).await.ok_or(End::Shutdown)?;
        }
        let (incarnation, revision) = self.manager.begin_session().await.ok_or(End::Shutdown)?;
        let channel = device::connect(&self.region(), &self.identity.key()?)?;
        self.recovery.hand_in(channel.clone()).await;
        let mut client = DevicesClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (out, queue) = mpsc::channel(QUEUE);
        let hello = v1::DeviceHello {
            versions: vec![SESSION_VERSION],
            features: Vec::new(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            incarnation: incarnation.to_string(),
            revision,
            info_json: self.info().into(),
            copies: self.recovery.content().into(),
        };
        send(&out, Up::Hello(hello)).await?;
        let opened = async {
            let mut inbound = client.session(ReceiverStream::new(queue)).await?.into_inner();
            let first = inbound.message().await?;
            Ok::<_, tonic::Status>((inbound, first))
        };
        let opened = timeout(HELLO_TIMEOUT, opened).await.map_err(|_| End::NoHello)?;
        let refused = |status: tonic::Status| {
            let why = hearth_client::convert::status(&status);
            if device::is_untrusted(&status) { End::Untrusted(why) } else { End::Refused(why) }
        };
        let (inbound, first) = opened.map_err(refused)?;
        let Some(Down::Hello(hello)) = first.and_then(|message| message.message) else { return Err(End::NotHello) };
        if hello.version != SESSION_VERSION {
            return Err(End::Version(hello.version));
        }
        tracing::info!(incarnation = hello.incarnation, zone = hello.zone, "session with the region");
        self.shared.metrics.session_up.set(1);
        self.connected.send_replace(true);
        self.shared.reporter.begin_session();
        let incarnation = Incarnation::from(hello.incarnation.as_str());
        if hello.lost_writes {
            self.manager.region_lost_writes(&incarnation).await.ok_or(End::Shutdown)?;
        }
        self.believe(hello.trust_json).await;
        self.ingress.certificates().begin_session();
        if self.recovery.incarnation().is_some() {
            self.ingress.certificates().renew_those_of_others(&self.region().ca_pem);
        }
        Live { session: self, out, dials: JoinSet::new(), incarnation, refused: false, ask_again: None }
            .run(inbound, Duration::from_millis(hello.heartbeat_millis).clamp(MIN_HEARTBEAT, MAX_HEARTBEAT))
            .await
    }
}

/// A session that is up.
struct Live<'a> {
    session: &'a Session,
    out: mpsc::Sender<v1::DeviceMessage>,
    dials: JoinSet<v1::DialResult>,
    incarnation: Incarnation,
    /// A word of the region was refused, and that was told.
    refused: bool,
    /// When to end the session, so that the region says everything anew.
    ask_again: Option<Instant>,
}

impl Live<'_> {
    async fn run(mut self, mut inbound: tonic::Streaming<v1::RegionMessage>, heartbeat: Duration) -> Result<(), End> {
        let session = self.session;
        let mut beat = interval(heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut check = interval(CERTIFICATE_CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut certificates = session.ingress.watch();
        let mut sequence = 0;
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                message = inbound.message() => {
                    heard = Instant::now();
                    let message = message.map_err(|status| End::Refused(hearth_client::convert::status(&status)))?;
                    self.take(message.ok_or(End::Closed)?).await?;
                }
                _ = beat.tick() => {
                    if self.ask_again.is_some_and(|at| at <= Instant::now()) {
                        return Err(End::Behind);
                    }
                    if heard.elapsed() >= heartbeat * SILENT_HEARTBEATS {
                        return Err(End::Silent(heard.elapsed().as_secs()));
                    }
                    sequence += 1;
                    send(&self.out, Up::Heartbeat(v1::Heartbeat { sequence })).await?;
                }
                () = session.shared.reporter.changed() => self.report().await?,
                changed = certificates.changed() => {
                    changed.map_err(|_| End::Shutdown)?;
                    self.ask_for_certificates().await?;
                }
                _ = check.tick() => self.ask_for_certificates().await?,
                Some(Ok(result)) = self.dials.join_next() => send(&self.out, Up::DialResult(result)).await?,
            }
        }
    }

    async fn take(&mut self, message: v1::RegionMessage) -> Result<(), End> {
        let session = self.session;
        // What this agent does not know is of a newer region, and skipped.
        let Some(message) = message.message else { return Ok(()) };
        match message {
            Down::Desired(desired) => {
                let result = session.manager.desired(&self.incarnation, desired).await.ok_or(End::Shutdown)?;
                if let Err(refusal) = result {
                    session.shared.metrics.desired_refused.with_label_values(&[refusal.label()]).inc();
                    if !self.refused {
                        tracing::error!(%refusal, "the region is not believed");
                    }
                    self.refused = true;
                    if matches!(refusal, Refusal::Older { .. } | Refusal::NoBase) {
                        // Its memory may have been behind its disk: asked again, it may know more.
                        self.ask_again.get_or_insert(Instant::now() + ASK_AGAIN);
                    }
                }
            }
            Down::StatusAck(ack) => session.shared.reporter.acknowledge(ack.sequence),
            Down::Certificate(answer) => {
                let (ingress, now) = (session.ingress.clone(), session.shared.now());
                blocking(move || ingress.certificates().answer(&answer, now)).await;
            }
            Down::Dial(dial) => self.dial(dial).await?,
            Down::Goodbye(goodbye) => {
                let pause = Duration::from_millis(goodbye.retry_after_millis).min(MAX_ASKED_PAUSE);
                return Err(End::Goodbye { reason: goodbye.reason, pause });
            }
            Down::Trust(told) => session.believe(told.trust_json).await,
            Down::Copies(copies) => {
                if let Err(error) = session.recovery.take(copies).await {
                    tracing::warn!(error = chain(&error), "copies of the owner's objects are not kept");
                }
            }
            Down::Hello(_) | Down::HeartbeatAck(_) => {}
        }
        Ok(())
    }

    async fn dial(&mut self, dial: v1::Dial) -> Result<(), End> {
        let notice = notice(&dial);
        let id = dial.id;
        match notice {
            Ok(notice) if self.dials.len() < MAX_DIALS => {
                self.session.roster.add(notice.gateway_key);
                let tunnel = self.session.tunnel.clone();
                self.dials.spawn(async move {
                    let result = tunnel.dial(notice).await;
                    if let Err(error) = &result {
                        tracing::warn!(error = chain(error), "a gateway cannot be dialled");
                    }
                    v1::DialResult { id, error: result.err().map(|error| chain(&error)).unwrap_or_default() }
                });
                Ok(())
            }
            Ok(_) => send(&self.out, failed_dial(id, "too many dials at once")).await,
            Err(why) => send(&self.out, failed_dial(id, why)).await,
        }
    }

    async fn report(&self) -> Result<(), End> {
        let reporter = &self.session.shared.reporter;
        while let Some(report) = reporter.next_report() {
            send(&self.out, Up::Status(report)).await?;
        }
        if let Some(events) = reporter.take_events() {
            send(&self.out, Up::Events(events)).await?;
        }
        Ok(())
    }

    async fn ask_for_certificates(&self) -> Result<(), End> {
        let (ingress, now) = (self.session.ingress.clone(), self.session.shared.now());
        for request in blocking(move || ingress.certificates().requests(now)).await {
            send(&self.out, Up::CertificateRequest(request)).await?;
        }
        Ok(())
    }
}

async fn send(out: &mpsc::Sender<v1::DeviceMessage>, message: Up) -> Result<(), End> {
    out.send(v1::DeviceMessage { message: Some(message) }).await.map_err(|_| End::Closed)
}

fn failed_dial(id: u64, why: &str) -> Up {
    Up::DialResult(v1::DialResult { id, error: why.into() })
}

fn notice(dial: &v1::Dial) -> Result<DialNotice, &'static str> {
    let gateway_key = dial.gateway_key.as_ref().try_into().map_err(|_| "the gateway's key has not 32 bytes")?;
    if dial.addresses.len() > MAX_ADDRESSES {
        return Err("too many addresses");
    }
    let addresses: Vec<_> = dial.addresses.iter().filter_map(|text| text.parse().ok()).collect();
    if addresses.is_empty() { Err("no usable address") } else { Ok(DialNotice { gateway_key, addresses }) }
}

/// The pause after so many failures in a row, of which half is left to `chance` (0 to 1).
fn pause(failures: u32, chance: f64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1_u32 << failures.saturating_sub(1).min(16));
    doubled.min(MAX_PAUSE).mul_f64(0.5 + chance / 2.0)
}

fn chance() -> f64 {
    use ring::rand::SecureRandom as _;
    let mut byte = [0; 2];
    // Without randomness all devices come at once: unlikely, and survivable.
    let _ = ring::rand::SystemRandom::new().fill(&mut byte);
    f64::from(u16::from_le_bytes(byte)) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tries_are_quick_and_none_waits_longer_than_half_a_minute() {
        assert_eq!(pause(1, 1.0), FIRST_PAUSE);
        assert!(pause(3, 0.0) < Duration::from_secs(1));
        assert_eq!(pause(40, 1.0), MAX_PAUSE);
        assert_eq!(pause(40, 0.0), MAX_PAUSE / 2);
    }

    #[test]
    fn a_dial_that_makes_no_sense_is_refused() {
        let dial = |key: &[u8], addresses: &[&str]| v1::Dial {
            id: 1,
            gateway_key: key.to_vec().into(),
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
        };
        assert!(notice(&dial(&[0; 32], &["192.0.2.1:1", "nonsense"])).is_ok());
        assert!(notice(&dial(&[0; 31], &["192.0.2.1:1"])).is_err());
        assert!(notice(&dial(&[0; 32], &["x"])).is_err());
        assert!(notice(&dial(&[0; 32], &["192.0.2.1:1"; 17])).is_err());
    }

    #[test]
    fn the_roster_is_bounded() {
        let roster = Roster::default();
        (0..=MAX_ROSTER as u8).for_each(|n| roster.add([n; 32]));
        assert!(!roster.has(&[0; 32]));
        assert!(roster.has(&[MAX_ROSTER as u8; 32]));
    }
}
