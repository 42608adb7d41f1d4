//! A conversation with a process in a container: its input, output, terminal and exit code.

use std::{
    io::{IsTerminal as _, Read as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::StreamExt as _;
use hearth_client::Answers;
use hearth_proto::v1::{ExecInput, ExecOutput, ExecStart, WindowSize, exec_input::Input, exec_output::Output};
use rustix::termios::{self, OptionalActions, Termios};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{context::refusal, output};

/// Bytes of input read at once.
const CHUNK: usize = 8 * 1024;
/// Messages that wait to be sent: what is typed is held back rather than piled up.
const QUEUE: usize = 16;

/// Whether there is a terminal here, where one is asked for.
pub(super) fn has_terminal(asked: bool) -> bool {
    let tty = asked && std::io::stdin().is_terminal();
    if asked && !tty {
        output::note("Unable to use a TTY - input is not a terminal");
    }
    tty
}

/// Our end of a conversation that has begun.
pub(super) struct Ours {
    sender: mpsc::Sender<ExecInput>,
    stdin: bool,
    tty: bool,
}

/// What is said first, and then what this end says.
pub(super) async fn begin(mut start: ExecStart) -> Result<(Ours, ReceiverStream<ExecInput>)> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let ours = Ours { sender, stdin: start.stdin, tty: start.tty };
    start.size = start.tty.then(window_size);
    ours.sender.send(message(Input::Start(start))).await.context("cannot begin")?;
    Ok((ours, ReceiverStream::new(receiver)))
}

impl Ours {
    /// Passes everything on until the process ends: its exit code.
    pub(super) async fn converse(self, mut outputs: Answers<ExecOutput>) -> Result<ExitCode> {
        let Self { sender, stdin, tty } = self;
        let _raw = if tty { Some(RawTerminal::enter()?) } else { None };
        if stdin {
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
