//! The device's socket: made for the first tunnel, closed after the last.

use std::{sync::Arc, time::Duration};

use iroh::Endpoint;
use tokio::{sync::Mutex, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{StartError, limits, quic};

/// How often the socket is looked at while it is open.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps the socket open.
#[derive(Clone, Debug)]
pub(super) struct EndpointUse {
    endpoint: Endpoint,
    _user: Arc<()>,
}

impl EndpointUse {
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

#[derive(Debug, Default)]
struct Bound {
    endpoint: Option<Endpoint>,
    users: Arc<()>,
}

/// At most one endpoint, made when it is needed.
#[derive(Clone)]
pub(super) struct SharedEndpoint {
    secret_key: [u8; 32],
    bound: Arc<Mutex<Bound>>,
}

impl SharedEndpoint {
    pub(super) fn new(secret_key: [u8; 32]) -> Self {
        Self { secret_key, bound: Arc::default() }
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
            let endpoint = quic::bind_device(&self.secret_key).await?;
            bound.endpoint = Some(endpoint.clone());
            tasks.spawn(close_when_unused(self.bound.clone(), shutdown.clone()));
            endpoint
        };
        Ok(EndpointUse { endpoint, _user: bound.users.clone() })
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
