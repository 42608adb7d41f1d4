//! `attach`: what a container's first process writes from now on, and what it reads.

use std::{io, sync::Arc, time::Duration};

use hearth_proto::v1::{self, exec_input::Input, exec_output::Output};
use hearth_runtime::Attach;
use hearth_types::Reason;
use tokio::{net::unix::pipe, sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming};

use super::{
    Answers, QUEUE,
    exec::{START_TIMEOUT, Sender, pump, window, write_some},
    find, refuse,
};
use crate::{files::chain, shared::Shared};

/// After the last output of a container, how long the word of its end may take.
const END_BOUND: Duration = Duration::from_secs(5);

pub(super) async fn serve(
    shared: &Arc<Shared>,
    mut input: Streaming<v1::ExecInput>,
) -> Result<Answers<v1::ExecOutput>, Status> {
    let first = timeout(START_TIMEOUT, input.message()).await;
    let first = first.map_err(|_| refuse(Reason::BadRequest, "attach: nothing was asked for in time"))??;
    let Some(Input::Start(start)) = first.and_then(|message| message.input) else {
        return Err(refuse(Reason::BadRequest, "attach: the first message must say to what"));
    };
    let (entry, container) = find(shared, &start.namespace, &start.pod, &start.container)?;
    let sandbox = entry.snapshot.borrow().sandbox.clone();
    let not_running =
        || refuse(Reason::BadRequest, format!("container {container} of pod {} is not running", start.pod));
    let sandbox = sandbox.ok_or_else(not_running)?;
    let attached = sandbox.attach(&container, start.stdin).await.map_err(|error| match error {
        hearth_runtime::RuntimeError::NoSuchContainer { .. } => not_running(),
        error => refuse(Reason::BadRequest, chain(&error)),
    })?;
    if let Some(size) = start.size.filter(|_| attached.has_terminal()) {
        let _ = attached.resize(window(size));
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let last = match attend(attached, input, &sender).await {
            Ok(true) => Output::ExitCode(0),
            // The client is gone.
            Ok(false) => return,
            Err(error) => Output::Error(error.to_string()),
        };
        let _ = sender.send(Ok(v1::ExecOutput { output: Some(last) })).await;
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Carries bytes both ways until the container ends; false where the client left first.
async fn attend(mut attached: Attach, mut input: Streaming<v1::ExecInput>, sender: &Sender) -> io::Result<bool> {
    let mut pumps = JoinSet::new();
    if let Some(stdout) = attached.stdout.take() {
        pumps.spawn(pump(stdout, sender.clone(), |data| Output::Stdout(data.into())));
    }
    if let Some(stderr) = attached.stderr.take() {
        pumps.spawn(pump(stderr, sender.clone(), |data| Output::Stderr(data.into())));
    }
    // Unchecked, since a terminal is no pipe; it is non-blocking as one, which is all that matters.
    let mut stdin = attached.stdin.take().map(pipe::Sender::from_owned_fd_unchecked).transpose()?;
    let mut speaks = true;
    let mut backlog: Vec<u8> = Vec::new();
    loop {
        tokio::select! {
            pump = pumps.join_next() => if pump.is_none() {
                let ended = timeout(END_BOUND, attached.wait()).await;
                return match ended {
                    Ok(ended) => ended.map(|()| true).map_err(|error| io::Error::other(chain(&error))),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                };
            },
            () = sender.closed() => return Ok(false),
            // Input is taken only when the last was written: a program that does not read slows its client down.
            written = write_some(stdin.as_mut(), &backlog), if !backlog.is_empty() => {
                if let Ok(count) = written {
                    backlog.drain(..count);
                } else {
                    // It does not read any more.
                    backlog.clear();
                    stdin = None;
                }
            },
            message = input.next(), if speaks && backlog.is_empty() => match message {
                Some(Ok(message)) => match message.input {
                    Some(Input::Stdin(data)) if stdin.is_some() => backlog.extend_from_slice(&data),
                    Some(Input::StdinClosed(true)) => end_input(&attached, &mut stdin),
                    Some(Input::Resize(size)) => {
                        // A container without a terminal has no size.
                        let _ = attached.resize(window(size));
                    }
                    _ => {}
                },
                // The client has said all it had to say: it may still listen.
                None => { speaks = false; end_input(&attached, &mut stdin); }
                Some(Err(_)) => return Ok(false),
            },
        }
    }
}

fn end_input(attached: &Attach, stdin: &mut Option<pipe::Sender>) {
    if stdin.take().is_some() {
        // A shim that is gone has ended the container, too.
        let _ = attached.end_input();
    }
}
