//! Running a command in a container to its end.

use std::{
    io,
    os::fd::OwnedFd,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hearth_pod::Answer;
use hearth_runtime::{ExecIo, ExecSpec, RuntimeError};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, time::timeout};

use crate::files::chain;

/// What is kept of a command's output, in bytes, as the kubelet has it; the rest is read and thrown away.
const MAX_OUTPUT: usize = 10 << 10;
/// After a command ended, how long its output may be held open by what it left running.
const DRAIN: Duration = Duration::from_millis(500);

/// Whether a command ends well in time; one that does not end is killed.
pub(super) async fn ask(sandbox: &hearth_runtime::Pod, container: &str, command: &[String], limit: Duration) -> Answer {
    match timeout(limit, run(sandbox, container, command)).await {
        Ok(Ok((0, _))) => Answer::Good,
        Ok(Ok((code, output))) if output.is_empty() => Answer::Bad(format!("exit code {code}")),
        Ok(Ok((_, output))) => Answer::Bad(output),
        Ok(Err(error)) => Answer::Unknown(error),
        Err(_) => {
            Answer::Bad(format!("command timed out: {:?} timed out after {} s", command.join(" "), limit.as_secs()))
        }
    }
}

/// Runs a command: its exit code, and the beginning of what it printed. Dropped, it kills the command.
pub(super) async fn run(
    sandbox: &hearth_runtime::Pod,
    container: &str,
    command: &[String],
) -> Result<(i32, String), String> {
    let spec = ExecSpec {
        container: container.to_owned(),
        args: command.to_vec(),
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
        stdin: false,
    };
    let text = |error: RuntimeError| chain(&error);
    let mut exec = sandbox.exec(spec).await.map_err(text)?;
    let Some(ExecIo::Pipes { stdout, stderr, .. }) = exec.take_io() else {
        return Err("the command has no streams".to_owned());
    };
    let output = Mutex::new(Vec::new());
    let mut reading = pin!(async { tokio::join!(read(stdout, &output), read(stderr, &output)) });
    let mut open = true;
    let code = loop {
        tokio::select! {
            code = exec.wait() => break code.map_err(text)?,
            _ = &mut reading, if open => open = false,
        }
    };
    if open {
        let _ = timeout(DRAIN, reading).await;
    }
    let output = std::mem::take(&mut *output.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((code, String::from_utf8_lossy(&output).trim_end().to_owned()))
}

async fn read(from: OwnedFd, into: &Mutex<Vec<u8>>) -> io::Result<()> {
    let mut from = pipe::Receiver::from_owned_fd_unchecked(from)?;
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let mut kept = into.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_OUTPUT.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(&buffer[..room]);
    }
}
