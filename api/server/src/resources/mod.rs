//! The one resource service behind every door: reads, watches and writes of every kind, through admission.

mod apply;
mod apply_all;
mod delete;
mod namespace;
mod write;

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use hearth_types::{
    Clock, GroupKind, Object, ObjectKey, Reason, RequestId, Revision, Status, Timestamp, Uid,
    admission::{self, Context},
    names,
    registry::{self, KindInfo},
    selector::{FieldSelector, LabelSelector, Selector},
    store::{Consistency, ListPage, MAX_PAGE, Query, Store, WatchEvent, WatchStream, list_all},
};
use serde_json::{Value, json};

use crate::{ca::sha256, devices::DeviceIndex};

/// Tries of one optimistic write that names no revision: each fails only if another write of the same
/// object came in between.
const MAX_ATTEMPTS: usize = 16;
/// The longest request id in bytes: a UUID has 36. The store takes 128, and each attempt adds its number and what is asked for.
pub const MAX_REQUEST_ID_BYTES: usize = 100;
/// Bytes of objects on one page of a list at most, so that a page of large objects fits a message.
pub const MAX_PAGE_BYTES: usize = 16 << 20;
/// Tries of a list whose pages were outrun by the history.
const LIST_ATTEMPTS: usize = 3;
/// The namespaces that every region has.
pub const DEFAULT_NAMESPACES: [&str; 2] = ["default", "kube-system"];

/// How a write is asked for.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// The client's name for this write: the same id is applied once. Empty: a fresh one.
    pub request_id: String,
    /// Validate and answer as if, but store nothing.
    pub dry_run: bool,
}

/// How a deletion is asked for.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// See [`WriteOptions::request_id`].
    pub request_id: String,
    /// Pods: seconds until it is killed; 0 removes without waiting for the device.
    pub grace_seconds: Option<i64>,
    /// Only this very object.
    pub uid: Option<Uid>,
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was none of that name.
    Created,
    /// It changed.
    Configured,
    /// It was so already.
    Unchanged,
}

/// The answer to a write.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object as it is stored now; of a dry run, as it would be.
    pub object: Object,
    /// What happened.
    pub outcome: Outcome,
    /// Fields that are accepted and not acted on.
    pub warnings: Vec<String>,
}

/// The answer to a deletion.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The object as it was, or with its mark.
    pub object: Object,
    /// `false`: marked, and removed once it has stopped or its finalizers are done.
    pub removed: bool,
}

/// The resource service. All doors and all parts of the server that write for somebody go through it.
pub struct ResourceService {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    zone: String,
    devices: Arc<DeviceIndex>,
}

impl std::fmt::Debug for ResourceService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResourceService").field("zone", &self.zone).finish_non_exhaustive()
    }
}

