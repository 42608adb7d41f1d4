//! What the owner lends to others holds for all their pods together, whatever the region places here.

use hearth_network::{Bandwidth, SharedBandwidth};
use hearth_runtime::GuestLimits;
use hearth_types::{
    kinds::{self, Device, Lend, bandwidth_bits},
    quantity,
};

use super::Service;
use crate::{
    desired::{self, Objects},
    files::chain,
};

/// What of it is enforced here; the number of pods is placement's.
fn limits(lend: &Lend) -> GuestLimits {
    GuestLimits {
        memory_bytes: lend.memory.as_ref().and_then(|memory| quantity::bytes(&memory.0).ok()),
        cpu_millis: lend.cpu.as_ref().and_then(|cpu| quantity::cpu_millis(&cpu.0).ok()),
    }
}

/// What pods of this device may send and receive together; `None` where it is not known.
pub(crate) fn of_device(objects: &Objects) -> Option<SharedBandwidth> {
    desired::device(objects)?.view().ok().map(|device: Device| shared(&device))
}

fn shared(device: &Device) -> SharedBandwidth {
    let read = |said: Option<&kinds::Bandwidth>| {
        let bits = |text: Option<&kinds::Quantity>| text.and_then(|text| bandwidth_bits(&text.0).ok());
        said.map_or_else(Bandwidth::default, |said| Bandwidth {
            ingress: bits(said.ingress.as_ref()),
            egress: bits(said.egress.as_ref()),
        })
    };
    let lend = device.spec.lend.as_ref().and_then(|lend| lend.bandwidth.as_ref());
    SharedBandwidth { all: read(device.spec.bandwidth.as_ref()), guests: read(lend) }
}

/// A limit as it was asked for last, and whether it holds.
pub(super) struct Enforced<T>(Option<Result<T, T>>);

impl<T> Default for Enforced<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Copy + PartialEq> Enforced<T> {
    fn last(&self) -> Option<T> {
        self.0.map(|last| last.unwrap_or_else(|failed| failed))
    }

    fn holds(&self, wanted: T) -> bool {
        self.0 == Some(Ok(wanted))
    }

    /// Notes what became of it. What fails again and again is told once.
    fn note<E: std::error::Error>(&mut self, wanted: T, result: Result<(), E>, what: &str) {
        if let Err(error) = &result
            && self.0 != Some(Err(wanted))
        {
            tracing::error!(error = chain(error), "{what} is not enforced yet; it is tried again");
        }
        self.0 = Some(result.map(|()| wanted).map_err(|_| wanted));
    }
}

impl Service {
    /// What the region says of this device, if it is known.
    pub(super) fn device(&self) -> Option<Device> {
        desired::device(self.desired.objects())?.view().ok()
    }

    /// Enforces what the device's object says now of guests and of the line.
    pub(super) async fn follow_device(&mut self) {
        let device = self.device();
        if let Some(device) = &device {
            self.limit_guests(device).await;
            self.limit_bandwidth(device).await;
        }
        self.hold_guests(device.as_ref()).await;
    }

    /// Enforces what pods share of the line. Where nothing is lent any more, the last limit holds until those who are still here have gone.
    async fn limit_bandwidth(&mut self, device: &Device) {
        let mut wanted = shared(device);
        if device.spec.lend.is_none()
            && let Some(before) = self.shares.last()
        {
            wanted.guests = before.guests;
        }
        if !self.shares.holds(wanted) {
            let result = self.shared.network.limit_shared(wanted).await;
            self.shares.note(wanted, result, "what pods share of the line");
        }
    }

    /// Enforces what is lent. Where nothing is lent any more, the last limits hold until those who are still here have gone.
    async fn limit_guests(&mut self, device: &Device) {
        let Some(wanted) = device.spec.lend.as_ref().map(limits) else { return };
        if !self.lent.holds(wanted) {
            let result = self.shared.runtime.limit_guests(wanted).await;
            self.lent.note(wanted, result, "what this device lends");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_lent_is_read_as_placement_reads_it() {
        for (lend, memory_bytes, cpu_millis) in [
            (json!({"cpu": "500m", "memory": "512Mi", "pods": 3}), Some(512 << 20), Some(500)),
            (json!({"memory": "1Gi", "bandwidth": {"egress": "5M"}}), Some(1 << 30), None),
            (json!({}), None, None),
        ] {
            let lend: Lend = serde_json::from_value(lend).expect("a lend");
            assert_eq!(limits(&lend), GuestLimits { memory_bytes, cpu_millis });
        }
    }

    #[test]
    fn what_is_shared_of_the_line_is_read_of_the_device() {
        let device = json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "metadata": {"name": "nas"}, "spec": {
            "owner": "alice", "bandwidth": {"ingress": "100M"}, "lend": {"bandwidth": {"egress": "5M"}}}});
        let device: Device = serde_json::from_value(device).expect("a device");
        let all = Bandwidth { ingress: Some(100_000_000), egress: None };
        let guests = Bandwidth { ingress: None, egress: Some(5_000_000) };
        assert_eq!(shared(&device), SharedBandwidth { all, guests });
    }
}
