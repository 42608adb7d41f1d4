//! Which servers the region has, as devices and clients are told.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use hearth_types::group::MAX_SERVERS;
use tokio::time::timeout;

use crate::hub::Hub;

/// How often is looked: servers come and go by a person's hand, and devices try the others in the meantime.
const EVERY: Duration = Duration::from_secs(5);
/// How long the group may take to say.
const PATIENCE: Duration = Duration::from_secs(3);

/// Keeps [`Hub::servers`] up to date, for ever. While the group cannot say, what was known last stands.
pub(crate) async fn run(hub: Arc<Hub>) {
    let mut changes = hub.config.group.watch_leadership();
    loop {
        match timeout(PATIENCE, hub.config.group.members()).await {
            Ok(Ok(members)) => {
                let addresses = members.into_iter().map(|member| member.server.address).take(MAX_SERVERS).collect();
                hub.set_servers(addresses);
            }
            Ok(Err(error)) => tracing::debug!(%error, "the group cannot say who belongs to it"),
            Err(_) => tracing::debug!("the group does not say who belongs to it"),
        }
        tokio::select! {
            Some(_) = changes.next() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
