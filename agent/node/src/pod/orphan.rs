//! A pod that lives and that nobody knows anything of.

use std::{sync::Arc, time::Duration};

use crate::{
    files::chain,
    shared::{Shared, blocking},
};

/// What such a pod gets to stop.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);
/// SIGTERM.
const SIGTERM: i32 = 15;

/// A living pod without object or record: it is asked to stop, then removed.
pub(crate) async fn remove_unknown(shared: Arc<Shared>, sandbox: hearth_runtime::Pod) {
    let uid = sandbox.uid().to_owned();
    for container in sandbox.status().await.unwrap_or_default() {
        // What has ended already needs no signal.
        let _ = sandbox.signal(&container.name, SIGTERM).await;
    }
    let ended = async {
        let running = |list: Vec<hearth_runtime::ContainerStatus>| {
            list.iter().any(|one| matches!(one.state, hearth_runtime::ContainerState::Running { .. }))
        };
        while sandbox.status().await.is_ok_and(running) {
            if sandbox.wait_event().await.is_err() {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(ORPHAN_GRACE, ended).await;
    if let Err(error) = sandbox.clone().destroy().await {
        tracing::error!(uid, error = chain(&error), "a pod that is not desired cannot be removed");
        return;
    }
    let _ = shared.runtime.forget(&uid).await;
    if let Err(error) = shared.network.detach(&uid).await {
        tracing::error!(uid, error = chain(&error), "the network of a removed pod cannot be removed");
    }
    let ids = blocking(move || shared.ids.free(&uid)).await;
    if let Err(error) = ids {
        tracing::error!(error = chain(&error), "the user ids of a removed pod cannot be freed");
    }
}
