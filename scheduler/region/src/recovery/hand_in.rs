//! What a device hands in, before anything is done with it: read within bounds, and believed only where it is signed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hearth_proto::v1::{HandInBegin, HandInMessage, HandInRefusal, HandInResponse, hand_in_message::Message};
use hearth_types::{
    DeviceKey, DeviceName, GroupKind, Object, ObjectKey,
    recovery::{Digest, Entry, MAX_COPIES_BYTES, Manifest, Record, Trust, is_shared, rank},
};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::{commit, device};
use crate::{hub::Hub, recorder::Note};

/// How long a whole hand-in may take: some megabytes over a slow line.
const TIME: Duration = Duration::from_mins(2);
/// Refusals that are told; there may be as many as objects.
const MAX_REFUSALS: usize = 64;

/// What was handed in and is signed. Whether it is the caller's is not said yet.
pub(super) struct HandIn {
    pub(super) manifest: Manifest,
    /// The objects that came, each as the manifest has it.
    pub(super) objects: BTreeMap<ObjectKey, Object>,
    pub(super) refused: Refused,
}

/// What was refused, and why.
#[derive(Clone, Default)]
pub(super) struct Refused {
    told: Vec<HandInRefusal>,
    count: usize,
}

impl Refused {
    pub(super) fn add(&mut self, object: impl ToString, why: impl Into<String>) {
        self.count += 1;
        if self.told.len() < MAX_REFUSALS {
            self.told.push(HandInRefusal { object: object.to_string(), why: why.into() });
        }
    }
}

/// Takes a hand-in of whoever proved `key`, whole or not at all.
pub(super) async fn take(
    hub: &Arc<Hub>,
    record: &Record,
    key: DeviceKey,
    inbound: Streaming<HandInMessage>,
) -> Result<HandInResponse, Status> {
    let taken = match timeout(TIME, read(hub, record, inbound)).await {
        Ok(Ok(read)) => {
            let owner = read.manifest.owner.clone();
            commit::commit(hub, key, read).await.map(|done| (owner, done))
        }
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded(format!("the hand-in took longer than {} s", TIME.as_secs()))),
    };
    let known = hub.cache().device_of_key(&key).cloned();
    let object = known.as_ref().and_then(|name| {
        let cache = hub.cache();
        cache.object(GroupKind::DEVICE, "", name.as_str()).map(|entry| entry.object.clone())
    });
    let tell = |warning, reason, message: String| {
        if let Some(object) = &object {
            hub.recorder.note(Note::about(object, warning, reason, message, "recovery"));
        }
    };
    match taken {
        Ok((owner, (mut response, refused))) => {
            tracing::info!(%key, owner, restored = response.restored, known = response.known, refused = refused.count, "a device handed in copies");
            if response.restored > 0 {
                tell(false, "HandedIn", format!("{} objects of {owner} are there again", response.restored));
            }
            if refused.count > 0 {
                let first = refused.told.first().map(|one| format!("{}: {}", one.object, one.why)).unwrap_or_default();
                tracing::warn!(%key, owner, refused = refused.count, first, "some of the copies that a device handed in are refused");
                hub.metrics.hand_ins_refused.inc();
                tell(true, "HandInRefused", format!("{} copies are refused; the first: {first}", refused.count));
            }
            response.refused = refused.told;
            Ok(response)
        }
        Err(status) => {
            tracing::warn!(%key, device = known.as_ref().map(DeviceName::as_str), error = status.message(), "what a device hands in is refused");
            hub.metrics.hand_ins_refused.inc();
            tell(true, "HandInRefused", status.message().to_owned());
            Err(status)
        }
    }
}

async fn read(hub: &Hub, record: &Record, mut inbound: Streaming<HandInMessage>) -> Result<HandIn, Status> {
    let Some(Message::Begin(begin)) = inbound.message().await?.and_then(|message| message.message) else {
        return Err(Status::invalid_argument("a hand-in begins with the list of copies"));
    };
    let manifest = believed(hub, record, &begin)?;
    let mut reading = HandIn { manifest, objects: BTreeMap::new(), refused: Refused::default() };
    let by_hash: BTreeMap<Digest, ObjectKey> =
        reading.manifest.entries.iter().map(|entry| (entry.sha256, entry.key.clone())).collect();
    let mut bytes = 0;
    while let Some(message) = inbound.message().await? {
        match message.message {
            Some(Message::Bodies(bodies)) => {
                for body in bodies.bodies {
                    bytes += body.len();
                    if bytes > MAX_COPIES_BYTES {
                        let text = format!("the copies have more than {MAX_COPIES_BYTES} bytes");
                        return Err(Status::invalid_argument(text));
                    }
                    reading.take(&by_hash, &body);
                }
            }
            Some(Message::Begin(_)) => return Err(Status::invalid_argument("a second beginning of one hand-in")),
            // Of a newer device.
            None => {}
        }
    }
    Ok(reading)
}

