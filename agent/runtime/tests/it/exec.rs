//! Commands in running containers.

use std::{os::fd::OwnedFd, time::Duration};

use hearth_runtime::{ContainerState, ExecIo, RuntimeError, StartError, WindowSize};
use tokio::{
    io::{AsyncWriteExt, unix::AsyncFd},
    time::timeout,
};

use crate::support::{BOUND, Ctx, exec, exec_spec, read_all, until};

crate::tests![
    a_command_has_its_exit_code_and_streams,
    input_reaches_the_command,
    a_command_runs_inside_with_the_containers_restrictions,
    a_terminal_has_a_name_and_a_size_and_echoes,
    a_command_without_its_client_is_killed,
    a_command_says_why_it_did_not_start,
    a_command_ends_with_its_container,
    a_command_goes_as_soon_as_its_container_when_memory_is_short,
];

async fn a_command_has_its_exit_code_and_streams(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut spec = pod.spec("c", "sleep 100");
    spec.cwd = "/tmp".to_owned();
    spec.env.push(("COLOUR".to_owned(), "red".to_owned()));
    pod.pod.start_container(spec).await.expect("starts");
    let mut command = exec_spec("c", "pwd; echo $COLOUR $SHAPE; echo oops >&2; cat; exit 9");
    command.env.push(("SHAPE".to_owned(), "round".to_owned()));
    let (code, out, err) = exec(&pod.pod, command).await;
    assert_eq!((code, out.as_str(), err.as_str()), (9, "/tmp\nred round\n", "oops\n"));
    let (code, ..) = exec(&pod.pod, exec_spec("c", "kill -9 $$")).await;
    assert_eq!(code, 137);
    let mut command = exec_spec("c", "echo $(id -u):$(id -g) $HOME; pwd");
    command.user = Some("app".to_owned());
    command.cwd = Some("/bin".to_owned());
    assert_eq!(exec(&pod.pod, command).await.1, "1000:1001 /home/app\n/bin\n");
    pod.destroy().await;
}

async fn input_reaches_the_command(ctx: Ctx) {
    let pod = ctx.pod().await;
    pod.pod.start_container(pod.spec("c", "sleep 100")).await.expect("starts");
    let mut spec = exec_spec("c", "wc -c");
    spec.stdin = true;
    let mut exec = pod.pod.exec(spec).await.expect("starts");
    let Some(ExecIo::Pipes { stdin: Some(stdin), stdout, .. }) = exec.take_io() else { panic!("pipes with input") };
    assert!(exec.take_io().is_none(), "streams are taken once");
    let send = async {
        let mut stdin = tokio::net::unix::pipe::Sender::from_owned_fd(stdin).expect("a pipe");
        // More than a pipe holds.
        stdin.write_all(&vec![b'x'; 300_000]).await.expect("writes");
    };
    let ((), out) = timeout(BOUND, async { tokio::join!(send, read_all(stdout)) }).await.expect("in time");
    assert_eq!(out.trim(), "300000");
    assert_eq!(exec.wait().await.expect("ends"), 0);
    assert_eq!(exec.wait().await.expect("says it again"), 0);
    pod.destroy().await;
}

async fn a_command_runs_inside_with_the_containers_restrictions(ctx: Ctx) {
    let pod = ctx.pod().await;
    let script = "for ns in net ipc uts user pid mnt cgroup; do readlink /proc/self/ns/$ns; done; \
                  cat /proc/self/uid_map; grep -E '^(Cap|Seccomp:|NoNewPrivs|SigIgn|SigBlk)' /proc/self/status; \
                  cat /proc/self/cgroup; ls /proc/self/fd";
    let inside = pod.spec("c", &format!("({script}) > /out; sleep 100"));
    pod.pod.start_container(inside).await.expect("starts");
    let (code, out, err) = exec(&pod.pod, exec_spec("c", script)).await;
    assert_eq!(code, 0, "{err}");
    let (_, expected, _) =
        exec(&pod.pod, exec_spec("c", "while ! grep -q '^3$' /out; do sleep 0.01; done; cat /out")).await;
    assert_eq!(out, expected, "a command is where its container is, and may do what it may");
    let (_, out, _) =
        exec(&pod.pod, exec_spec("c", "! unshare -m true && ! mount -t tmpfs none /tmp && echo refused")).await;
    assert_eq!(out, "refused\n");
    pod.destroy().await;
}

/// Reads from a terminal until the text appears.
async fn read_until(master: &AsyncFd<OwnedFd>, seen: &mut String, text: &str) {
    let read = async {
        while !seen.contains(text) {
            let mut guard = master.readable().await.expect("readable");
            let mut buf = [0; 4096];
            let result = guard.try_io(|fd| {
                nix::unistd::read(std::os::fd::AsRawFd::as_raw_fd(fd), &mut buf).map_err(std::io::Error::from)
            });
            match result {
                Ok(Ok(n)) => *seen += &String::from_utf8_lossy(&buf[..n]),
                Ok(Err(e)) => panic!("{text:?} did not appear before {e}: {seen:?}"),
                Err(_) => {}
            }
        }
    };
    timeout(BOUND, read).await.expect("in time");
}

