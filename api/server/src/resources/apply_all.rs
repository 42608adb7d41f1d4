//! Apply of several objects: all of them or none.

use std::collections::{BTreeMap, HashMap};

use hearth_types::{
    Object, ObjectKey, Reason, Revision, Status,
    admission::{Part, plan_removal, prepare_create, prepare_update},
    object::canonical,
    registry::KindInfo,
    store::{Consistency, Expect, Op, OpError, Txn},
};
use serde_json::Value;

use super::{
    Attempts, Doing, Outcome, ResourceService, WriteOptions, Written,
    apply::{first, merged, wanted},
    namespace::needed_namespace,
    sent_key, sent_revision, suffix,
    write::{change_op, modified},
};

/// Objects of one request at most: with their namespaces they are one transaction, which has
/// [`hearth_types::store::MAX_OPS`] operations at most.
pub(super) const MAX_APPLY_OBJECTS: usize = 400;

/// An object that somebody wants.
struct Asked {
    info: &'static KindInfo,
    key: ObjectKey,
    revision: Option<Revision>,
    wanted: Value,
}

/// What has to happen, as far as is known now.
#[derive(Default)]
struct Plan {
    /// The namespaces that must be there, or are made. They come first, since another operation may change one.
    namespaces: BTreeMap<ObjectKey, Op>,
    ops: Vec<Op>,
    /// Per object that was asked for, in order.
    written: Vec<Written>,
}

impl ResourceService {
    /// Makes several objects so, as [`ResourceService::apply`] makes one, in one transaction.
    ///
    /// # Guarantees
    /// All of them are applied or none is, at one revision, and nobody sees some of them. An error is that of the first object that
    /// cannot be applied, and names it. What is unchanged is not written.
    pub async fn apply_all(&self, objects: Vec<Value>, options: &WriteOptions) -> Result<Vec<Written>, Status> {
        if objects.is_empty() || objects.len() > MAX_APPLY_OBJECTS {
            let text = format!("objects: {}; from 1 to {MAX_APPLY_OBJECTS} are applied at once", objects.len());
            return Err(Status::new(Reason::BadRequest, text));
        }
        let asked = asked(objects)?;
        let texts: Vec<Vec<u8>> = asked.iter().map(Asked::text).collect();
        let texts: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
        let mut attempts = Attempts::new(&options.request_id, "apply all", &texts)?;
        let mut last = None;
        while let Some(id) = attempts.next(Doing::All) {
            let plan = self.plan(&asked).await?;
            if options.dry_run || plan.ops.is_empty() {
                return Ok(plan.written);
            }
            let ops: Vec<Op> = plan.namespaces.into_values().chain(plan.ops).collect();
            let txn = Txn { request_id: id, atomic: true, ops, now: self.now() };
            let outcomes = self.store.write(txn).await?.outcomes;
            let failed = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
            match failed.into_iter().find(|error| !matches!(error, OpError::Aborted)) {
                None => return Ok(self.all_written(plan.written, outcomes)),
                Some(error @ OpError::Malformed(_)) => return Err(error.clone().into()),
                Some(error) => last = Some(refused(error, &asked)?),
            }
        }
        Err(last.unwrap_or_else(|| Status::internal("no attempt was made")))
    }

    async fn plan(&self, asked: &[Asked]) -> Result<Plan, Status> {
        let mut plan = Plan::default();
        for one in asked {
            match self.store.get(&one.key, Consistency::Linearizable).await? {
                Some(old) => self.plan_change(one, &old, &mut plan)?,
                None => self.plan_create(one, asked, &mut plan).await?,
            }
        }
        Ok(plan)
    }

