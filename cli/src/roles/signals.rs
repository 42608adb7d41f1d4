//! When a role is to stop.

use anyhow::{Context as _, Result};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by SIGTERM or SIGINT.
pub(crate) fn shutdown() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
        cancel.cancel();
    });
    Ok(token)
}

/// Makes this process end with the one that started it: a supervisor that was killed leaves no server
/// or agent behind. (Containers and their shims stay, as they do whenever an agent stops.)
pub(crate) fn end_with_parent(parent: u32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM)).context("cannot ask for a signal at the parent's death")?;
    // The parent may have died before the request.
    if getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned()) != Some(parent) {
        anyhow::bail!("the process that started this one is gone");
    }
    Ok(())
}
