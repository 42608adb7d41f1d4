//! One operation on the objects: what it needs, what it changes.

use std::sync::Arc;

use hearth_types::{
    GroupKind, Object, ObjectKey, Revision, Timestamp, admission,
    object::MAX_OBJECT_BYTES,
    store::{Expect, Op, OpError},
};
use imbl::OrdMap;

use crate::{bind, history::Change};

/// Room in bytes that an object leaves below [`MAX_OBJECT_BYTES`] for its stamped `metadata.resourceVersion`.
pub const STAMP_BYTES: usize = 64;

/// All objects, by key. The key is shared, so that copying a node of the tree allocates nothing per key.
pub(crate) type Objects = OrdMap<Arc<ObjectKey>, Object>;

/// The objects while a transaction is under way: changes happen in place and can be taken back.
pub(crate) struct Working<'a> {
    pub(crate) objects: &'a mut Objects,
    /// The revision of the transaction, if it changes something.
    pub(crate) revision: Revision,
    pub(crate) now: Timestamp,
    pub(crate) changes: Vec<Change>,
    /// Whether a key of a Device belongs to no other.
    pub(crate) unique_keys: bool,
    /// Whether claims that move get epochs.
    pub(crate) epochs: bool,
}

impl Working<'_> {
    /// Does one operation, wholly or not at all.
    pub(crate) fn apply(&mut self, op: &Op) -> Result<Object, OpError> {
        match op {
            Op::Create { object } => self.create(object),
            Op::Update { object, expect } => self.update(object, expect),
            Op::Delete { key, expect } => {
                let stored = self.expected(key, expect)?;
                let last = stored.with_revision(self.revision);
                self.remove(stored.clone(), last);
                Ok(stored)
            }
            Op::Bind { pod, expect, device, claims } => bind::bind(self, pod, expect, device, claims),
            Op::Check { key, expect } => self.expected(key, expect),
        }
    }

    /// Takes back every change, as if nothing had happened.
    pub(crate) fn undo(&mut self) {
        while let Some(change) = self.changes.pop() {
            change.undo(self.objects);
        }
    }

    fn create(&mut self, object: &Object) -> Result<Object, OpError> {
        check_object(object)?;
        if self.objects.contains_key(object.key()) {
            return Err(OpError::AlreadyExists(object.key().clone()));
        }
        self.check_device_keys(None, object)?;
        Ok(self.store(None, object))
    }

    fn update(&mut self, object: &Object, expect: &Expect) -> Result<Object, OpError> {
        check_object(object)?;
        let stored = self.expected(object.key(), expect)?;
        if stored.uid() != object.uid() {
            return Err(conflict(
                object.key(),
                format!("the stored object has uid {}, the new one {}", stored.uid(), object.uid()),
            ));
        }
        if object.json() == stored.json() || object.with_revision(stored.revision()) == stored {
            return Ok(stored);
        }
        self.check_device_keys(Some(&stored), object)?;
        // Reading the whole object is spared to the many updates of objects that nobody deletes.
        if mentions_deletion(object) && admission::plan_removal(object) {
            let last = object.with_revision(self.revision);
            self.remove(stored, last.clone());
            return Ok(last);
        }
        Ok(self.store(Some(stored), object))
    }

    /// Whether the keys that a Device gets belong to no other. Devices are read only where somebody gets a key, which is rare.
    fn check_device_keys(&self, before: Option<&Object>, object: &Object) -> Result<(), OpError> {
        if !self.unique_keys || *object.kind() != GroupKind::DEVICE {
            return Ok(());
        }
        let had = before.map(device_keys).unwrap_or_default();
        let new: Vec<String> = device_keys(object).into_iter().filter(|key| !had.contains(key)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let first = Arc::new(ObjectKey::new(GroupKind::DEVICE, "", ""));
        let devices = self.objects.range(first..).take_while(|(key, _)| key.kind == GroupKind::DEVICE);
        for (key, device) in devices.filter(|(key, _)| ***key != *object.key()) {
            // Searching the text spares parsing nearly all of them.
            let text = String::from_utf8_lossy(device.json()).to_ascii_lowercase();
            if let Some(taken) = new.iter().find(|new| text.contains(new.as_str()))
                && device_keys(device).contains(taken)
            {
                return Err(conflict(
                    object.key(),
                    format!("the key {taken} belongs to the device {} already", key.name),
                ));
            }
        }
        Ok(())
    }

    /// The stored object, where what is expected of it holds.
    pub(crate) fn expected(&self, key: &ObjectKey, expect: &Expect) -> Result<Object, OpError> {
        let stored = self.objects.get(key).ok_or_else(|| OpError::NotFound(key.clone()))?;
        if let Some(uid) = expect.uid.as_ref().filter(|uid| *uid != stored.uid()) {
            return Err(conflict(
                key,
                format!("uid {uid} was expected, but the object of this name has uid {}", stored.uid()),
            ));
        }
        if expect.revision.is_some_and(|revision| revision != stored.revision()) {
            let why = "the object has been modified; please apply your changes to the latest version and try again";
            return Err(conflict(key, why.into()));
        }
        Ok(stored.clone())
    }

    /// Stores an object under the transaction's revision.
    pub(crate) fn store(&mut self, before: Option<Object>, object: &Object) -> Object {
        let stamped = object.with_revision(self.revision);
        match self.objects.get_mut(stamped.key()) {
            Some(slot) => *slot = stamped.clone(),
            None => {
                self.objects.insert(Arc::new(stamped.key().clone()), stamped.clone());
            }
        }
        self.changes.push(Change { before, now: stamped.clone(), removed: false });
        stamped
    }

    fn remove(&mut self, stored: Object, last: Object) {
        self.objects.remove(stored.key());
        self.changes.push(Change { before: Some(stored), now: last, removed: true });
    }
}

/// The keys of a Device, in lower case.
fn device_keys(device: &Object) -> Vec<String> {
    let value = device.value();
    let keys = value.pointer("/spec/keys").and_then(serde_json::Value::as_array).into_iter().flatten();
    keys.filter_map(|key| key.as_str().map(str::to_ascii_lowercase)).filter(|key| !key.is_empty()).collect()
}

pub(crate) fn conflict(key: &ObjectKey, why: String) -> OpError {
    OpError::Conflict { key: key.clone(), why }
}

/// What every stored object has: a uid, and room for its stamp.
pub(crate) fn check_object(object: &Object) -> Result<(), OpError> {
    if object.uid().as_str().is_empty() {
        return Err(OpError::Malformed(format!("{}: an object without metadata.uid cannot be stored", object.key())));
    }
    let size = object.json().len() + STAMP_BYTES;
    if size > MAX_OBJECT_BYTES {
        return Err(OpError::Malformed(format!(
            "{}: {size} bytes with its resourceVersion; an object has at most {MAX_OBJECT_BYTES}",
            object.key()
        )));
    }
    Ok(())
}

fn mentions_deletion(object: &Object) -> bool {
    std::str::from_utf8(object.json()).is_ok_and(|json| json.contains("\"deletionTimestamp\""))
}
