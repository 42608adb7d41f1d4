//! `down`: stops all of an instance, also what a kill -9 left, and loses nothing.
//!
//! Flow: the supervisor is asked to stop, then whatever hearth process still names the data directory in
//! its command line; after a grace period they are killed. Then the agent's part is torn down: shims,
//! containers, cgroups, links, firewall tables. Last, the locks prove that nobody is left.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{
    args::InDataDir,
    data_dir::{DataDir, Role},
    output,
};

/// How long processes get to stop by themselves: the server syncs its log, the agent its state.
const GRACE: Duration = Duration::from_secs(10);
/// How long a killed process may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Runs the verb.
pub(crate) fn run(args: &InDataDir) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("hearth down must run as root: it removes containers, network links and cgroups");
    }
    if !args.data_dir.exists() {
        output::line(&format!("nothing to stop: there is no data directory {}", args.data_dir.display()));
        return Ok(());
    }
    let data = DataDir::existing(&args.data_dir)?;
    // The supervisor first, or it would start again what is stopped.
    let mut stopped = stop(&data, |words| words.get(1).map(String::as_str) == Some("up"))?;
    stopped +=
        stop(&data, |words| words.get(1).is_some_and(|verb| matches!(verb.as_str(), "server" | "agent" | "relay")))?;
    let locked = [Role::Up, Role::Server, Role::Agent, Role::Relay].map(|role| data.lock(role));
    let _locks =
        locked.into_iter().collect::<Result<Vec<_>>>().context("some process still holds the data directory")?;
    let report =
        hearth_agent::teardown(data.root(), &data.instance()).context("cannot remove all that the device left")?;
    for role in [Role::Up, Role::Server, Role::Agent, Role::Relay] {
        data.clear_report(role)?;
    }
    tracing::debug!(?report, "torn down");
    let done = if stopped == 0 { "nothing was running" } else { "all stopped" };
    output::line(&format!("{done}; data is kept in {}", data.root().display()));
    Ok(())
}

/// Stops the hearth processes of the instance whose command line meets a test; returns how many.
fn stop(data: &DataDir, test: impl Fn(&[String]) -> bool) -> Result<usize> {
    let own = std::process::id();
    let mut found = Vec::new();
    for (pid, words) in processes() {
        if pid == own || !belongs(&words, data.root()) || !test(&words) {
            continue;
        }
        let Some(handle) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        // The pidfd is the process that was looked at, or its successor by reused pid: look again.
        let Ok(pidfd) = pidfd_open(handle, PidfdFlags::empty()) else { continue };
        if command_line(pid).is_some_and(|now| now == words) {
            found.push((pid, pidfd));
        }
    }
    for (_, pidfd) in &found {
        // It may have gone by itself.
        let _ = pidfd_send_signal(pidfd, Signal::TERM);
    }
    for (pid, pidfd) in &found {
        if !gone_within(pidfd, GRACE)? {
            output::note(&format!("process {pid} did not stop within {} s; killing it", GRACE.as_secs()));
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
            if !gone_within(pidfd, KILL_WAIT)? {
                bail!("process {pid} cannot be killed: it hangs in the kernel (see /proc/{pid}/stack)");
            }
        }
    }
    Ok(found.len())
}

fn gone_within(pidfd: &rustix::fd::OwnedFd, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for a process"),
        }
    }
}

/// Every process with its command line.
fn processes() -> impl Iterator<Item = (u32, Vec<String>)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, command_line(pid)?))
    })
}

fn command_line(pid: u32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    (!words[0].is_empty()).then_some(words)
}

/// Whether a command line is that of a hearth process of this data directory.
fn belongs(words: &[String], root: &Path) -> bool {
    let program = Path::new(&words[0]).file_name().is_some_and(|name| name == "hearth");
    let mut after = words.iter().skip_while(|word| *word != "--data-dir").skip(1);
    let named =
        after.next().map(String::as_str).or_else(|| words.iter().find_map(|word| word.strip_prefix("--data-dir=")));
    program
        && named.is_some_and(|path| {
            Path::new(path) == root || Path::new(path).canonicalize().is_ok_and(|path| path == root)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hearth_processes_of_the_directory_belong() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let root = Path::new("/nonexistent/a");
        assert!(belongs(&words("/usr/bin/hearth server --data-dir /nonexistent/a --zone x"), root));
        assert!(belongs(&words("hearth up --data-dir=/nonexistent/a"), root));
        assert!(!belongs(&words("hearth server --data-dir /nonexistent/b"), root));
        assert!(!belongs(&words("vim --data-dir /nonexistent/a"), root));
        assert!(!belongs(&words("hearth server --data-dir"), root));
    }
}
