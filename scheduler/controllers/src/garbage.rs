//! Objects whose owner is gone (Kubernetes' background cascading deletion).

use hearth_types::{Object, Uid};

use crate::{
    action::Reconciled,
    meta::{self, list},
};

/// Deletes an object that has owners of which none exists.
///
/// # Assumptions
/// `exists` looks into the store itself, not into a cache that may be behind.
pub fn reconcile(object: &Object, exists: impl Fn(&Uid) -> bool) -> Reconciled {
    let mut out = Reconciled::default();
    let value = object.value();
    let mut owners =
        list(&value, "/metadata/ownerReferences").filter_map(|owner| owner["uid"].as_str()).map(Uid::from).peekable();
    if owners.peek().is_some() && !meta::is_deleting(&value) && !owners.any(|uid| exists(&uid)) {
        out.delete(object);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::deletes;

    #[test]
    fn what_has_owners_of_which_none_exists_is_deleted() {
        let owned = |owners: &[&str], deleting: bool| {
            let owners: Vec<_> = owners.iter().map(|uid| json!({"kind": "X", "name": "x", "uid": uid})).collect();
            let mut value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n", "ownerReferences": owners}});
            if deleting {
                value["metadata"]["deletionTimestamp"] = json!("2023-11-14T22:13:20Z");
            }
            Object::from_value(value).expect("an object")
        };
        for (object, deleted) in [
            (owned(&[], false), 0),
            (owned(&["live"], false), 0),
            (owned(&["gone"], false), 1),
            (owned(&["gone", "live"], false), 0),
            (owned(&["gone"], true), 0),
        ] {
            assert_eq!(deletes(&reconcile(&object, |uid| uid.as_str() == "live")), deleted);
        }
    }
}
