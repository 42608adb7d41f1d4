//! Filter, score, assign.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    sync::Arc,
};

use hearth_types::{Uid, kinds::labels};

use crate::{
    explain::{self, Why},
    filter::{self, Cause},
    model::{Device, Pod, Resources, Shape, Snapshot},
    score::{self, Reliability, Score},
};

/// One pod and the device that it goes to.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The device's name.
    pub device: Arc<str>,
}

/// One pod that no device can take now.
#[derive(Clone, Debug)]
pub struct Unplaced {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Why; shared by pods of one shape.
    pub why: Arc<Why>,
}

/// What to do with the pending pods. Whoever executes it makes no choices of its own.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Pods with a device.
    pub assignments: Vec<Assignment>,
    /// Pods without.
    pub unplaced: Vec<Unplaced>,
}

/// Plans where pending pods go.
///
/// # Flow
/// Pods are taken by shape, the shape of the oldest pod first, and within a shape from the oldest on; every assignment counts for all
/// that follow.
///
/// # Guarantees
/// No device gets more than it has, nor guests more than it lends; no claim gets a second pod while one has it; no assignment breaks a filter; every pending pod is in the plan once;
/// the same input gives the same plan in whatever order it comes.
pub fn plan(snapshot: &Snapshot, pending: &[Arc<Pod>]) -> Plan {
    let mut order: Vec<&Arc<Pod>> = pending.iter().collect();
    order.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
    let mut place: HashMap<&Shape, usize> = HashMap::new();
    let mut groups: Vec<Vec<&Arc<Pod>>> = Vec::new();
    for pod in order {
        let index = *place.entry(&pod.shape).or_insert(groups.len());
        match groups.get_mut(index) {
            Some(group) => group.push(pod),
            None => groups.push(vec![pod]),
        }
    }
    let mut planner = Planner::new(snapshot, &place);
    let mut plan = Plan::default();
    for group in groups {
        planner.place_group(&group, &mut plan);
    }
    plan
}

/// What one device carries, as the plan grows.
#[derive(Clone, Copy, Default)]
struct Load {
    used: Resources,
    guests: Resources,
}

