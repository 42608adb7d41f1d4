//! Plans for any devices and pods, against a checker that knows the rules and nothing of the planner.

use std::{collections::HashMap, sync::Arc};

use hearth_types::{Timestamp, Uid};
use proptest::prelude::*;

use super::{MI, device, pod, snapshot, where_to};
use crate::*;

fn any_device() -> impl Strategy<Value = Device> {
    let lend = proptest::option::of((0_u64..800, 0_u64..800, 0_u64..4));
    let flags = (any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2), prop::bool::weighted(0.3));
    (0..8_u8, 0..3_u8, flags, 0_u64..2000, 0_u64..2000, 0_u64..6, lend, proptest::option::of(0..3_u32)).prop_map(
        |(name, owner, (other, down, cordoned, tainted), cpu, memory, pods, lend, latency)| {
            let mut device = device(&format!("d{name}"), &format!("o{owner}"));
            device.ready = !down;
            if other {
                device.labels.insert("kubernetes.io/arch".into(), "arm64".into());
            }
            device.cordoned = cordoned;
            if tainted {
                device.taints.push(Taint { key: "t".into(), value: "".into(), effect: "NoSchedule".into() });
            }
            device.allocatable =
                Resources { cpu_millis: cpu, memory_bytes: memory * MI, pods, storage_bytes: u64::MAX };
            device.lends = lend.map(|(cpu, memory, pods)| Resources {
                cpu_millis: cpu,
                memory_bytes: memory * MI,
                pods,
                storage_bytes: 0,
            });
            device.latency_millis = latency;
            device
        },
    )
}

fn any_pod() -> impl Strategy<Value = Pod> {
    let what = (0_u64..500, 0_u64..500, 0_u64..200);
    let extras = (
        proptest::option::weighted(0.2, 0..8_u8),
        prop::bool::weighted(0.3),
        proptest::collection::btree_set(0..4_u8, 0..3),
        [(); 3].map(|()| prop::bool::weighted(0.2)),
    );
    (any::<u16>(), 0..3_u8, what, extras, proptest::option::of(0..3_u8), 0..3_i64).prop_map(
        |(
            name,
            owner,
            (cpu, memory, over),
            (hostname, tolerates, claims, [unlimited, foreign, host_path]),
            group,
            created,
        )| {
            let mut pod = pod(&format!("p{name}"), &format!("o{owner}"), cpu, memory);
            pod.created = Timestamp(created);
            pod.shape.lent.memory_bytes += over * MI;
            pod.shape.group = group.map(|group| Uid::from(format!("g{group}")));
            pod.shape.unlimited = Unlimited { cpu: false, memory: unlimited };
            pod.shape.host_path = host_path;
            if foreign {
                pod.shape.architectures = vec!["arm64".into()];
            }
            if let Some(hostname) = hostname {
                pod.shape.node_selector = [("kubernetes.io/hostname".into(), format!("d{hostname}").into())].into();
            }
            if tolerates {
                pod.shape.tolerations =
                    vec![Toleration { key: "t".into(), value: "".into(), effect: "".into(), exists: true }];
            }
            pod.shape.claims = claims.into_iter().map(|claim| format!("c{claim}").into()).collect();
            pod
        },
    )
}

fn any_snapshot() -> impl Strategy<Value = (Snapshot, Vec<Arc<Pod>>)> {
    let claims = proptest::collection::vec(
        (0..3_u8, 0..4_u8, proptest::option::of(0..8_u8), prop::bool::weighted(0.1), prop::bool::weighted(0.1)),
        0..10,
    );
    let bound = proptest::collection::vec((any_pod(), 0..8_u8), 0..6);
    (proptest::collection::vec(any_device(), 0..8), proptest::collection::vec(any_pod(), 0..14), claims, bound)
        .prop_map(|(mut devices, pods, claims, bound)| {
            devices.sort_by(|a, b| a.name.cmp(&b.name));
            devices.dedup_by(|a, b| a.name == b.name);
            let mut snapshot = snapshot(devices);
            snapshot.claims = claims
                .into_iter()
                .map(|(owner, name, device, deleting, used)| {
                    let device = device.map(|device| format!("d{device}").into());
                    let user = used.then(|| User { pod: "old".into(), stopping: true });
                    (
                        (format!("o{owner}").into(), format!("c{name}").into()),
                        Claim { device, deleting, user, moves: false },
                    )
                })
                .collect();
            snapshot.bound = bound
                .into_iter()
                .map(|(pod, device)| Bound { device: format!("d{device}").into(), pod: Arc::new(pod) })
                .collect();
            let mut pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
            pods.sort_by(|a, b| a.key.cmp(&b.key));
            pods.dedup_by(|a, b| a.key == b.key);
            (snapshot, pods)
        })
}

/// Checks one assignment against the rules, written without the planner's code.
struct Checker<'a> {
    snapshot: &'a Snapshot,
    carried: Vec<(String, Arc<Pod>)>,
    pins: HashMap<(String, String), String>,
}

