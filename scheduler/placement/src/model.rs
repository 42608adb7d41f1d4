//! What placement looks at: plain structs, parsed once from objects.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use hearth_types::{
    Object, ObjectKey, Revision, Timestamp, Uid, condition,
    hours::Hours,
    kinds::{ARCHITECTURES_ANNOTATION, Lend, MEMORY_PRESSURE_TAINT, labels},
    lease::FEATURE,
    qos::QosClass,
    quantity::{self, Beside},
};
use serde_json::Value;

/// The annotation of a Node that says how far its users are, in milliseconds. Devices that do not say come last.
pub const LATENCY_ANNOTATION: &str = "hearth.dev/latency-millis";
/// What a device takes of pods and what it has of disk where it does not say.
const UNSAID: Resources = Resources { cpu_millis: 0, memory_bytes: 0, pods: 110, storage_bytes: u64::MAX };

/// Amounts of what devices have and pods need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    /// Processor time in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Pods.
    pub pods: u64,
    /// Room on the disk in bytes (`ephemeral-storage`).
    pub storage_bytes: u64,
}

impl Resources {
    /// The sum; saturates.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            pods: self.pods.saturating_add(other.pods),
            storage_bytes: self.storage_bytes.saturating_add(other.storage_bytes),
        }
    }

    /// What is left of `self` without `other`; nothing where there is less than nothing.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            pods: self.pods.saturating_sub(other.pods),
            storage_bytes: self.storage_bytes.saturating_sub(other.storage_bytes),
        }
    }
}

/// A taint of a Node that keeps pods away.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Taint {
    /// Its key.
    pub key: Box<str>,
    /// Its value; may be empty.
    pub value: Box<str>,
    /// `NoSchedule` or `NoExecute`; placement does not act on `PreferNoSchedule`.
    pub effect: Box<str>,
}

/// A toleration of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Toleration {
    /// The taint's key; empty with `exists` tolerates everything.
    pub key: Box<str>,
    /// The taint's value.
    pub value: Box<str>,
    /// The taint's effect; empty for every effect.
    pub effect: Box<str>,
    /// Whether the value does not matter (`operator: Exists`).
    pub exists: bool,
}

impl Toleration {
    /// Whether it tolerates a taint (Kubernetes `ToleratesTaint`).
    pub fn tolerates(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (if self.key.is_empty() { self.exists } else { self.key == taint.key })
            && (self.exists || self.value == taint.value)
    }
}

/// A device as placement sees it.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name.
    pub name: Arc<str>,
    /// Whose it is.
    pub owner: Arc<str>,
    /// Whether its Node is Ready. Silence is not.
    pub ready: bool,
    /// Since when it is so, or not.
    pub ready_since: Option<Timestamp>,
    /// Whether its Node is cordoned (`spec.unschedulable`).
    pub cordoned: bool,
    /// Its Node's taints.
    pub taints: Vec<Taint>,
    /// Its Node's labels.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// What pods may use of it.
    pub allocatable: Resources,
    /// What pods of other owners may use of it, all together.
    pub lends: Option<Resources>,
    /// When it lends them, where not always.
    pub hours: Option<Hours>,
    /// How far its users are, where known.
    pub latency_millis: Option<u32>,
    /// Whether its agent holds leases of volumes that move.
    pub leases: bool,
}

impl Device {
    /// Reads a Device and the Node of the same name. What is missing or odd counts as nothing, so that an odd object gets no pods.
    pub fn read(device: &Value, node: &Value) -> Self {
        let text = |value: &Value, pointer: &str| -> String {
            value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let ready = condition::get(node, "Ready");
        let taints = list(node, "/spec/taints").map(|taint| Taint {
            key: text(taint, "/key").into(),
            value: text(taint, "/value").into(),
            effect: text(taint, "/effect").into(),
        });
        let latency = node.pointer("/metadata/annotations").and_then(|all| all.get(LATENCY_ANNOTATION));
        let lend: Result<Option<Lend>, _> = serde_json::from_value(device["spec"]["lend"].clone());
        let hours = lend.map_err(drop).and_then(|lend| Hours::read(&lend.unwrap_or_default()).map_err(drop));
        Self {
            name: text(device, "/metadata/name").into(),
            owner: text(device, "/spec/owner").into(),
            ready: ready.as_ref().is_some_and(|one| one.status == condition::Truth::True),
            ready_since: ready.and_then(|one| Timestamp::parse(&one.last_transition_time?)),
            cordoned: node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)),
            taints: taints.filter(|taint| matches!(&*taint.effect, "NoSchedule" | "NoExecute")).collect(),
            labels: map(node, "/metadata/labels"),
            allocatable: amounts(&node["status"]["allocatable"], UNSAID),
            lends: device.pointer("/spec/lend").map(|lend| {
                if hours.is_err() {
                    return Resources::default();
                }
                let lent = amounts(lend, Resources { pods: u64::MAX, ..UNSAID });
                // Nothing said is nothing lent; where something is, pods are bounded by it.
                if lend.as_object().is_some_and(serde_json::Map::is_empty) { Resources::default() } else { lent }
            }),
            hours: hours.ok().flatten(),
            leases: list(device, "/status/info/features").any(|one| one == FEATURE),
            latency_millis: latency.and_then(Value::as_str).and_then(|text| text.parse().ok()),
        }
    }
}

