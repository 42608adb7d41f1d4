//! Why a pod has no place, for people: one sentence over all devices, and a reason per device.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use hearth_types::quantity;

use crate::{
    filter::{Cause, Filter},
    model::Shape,
};

/// Devices that an explanation lists one by one at most: what a person reads. The sentence counts all.
pub const MAX_LISTED: usize = 32;

/// Why one device cannot take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The device.
    pub device: Arc<str>,
    /// The filter that refused.
    pub filter: Filter,
    /// Why, as in `is cordoned`.
    pub reason: String,
}

/// Characters of [`Why::text`] at most: what an Event's message holds, as in Kubernetes.
const MAX_TEXT: usize = 1000;

impl Why {
    /// The sentence, and in brackets the reason of each device, as many as fit.
    pub fn text(&self) -> String {
        let mut text = self.summary.clone();
        let mut left = self.devices.len();
        for one in &self.devices {
            let more = format!("{} {}", one.device, one.reason);
            if text.len() + more.len() > MAX_TEXT {
                break;
            }
            text += if left == self.devices.len() { " (" } else { "; " };
            text += &more;
            left -= 1;
        }
        if left == self.devices.len() {
            return text;
        }
        if left > 0 {
            let _ = write!(text, "; and {left} more");
        }
        text + ")"
    }
}

/// Why no device can take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// One sentence, as in `0/3 devices can take it: 1 is cordoned, 2 are not ready`.
    pub summary: String,
    /// The first devices by name with the reason of each, at most [`MAX_LISTED`].
    pub devices: Vec<Refusal>,
}

/// Explains from the refusal of every device. `others` are devices of other owners that lend nothing.
pub(crate) fn explain(shape: &Shape, mut refusals: Vec<(Arc<str>, Cause)>, others: usize) -> Why {
    let total = refusals.len() + others;
    if total == 0 {
        let summary = format!(
            "0/0 devices can take it: {} has no device and nobody lends one; add one with `hearth join`",
            shape.owner
        );
        return Why { summary, devices: Vec::new() };
    }
    refusals.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut groups: BTreeMap<Filter, (usize, Cause)> = BTreeMap::new();
    for (_, cause) in &refusals {
        match groups.get_mut(&cause.filter()) {
            None => drop(groups.insert(cause.filter(), (1, cause.clone()))),
            Some((count, kept)) => {
                *count += 1;
                if free(cause) > free(kept) {
                    *kept = cause.clone();
                }
            }
        }
    }
    if others > 0 {
        groups.entry(Filter::Owner).or_insert((0, Cause::Owner)).0 += others;
    }
    let parts: Vec<_> =
        groups.values().map(|(count, cause)| format!("{count} {}", phrase(cause, shape, *count))).collect();
    let mut summary = format!("0/{total} devices can take it: ");
    let _ = write!(summary, "{}", parts.join(", "));
    let devices = refusals.into_iter().take(MAX_LISTED).map(|(device, cause)| {
        let reason = phrase(&cause, shape, 1);
        Refusal { device, filter: cause.filter(), reason }
    });
    Why { summary, devices: devices.collect() }
}

/// Explains a pod that no device can take for a reason of its own.
pub(crate) fn of_pod(total: usize, reason: &str) -> Why {
    Why { summary: format!("0/{total} devices can take it: {reason}"), devices: Vec::new() }
}

fn free(cause: &Cause) -> u64 {
    if let Cause::Amount { free, .. } = cause { *free } else { 0 }
}

fn phrase(cause: &Cause, shape: &Shape, count: usize) -> String {
    let one = count == 1;
    let pick = |singular: &'static str, plural: &'static str| if one { singular } else { plural };
    match cause {
        Cause::Cordon => pick("is cordoned", "are cordoned").into(),
        Cause::Ready => pick("is not ready", "are not ready").into(),
        Cause::Owner => {
            pick("belongs to another owner and lends nothing", "belong to other owners and lend nothing").into()
        }
        Cause::Taint(taint) if one => {
            let value = if taint.value.is_empty() { String::new() } else { format!("={}", taint.value) };
            format!("has the taint {}{value}:{}, which it does not tolerate", taint.key, taint.effect)
        }
        Cause::Taint(_) => "have taints that it does not tolerate".into(),
        Cause::Selector => {
            let wanted: Vec<_> = shape.node_selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{} its node selector ({})", pick("does not match", "do not match"), wanted.join(","))
        }
        Cause::Architecture(has) => {
            let wanted = shape.architectures.join(" or ");
            match has {
                _ if !one => format!("are of another architecture (needs {wanted})"),
                Some(has) => format!("is {has} (needs {wanted})"),
                None => format!("has not said its architecture (needs {wanted})"),
            }
        }
        Cause::Limits(unlimited) => {
            let what = match (unlimited.cpu, unlimited.memory) {
                (true, true) => "cpu and memory",
                (true, false) => "cpu",
                _ => "memory",
            };
            format!("{} only to pods with limits (set resources.limits for {what})", pick("lends", "lend"))
        }
        Cause::HostPath => {
            format!("{} none of its directories (hostPath) to other owners' pods", pick("lends", "lend"))
        }
        Cause::Hours(opens) => {
            let again = opens.filter(|_| one).map(|at| format!(" (again from {at})")).unwrap_or_default();
            format!("{} in other hours{again}", pick("lends", "lend"))
        }
        Cause::OwnAway(own) => {
            format!("{}, but its data would stay there while {own} is only away", pick("lends room", "lend room"))
        }
        Cause::Volume { claim, device } => {
            format!("{} its volume {claim} (it is on {device})", pick("does not hold", "do not hold"))
        }
        Cause::Lease => format!("{} an agent too old for volumes that move (update it)", pick("has", "have")),
        Cause::Amount { filter, needs, free } => amount(*filter, *needs, *free, one),
    }
}

fn amount(filter: Filter, needs: u64, free: u64, one: bool) -> String {
    let most = if one { "" } else { "at most " };
    let pick = |singular: &'static str, plural: &'static str| if one { singular } else { plural };
    let (has, lends) = (pick("has", "have"), pick("lends", "lend"));
    let (cpu, memory) = (quantity::format_cpu, readable);
    match filter {
        Filter::Cpu => format!("{has} too little cpu (needs {}, {most}{} free)", cpu(needs), cpu(free)),
        Filter::Memory => format!("{has} too little memory (needs {}, {most}{} free)", memory(needs), memory(free)),
        Filter::Storage => {
            format!("{has} too little ephemeral-storage (needs {}, {most}{} free)", memory(needs), memory(free))
        }
        Filter::LendCpu => format!("{lends} too little cpu (needs {}, {most}{} left)", cpu(needs), cpu(free)),
        Filter::LendMemory => {
            format!("{lends} too little memory (needs {}, {most}{} left)", memory(needs), memory(free))
        }
        Filter::LendPods => format!("{lends} no room for another pod"),
        _ => format!("{has} no room for another pod"),
    }
}

/// Bytes for people: exact where that is short, else rounded down to a binary unit.
fn readable(bytes: u64) -> String {
    const FLOORS: [u64; 2] = [1 << 20, 1 << 10];
    let floor = FLOORS.into_iter().find(|unit| bytes >= 10 * unit);
    quantity::format_bytes(floor.map_or(bytes, |unit| bytes / unit * unit))
}
