//! The keys by which the region's zone is signed: made once, kept in the store for all servers, each private key sealed by a key that is derived
//! from the CA's, so that the store alone, or a look at the Secret, gives nobody the zone.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use hearth_types::{
    Object, Reason, RequestId, Status,
    dns::keys::{self, KeySet, NewKey, PARENT_DS_TTL, Role, RolloverError, ZoneKey},
    store::{Consistency, WatchEvent, write_one},
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

use crate::{CertificateAuthority, own_object, resources::ResourceService, seal::Seal};

/// Says what the sealing key is for.
const SEAL_INFO: &[u8] = b"hearth dnssec keys v1";
/// Says what the cookies' secret is for.
const COOKIE_INFO: &[u8] = b"hearth dns cookies v1";
/// Tries of a change of the keys that others changed meanwhile.
const MAX_ATTEMPTS: usize = 16;
/// The pause before the watch is begun again after it broke.
const RETRY: Duration = Duration::from_millis(500);
/// The longest time for which a parent's DS set may be cached: a week, as the longest of the registries.
const MAX_PARENT_DS_TTL: Duration = Duration::from_hours(7 * 24);

/// What is asked of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Begin to replace the key of a role.
    Roll(Role),
    /// The new KSK's DS is at the parent, whose DS set may be cached for so long.
    DsSeen(Duration),
}

/// The keys of the region's zone.
pub struct ZoneSigning {
    resources: Arc<ResourceService>,
    seal: Seal,
    cookie_secret: [u8; 32],
    random: SystemRandom,
}

impl std::fmt::Debug for ZoneSigning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZoneSigning").finish_non_exhaustive()
    }
}

fn failed(what: &str) -> Status {
    Status::internal(format!("cannot {what} a key of the zone"))
}

/// A step that cannot be taken now.
struct RefusedStep(RolloverError);

impl From<RefusedStep> for Status {
    fn from(RefusedStep(error): RefusedStep) -> Self {
        let reason = match error {
            RolloverError::UnderWay(_) | RolloverError::NotWaiting => Reason::Conflict,
            RolloverError::Missing(_) => Reason::InternalError,
        };
        Self::new(reason, error.to_string())
    }
}

impl ZoneSigning {
    /// The keys of the zone of these resources, sealed for whoever has this CA's key.
    pub fn new(resources: Arc<ResourceService>, ca: &CertificateAuthority) -> Result<Self, Status> {
        let (seal, cookie_secret) = (Seal::new(ca, SEAL_INFO)?, ca.derive(COOKIE_INFO)?);
        Ok(Self { resources, seal, cookie_secret, random: SystemRandom::new() })
    }

    /// The secret of DNS cookies, the same at every server of the region.
    pub fn cookie_secret(&self) -> [u8; 32] {
        self.cookie_secret
    }

    /// The zone.
    pub fn zone(&self) -> &str {
        self.resources.zone()
    }

    /// The keys; made where the region has none yet.
    pub async fn ensure(&self) -> Result<KeySet, Status> {
        for _ in 0..MAX_ATTEMPTS {
            if let Some(object) = self.stored().await? {
                return read(&object);
            }
            let set = KeySet::first(&self.new_key()?, &self.new_key()?, self.resources.clock().now());
            match self.write(None, &set).await {
                Ok(_) => return Ok(set),
                // Another server was faster.
                Err(status) if status.reason == Reason::AlreadyExists => {}
                Err(status) => return Err(status),
            }
        }
        Err(Status::new(Reason::Conflict, "the keys of the zone kept changing; try again"))
    }

