//! The device's session with its region: one stream, dialled outwards, for as long as the agent runs.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hearth_client::device::{self, DeviceError};
use hearth_proto::{
    MAX_MESSAGE_BYTES, SESSION_VERSION,
    v1::{self, device_message::Message as Up, devices_client::DevicesClient, region_message::Message as Down},
};
use hearth_tunnel::{DeviceTunnel, RelaySet};
use hearth_types::{
    Incarnation,
    group::MAX_SERVERS,
    kinds::DeviceInfo,
    names,
    relay::{MAX_RELAYS, Relay, RelayAccess, check_url, server_name},
    tunnel::DialNotice,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, interval_at, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    desired::Refusal,
    files::chain,
    identity::{Identity, IdentityError},
    ingress::Ingress,
    manager::Manager,
    recovery::Recovery,
    servers::Servers,
    shared::{Shared, blocking},
};

/// Messages that wait to be sent.
const QUEUE: usize = 16;
/// How long connecting and the region's hello may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// The same at first where there are other servers to go to; it grows with every round that finds none, for lines that are slow.
const FIRST_HELLO_TIMEOUT: Duration = Duration::from_secs(4);
/// Heartbeats as often as the region says, within these bounds.
const MIN_HEARTBEAT: Duration = Duration::from_millis(500);
const MAX_HEARTBEAT: Duration = Duration::from_mins(1);
/// A region that said nothing for so many heartbeats is gone.
const SILENT_HEARTBEATS: u32 = 3;
/// Pauses before the next try: the first ones short, since most breaks are a restart of the server; half of each is left to
/// chance, so that thousands of devices do not come at once.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause where one of the region's servers answers that another is to lead: an election takes about a second.
const MAX_ELECTION_PAUSE: Duration = Duration::from_secs(1);
/// After so many rounds of that in a row it is no election: a server that is cut off from the others says so for ever.
const ELECTION_ROUNDS: u32 = 30;
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
/// Servers that are tried in one round: all that are known, and one that the last of them may name.
const MAX_TRIED: usize = MAX_SERVERS * 2;
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
    pub(crate) servers: Servers,
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
    #[error("{server} does not answer within {seconds} s")]
    NoHello { server: String, seconds: u64 },
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
    Goodbye { reason: String, pause: Duration, leader: Option<String> },
    #[error("the region has been silent for {0} s")]
    Silent(u64),
    #[error("the region knows less than it did; asking it again")]
    Behind,
    #[error("the copies of the owner's objects are handed in; beginning anew")]
    HandedIn,
    #[error("no server of the region is known")]
    NoServer,
    #[error("the agent ends")]
    Shutdown,
}

