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
use hearth_types::kinds::{Container, IntOrString};
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
        self.ask(kind).await.unwrap_or_else(Answer::Unknown)
    }

    /// The answer, or why it could not be asked.
    async fn ask(&self, kind: ProbeKind) -> Result<Answer, String> {
        let container = self.spec()?;
        let probe = match kind {
            ProbeKind::Startup => &container.startup_probe,
            ProbeKind::Liveness => &container.liveness_probe,
            ProbeKind::Readiness => &container.readiness_probe,
        };
        let probe = probe.as_ref().ok_or_else(|| format!("container {} has no such probe", self.container))?;
        let limit = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1).unsigned_abs().into());
        if let Some(action) = &probe.exec {
            let command = action.command.as_deref().unwrap_or_default();
            return Ok(exec::ask(self.running()?, &self.container, command, limit).await);
        }
        if let Some(action) = &probe.http_get {
            return Ok(http::ask(action, self.reached_at(&action.port)?, limit).await);
        }
        if let Some(action) = &probe.tcp_socket {
            return Ok(knock(self.reached_at(&action.port)?, limit).await);
        }
        if let Some(action) = &probe.grpc {
            let service = action.service.as_deref().unwrap_or_default();
            return Ok(grpc::ask(self.reached_at(&IntOrString::Int(action.port))?, service, limit).await);
        }
        Err("the probe says not what to ask".into())
    }

    /// No ephemeral container is asked anything.
    fn spec(&self) -> Result<&Container, String> {
        let name = &self.container;
        container::lasting(&self.site.pod)
            .find(|one| one.name == *name)
            .ok_or_else(|| format!("there is no container {name}"))
    }

    fn running(&self) -> Result<&hearth_runtime::Pod, String> {
        self.sandbox.as_ref().ok_or_else(|| format!("container {} does not run", self.container))
    }

    /// A port of the container on the pod's own address.
    fn reached_at(&self, port: &IntOrString) -> Result<SocketAddr, String> {
        let ip = self.address.ok_or("the pod has no address")?;
        Ok(SocketAddr::new(ip, port_of(self.spec()?, port)?))
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
