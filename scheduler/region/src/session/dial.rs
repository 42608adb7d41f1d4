//! Asking devices to dial, through their sessions.

use std::{sync::Arc, time::Duration};

use hearth_proto::v1::{Dial, region_message::Message};
use hearth_types::{
    BoxFuture, DeviceKey, DeviceName, GroupKind,
    tunnel::{DialError, DialNotice, DialNotifier},
};
use tokio::{sync::oneshot, time::timeout};

use super::Session;
use crate::hub::Hub;

/// How long a device has to say that it dialled.
const ANSWER: Duration = Duration::from_secs(10);
/// Dial notices without an answer at most; the oldest is given up.
const MAX_DIALS: usize = 64;

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
        let dial = Dial { id, gateway_key: notice.gateway_key.to_vec().into(), addresses };
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

/// Asks devices to dial. An answer means that the device says it has dialled.
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
            let known = self.hub.cache().object(GroupKind::DEVICE, "", device.as_str()).is_some();
            let Some(session) = self.hub.sessions.get(device) else {
                return Err(if known { DialError::Away(device.clone()) } else { DialError::Unknown(device.clone()) });
            };
            let Some(wait) = session.ask(&notice) else {
                return Err(DialError::Away(device.clone()));
            };
            let answer = tokio::select! {
                answer = timeout(ANSWER, wait) => answer,
                () = session.end.cancelled() => return Err(DialError::Away(device.clone())),
            };
            match answer {
                Err(_) => Err(DialError::Timeout { device: device.clone(), seconds: ANSWER.as_secs() }),
                Ok(Err(_)) => Err(DialError::Broken { device: device.clone(), why: "too many dials at once".into() }),
                Ok(Ok(error)) if !error.is_empty() => {
                    let why: String = error.chars().take(500).collect();
                    Err(DialError::Broken { device: device.clone(), why })
                }
                Ok(Ok(_)) => Ok(self.hub.cache().keys_of(device.as_str())),
            }
        })
    }

    fn device_of_key(&self, key: &DeviceKey) -> Option<DeviceName> {
        self.hub.cache().device_of_key(key).cloned()
    }

    fn session_of(&self, device: &DeviceName) -> Option<u64> {
        self.hub.sessions.get(device).map(|session| session.id)
    }
}
