//! The namespace that a new object needs: there, not being deleted, or made along with it.

use hearth_types::{
    Object, ObjectKey, Reason, Status,
    admission::prepare_create,
    names,
    registry::KindInfo,
    store::{Consistency, Expect, Op},
};
use serde_json::{Value, json};

use super::{ResourceService, namespace_key, suffix};

/// The namespace that has to be there for a new object, if any.
pub(super) fn needed_namespace(info: &KindInfo, object: &Object) -> Option<ObjectKey> {
    if info.is_namespaced() {
        return Some(namespace_key(object.namespace()));
    }
    let value = (info.kind == "Device").then(|| object.value())?;
    Some(namespace_key(value.pointer("/spec/owner").and_then(Value::as_str).unwrap_or_default()))
}

impl ResourceService {
    /// What has to happen in the transaction that creates `object`: the check that its namespace is there
    /// and not being deleted, or the making of it, where its name can be an owner's. A Device needs the
    /// namespace of its owner.
    pub(crate) async fn namespace_op(&self, info: &KindInfo, object: &Object) -> Result<Option<Op>, Status> {
        let Some(key) = needed_namespace(info, object) else { return Ok(None) };
        let name = &*key.name;
        if let Some(namespace) = self.store.get(&key, Consistency::Linearizable).await? {
            if namespace.is_deleting() {
                let text = format!(
                    "{} \"{}\" is forbidden: unable to create new content in namespace {name} because it is being terminated",
                    info.resource(),
                    object.name()
                );
                return Err(Status {
                    object: Some(Box::new(object.key().clone())),
                    ..Status::new(Reason::Forbidden, text)
                });
            }
            return Ok(Some(Op::Check { key, expect: Expect::same(&namespace) }));
        }
        if names::RESERVED_OWNERS.contains(&name) || names::dns_label(name).is_err() {
            return Err(Status::not_found(&key));
        }
        let suffix = suffix();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let info = hearth_types::registry::of_kind(&key.kind).ok_or_else(|| Status::internal("no kind Namespace"))?;
        let admitted = prepare_create(info, namespace, &self.context(&suffix))?;
        Ok(Some(Op::Create { object: admitted.object }))
    }
}
