//! Why a device cannot take a pod.

use hearth_types::{
    Timestamp,
    kinds::{PRESSURES, labels},
};

use crate::model::{Device, Resources, Shape, Taint, Unlimited};

/// What keeps a pod from a device. The order is that in which an explanation lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    /// A claim of the pod is missing, being deleted or in use by another pod: no device can take it.
    Claim,
    /// The device is cordoned.
    Cordon,
    /// It has a taint that the pod does not tolerate.
    Taint,
    /// Its labels do not match the pod's node selector.
    Selector,
    /// Its processor is of an architecture that the pod's images are not made for.
    Architecture,
    /// A volume of the pod is on another device.
    Volume,
    /// A volume of the pod moves, and the device's agent cannot hold it by a lease.
    Lease,
    /// It has too little processor time left.
    Cpu,
    /// It has too little memory left.
    Memory,
    /// It has too little room on its disk left.
    Storage,
    /// It has as many pods as it takes.
    Pods,
    /// It lends, and not now.
    LendHours,
    /// It lends too little processor time.
    LendCpu,
    /// It lends too little memory.
    LendMemory,
    /// It lends room for fewer pods.
    LendPods,
    /// It lends, and the pod has no limits that would hold it to what is lent.
    LendLimits,
    /// It lends, and the pod wants a directory of the device.
    HostPath,
    /// It is not ready, or silent.
    Ready,
    /// It lends, and the pod's data would stay there though a device of its owner's is only away.
    OwnAway,
    /// It belongs to another owner and lends nothing.
    Owner,
}

/// A filter that refused, with what an explanation says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Cordon,
    Taint(Taint),
    Selector,
    Architecture(Option<Box<str>>),
    Volume {
        claim: Box<str>,
        device: Box<str>,
    },
    Lease,
    Amount {
        filter: Filter,
        needs: u64,
        free: u64,
    },
    Limits(Unlimited),
    HostPath,
    /// Until when, where that ends.
    Hours(Option<Timestamp>),
    OwnAway(Box<str>),
    Ready,
    Owner,
}

impl Cause {
    pub(crate) fn filter(&self) -> Filter {
        match self {
            Self::Cordon => Filter::Cordon,
            Self::Taint(_) => Filter::Taint,
            Self::Selector => Filter::Selector,
            Self::Architecture(_) => Filter::Architecture,
            Self::Volume { .. } => Filter::Volume,
            Self::Lease => Filter::Lease,
            Self::Amount { filter, .. } => *filter,
            Self::Limits(_) => Filter::LendLimits,
            Self::Hours(_) => Filter::LendHours,
            Self::OwnAway(_) => Filter::OwnAway,
            Self::Ready => Filter::Ready,
            Self::Owner => Filter::Owner,
            Self::HostPath => Filter::HostPath,
        }
    }
}

/// The filters that assignments of the same plan do not change.
pub(crate) fn fixed(device: &Device, shape: &Shape, now: Timestamp) -> Result<(), Cause> {
    let own = *device.owner == *shape.owner;
    if !own && device.lends.is_none_or(|lends| lends.pods == 0) {
        return Err(Cause::Owner);
    }
    if !device.ready {
        return Err(Cause::Ready);
    }
    if device.cordoned {
        return Err(Cause::Cordon);
    }
    if let Some(taint) = pressed(device, shape) {
        return Err(Cause::Taint(taint.clone()));
    }
    lasting(device, shape)?;
    if !own && shape.host_path {
        return Err(Cause::HostPath);
    }
    if let (false, Some(opens)) = (own, device.closed(now)) {
        return Err(Cause::Hours(opens));
    }
    // What is lent is a bound only for what is bounded itself: requests hold nothing back.
    if !own && shape.unlimited != Unlimited::default() {
        return Err(Cause::Limits(shape.unlimited));
    }
    Ok(())
}

/// A taint that keeps the pod away as long as the device runs short of something.
pub(crate) fn pressed<'a>(device: &'a Device, shape: &Shape) -> Option<&'a Taint> {
    intolerable(device, shape).find(|taint| is_pressure(taint))
}

fn is_pressure(taint: &Taint) -> bool {
    PRESSURES.iter().any(|(_, key)| *taint.key == **key)
}

fn intolerable<'a>(device: &'a Device, shape: &Shape) -> impl Iterator<Item = &'a Taint> {
    device.taints.iter().filter(|taint| !shape.tolerations.iter().any(|one| one.tolerates(taint)))
}

/// Of those, what a device does not leave behind by coming back, or by having room again.
pub(crate) fn lasting(device: &Device, shape: &Shape) -> Result<(), Cause> {
    if let Some(taint) = intolerable(device, shape).find(|taint| !is_pressure(taint)) {
        return Err(Cause::Taint(taint.clone()));
    }
    if shape.node_selector.iter().any(|(key, value)| device.labels.get(key) != Some(value)) {
        return Err(Cause::Selector);
    }
    let architecture = device.labels.get(labels::ARCH);
    if !shape.architectures.is_empty() && architecture.is_none_or(|one| !shape.architectures.contains(one)) {
        return Err(Cause::Architecture(architecture.cloned()));
    }
    Ok(())
}

/// Whether a device has room: in all, and for a guest within what is lent.
pub(crate) fn room(device: &Device, shape: &Shape, used: Resources, guests: Resources) -> Result<(), Cause> {
    const OWN: [Filter; 3] = [Filter::Cpu, Filter::Memory, Filter::Pods];
    const LENT: [Filter; 3] = [Filter::LendCpu, Filter::LendMemory, Filter::LendPods];
    let free = device.allocatable.less(used);
    fits(shape.requests, free, OWN)?;
    // The disk is not lent by amounts: who is a guest counts like anybody else.
    if shape.requests.storage_bytes > free.storage_bytes {
        let (needs, free) = (shape.requests.storage_bytes, free.storage_bytes);
        return Err(Cause::Amount { filter: Filter::Storage, needs, free });
    }
    match device.lends {
        Some(lends) if *device.owner != *shape.owner => fits(shape.lent, lends.less(guests), LENT),
        _ => Ok(()),
    }
}

fn fits(wanted: Resources, free: Resources, [cpu, memory, pods]: [Filter; 3]) -> Result<(), Cause> {
    // A pod that asks for nothing of a resource fits also where that is overcommitted.
    for (filter, needs, free) in [
        (cpu, wanted.cpu_millis, free.cpu_millis),
        (memory, wanted.memory_bytes, free.memory_bytes),
        (pods, wanted.pods, free.pods),
    ] {
        if needs > free {
            return Err(Cause::Amount { filter, needs, free });
        }
    }
    Ok(())
}