fn watch(fd: OwnedFd) -> AsyncFd<OwnedFd> {
    // SAFETY: the descriptor is owned by the AsyncFd from here on.
    #[allow(unsafe_code)]
    let watched = unsafe { AsyncFd::register(fd) };
    watched.map_err(std::io::Error::from).expect("registers")
}

async fn a_terminal_has_a_name_and_a_size_and_echoes(ctx: Ctx) {
    let pod = ctx.pod().await;
    pod.pod.start_container(pod.spec("c", "sleep 100")).await.expect("starts");
    let mut spec = exec_spec("c", "");
    spec.args = vec!["sh".to_owned()];
    spec.terminal = Some(WindowSize { rows: 31, cols: 97 });
    let mut exec = pod.pod.exec(spec).await.expect("starts");
    let Some(ExecIo::Terminal(master)) = exec.take_io() else { panic!("a terminal") };
    let master = watch(master);
    let write = |text: &str| nix::unistd::write(master.get_ref(), text.as_bytes()).expect("writes");
    let mut seen = String::new();
    write("tty; stty size\n");
    read_until(&master, &mut seen, "31 97").await;
    assert!(seen.contains("/dev/pts/"), "{seen}");
    exec.resize(WindowSize { rows: 50, cols: 120 }).expect("resizes");
    write("stty size; exit 4\n");
    read_until(&master, &mut seen, "50 120").await;
    assert_eq!(timeout(BOUND, exec.wait()).await.expect("in time").expect("ends"), 4);
    pod.destroy().await;
}

async fn a_command_without_its_client_is_killed(ctx: Ctx) {
    let pod = ctx.pod().await;
    pod.pod.start_container(pod.spec("c", "sleep 100")).await.expect("starts");
    let count = || async { exec(&pod.pod, exec_spec("c", "ps | grep -c '[s]leep 4[0-9]'")).await.1.trim().to_owned() };
    let dropped = pod.pod.exec(exec_spec("c", "sleep 41")).await.expect("starts");
    let mut killed = pod.pod.exec(exec_spec("c", "sleep 42; true")).await.expect("starts");
    assert_ne!(count().await, "0");
    drop(dropped);
    killed.kill().expect("kills");
    assert_eq!(timeout(BOUND, killed.wait()).await.expect("in time").expect("ends"), 137);
    let gone = async {
        while count().await != "0" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(BOUND, gone).await.expect("both are gone");
    pod.destroy().await;
}

async fn a_command_says_why_it_did_not_start(ctx: Ctx) {
    let pod = ctx.pod().await;
    let start = |spec| async { pod.pod.exec(spec).await.expect_err("does not start") };
    let error = start(exec_spec("c", "true")).await;
    assert!(matches!(error, RuntimeError::Start(StartError::NotRunning { .. })), "{error}");
    pod.pod.start_container(pod.spec("c", "sleep 100")).await.expect("starts");
    let mut spec = exec_spec("c", "");
    spec.args = vec!["no-such-program".to_owned()];
    let error = start(spec.clone()).await;
    assert!(matches!(error, RuntimeError::Start(StartError::NoSuchFile { .. })), "{error}");
    spec.terminal = Some(WindowSize { rows: 24, cols: 80 });
    let error = start(spec.clone()).await;
    assert!(matches!(error, RuntimeError::Start(StartError::NoSuchFile { .. })), "{error}");
    spec.args = vec!["true".to_owned()];
    spec.user = Some("nobody-here".to_owned());
    let error = start(spec.clone()).await;
    assert!(matches!(error, RuntimeError::Start(StartError::NoSuchUser { .. })), "{error}");
    spec.user = None;
    spec.cwd = Some("/not/there".to_owned());
    let error = start(spec.clone()).await;
    assert!(matches!(error, RuntimeError::Start(StartError::WorkingDirectory { .. })), "{error}");
    pod.destroy().await;
}

async fn a_command_ends_with_its_container(ctx: Ctx) {
    let pod = ctx.pod().await;
    pod.pod.start_container(pod.spec("c", "sleep 100")).await.expect("starts");
    let mut exec = pod.pod.exec(exec_spec("c", "touch /running; sleep 100")).await.expect("starts");
    let upper = pod.dir().join("scratch/c/upper/running");
    until("the command runs", || upper.exists()).await;
    pod.pod.signal("c", libc::SIGKILL).await.expect("signals");
    assert_eq!(timeout(BOUND, exec.wait()).await.expect("in time").expect("ends"), 137);
    pod.destroy().await;
}

async fn a_command_goes_as_soon_as_its_container_when_memory_is_short(ctx: Ctx) {
    let pod = ctx.pod().await;
    let status = pod.pod.start_container(pod.spec("c", "sleep 100")).await.expect("starts");
    let ContainerState::Running { pid, .. } = status.state else { panic!("runs") };
    let container = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("lives");
    let (_, command, err) = exec(&pod.pod, exec_spec("c", "cat /proc/self/oom_score_adj")).await;
    assert_eq!((command.as_str(), container.as_str()), ("750\n", "750\n"), "{err}");
    pod.destroy().await;
}
