//! The copies of their owner's objects that devices keep: sent whole as a signed list, with the objects that a device does not have yet.

use std::collections::HashSet;

use bytes::Bytes;
use hearth_proto::v1::{Copies, TrustTold, region_message::Message};
use hearth_types::{
    DeviceName, GroupKind,
    recovery::{Digest, Trust},
};

use super::Session;
use crate::{
    cache::View,
    hub::Hub,
    recovery::{self, Page},
};

/// Whose a device is.
pub(super) fn owner(hub: &Hub, device: &DeviceName) -> Box<str> {
    let cache = hub.cache();
    match cache.object(GroupKind::DEVICE, "", device.as_str()).map(|entry| &entry.view) {
        Some(View::Device { owner }) => owner.clone(),
        _ => Box::default(),
    }
}

/// What devices are told of the recovery key; empty where there is none.
pub(super) fn trust(hub: &Hub) -> Vec<u8> {
    recovery::record(hub).map(|record| record.trust.to_json()).unwrap_or_default()
}

/// What a device has been told and given.
pub(super) struct Sent {
    trust: Option<Trust>,
    /// What it has, as it said in its hello or was sent since.
    content: Option<Digest>,
    bodies: HashSet<Digest>,
}

impl Sent {
    /// What a device has after the hellos.
    pub(super) fn new(trust: &[u8], content: &Bytes) -> Self {
        let content = content.as_ref().try_into().ok().map(Digest);
        Self { trust: Trust::from_json(trust).ok(), content, bodies: HashSet::new() }
    }

    /// Sends what the device lacks. `false`: it cannot be sent to any more.
    pub(super) fn send(&mut self, hub: &Hub, session: &Session) -> bool {
        let Some(record) = recovery::record(hub) else { return true };
        if self.trust.as_ref() != Some(&record.trust) {
            let told = TrustTold { trust_json: record.trust.to_json().into() };
            if !session.send(Message::Trust(told)) {
                return false;
            }
            self.trust = Some(record.trust.clone());
        }
        let owner = owner(hub, &session.device);
        if owner.is_empty() {
            return true;
        }
        let Some(Page { manifest, bodies }) = Page::of(hub, &record, &owner) else { return true };
        let content = manifest.content();
        let all: HashSet<Digest> = bodies.keys().copied().collect();
        if self.content.replace(content) == Some(content) {
            self.bodies = all;
            return true;
        }
        let lacks = bodies.into_iter().filter(|(hash, _)| !self.bodies.contains(hash));
        let bodies = lacks.map(|(_, body)| body.into()).collect();
        self.bodies = all;
        session.send(Message::Copies(Copies { manifest_json: manifest.to_json().into(), bodies }))
    }
}
