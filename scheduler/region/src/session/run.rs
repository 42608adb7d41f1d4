//! One session, from hello to its end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hearth_proto::{
    SESSION_VERSION,
    v1::{
        self, Desired, DeviceHello, DeviceMessage, EventReport, HeartbeatAck, RegionHello, RegionMessage, Servers,
        device_message, region_message::Message,
    },
};
use hearth_types::{
    DeviceKey, DeviceName, GroupKind, ObjectKey, Uid,
    kinds::DeviceInfo,
    lease,
    relay::{PASS_RENEWAL, Pass, Relay},
    store::Consistency,
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tonic::{Status, Streaming};

use super::{Caller, Outbox, Session, StatusJob, certificate, copies, desired, restored};
use crate::{hub::Hub, lead::Lead, leases, reconcile, recorder::Note, writer};

/// How long a device has for its hello.
const HELLO: Duration = Duration::from_secs(10);
/// The largest `info_json` in bytes: a page of text.
const MAX_INFO: usize = 64 << 10;
/// Events that a device may tell at once.
const EVENT_BURST: u32 = 64;
/// Events that a device may tell a second, after its burst.
const EVENTS_PER_SECOND: u32 = 5;
/// Certificate requests of one device under way at most.
const CERTIFICATES: usize = 4;
/// Heartbeats of one device whose leases are under way at most: the next one asks again.
const GRANTING: usize = 4;
/// Tries to store what a device is, against others that write its object.
const TRIES: usize = 8;

/// Why a session ended: the label of a metric.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Silent,
    Ended,
    Broken,
}

/// Runs one session.
pub(super) async fn session(
    hub: Arc<Hub>,
    caller: Caller,
    mut inbound: Streaming<DeviceMessage>,
    outbox: Outbox,
    lead: Lead,
) {
    let (device, key) = (caller.device.clone(), caller.key);
    let mut servers = hub.servers.subscribe();
    let elsewhere = |outbox: Outbox| {
        let goodbye = Message::Goodbye(hub.goodbye("another server of the region leads now"));
        outbox.close(Some(Ok(RegionMessage { message: Some(goodbye) })));
    };
    let greeted = tokio::select! {
        greeted = hello(&hub, &device, &key, &mut inbound, &outbox, &mut servers) => greeted,
        () = lead.over.cancelled() => return elsewhere(outbox),
    };
    let (copies, leases) = match greeted {
        Ok(greeted) => greeted,
        Err(status) => {
            tracing::info!(%device, error = status.message(), "refused a session");
            outbox.close(Some(Err(status)));
            return;
        }
    };
    let owner = copies::owner(&hub, &device);
    let session = match hub.sessions.open(lead.term, caller, &owner, leases, outbox) {
        Ok(session) => session,
        Err(outbox) => return elsewhere(outbox),
    };
    // A key that was removed since the hello found no session to end.
    let keys = hub.cache().keys_of(device.as_str());
    hub.sessions.check_key(device.as_str(), &keys);
    hub.metrics.sessions.inc();
    hub.queue.add(reconcile::node_key(device.as_str()));
    tracing::info!(%device, session = session.id, "a device opened its session");
    let end = talk(&hub, &session, inbound, servers, copies).await;
    session.end.cancel();
    session.outbox.close(None);
    hub.metrics.sessions.dec();
    let label = match end {
        End::Closed => "closed",
        End::Silent => "silent",
        End::Ended => "ended",
        End::Broken => "broken",
    };
    hub.metrics.sessions_ended.with_label_values(&[label]).inc();
    if hub.sessions.close(&session, end == End::Silent) {
        hub.queue.add(reconcile::node_key(device.as_str()));
    }
    tracing::info!(%device, session = session.id, reason = label, "a device's session ended");
}

