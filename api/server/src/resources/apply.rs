//! Apply: the three-way merge of what was applied last, what is stored and what is wanted.

use hearth_types::{
    Object, Reason, Status,
    admission::{Part, normalise, prepare_create},
    object::canonical,
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
        let revision_text = revision.map(|revision| revision.to_string()).unwrap_or_default();
        let asked: [&[u8]; 2] = [revision_text.as_bytes(), &canonical(&wanted)];
        let mut attempts = Attempts::new(&options.request_id, "apply", &asked)?;
        loop {
            // That there is one may be told from what this server has: the change reads it again.
            let here = self.store.get(&key, Consistency::Local).await?.is_some();
            if here || self.store.get(&key, Consistency::Linearizable).await?.is_some() {
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
            let suffix = suffix();
            let admitted = prepare_create(info, first(&wanted), &self.context(&suffix))?;
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

/// What a wanted object is created from.
pub(super) fn first(wanted: &Value) -> Value {
    let mut first = wanted.clone();
    patch::set_last_applied(&mut first, wanted);
    if let Some(meta) = first.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("uid");
    }
    first
}

/// What of a sent object is wanted: not its status, nor what the region or an earlier apply wrote.
pub(super) fn wanted(mut object: Value) -> Value {
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
    normalise(&mut object);
    object
}

pub(super) fn merged(old: &Object, wanted: &Value) -> Value {
    let current = old.value();
    let mut last = patch::last_applied(&current);
    if let Some(last) = last.as_mut().filter(|last| last.is_object()) {
        normalise(last);
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            prop_oneof!["[a-c]{0,2}", "v1", "ConfigMap", "Namespace"].prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let field =
                prop_oneof!["apiVersion", "kind", "metadata", "name", "namespace", "labels", "annotations", "[a-c]"];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map(field, inner, 0..6).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        /// Whatever somebody sends over whatever was applied before.
        #[test]
        fn arbitrary_objects_never_panic(mut sent in any_json(), last in any_json(), name in "[a-c]{0,2}") {
            let _ = sent_revision(&sent);
            let _ = sent_key(&mut sent);
            let mut named = sent.clone();
            if let Some(root) = named.as_object_mut() {
                root.insert("apiVersion".into(), json!("v1"));
                root.insert("kind".into(), json!("Namespace"));
                let meta = root.entry("metadata").or_insert(json!({}));
                if let Some(meta) = meta.as_object_mut() {
                    meta.insert("name".into(), json!(name));
                }
            }
            let mut stored = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}});
            patch::set_last_applied(&mut stored, &last);
            let stored = Object::from_value(stored).expect("an object");
            if sent_key(&mut named).is_ok() {
                // Annotations that are no map stay what they are, for admission to refuse.
                let sane = named["metadata"].get("annotations").is_none_or(|sent| sent.is_object() || sent.is_null());
                let merged = merged(&stored, &wanted(named));
                prop_assert!(!sane || merged["metadata"]["annotations"][patch::LAST_APPLIED].is_string());
            }
        }
    }
}