impl End {
    fn label(&self) -> &'static str {
        match self {
            Self::Identity(_) | Self::Device(_) | Self::NoServer => "device",
            Self::NoHello { .. } | Self::NotHello | Self::Version(_) => "hello",
            Self::Refused(_) => "refused",
            Self::Untrusted(_) => "untrusted",
            Self::Closed => "closed",
            Self::Goodbye { .. } => "goodbye",
            Self::Silent(_) => "silent",
            Self::Behind => "behind",
            Self::HandedIn => "handed_in",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What a round over all servers came to.
struct Round {
    /// Why there is no session any more, or none was made: of the last server that was tried.
    end: End,
    /// There was a session, for so long.
    held: Option<Duration>,
    /// A server answered that another one is to lead.
    is_there: bool,
    /// A server said that the region was recovered, and is believed: all are to be tried anew.
    recovered: bool,
}

impl Session {
    /// Keeps a session for ever.
    pub(crate) async fn run(mut self) {
        let mut failures = 0_u32;
        let mut told = String::new();
        loop {
            let Round { end, held, is_there, recovered } = self.round(failures).await;
            if matches!(end, End::Shutdown) {
                return;
            }
            if recovered {
                continue;
            }
            failures = if held.is_some_and(|held| held >= STABLE) { 0 } else { failures.saturating_add(1) };
            let asked = if let End::Goodbye { pause, .. } = &end { *pause } else { Duration::ZERO };
            let mut pause = pause(failures, chance());
            if is_there && failures <= ELECTION_ROUNDS {
                pause = pause.min(MAX_ELECTION_PAUSE.mul_f64(0.5 + chance() / 2.0));
            }
            let pause = pause.max(asked);
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

    /// Tries one server after the other until there was a session. A server that names the leader has that one tried next.
    async fn round(&mut self, failures: u32) -> Round {
        let mut next = self.servers.round();
        let has_others = next.len() > 1;
        let patience =
            if has_others { FIRST_HELLO_TIMEOUT + Duration::from_secs(failures.into()) } else { HELLO_TIMEOUT };
        let patience = patience.min(HELLO_TIMEOUT);
        let mut tried: Vec<String> = Vec::new();
        let mut round = Round { end: End::NoServer, held: None, is_there: false, recovered: false };
        // A leader that is named may be none that is known. So many are tried in one round, whatever they name.
        while let Some(server) = next.pop_front()
            && tried.len() < MAX_TRIED
        {
            if tried.contains(&server) {
                continue;
            }
            let opened = self.open(&server, has_others, patience).await;
            tried.push(server.clone());
            let end = match opened {
                Ok((live, inbound, heartbeat)) => {
                    let begin = Instant::now();
                    let end = live.run(inbound, heartbeat).await;
                    round.held = Some(begin.elapsed());
                    self.servers.lost(&server);
                    self.shared.metrics.session_up.set(0);
                    self.connected.send_replace(false);
                    end
                }
                Err(end) => end,
            };
            self.shared.metrics.sessions.with_label_values(&[end.label()]).inc();
            if let End::Goodbye { leader, .. } = &end {
                round.is_there = true;
                match leader.clone().filter(|leader| names::is_address(leader)) {
                    // Of a session: after a pause, with the others that it ended.
                    Some(leader) if round.held.is_some() => self.servers.in_session(&leader),
                    Some(leader) => next.push_front(leader),
                    None => {}
                }
            }
            if matches!(end, End::Untrusted(_)) {
                round.recovered = self.recovery.look(&self.region(&server, has_others)).await;
            }
            round.end = end;
            if round.recovered || round.held.is_some() || matches!(round.end, End::Shutdown) {
                break;
            }
        }
        round
    }

    /// What this machine is, and what it lacks now.
    fn info(&self) -> Vec<u8> {
        let mut info = self.info.clone();
        info.missing.extend(self.shared.network.notices().iter().map(ToString::to_string));
        serde_json::to_vec(&info).unwrap_or_default()
    }

    /// The region as this device knows it now, by one of its servers.
    fn region(&self, server: &str, has_others: bool) -> device::Region {
        self.recovery.of(self.identity.region(server, has_others, self.shared.now()))
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

    /// Opens a session with a server.
    async fn open(
        &mut self,
        server: &str,
        has_others: bool,
        patience: Duration,
    ) -> Result<(Live<'_>, tonic::Streaming<v1::RegionMessage>, Duration), End> {
        if let Some(incarnation) = self.recovery.incarnation() {
            self.manager.region_recovered(&incarnation).await.ok_or(End::Shutdown)?;
        }
        let (incarnation, revision) = self.manager.begin_session().await.ok_or(End::Shutdown)?;
        let region = self.region(server, has_others);
        let channel = device::connect(&region, &self.identity.key()?)?;
        // Before the session: the region may know the device by what it hands in alone.
        if let Some(leader) = self.recovery.hand_in(channel.clone()).await {
            // A server that does not know the device yet could not even tell it in a session.
            let reason = "the copies of the owner's objects are for the server that leads".into();
            return Err(End::Goodbye { reason, pause: Duration::ZERO, leader: Some(leader) });
        }
        let handing_in = self.recovery.hand_in_later(channel.clone());
        let mut client = DevicesClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (out, queue) = mpsc::channel(QUEUE);
        let hello = v1::DeviceHello {
            versions: vec![SESSION_VERSION],
            features: vec![hearth_types::lease::FEATURE.to_owned()],
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
        let opened = timeout(patience, opened).await;
        let opened = opened.map_err(|_| End::NoHello { server: server.into(), seconds: patience.as_secs() })?;
        let refused = |status: tonic::Status| {
            let why = hearth_client::convert::status(&status);
            if device::is_untrusted(&status) { End::Untrusted(why) } else { End::Refused(why) }
        };
        let (inbound, first) = opened.map_err(refused)?;
        let hello = match first.and_then(|message| message.message) {
            Some(Down::Hello(hello)) => hello,
            Some(Down::Goodbye(goodbye)) => {
                self.servers_are(&goodbye.servers).await;
                return Err(End::from(goodbye));
            }
            _ => return Err(End::NotHello),
        };
        if hello.version != SESSION_VERSION {
            return Err(End::Version(hello.version));
        }
        tracing::info!(server, incarnation = hello.incarnation, zone = hello.zone, "session with the region");
        self.servers_are(&hello.servers).await;
        self.servers.in_session(server);
        self.shared.metrics.session_up.set(1);
        self.connected.send_replace(true);
        self.shared.reporter.begin_session();
        self.shared.leases.begin_session();
        let incarnation = Incarnation::from(hello.incarnation.as_str());
        if hello.lost_writes {
            self.manager.region_lost_writes(&incarnation).await.ok_or(End::Shutdown)?;
        }
        self.believe(hello.trust_json).await;
        self.ingress.certificates().begin_session();
        if self.recovery.incarnation().is_some() {
            self.ingress.certificates().renew_those_of_others(&region.ca_pem);
        }
        let heartbeat = Duration::from_millis(hello.heartbeat_millis).clamp(MIN_HEARTBEAT, MAX_HEARTBEAT);
        let live = Live {
            session: self,
            out,
            dials: JoinSet::new(),
            handing_in,
            incarnation,
            refused: false,
            relays_revision: 0,
            ask_again: None,
            period: heartbeat,
            sequence: 0,
        };
        Ok((live, inbound, heartbeat))
    }

    /// The region says that these are its servers.
    async fn servers_are(&mut self, addresses: &[String]) {
        if !self.servers.learn(addresses) {
            return;
        }
        let keep = self.servers.keep();
        if let Err(error) = blocking(keep).await {
            tracing::warn!(
                error = chain(&error),
                "the list of the region's servers cannot be kept; the region tells it again"
            );
        }
    }
}

impl From<v1::Goodbye> for End {
    fn from(goodbye: v1::Goodbye) -> Self {
        let pause = Duration::from_millis(goodbye.retry_after_millis).min(MAX_ASKED_PAUSE);
        let leader = Some(goodbye.leader).filter(|leader| !leader.is_empty());
        Self::Goodbye { reason: goodbye.reason, pause, leader }
    }
}

/// A session that is up.
struct Live<'a> {
    session: &'a mut Session,
    out: mpsc::Sender<v1::DeviceMessage>,
    dials: JoinSet<v1::DialResult>,
    /// Ends once copies that the region could not take at first are handed in.
    handing_in: JoinSet<()>,
    incarnation: Incarnation,
    /// A word of the region was refused, and that was told.
    refused: bool,
    /// Of the newest word of relays.
    relays_revision: u64,
    /// When to end the session, so that the region says everything anew.
    ask_again: Option<Instant>,
    /// How often to send a heartbeat.
    period: Duration,
    sequence: u64,
}

impl Live<'_> {
    async fn run(mut self, inbound: tonic::Streaming<v1::RegionMessage>, heartbeat: Duration) -> End {
        match self.talk(inbound, heartbeat).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn talk(
        &mut self,
        mut inbound: tonic::Streaming<v1::RegionMessage>,
        heartbeat: Duration,
    ) -> Result<Infallible, End> {
        let mut beat = interval(heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut check = Instant::now();
        let mut certificates = self.session.ingress.watch();
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                message = inbound.message() => {
                    heard = Instant::now();
                    let message = message.map_err(|status| End::Refused(hearth_client::convert::status(&status)))?;
                    let period = self.period;
                    self.take(message.ok_or(End::Closed)?).await?;
                    if self.period != period {
                        beat = interval_at(Instant::now() + self.period, self.period);
                        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
                    }
                }
                _ = beat.tick() => {
                    if self.ask_again.is_some_and(|at| at <= Instant::now()) {
                        return Err(End::Behind);
                    }
                    if heard.elapsed() >= heartbeat * SILENT_HEARTBEATS {
                        return Err(End::Silent(heard.elapsed().as_secs()));
                    }
                    self.beat().await?;
                }
                () = self.session.shared.leases.wanted() => self.beat().await?,
                () = self.session.shared.reporter.changed() => self.report().await?,
                changed = certificates.changed() => {
                    changed.map_err(|_| End::Shutdown)?;
                    check = self.ask_for_certificates().await?;
                }
                () = sleep_until(check) => check = self.ask_for_certificates().await?,
                // Copies of the region as it is now are kept from now on: it is to send them.
                Some(_) = self.handing_in.join_next() => return Err(End::HandedIn),
                Some(Ok(result)) = self.dials.join_next() => send(&self.out, Up::DialResult(result)).await?,
            }
        }
    }

    async fn beat(&mut self) -> Result<(), End> {
        self.sequence += 1;
        let sequence = self.sequence;
        // Before it is sent: what waits on the way shortens the lease.
        self.session.shared.leases.ask(sequence);
        send(&self.out, Up::Heartbeat(v1::Heartbeat { sequence })).await
    }

    async fn take(&mut self, message: v1::RegionMessage) -> Result<(), End> {
        let session = &mut *self.session;
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
            Down::Leases(leases) => {
                let renew = session.shared.leases.granted(leases).max(MIN_HEARTBEAT);
                self.period = self.period.min(renew);
            }
            Down::StatusAck(ack) => session.shared.reporter.acknowledge(ack.sequence),
            Down::Certificate(answer) => {
                let (ingress, now) = (session.ingress.clone(), session.shared.now());
                blocking(move || ingress.certificates().answer(&answer, now)).await;
            }
            Down::Dial(dial) => self.dial(dial).await?,
            Down::Goodbye(goodbye) => {
                session.servers_are(&goodbye.servers).await;
                return Err(End::from(goodbye));
            }
            Down::Servers(servers) => session.servers_are(&servers.addresses).await,
            Down::Relays(relays) => self.take_relays(relays).await,
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

    /// The region says that these are its relays.
    async fn take_relays(&mut self, told: v1::Relays) {
        if told.revision < self.relays_revision {
            return;
        }
        self.relays_revision = told.revision;
        let relay = |relay: v1::Relay| {
            let discovery_port = u16::try_from(relay.discovery_port).ok()?;
            check_url(&relay.url).ok().map(|()| Relay { name: relay.name, url: relay.url, discovery_port })
        };
        let relays = told.relays.into_iter().take(MAX_RELAYS).filter_map(relay).collect();
        let session = &*self.session;
        let region = session.region("", false);
        let trust = match device::relay_trust(&region.ca_pem, region.ignore_validity) {
            Ok(trust) => trust,
            Err(error) => {
                tracing::error!(error = chain(&error), "the region's relays cannot be verified, and are not used");
                return;
            }
        };
        let server_name = server_name(session.identity.zone());
        let access = RelayAccess { relays, pass: told.pass };
        session.tunnel.set_relays(RelaySet { access, trust, server_name }).await;
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

    /// Asks for what is due, and returns when to look again.
    async fn ask_for_certificates(&self) -> Result<Instant, End> {
        let (ingress, now) = (self.session.ingress.clone(), self.session.shared.now());
        let look = move || (ingress.certificates().requests(now), ingress.certificates().next_renewal(now));
        let (requests, next) = blocking(look).await;
        for request in requests {
            send(&self.out, Up::CertificateRequest(request)).await?;
        }
        Ok(Instant::now() + next.map_or(CERTIFICATE_CHECK, |next| next.min(CERTIFICATE_CHECK)))
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
    let relays: Vec<_> = dial.relays.iter().take(MAX_RELAYS).cloned().collect();
    if addresses.is_empty() && relays.is_empty() {
        return Err("no usable address");
    }
    Ok(DialNotice { gateway_key, addresses, relays })
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
            relays: Vec::new(),
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