/// Agrees on a version, checks the key against the Device as it is stored, and keeps what the device says of itself.
async fn hello(
    hub: &Arc<Hub>,
    device: &DeviceName,
    key: &DeviceKey,
    inbound: &mut Streaming<DeviceMessage>,
    outbox: &Outbox,
    servers: &mut watch::Receiver<Arc<[String]>>,
) -> Result<(copies::Sent, bool), Status> {
    let first = timeout(HELLO, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded(format!("no hello within {} s", HELLO.as_secs())))??;
    let Some(device_message::Message::Hello(hello)) = first.and_then(|message| message.message) else {
        return Err(Status::invalid_argument("the first message of a session is a hello"));
    };
    if !hello.versions.contains(&SESSION_VERSION) {
        let text = format!(
            "this region speaks version {SESSION_VERSION} of the session protocol, the device {:?}; update the older of the two",
            hello.versions
        );
        return Err(Status::failed_precondition(text));
    }
    let object = ObjectKey::new(GroupKind::DEVICE, "", device.as_str());
    // The cache may be behind, of a device that joined a moment ago. And a server that was cut off may not know that another leads: it
    // cannot read like this, and the device goes on to the next.
    let stored = refresh(hub, &object).await?;
    if !stored || !hub.cache().keys_of(device.as_str()).contains(key) {
        return Err(Status::permission_denied(format!("device {device} is not known, or not by this key")));
    }
    store_info(hub, &object, &hello).await?;
    let lost_writes = restored::lost_writes(hub, device, &object, &hello).await?;
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let answer = RegionHello {
        version: SESSION_VERSION,
        features: Vec::new(),
        incarnation: hub.config.store.incarnation().to_string(),
        zone: hub.config.zone.clone(),
        heartbeat_millis: millis(hub.config.timing.heartbeat),
        now_millis: hub.now().0,
        lost_writes,
        servers: servers.borrow_and_update().to_vec(),
        trust_json: copies::trust(hub).into(),
    };
    let copies = copies::Sent::new(&answer.trust_json, &hello.copies);
    let leases = hello.features.iter().any(|feature| feature == lease::FEATURE);
    let message = RegionMessage { message: Some(Message::Hello(answer)) };
    if outbox.send(message) { Ok((copies, leases)) } else { Err(Status::aborted("the device is gone")) }
}

/// Stores what the machine is in its Device, where that changed.
async fn store_info(hub: &Arc<Hub>, key: &ObjectKey, hello: &DeviceHello) -> Result<(), Status> {
    if hello.info_json.len() > MAX_INFO {
        return Err(Status::invalid_argument(format!(
            "info_json has {} bytes; at most {MAX_INFO}",
            hello.info_json.len()
        )));
    }
    if hello.info_json.is_empty() {
        return Ok(());
    }
    let info: DeviceInfo = serde_json::from_slice(&hello.info_json)
        .map_err(|error| Status::invalid_argument(format!("info_json cannot be read as a DeviceInfo: {error}")))?;
    let info = json!(info);
    change_device(hub, key, |value| {
        if !value["status"].is_object() {
            value["status"] = json!({});
        }
        value["status"]["info"] = info.clone();
    })
    .await
}

/// Changes a device's own object, against whoever else does.
pub(super) async fn change_device(hub: &Arc<Hub>, key: &ObjectKey, change: impl Fn(&mut Value)) -> Result<(), Status> {
    for _ in 0..TRIES {
        let Some(base) = hub.cache().get(key).map(|entry| entry.object.clone()) else {
            return Err(Status::permission_denied(format!("{key} was removed")));
        };
        let mut value = base.value();
        change(&mut value);
        if value == base.value() {
            return Ok(());
        }
        let action = hearth_controllers::Action::Update { base, value };
        match writer::execute(hub, &[action], "session").await {
            Ok(()) => return Ok(()),
            Err(writer::WriteError::Outdated(_)) => drop(refresh(hub, key).await?),
            Err(writer::WriteError::Refused(error)) => return Err(Status::unavailable(error.message)),
        }
    }
    Err(Status::aborted(format!("{key} is changed by others all the time; try again")))
}

/// Brings the cache up to what is stored of an object. Returns whether there is one.
async fn refresh(hub: &Hub, key: &ObjectKey) -> Result<bool, Status> {
    let stored = hub.config.store.get(key, Consistency::Linearizable).await;
    let Some(stored) = stored.map_err(|error| Status::unavailable(error.message))? else { return Ok(false) };
    hub.observe_read(stored);
    Ok(true)
}

