//! Services of this device: which of its pods each leads to, and which may use it. The network is told whenever that changes.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hearth_network::{Service, ServicePod, ServicePort, ServiceProtocol};
use hearth_pod::Phase;
use hearth_types::{
    GroupKind,
    kinds::{self, IntOrString, Pod, SERVICES_ANNOTATION, labels},
};

use crate::{
    desired::Objects,
    files::chain,
    selecting::{named_port, selects},
    shared::{PodEntry, Shared},
};

/// When the network is told again what it could not do.
const RETRY: Duration = Duration::from_secs(2);
/// The least time between two changes: while many pods start, the firewall is not written for each of them.
const SETTLE: Duration = Duration::from_millis(50);

/// Tells the network for as long as the agent runs.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut told: Option<Vec<Service>> = None;
    loop {
        // Not before it is known what there is: a Service that is not named loses its address.
        if shared.knows_objects() {
            let pods: Vec<Known> = shared.pods.all().iter().filter_map(|entry| Known::of(entry)).collect();
            let services = services(&shared.objects(), &pods);
            if told.as_ref() != Some(&services) {
                match shared.network.set_services(services.clone()).await {
                    Ok(()) => told = Some(services),
                    Err(error) => {
                        tracing::error!(
                            error = chain(&error),
                            "pods do not reach each other's Services as they should"
                        );
                        told = None;
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
                tokio::time::sleep(SETTLE).await;
            }
        }
        shared.pods.touched().await;
    }
}

/// What matters of a pod.
#[derive(Clone, Debug)]
struct Known {
    namespace: String,
    uid: String,
    pod: Arc<Pod>,
    ready: bool,
    stopping: bool,
}

impl Known {
    /// `None` for one that has ended.
    fn of(entry: &PodEntry) -> Option<Self> {
        let snapshot = entry.snapshot.borrow();
        let lives = !matches!(snapshot.phase, Phase::Succeeded | Phase::Failed);
        lives.then(|| Self {
            namespace: entry.key.namespace.to_string(),
            uid: entry.uid.to_string(),
            pod: Arc::clone(&snapshot.pod),
            ready: snapshot.ready,
            stopping: snapshot.stopping,
        })
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.pod.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether it may use a Service of its namespace: one of the same Install, or of none if it is of none; or one that it was granted.
    fn may_use(&self, name: &str, install: Option<&str>) -> bool {
        let annotations = self.pod.metadata.annotations.as_ref();
        let granted = annotations.and_then(|all| all.get(SERVICES_ANNOTATION)).map(String::as_str).unwrap_or_default();
        self.label(labels::INSTALL) == install || granted.split(',').any(|one| one.trim() == name)
    }
}

fn services(objects: &Objects, pods: &[Known]) -> Vec<Service> {
    let mut found = Vec::new();
    for object in objects.values().filter(|object| *object.kind() == GroupKind::SERVICE && !object.is_deleting()) {
        let Ok(kinds::Service { spec: Some(spec), metadata, .. }) = object.view::<kinds::Service>() else {
            tracing::warn!(service = %object.key(), "a Service cannot be read, so it is not served");
            continue;
        };
        let selector = spec.selector.unwrap_or_default();
        let own: Vec<&Known> = pods.iter().filter(|pod| pod.namespace == object.namespace()).collect();
        let install = metadata.labels.as_ref().and_then(|all| all.get(labels::INSTALL)).map(String::as_str);
        let clients: BTreeSet<String> =
            own.iter().filter(|pod| pod.may_use(object.name(), install)).map(|pod| pod.uid.clone()).collect();
        let early = spec.publish_not_ready_addresses == Some(true);
        // Both in the same order.
        let ports: Vec<_> =
            spec.ports.unwrap_or_default().into_iter().filter_map(|one| Some((port(&one)?, one))).collect();
        let target = |pod: &Pod, at: &(ServicePort, kinds::ServicePort)| {
            let said = at.1.target_port.clone().unwrap_or(IntOrString::Int(at.1.port));
            container_port(pod, &said, at.0.protocol)
        };
        let pods = own.iter().filter(|pod| selects(&selector, &pod.pod)).map(|pod| ServicePod {
            uid: pod.uid.clone(),
            ready: (pod.ready || early) && !pod.stopping,
            targets: ports.iter().map(|one| target(&pod.pod, one)).collect(),
        });
        found.push(Service {
            uid: object.uid().to_string(),
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            headless: spec.cluster_ip.as_deref() == Some("None"),
            pods: pods.collect(),
            ports: ports.into_iter().map(|(port, _)| port).collect(),
            clients,
        });
    }
    found
}

fn port(port: &kinds::ServicePort) -> Option<ServicePort> {
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => ServiceProtocol::Tcp,
        Some("UDP") => ServiceProtocol::Udp,
        Some(_) => return None,
    };
    let number = u16::try_from(port.port).ok().filter(|port| *port > 0)?;
    Some(ServicePort { name: port.name.clone().filter(|name| !name.is_empty()), protocol, port: number })
}

/// A pod's port by its number, or by the name that a container that runs while the app does gives it.
fn container_port(pod: &Pod, said: &IntOrString, protocol: ServiceProtocol) -> Option<u16> {
    let name = match said {
        IntOrString::Int(number) => return u16::try_from(*number).ok().filter(|port| *port > 0),
        IntOrString::String(name) => name,
    };
    let speaks = if protocol == ServiceProtocol::Udp { "UDP" } else { "TCP" };
    named_port(pod, name, Some(speaks))
}

#[cfg(test)]
mod tests {
    use hearth_types::Object;
    use serde_json::{Value, json};

    use super::*;

    fn pod(namespace: &str, uid: &str, metadata: Value) -> Known {
        let containers = json!([{"name": "c", "ports": [{"name": "http", "containerPort": 8080},
            {"name": "dns", "containerPort": 5353, "protocol": "UDP"}]}]);
        let pod = json!({"metadata": metadata, "spec": {"containers": containers}});
        let pod = Arc::new(serde_json::from_value(pod).expect("a pod"));
        Known { namespace: namespace.into(), uid: uid.into(), pod, ready: true, stopping: false }
    }

    fn one(metadata: Value, spec: Value, pods: &[Known]) -> Service {
        let mut object = json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
            "metadata": {"name": "db", "namespace": "alice", "uid": "u", "resourceVersion": "1"}});
        object["metadata"]["labels"] = metadata;
        let object = Object::from_value(object).expect("an object");
        services(&[(object.key().clone(), object)].into(), pods).remove(0)
    }

    fn spec() -> Value {
        json!({"selector": {"app": "db"}, "ports": [{"name": "web", "port": 80, "targetPort": "http"},
            {"name": "names", "port": 53, "protocol": "UDP", "targetPort": "dns"}, {"name": "raw", "port": 99}]})
    }

    #[test]
    fn a_service_leads_to_the_pods_of_its_namespace_that_it_selects() {
        let labels = json!({"labels": {"app": "db"}});
        let mut stopping = pod("alice", "3", labels.clone());
        stopping.stopping = true;
        let mut waiting = pod("alice", "4", labels.clone());
        waiting.ready = false;
        let pods = [
            pod("alice", "1", labels.clone()),
            pod("bob", "2", labels),
            stopping,
            waiting,
            pod("alice", "5", json!({})),
        ];
        let found = one(json!({}), spec(), &pods);
        let selected: Vec<_> = found.pods.iter().map(|pod| (pod.uid.as_str(), pod.ready)).collect();
        assert_eq!(selected, [("1", true), ("3", false), ("4", false)]);
        assert_eq!(found.pods[0].targets, [Some(8080), Some(5353), Some(99)]);
        let mut early = spec();
        early["publishNotReadyAddresses"] = json!(true);
        assert_eq!(one(json!({}), early, &pods).pods.iter().filter(|pod| pod.ready).count(), 2);
        assert!(!found.headless);
    }

    #[test]
    fn who_may_use_it() {
        let of = |install: &str| json!({"labels": {"hearth.dev/install": install}});
        let granted =
            |names: &str| json!({"labels": {"hearth.dev/install": "b"}, "annotations": {"hearth.dev/services": names}});
        let pods = [
            pod("alice", "plain", json!({})),
            pod("alice", "a", of("a")),
            pod("alice", "b", of("b")),
            pod("alice", "granted", granted("cache, db")),
            pod("alice", "other", granted("cache")),
            pod("bob", "stranger", json!({"annotations": {"hearth.dev/services": "db"}})),
        ];
        let clients = |labels: Value| one(labels, spec(), &pods).clients.into_iter().collect::<Vec<_>>();
        assert_eq!(clients(json!({})), ["granted", "plain"]);
        assert_eq!(clients(json!({"hearth.dev/install": "a"})), ["a", "granted"]);
    }

    #[test]
    fn a_port_is_found_by_its_name_and_protocol() {
        let pod = pod("alice", "1", json!({})).pod;
        let named = |name: &str| IntOrString::String(name.into());
        assert_eq!(container_port(&pod, &named("http"), ServiceProtocol::Tcp), Some(8080));
        assert_eq!(container_port(&pod, &named("http"), ServiceProtocol::Udp), None);
        assert_eq!(container_port(&pod, &named("no"), ServiceProtocol::Tcp), None);
        assert_eq!(container_port(&pod, &IntOrString::Int(0), ServiceProtocol::Tcp), None);
    }
}