impl Checker<'_> {
    fn room(&self, device: &Device, pod: &Pod) -> bool {
        let sum = |guests_only: bool, field: fn(&Shape) -> u64| -> u64 {
            let on_it = self.carried.iter().filter(|(name, _)| **name == *device.name).map(|(_, pod)| pod);
            on_it.filter(|pod| !guests_only || *pod.shape.owner != *device.owner).map(|pod| field(&pod.shape)).sum()
        };
        let ok = |needs: u64, used: u64, all: u64| needs == 0 || used + needs <= all;
        let all = device.allocatable;
        let in_all = ok(pod.shape.requests.cpu_millis, sum(false, |s| s.requests.cpu_millis), all.cpu_millis)
            && ok(pod.shape.requests.memory_bytes, sum(false, |s| s.requests.memory_bytes), all.memory_bytes)
            && ok(1, sum(false, |_| 1), all.pods);
        if *device.owner == *pod.shape.owner {
            return in_all;
        }
        device.lends.is_some_and(|lends| {
            in_all
                && ok(pod.shape.lent.cpu_millis, sum(true, |s| s.lent.cpu_millis), lends.cpu_millis)
                && ok(pod.shape.lent.memory_bytes, sum(true, |s| s.lent.memory_bytes), lends.memory_bytes)
                && ok(1, sum(true, |_| 1), lends.pods)
        })
    }

    fn stored(&self, pod: &Pod, claim: &str) -> Option<&Claim> {
        self.snapshot.claims.get(&(pod.shape.owner.clone(), claim.into()))
    }

    /// Whether a device would take a pod, were it ready and not cordoned.
    fn suits(&self, device: &Device, pod: &Pod) -> bool {
        let taints = device.taints.is_empty() || !pod.shape.tolerations.is_empty();
        let labels = pod.shape.node_selector.values().all(|name| **name == *device.name);
        let architecture = device.labels.get("kubernetes.io/arch");
        let runs = pod.shape.architectures.is_empty()
            || architecture.is_some_and(|architecture| pod.shape.architectures.contains(architecture));
        taints && labels && runs && self.room(device, pod)
    }

    fn allows(&self, device: &Device, pod: &Pod) -> bool {
        let claims = pod.shape.claims.iter().all(|claim| {
            let taken = self.pins.contains_key(&(pod.shape.owner.to_string(), claim.to_string()));
            self.stored(pod, claim).is_some_and(|stored| {
                let here = stored.device.as_deref().is_none_or(|pin| pin == &*device.name);
                !stored.deleting && stored.user.is_none() && !taken && here
            })
        });
        let guest = *device.owner != *pod.shape.owner;
        let homeless = !pod.shape.claims.is_empty()
            && pod
                .shape
                .claims
                .iter()
                .all(|claim| self.stored(pod, claim).is_none_or(|stored| stored.device.is_none()));
        let waits = guest
            && homeless
            && self
                .snapshot
                .devices
                .iter()
                .any(|own| *own.owner == *pod.shape.owner && (!own.ready || own.cordoned) && self.suits(own, pod));
        let bounded = !guest || (pod.shape.unlimited == Unlimited::default() && !pod.shape.host_path);
        device.ready && !device.cordoned && claims && bounded && !waits && self.suits(device, pod)
    }

    fn take(&mut self, device: &str, pod: &Arc<Pod>) {
        self.carried.push((device.to_owned(), Arc::clone(pod)));
        for claim in &pod.shape.claims {
            self.pins.insert((pod.shape.owner.to_string(), claim.to_string()), device.to_owned());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_plan_breaks_a_rule_and_none_leaves_out_what_fits((snapshot, pods) in any_snapshot()) {
        let plan = plan(&snapshot, &pods);
        let mut checker = Checker {
            snapshot: &snapshot,
            carried: snapshot.bound.iter().map(|one| (one.device.to_string(), Arc::clone(&one.pod))).collect(),
            pins: HashMap::new(),
        };
        for one in &plan.assignments {
            let device = snapshot.devices.iter().find(|device| device.name == one.device).unwrap();
            prop_assert!(checker.allows(device, &one.pod), "{} on {}", one.pod.key, one.device);
            if *device.owner != *one.pod.shape.owner {
                let own = snapshot.devices.iter().find(|own| *own.owner == *one.pod.shape.owner && checker.allows(own, &one.pod));
                prop_assert!(own.is_none(), "{} could be at home", one.pod.key);
            }
            checker.take(&one.device, &one.pod);
        }
        for one in &plan.unplaced {
            let fit = snapshot.devices.iter().find(|device| checker.allows(device, &one.pod));
            prop_assert!(fit.is_none(), "{} fits {:?}: {}", one.pod.key, fit.map(|device| &device.name), one.why.summary);
            let prefix = format!("0/{} devices can take it: ", snapshot.devices.len());
            prop_assert!(one.why.summary.starts_with(&prefix), "{}", one.why.summary);
        }
        let mut seen: Vec<_> = plan.assignments.iter().map(|one| &one.pod.key).chain(plan.unplaced.iter().map(|one| &one.pod.key)).collect();
        seen.sort();
        prop_assert_eq!(seen, pods.iter().map(|pod| &pod.key).collect::<Vec<_>>());
    }

    #[test]
    fn the_same_input_in_any_order_gives_the_same_plan((mut snapshot, mut pods) in any_snapshot()) {
        let show = |plan: &Plan| {
            let unplaced: Vec<_> = plan.unplaced.iter().map(|one| (one.pod.key.name.to_string(), one.why.summary.clone())).collect();
            (where_to(plan), unplaced)
        };
        let first = show(&plan(&snapshot, &pods));
        pods.reverse();
        snapshot.devices.reverse();
        snapshot.bound.reverse();
        prop_assert_eq!(show(&plan(&snapshot, &pods)), first);
    }
}