/// The list of copies, where it is signed by the lost region, and of this one's name.
fn believed(hub: &Hub, record: &Record, begin: &HandInBegin) -> Result<Manifest, Status> {
    let refused = |why: String| Status::permission_denied(format!("the copies are not believed: {why}"));
    let trust = Trust::from_json(&begin.trust_json).map_err(|error| refused(error.to_string()))?;
    if trust.key != record.trust.key {
        return Err(refused(format!(
            "they are vouched for by the recovery key {}, and this region's is {}",
            trust.key, record.trust.key
        )));
    }
    let manifest = Manifest::from_json(&begin.manifest_json).map_err(|error| refused(error.to_string()))?;
    manifest.check(trust.endorsement.signing_key).map_err(|error| refused(error.to_string()))?;
    let own = (hub.config.region.as_str(), hub.config.zone.as_str());
    for (region, zone) in [(&trust.endorsement.region, &trust.endorsement.zone), (&manifest.region, &manifest.zone)] {
        if (region.as_str(), zone.as_str()) != own {
            return Err(refused(format!("they are of the region {region} ({zone}), not of {} ({})", own.0, own.1)));
        }
    }
    let (generation, newest) = manifest.newest();
    if generation >= record.generation() {
        let text = format!("they are of generation {generation}; this region is of {}", record.generation());
        return Err(refused(text));
    }
    let revision = hub.cache().revision();
    if newest >= revision {
        // The machine's clock was wrong when the region was recovered. Watchers and devices would take new for old.
        return Err(Status::unavailable(format!(
            "the lost region was at revision {newest}, and this one is at {revision} only: recover it again on a machine whose clock is right"
        )));
    }
    Ok(manifest)
}

impl HandIn {
    fn take(&mut self, by_hash: &BTreeMap<Digest, ObjectKey>, body: &Bytes) {
        let Some(key) = by_hash.get(&Digest::of(body)) else {
            let what = Object::from_json(body).map_or_else(|_| "?".to_owned(), |object| object.key().to_string());
            return self.refused.add(what, "the region never signed it like this");
        };
        let Some(entry) = self.manifest.get(key) else { return };
        match object(entry, &self.manifest.owner, body) {
            Ok(object) => drop(self.objects.insert(key.clone(), object)),
            Err(why) => self.refused.add(key, why),
        }
    }

    /// The Device that has a key, where it is one of the owner's.
    pub(super) fn device_of(&self, key: DeviceKey) -> Option<&Object> {
        let devices = self.objects.values().filter(|object| *object.kind() == GroupKind::DEVICE);
        devices.into_iter().find(|object| device(object).1.contains(&key))
    }

    /// Drops what is not the owner's.
    pub(super) fn drop_foreign(&mut self) {
        let devices: BTreeSet<&str> = self
            .manifest
            .entries
            .iter()
            .filter(|entry| entry.key.kind == GroupKind::DEVICE)
            .map(|entry| &*entry.key.name)
            .collect();
        let foreign: Vec<ObjectKey> = self
            .objects
            .keys()
            .filter(|key| key.kind == GroupKind::NODE && !devices.contains(&*key.name))
            .cloned()
            .collect();
        for key in foreign {
            self.objects.remove(&key);
            self.refused.add(key, "it is the Node of nobody's Device in the list");
        }
    }
}

/// The object of a body, where it is what its entry says and the owner's.
fn object(entry: &Entry, owner: &str, body: &[u8]) -> Result<Object, String> {
    let object = Object::from_json(body).map_err(|error| error.to_string())?;
    if object.key() != &entry.key || *object.uid() != entry.uid {
        return Err(format!("it is {} {}", object.key(), object.uid()));
    }
    let kind = object.kind();
    if rank(kind).is_none() {
        return Err(format!("a {kind} is not copied"));
    }
    let info = hearth_types::registry::of_kind(kind).ok_or_else(|| format!("the kind {kind} is not known"))?;
    let own = if info.is_namespaced() {
        object.namespace() == owner
    } else if *kind == GroupKind::NAMESPACE {
        object.name() == owner
    } else if *kind == GroupKind::DEVICE {
        device(&object).0 == owner
    } else {
        is_shared(kind) || *kind == GroupKind::NODE
    };
    if own { Ok(object) } else { Err(format!("it is not {owner}'s")) }
}
