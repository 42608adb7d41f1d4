//! `logs`.

use std::{sync::Arc, time::Duration};

use hearth_pod::Phase;
use hearth_proto::v1;
use hearth_types::{Reason, Timestamp, kinds::Pod};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Answers, QUEUE, find, refuse};
use crate::{
    ephemeral,
    logs::{LogReader, Wanted},
    shared::{PodEntry, Shared, blocking},
};

/// Bytes of one message.
const CHUNK: usize = 32 << 10;
/// How often a followed log is looked at: below what people notice.
const POLL: Duration = Duration::from_millis(150);

pub(super) fn serve(shared: &Arc<Shared>, request: v1::LogsRequest) -> Result<Answers<v1::LogsChunk>, Status> {
    let (entry, container) = find(shared, &request.namespace, &request.pod, &request.container)?;
    let (pod, status) = (request.pod.as_str(), entry.container_status(&container).unwrap_or_default());
    let newest = status.get("restartCount").and_then(Value::as_u64).unwrap_or_default() as u32;
    let ran = status.get("containerID").is_some();
    let attempt = match (ran, request.previous) {
        (true, false) => newest,
        (true, true) if newest > 0 => newest - 1,
        (_, true) => {
            let text = format!("previous terminated container \"{container}\" in pod \"{pod}\" not found");
            return Err(refuse(Reason::BadRequest, text));
        }
        (false, false) => {
            let why = status.pointer("/state/waiting/reason").and_then(Value::as_str).unwrap_or("unknown");
            let text = format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}");
            return Err(refuse(Reason::BadRequest, text));
        }
    };
    let since = request
        .since_seconds
        .map(|seconds| Timestamp(shared.now().0.saturating_sub(seconds.max(0).saturating_mul(1000))));
    let wanted = Wanted { tail: request.tail, since, timestamps: request.timestamps };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let follow = request.follow && !request.previous;
    tokio::spawn(async move {
        if let Err(error) = send(&entry, &container, attempt, wanted, follow, &sender).await {
            // The client may be gone; then nobody needs to know.
            let _ = sender.send(Err(refuse(Reason::InternalError, format!("cannot read the log: {error}")))).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

async fn send(
    entry: &Arc<PodEntry>,
    container: &str,
    mut attempt: u32,
    wanted: Wanted,
    follow: bool,
    sender: &mpsc::Sender<Result<v1::LogsChunk, Status>>,
) -> std::io::Result<()> {
    let mut wanted = wanted;
    loop {
        let path = entry.places.log(container, attempt);
        let mut reader = blocking(move || LogReader::open(&path, wanted)).await?;
        loop {
            // Asked before reading, so that what was written before the end is read after it is known.
            let next = if follow { next(entry, container, attempt) } else { Next::End };
            reader = match drain(reader, sender).await? {
                Some(reader) => reader,
                None => return Ok(()),
            };
            match next {
                Next::Wait => {
                    tokio::select! {
                        () = sender.closed() => return Ok(()),
                        () = tokio::time::sleep(POLL) => {}
                    }
                }
                Next::Attempt(newer) => {
                    attempt = newer;
                    // All of the new attempt is news.
                    wanted = Wanted { tail: None, ..wanted };
                    break;
                }
                Next::End => return Ok(()),
            }
        }
    }
}

/// Sends what is there; `None` when the client is gone.
async fn drain(
    mut reader: LogReader,
    sender: &mpsc::Sender<Result<v1::LogsChunk, Status>>,
) -> std::io::Result<Option<LogReader>> {
    loop {
        let (back, out) = blocking(move || {
            let mut out = Vec::new();
            let result = reader.read(&mut out, CHUNK);
            (reader, result.map(|()| out))
        })
        .await;
        reader = back;
        let out = out?;
        if out.is_empty() {
            return Ok(Some(reader));
        }
        if sender.send(Ok(v1::LogsChunk { data: out.into() })).await.is_err() {
            return Ok(None);
        }
    }
}

enum Next {
    /// More may come.
    Wait,
    /// The container was started again.
    Attempt(u32),
    /// It will not be.
    End,
}

fn next(entry: &PodEntry, container: &str, attempt: u32) -> Next {
    let (ended, stopping, gone) = {
        let snapshot = entry.snapshot.borrow();
        let ended = matches!(snapshot.phase, Phase::Succeeded | Phase::Failed);
        (ended, snapshot.stopping, entry.snapshot.has_changed().is_err())
    };
    let status = entry.container_status(container).unwrap_or_default();
    let newest = status.get("restartCount").and_then(Value::as_u64).unwrap_or_default() as u32;
    let running = status.pointer("/state/running").is_some();
    if newest > attempt {
        return Next::Attempt(newest);
    }
    let terminated = status.pointer("/state/terminated").is_some();
    if ended || gone || (!running && (stopping || (terminated && !may_restart(&entry.pod(), container, &status)))) {
        return Next::End;
    }
    Next::Wait
}

fn may_restart(pod: &Pod, container: &str, status: &Value) -> bool {
    if ephemeral::has(pod, container) {
        return false;
    }
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    let code = status.pointer("/state/terminated/exitCode").and_then(Value::as_i64);
    match policy {
        Some("Never") => false,
        Some("OnFailure") => code != Some(0),
        _ => true,
    }
}
