//! What a pod's annotations say of its network.

use hearth_network::{Bandwidth, PodPolicy};
use hearth_pod::Failure;
use hearth_types::kinds::{BANDWIDTH_ANNOTATIONS, INTERNET_ANNOTATION, Pod, bandwidth_bits};

use super::execute::Site;

/// What a pod may send and receive. One that asks for something unreadable does not run without a limit.
pub(super) fn bandwidth(pod: &Pod) -> Result<Bandwidth, Failure> {
    let annotation = |key: &str| pod.metadata.annotations.as_ref()?.get(key).map(String::as_str);
    let [ingress, egress] = BANDWIDTH_ANNOTATIONS.map(|key| {
        let bits = annotation(key).map(|text| {
            bandwidth_bits(text)
                .map_err(|why| Failure::new("FailedCreatePodSandBox", format!("annotation {key}: {text:?}: {why}")))
        });
        bits.transpose()
    });
    Ok(Bandwidth { ingress: ingress?, egress: egress? })
}

impl Site {
    /// Whether it is another owner's than the device's.
    pub(super) fn is_guest(&self) -> bool {
        self.namespace() != self.shared.owner
    }

    pub(super) fn policy(&self) -> Result<PodPolicy, Failure> {
        let said = self.pod.metadata.annotations.as_ref().and_then(|map| map.get(INTERNET_ANNOTATION));
        let internet = said.map(String::as_str) != Some("false");
        Ok(PodPolicy { internet, guest: self.is_guest(), bandwidth: bandwidth(&self.pod)? })
    }

    /// Holds the living pod to what its annotations say now.
    pub(super) async fn limit(&self, sandbox: Option<hearth_runtime::Pod>) -> Result<(), Failure> {
        let Some(sandbox) = sandbox else { return Ok(()) };
        let bandwidth = bandwidth(&self.pod)?;
        let netns = sandbox.netns().map_err(|error| self.failed("network", "FailedCreatePodSandBox", &error))?;
        let limited = self.shared.network.limit(self.uid(), netns, bandwidth).await;
        limited.map_err(|error| self.failed("network", "FailedCreatePodSandBox", &error))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_read_is_no_missing_limit() {
        let of = |annotations: serde_json::Value| {
            let pod = json!({"metadata": {"annotations": annotations}});
            bandwidth(&serde_json::from_value(pod).expect("a pod"))
        };
        assert_eq!(of(json!({})), Ok(Bandwidth::default()));
        assert_eq!(
            of(json!({"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1k"})),
            Ok(Bandwidth { ingress: Some(10_000_000), egress: Some(1000) })
        );
        let failure = of(json!({"kubernetes.io/egress-bandwidth": "1"})).expect_err("refused");
        let expected = "annotation kubernetes.io/egress-bandwidth: \"1\": resource is unreasonably small (< 1kbit)";
        assert_eq!((failure.reason.as_str(), failure.message.as_str()), ("FailedCreatePodSandBox", expected));
    }
}
