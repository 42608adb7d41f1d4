//! A Certificate of the public authority for each device that serves its owner's apps.

use hearth_types::{Object, acme};
use serde_json::json;

use crate::{action::Reconciled, meta};

/// What is looked at.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The device.
    pub device: &'a Object,
    /// Whether certificates are ordered from a public authority.
    pub ordered: bool,
    /// Whether a Route of its owner's leads to it: a device that serves nothing uses up none of the authority's limits.
    pub serves: bool,
    /// Whether its owner's namespace has a Certificate of the device's name.
    pub exists: bool,
    /// The zone.
    pub zone: &'a str,
}

/// Makes the Certificate where it is wanted. It stays when the device serves nothing any more, or no more are ordered: what is valid goes
/// on being used. It goes with its Device.
pub fn reconcile(inputs: &Inputs<'_>) -> Reconciled {
    let mut out = Reconciled::default();
    let value = inputs.device.value();
    let owner = meta::text(&value, "/spec/owner");
    if !inputs.ordered || !inputs.serves || inputs.exists || owner.is_empty() || meta::is_deleting(&value) {
        return out;
    }
    let object = json!({
        "apiVersion": "hearth.dev/v1alpha1",
        "kind": "Certificate",
        "metadata": {
            "name": inputs.device.name(),
            "namespace": owner,
            "ownerReferences": [meta::owner_reference(inputs.device)],
        },
        "spec": {"device": inputs.device.name(), "dnsNames": acme::owner_names(owner, inputs.zone)},
    });
    out.actions.push(crate::Action::Create { object });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Action;

    #[test]
    fn a_device_that_serves_its_owner_gets_one_certificate_for_all_names_and_no_other_device_does() {
        let device = Object::from_value(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device",
            "metadata": {"name": "nas", "uid": "u"}, "spec": {"owner": "alice", "keys": []}}))
        .expect("an object");
        let inputs = Inputs { device: &device, ordered: true, serves: true, exists: false, zone: "z.test" };
        let made = reconcile(&inputs).actions;
        let [Action::Create { object }] = &*made else { panic!("{made:?}") };
        assert_eq!(object["metadata"]["namespace"], "alice");
        assert_eq!(object["spec"]["dnsNames"], json!(["alice.z.test", "*.alice.z.test", "*.lan.alice.z.test"]));
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u");
        for inputs in [
            Inputs { ordered: false, ..inputs },
            Inputs { device: &device, ordered: true, serves: false, exists: false, zone: "z.test" },
            Inputs { device: &device, ordered: true, serves: true, exists: true, zone: "z.test" },
        ] {
            assert!(reconcile(&inputs).actions.is_empty(), "{inputs:?}");
        }
    }
}
