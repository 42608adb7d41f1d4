//! What a Device says it runs short of, on its Node: conditions, and the taints that keep new pods away meanwhile, as Kubernetes sets them
//! by conditions ("Taints and Tolerations", "Taint Nodes by Condition").

use hearth_types::{
    Object, Timestamp,
    condition::{self, Condition, Truth},
    kinds::PRESSURES,
};
use serde_json::{Value, json};

use crate::{action::Reconciled, meta::list};

/// The effect of the taints: what runs is not told to go.
const EFFECT: &str = "NoSchedule";

/// The reasons of the events, as the kubelet's.
fn word(pressure: &str, holds: bool) -> &'static str {
    match (pressure, holds) {
        ("MemoryPressure", true) => "NodeHasInsufficientMemory",
        ("MemoryPressure", false) => "NodeHasSufficientMemory",
        (_, true) => "NodeHasDiskPressure",
        (_, false) => "NodeHasNoDiskPressure",
    }
}

/// Keeps them on a Node, and tells of a change. A device that is silent is held to be as it was last.
pub(crate) fn keep(device: &Object, device_value: &Value, node: &mut Value, now: Timestamp, out: &mut Reconciled) {
    for (pressure, taint) in PRESSURES {
        let said = condition::get(device_value, pressure);
        let holds = said.as_ref().is_some_and(|one| one.status == Truth::True);
        keep_taint(node, taint, holds);
        let Some(said) = said else { continue };
        let before = condition::get(node, pressure).is_some_and(|one| one.status == Truth::True);
        if before != holds {
            let reason = word(pressure, holds);
            out.event(device, holds, reason, format!("Node {} status is now: {reason}", device.name()));
        }
        condition::set(node, &Condition::new(pressure, said.status, &said.reason, said.message), now);
    }
}

/// A taint that is there, or is not. Those of people stay.
fn keep_taint(node: &mut Value, key: &str, wanted: bool) {
    let same = |taint: &Value| taint["key"] == key && taint["effect"] == EFFECT;
    if list(node, "/spec/taints").any(same) == wanted {
        return;
    }
    let mut taints: Vec<Value> = list(node, "/spec/taints").filter(|taint| !same(taint)).cloned().collect();
    if wanted {
        taints.push(json!({"key": key, "effect": EFFECT}));
    }
    if taints.is_empty()
        && let Some(spec) = node["spec"].as_object_mut()
    {
        spec.remove("taints");
        return;
    }
    node["spec"]["taints"] = Value::Array(taints);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        node::{Contact, Inputs, reconcile},
        testing::World,
    };

    fn says(world: &mut World, pressure: &str, truth: Truth) {
        world.edit("Device", "nas", |device| {
            condition::set(device, &Condition::new(pressure, truth, "R", "m"), Timestamp(0));
        });
        let look = |world: &World| {
            let (device, node) = (world.find("Device", "nas"), world.find("Node", "nas"));
            let inputs = Inputs { device: device.as_ref(), node: node.as_ref(), contact: Contact::Connected };
            reconcile(inputs, Timestamp(5000))
        };
        let first = look(world);
        world.apply(&first);
        let second = look(world);
        world.apply(&second);
        assert_eq!(look(world).actions, [], "it settles");
    }

    #[test]
    fn what_a_device_runs_short_of_is_a_condition_and_a_taint_of_its_node_until_it_is_not() {
        let mut world = World::default();
        world.create(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "metadata": {"name": "nas"},
            "spec": {"owner": "alice", "keys": []}}));
        says(&mut world, "DiskPressure", Truth::False);
        let node = |world: &World| world.find("Node", "nas").expect("made").value();
        assert_eq!(node(&world)["spec"]["taints"], Value::Null);
        world.edit("Node", "nas", |node| node["spec"]["taints"] = json!([{"key": "mine", "effect": "NoExecute"}]));
        says(&mut world, "DiskPressure", Truth::True);
        let disk = json!({"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"});
        assert_eq!(node(&world)["spec"]["taints"], json!([{"key": "mine", "effect": "NoExecute"}, disk]));
        assert!(condition::is_true(&node(&world), "DiskPressure"));
        says(&mut world, "MemoryPressure", Truth::True);
        assert_eq!(node(&world)["spec"]["taints"][2]["key"], "node.kubernetes.io/memory-pressure");
        says(&mut world, "DiskPressure", Truth::False);
        says(&mut world, "MemoryPressure", Truth::False);
        assert_eq!(node(&world)["spec"]["taints"], json!([{"key": "mine", "effect": "NoExecute"}]));
        assert_eq!(condition::get(&node(&world), "DiskPressure").map(|one| one.status), Some(Truth::False));
        let told: Vec<&str> = world.events.iter().map(|(reason, _)| reason.as_str()).collect();
        let expected =
            ["NodeHasDiskPressure", "NodeHasInsufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientMemory"];
        assert_eq!(told, expected);
    }
}