/// What a pod may use as much of as there is, since a container of it has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Unlimited {
    /// Processor time.
    pub cpu: bool,
    /// Memory.
    pub memory: bool,
}

/// What pods have in common that can be treated alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The namespace: the owner.
    pub owner: Box<str>,
    /// The uid of what controls the pod; replicas of one thing are spread.
    pub group: Option<Uid>,
    /// What it asks for.
    pub requests: Resources,
    /// What it counts for on a device of another owner: its limits.
    pub lent: Resources,
    /// What it has no limit for: then no device of another owner takes it.
    pub unlimited: Unlimited,
    /// The architectures that it runs on; empty for all.
    pub architectures: Vec<Box<str>>,
    /// Labels that its device must have.
    pub node_selector: BTreeMap<Box<str>, Box<str>>,
    /// Taints that it tolerates.
    pub tolerations: Vec<Toleration>,
    /// The claims that it mounts, sorted, each once.
    pub claims: Vec<Box<str>>,
    /// Whether it mounts a directory of its device (`hostPath`): then no device of another owner takes it.
    pub host_path: bool,
}

/// A pod as placement sees it.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What names it.
    pub key: ObjectKey,
    /// Its uid.
    pub uid: Uid,
    /// The revision it was read at.
    pub revision: Revision,
    /// When it was made: older pods are placed first.
    pub created: Timestamp,
    /// What it needs.
    pub shape: Shape,
}

/// The most that the containers of one pod take beside each other.
#[derive(Default)]
struct Peak {
    cpu_millis: Beside,
    memory_bytes: Beside,
    storage_bytes: Beside,
}

impl Peak {
    fn add(&mut self, resources: Resources, stays: bool) {
        self.cpu_millis.add(resources.cpu_millis, stays);
        self.memory_bytes.add(resources.memory_bytes, stays);
        self.storage_bytes.add(resources.storage_bytes, stays);
    }

    fn of_one_pod(self) -> Resources {
        let most = |beside: Beside| beside.peak().unwrap_or(u64::MAX);
        Resources {
            cpu_millis: most(self.cpu_millis),
            memory_bytes: most(self.memory_bytes),
            pods: 1,
            storage_bytes: most(self.storage_bytes),
        }
    }
}

