//! Housekeeping: what can wait and must hold up nobody. Deleted data is removed, images that nothing uses are collected, and
//! what keeps this machine from its work is told.

use std::{collections::HashSet, sync::Arc, time::Duration};

use hearth_image::Digest;
use hearth_network::Notice;
use hearth_types::Object;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    desired,
    files::chain,
    shared::{Shared, blocking, container_statuses},
};

/// How often it is looked for images that nothing uses: one system call where nothing changed.
const COLLECT: Duration = Duration::from_mins(1);
/// How often deleted data is looked for that could not be removed before, and claims that could not be read.
const RETRY: Duration = Duration::from_mins(10);
/// How often it is looked for what to tell. In memory.
const NOTICE: Duration = Duration::from_secs(5);

/// Keeps house for as long as the agent runs.
pub(crate) async fn run(shared: Arc<Shared>) {
    tokio::join!(trash(&shared), images(&shared), notices(&shared));
}

async fn trash(shared: &Arc<Shared>) {
    loop {
        let volumes = shared.volumes.clone();
        if let Err(error) = blocking(move || volumes.empty_trash()).await {
            tracing::error!(error = chain(&error), "deleted data cannot be removed; it is tried again");
        }
        if timeout(RETRY, shared.trash.notified()).await.is_err() {
            let volumes = shared.volumes.clone();
            // What is still wrong was told when it was found.
            if let Err(error) = blocking(move || volumes.recover()).await {
                tracing::error!(error = chain(&error), "the claims of this device cannot be looked at");
            }
        }
    }
}

async fn images(shared: &Arc<Shared>) {
    let mut tick = interval(COLLECT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if !shared.knows_its_pods() {
            continue;
        }
        let (images, in_use) = (Arc::clone(&shared.images), in_use(shared));
        match blocking(move || images.collect(&in_use)).await {
            Ok(Some(garbage)) if garbage.bytes > 0 => tracing::info!(?garbage, "removed images that nothing uses"),
            Ok(_) => {}
            Err(error) => tracing::error!(error = chain(&error), "images that nothing uses cannot be removed"),
        }
    }
}

/// The images that pods of this device run from, as far as their statuses say; those of pods that just begin are held.
pub(crate) fn in_use(shared: &Shared) -> HashSet<Digest> {
    let ids = |status: &Value| -> Vec<Digest> {
        container_statuses(status).filter_map(|one| one["imageID"].as_str()?.parse().ok()).collect()
    };
    shared.pods.all().iter().flat_map(|entry| ids(&entry.snapshot.borrow().status)).collect()
}

/// Tells on the Device, once each, what cuts its pods off.
async fn notices(shared: &Arc<Shared>) {
    let mut tick = interval(NOTICE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Arc<[Notice]> = Arc::new([]);
    loop {
        tick.tick().await;
        let objects = shared.objects();
        let Some(device) = desired::device(&objects) else { continue };
        let now = shared.network.notices();
        for notice in now.iter().filter(|notice| !told.contains(notice)) {
            tell(shared, device, notice);
        }
        told = now;
    }
}

fn tell(shared: &Shared, device: &Object, notice: &Notice) {
    let text = notice.to_string();
    let kind = if notice.cuts_pods_off() { "Warning" } else { "Normal" };
    shared.reporter.event((device.key(), device.uid()), kind, notice.reason(), &text, shared.now());
}
