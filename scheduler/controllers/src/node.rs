//! Node: a Device as tools know it, Ready while its session lives.

use std::time::Duration;

use hearth_types::{
    Object, Timestamp,
    condition::{self, Condition, Truth},
    hours::Hours,
    kinds::{LENDING_HOURS_OVER, Lend, labels},
    quantity,
};
use serde_json::{Value, json};

use crate::{
    action::{Action, Reconciled},
    meta::{self, number, text},
    pressure,
};

/// How long a device's hours are not looked at at the most: the clock may be set.
const LOOK_AGAIN: Duration = Duration::from_hours(1);

/// What is known of a device's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// It has one.
    Connected,
    /// It has none, but not for long: what was known is still held to be true.
    Lately,
    /// It has had none for too long.
    Silent,
}

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The Device; `None` where there is none of the name.
    pub device: Option<&'a Object>,
    /// The Node; `None` where there is none of the name.
    pub node: Option<&'a Object>,
    /// What is known of its session.
    pub contact: Contact,
}

/// Makes the Node of a Device, keeps what the Device says in it, and keeps the conditions `Ready` of the Node and `Connected`
/// of the Device, and what follows from those by which the Device tells that it runs short. Labels, taints and `unschedulable` that people set on the Node stay. A Node without a Device goes.
pub fn reconcile(inputs: Inputs<'_>, now: Timestamp) -> Reconciled {
    let mut out = Reconciled::default();
    let Some(device) = inputs.device else {
        if let Some(node) = inputs.node
            && !meta::is_deleting(&node.value())
        {
            out.delete(node);
        }
        return out;
    };
    let mut device_value = device.value();
    let (truth, reason, message) = match inputs.contact {
        Contact::Connected => (Truth::True, "SessionOpen", "the device has a session".to_owned()),
        Contact::Silent => {
            (Truth::Unknown, "DeviceSilent", "the device is silent: it is switched off or without network".to_owned())
        }
        Contact::Lately => match condition::get(&device_value, "Connected") {
            Some(old) => (old.status, leaked(&old.reason), old.message),
            None => (Truth::Unknown, "NeverConnected", "the device had no session yet".to_owned()),
        },
    };
    let mut node_value = match inputs.node {
        Some(node) => node.value(),
        None => {
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": device.name()}, "spec": {}, "status": {}})
        }
    };
    describe(&device_value, device, &mut node_value);
    pressure::keep(device, &device_value, &mut node_value, now, &mut out);
    let before = condition::get(&node_value, "Ready").map(|old| old.status);
    let node_reason = match truth {
        Truth::True => "DeviceReady",
        _ => reason,
    };
    condition::set(&mut node_value, &Condition::new("Ready", truth, node_reason, message.clone()), now);
    condition::set(&mut device_value, &Condition::new("Connected", truth, reason, message), now);
    out.again = lending(&mut device_value, now);
    match inputs.node {
        None => out.actions.push(Action::Create { object: node_value }),
        Some(node) => {
            out.update(node, node_value);
            match (before, truth) {
                (Some(Truth::True), Truth::Unknown) => {
                    out.event(
                        device,
                        true,
                        "DeviceSilent",
                        format!("device {} is silent; its pods are kept", device.name()),
                    );
                }
                (Some(Truth::Unknown | Truth::False), Truth::True) => {
                    out.event(device, false, "DeviceReady", format!("device {} is connected", device.name()));
                }
                _ => {}
            }
        }
    }
    out.update(device, device_value);
    out
}

/// The condition that says whether a device lends now, where it lends in some hours; when that changes.
const LENDING: &str = "Lending";