    /// Takes a step of a rollover.
    pub async fn step(&self, step: Step) -> Result<KeySet, Status> {
        if let Step::DsSeen(ttl) = step
            && ttl > MAX_PARENT_DS_TTL
        {
            let most = MAX_PARENT_DS_TTL.as_secs();
            return Err(Status::new(Reason::BadRequest, format!("the TTL of the parent's DS: at most {most} s")));
        }
        for _ in 0..MAX_ATTEMPTS {
            let now = self.resources.clock().now();
            let Some(object) = self.stored().await? else {
                self.ensure().await?;
                continue;
            };
            let mut set = read(&object)?;
            match step {
                Step::Roll(role) => set.roll(role, &self.new_key()?, now).map_err(RefusedStep)?,
                Step::DsSeen(ttl) => {
                    let ttl = if ttl.is_zero() { PARENT_DS_TTL } else { ttl };
                    set.ds_seen(ttl, now).map_err(RefusedStep)?;
                }
            }
            match self.write(Some(&object), &set).await {
                Ok(_) => return Ok(set),
                Err(status) if matches!(status.reason, Reason::Conflict | Reason::NotFound) => {}
                Err(status) => return Err(status),
            }
        }
        Err(Status::new(Reason::Conflict, "the keys of the zone kept changing; try again"))
    }

    /// The time by which phases are told.
    pub fn now(&self) -> hearth_types::Timestamp {
        self.resources.clock().now()
    }

    async fn stored(&self) -> Result<Option<Object>, Status> {
        self.resources.store().get(&keys::object_key(), Consistency::Linearizable).await
    }

    async fn write(&self, old: Option<&Object>, set: &KeySet) -> Result<Object, Status> {
        let value = set.write(old.map(Object::value).as_ref());
        let op = own_object::put(&self.resources, &keys::object_key(), old, value)?;
        let request_id = RequestId::from(uuid::Uuid::new_v4().to_string());
        write_one(self.resources.store().as_ref(), request_id, op, self.now()).await
    }

    fn new_key(&self) -> Result<NewKey, Status> {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &self.random).map_err(|_| failed("make"))?;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &self.random).map_err(|_| failed("make"))?;
        // Behind the byte that says that both halves are there.
        let public = pair.public_key().as_ref().get(1..).and_then(|public| public.try_into().ok());
        let public: [u8; 64] = public.ok_or_else(|| failed("make"))?;
        let sealed = self.seal.seal(pkcs8.as_ref(), &public).ok_or_else(|| failed("seal"))?;
        Ok(NewKey { public, sealed })
    }

    /// The private key of a sealed one (PKCS #8); the error says why it stays shut.
    pub fn open(&self, key: &ZoneKey) -> Result<Vec<u8>, String> {
        let wrong = || "it was sealed by another CA, or is damaged".to_owned();
        let (sealed, public) = key.sealed_bytes().zip(key.public_bytes()).ok_or_else(wrong)?;
        self.seal.open(&sealed, &public).ok_or_else(wrong)
    }

    /// Gives the keys as they are stored, and each time that they change, for as long as it runs.
    pub async fn follow(&self, mut take: impl FnMut(Result<KeySet, Status>)) {
        loop {
            let error = match self.follow_once(&mut take).await {
                Ok(()) => "the stream ended".to_owned(),
                Err(status) => status.message,
            };
            tracing::warn!(%error, "the watch of the zone's keys broke; it is begun again");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow_once(&self, take: &mut impl FnMut(Result<KeySet, Status>)) -> Result<(), Status> {
        let (object, mut events) = own_object::follow(&self.resources, &keys::object_key()).await?;
        if let Some(object) = &object {
            take(read(object));
        }
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => take(read(&object)),
                // The keys that were known go on signing: without them nobody who knows the parent's DS would believe the zone.
                WatchEvent::Deleted(_) => {
                    take(Err(damaged("it was deleted; the servers that run go on with what they have")))
                }
                WatchEvent::Bookmark(_) => {}
            }
        }
        Ok(())
    }
}

fn read(object: &Object) -> Result<KeySet, Status> {
    KeySet::read(&object.value()).map_err(|why| damaged(&why))
}

fn damaged(why: &str) -> Status {
    let key = keys::object_key();
    let text = format!(
        "the zone's keys in the Secret {}/{}: {why}; restore it from a backup of the region",
        key.namespace, key.name
    );
    Status { object: Some(Box::new(key)), ..Status::new(Reason::InternalError, text) }
}
