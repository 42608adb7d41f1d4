//! What Services come to in terms of numbers: which pods may call which address, and where that leads. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{Numbers, Service, ServiceProtocol};

/// Services of one device: more are not served.
pub(crate) const MAX_SERVICES: usize = 256;
/// Ports of all of them together.
const MAX_DOORS: usize = 2048;

/// A set of pods, by its place in [`Plan::groups`].
pub(crate) type GroupId = usize;

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The sets of pods that the rest speaks of, each once.
    pub(crate) groups: Vec<BTreeSet<u16>>,
    /// By number in the range.
    pub(crate) addresses: BTreeMap<u16, Address>,
}

/// An address in the range: a Service's, or a pod's alias.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Address {
    /// Who may have a connection to it.
    pub(crate) clients: GroupId,
    /// Whom it may lead to, whether they are ready or not.
    pub(crate) members: GroupId,
    pub(crate) doors: BTreeMap<(ServiceProtocol, u16), Vec<Door>>,
}

/// What happens to a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Door {
    pub(crate) clients: GroupId,
    /// Pods and their ports, one of which is chosen.
    pub(crate) targets: Vec<(u16, u16)>,
}

/// A [`Door`] before its clients have a number.
type DoorDraft = (BTreeSet<u16>, Vec<(u16, u16)>);

/// An [`Address`] while it is made.
#[derive(Default)]
struct Draft {
    clients: BTreeSet<u16>,
    members: BTreeSet<u16>,
    doors: BTreeMap<(ServiceProtocol, u16), Vec<DoorDraft>>,
}

impl Plan {
    /// `number` says which number a pod has, by its uid.
    pub(crate) fn new(services: &[Service], numbers: &Numbers, number: impl Fn(&str) -> Option<u16>) -> Self {
        let mut drafts: BTreeMap<u16, Draft> = BTreeMap::new();
        let mut doors = 0;
        for service in services {
            let clients: BTreeSet<u16> = service.clients.iter().filter_map(|uid| number(uid)).collect();
            let pods: Vec<_> = service.pods.iter().filter_map(|pod| Some((number(&pod.uid)?, pod))).collect();
            if clients.is_empty() || pods.is_empty() {
                continue;
            }
            let mut add = |address: u16, members: BTreeSet<u16>, protocol, port, targets: Vec<(u16, u16)>| {
                let draft = drafts.entry(address).or_default();
                draft.clients.extend(&clients);
                draft.members.extend(members);
                if !targets.is_empty() && doors < MAX_DOORS {
                    doors += 1;
                    draft.doors.entry((protocol, port)).or_default().push((clients.clone(), targets));
                }
            };
            for (at, port) in service.ports.iter().enumerate() {
                let target = |pod: &super::ServicePod| pod.targets.get(at).copied().flatten().filter(|_| pod.ready);
                if service.headless {
                    for (pod, one) in &pods {
                        let to = one.targets.get(at).copied().flatten();
                        let targets = target(one).map(|to| (*pod, to)).into_iter().collect();
                        add(*pod, BTreeSet::from([*pod]), port.protocol, to.unwrap_or(port.port), targets);
                    }
                } else if let Some(address) = numbers.of(&service.uid) {
                    let members = pods.iter().map(|(pod, _)| *pod).collect();
                    let targets = pods.iter().filter_map(|(pod, one)| Some((*pod, target(one)?))).collect();
                    add(address, members, port.protocol, port.port, targets);
                }
            }
        }
        let mut plan = Self::default();
        for (address, draft) in drafts {
            let doors = draft.doors.into_iter().map(|(port, doors)| {
                let doors = doors.into_iter().map(|(clients, targets)| Door { clients: plan.group(clients), targets });
                (port, doors.collect())
            });
            let doors = doors.collect();
            let made = Address { clients: plan.group(draft.clients), members: plan.group(draft.members), doors };
            plan.addresses.insert(address, made);
        }
        plan
    }

