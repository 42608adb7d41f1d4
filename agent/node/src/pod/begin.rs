//! What a worker finds when it begins.

use std::sync::Arc;

use hearth_pod::{Found, PodMachine, PodView, Record};
use hearth_runtime::{ContainerStatus, RuntimeError};
use hearth_types::{
    Object,
    names::{dns_label, dns_subdomain},
};

use super::{
    convert::{found, presumed},
    record::StoredPod,
};
use crate::{
    files::chain,
    shared::{Shared, blocking},
};

/// The longest uid that names a pod's directory and cgroup.
const MAX_UID: usize = 63;

/// Names become directories: they are checked here whatever the region checked.
pub(super) fn check_names(view: &PodView) -> Result<(), String> {
    dns_label(&view.namespace).map_err(|why| format!("metadata.namespace {why}"))?;
    dns_subdomain(&view.name).map_err(|why| format!("metadata.name {why}"))?;
    let fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if view.uid.len() > MAX_UID || !view.uid.bytes().all(fit) {
        return Err(format!("metadata.uid must be 1 to {MAX_UID} letters, digits, '-' and '_'"));
    }
    view.containers
        .iter()
        .try_for_each(|one| dns_label(&one.name).map_err(|why| format!("spec.containers: name {:?} {why}", one.name)))
}

/// What became of the pod while no agent looked.
pub(super) async fn found_of(
    sandbox: Option<hearth_runtime::Pod>,
    dead: Option<Vec<ContainerStatus>>,
    record: Option<&Record>,
) -> (Option<hearth_runtime::Pod>, Found) {
    let Some(sandbox) = sandbox else {
        return (None, dead.map_or(Found::Nothing, |dead| Found::Dead(dead.into_iter().map(found).collect())));
    };
    match sandbox.status().await {
        Ok(list) => (Some(sandbox), Found::Alive(list.into_iter().map(found).collect())),
        Err(RuntimeError::ShimGone { .. }) => (None, Found::Nothing),
        Err(error) => {
            // It lives and cannot be asked: what ran is taken to run, and nothing is restarted on a guess.
            tracing::error!(pod = sandbox.uid(), error = chain(&error), "a living shim does not answer");
            (Some(sandbox), Found::Alive(record.map(presumed).unwrap_or_default()))
        }
    }
}

/// Writes down how the containers of a dead sandbox ended, and only then removes what told it.
pub(super) async fn bury(shared: &Arc<Shared>, object: &Object, machine: &PodMachine) {
    let stored = StoredPod { object: object.value(), record: machine.record().clone() };
    let (dir, uid) = (shared.paths.pods(), object.uid().as_str().to_owned());
    if let Err(error) = blocking(move || stored.write(&dir, &uid, true)).await {
        tracing::error!(pod = %object.key(), error = chain(&error), "the pod's record cannot be written");
    }
    if let Err(error) = shared.runtime.forget(object.uid().as_str()).await {
        tracing::error!(pod = %object.key(), error = chain(&error), "the remains of a dead pod cannot be removed");
    }
}