impl ResourceService {
    /// A service over a store, for a zone (without a dot at either end).
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, zone: &str) -> Self {
        Self { store, clock, zone: zone.to_owned(), devices: Arc::new(DeviceIndex::default()) }
    }

    /// The store below.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Which key belongs to which device, as the doors see it.
    pub(crate) fn devices(&self) -> &Arc<DeviceIndex> {
        &self.devices
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn zone(&self) -> &str {
        &self.zone
    }

    /// Makes the namespaces that every region has. To be called at every start, once the store answers.
    pub async fn ensure_defaults(&self) -> Result<(), Status> {
        for name in DEFAULT_NAMESPACES {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            match self.create(namespace, &WriteOptions::default()).await {
                Ok(_) => {}
                Err(status) if status.reason == Reason::AlreadyExists => {}
                Err(status) => return Err(status),
            }
        }
        Ok(())
    }

    /// One object; `NotFound` where there is none.
    pub async fn get(&self, key: &ObjectKey, read: Consistency) -> Result<Object, Status> {
        check_key(key)?;
        self.store.get(key, read).await?.ok_or_else(|| Status::not_found(key))
    }

    /// A page of objects: at most `limit`, `MAX_PAGE` and [`MAX_PAGE_BYTES`] of them, but at least one.
    pub async fn list(
        &self,
        query: &Query,
        limit: usize,
        continue_token: Option<&str>,
        read: Consistency,
    ) -> Result<ListPage, Status> {
        let mut limit = if limit == 0 { MAX_PAGE } else { limit.min(MAX_PAGE) };
        loop {
            let page = self.store.list(query, limit, continue_token, read).await?;
            let mut bytes = 0_usize;
            let fits = page.items.iter().take_while(|object| {
                bytes += object.json().len();
                bytes <= MAX_PAGE_BYTES
            });
            let fits = fits.count().max(1);
            if fits >= page.items.len() {
                return Ok(page);
            }
            // Strictly fewer than before, so this ends.
            limit = fits.min(limit - 1);
        }
    }

    /// Changes after `from`; from zero, first everything that is there, as ADDED, then a bookmark.
    pub async fn watch(&self, query: Query, from: Revision) -> Result<WatchStream, Status> {
        if from > Revision::ZERO {
            return match self.store.watch(query.clone(), from).await {
                Err(status) if status.reason == Reason::Expired => {
                    // Whoever comes from another server may have seen more there than this one has yet. One read catches it up.
                    self.store.list(&query, 1, None, Consistency::Linearizable).await?;
                    self.store.watch(query, from).await
                }
                other => other,
            };
        }
        let mut attempt = 0;
        let (items, revision) = loop {
            attempt += 1;
            match list_all(self.store.as_ref(), &query, Consistency::Linearizable).await {
                Err(status) if status.reason == Reason::Expired && attempt < LIST_ATTEMPTS => {}
                other => break other?,
            }
        };
        let live = self.store.watch(query, revision).await?;
        let first = stream::iter(items.into_iter().map(|object| Ok(WatchEvent::Added(object))));
        let bookmark = stream::iter([Ok(WatchEvent::Bookmark(revision))]);
        Ok(Box::pin(first.chain(bookmark).chain(live)))
    }

    fn context<'a>(&'a self, suffix: &'a str) -> Context<'a> {
        let uid = Uid::from(uuid::Uuid::new_v4().to_string());
        Context { now: self.now(), uid, suffix, zone: &self.zone }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// A query of the texts that a client sent: unknown kinds, bad names and bad selectors are refused.
pub fn parse_query(group: &str, kind: &str, namespace: &str, labels: &str, fields: &str) -> Result<Query, Status> {
    let info = info_of(group, kind)?;
    let bad = |why: String| Status::new(Reason::BadRequest, why);
    if !namespace.is_empty() {
        if !info.is_namespaced() {
            return Err(bad(format!("{} are not namespaced; leave the namespace out", info.resource())));
        }
        names::dns_label(namespace).map_err(|why| bad(format!("namespace {}: {why}", shown(namespace))))?;
    }
    let labels = LabelSelector::parse(labels).map_err(|error| bad(error.to_string()))?;
    let fields = FieldSelector::parse(fields).map_err(|error| bad(error.to_string()))?;
    fields.check(info).map_err(|error| bad(error.to_string()))?;
    Ok(Query {
        kind: info.group_kind(),
        namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
        selector: Selector { labels, fields },
    })
}

/// A key of the texts that a client sent.
pub fn parse_key(group: &str, kind: &str, namespace: &str, name: &str) -> Result<ObjectKey, Status> {
    let key = ObjectKey::new(info_of(group, kind)?.group_kind(), namespace, name);
    check_key(&key)?;
    Ok(key)
}

fn info_of(group: &str, kind: &str) -> Result<&'static KindInfo, Status> {
    registry::by_group_kind(group, kind).ok_or_else(|| {
        let text = format!("the server doesn't have a resource type {} in the group {}", shown(kind), shown(group));
        Status::new(Reason::BadRequest, text)
    })
}

/// Checks that a key can be one of an object, and answers with what the region knows of its kind.
fn check_key(key: &ObjectKey) -> Result<&'static KindInfo, Status> {
    let info = info_of(&key.kind.group, &key.kind.kind)?;
    let bad = |why: String| Status::new(Reason::BadRequest, why);
    if info.is_namespaced() {
        if key.namespace.is_empty() {
            return Err(bad(format!("{} are namespaced; give a namespace", info.resource())));
        }
        names::dns_label(&key.namespace).map_err(|why| bad(format!("namespace {}: {why}", shown(&key.namespace))))?;
    } else if !key.namespace.is_empty() {
        return Err(bad(format!("{} are not namespaced; leave the namespace out", info.resource())));
    }
    names::dns_subdomain(&key.name)
        .map_err(|why| bad(format!("{} name {}: {why}", info.resource(), shown(&key.name))))?;
    Ok(info)
}

