//! Apply: the three-way merge of what was applied last, what is stored and what is wanted.

use hearth_types::{
    Object, Reason, Status,
    admission::{Part, prepare_create},
    patch,
    store::Consistency,
};
use serde_json::{Value, json};

use super::{
    Attempts, Doing, Outcome, ResourceService, WriteOptions, Written, sent_key, sent_revision, suffix, too_contended,
    write::{Attempt, Change},
};

/// Metadata that the region owns: it is no part of what somebody wants.
const OWNED: [&str; 7] = [
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
];

impl ResourceService {
    /// Makes an object so: creates it where there is none; else sets the fields that `object` has, removes
    /// those that the last apply had and this one has not, and leaves alone what others wrote.
    pub async fn apply(&self, mut object: Value, options: &WriteOptions) -> Result<Written, Status> {
        let (info, key) = sent_key(&mut object)?;
        let revision = sent_revision(&object)?;
        let wanted = wanted(object);
        let mut last = None;
        // Creating and changing alternate only when others delete and create the object meanwhile.
        let mut attempts = Attempts::new(&options.request_id)?;
        loop {
            if self.store.get(&key, Consistency::Linearizable).await?.is_some() {
                let change = Change { info, key: &key, part: Part::Main, revision, dry_run: options.dry_run };
                match self.change(&change, &mut attempts, |old| Ok(merged(old, &wanted))).await {
                    Err(status) if status.reason == Reason::NotFound => continue,
                    done => return done,
                }
            }
            let Some(id) = attempts.next(Doing::Create) else {
                return Err(last.unwrap_or_else(|| too_contended(&key)));
            };
            if revision.is_some() {
                // It was read, and is gone: making another of its name is not what was meant.
                return Err(Status::not_found(&key));
            }
            let mut first = wanted.clone();
            patch::set_last_applied(&mut first, &wanted);
            if let Some(meta) = first.get_mut("metadata").and_then(Value::as_object_mut) {
                meta.remove("uid");
            }
            let suffix = suffix();
            let admitted = prepare_create(info, first, &self.context(&suffix))?;
            match self.insert(info, admitted.object, id, options.dry_run).await {
                Ok(Attempt::Done(object)) => {
                    return Ok(Written { object, outcome: Outcome::Created, warnings: admitted.warnings });
                }
                Ok(Attempt::Again(status)) => last = Some(status),
                Err(status) if status.reason == Reason::AlreadyExists => last = Some(status),
                Err(status) => return Err(status),
            }
        }
    }
}

/// What of a sent object is wanted: not its status, nor what the region or an earlier apply wrote.
fn wanted(mut object: Value) -> Value {
    if let Some(root) = object.as_object_mut() {
        root.remove("status");
    }
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in OWNED {
            meta.remove(field);
        }
        if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(patch::LAST_APPLIED);
        }
    }
    object
}

fn merged(old: &Object, wanted: &Value) -> Value {
    let current = old.value();
    let last = patch::last_applied(&current);
    let mut side = wanted.clone();
    // Others write labels and annotations too: a map of them that is no longer in the manifest takes along
    // its own keys, not theirs.
    for map in ["labels", "annotations"] {
        let had = last.as_ref().is_some_and(|last| last["metadata"].get(map).is_some());
        if had && side["metadata"].get(map).is_none_or(Value::is_null) {
            side["metadata"][map] = json!({});
        }
    }
    let mut merged = patch::three_way(&current, last.as_ref(), &side);
    patch::set_last_applied(&mut merged, wanted);
    merged
}