/// What a device has, by what it was sent.
type Sent = BTreeMap<ObjectKey, desired::Shown>;

async fn talk(
    hub: &Arc<Hub>,
    session: &Arc<Session>,
    mut inbound: Streaming<DeviceMessage>,
    mut servers: watch::Receiver<Arc<[String]>>,
    mut copies: copies::Sent,
) -> End {
    let mut sent = Sent::new();
    let mut events = EventBudget::new();
    let mut heard = Instant::now();
    let mut signing = JoinSet::new();
    let mut granting = JoinSet::new();
    let mut relays = hub.relays.subscribe();
    let mut pass = interval_at(Instant::now() + PASS_RENEWAL, PASS_RENEWAL);
    pass.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if !send_desired(hub, session, &mut sent, true)
        || !copies.send(hub, session)
        || !tell_relays(hub, session, &mut relays)
    {
        return End::Ended;
    }
    restored::settle(hub, &session.device).await;
    loop {
        tokio::select! {
            () = session.end.cancelled() => return End::Ended,
            () = hub.shutdown.cancelled() => return End::Ended,
            () = session.dirty.notified() => {
                if !send_desired(hub, session, &mut sent, false) {
                    return End::Ended;
                }
                restored::settle(hub, &session.device).await;
            }
            () = session.copies.notified() => {
                if !copies.send(hub, session) {
                    return End::Ended;
                }
            }
            // The sender lives as long as the hub.
            Ok(()) = servers.changed() => {
                let addresses = servers.borrow_and_update().to_vec();
                session.send(Message::Servers(Servers { addresses }));
            }
            Ok(()) = relays.changed() => {
                if !tell_relays(hub, session, &mut relays) {
                    return End::Ended;
                }
            }
            _ = pass.tick() => {
                if !tell_relays(hub, session, &mut relays) {
                    return End::Ended;
                }
            }
            Some(_) = signing.join_next() => {}
            Some(_) = granting.join_next() => {}
            message = timeout(hub.config.timing.silence, inbound.message()) => match message {
                Err(_) => {
                    session.goodbye("the device said nothing for too long");
                    return End::Silent;
                }
                Ok(Err(_)) => return End::Broken,
                Ok(Ok(None)) => return End::Closed,
                Ok(Ok(Some(message))) => {
                    if let Some(device_message::Message::Heartbeat(heartbeat)) = &message.message {
                        grant_leases(hub, session, heartbeat.sequence, &mut granting);
                        let late = heard.elapsed().saturating_sub(hub.config.timing.heartbeat);
                        hub.metrics.heartbeat_delay_seconds.observe(late.as_secs_f64());
                        heard = Instant::now();
                    }
                    if !handle(hub, session, message, &mut events, &mut signing).await {
                        return End::Ended;
                    }
                }
            },
        }
    }
}

/// Answers a heartbeat, which has been received, with the leases of the device's volumes, where it has such.
fn grant_leases(hub: &Arc<Hub>, session: &Arc<Session>, sequence: u64, granting: &mut JoinSet<()>) {
    if !session.leases || granting.len() >= GRANTING || !leases::concerns(hub, &session.device) {
        return;
    }
    let (hub, session) = (Arc::clone(hub), Arc::clone(session));
    // Ends with the session: the set is dropped with it.
    granting.spawn(async move {
        if let Some(leases) = leases::grant(&hub, &session.device, sequence).await {
            session.send(Message::Leases(leases));
        }
    });
}

/// Tells which relays there are, with a fresh pass for them. A region without any says so only where it had some.
fn tell_relays(hub: &Hub, session: &Session, relays: &mut watch::Receiver<Arc<[Relay]>>) -> bool {
    let changed = relays.has_changed().unwrap_or(false);
    let now = relays.borrow_and_update().clone();
    if now.is_empty() && !changed {
        return true;
    }
    let pass = Pass::of_device(session.key, &session.owner, hub.now()).sign(&hub.config.signing);
    let relay = |relay: &Relay| v1::Relay {
        name: relay.name.clone(),
        url: relay.url.clone(),
        discovery_port: relay.discovery_port.into(),
    };
    let revision = hub.cache().revision().0;
    session.send(Message::Relays(v1::Relays { revision, relays: now.iter().map(relay).collect(), pass }))
}