struct Planner<'a> {
    snapshot: &'a Snapshot,
    devices: Vec<&'a Device>,
    by_name: HashMap<&'a str, usize>,
    by_hostname: HashMap<&'a str, Vec<usize>>,
    by_owner: HashMap<&'a str, Vec<usize>>,
    lenders: Vec<usize>,
    loads: Vec<Load>,
    /// Replicas per controlling object and device, of the objects that have pending pods.
    replicas: HashMap<(&'a Uid, usize), u32>,
    /// Claims that this plan gives to a pod: on which device, and to which pod.
    taken: HashMap<(&'a str, &'a str), (usize, &'a str)>,
}

impl<'a> Planner<'a> {
    fn new(snapshot: &'a Snapshot, shapes: &HashMap<&'a Shape, usize>) -> Self {
        let mut devices: Vec<&Device> = snapshot.devices.iter().map(AsRef::as_ref).collect();
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        devices.dedup_by(|a, b| a.name == b.name);
        let mut planner = Self {
            snapshot,
            by_name: devices.iter().enumerate().map(|(index, device)| (&*device.name, index)).collect(),
            by_hostname: HashMap::new(),
            by_owner: HashMap::new(),
            lenders: Vec::new(),
            loads: vec![Load::default(); devices.len()],
            replicas: HashMap::new(),
            taken: HashMap::new(),
            devices,
        };
        for (index, device) in planner.devices.iter().enumerate() {
            planner.by_owner.entry(&device.owner).or_default().push(index);
            if let Some(hostname) = device.hostname() {
                planner.by_hostname.entry(hostname).or_default().push(index);
            }
            if device.lends.is_some_and(|lends| lends.pods > 0) {
                planner.lenders.push(index);
            }
        }
        let wanted: HashSet<&Uid> = shapes.keys().filter_map(|shape| shape.group.as_ref()).collect();
        for bound in &snapshot.bound {
            let Some(index) = planner.by_name.get(&*bound.device).copied() else {
                continue;
            };
            planner.load(index, &bound.pod.shape);
            if let Some(group) = bound.pod.shape.group.as_ref().filter(|group| wanted.contains(group)) {
                *planner.replicas.entry((group, index)).or_default() += 1;
            }
        }
        planner
    }

    fn load(&mut self, index: usize, shape: &Shape) {
        let guest = *self.devices[index].owner != *shape.owner;
        let load = &mut self.loads[index];
        load.used = load.used.plus(shape.requests);
        if guest {
            load.guests = load.guests.plus(shape.lent);
        }
    }

    fn place_group(&mut self, pods: &[&'a Arc<Pod>], plan: &mut Plan) {
        let Some(first) = pods.first() else {
            return;
        };
        let shape = &first.shape;
        let mut left = pods.iter();
        let mut candidates = Candidates::default();
        while !left.as_slice().is_empty() && self.unusable_claim(shape).is_none() {
            let Some(index) = self.best(shape, &mut candidates) else { break };
            let Some(pod) = left.next() else { break };
            self.assign(index, pod);
            let device = Arc::clone(&self.devices[index].name);
            plan.assignments.push(Assignment { pod: Arc::clone(pod), device });
        }
        if left.as_slice().is_empty() {
            return;
        }
        let why = Arc::new(match self.unusable_claim(shape) {
            Some(reason) => explain::of_pod(self.devices.len(), &reason),
            None => self.why(shape),
        });
        plan.unplaced.extend(left.map(|pod| Unplaced { pod: Arc::clone(pod), why: Arc::clone(&why) }));
    }

    /// Why no device at all can take pods of a shape: a claim that is not there, or that another pod has.
    fn unusable_claim(&self, shape: &Shape) -> Option<String> {
        shape.claims.iter().find_map(|claim| {
            let Some(found) = self.snapshot.claims.get(&(shape.owner.clone(), claim.clone())) else {
                return Some(format!("its claim {claim} does not exist"));
            };
            if found.deleting {
                return Some(format!("its claim {claim} is being deleted"));
            }
            let (user, how) = match (&found.user, self.taken.get(&(&*shape.owner, &**claim))) {
                (Some(user), _) if user.stopping => (&*user.pod, "is stopping"),
                (Some(user), _) => (&*user.pod, "runs: a volume has one writer"),
                (None, Some((_, pod))) => (*pod, "comes first: a volume has one writer"),
                (None, None) => return None,
            };
            Some(format!("its volume {claim} is in use by pod {user}, which {how}"))
        })
    }

    /// The device that holds a claim's data, or will by this plan.
    fn holder(&self, owner: &'a str, claim: &'a str) -> Option<&'a str> {
        if let Some((index, _)) = self.taken.get(&(owner, claim)) {
            return Some(&self.devices[*index].name);
        }
        self.snapshot.claims.get(&(owner.into(), claim.into()))?.device.as_deref()
    }

    fn assign(&mut self, index: usize, pod: &'a Pod) {
        let shape = &pod.shape;
        self.load(index, shape);
        if let Some(group) = &shape.group {
            *self.replicas.entry((group, index)).or_default() += 1;
        }
        for claim in &shape.claims {
            self.taken.insert((&shape.owner, claim), (index, &pod.key.name));
        }
    }

    /// The best device for the next pod of a shape. A candidate that does not fit never will again within this plan, and
    /// scores only fall: so the top of the heap whose score still holds is the best.
    fn best(&self, shape: &'a Shape, candidates: &mut Candidates) -> Option<usize> {
        loop {
            let Some(mut top) = candidates.heap.peek_mut() else {
                let next = candidates.next_stage()?;
                let indices = self.stage(shape, next);
                candidates.heap = indices.into_iter().filter_map(|index| self.evaluate(index, shape)).collect();
                continue;
            };
            match self.evaluate(top.1.0, shape) {
                None => drop(std::collections::binary_heap::PeekMut::pop(top)),
                Some(fresh) if fresh.0 == top.0 => return Some(fresh.1.0),
                Some(fresh) => *top = fresh,
            }
        }
    }

    fn stage(&self, shape: &'a Shape, stage: Stage) -> Vec<usize> {
        let own = |index: &usize| *self.devices[*index].owner == *shape.owner;
        let right = |index: &usize| own(index) == (stage == Stage::Own);
        if let Some(device) = shape.claims.iter().find_map(|claim| self.holder(&shape.owner, claim)) {
            return self.by_name.get(device).copied().into_iter().filter(right).collect();
        }
        if let Some(hostname) = shape.node_selector.get(labels::HOSTNAME) {
            let named = self.by_hostname.get(&**hostname).into_iter().flatten().copied();
            return named.filter(right).collect();
        }
        match stage {
            Stage::Own => self.by_owner.get(&*shape.owner).cloned().unwrap_or_default(),
            Stage::Lent => self.lenders.iter().copied().filter(right).collect(),
        }
    }

    fn evaluate(&self, index: usize, shape: &'a Shape) -> Option<(Score, Reverse<usize>)> {
        self.check(index, shape).ok()?;
        let device = self.devices[index];
        let data = shape.claims.iter().filter(|claim| self.holder(&shape.owner, claim) == Some(&*device.name)).count();
        let replicas = shape.group.as_ref().and_then(|group| self.replicas.get(&(group, index))).copied();
        let score = Score {
            own: *device.owner == *shape.owner,
            data: u32::try_from(data).unwrap_or(u32::MAX),
            users: Reverse(device.latency_millis.unwrap_or(u32::MAX)),
            reliability: Reliability::of(device, self.snapshot.now),
            spread: Reverse(replicas.unwrap_or_default()),
            balance: score::balance(device.allocatable, self.loads[index].used, shape.requests),
            name: Reverse(Arc::clone(&device.name)),
        };
        Some((score, Reverse(index)))
    }

    fn check(&self, index: usize, shape: &'a Shape) -> Result<(), Cause> {
        let device = self.devices[index];
        filter::fixed(device, shape, self.snapshot.now)?;
        for claim in &shape.claims {
            if let Some(holder) = self.holder(&shape.owner, claim)
                && holder != &*device.name
            {
                return Err(Cause::Volume { claim: claim.clone(), device: holder.into() });
            }
        }
        if !device.leases && self.moves(shape) {
            return Err(Cause::Lease);
        }
        self.room(index, shape)?;
        // It walks all own devices: only for those that are not.
        if *device.owner != *shape.owner
            && let Some(own) = self.own_away(shape)
        {
            return Err(Cause::OwnAway(own.into()));
        }
        Ok(())
    }

    fn room(&self, index: usize, shape: &Shape) -> Result<(), Cause> {
        let load = self.loads[index];
        filter::room(self.devices[index], shape, load.used, load.guests)
    }

    /// Whether the claims of a pod move, one at least.
    fn moves(&self, shape: &Shape) -> bool {
        shape.claims.iter().any(|claim| {
            self.snapshot.claims.get(&(shape.owner.clone(), claim.clone())).is_some_and(|found| found.moves)
        })
    }

    /// For a pod whose data has no home yet: a device of its owner's that would take it, were it not restarting, cordoned or short of something.
    fn own_away(&self, shape: &'a Shape) -> Option<&'a str> {
        // What moves does so just because its device is away.
        let has_home = shape.claims.iter().any(|claim| self.holder(&shape.owner, claim).is_some());
        if shape.claims.is_empty() || has_home || self.moves(shape) {
            return None;
        }
        let own = self.by_owner.get(&*shape.owner).into_iter().flatten().copied();
        let mut away = own.filter(|index| {
            let device = self.devices[*index];
            (!device.ready || device.cordoned || filter::pressed(device, shape).is_some())
                && filter::lasting(device, shape).is_ok()
                && self.room(*index, shape).is_ok()
        });
        away.next().map(|index| &*self.devices[index].name)
    }

    fn why(&self, shape: &'a Shape) -> Why {
        let own = self.by_owner.get(&*shape.owner).into_iter().flatten();
        let lent = self.lenders.iter().filter(|index| *self.devices[**index].owner != *shape.owner);
        let refusals: Vec<_> = own
            .chain(lent)
            .filter_map(|index| Some((Arc::clone(&self.devices[*index].name), self.check(*index, shape).err()?)))
            .collect();
        let others = self.devices.len() - refusals.len();
        explain::explain(shape, refusals, others)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Own,
    Lent,
}

#[derive(Default)]
struct Candidates {
    heap: BinaryHeap<(Score, Reverse<usize>)>,
    stage: Option<Stage>,
}

impl Candidates {
    fn next_stage(&mut self) -> Option<Stage> {
        self.stage = match self.stage {
            None => Some(Stage::Own),
            Some(Stage::Own) => Some(Stage::Lent),
            Some(Stage::Lent) => return None,
        };
        self.stage
    }
}