    fn plan_change(&self, one: &Asked, old: &Object, plan: &mut Plan) -> Result<(), Status> {
        if one.revision.is_some_and(|revision| revision != old.revision()) {
            return Err(modified(&one.key));
        }
        let suffix = suffix();
        let context = self.context(&suffix);
        let admitted = prepare_update(one.info, old, merged(old, &one.wanted), Part::Main, &context)?;
        let outcome = if admitted.object == *old { Outcome::Unchanged } else { Outcome::Configured };
        if outcome == Outcome::Configured {
            plan.ops.push(change_op(admitted.object.clone(), Expect::same(old)));
        }
        plan.written.push(Written { object: admitted.object, outcome, warnings: admitted.warnings });
        Ok(())
    }

    async fn plan_create(&self, one: &Asked, asked: &[Asked], plan: &mut Plan) -> Result<(), Status> {
        if one.revision.is_some() {
            return Err(Status::not_found(&one.key));
        }
        let suffix = suffix();
        let admitted = prepare_create(one.info, first(&one.wanted), &self.context(&suffix))?;
        // Looked at once for all objects in it. A Namespace that is asked for as well is made as it is asked for.
        if let Some(key) = needed_namespace(one.info, &admitted.object)
            && !plan.namespaces.contains_key(&key)
            && let Some(op) = self.namespace_op(one.info, &admitted.object).await?
            && (matches!(op, Op::Check { .. }) || asked.iter().all(|other| other.key != key))
        {
            plan.namespaces.insert(key, op);
        }
        plan.ops.push(Op::Create { object: admitted.object.clone() });
        plan.written.push(Written { object: admitted.object, outcome: Outcome::Created, warnings: admitted.warnings });
        Ok(())
    }

    /// The answers with the objects as they were stored. A request that is sent again is answered by the outcomes of the first time,
    /// which may have been more or fewer: objects are told by their keys.
    fn all_written(&self, mut written: Vec<Written>, outcomes: Vec<Result<Object, OpError>>) -> Vec<Written> {
        let mut stored: HashMap<ObjectKey, Object> =
            outcomes.into_iter().filter_map(Result::ok).map(|object| (object.key().clone(), object)).collect();
        for one in written.iter_mut().filter(|one| one.outcome != Outcome::Unchanged) {
            let Some(object) = stored.remove(one.object.key()) else {
                continue;
            };
            let removed = plan_removal(&one.object);
            self.devices().note_stored(&object, removed);
            if !removed {
                one.object = object;
            }
        }
        written
    }
}

impl Asked {
    fn text(&self) -> Vec<u8> {
        let mut text = canonical(&self.wanted);
        text.extend(self.revision.iter().flat_map(|revision| revision.0.to_le_bytes()));
        text
    }
}

fn asked(objects: Vec<Value>) -> Result<Vec<Asked>, Status> {
    let mut asked: Vec<Asked> = Vec::with_capacity(objects.len());
    for (index, mut object) in objects.into_iter().enumerate() {
        // What is too wrong to have a name is told by its place.
        let placed = |status: Status| match status.object {
            Some(_) => status,
            None => Status { message: format!("objects[{index}]: {}", status.message), ..status },
        };
        let (info, key) = sent_key(&mut object).map_err(placed)?;
        let revision = sent_revision(&object).map_err(placed)?;
        if asked.iter().any(|other| other.key == key) {
            let text = format!("objects[{index}]: {key} is there twice");
            return Err(Status { object: Some(Box::new(key)), ..Status::new(Reason::BadRequest, text) });
        }
        asked.push(Asked { info, key, revision, wanted: wanted(object) });
    }
    Ok(asked)
}

/// What an operation's error means: to try again (the status for when there were enough tries), or the end.
fn refused(error: &OpError, asked: &[Asked]) -> Result<Status, Status> {
    let (OpError::Conflict { key, .. } | OpError::AlreadyExists(key) | OpError::NotFound(key)) = error else {
        return Ok(error.clone().into());
    };
    match asked.iter().find(|one| one.key == *key) {
        Some(one) if one.revision.is_some() => Err(modified(key)),
        _ => Ok(error.clone().into()),
    }
}
