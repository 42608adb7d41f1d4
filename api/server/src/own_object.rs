//! Objects that the servers keep for themselves beside those of users: each has a key that is known, is written unless another server was
//! faster, and is followed by all of them.

use hearth_types::{
    Object, ObjectKey, Status, Uid,
    admission::{Context, Part, prepare_create, prepare_update},
    registry,
    selector::{FieldSelector, Selector},
    store::{Consistency, Expect, Op, Query, WatchStream, list_all},
};
use serde_json::Value;

use crate::resources::ResourceService;

/// The operation that stores `value` as the object of a key in the place of `old`, unless that is not what is stored any more.
pub(crate) fn put(
    resources: &ResourceService,
    key: &ObjectKey,
    old: Option<&Object>,
    value: Value,
) -> Result<Op, Status> {
    let info = registry::of_kind(&key.kind).ok_or_else(|| Status::internal(format!("no kind {}", key.kind.kind)))?;
    let uid = Uid::from(uuid::Uuid::new_v4().to_string());
    let context = Context { now: resources.clock().now(), uid, suffix: "", zone: resources.zone() };
    Ok(match old {
        Some(old) => {
            let object = prepare_update(info, old, value, Part::Main, &context)?.object;
            Op::Update { object, expect: Expect::same(old) }
        }
        None => Op::Create { object: prepare_create(info, value, &context)?.object },
    })
}

/// The object of a key as this server has it, if there is one, and every change from then on.
pub(crate) async fn follow(
    resources: &ResourceService,
    key: &ObjectKey,
) -> Result<(Option<Object>, WatchStream), Status> {
    let fields = FieldSelector::equal("metadata.name", &key.name);
    let selector = Selector { fields, ..Selector::default() };
    let query = Query { kind: key.kind.clone(), namespace: Some(key.namespace.to_string()), selector };
    let store = resources.store();
    let (objects, revision) = list_all(store.as_ref(), &query, Consistency::Local).await?;
    Ok((objects.into_iter().next(), store.watch(query, revision).await?))
}