/// Keeps the condition `Lending` of a Device; answers when to look again. What places pods, and what ends them, looks when it changes.
fn lending(device: &mut Value, now: Timestamp) -> Option<Duration> {
    let lend: Option<Lend> = serde_json::from_value(device["spec"]["lend"].clone()).unwrap_or_default();
    let (condition, change) = match Hours::read(&lend.unwrap_or_default()) {
        Ok(None) => {
            condition::remove(device, LENDING);
            return None;
        }
        Ok(Some(hours)) => {
            let (open, change) = hours.is_open(now);
            let until = change.map(|at| format!(" until {at}")).unwrap_or_default();
            let condition = if open {
                Condition::new(LENDING, Truth::True, "LendingHours", format!("apps of others may run here{until}"))
            } else {
                let message = format!("no apps of others run here{until}");
                Condition::new(LENDING, Truth::False, LENDING_HOURS_OVER, message)
            };
            (condition, change)
        }
        Err(bad) => {
            let message = bad.iter().map(|one| format!("spec.lend.{one}")).collect::<Vec<_>>().join("; ");
            (Condition::new(LENDING, Truth::False, "HoursUnreadable", message), None)
        }
    };
    condition::set(device, &condition, now);
    // A change of the summer time's rules or of the clock may bring it forward.
    Some(change.map_or(LOOK_AGAIN, |at| at.since(now)).min(LOOK_AGAIN))
}

/// The reasons that this controller itself writes; another is from an older version and is renamed.
fn leaked(reason: &str) -> &'static str {
    ["SessionOpen", "DeviceSilent", "NeverConnected"]
        .into_iter()
        .find(|known| *known == reason)
        .unwrap_or("SessionOpen")
}

