//! What a controller asked for was refused: that is told where people look, not only in a log.

use hearth_types::{
    GroupKind, Object, Timestamp,
    condition::{self, Condition, Truth},
};

use serde_json::json;

use crate::action::Action;

/// The condition of ReplicaSets and Deployments whose pods cannot be made, as in Kubernetes.
pub const REPLICA_FAILURE: &str = "ReplicaFailure";
/// The reason of the condition and of the Event.
pub const REASON: &str = "Refused";

/// Says in an object's conditions that what its controller asked for was refused, and why. The controller's next success takes it back.
/// Nothing for kinds without such a condition, and where it is said already.
pub fn reconcile(object: &Object, why: &str, now: Timestamp) -> Option<Action> {
    let condition = match object.kind() {
        kind if *kind == GroupKind::REPLICA_SET || *kind == GroupKind::DEPLOYMENT => {
            Condition::new(REPLICA_FAILURE, Truth::True, REASON, why)
        }
        kind if *kind == GroupKind::INSTALL => Condition::new("Deployed", Truth::False, REASON, why),
        _ => return None,
    };
    let mut value = object.value();
    if *object.kind() == GroupKind::REPLICA_SET && value.pointer("/status/replicas").is_none() {
        // Required in its status, and nobody has written one yet.
        value["status"] = json!({"replicas": 0});
    }
    condition::set(&mut value, &condition, now).then(|| Action::Update { base: object.clone(), value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{replicaset, testing::World};

    #[test]
    fn a_refusal_is_told_once_and_taken_back_by_the_next_success() {
        let mut world = World::default();
        let set = world.create(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web", "namespace": "alice"}, "spec": {
            "replicas": 0, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}}));
        let action = reconcile(&set, "pods are too big", Timestamp(0)).expect("told");
        world.apply(&crate::Reconciled { actions: vec![action], again: None });
        let told = world.find("ReplicaSet", "web").expect("there");
        let condition = condition::get(&told.value(), REPLICA_FAILURE).expect("said");
        assert_eq!((condition.status, condition.message.as_str()), (Truth::True, "pods are too big"));
        assert_eq!(reconcile(&told, "pods are too big", Timestamp(9)), None, "said already");
        let out = replicaset::reconcile(replicaset::Inputs { replica_set: &told, pods: &[] }, Timestamp(9));
        world.apply(&out);
        assert!(condition::get(&world.find("ReplicaSet", "web").expect("there").value(), REPLICA_FAILURE).is_none());
        let route = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "alice"}});
        assert_eq!(reconcile(&world.create(route), "no", Timestamp(0)), None);
    }
}
