//! A command that runs in a container.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use super::connection::Connection;
use crate::{
    error::RuntimeError,
    model::{ExecSpec, WindowSize},
    wire::{Reply, Request},
};

/// Streams of an exec, all non-blocking on our side.
#[derive(Debug)]
pub enum ExecIo {
    /// Three pipes.
    Pipes {
        /// Write end of its input; closing it is end of file. None if no input was asked for.
        stdin: Option<OwnedFd>,
        /// Read end of its output.
        stdout: OwnedFd,
        /// Read end of its errors.
        stderr: OwnedFd,
    },
    /// The master of a terminal; its end reads as EIO.
    Terminal(OwnedFd),
}

/// A command that runs in a container. Dropping it kills the command.
#[derive(Debug)]
pub struct Exec {
    conn: Connection,
    io: Option<ExecIo>,
    /// The master once more, for the size.
    terminal: Option<OwnedFd>,
    code: Option<i32>,
}

/// Why there is none.
pub(super) enum Failed {
    Reply(Reply),
    Error(RuntimeError),
}

impl From<RuntimeError> for Failed {
    fn from(e: RuntimeError) -> Self {
        Self::Error(e)
    }
}

pub(super) fn io_error(e: impl Into<io::Error>) -> Failed {
    Failed::Error(RuntimeError::io("make the streams of an exec", e))
}

pub(super) fn resize(terminal: Option<&OwnedFd>, size: WindowSize) -> Result<(), RuntimeError> {
    let Some(fd) = terminal else { return Ok(()) };
    let window = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the ioctl reads a winsize.
    if unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const window) } < 0 {
        return Err(RuntimeError::io("resize the terminal", io::Error::last_os_error()));
    }
    Ok(())
}

pub(super) fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    nix::fcntl::fcntl(fd.as_raw_fd(), nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(())
}

pub(super) async fn start(mut conn: Connection, spec: ExecSpec) -> Result<Exec, Failed> {
    let mut theirs: Vec<OwnedFd> = Vec::new();
    let mut io = None;
    if spec.terminal.is_none() {
        let mut stdin = None;
        if spec.stdin {
            let (r, w) = io::pipe().map_err(io_error)?;
            theirs.push(r.into());
            stdin = Some(OwnedFd::from(w));
        }
        let (stdout, out_w) = io::pipe().map_err(io_error)?;
        let (stderr, err_w) = io::pipe().map_err(io_error)?;
        theirs.extend([OwnedFd::from(out_w), OwnedFd::from(err_w)]);
        let (stdout, stderr) = (OwnedFd::from(stdout), OwnedFd::from(stderr));
        for fd in stdin.iter().chain([&stdout, &stderr]) {
            nonblocking(fd).map_err(io_error)?;
        }
        io = Some(ExecIo::Pipes { stdin, stdout, stderr });
    }
    let raw: Vec<RawFd> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
    conn.send(&Request::Exec(Box::new(spec)), &raw).await?;
    drop(theirs);
    match conn.receive().await? {
        Reply::ExecStarted => {}
        reply => return Err(Failed::Reply(reply)),
    }
    let mut terminal = None;
    if io.is_none() {
        let master = conn.take_fd().ok_or_else(|| Failed::Error(conn.protocol("no terminal came")))?;
        nonblocking(&master).map_err(io_error)?;
        terminal = Some(master.try_clone().map_err(io_error)?);
        io = Some(ExecIo::Terminal(master));
    }
    Ok(Exec { conn, io, terminal, code: None })
}

impl Exec {
    /// Takes the streams; none the second time.
    pub fn take_io(&mut self) -> Option<ExecIo> {
        self.io.take()
    }

    /// Waits for the end of the command: its exit code, or 128 + n where signal n ended it. Cancel-safe.
    pub async fn wait(&mut self) -> Result<i32, RuntimeError> {
        if let Some(code) = self.code {
            return Ok(code);
        }
        match self.conn.receive().await? {
            Reply::ExecExited { code } => {
                self.code = Some(code);
                // Whoever reads the terminal gets its end only when no master but theirs is open.
                self.terminal = None;
                Ok(code)
            }
            reply => Err(self.conn.protocol(format!("unexpected answer {reply:?}"))),
        }
    }

    /// Sets the size of the terminal; without one, does nothing.
    pub fn resize(&self, size: WindowSize) -> Result<(), RuntimeError> {
        resize(self.terminal.as_ref(), size)
    }

    /// Kills the command; [`Exec::wait`] still tells how it ended.
    pub fn kill(&self) -> Result<(), RuntimeError> {
        self.conn.shut_down().map_err(|e| RuntimeError::io("kill an exec", e))
    }
}