/// Puts what the Device says into its Node.
fn describe(device_value: &Value, device: &Object, node: &mut Value) {
    let info = &device_value["status"]["info"];
    for (label, value) in [
        (labels::HOSTNAME, device.name()),
        (labels::OWNER, text(device_value, "/spec/owner")),
        (labels::OS, "linux"),
        (labels::ARCH, text(info, "/architecture")),
    ] {
        if !value.is_empty() {
            meta::set_in(node, "labels", label, value);
        }
    }
    if !info.is_object() {
        return;
    }
    if !node["status"].is_object() {
        node["status"] = json!({});
    }
    let amount = |field: &str| number(info, field).unwrap_or(0).unsigned_abs();
    let capacity = json!({
        "cpu": quantity::format_cpu(amount("/cpuMillis")),
        "memory": quantity::format_bytes(amount("/memoryBytes")),
        "pods": amount("/pods").to_string(),
    });
    let (mut allocatable, mut capacity) = (capacity.clone(), capacity);
    for (list, field) in [(&mut allocatable, "/storageAllocatableBytes"), (&mut capacity, "/storageBytes")] {
        if let Some(bytes) = number(info, field) {
            list["ephemeral-storage"] = json!(quantity::format_bytes(bytes.unsigned_abs()));
        }
    }
    let status = &mut node["status"];
    status["allocatable"] = allocatable;
    status["capacity"] = capacity;
    status["nodeInfo"] = json!({
        "architecture": text(info, "/architecture"),
        "bootID": "",
        "containerRuntimeVersion": format!("hearth://{}", text(info, "/agentVersion")),
        "kernelVersion": text(info, "/kernelVersion"),
        "kubeProxyVersion": "",
        "kubeletVersion": text(info, "/agentVersion"),
        "machineID": "",
        "operatingSystem": "linux",
        "osImage": text(info, "/osImage"),
        "systemUUID": "",
    });
    status["addresses"] = json!([{"type": "Hostname", "address": device.name()}]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, deletes};

    fn device() -> Object {
        let mut world = World::default();
        world.create(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "metadata": {"name": "nas"},
            "spec": {"owner": "alice", "keys": []}}))
    }

    fn with_info(device: &Object) -> Object {
        let mut value = device.value();
        value["status"]["info"] = json!({"architecture": "arm64", "kernelVersion": "6.1", "osImage": "Debian", "agentVersion": "0.1.0",
            "cpuMillis": 4000, "memoryBytes": 1_073_741_824_u64, "pods": 50, "storageBytes": 10_u64 << 30, "storageAllocatableBytes": 9_u64 << 30});
        Object::from_value(value).expect("an object")
    }

    fn settle(world: &mut World, contact: Contact) -> Reconciled {
        let look = |world: &World| {
            let device = world.find("Device", "nas");
            let node = world.find("Node", "nas");
            reconcile(Inputs { device: device.as_ref(), node: node.as_ref(), contact }, Timestamp(5000))
        };
        let first = look(world);
        world.apply(&first);
        assert_eq!(look(world).actions, [], "a second look asks for nothing");
        first
    }

    #[test]
    fn a_node_follows_its_device_and_keeps_what_people_set() {
        let mut world = World::default();
        world.put(&with_info(&device()));
        settle(&mut world, Contact::Lately);
        let node = world.find("Node", "nas").expect("made").value();
        assert_eq!(condition::get(&node, "Ready").map(|one| one.status), Some(Truth::Unknown));
        assert_eq!(node["metadata"]["labels"]["kubernetes.io/arch"], "arm64");
        assert_eq!(node["metadata"]["labels"]["hearth.dev/owner"], "alice");
        assert_eq!(
            node["status"]["allocatable"],
            json!({"cpu": "4", "memory": "1Gi", "pods": "50", "ephemeral-storage": "9Gi"})
        );
        world.edit("Node", "nas", |node| {
            node["spec"]["unschedulable"] = json!(true);
            node["metadata"]["labels"]["room"] = json!("attic");
        });
        settle(&mut world, Contact::Connected);
        let node = world.find("Node", "nas").expect("kept").value();
        assert!(condition::is_true(&node, "Ready"));
        assert!(condition::is_true(&world.find("Device", "nas").expect("kept").value(), "Connected"));
        assert_eq!(
            (&node["spec"]["unschedulable"], &node["metadata"]["labels"]["room"]),
            (&json!(true), &json!("attic"))
        );
    }

    #[test]
    fn a_short_absence_changes_nothing_and_a_long_one_is_unknown() {
        let mut world = World::default();
        world.put(&with_info(&device()));
        settle(&mut world, Contact::Connected);
        assert_eq!(settle(&mut world, Contact::Lately).actions, []);
        settle(&mut world, Contact::Silent);
        let node = world.find("Node", "nas").expect("kept").value();
        assert_eq!(
            condition::get(&node, "Ready").map(|one| (one.status, one.reason)),
            Some((Truth::Unknown, "DeviceSilent".into()))
        );
    }

    #[test]
    fn a_device_says_whether_it_lends_now_and_is_looked_at_when_that_changes() {
        let mut world = World::default();
        let mut value = device().value();
        value["spec"]["lend"] = json!({"pods": 2, "timeZone": "UTC", "hours": [{"from": "22:00", "to": "07:00"}]});
        world.put(&Object::from_value(value).expect("an object"));
        let look = |world: &World, text: &str| {
            let (device, node) = (world.find("Device", "nas"), world.find("Node", "nas"));
            let inputs = Inputs { device: device.as_ref(), node: node.as_ref(), contact: Contact::Connected };
            reconcile(inputs, Timestamp::parse(text).expect("a time"))
        };
        for (text, truth, message, again) in [
            ("2024-01-01T06:30:00Z", Truth::True, "apps of others may run here until 2024-01-01T07:00:00Z", 1800),
            ("2024-01-01T07:00:00Z", Truth::False, "no apps of others run here until 2024-01-01T22:00:00Z", 3600),
            ("2024-01-01T21:59:59Z", Truth::False, "no apps of others run here until 2024-01-01T22:00:00Z", 1),
        ] {
            let out = look(&world, text);
            assert_eq!(out.again, Some(Duration::from_secs(again)), "{text}");
            world.apply(&out);
            let found = condition::get(&world.find("Device", "nas").expect("kept").value(), LENDING).expect("said");
            assert_eq!((found.status, found.message.as_str()), (truth, message), "{text}");
        }
        world.edit("Device", "nas", |device| device["spec"]["lend"] = json!({"pods": 2}));
        let out = look(&world, "2024-01-01T21:59:59Z");
        world.apply(&out);
        assert_eq!(condition::get(&world.find("Device", "nas").expect("kept").value(), LENDING), None);
    }

    #[test]
    fn a_node_without_a_device_goes() {
        let mut world = World::default();
        world.put(&device());
        settle(&mut world, Contact::Connected);
        let node = world.find("Node", "nas");
        let out = reconcile(Inputs { device: None, node: node.as_ref(), contact: Contact::Silent }, Timestamp(0));
        assert_eq!(deletes(&out), 1);
    }
}
