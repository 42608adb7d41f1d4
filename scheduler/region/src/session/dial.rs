//! Asking devices to dial, through their sessions.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_core::Stream;
use futures_util::StreamExt as _;
use hearth_proto::v1::{
    DeviceSession, Dial, DialDeviceRequest, DialDeviceResponse, SessionChanges, SessionsRequest,
    dial_device_response::Outcome, dials_server::Dials, region_message::Message,
};
use hearth_types::{
    BoxFuture, DeviceKey, DeviceName, GroupKind,
    condition::is_true,
    identity::Identity,
    relay::{MAX_RELAYS, check_url},
    tunnel::{DialError, DialNotice, DialNotifier},
};
use tokio::{
    sync::{broadcast::error::RecvError, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tonic::{Request, Response, Status};

use super::{Session, SessionChange};
use crate::{hub::Hub, lead::Lead, remote};

/// How long a device has to say that it dialled.
const ANSWER: Duration = Duration::from_secs(10);
/// Dial notices without an answer at most; the oldest is given up.
const MAX_DIALS: usize = 64;
/// How long a device that was connected has to come to a new leader before it counts as away for those who want it: it finds the leader
/// within seconds.
const ARRIVAL: Duration = Duration::from_secs(5);
/// Addresses in one notice at most: a gateway has few.
pub(crate) const MAX_ADDRESSES: usize = 16;
/// The longest name of a device in bytes (a DNS subdomain).
pub(crate) const MAX_DEVICE_NAME: usize = 253;
/// The pause before a leader is looked for again.
const PAUSE: Duration = Duration::from_millis(100);
/// Sessions in one message at most, so that it stays below the largest one.
const SESSIONS_PER_MESSAGE: usize = 1000;

impl Session {
    fn ask(&self, notice: &DialNotice) -> Option<oneshot::Receiver<String>> {
        let (answer, wait) = oneshot::channel();
        let id = {
            let mut dials = self.dials();
            dials.waiting.retain(|(_, waiting)| !waiting.is_closed());
            if dials.waiting.len() >= MAX_DIALS {
                dials.waiting.pop_front();
            }
            dials.next += 1;
            let id = dials.next;
            dials.waiting.push_back((id, answer));
            id
        };
        let addresses = notice.addresses.iter().map(ToString::to_string).collect();
        let dial =
            Dial { id, gateway_key: notice.gateway_key.to_vec().into(), addresses, relays: notice.relays.clone() };
        self.send(Message::Dial(dial)).then_some(wait)
    }

    pub(super) fn answer_dial(&self, id: u64, error: String) {
        let mut dials = self.dials();
        if let Some(index) = dials.waiting.iter().position(|(waiting, _)| *waiting == id)
            && let Some((_, answer)) = dials.waiting.remove(index)
        {
            // Whoever asked may have given up.
            let _ = answer.send(error);
        }
    }
}

/// What became of a try to ask a device.
#[derive(Debug)]
pub(crate) enum Asked {
    /// It was asked, or cannot be.
    Answered(Result<Vec<DeviceKey>, DialError>),
    /// It was not asked: its session is this one, and not the one that the caller knows.
    OtherSession(u64),
    /// The server that was asked does not lead, or cannot be reached: there may be another one.
    NoLeader,
}

/// The device's session, for which is waited where the device is on its way to this new leader.
async fn arrived(hub: &Hub, device: &DeviceName) -> Option<Arc<Session>> {
    // Listening before looking, so that nothing is missed in between.
    let mut changes = hub.sessions.changes.subscribe();
    if let Some(session) = hub.sessions.get(device) {
        return Some(session);
    }
    let left = ARRIVAL.checked_sub(hub.sessions.not_since(device)?)?;
    let stored = hub.cache().object(GroupKind::DEVICE, "", device.as_str()).map(|entry| entry.object.value())?;
    if !is_true(&stored, "Connected") {
        return None;
    }
    let deadline = Instant::now() + left;
    loop {
        match timeout_at(deadline, changes.recv()).await {
            Ok(Ok(change)) if change.device != *device => {}
            Ok(Ok(_) | Err(RecvError::Lagged(_))) => {
                if let Some(session) = hub.sessions.get(device) {
                    return Some(session);
                }
            }
            Ok(Err(RecvError::Closed)) | Err(_) => return None,
        }
    }
}

/// Asks a device whose session is here. `known`: only in this session.
async fn here(hub: &Hub, lead: &Lead, device: &DeviceName, notice: &DialNotice, known: Option<u64>) -> Asked {
    let away = || Asked::Answered(Err(DialError::Away(device.clone())));
    let session = tokio::select! {
        session = arrived(hub, device) => session,
        () = lead.over.cancelled() => return Asked::NoLeader,
    };
    let Some(session) = session else {
        let exists = hub.cache().object(GroupKind::DEVICE, "", device.as_str()).is_some();
        return if exists { away() } else { Asked::Answered(Err(DialError::Unknown(device.clone()))) };
    };
    if known.is_some_and(|known| known != session.id) {
        return Asked::OtherSession(session.id);
    }
    let Some(wait) = session.ask(notice) else { return away() };
    let answer = tokio::select! {
        answer = timeout(ANSWER, wait) => answer,
        () = lead.over.cancelled() => return Asked::NoLeader,
        () = session.end.cancelled() => return away(),
    };
    Asked::Answered(match answer {
        Err(_) => Err(DialError::Timeout { device: device.clone(), seconds: ANSWER.as_secs() }),
        Ok(Err(_)) => Err(DialError::Broken { device: device.clone(), why: "too many dials at once".into() }),
        Ok(Ok(error)) if !error.is_empty() => {
            let why: String = error.chars().take(500).collect();
            Err(DialError::Broken { device: device.clone(), why })
        }
        Ok(Ok(_)) => Ok(hub.cache().keys_of(device.as_str())),
    })
}

/// Asks devices to dial: those whose sessions are here, and the others through the server that leads. An answer means that the device
/// says it has dialled. While the region elects a leader, and while a device is on its way to a new one, it waits, bounded in time.
pub(crate) struct Dialling {
    hub: Arc<Hub>,
}

impl Dialling {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

impl DialNotifier for Dialling {
    fn ask_to_dial<'a>(
        &'a self,
        device: &'a DeviceName,
        notice: DialNotice,
    ) -> BoxFuture<'a, Result<Vec<DeviceKey>, DialError>> {
        Box::pin(async move {
            let deadline = Instant::now() + ANSWER;
            loop {
                let asked = match self.hub.lead() {
                    Some(lead) => here(&self.hub, &lead, device, &notice, None).await,
                    None => remote::dial(&self.hub, device, &notice).await,
                };
                match asked {
                    Asked::Answered(result) => return result,
                    // It is known now.
                    Asked::OtherSession(_) if Instant::now() < deadline => {}
                    Asked::NoLeader if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                    Asked::OtherSession(_) | Asked::NoLeader => {
                        let why = "no server of the region that leads can be reached; try again".to_owned();
                        return Err(DialError::Broken { device: device.clone(), why });
                    }
                }
            }
        })
    }

    fn device_of_key(&self, key: &DeviceKey) -> Option<DeviceName> {
        self.hub.cache().device_of_key(key).cloned()
    }

    fn session_of(&self, device: &DeviceName) -> Option<u64> {
        match self.hub.lead() {
            Some(_) => self.hub.sessions.get(device).map(|session| session.id),
            None => self.hub.remote.session_of(device),
        }
    }
}

/// The gRPC service `hearth.v1.Dials`. The door must put the caller's [`Identity`] into the request's extensions.
pub struct DialsService {
    hub: Arc<Hub>,
}

impl DialsService {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    /// This server's time of leading, for another server that asks.
    fn admit<T>(&self, request: &Request<T>) -> Result<Lead, Status> {
        let identity = request.extensions().get::<Identity>();
        if !identity.is_some_and(Identity::is_server) {
            let who = identity.map_or_else(|| "a caller without identity".to_owned(), ToString::to_string);
            return Err(Status::permission_denied(format!("this is for servers of the region; the caller is {who}")));
        }
        let lead = self.hub.lead();
        lead.ok_or_else(|| Status::failed_precondition("this server does not lead the region; ask the one that does"))
    }
}

type Changes = Pin<Box<dyn Stream<Item = Result<SessionChanges, Status>> + Send>>;

#[tonic::async_trait]
impl Dials for DialsService {
    type SessionsStream = Changes;

    async fn dial(&self, request: Request<DialDeviceRequest>) -> Result<Response<DialDeviceResponse>, Status> {
        let lead = self.admit(&request)?;
        let (device, notice, known) = read(request.into_inner())?;
        let mut answer = DialDeviceResponse::default();
        let outcome = match here(&self.hub, &lead, &device, &notice, Some(known)).await {
            Asked::NoLeader => return Err(Status::failed_precondition("this server leads the region no longer")),
            Asked::OtherSession(session) => {
                answer.session = session;
                Outcome::OtherSession
            }
            Asked::Answered(Ok(keys)) => {
                answer.keys = keys.iter().map(|key| key.0.to_vec().into()).collect();
                Outcome::Dialled
            }
            Asked::Answered(Err(error)) => match error {
                DialError::Unknown(_) => Outcome::Unknown,
                DialError::Away(_) => Outcome::Away,
                DialError::Timeout { .. } => Outcome::Timeout,
                DialError::Broken { why, .. } => {
                    answer.why = why;
                    Outcome::Broken
                }
            },
        };
        answer.set_outcome(outcome);
        Ok(Response::new(answer))
    }

    async fn sessions(&self, request: Request<SessionsRequest>) -> Result<Response<Changes>, Status> {
        let lead = self.admit(&request)?;
        let (all, changes) = self.hub.sessions.follow();
        let mut first: Vec<_> = all.chunks(SESSIONS_PER_MESSAGE).map(|some| Ok(message(some))).collect();
        first.push(Ok(SessionChanges { changes: Vec::new(), complete: true }));
        let more = futures_util::stream::unfold(Some(changes), async |changes| {
            let mut changes = changes?;
            match changes.recv().await {
                Ok(change) => {
                    let mut some = vec![change];
                    while some.len() < SESSIONS_PER_MESSAGE
                        && let Ok(change) = changes.try_recv()
                    {
                        some.push(change);
                    }
                    Some((Ok(message(&some)), Some(changes)))
                }
                Err(RecvError::Lagged(_)) => Some((Err(Status::aborted("too far behind; begin anew")), None)),
                Err(RecvError::Closed) => None,
            }
        });
        let stream = futures_util::stream::iter(first).chain(more).take_until(lead.over.cancelled_owned());
        Ok(Response::new(Box::pin(stream)))
    }
}

fn message(changes: &[SessionChange]) -> SessionChanges {
    let change = |change: &SessionChange| DeviceSession {
        device: change.device.to_string(),
        session: change.session.unwrap_or_default(),
    };
    SessionChanges { changes: changes.iter().map(change).collect(), complete: false }
}

fn read(request: DialDeviceRequest) -> Result<(DeviceName, DialNotice, u64), Status> {
    let gateway_key = request.gateway_key.as_ref().try_into();
    let gateway_key = gateway_key.map_err(|_| Status::invalid_argument("gateway_key: must have 32 bytes"))?;
    if request.device.is_empty() || request.device.len() > MAX_DEVICE_NAME {
        return Err(Status::invalid_argument(format!("device: must have 1 to {MAX_DEVICE_NAME} bytes")));
    }
    if request.addresses.len() > MAX_ADDRESSES {
        return Err(Status::invalid_argument(format!("addresses: at most {MAX_ADDRESSES}")));
    }
    if request.relays.len() > MAX_RELAYS || request.relays.iter().any(|url| check_url(url).is_err()) {
        return Err(Status::invalid_argument(format!("relays: at most {MAX_RELAYS}, each https://host:port")));
    }
    let addresses: Result<Vec<_>, _> = request.addresses.iter().map(|text| text.parse()).collect();
    let addresses = addresses.map_err(|_| Status::invalid_argument("addresses: must be ip:port"))?;
    Ok((
        DeviceName::from(request.device),
        DialNotice { gateway_key, addresses, relays: request.relays },
        request.session,
    ))
}
