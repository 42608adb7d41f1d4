//! `exec`: runs a command in a container, with its input, output, terminal and exit code.

use std::{
    io::{IsTerminal as _, Read as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::StreamExt as _;
use hearth_proto::v1::{ExecInput, ExecOutput, ExecStart, WindowSize, exec_input::Input, exec_output::Output};
use rustix::termios::{self, OptionalActions, Termios};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use super::pod_of::{container_of, pod_of};
use crate::{
    args::Exec,
    context::{Context, refusal},
    output,
};

/// Bytes of input read at once.
const CHUNK: usize = 8 * 1024;
/// Messages that wait to be sent: what is typed is held back rather than piled up.
const QUEUE: usize = 16;

/// Runs the verb; the exit code is the command's.
pub(crate) async fn run(context: &Context, args: &Exec) -> Result<ExitCode> {
    let stdin = std::io::stdin();
    let tty = args.tty && stdin.is_terminal();
    if args.tty && !tty {
        output::note("Unable to use a TTY - input is not a terminal");
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    let pod = pod_of(context, &args.pod).await?;
    let start = ExecStart {
        namespace: pod.namespace().to_owned(),
        pod: pod.name().to_owned(),
        container: container_of(&pod, args.container.as_deref())?,
        command: args.command.clone(),
        stdin: args.stdin,
        tty,
        size: tty.then(window_size),
    };
    sender.send(message(Input::Start(start))).await.context("cannot begin")?;
    let mut outputs = context.client()?.exec(ReceiverStream::new(receiver)).await.map_err(|status| refusal(&status))?;
    let _raw = if tty { Some(RawTerminal::enter()?) } else { None };
    if args.stdin {
        forward_stdin(sender.clone());
    }
    let mut resized = signal(SignalKind::window_change()).context("cannot listen for SIGWINCH")?;
    let mut resize = false;
    loop {
        tokio::select! {
            Some(()) = resized.recv(), if tty => resize = true,
            // Never awaited alone: while the way to the command is full, its output goes on being drained, or both
            // sides would wait for each other. Of several changes of size the last is told.
            permit = sender.reserve(), if resize => {
                resize = false;
                // The command may just have ended.
                if let Ok(permit) = permit {
                    permit.send(message(Input::Resize(window_size())));
                }
            }
            output = outputs.next() => {
                let output = output.context("the connection ended before the command did")?.map_err(|status| refusal(&status))?;
                if let Some(code) = show(output)? {
                    return Ok(code);
                }
            }
        }
    }
}

fn show(output: ExecOutput) -> Result<Option<ExitCode>> {
    match output.output {
        Some(Output::Stdout(bytes)) => write(&mut std::io::stdout().lock(), &bytes),
        Some(Output::Stderr(bytes)) => write(&mut std::io::stderr().lock(), &bytes),
        Some(Output::ExitCode(code)) => return Ok(Some(ExitCode::from(u8::try_from(code).unwrap_or(1)))),
        Some(Output::Error(why)) => bail!("{why}"),
        None => {}
    }
    Ok(None)
}

fn write(out: &mut impl std::io::Write, bytes: &[u8]) {
    // A reader that went away does not end the command.
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

fn message(input: Input) -> ExecInput {
    ExecInput { input: Some(input) }
}

/// Reads standard input on a thread of its own: a read of a terminal cannot be cancelled, and must not
/// hold up the end of the program.
fn forward_stdin(sender: mpsc::Sender<ExecInput>) {
    std::thread::spawn(move || {
        let mut buffer = [0; CHUNK];
        let mut stdin = std::io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    if sender.blocking_send(message(Input::Stdin(Bytes::copy_from_slice(&buffer[..count])))).is_err() {
                        return;
                    }
                }
            }
        }
        let _ = sender.blocking_send(message(Input::StdinClosed(true)));
    });
}

fn window_size() -> WindowSize {
    let size = termios::tcgetwinsize(std::io::stdin());
    size.map_or(WindowSize { columns: 80, rows: 24 }, |size| WindowSize {
        columns: size.ws_col.into(),
        rows: size.ws_row.into(),
    })
}

/// A terminal that passes every key on; put back when dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw).context("cannot set the terminal")?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing to be done where the terminal is gone.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}
