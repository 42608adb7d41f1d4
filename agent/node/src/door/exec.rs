//! `exec`.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use hearth_proto::v1::{self, exec_input::Input, exec_output::Output};
use hearth_runtime::{Exec, ExecIo, ExecSpec, WindowSize};
use hearth_types::Reason;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    sync::mpsc,
    time::timeout,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming};

use super::{Answers, QUEUE, find, refuse};
use crate::{files::chain, shared::Shared};

/// How long a client may take to say what it wants.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of one message.
const CHUNK: usize = 32 << 10;
/// Words of a command, and bytes of them all: what a shell's line may have.
const MAX_WORDS: usize = 1024;
const MAX_COMMAND_BYTES: usize = 128 << 10;
/// After a command ended, how long its output may be held open by what it left running.
const DRAIN: Duration = Duration::from_millis(500);
/// A terminal whose size nobody told.
const DEFAULT_SIZE: WindowSize = WindowSize { rows: 24, cols: 80 };

pub(super) type Sender = mpsc::Sender<Result<v1::ExecOutput, Status>>;

pub(super) async fn serve(
    shared: &Arc<Shared>,
    mut input: Streaming<v1::ExecInput>,
) -> Result<Answers<v1::ExecOutput>, Status> {
    let first = timeout(START_TIMEOUT, input.message()).await;
    let first = first.map_err(|_| refuse(Reason::BadRequest, "exec: nothing was asked for in time"))??;
    let Some(Input::Start(start)) = first.and_then(|message| message.input) else {
        return Err(refuse(Reason::BadRequest, "exec: the first message must say what to run"));
    };
    if start.command.is_empty() || start.command.len() > MAX_WORDS {
        return Err(refuse(Reason::BadRequest, format!("exec: a command has 1 to {MAX_WORDS} words")));
    }
    if start.command.iter().map(String::len).sum::<usize>() > MAX_COMMAND_BYTES {
        return Err(refuse(Reason::BadRequest, format!("exec: the command has more than {MAX_COMMAND_BYTES} bytes")));
    }
    let (entry, container) = find(shared, &start.namespace, &start.pod, &start.container)?;
    let sandbox = entry.snapshot.borrow().sandbox.clone();
    let not_running =
        || refuse(Reason::BadRequest, format!("container {container} of pod {} is not running", start.pod));
    let sandbox = sandbox.ok_or_else(not_running)?;
    let size = start.size.map_or(DEFAULT_SIZE, window);
    let spec = ExecSpec {
        container: container.clone(),
        args: start.command,
        env: if start.tty { vec![("TERM".into(), "xterm".into())] } else { Vec::new() },
        cwd: None,
        user: None,
        terminal: start.tty.then_some(size),
        stdin: start.stdin,
    };
    let exec = sandbox.exec(spec).await.map_err(|error| refuse(Reason::BadRequest, chain(&error)))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let last = match attend(exec, input, &sender).await {
            Ok(Some(code)) => Output::ExitCode(code),
            // The client is gone, and with the handle the command is killed.
            Ok(None) => return,
            Err(error) => Output::Error(error.to_string()),
        };
        let _ = sender.send(Ok(v1::ExecOutput { output: Some(last) })).await;
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

pub(super) fn window(size: v1::WindowSize) -> WindowSize {
    let fit = |value: u32| u16::try_from(value).unwrap_or(u16::MAX).max(1);
    WindowSize { rows: fit(size.rows), cols: fit(size.columns) }
}

/// Carries bytes both ways until the command ends; its exit code, or `None` where the client left first.
async fn attend(mut exec: Exec, mut input: Streaming<v1::ExecInput>, sender: &Sender) -> io::Result<Option<i32>> {
    let io = exec.take_io().ok_or_else(|| io::Error::other("the command has no streams"))?;
    let mut pumps = tokio::task::JoinSet::new();
    let mut stdin = match io {
        ExecIo::Pipes { stdin, stdout, stderr } => {
            pumps.spawn(pump(stdout, sender.clone(), |data| Output::Stdout(data.into())));
            pumps.spawn(pump(stderr, sender.clone(), |data| Output::Stderr(data.into())));
            stdin.map(pipe::Sender::from_owned_fd_unchecked).transpose()?
        }
        ExecIo::Terminal(master) => {
            let ours = master.try_clone()?;
            pumps.spawn(pump(ours, sender.clone(), |data| Output::Stdout(data.into())));
            // Unchecked, since a terminal is no pipe; it is non-blocking as one, which is all that matters.
            Some(pipe::Sender::from_owned_fd_unchecked(master)?)
        }
    };
    let mut speaks = true;
    let mut backlog: Vec<u8> = Vec::new();
    let code = loop {
        tokio::select! {
            code = exec.wait() => break code.map_err(|error| io::Error::other(chain(&error)))?,
            () = sender.closed() => return Ok(None),
            // Input is taken only when the last was written: a command that does not read slows its client down.
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
                    Some(Input::StdinClosed(true)) => stdin = None,
                    Some(Input::Resize(size)) => {
                        // A command without a terminal has no size.
                        let _ = exec.resize(window(size));
                    }
                    _ => {}
                },
                // The client has said all it had to say: it may still listen.
                None => { speaks = false; stdin = None; }
                Some(Err(_)) => return Ok(None),
            },
        }
    };
    // What the command wrote last is still in the pipes; what it left behind may hold them open for ever.
    let _ = timeout(DRAIN, async { while pumps.join_next().await.is_some() {} }).await;
    Ok(Some(code))
}

pub(super) async fn write_some(stdin: Option<&mut pipe::Sender>, data: &[u8]) -> io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.write(data).await,
        None => Ok(data.len()),
    }
}

pub(super) async fn pump(from: OwnedFd, sender: Sender, wrap: fn(Vec<u8>) -> Output) -> io::Result<()> {
    let mut from = pipe::Receiver::from_owned_fd_unchecked(from)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        // A terminal whose program has ended answers EIO.
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => count,
        };
        let output = v1::ExecOutput { output: Some(wrap(buffer[..count].to_vec())) };
        if sender.send(Ok(output)).await.is_err() {
            return Ok(());
        }
    }
}
