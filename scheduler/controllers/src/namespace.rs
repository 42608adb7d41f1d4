//! Namespace: its contents go before it.

use std::time::Duration;

use hearth_types::{
    GroupKind, Object, Timestamp,
    condition::{self, Condition, Truth},
};
use serde_json::json;

use crate::{action::Reconciled, meta};

/// The finalizer that keeps a namespace until it is empty.
pub const FINALIZER: &str = "hearth.dev/contents";
/// Objects that one call deletes at most: one transaction holds them.
const BURST: usize = 500;
/// Events are left for last: they tell what happened on the way.
const LAST: GroupKind = GroupKind::EVENT;

/// Keeps the finalizer on a live namespace. Deletes everything in one that is to be deleted, and then lets it go.
/// `contents` are the objects in it.
pub fn reconcile(namespace: &Object, contents: &[Object], now: Timestamp) -> Reconciled {
    let mut out = Reconciled::default();
    let mut value = namespace.value();
    let owned: Vec<String> = meta::finalizers(&value).into_iter().map(str::to_owned).collect();
    let held = owned.iter().any(|one| one == FINALIZER);
    if !meta::is_deleting(&value) {
        if !held {
            let all: Vec<&str> = owned.iter().map(String::as_str).chain([FINALIZER]).collect();
            meta::set_finalizers(&mut value, &all);
            out.update(namespace, value);
        }
        return out;
    }
    let (events, others): (Vec<&Object>, Vec<&Object>) = contents.iter().partition(|object| *object.kind() == LAST);
    let batch = if others.is_empty() { events } else { others };
    let live: Vec<_> = batch.iter().filter(|object| !object.is_deleting()).collect();
    live.iter().take(BURST).for_each(|object| out.delete(object));
    if live.len() > BURST {
        out.look_again(Duration::ZERO);
    }
    if contents.is_empty() {
        let left: Vec<&str> = owned.iter().map(String::as_str).filter(|one| *one != FINALIZER).collect();
        meta::set_finalizers(&mut value, &left);
    }
    if !value["status"].is_object() {
        value["status"] = json!({});
    }
    value["status"]["phase"] = json!("Terminating");
    let (truth, reason, message) = match batch.iter().find(|object| object.is_deleting()) {
        _ if contents.is_empty() => (Truth::False, "ContentRemoved", "everything in it is removed".to_owned()),
        Some(first) => {
            (Truth::True, "SomeContentRemains", format!("waiting for {} and maybe others to stop", first.key()))
        }
        None => (Truth::True, "SomeContentRemains", "its contents are being deleted".to_owned()),
    };
    condition::set(&mut value, &Condition::new("NamespaceContentRemaining", truth, reason, message), now);
    out.update(namespace, value);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    #[test]
    fn contents_go_before_the_namespace() {
        let mut world = World::default();
        world.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "alice"}}));
        let step = |world: &mut World| {
            let namespace = world.find("Namespace", "alice").expect("there");
            let contents = world.in_namespace("alice");
            let out = reconcile(&namespace, &contents, Timestamp(0));
            world.apply(&out);
            out.actions.len()
        };
        assert_eq!(step(&mut world), 1);
        assert_eq!(step(&mut world), 0, "a live namespace is left alone");
        for name in ["a", "b"] {
            world.create(
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "alice"}}),
            );
        }
        world.create(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "c", "namespace": "alice", "finalizers": ["hearth.dev/claim-data"]},
            "spec": {"resources": {"requests": {"storage": "1Gi"}}}}));
        let namespace = world.find("Namespace", "alice").expect("there");
        world.delete(&namespace);
        step(&mut world);
        assert_eq!(world.in_namespace("alice").len(), 1, "the claim waits for its device");
        step(&mut world);
        let value = world.find("Namespace", "alice").expect("waits").value();
        assert_eq!(value["status"]["phase"], "Terminating");
        assert!(condition::get(&value, "NamespaceContentRemaining").expect("set").message.contains("alice/c"));
        assert_eq!(step(&mut world), 0, "it waits quietly");
        world.edit("PersistentVolumeClaim", "c", |claim| meta::set_finalizers(claim, &[]));
        step(&mut world);
        assert!(world.find("Namespace", "alice").is_none());
    }
}
