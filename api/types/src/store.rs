//! The store of a region as its users see it: get, list, watch and transactions.

use std::pin::Pin;

use futures_core::Stream;
use serde::{Deserialize, Serialize};

use crate::{
    BoxFuture, GroupKind, Incarnation, Object, ObjectKey, Reason, RequestId, Revision, Status, Timestamp, Uid,
    selector::Selector,
};

/// Operations in one transaction at most, so that one Raft entry stays small.
pub const MAX_OPS: usize = 1_000;
/// Objects on one page of a list at most, asked for or not.
pub const MAX_PAGE: usize = 5_000;

/// What must hold of the stored object for an operation to happen. `None` fields are not checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expect {
    /// The revision it was read at: optimistic concurrency.
    pub revision: Option<Revision>,
    /// The uid it had, so that a namesake made since is not hit.
    pub uid: Option<Uid>,
}

impl Expect {
    /// Exactly the object as it was read.
    pub fn same(object: &Object) -> Self {
        Self { revision: Some(object.revision()), uid: Some(object.uid().clone()) }
    }

    /// Whatever its revision, but this uid.
    pub fn uid(uid: &Uid) -> Self {
        Self { revision: None, uid: Some(uid.clone()) }
    }
}

/// One operation of a transaction. Objects come complete (defaulted, validated, with uid and times);
/// `apply` only stamps `metadata.resourceVersion`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// Stores an object that must not exist yet.
    Create {
        /// The object; its uid must not be empty.
        object: Object,
    },
    /// Replaces an object that exists. Nothing changes, and no revision is used up, where the new
    /// object equals the stored one.
    Update {
        /// The new object; its uid must be that of the stored one.
        object: Object,
        /// What must hold.
        expect: Expect,
    },
    /// Removes an object for good. (Graceful deletion and finalizers are updates that the API makes.)
    Delete {
        /// Which one.
        key: ObjectKey,
        /// What must hold.
        expect: Expect,
    },
    /// Binds a pod to a device: sets `spec.nodeName` and the condition `PodScheduled`, and pins the claims it uses to that device by
    /// the annotation [`CLAIM_DEVICE`]. `apply` itself re-checks: the pod is at `expect.revision`, not bound,
    /// not being deleted; the Node exists, is ready and not cordoned; no claim is pinned elsewhere, missing or being deleted.
    /// A claim of the policy `Move` gets a new epoch with a new device ([`CLAIM_EPOCH`]).
    Bind {
        /// The pod.
        pod: ObjectKey,
        /// What must hold of the pod.
        expect: Expect,
        /// The device's name.
        device: String,
        /// The claims (PersistentVolumeClaims) that the pod mounts.
        claims: Vec<ObjectKey>,
    },
    /// Changes nothing; fails unless `expect` holds of the object. Guards an atomic transaction.
    Check {
        /// Which one.
        key: ObjectKey,
        /// What must hold.
        expect: Expect,
    },
}

/// The annotation of a PersistentVolumeClaim that names the device its data is on.
pub const CLAIM_DEVICE: &str = "hearth.dev/device";
/// The annotation of a PersistentVolumeClaim by which its device says that the data is deleted.
pub const CLAIM_DATA_DELETED: &str = "hearth.dev/data-deleted";
/// The annotation of a PersistentVolumeClaim of the policy `Move` that tells its writers apart ([`Epoch`](crate::lease::Epoch)), in decimal:
/// minted by `apply` when the claim gets a device, greater each time.
pub const CLAIM_EPOCH: &str = "hearth.dev/epoch";
/// The annotation of such a claim with the epoch before: the device that has the data of that one goes on with it.
pub const CLAIM_EPOCH_BEFORE: &str = "hearth.dev/epoch-before";
/// The annotation of such a claim that names the device it was released from.
pub const CLAIM_LAST_DEVICE: &str = "hearth.dev/last-device";
/// The annotations of a PersistentVolumeClaim that are the region's: nobody else sets, changes or drops them.
pub const CLAIM_ANNOTATIONS: [&str; 5] =
    [CLAIM_DEVICE, CLAIM_DATA_DELETED, CLAIM_EPOCH, CLAIM_EPOCH_BEFORE, CLAIM_LAST_DEVICE];

/// A transaction: one entry of the Raft log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Txn {
    /// The client's name for this write: within the duplicate window, the same id is answered with the
    /// first outcome and not applied again.
    pub request_id: RequestId,
    /// `true`: all operations or none. `false`: each on its own, in order.
    pub atomic: bool,
    /// The operations, at most [`MAX_OPS`].
    pub ops: Vec<Op>,
    /// The time at the proposer. `apply` reads no clock.
    pub now: Timestamp,
}

