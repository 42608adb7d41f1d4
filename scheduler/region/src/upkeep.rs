//! What goes by itself after a time: old Events and join tokens.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_controllers::expiry;
use hearth_types::{GroupKind, Object, Timestamp};
use serde_json::Value;

use crate::{hub::Hub, writer};

/// How often is looked: a sixtieth of the time that Events are kept.
const EVERY: Duration = Duration::from_mins(1);

pub(crate) async fn run(hub: Arc<Hub>) {
    loop {
        let now = hub.now();
        let (events, secrets) = {
            let cache = hub.cache();
            let all =
                |kind: GroupKind| -> Vec<Object> { cache.of_kind(kind).map(|entry| entry.object.clone()).collect() };
            let secrets = cache.in_namespace(GroupKind::SECRET, "kube-system").map(|entry| entry.object.clone());
            (all(GroupKind::EVENT), secrets.collect::<Vec<_>>())
        };
        for actions in [expiry::events(&events, now).actions, expiry::tokens(&secrets, token_expiry, now).actions] {
            if let Err(error) = writer::execute(&hub, &actions, "upkeep").await {
                tracing::debug!(%error, "old objects were not all removed; trying again in a minute");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// When a join token expires: the RFC 3339 text of its key `expiration`, as in Kubernetes' bootstrap tokens.
fn token_expiry(secret: &Value) -> Option<Timestamp> {
    let encoded = secret.get("data")?.get("expiration")?.as_str()?;
    Timestamp::parse(&String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?)
}
