//! Create, update, update of the status, patch.

use hearth_types::{
    GroupKind, Object, ObjectKey, Reason, RequestId, Revision, Status,
    admission::{self, Admitted, Part, plan_removal, prepare_create, prepare_update},
    object::canonical,
    patch,
    registry::KindInfo,
    status::Cause,
    store::{Consistency, Expect, Op, OpError, Txn},
};
use serde_json::Value;

use super::{
    Attempts, Doing, Outcome, ResourceService, WriteOptions, Written, check_key, sent_key, sent_revision, suffix,
    too_contended,
};

/// What became of one attempt.
pub(super) enum Attempt {
    Done(Object),
    /// Something changed in between: read anew and try again.
    Again(Status),
}

/// A change of an object that exists.
pub(super) struct Change<'a> {
    pub(super) info: &'static KindInfo,
    pub(super) key: &'a ObjectKey,
    pub(super) part: Part,
    /// The revision that the client read it at, where it says so.
    pub(super) revision: Option<Revision>,
    pub(super) dry_run: bool,
}

/// What a change comes to. `current`: the object that was read is at the revision that the client named, if any.
enum Planned {
    /// Nothing is to be written.
    Answer(Written),
    Write {
        object: Object,
        expect: Expect,
        current: bool,
        warnings: Vec<String>,
    },
}

impl ResourceService {
    /// Creates an object; fails where there is one of that name. The Namespace of an owner's first object
    /// is made in the same transaction.
    pub async fn create(&self, object: Value, options: &WriteOptions) -> Result<Written, Status> {
        let info = admission::kind_of(&object)?;
        let generated = object.pointer("/metadata/name").and_then(Value::as_str).is_none_or(str::is_empty);
        let mut attempts = Attempts::new(&options.request_id, "create", &[&canonical(&object)])?;
        let mut last = None;
        while let Some(id) = attempts.next(Doing::Create) {
            let suffix = suffix();
            let admitted = prepare_create(info, object.clone(), &self.context(&suffix))?;
            match self.insert(info, admitted.object, id, options.dry_run).await {
                Ok(Attempt::Done(object)) => {
                    return Ok(Written { object, outcome: Outcome::Created, warnings: admitted.warnings });
                }
                Ok(Attempt::Again(status)) => last = Some(status),
                Err(status) if generated && status.reason == Reason::AlreadyExists => last = Some(status),
                Err(status) => return Err(status),
            }
        }
        Err(last.unwrap_or_else(|| Status::internal("no attempt was made")))
    }

