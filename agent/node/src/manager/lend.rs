//! What the owner lends to others holds for all their pods together, whatever the region places here.

use hearth_network::{Bandwidth, SharedBandwidth};
use hearth_runtime::GuestLimits;
use hearth_types::{
    Object,
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

impl Service {
    /// Enforces what pods share of the line now. Where nothing is lent any more, the last limit holds until those who are still here have gone.
    pub(super) async fn limit_bandwidth(&mut self) {
        let device = desired::device(self.desired.objects()).map(Object::view::<Device>);
        let Some(Ok(device)) = device else { return };
        let mut wanted = shared(&device);
        if device.spec.lend.is_none()
            && let Some(Ok(before) | Err(before)) = self.shares
        {
            wanted.guests = before.guests;
        }
        if self.shares == Some(Ok(wanted)) {
            return;
        }
        let result = self.shared.network.limit_shared(wanted).await;
        if let Err(error) = &result
            && self.shares != Some(Err(wanted))
        {
            tracing::error!(error = chain(error), "what pods share of the line is not enforced yet; it is tried again");
        }
        self.shares = Some(result.map(|()| wanted).map_err(|_| wanted));
    }

    /// Enforces what is lent now. Where nothing is lent any more, the last limits hold until those who are still here have gone.
    pub(super) async fn limit_guests(&mut self) {
        let device = desired::device(self.desired.objects()).map(Object::view::<Device>);
        let Some(Ok(Device { spec, .. })) = device else { return };
        let Some(wanted) = spec.lend.as_ref().map(limits) else { return };
        if self.lent == Some(Ok(wanted)) {
            return;
        }
        let result = self.shared.runtime.limit_guests(wanted).await;
        if let Err(error) = &result
            && self.lent != Some(Err(wanted))
        {
            tracing::error!(error = chain(error), "what this device lends is not enforced yet; it is tried again");
        }
        self.lent = Some(result.map(|()| wanted).map_err(|_| wanted));
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
