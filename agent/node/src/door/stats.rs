//! `top`.

use std::sync::Arc;

use hearth_proto::v1;
use hearth_types::Reason;
use tokio::sync::Semaphore;
use tonic::Status;

use super::refuse;
use crate::{shared::Shared, usage};

/// Questions at a time: each takes a second and reads a few files a container.
pub(super) const MAX_QUESTIONS: usize = 8;

pub(super) async fn serve(
    shared: &Arc<Shared>,
    questions: &Semaphore,
    namespace: &str,
) -> Result<v1::StatsResponse, Status> {
    let permit = questions.acquire().await;
    let _permit = permit.map_err(|_| refuse(Reason::InternalError, "the device's door is closing"))?;
    Ok(usage::now(shared, namespace).await)
}