    fn group(&mut self, pods: BTreeSet<u16>) -> GroupId {
        self.groups.iter().position(|known| *known == pods).unwrap_or_else(|| {
            self.groups.push(pods);
            self.groups.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{ServicePod, ServicePort};
    use super::*;

    fn service(uid: &str, headless: bool, pods: &[(&str, bool, Option<u16>)], clients: &[&str]) -> Service {
        Service {
            uid: uid.into(),
            namespace: "alice".into(),
            name: uid.into(),
            headless,
            ports: vec![ServicePort { name: None, protocol: ServiceProtocol::Tcp, port: 80 }],
            pods: pods
                .iter()
                .map(|(uid, ready, to)| ServicePod { uid: (*uid).into(), ready: *ready, targets: vec![*to] })
                .collect(),
            clients: clients.iter().map(|uid| (*uid).to_owned()).collect(),
        }
    }

    /// Pods `2` to `9` are there.
    fn number(uid: &str) -> Option<u16> {
        uid.parse().ok()
    }

    fn plan(services: &[Service]) -> (Plan, Numbers) {
        let mut numbers = Numbers::default();
        let named: Vec<String> = services.iter().filter(|one| !one.headless).map(|one| one.uid.clone()).collect();
        numbers.keep(&named).unwrap();
        (Plan::new(services, &numbers, number), numbers)
    }

    const DOOR: (ServiceProtocol, u16) = (ServiceProtocol::Tcp, 80);

    #[test]
    fn new_connections_go_to_ready_pods_and_old_ones_to_all() {
        let pods = [("2", true, Some(8080)), ("3", false, Some(8080)), ("4", true, None), ("gone", true, Some(1))];
        let (plan, numbers) = plan(&[service("db", false, &pods, &["5", "2", "gone"])]);
        let address = &plan.addresses[&numbers.of("db").unwrap()];
        assert_eq!(plan.groups[address.clients], BTreeSet::from([2, 5]));
        assert_eq!(plan.groups[address.members], BTreeSet::from([2, 3, 4]));
        assert_eq!(address.doors[&DOOR], [Door { clients: address.clients, targets: vec![(2, 8080)] }]);
    }

    #[test]
    fn what_nobody_may_use_or_nobody_serves_has_no_rule() {
        let (unused, _) = plan(&[service("db", false, &[("2", true, Some(1))], &[])]);
        let (unserved, _) = plan(&[service("db", false, &[], &["2"])]);
        assert_eq!((unused, unserved), (Plan::default(), Plan::default()));
        let (waiting, numbers) = plan(&[service("db", false, &[("2", false, Some(1))], &["3"])]);
        assert!(waiting.addresses[&numbers.of("db").unwrap()].doors.is_empty());
    }

    #[test]
    fn a_headless_service_leads_to_each_pod_by_its_alias_at_the_pods_own_port() {
        let pods = [("2", true, Some(8080)), ("3", false, Some(8080))];
        let other = service("b", true, &[("2", true, Some(8080))], &["7"]);
        let (plan, _) = plan(&[service("a", true, &pods, &["6"]), other]);
        let both = &plan.addresses[&2];
        assert_eq!(plan.groups[both.clients], BTreeSet::from([6, 7]));
        let doors = &both.doors[&(ServiceProtocol::Tcp, 8080)];
        let clients: Vec<_> = doors.iter().map(|door| plan.groups[door.clients].clone()).collect();
        assert_eq!(clients, [BTreeSet::from([6]), BTreeSet::from([7])], "each for its own callers");
        assert!(plan.addresses[&3].doors.is_empty(), "not ready");
    }

    #[test]
    fn equal_sets_of_pods_are_written_once() {
        let clients = ["4", "5"];
        let (plan, _) = plan(&[
            service("a", false, &[("2", true, Some(1))], &clients),
            service("b", false, &[("3", true, Some(1))], &clients),
        ]);
        assert_eq!(plan.groups.len(), 3);
    }
}
