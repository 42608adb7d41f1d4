//! Devices whose sessions are with another server, since that one leads: which they are, and how they are asked to dial.

use std::{
    collections::HashMap,
    sync::Arc,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use hearth_proto::v1::{
    DialDeviceRequest, SessionChanges, SessionsRequest, dial_device_response::Outcome, dials_client::DialsClient,
};
use hearth_types::{
    DeviceKey, DeviceName,
    group::{CallError, Server},
    tunnel::{DialError, DialNotice},
};
use tonic::transport::Channel;

use crate::{
    hub::Hub,
    session::{Asked, MAX_DEVICE_NAME},
};

/// The pause before the leader's sessions are followed again.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the leader may take to answer for a device: longer than it waits itself for the device to come and to dial.
const ANSWER: Duration = Duration::from_secs(16);
/// Sessions of another server that are kept at most: more than there are devices in a region.
const MAX_SESSIONS: usize = 1 << 20;
/// Keys of one device at most that are taken from an answer.
const MAX_KEYS: usize = 64;

/// How a server calls another one over gRPC: over TLS by which each proves to be the server that it says it is.
pub trait ServerChannels: Send + Sync + 'static {
    /// A channel to the API of another server of the region. Gives the one that is there; connects when it is used.
    fn channel(&self, to: &Server) -> Result<Channel, CallError>;
}

/// The sessions of the server that leads. Empty while it is not known or cannot be reached: nothing is known then, and tunnels that are
/// open go on.
#[derive(Default)]
pub(crate) struct RemoteSessions {
    known: Mutex<HashMap<DeviceName, u64>>,
}

impl RemoteSessions {
    fn known(&self) -> MutexGuard<'_, HashMap<DeviceName, u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn session_of(&self, device: &DeviceName) -> Option<u64> {
        self.known().get(device).copied()
    }

    /// A later session has a greater number.
    fn note(&self, device: &DeviceName, session: u64) {
        let mut known = self.known();
        if known.len() < MAX_SESSIONS || known.contains_key(device) {
            let number = known.entry(device.clone()).or_default();
            *number = session.max(*number);
        }
    }

    /// Takes in what the leader tells. `false`: it tells more than can be.
    fn take(&self, changes: SessionChanges) -> bool {
        let mut known = self.known();
        for change in changes.changes {
            if change.device.len() > MAX_DEVICE_NAME {
                return false;
            }
            let device = DeviceName::from(change.device);
            if change.session == 0 {
                known.remove(&device);
            } else {
                known.insert(device, change.session);
            }
        }
        known.len() <= MAX_SESSIONS
    }
}

/// Follows the sessions of whichever other server leads, for ever.
pub(crate) async fn run(hub: Arc<Hub>) {
    let mut changes = hub.config.group.watch_leadership();
    loop {
        let leader = other_leader(&hub);
        let following = async {
            match &leader {
                Some(leader) => follow(&hub, leader).await,
                None => std::future::pending().await,
            }
            hub.remote.known().clear();
            tokio::time::sleep(PAUSE).await;
        };
        // Dropped with a leader that is it no longer.
        tokio::select! {
            () = following => {}
            Some(()) = other(&mut changes, leader.as_ref()) => {}
        }
        hub.remote.known().clear();
    }
}

/// Waits until another server leads than this one.
async fn other(
    changes: &mut (impl futures_core::Stream<Item = hearth_types::group::Leadership> + Unpin),
    known: Option<&Server>,
) -> Option<()> {
    loop {
        let next = changes.next().await?;
        if next.leader.as_ref() != known {
            return Some(());
        }
    }
}

/// The server that leads, where it is not this one.
fn other_leader(hub: &Hub) -> Option<Server> {
    hub.config.group.leadership().leader.filter(|leader| leader.id != hub.config.group.id())
}

async fn follow(hub: &Hub, leader: &Server) {
    let channel = match hub.config.channels.channel(leader) {
        Ok(channel) => channel,
        Err(error) => return tracing::debug!(%leader, %error, "the server that leads cannot be called"),
    };
    let mut stream = match DialsClient::new(channel).sessions(SessionsRequest {}).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return tracing::debug!(%leader, %status, "the leader's sessions cannot be followed yet"),
    };
    loop {
        match stream.message().await {
            Ok(Some(changes)) => {
                if !hub.remote.take(changes) {
                    return tracing::error!(%leader, "the leader tells of more sessions than there can be");
                }
            }
            Ok(None) => return,
            Err(status) => return tracing::debug!(%leader, %status, "the leader's sessions are not told any more"),
        }
    }
}

/// Asks a device through the server that leads.
pub(crate) async fn dial(hub: &Hub, device: &DeviceName, notice: &DialNotice) -> Asked {
    let Some(leader) = other_leader(hub) else { return Asked::NoLeader };
    let channel = match hub.config.channels.channel(&leader) {
        Ok(channel) => channel,
        Err(error) => {
            tracing::debug!(%leader, %error, "the server that leads cannot be called");
            return Asked::NoLeader;
        }
    };
    let mut request = tonic::Request::new(DialDeviceRequest {
        device: device.to_string(),
        gateway_key: notice.gateway_key.to_vec().into(),
        addresses: notice.addresses.iter().map(ToString::to_string).collect(),
        relays: notice.relays.clone(),
        session: hub.remote.session_of(device).unwrap_or_default(),
    });
    request.set_timeout(ANSWER);
    let answer = match DialsClient::new(channel).dial(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            tracing::debug!(%leader, %device, %status, "the leader cannot be asked for a device");
            return Asked::NoLeader;
        }
    };
    let device = device.clone();
    Asked::Answered(match answer.outcome() {
        Outcome::Dialled => Ok(keys(&answer.keys)),
        Outcome::Unknown => Err(DialError::Unknown(device)),
        Outcome::Away => Err(DialError::Away(device)),
        Outcome::Timeout => Err(DialError::Timeout { device, seconds: ANSWER.as_secs() }),
        Outcome::Broken => Err(DialError::Broken { device, why: answer.why.chars().take(500).collect() }),
        Outcome::OtherSession => {
            hub.remote.note(&device, answer.session);
            return Asked::OtherSession(answer.session);
        }
        Outcome::Unspecified => {
            Err(DialError::Broken { device, why: "the leader's answer does not say what became of it".into() })
        }
    })
}

fn keys(keys: &[bytes::Bytes]) -> Vec<DeviceKey> {
    keys.iter().take(MAX_KEYS).filter_map(|key| key.as_ref().try_into().ok().map(DeviceKey)).collect()
}
