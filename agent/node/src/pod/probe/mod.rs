//! Asking a container how it is, and doing what is to be done at its start and before its end. When, and what comes of it,
//! the pod's machine decides.

mod exec;
mod grpc;
mod hook;
mod http;
mod tls;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hearth_pod::{Answer, ProbeKind};
use hearth_types::kinds::{Container, IntOrString, Probe};
use tokio::{net::TcpStream, time::timeout};

use super::execute::Site;
use crate::container;

/// The container that is meant.
pub(super) struct Subject {
    pub(super) site: Site,
    pub(super) sandbox: Option<hearth_runtime::Pod>,
    /// The pod's own address: nothing else is ever asked, whatever a manifest says.
    pub(super) address: Option<IpAddr>,
    pub(super) container: String,
}

impl Subject {
    /// Asks the container. Takes no longer than the probe's `timeoutSeconds`.
    pub(super) async fn probe(&self, kind: ProbeKind) -> Answer {
        let Some(container) = container::named(&self.site.pod, &self.container) else {
            return Answer::Unknown(format!("there is no container {}", self.container));
        };
        let probe = match kind {
            ProbeKind::Startup => &container.startup_probe,
            ProbeKind::Liveness => &container.liveness_probe,
            ProbeKind::Readiness => &container.readiness_probe,
        };
        match probe {
            Some(probe) => self.ask(container, probe).await,
            None => Answer::Unknown(format!("container {} has no such probe", self.container)),
        }
    }

    async fn ask(&self, container: &Container, probe: &Probe) -> Answer {
        let limit = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1).unsigned_abs().into());
        if let Some(action) = &probe.exec {
            let Some(sandbox) = &self.sandbox else { return Answer::Unknown("the container does not run".into()) };
            return exec::ask(sandbox, &self.container, action.command.as_deref().unwrap_or_default(), limit).await;
        }
        let Some(ip) = self.address else { return Answer::Unknown("the pod has no address".into()) };
        let address = |port: &IntOrString| port_of(container, port).map(|port| SocketAddr::new(ip, port));
        if let Some(action) = &probe.http_get {
            return match address(&action.port) {
                Ok(address) => http::ask(action, address, limit).await,
                Err(why) => Answer::Unknown(why),
            };
        }
        if let Some(action) = &probe.tcp_socket {
            return match address(&action.port) {
                Ok(address) => knock(address, limit).await,
                Err(why) => Answer::Unknown(why),
            };
        }
        if let Some(action) = &probe.grpc {
            let service = action.service.as_deref().unwrap_or_default();
            return match address(&IntOrString::Int(action.port)) {
                Ok(address) => grpc::ask(address, service, limit).await,
                Err(why) => Answer::Unknown(why),
            };
        }
        Answer::Unknown("the probe says not what to ask".into())
    }
}

/// A port by its number, or by the name that the container gives it.
fn port_of(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|one| one.name.as_ref() == Some(name)).map(|one| one.container_port);
            named
                .or_else(|| name.parse().ok())
                .ok_or_else(|| format!("container {} has no port {name:?}", container.name))?
        }
    };
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("{number} is no port"))
}

/// Whether a connection is accepted; it is closed at once.
async fn knock(address: SocketAddr, limit: Duration) -> Answer {
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Answer::Good,
        Ok(Err(error)) => Answer::Bad(format!("dial tcp {address}: {error}")),
        Err(_) => Answer::Bad(format!("dial tcp {address}: no answer within {} s", limit.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_found_by_number_and_by_the_container_s_names() {
        let container: Container = serde_json::from_value(json!({"name": "c", "ports": [
            {"name": "web", "containerPort": 8080}]}))
        .expect("a container");
        let text = |name: &str| IntOrString::String(name.into());
        for (port, expected) in [
            (IntOrString::Int(80), Ok(80)),
            (text("web"), Ok(8080)),
            (text("81"), Ok(81)),
            (text("other"), Err("container c has no port \"other\"".to_owned())),
            (IntOrString::Int(0), Err("0 is no port".to_owned())),
            (IntOrString::Int(65_536), Err("65536 is no port".to_owned())),
        ] {
            assert_eq!(port_of(&container, &port), expected, "{port:?}");
        }
    }

    #[tokio::test]
    async fn a_port_that_accepts_is_well_and_one_that_does_not_is_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        assert_eq!(knock(address, Duration::from_secs(5)).await, Answer::Good);
        drop(listener);
        let Answer::Bad(text) = knock(address, Duration::from_secs(5)).await else { panic!("it accepts") };
        assert!(text.contains("refused"), "{text}");
    }
}
