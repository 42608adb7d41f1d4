//! How firmly a pod is promised what it uses (Kubernetes' quality of service classes): by what its containers ask for and are limited to.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity;

/// The resources that count, as in Kubernetes.
const COUNTED: [&str; 2] = ["cpu", "memory"];

/// A class, the one that is promised least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QosClass {
    /// No container asks for anything or is limited.
    BestEffort,
    /// All else.
    Burstable,
    /// Every container is limited to what it asks for, of everything.
    Guaranteed,
}

impl QosClass {
    /// Of a pod's spec (`ComputePodQOS`). Amounts of nothing, and what cannot be read, count as absent.
    pub fn of(spec: &Value) -> Self {
        let containers: Vec<&Value> =
            ["initContainers", "containers"].iter().filter_map(|list| spec[list].as_array()).flatten().collect();
        let amounts = |container: &Value, part: &str| -> BTreeMap<&str, i128> {
            let of = |name: &&'static str| {
                let amount = quantity::millis(container["resources"][part][name].as_str()?).ok()?;
                (amount > 0).then_some((*name, amount))
            };
            COUNTED.iter().filter_map(of).collect()
        };
        let each: Vec<_> = containers.iter().map(|one| (amounts(one, "requests"), amounts(one, "limits"))).collect();
        if each.iter().all(|(requests, limits)| requests.is_empty() && limits.is_empty()) {
            return Self::BestEffort;
        }
        let firm = |(requests, limits): &(BTreeMap<&str, i128>, BTreeMap<&str, i128>)| {
            limits.len() == COUNTED.len() && requests == limits
        };
        if each.iter().all(firm) { Self::Guaranteed } else { Self::Burstable }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes_are_those_of_kubernetes() {
        let all = json!({"requests": {"cpu": "1", "memory": "64Mi"}, "limits": {"cpu": "1000m", "memory": "64Mi"}});
        let half = json!({"requests": {"memory": "64Mi"}, "limits": {"memory": "64Mi"}});
        let disk = json!({"requests": {"ephemeral-storage": "1Gi"}, "limits": {"ephemeral-storage": "1Gi"}});
        let zero = json!({"requests": {"cpu": "0"}, "limits": {"memory": "0"}});
        let less = json!({"requests": {"cpu": "1", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}});
        for (main, init, expected) in [
            (vec![json!({})], vec![], QosClass::BestEffort),
            (vec![disk], vec![], QosClass::BestEffort),
            (vec![zero], vec![], QosClass::BestEffort),
            (vec![all.clone()], vec![], QosClass::Guaranteed),
            (vec![all.clone(), all.clone()], vec![all.clone()], QosClass::Guaranteed),
            (vec![all.clone(), json!({})], vec![], QosClass::Burstable),
            (vec![all.clone()], vec![json!({})], QosClass::Burstable),
            (vec![half], vec![], QosClass::Burstable),
            (vec![less], vec![], QosClass::Burstable),
        ] {
            let list = |all: &[Value]| all.iter().map(|one| json!({"resources": one})).collect::<Vec<_>>();
            let spec = json!({"containers": list(&main), "initContainers": list(&init)});
            assert_eq!(QosClass::of(&spec), expected, "{spec}");
        }
        assert_eq!(QosClass::of(&Value::Null), QosClass::BestEffort);
    }
}
