//! `logs`: what a container printed, from its device.

use std::io::Write as _;

use anyhow::Result;
use futures_util::StreamExt as _;
use hearth_proto::v1::LogsRequest;

use super::pod_of::pod_of;
use crate::{
    args::Logs,
    context::{Context, refusal},
};

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Logs) -> Result<()> {
    let request = LogsRequest {
        namespace: context.namespace().to_owned(),
        pod: pod_of(context, &args.pod).await?,
        container: args.container.clone().unwrap_or_default(),
        follow: args.follow,
        tail: args.tail,
        previous: args.previous,
        timestamps: args.timestamps,
        since_seconds: args.since.map(|since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
    };
    let mut chunks = context.client()?.logs(request).await.map_err(|status| refusal(&status))?;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|status| refusal(&status))?;
        let mut out = std::io::stdout().lock();
        if out.write_all(&chunk).and_then(|()| out.flush()).is_err() {
            return Ok(()); // the reader has enough
        }
    }
    Ok(())
}
