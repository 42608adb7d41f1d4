//! Runs a program apart from this process's descriptors.
//!
//! Between fork and exec a child holds a copy of every descriptor of its parent. A port whose socket is closed and bound anew in that moment
//! is still taken, `EADDRINUSE`; and the tunnels' endpoint, which does that whenever a link comes or goes, ends for good when its port is
//! refused (iroh issues 4488 and 4289). Links that come and go are also what the firewall is looked at for, so that the two would meet often.
//!
//! So programs are started by a thread whose table of descriptors is its own (`unshare(2)`, `CLONE_FILES`): it was emptied when the first
//! program was run, which is long before there is a tunnel, and what the process opens later is not in it.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, SyncSender};

use nix::sched::{CloneFlags, unshare};

use crate::host;

/// The first descriptor that is not standard input, output or error.
const FIRST_OTHER: i32 = 3;
/// Programs that wait to be run; whoever wants another one waits to say so.
const QUEUE: usize = 8;

struct Job {
    /// The thread that waits for it, in whose network namespace the program runs.
    asker: rustix::process::Pid,
    program: &'static str,
    arguments: Vec<OsString>,
    input: Vec<u8>,
    answer: SyncSender<io::Result<Output>>,
}

/// Runs a program in the calling thread's network namespace, with `input` on its standard input; returns when it has ended. One at a time.
pub(crate) fn output(program: &'static str, arguments: &[&str], input: &str) -> io::Result<Output> {
    static JOBS: OnceLock<SyncSender<Job>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (jobs, receiver) = mpsc::sync_channel(QUEUE);
        // Without the thread its receiver is dropped, and every job fails below.
        let _ = std::thread::Builder::new().name("hearth-programs".into()).spawn(move || run(&receiver));
        jobs
    });
    let gone = || io::Error::other("the thread that runs programs has ended");
    let (answer, answered) = mpsc::sync_channel(1);
    let asker = rustix::thread::gettid();
    let arguments = arguments.iter().map(OsString::from).collect();
    let job = Job { asker, program, arguments, input: input.as_bytes().to_vec(), answer };
    jobs.send(job).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}

fn run(jobs: &Receiver<Job>) {
    let apart = let_go_of_descriptors();
    for job in jobs {
        let result = match &apart {
            Ok(()) => run_one(&job),
            Err(error) => Err(io::Error::new(error.kind(), format!("cannot run programs apart: {error}"))),
        };
        // The asker waits for it.
        let _ = job.answer.send(result);
    }
}

/// Gives the calling thread a table of descriptors of its own with nothing in it but the standard ones.
fn let_go_of_descriptors() -> io::Result<()> {
    unshare(CloneFlags::CLONE_FILES)?;
    let open: Vec<i32> = fs::read_dir("/proc/thread-self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd >= FIRST_OTHER)
        .collect();
    for fd in open {
        // They are copies, which nobody else knows of. One was the directory's, and is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

fn run_one(job: &Job) -> io::Result<Output> {
    let namespace = format!("/proc/self/task/{}/ns/net", job.asker.as_raw_nonzero());
    let entered = host::open_netns(Path::new(&namespace)).and_then(|namespace| host::enter(&namespace));
    entered.map_err(io::Error::other)?;
    let mut child = Command::new(job.program)
        .args(&job.arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdin = child.stdin.take();
    // Both at once: neither waits for the other where there is more than a pipe holds.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Where the program ended early its own message says more than EPIPE.
            stdin.map(|mut stdin| stdin.write_all(&job.input))
        });
        child.wait_with_output()
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_program_gets_its_input_and_its_output_comes_back() {
        let done = output("cat", &[], "what it is told").expect("it runs");
        assert!(done.status.success());
        assert_eq!(done.stdout, b"what it is told");
        let much = "x".repeat(1 << 20);
        let done = output("cat", &[], &much).expect("it runs");
        assert!(done.stdout == much.as_bytes(), "more than a pipe holds");
        let done = output("sh", &["-c", "echo no >&2; exit 3"], "").expect("it runs");
        assert_eq!((done.status.code(), done.stderr.as_slice()), (Some(3), &b"no\n"[..]));
        let missing = output("no-such-program", &[], "").expect_err("there is none");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_program_has_no_descriptor_of_ours_from_the_beginning() {
        output("true", &[], "").expect("it runs");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    output("true", &[], "").expect("it runs");
                }
            });
            let taken_anew = (0..20_000).try_for_each(|_| {
                let socket = UdpSocket::bind("127.6.7.8:0")?;
                let address = socket.local_addr()?;
                drop(socket);
                UdpSocket::bind(address).map(drop)
            });
            over.store(true, Ordering::Relaxed);
            taken_anew.expect("a port that was given up is free at once");
        });
    }
}