    /// One attempt to store a new object along with its namespace.
    pub(super) async fn insert(
        &self,
        info: &KindInfo,
        object: Object,
        id: RequestId,
        dry_run: bool,
    ) -> Result<Attempt, Status> {
        let key = object.key().clone();
        let namespace = self.namespace_op(info, &object).await?;
        if dry_run {
            return match self.store.get(&key, Consistency::Linearizable).await? {
                Some(_) => Err(Status::already_exists(&key)),
                None => Ok(Attempt::Done(object)),
            };
        }
        let ops: Vec<Op> = namespace.into_iter().chain([Op::Create { object }]).collect();
        let own = ops.len() - 1;
        let mut outcomes = self.store.write(Txn { request_id: id, atomic: true, ops, now: self.now() }).await?.outcomes;
        if outcomes.len() != own + 1 {
            return Err(Status::internal("the store answered with another number of outcomes"));
        }
        match outcomes.swap_remove(own) {
            Ok(stored) => {
                self.devices().note(&stored);
                Ok(Attempt::Done(stored))
            }
            // The namespace was made or changed by somebody else in between.
            Err(OpError::Aborted) => {
                Ok(Attempt::Again(Status::conflict(&key, "its namespace changed while it was created; try again")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces an object. `metadata.resourceVersion` in it, where set, must be the stored one.
    pub async fn update(&self, object: Value, options: &WriteOptions) -> Result<Written, Status> {
        self.replace(object, Part::Main, options).await
    }

    /// Replaces `status` alone. `metadata.resourceVersion`, where set, must be the stored one.
    pub async fn update_status(&self, object: Value, options: &WriteOptions) -> Result<Written, Status> {
        self.replace(object, Part::Status, options).await
    }

    /// Replaces `spec.ephemeralContainers` of a Pod alone. `metadata.resourceVersion`, where set, must be the stored one.
    pub async fn update_ephemeral_containers(&self, object: Value, options: &WriteOptions) -> Result<Written, Status> {
        self.replace(object, Part::EphemeralContainers, options).await
    }

    async fn replace(&self, mut object: Value, part: Part, options: &WriteOptions) -> Result<Written, Status> {
        let (info, key) = sent_key(&mut object)?;
        has_part(info, &key, part)?;
        let revision = sent_revision(&object)?;
        let change = Change { info, key: &key, part, revision, dry_run: options.dry_run };
        let verb = match part {
            Part::Status => "update status",
            Part::EphemeralContainers => "update ephemeralcontainers",
            Part::Main | Part::Region => "update",
        };
        let mut attempts = Attempts::new(&options.request_id, verb, &[&canonical(&object)])?;
        self.change(&change, &mut attempts, |_| Ok(object.clone())).await
    }

    /// Applies a JSON merge patch (RFC 7386), to the object or to its `status`. A `metadata.resourceVersion`
    /// in the patch must be the stored one.
    pub async fn patch(
        &self,
        key: &ObjectKey,
        patch: &Value,
        part: Part,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let info = check_key(key)?;
        has_part(info, key, part)?;
        if !patch.is_object() {
            return Err(Status::new(Reason::BadRequest, "a merge patch is a JSON object"));
        }
        let revision = sent_revision(patch)?;
        let change = Change { info, key, part, revision, dry_run: options.dry_run };
        let verb = if part == Part::Status { "patch status" } else { "patch" };
        let mut attempts = Attempts::new(&options.request_id, verb, &[key.to_string().as_bytes(), &canonical(patch)])?;
        self.change(&change, &mut attempts, |old| {
            let mut value = old.value();
            patch::merge(&mut value, patch);
            same_identity(info, key, &value)?;
            Ok(value)
        })
        .await
    }

    /// The optimistic loop: read, make the new object, store it if the old one is still there.
    ///
    /// The first attempt reads what this server has, without asking the others: if that is not the newest, the store says so when the
    /// change is written. Whatever else would come of it is decided by what all have.
    ///
    /// Where the client named a revision the first answer of the store stands, so that a write that is sent
    /// again is answered by what it did the first time and not by the revision that it made itself.
    pub(super) async fn change(
        &self,
        change: &Change<'_>,
        attempts: &mut Attempts,
        make: impl Fn(&Object) -> Result<Value, Status>,
    ) -> Result<Written, Status> {
        let Change { key, revision, .. } = *change;
        let mut last = None;
        let mut early = self.planned(change, &make, Consistency::Local).await.ok();
        while let Some(id) = attempts.next(Doing::Change) {
            let plan = match early.take() {
                Some(plan @ Planned::Write { current: true, .. }) => plan,
                _ => self.planned(change, &make, Consistency::Linearizable).await?,
            };
            let (object, expect, warnings) = match plan {
                Planned::Answer(written) => return Ok(written),
                Planned::Write { object, expect, warnings, .. } => (object, expect, warnings),
            };
            match self.store_change(object, expect, id).await? {
                Attempt::Done(object) => return Ok(Written { object, outcome: Outcome::Configured, warnings }),
                Attempt::Again(status) if revision.is_none() => last = Some(status),
                Attempt::Again(_) => return Err(modified(key)),
            }
        }
        // It may be another object that is in the way.
        Err(last.filter(|status| status.message != modified(key).message).unwrap_or_else(|| too_contended(key)))
    }

    /// What is to be done for a change, by what a read shows.
    async fn planned(
        &self,
        change: &Change<'_>,
        make: impl Fn(&Object) -> Result<Value, Status>,
        read: Consistency,
    ) -> Result<Planned, Status> {
        let Change { info, key, part, revision, dry_run } = *change;
        let old = self.store.get(key, read).await?.ok_or_else(|| Status::not_found(key))?;
        let suffix = suffix();
        let Admitted { object, warnings } = prepare_update(info, &old, make(&old)?, part, &self.context(&suffix))?;
        let current = revision.is_none_or(|revision| revision == old.revision());
        if object == old && current {
            return Ok(Planned::Answer(Written { object: old, outcome: Outcome::Unchanged, warnings }));
        }
        if dry_run {
            if !current {
                return Err(modified(key));
            }
            return Ok(Planned::Answer(Written { object, outcome: Outcome::Configured, warnings }));
        }
        let expect = Expect { revision: Some(revision.unwrap_or(old.revision())), uid: Some(old.uid().clone()) };
        Ok(Planned::Write { object, expect, current, warnings })
    }

    /// Stores a changed object, or removes it where it only waited for this change.
    async fn store_change(&self, object: Object, expect: Expect, id: RequestId) -> Result<Attempt, Status> {
        let op = change_op(object, expect);
        let removed = matches!(op, Op::Delete { .. });
        let attempt = self.one(op, id).await?;
        if let Attempt::Done(stored) = &attempt {
            self.devices().note_stored(stored, removed);
        }
        Ok(attempt)
    }

    /// One operation; a conflict is a reason to try again.
    pub(super) async fn one(&self, op: Op, id: RequestId) -> Result<Attempt, Status> {
        let txn = Txn { request_id: id, atomic: true, ops: vec![op], now: self.now() };
        let outcome = self.store.write(txn).await?.outcomes.into_iter().next();
        match outcome.ok_or_else(|| Status::internal("a transaction of one operation has one outcome"))? {
            Ok(stored) => Ok(Attempt::Done(stored)),
            Err(error @ OpError::Conflict { .. }) => Ok(Attempt::Again(error.into())),
            Err(error) => Err(error.into()),
        }
    }
}

/// The operation that stores a changed object, or removes it where it only waited for this change.
pub(super) fn change_op(object: Object, expect: Expect) -> Op {
    if plan_removal(&object) { Op::Delete { key: object.key().clone(), expect } } else { Op::Update { object, expect } }
}

pub(super) fn modified(key: &ObjectKey) -> Status {
    Status::conflict(key, "the object has been modified; please apply your changes to the latest version and try again")
}

/// Whether a kind has the part at all.
fn has_part(info: &KindInfo, key: &ObjectKey, part: Part) -> Result<(), Status> {
    if part == Part::Status && !info.has_status {
        return Err(Status::invalid(key, vec![Cause::new("status", format!("{} have no status", info.resource()))]));
    }
    if part == Part::EphemeralContainers && info.group_kind() != GroupKind::POD {
        let why = format!("{} have no ephemeral containers; pods have", info.resource());
        return Err(Status::invalid(key, vec![Cause::new("spec.ephemeralContainers", why)]));
    }
    Ok(())
}

/// A patch changes what an object is like, never which object it is.
fn same_identity(info: &KindInfo, key: &ObjectKey, patched: &Value) -> Result<(), Status> {
    let text = |pointer: &str| patched.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let mut causes = Vec::new();
    for (pointer, field, expected) in [
        ("/apiVersion", "apiVersion", info.api_version().as_str()),
        ("/kind", "kind", info.kind),
        ("/metadata/name", "metadata.name", key.name.as_ref()),
        ("/metadata/namespace", "metadata.namespace", key.namespace.as_ref()),
    ] {
        if text(pointer) != expected {
            causes.push(Cause::new(field, "cannot be changed"));
        }
    }
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid(key, causes)) }
}
