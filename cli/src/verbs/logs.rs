//! `logs`: what containers printed, from their devices.

use anyhow::{Context as _, Result, bail};
use futures_util::{Stream, StreamExt as _, stream::select_all};
use hearth_proto::v1::LogsRequest;
use hearth_types::{Object, Timestamp};

use super::pod_of::{container_of, containers, pod_of};
use crate::{
    args::Logs,
    context::{Context, Selection, now, refusal},
    output, target,
};

/// Lines of each pod where pods are selected by labels: kubectl's.
const TAIL_OF_SELECTED: u32 = 10;
/// The longest line in bytes that is held back for its end.
const MAX_LINE_BYTES: usize = 1 << 20;

/// One log that is asked for.
struct Log {
    request: LogsRequest,
    prefix: String,
}

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Logs) -> Result<()> {
    let logs = logs(context, args).await?;
    if args.follow && logs.len() > args.max_log_requests {
        bail!(
            "you are attempting to follow {} log streams, but maximum allowed concurrency is {}, use --max-log-requests to increase the limit",
            logs.len(),
            args.max_log_requests
        );
    }
    let several = logs.len() > 1;
    if !args.follow {
        // One after the other; a log that cannot be had does not keep the others away.
        let mut errors = Vec::new();
        for log in logs {
            let result = match open(context, log, several || args.prefix).await {
                Ok(chunks) => print(chunks).await,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                errors.push(error);
            }
        }
        return output::failures(&errors);
    }
    let mut streams = Vec::new();
    for log in logs {
        streams.push(open(context, log, several || args.prefix).await?.boxed());
    }
    print(select_all(streams)).await
}

/// Prints one log as it is.
pub(super) async fn show(context: &Context, request: LogsRequest) -> Result<()> {
    print(open(context, Log { request, prefix: String::new() }, false).await?).await
}

async fn print(mut chunks: impl Stream<Item = Result<Vec<u8>>> + Unpin) -> Result<()> {
    use std::io::Write as _;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        let mut out = std::io::stdout().lock();
        if out.write_all(&chunk).and_then(|()| out.flush()).is_err() {
            std::process::exit(0); // the reader has enough
        }
    }
    Ok(())
}

/// The logs that a command line means.
async fn logs(context: &Context, args: &Logs) -> Result<Vec<Log>> {
    let wanted = args.container.as_deref().or(args.container_argument.as_deref());
    let pods = match (&args.pod, &args.selector) {
        (Some(pod), _) => vec![pod_of(context, pod).await?],
        (None, selector) => {
            let labels = selector.as_deref().unwrap_or_default();
            context.list(target::kind("pods")?, &Selection { labels, ..Selection::default() }).await?.0
        }
    };
    if pods.is_empty() {
        output::note(&format!("No resources found in {} namespace.", context.namespace()));
    }
    let since = since(args)?;
    let mut logs = Vec::new();
    for pod in &pods {
        let names = if args.all_containers { containers(&pod.value()) } else { vec![container_of(pod, wanted)?] };
        logs.extend(names.into_iter().map(|container| Log {
            prefix: if args.prefix { format!("[pod/{}/{container}] ", pod.name()) } else { String::new() },
            request: request(args, pod, container, since),
        }));
    }
    Ok(logs)
}

fn request(args: &Logs, pod: &Object, container: String, since_seconds: Option<i64>) -> LogsRequest {
    let tail = match args.tail {
        // -1: all of it.
        Some(tail) => u32::try_from(tail).ok(),
        None => args.selector.as_ref().map(|_| TAIL_OF_SELECTED),
    };
    LogsRequest {
        namespace: pod.namespace().to_owned(),
        pod: pod.name().to_owned(),
        container,
        follow: args.follow,
        tail,
        previous: args.previous,
        timestamps: args.timestamps,
        since_seconds,
    }
}

/// How far back, in whole seconds and rather too far.
fn since(args: &Logs) -> Result<Option<i64>> {
    let duration = match &args.since_time {
        Some(text) => {
            let then = Timestamp::parse(text)
                .with_context(|| format!("--since-time {text:?}: must be a time as 2026-01-31T12:00:00Z (RFC 3339)"))?;
            Some(now().since(then))
        }
        None => args.since,
    };
    Ok(duration.map(|since| i64::try_from(since.as_secs_f64().ceil() as u64).unwrap_or(i64::MAX)))
}

/// Opens a log. With `by_line` chunks are whole lines, each with the prefix, so that logs can be mixed.
async fn open(
    context: &Context,
    log: Log,
    by_line: bool,
) -> Result<impl Stream<Item = Result<Vec<u8>>> + Unpin + Send + use<>> {
    let chunks = context.client()?.logs(log.request).await.map_err(|status| refusal(&status))?;
    let mut lines = Lines { prefix: log.prefix, held: Vec::new() };
    let ended = futures_util::stream::iter([None]);
    // `None` marks the end: what is held back has no line end.
    let marked = chunks.map(Some).chain(ended);
    Ok(marked.map(move |chunk| match chunk {
        Some(Ok(bytes)) if by_line => Ok(lines.push(&bytes)),
        Some(Ok(bytes)) => Ok(bytes.to_vec()),
        Some(Err(status)) => Err(refusal(&status)),
        None => Ok(lines.end()),
    }))
}

/// Cuts what comes in into lines.
struct Lines {
    prefix: String,
    held: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let whole = match self.held.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            None if self.held.len() > MAX_LINE_BYTES => self.held.len(),
            None => return Vec::new(),
        };
        let rest = self.held.split_off(whole);
        let lines = std::mem::replace(&mut self.held, rest);
        lines.split_inclusive(|byte| *byte == b'\n').flat_map(|line| [self.prefix.as_bytes(), line].concat()).collect()
    }

    /// What is held back, as a line.
    fn end(&mut self) -> Vec<u8> {
        if self.held.is_empty() { Vec::new() } else { self.push(b"\n") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_logs_keep_their_lines_whole() {
        let mut lines = Lines { prefix: "[pod/a/b] ".into(), held: Vec::new() };
        assert_eq!(lines.push(b"on"), b"");
        assert_eq!(lines.push(b"e\ntwo\nth"), b"[pod/a/b] one\n[pod/a/b] two\n");
        assert_eq!(lines.end(), b"[pod/a/b] th\n");
        assert_eq!(lines.end(), b"");
        assert_eq!(
            lines.push(&vec![b'x'; MAX_LINE_BYTES + 1]).len(),
            MAX_LINE_BYTES + 11,
            "a line without an end is not held for ever"
        );
    }
}