impl Pod {
    /// Reads a pod. `value` is the parsed JSON of `object`.
    pub fn read(object: &Object, value: &Value) -> Self {
        let spec = &value["spec"];
        let mut claims: Vec<Box<str>> = list(spec, "/volumes")
            .filter_map(|volume| volume.pointer("/persistentVolumeClaim/claimName")?.as_str().map(Into::into))
            .collect();
        claims.sort_unstable();
        claims.dedup();
        let mut unlimited = Unlimited::default();
        let (mut requests, mut lent) = (Peak::default(), Peak::default());
        let first = list(spec, "/initContainers").map(|one| (one, one["restartPolicy"] == "Always"));
        for (container, stays) in first.chain(list(spec, "/containers").map(|one| (one, true))) {
            let resources = &container["resources"];
            let asked = amounts(&resources["requests"], Resources::default());
            let limit = amounts(&resources["limits"], Resources::default());
            requests.add(asked, stays);
            unlimited.cpu |= limit.cpu_millis == 0;
            unlimited.memory |= limit.memory_bytes == 0;
            let taken = Resources {
                cpu_millis: asked.cpu_millis.max(limit.cpu_millis),
                memory_bytes: asked.memory_bytes.max(limit.memory_bytes),
                pods: 0,
                storage_bytes: asked.storage_bytes.max(limit.storage_bytes),
            };
            lent.add(taken, stays);
        }
        let (requests, lent) = (requests.of_one_pod(), lent.of_one_pod());
        let text = |value: &Value, field: &str| -> Box<str> { value[field].as_str().unwrap_or_default().into() };
        let asks_for_something = QosClass::of(spec) != QosClass::BestEffort;
        let tolerations = list(spec, "/tolerations").map(|one| Toleration {
            key: text(one, "key"),
            value: text(one, "value"),
            effect: text(one, "effect"),
            exists: one["operator"] == "Exists",
        });
        let annotations = value.pointer("/metadata/annotations");
        let architectures = annotations.and_then(|all| all.get(ARCHITECTURES_ANNOTATION)).and_then(Value::as_str);
        let architectures = architectures.unwrap_or_default().split(',').map(str::trim).filter(|one| !one.is_empty());
        let owners = list(value, "/metadata/ownerReferences");
        let mut controllers = owners.filter(|owner| owner["controller"] == true);
        Self {
            key: object.key().clone(),
            uid: object.uid().clone(),
            revision: object.revision(),
            created: value
                .pointer("/metadata/creationTimestamp")
                .and_then(Value::as_str)
                .and_then(Timestamp::parse)
                .unwrap_or_default(),
            shape: Shape {
                owner: object.namespace().into(),
                group: controllers.next().and_then(|owner| owner["uid"].as_str()).map(Uid::from),
                requests,
                lent,
                unlimited,
                architectures: architectures.map(Into::into).collect(),
                node_selector: map(spec, "/nodeSelector"),
                // As Kubernetes' control plane has it: what asks for memory was promised some, whatever others take.
                tolerations: tolerations.chain(asks_for_something.then(memory_pressure)).collect(),
                claims,
                host_path: list(spec, "/volumes").any(|volume| volume.get("hostPath").is_some()),
            },
        }
    }
}

/// A pod that a device has.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The device's name.
    pub device: Arc<str>,
    /// The pod.
    pub pod: Arc<Pod>,
}

/// A claim as placement sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The device that its data is on.
    pub device: Option<Box<str>>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it is under a lease, and may begin anew on another device.
    pub moves: bool,
    /// The pod that has it now. A volume has one writer: no other pod gets it before that one ended.
    pub user: Option<User>,
}

/// A pod that a device has and that mounts a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub pod: Box<str>,
    /// Whether its deletion was asked for.
    pub stopping: bool,
}

/// Everything that a plan is made from.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The time now.
    pub now: Timestamp,
    /// The devices.
    pub devices: Vec<Arc<Device>>,
    /// The pods that devices have and that are not finished.
    pub bound: Vec<Bound>,
    /// The claims that pending pods name, by namespace and name; those that do not exist are absent.
    pub claims: HashMap<(Box<str>, Box<str>), Claim>,
}

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn map(value: &Value, pointer: &str) -> BTreeMap<Box<str>, Box<str>> {
    let entries = value.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into()))).collect()
}

fn memory_pressure() -> Toleration {
    Toleration { key: MEMORY_PRESSURE_TAINT.into(), value: "".into(), effect: "NoSchedule".into(), exists: true }
}

/// Reads `cpu`, `memory`, `pods` and `ephemeral-storage`; what is absent or odd is nothing, or `unsaid` of the last two.
fn amounts(value: &Value, unsaid: Resources) -> Resources {
    let text = |field: &str| value.get(field).and_then(Value::as_str);
    let pods = match value.get("pods") {
        Some(Value::Number(number)) => number.as_u64().unwrap_or_default(),
        Some(Value::String(text)) => quantity::bytes(text).unwrap_or_default(),
        _ => unsaid.pods,
    };
    Resources {
        cpu_millis: text("cpu").and_then(|text| quantity::cpu_millis(text).ok()).unwrap_or_default(),
        memory_bytes: text("memory").and_then(|text| quantity::bytes(text).ok()).unwrap_or_default(),
        pods,
        storage_bytes: text("ephemeral-storage").map_or(Ok(unsaid.storage_bytes), quantity::bytes).unwrap_or_default(),
    }
}

impl Device {
    /// Whether it lends nothing at this time for its hours' sake; then also until when, where that ends.
    pub fn closed(&self, now: Timestamp) -> Option<Option<Timestamp>> {
        let (open, change) = self.hours.as_ref()?.is_open(now);
        (!open).then_some(change)
    }

    /// The label by which selectors name one device.
    pub(crate) fn hostname(&self) -> Option<&str> {
        self.labels.get(labels::HOSTNAME).map(AsRef::as_ref)
    }
}