async fn handle(
    hub: &Arc<Hub>,
    session: &Arc<Session>,
    message: DeviceMessage,
    events: &mut EventBudget,
    signing: &mut JoinSet<()>,
) -> bool {
    use device_message::Message as In;
    match message.message {
        Some(In::Heartbeat(heartbeat)) => {
            session.send(Message::HeartbeatAck(HeartbeatAck { sequence: heartbeat.sequence }))
        }
        Some(In::Status(report)) => {
            let job = StatusJob { session: Arc::clone(session), report };
            // A full queue holds the device back; its report is not lost.
            tokio::select! {
                sent = hub.sessions.statuses.send(job) => sent.is_ok(),
                () = session.end.cancelled() => false,
            }
        }
        Some(In::DialResult(result)) => {
            session.answer_dial(result.id, result.error);
            true
        }
        Some(In::CertificateRequest(request)) => {
            if signing.len() >= CERTIFICATES {
                return certificate::refuse(
                    session,
                    request.id,
                    "too many certificate requests at once; wait for the answers",
                );
            }
            let (hub, session) = (Arc::clone(hub), Arc::clone(session));
            // Ends with the session: the set is dropped with it.
            signing.spawn(async move { certificate::answer(&hub, &session, request).await });
            true
        }
        Some(In::Events(report)) => {
            tell(hub, session, report, events);
            true
        }
        // A second hello is a fault of the device; what a newer one may send is skipped.
        Some(In::Hello(_)) => {
            session.goodbye("a second hello in one session");
            false
        }
        None => true,
    }
}

/// Sends what the device shall have: all of it, or what changed since.
fn send_desired(hub: &Hub, session: &Session, sent: &mut Sent, full: bool) -> bool {
    let (wanted, revision) = {
        let cache = hub.cache();
        (desired::of_device(&cache, session.device.as_str(), session.leases), cache.revision())
    };
    let changed =
        |(key, new): &(&ObjectKey, &desired::Shown)| full || sent.get(*key).is_none_or(|old| !old.covers(new));
    let upserts: Vec<_> = wanted.iter().filter(changed).map(|(_, new)| desired::envelope(&new.object)).collect();
    let deletes: Vec<_> = sent.keys().filter(|key| !wanted.contains_key(key)).map(desired::reference).collect();
    if !full && upserts.is_empty() && deletes.is_empty() {
        return true;
    }
    *sent = wanted;
    hub.sessions.tells(&session.device, revision);
    session.send(Message::Desired(Desired { full, revision: revision.0, upserts, deletes }))
}

/// How many more events a device may tell now.
struct EventBudget {
    left: u32,
    since: Instant,
}

impl EventBudget {
    fn new() -> Self {
        Self { left: EVENT_BURST, since: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let earned =
            u32::try_from(self.since.elapsed().as_secs()).unwrap_or(u32::MAX).saturating_mul(EVENTS_PER_SECOND);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(EVENT_BURST);
            self.since = Instant::now();
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

/// Takes events that regard what is the device's own.
fn tell(hub: &Hub, session: &Session, report: EventReport, budget: &mut EventBudget) {
    for event in report.items {
        if !budget.take() {
            hub.metrics.events_dropped.inc();
            continue;
        }
        let Some(key) = event.regarding.as_ref().map(desired::key_of) else { continue };
        let object = {
            let cache = hub.cache();
            cache
                .get(&key)
                .filter(|entry| desired::belongs_to(entry, session.device.as_str()))
                .map(|entry| entry.object.clone())
        };
        let Some(object) =
            object.filter(|object| event.uid.is_empty() || *object.uid() == Uid::from(event.uid.as_str()))
        else {
            tracing::debug!(device = %session.device, object = %key, "dropped an event on what is not the device's");
            continue;
        };
        let is_word = !event.reason.is_empty() && event.reason.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let reason = if is_word { event.reason } else { "Unknown".to_owned() };
        let warning = event.r#type == "Warning";
        hub.recorder.note(Note::about(&object, warning, &reason, event.message, &format!("device/{}", session.device)));
    }
}