/// A text from outside for a message: quoted and cut.
pub(crate) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(100).collect::<String>())
}

/// The kind and key of an object that somebody sent for an existing name. The namespace of a cluster-scoped
/// kind is dropped, as on creation.
fn sent_key(object: &mut Value) -> Result<(&'static KindInfo, ObjectKey), Status> {
    let info = admission::kind_of(object)?;
    if !info.is_namespaced()
        && let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut)
    {
        meta.remove("namespace");
    }
    let key = admission::key_of(info, object);
    if key.name.is_empty() {
        let causes = vec![hearth_types::status::Cause::new("metadata.name", "required")];
        return Err(Status::invalid(&key, causes));
    }
    check_key(&key)?;
    Ok((info, key))
}

/// The revision that a sent object says it was read at.
fn sent_revision(object: &Value) -> Result<Option<Revision>, Status> {
    let text = match object.pointer("/metadata/resourceVersion") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.is_empty() => return Ok(None),
        Some(Value::String(text)) => text.parse().ok(),
        Some(_) => None,
    };
    text.map(Some).ok_or_else(|| {
        Status::new(Reason::BadRequest, "metadata.resourceVersion: must be a text of digits, as it was read")
    })
}

/// The request ids of the attempts of one write. Each attempt has its own, made from the client's, so that
/// a write that is sent again meets the outcomes of the first time in the same order.
///
/// Each says what the client asked for, so that the store refuses the same id for something else. It is what was sent that counts,
/// and not what it comes to: uids, times and the stored object differ from one try to the next.
struct Attempts {
    base: String,
    content: u64,
    next: usize,
}

/// What an attempt would do. It is part of the id, since outcomes of different transactions differ in shape.
#[derive(Clone, Copy)]
enum Doing {
    Create,
    Change,
    Delete,
    All,
}

impl Attempts {
    fn new(request_id: &str, verb: &str, asked: &[&[u8]]) -> Result<Self, Status> {
        let graphic = request_id.bytes().all(|byte| byte.is_ascii_graphic());
        if request_id.len() > MAX_REQUEST_ID_BYTES || !graphic {
            let text = format!("request_id: at most {MAX_REQUEST_ID_BYTES} printable ASCII characters, as a UUID");
            return Err(Status::new(Reason::BadRequest, text));
        }
        let fresh = || uuid::Uuid::new_v4().to_string();
        let base = if request_id.is_empty() { fresh() } else { request_id.to_owned() };
        Ok(Self { base, content: fingerprint(verb, asked), next: 0 })
    }

    /// The id of the next attempt, or `None` once there were enough.
    fn next(&mut self, doing: Doing) -> Option<RequestId> {
        let number = self.next;
        self.next += 1;
        let letter = match doing {
            Doing::Create => 'c',
            Doing::Change => 'u',
            Doing::Delete => 'd',
            Doing::All => 'a',
        };
        let id = || RequestId::from(format!("{}/{letter}{number}", self.base)).with_content(self.content);
        (number < MAX_ATTEMPTS).then(id)
    }
}

/// What is asked for, in 64 bits: enough against mistakes, and nobody is kept from reusing an id on purpose.
fn fingerprint(verb: &str, asked: &[&[u8]]) -> u64 {
    let mut bytes = verb.as_bytes().to_vec();
    for part in asked {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    let hash = sha256(&bytes);
    hash[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn too_contended(key: &ObjectKey) -> Status {
    Status::conflict(key, &format!("it changed {MAX_ATTEMPTS} times while this was tried; try again"))
}

/// A fresh suffix for `metadata.generateName`: Kubernetes' alphabet, without vowels and look-alikes.
fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let bytes = uuid::Uuid::new_v4().into_bytes();
    bytes[..5].iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

/// The namespace of a name.
fn namespace_key(name: &str) -> ObjectKey {
    ObjectKey::new(GroupKind::NAMESPACE, "", name)
}
