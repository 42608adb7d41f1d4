//! Whom the kernel kills first where memory is short before anybody could be evicted (`oom_score_adj`, proc(5)). Pure.
//!
//! The order is the kubelet's (Kubernetes' documentation, "Node-pressure Eviction", "Node out of memory behavior"), on a scale that ends
//! above the machine's own processes, which are at 0, where the kubelet's begins below them: who is promised all that it uses has 1, not
//! -997, since an app is a guest on its owner's machine. Shims are at -900: they must outlive their containers.

use hearth_types::{
    kinds::{Container, Pod},
    qos::QosClass,
    quantity,
};
use serde_json::json;

/// Of pods that are limited to what they ask for.
const GUARANTEED: i32 = 1;
/// Of pods that ask for something, at least and at most.
const BURSTABLE: (i32, i32) = (2, 999);
/// Of pods that ask for nothing.
const BEST_EFFORT: i32 = 1000;

/// The score of a container, on a machine with so many bytes of memory: the less of it the container asked for, the sooner it goes.
pub(crate) fn score(pod: &Pod, container: &Container, memory_bytes: u64) -> i32 {
    match QosClass::of(&json!(pod.spec)) {
        QosClass::Guaranteed => GUARANTEED,
        QosClass::BestEffort => BEST_EFFORT,
        QosClass::Burstable => {
            let own = burstable(container, memory_bytes);
            if container.restart_policy.as_deref() != Some("Always") {
                return own;
            }
            // A sidecar stays as long as what it is there for (KEP-753).
            let main = pod.spec.iter().flat_map(|spec| &spec.containers);
            main.map(|one| burstable(one, memory_bytes)).fold(own, i32::min)
        }
    }
}

fn burstable(container: &Container, memory_bytes: u64) -> i32 {
    let requests = container.resources.as_ref().and_then(|all| all.requests.as_ref());
    let request = requests.and_then(|all| quantity::bytes(&all.get("memory")?.0).ok()).unwrap_or_default();
    let promised = u128::from(request) * 1000 / u128::from(memory_bytes.max(1));
    let left = 1000_i32.saturating_sub(i32::try_from(promised).unwrap_or(i32::MAX));
    left.clamp(BURSTABLE.0, BURSTABLE.1)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn who_was_promised_more_goes_later_and_nobody_before_the_machines_own_processes() {
        let all = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}});
        let asks = |memory: &str| json!({"requests": {"memory": memory}});
        for (main, sidecar, expected) in [
            (json!({}), None, vec![1000]),
            (all.clone(), None, vec![1]),
            (all.clone(), Some(all.clone()), vec![1, 1]),
            (json!({"requests": {"cpu": "1"}}), None, vec![999]),
            (asks("1Mi"), None, vec![999]),
            (asks("1Gi"), None, vec![750]),
            (asks("4Gi"), None, vec![2]),
            (asks("900Gi"), None, vec![2]),
            (asks("1Gi"), Some(json!({})), vec![750, 750]),
            (asks("1Gi"), Some(asks("2Gi")), vec![750, 500]),
        ] {
            let container = |resources: &Value| json!({"name": "c", "resources": resources});
            let mut first: Vec<Value> = sidecar.iter().map(container).collect();
            for one in &mut first {
                one["restartPolicy"] = json!("Always");
            }
            let pod = json!({"spec": {"containers": [container(&main)], "initContainers": first}});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            let spec = pod.spec.as_ref().expect("a spec");
            let each = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            let scores: Vec<i32> = each.map(|one| score(&pod, one, 4 << 30)).collect();
            assert_eq!(scores, expected, "{main} {sidecar:?}");
        }
    }
}
