//! What controllers ask for.

use std::time::Duration;

use hearth_types::{
    Object, Status,
    admission::{self, Context, DeletePlan, Part},
};
use serde_json::Value;

/// One thing that a controller asks for. Whoever executes it makes no choices of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create this object. A `status` in it is stored with it, so that it is never seen without.
    /// `metadata.generateName` is completed by the executor's suffix.
    Create {
        /// The object.
        object: Value,
    },
    /// Replace `base`, if it is still stored as it was read, by `value`: the JSON of `base` with changes, `status` included.
    Update {
        /// The object as it was read.
        base: Object,
        /// What it shall be.
        value: Value,
    },
    /// Delete `base`, if it is still stored as it was read: a bound pod gracefully, an object with finalizers by a mark.
    Delete {
        /// The object as it was read.
        base: Object,
        /// Overrides a pod's grace period; 0 removes it without waiting for its device.
        grace_seconds: Option<i64>,
    },
    /// Tell people.
    Event {
        /// The object that it is about.
        regarding: Object,
        /// Whether it is a warning.
        warning: bool,
        /// Why, as one CamelCase word.
        reason: &'static str,
        /// For people.
        message: String,
    },
}

/// What one call of a controller asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reconciled {
    /// The actions, in order.
    pub actions: Vec<Action>,
    /// When to look again even if nothing changes, because time alone changes something.
    pub again: Option<Duration>,
}

impl Reconciled {
    /// Replaces `base` unless `value` is what it is already.
    pub(crate) fn update(&mut self, base: &Object, value: Value) {
        if base.value() != value {
            self.actions.push(Action::Update { base: base.clone(), value });
        }
    }

    pub(crate) fn delete(&mut self, base: &Object) {
        self.actions.push(Action::Delete { base: base.clone(), grace_seconds: None });
    }

    pub(crate) fn event(&mut self, regarding: &Object, warning: bool, reason: &'static str, message: String) {
        self.actions.push(Action::Event { regarding: regarding.clone(), warning, reason, message });
    }

    pub(crate) fn look_again(&mut self, after: Duration) {
        self.again = Some(self.again.map_or(after, |old| old.min(after)));
    }
}

/// An action as one operation on the store, through admission.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// Store this new object.
    Create(Object),
    /// Replace `base` by `new`.
    Update {
        /// The object as it was read.
        base: Object,
        /// The new one.
        new: Object,
    },
    /// Remove it.
    Remove(Object),
    /// There is nothing to do.
    Nothing,
}

/// Makes of an action what the store is to do, by the rules that every write follows. Events are the executor's own.
pub fn prepare(action: &Action, context: &Context<'_>) -> Result<Wanted, Status> {
    match action {
        Action::Create { object } => {
            let info = admission::kind_of(object)?;
            let created = admission::prepare_create(info, object.clone(), context)?.object;
            let Some(status) = object.get("status").filter(|_| info.has_status) else {
                return Ok(Wanted::Create(created));
            };
            let mut value = created.value();
            value["status"] = status.clone();
            Ok(Wanted::Create(admission::prepare_update(info, &created, value, Part::Status, context)?.object))
        }
        Action::Update { base, value } => {
            let base_value = base.value();
            let info = admission::kind_of(&base_value)?;
            let mut new = base.clone();
            if without_status(&base_value) != without_status(value) {
                new = admission::prepare_update(info, &new, value.clone(), Part::Region, context)?.object;
            }
            if info.has_status && base_value.get("status") != value.get("status") {
                new = admission::prepare_update(info, &new, value.clone(), Part::Status, context)?.object;
            }
            Ok(if new == *base {
                Wanted::Nothing
            } else if admission::plan_removal(&new) {
                Wanted::Remove(base.clone())
            } else {
                Wanted::Update { base: base.clone(), new }
            })
        }
        Action::Delete { base, grace_seconds } => Ok(match admission::plan_delete(base, *grace_seconds, context.now) {
            DeletePlan::Remove => Wanted::Remove(base.clone()),
            DeletePlan::Mark(new) => Wanted::Update { base: base.clone(), new },
            DeletePlan::Waiting => Wanted::Nothing,
        }),
        Action::Event { .. } => Ok(Wanted::Nothing),
    }
}

fn without_status(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(map) = value.as_object_mut() {
        map.remove("status");
    }
    value
}
