//! Pods that nothing will end are removed.

use hearth_types::kinds::LENDING_HOURS_OVER;

use crate::{
    action::{Action, Reconciled},
    view::PodView,
};

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The pod.
    pub pod: &'a PodView,
    /// Whether its device exists, as a Device or a Node. A device that is silent exists.
    pub device_exists: bool,
    /// Whether its device, which is in contact, lends to its owner in other hours.
    pub lending_over: bool,
}

/// Removes a pod whose device was removed from the region, and one that is to be deleted and has ended; and deletes a guest whose device lends in
/// other hours, so that whatever controls it makes another one. Its device ends it by itself at the same time, and one that is silent is left to that.
///
/// # Assumptions
/// `device_exists` was read from the store itself, not from a cache: silence must never look like absence.
pub fn reconcile(inputs: Inputs<'_>) -> Reconciled {
    let mut out = Reconciled::default();
    let pod = inputs.pod;
    let orphan = pod.is_bound() && !inputs.device_exists;
    if orphan || (pod.deleting && (pod.is_finished() || !pod.is_bound())) {
        out.actions.push(Action::Delete { base: pod.object.clone(), grace_seconds: Some(0) });
    }
    if inputs.lending_over && pod.is_bound() && pod.is_active() && !orphan {
        out.delete(&pod.object);
        out.event(
            &pod.object,
            true,
            LENDING_HOURS_OVER,
            format!("device {} lends in other hours; ending the pod", pod.device),
        );
    }
    if orphan {
        out.event(
            &pod.object,
            true,
            "DeviceGone",
            format!("device {} was removed from the region; removing the pod", pod.device),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Pods, deletes};

    #[test]
    fn only_pods_that_nothing_will_end_are_removed() {
        let bound = Pods::named("p").on("nas");
        for (pod, device_exists, removed) in [
            (bound.clone(), true, false),
            (bound.clone(), false, true),
            (bound.clone().deleting(), true, false),
            (bound.clone().deleting(), false, true),
            (bound.clone().deleting().phase("Failed"), true, true),
            (bound.phase("Failed"), true, false),
            (Pods::named("p"), false, false),
            (Pods::named("p").deleting(), true, true),
        ] {
            let pod = pod.view();
            let out = reconcile(Inputs { pod: &pod, device_exists, lending_over: false });
            assert_eq!(deletes(&out), usize::from(removed), "{pod:?} {device_exists}");
        }
    }

    #[test]
    fn a_guest_is_ended_gracefully_once_its_devices_hours_are_over() {
        let bound = Pods::named("p").on("nas");
        for (pod, asked) in [
            (bound.clone(), true),
            (bound.clone().deleting(), false),
            (bound.phase("Failed"), false),
            (Pods::named("p"), false),
        ] {
            let pod = pod.view();
            let out = reconcile(Inputs { pod: &pod, device_exists: true, lending_over: true });
            let graceful = |action: &Action| matches!(action, Action::Delete { grace_seconds: None, .. });
            let told = |action: &Action| matches!(action, Action::Event { reason: "LendingHoursOver", .. });
            assert_eq!((out.actions.iter().any(graceful), out.actions.iter().any(told)), (asked, asked), "{pod:?}");
        }
    }
}
