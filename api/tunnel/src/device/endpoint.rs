//! The device's socket: made for the first tunnel, closed after the last.

use std::{sync::Arc, time::Duration};

use iroh::{
    Endpoint, EndpointAddr, RelayUrl,
    endpoint::{ConnectError, ConnectWithOptsError, Connection, QuicConnectError},
};
use tokio::{sync::Mutex, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{StartError, limits, quic, relays::Relays};

/// How often the socket is looked at while it is open.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps the socket open.
#[derive(Clone, Debug)]
pub(super) struct EndpointUse {
    endpoint: Endpoint,
    number: u64,
    _user: Arc<()>,
}

impl EndpointUse {
    /// Has the socket be at an address' relays, where what is sent there would else go by another relay.
    pub(super) async fn be_at_relays_of(&self, address: &EndpointAddr) {
        quic::be_at(&self.endpoint, address.relay_urls().cloned()).await;
    }

    /// Dials a gateway, of this release or the one before.
    pub(super) async fn connect(&self, address: EndpointAddr) -> Result<Connection, ConnectError> {
        let connecting = self.endpoint.connect_with_opts(address, quic::ALPN_2, quic::older()).await?;
        Ok(connecting.await?)
    }
}

#[derive(Debug, Default)]
struct Bound {
    endpoint: Option<Endpoint>,
    /// How many were bound: which one it is.
    number: u64,
    users: Arc<()>,
}

/// At most one endpoint, made when it is needed.
#[derive(Clone)]
pub(super) struct SharedEndpoint {
    secret_key: [u8; 32],
    relays: Relays,
    bound: Arc<Mutex<Bound>>,
}

impl SharedEndpoint {
    pub(super) fn new(secret_key: [u8; 32], relays: Relays) -> Self {
        Self { secret_key, relays, bound: Arc::default() }
    }

    /// The endpoint, bound if it is not. A task then waits for it to be of no more use.
    pub(super) async fn get(
        &self,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<EndpointUse, StartError> {
        let mut bound = self.bound.lock().await;
        let endpoint = if let Some(endpoint) = &bound.endpoint {
            endpoint.clone()
        } else {
            let endpoint = quic::bind_device(&self.secret_key, &self.relays).await?;
            bound.endpoint = Some(endpoint.clone());
            bound.number += 1;
            tasks.spawn(close_when_unused(self.bound.clone(), shutdown.clone()));
            endpoint
        };
        Ok(EndpointUse { endpoint, number: bound.number, _user: bound.users.clone() })
    }

    /// An endpoint has ended by itself, and whatever was open on it too: the next user gets another one.
    pub(super) async fn discard(&self, ended: &EndpointUse) {
        let mut bound = self.bound.lock().await;
        if bound.number == ended.number && bound.endpoint.take().is_some() {
            tracing::warn!("the tunnels' socket ended by itself; making another one");
        }
    }

    /// The relays are others now; `had` is which they were.
    pub(super) async fn relays_changed(&self, had: &[RelayUrl]) {
        let endpoint = self.bound.lock().await.endpoint.clone();
        if let Some(endpoint) = endpoint {
            self.relays.apply(&endpoint, had).await;
        }
    }

    /// The endpoint, if one is bound.
    pub(super) async fn current(&self) -> Option<Endpoint> {
        self.bound.lock().await.endpoint.clone()
    }

    pub(super) async fn is_bound(&self) -> bool {
        self.bound.lock().await.endpoint.is_some()
    }

    pub(super) async fn close(&self) {
        let endpoint = self.bound.lock().await.endpoint.take();
        if let Some(endpoint) = endpoint {
            quic::close(&endpoint).await;
        }
    }
}

/// Whether a connection could not be made since the endpoint itself has ended.
pub(super) fn has_ended(error: &ConnectError) -> bool {
    match error {
        ConnectError::Connect { source, .. } => matches!(
            source,
            ConnectWithOptsError::EndpointClosed { .. }
                | ConnectWithOptsError::Noq { source: QuicConnectError::EndpointStopping, .. }
        ),
        _ => false,
    }
}

async fn close_when_unused(bound: Arc<Mutex<Bound>>, shutdown: CancellationToken) {
    let mut used = Instant::now();
    let endpoint = loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let mut bound = bound.lock().await;
        if Arc::strong_count(&bound.users) > 1 {
            used = Instant::now();
        } else if used.elapsed() >= limits::ENDPOINT_LINGER {
            break bound.endpoint.take();
        }
    };
    if let Some(endpoint) = endpoint {
        quic::close(&endpoint).await;
        tracing::debug!("closed the tunnels' socket: it is not used");
    }
}

#[cfg(test)]
mod tests {
    use iroh::{EndpointAddr, SecretKey};

    use super::*;

    #[tokio::test]
    async fn a_socket_that_ended_by_itself_is_replaced_once() {
        let (shared, tasks, shutdown) =
            (SharedEndpoint::new([3; 32], Relays::default()), TaskTracker::new(), CancellationToken::new());
        let get = || shared.get(&tasks, &shutdown);
        let ended = get().await.expect("a socket");
        ended.endpoint.close().await;
        let nobody = EndpointAddr::new(SecretKey::from_bytes(&[4; 32]).public())
            .with_ip_addr("127.0.0.1:1".parse().expect("an address"));
        let error = ended.connect(nobody).await.expect_err("it ended");
        assert!(has_ended(&error), "{error:?}");
        shared.discard(&ended).await;
        let next = get().await.expect("another socket");
        assert!(!next.endpoint.is_closed());
        // Whoever finds out later takes nothing from those who have the new one.
        shared.discard(&ended).await;
        assert_eq!(get().await.expect("the same socket").number, next.number);
        shutdown.cancel();
        shared.close().await;
    }
}
