//! Running programs: with a bound in time, and with what they printed in every error.

use std::{
    ffi::OsStr,
    io::{Read as _, Write as _},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How long a program may run unless said otherwise.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A process that ends with this.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Starts a program that hears and says nothing.
    pub fn quiet(command: &mut Command) -> Result<Self> {
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }

    /// Sends it a signal, such as `-STOP`.
    pub fn signal(&self, name: &str) -> Result<()> {
        run("kill", [name, &self.0.id().to_string()]).map(drop)
    }

    /// Ends it now.
    pub fn stop(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end; its output is returned whatever its exit code.
pub fn output(command: &mut Command, input: &[u8], limit: Duration) -> Result<Output> {
    let name = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}; `scripts/deps.sh test` installs what tests need"))?;
    let (mut stdin, mut stdout, mut stderr) = (
        child.stdin.take().context("stdin")?,
        child.stdout.take().context("stdout")?,
        child.stderr.take().context("stderr")?,
    );
    let input = input.to_vec();
    // A program that does not read its input closes it: that is no error here.
    let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{name} did not end within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    drop(writing);
    // A grandchild in the background may hold the pipes open: what was printed until now is enough then.
    let collect = |reading: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(2);
        while !reading.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if reading.is_finished() { reading.join().ok().and_then(Result::ok).unwrap_or_default() } else { Vec::new() }
    };
    Ok(Output { status, stdout: collect(out), stderr: collect(err) })
}

/// Runs a program that must succeed, and returns what it printed.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    succeed(&mut command)
}

/// Runs a command that must succeed, and returns what it printed.
pub fn succeed(command: &mut Command) -> Result<String> {
    let done = output(command, b"", LIMIT)?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        bail!("{command:?}: {}\nstdout: {text}\nstderr: {}", done.status, String::from_utf8_lossy(&done.stderr));
    }
    Ok(text)
}

/// Runs a command that must fail, and returns what it said on stderr.
pub fn fail(command: &mut Command) -> Result<String> {
    let done = output(command, b"", LIMIT)?;
    if done.status.success() {
        bail!("{command:?} was expected to fail; it printed {}", String::from_utf8_lossy(&done.stdout));
    }
    Ok(String::from_utf8_lossy(&done.stderr).into_owned())
}
