//! Somebody who is attached to a container.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use super::{
    connection::Connection,
    exec::{Failed, io_error, nonblocking, resize},
};
use crate::{
    error::RuntimeError,
    model::WindowSize,
    wire::{Reply, Request},
};

/// What a running container writes from now on, and what it reads. Dropping it detaches.
#[derive(Debug)]
pub struct Attach {
    conn: Connection,
    /// Read end of its output, or of its terminal's; non-blocking, as all of these.
    pub stdout: Option<OwnedFd>,
    /// Read end of its errors; at its end at once where there is a terminal.
    pub stderr: Option<OwnedFd>,
    /// Where its input goes, a terminal's too; none where none was asked for.
    pub stdin: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

pub(super) async fn start(mut conn: Connection, container: &str, stdin: bool) -> Result<Attach, Failed> {
    let (out_r, out_w) = io::pipe().map_err(io_error)?;
    let (err_r, err_w) = io::pipe().map_err(io_error)?;
    let (stdout, stderr) = (OwnedFd::from(out_r), OwnedFd::from(err_r));
    for fd in [&stdout, &stderr] {
        nonblocking(fd).map_err(io_error)?;
    }
    let theirs: [RawFd; 2] = [out_w.as_raw_fd(), err_w.as_raw_fd()];
    conn.send(&Request::Attach { container: container.to_owned(), stdin }, &theirs).await?;
    drop((out_w, err_w));
    let is_terminal = match conn.receive().await? {
        Reply::Attached { terminal } => terminal,
        reply => return Err(Failed::Reply(reply)),
    };
    let input = conn.take_fd();
    if let Some(input) = &input {
        nonblocking(input).map_err(io_error)?;
    }
    let terminal = match &input {
        Some(master) if is_terminal => Some(master.try_clone().map_err(io_error)?),
        _ => None,
    };
    let stdin = input.filter(|_| stdin);
    Ok(Attach { conn, stdout: Some(stdout), stderr: Some(stderr), stdin, terminal })
}

impl Attach {
    /// Waits for the end of the container, or until this end is cut off because it did not read, which is an error. Cancel-safe.
    pub async fn wait(&mut self) -> Result<(), RuntimeError> {
        match self.conn.receive().await? {
            Reply::Done => Ok(()),
            Reply::Refused { reason } => Err(self.conn.protocol(reason)),
            reply => Err(self.conn.protocol(format!("unexpected answer {reply:?}"))),
        }
    }

    /// Whether the container has a terminal.
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Says that no more input comes: with `stdin_once`, the container's input is at its end once `stdin` is dropped, too.
    pub fn end_input(&self) -> Result<(), RuntimeError> {
        self.conn.shut_down().map_err(|e| RuntimeError::io("end the input of a container", e))
    }

    /// Sets the size of the terminal; without one, does nothing.
    pub fn resize(&self, size: WindowSize) -> Result<(), RuntimeError> {
        resize(self.terminal.as_ref(), size)
    }
}
