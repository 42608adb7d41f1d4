//! What the owner lends to others holds for all their pods together, whatever the region places here.

use hearth_runtime::GuestLimits;
use hearth_types::{
    Object,
    kinds::{Device, Lend},
    quantity,
};

use super::Service;
use crate::{desired, files::chain};

/// What of it is enforced here; the number of pods is placement's.
fn limits(lend: &Lend) -> GuestLimits {
    GuestLimits {
        memory_bytes: lend.memory.as_ref().and_then(|memory| quantity::bytes(&memory.0).ok()),
        cpu_millis: lend.cpu.as_ref().and_then(|cpu| quantity::cpu_millis(&cpu.0).ok()),
    }
}

impl Service {
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
            (json!({"memory": "1Gi"}), Some(1 << 30), None),
            (json!({}), None, None),
        ] {
            let lend: Lend = serde_json::from_value(lend).expect("a lend");
            assert_eq!(limits(&lend), GuestLimits { memory_bytes, cpu_millis });
        }
    }
}