/// Why one operation did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum OpError {
    /// There is one of that name.
    #[error("{0} already exists")]
    AlreadyExists(ObjectKey),
    /// There is none.
    #[error("{0} not found")]
    NotFound(ObjectKey),
    /// It changed since it was read, or is another of the same name.
    #[error("{key}: {why}")]
    Conflict {
        /// Which one.
        key: ObjectKey,
        /// What did not hold.
        why: String,
    },
    /// Another operation of the atomic transaction failed.
    #[error("another operation of the transaction failed")]
    Aborted,
    /// The operation is malformed: a fault of the caller.
    #[error("{0}")]
    Malformed(String),
}

impl From<OpError> for Status {
    fn from(error: OpError) -> Self {
        match error {
            OpError::AlreadyExists(key) => Self::already_exists(&key),
            OpError::NotFound(key) => Self::not_found(&key),
            OpError::Conflict { key, why } => Self::conflict(&key, &why),
            OpError::Aborted => Self::new(Reason::Conflict, error.to_string()),
            OpError::Malformed(why) => Self::internal(why),
        }
    }
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TxnOutcome {
    /// The store's revision after it.
    pub revision: Revision,
    /// One per operation, in order: the object as stored (of a `Delete`, as it was), or why not.
    pub outcomes: Vec<Result<Object, OpError>>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began.
    #[default]
    Linearizable,
    /// What this server has; may be behind.
    Local,
}

/// Which objects: of a kind, in one namespace or in all, by selectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The kind.
    pub kind: GroupKind,
    /// One namespace; `None` for all (and for cluster-scoped kinds).
    pub namespace: Option<String>,
    /// By labels and fields.
    pub selector: Selector,
}

impl Query {
    /// Every object of a kind.
    pub fn all(kind: GroupKind) -> Self {
        Self { kind, namespace: None, selector: Selector::default() }
    }

    /// Whether it selects an object.
    pub fn matches(&self, object: &Object) -> bool {
        *object.kind() == self.kind
            && self.namespace.as_deref().is_none_or(|namespace| namespace == object.namespace())
            && self.selector.matches(object)
    }
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct ListPage {
    /// The objects, ordered by namespace and name. All pages of a list show one revision.
    pub items: Vec<Object>,
    /// That revision: a watch from here misses nothing.
    pub revision: Revision,
    /// What to ask for to get the next page; opaque.
    pub continue_token: Option<String>,
    /// How many objects come after this page, where that is known.
    pub remaining: Option<u64>,
}

/// A change that a watcher sees.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    /// It is there now and was not before, as far as the watcher's selector goes.
    Added(Object),
    /// It changed.
    Modified(Object),
    /// It is gone, or no longer selected: the object as it was last, with the revision of the change.
    Deleted(Object),
    /// Everything up to this revision was sent.
    Bookmark(Revision),
}

/// Changes, in order. Ends with an error: `Expired` where the watcher was too slow.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchEvent, Status>> + Send>>;

/// The store of a region.
pub trait Store: Send + Sync + 'static {
    /// One object.
    fn get<'a>(&'a self, key: &'a ObjectKey, read: Consistency) -> BoxFuture<'a, Result<Option<Object>, Status>>;

    /// A page of objects. `limit` 0 means as many as [`MAX_PAGE`]. A `continue_token` that is no longer
    /// served fails with `Expired`.
    fn list<'a>(
        &'a self,
        query: &'a Query,
        limit: usize,
        continue_token: Option<&'a str>,
        read: Consistency,
    ) -> BoxFuture<'a, Result<ListPage, Status>>;

    /// Every change after `from`; fails with `Expired` where that is too old for the history or ahead of it.
    fn watch(&self, query: Query, from: Revision) -> BoxFuture<'_, Result<WatchStream, Status>>;

    /// Applies a transaction. Once this returns `Ok`, its changes are durable.
    fn write(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, Status>>;

    /// The identity of the data (see [`Incarnation`]).
    fn incarnation(&self) -> Incarnation;
}

/// Lists everything that a query selects, page by page; the revision is that of the list.
pub async fn list_all(store: &dyn Store, query: &Query, read: Consistency) -> Result<(Vec<Object>, Revision), Status> {
    let mut page = store.list(query, 0, None, read).await?;
    let mut items = std::mem::take(&mut page.items);
    while let Some(token) = page.continue_token.take() {
        page = store.list(query, 0, Some(&token), read).await?;
        items.append(&mut page.items);
    }
    Ok((items, page.revision))
}

/// Applies one operation and returns the stored object.
pub async fn write_one(store: &dyn Store, request_id: RequestId, op: Op, now: Timestamp) -> Result<Object, Status> {
    let outcome = store.write(Txn { request_id, atomic: true, ops: vec![op], now }).await?;
    outcome
        .outcomes
        .into_iter()
        .next()
        .ok_or_else(|| Status::internal("a transaction of one operation has one outcome"))?
        .map_err(Status::from)
}
