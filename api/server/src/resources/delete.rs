//! Deletion: at once, or by a mark.

use hearth_types::{
    Object, ObjectKey, Reason, Status, Timestamp,
    admission::{DeletePlan, plan_delete},
    kinds, recovery,
    store::{Consistency, Expect, Op},
};
use serde_json::{Value, json};

use super::{
    Attempts, DEFAULT_NAMESPACES, DeleteOptions, Deleted, Doing, ResourceService, check_key, too_contended,
    write::Attempt,
};

/// The longest grace period in seconds: a year, far above any need, so that times stay in range.
const MAX_GRACE_SECONDS: i64 = 366 * 86_400;

impl ResourceService {
    /// Deletes an object: removes it, or marks it where somebody has to act first (a device that runs it,
    /// a finalizer, the contents of a Namespace).
    pub async fn delete(&self, key: &ObjectKey, options: &DeleteOptions) -> Result<Deleted, Status> {
        let info = check_key(key)?;
        if info.kind == "Namespace" && DEFAULT_NAMESPACES.contains(&key.name.as_ref()) {
            let text = format!("namespaces \"{}\" is forbidden: this namespace may not be deleted", key.name);
            return Err(Status { object: Some(Box::new(key.clone())), ..Status::new(Reason::Forbidden, text) });
        }
        if recovery::is_regions_own(key) {
            let text = format!("{key} is forbidden to be deleted: it is what the region knows of its recovery");
            return Err(Status { object: Some(Box::new(key.clone())), ..Status::new(Reason::Forbidden, text) });
        }
        if options.grace_seconds.is_some_and(|grace| !(0..=MAX_GRACE_SECONDS).contains(&grace)) {
            let text = format!("grace_seconds: must be from 0 to {MAX_GRACE_SECONDS}");
            return Err(Status::new(Reason::BadRequest, text));
        }
        let asked = format!("{key} {:?} {:?}", options.grace_seconds, options.uid);
        let mut attempts = Attempts::new(&options.request_id, "delete", &[asked.as_bytes()])?;
        while let Some(id) = attempts.next(Doing::Delete) {
            let old = self.store.get(key, Consistency::Linearizable).await?;
            let Some(old) = old else {
                // A deletion that is sent again is answered by the store with what it did the first time.
                let expect = Expect { revision: None, uid: options.uid.clone() };
                match self.one(Op::Delete { key: key.clone(), expect }, id).await? {
                    Attempt::Done(object) => return Ok(Deleted { object, removed: true }),
                    Attempt::Again(_) => continue,
                }
            };
            if options.uid.as_ref().is_some_and(|uid| uid != old.uid()) {
                let why = "the object was deleted and made anew since it was read (its uid differs)";
                return Err(Status::conflict(key, why));
            }
            let plan = if info.kind == "Namespace" {
                plan_namespace(&old, self.now())?
            } else {
                plan_delete(&old, options.grace_seconds, self.now())
            };
            let expect = Expect::same(&old);
            let (op, removed) = match plan {
                DeletePlan::Waiting => return Ok(Deleted { object: old, removed: false }),
                DeletePlan::Remove => (Op::Delete { key: key.clone(), expect }, true),
                DeletePlan::Mark(object) => (Op::Update { object, expect }, false),
            };
            match self.one(op, id).await {
                Ok(Attempt::Done(object)) => {
                    self.devices().note_stored(&object, removed);
                    return Ok(Deleted { object, removed });
                }
                Ok(Attempt::Again(_)) => {}
                Err(status) => return Err(status),
            }
        }
        Err(too_contended(key))
    }
}

/// A Namespace is always marked first: its finalizer stays until a controller has removed what is in it.
fn plan_namespace(old: &Object, now: Timestamp) -> Result<DeletePlan, Status> {
    if old.is_deleting() {
        return Ok(DeletePlan::Waiting);
    }
    let mut value = old.value();
    let finalizer = json!(kinds::NAMESPACE_FINALIZER);
    match value["metadata"].get_mut("finalizers").and_then(Value::as_array_mut) {
        Some(list) if list.contains(&finalizer) => {}
        Some(list) => list.push(finalizer),
        None => value["metadata"]["finalizers"] = json!([finalizer]),
    }
    value["status"]["phase"] = json!("Terminating");
    let marked = Object::from_value(value).map_err(|error| Status::internal(error.to_string()))?;
    Ok(plan_delete(&marked, None, now))
}
