//! Who is attached to a container: output, input, terminal.

use std::{os::fd::OwnedFd, time::Duration};

use hearth_runtime::{Attach, RuntimeError, WindowSize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    time::timeout,
};

use crate::support::{BOUND, Ctx, TestPod, read_log, until};

crate::tests![
    output_reaches_everybody_who_is_attached_and_the_log,
    input_stays_open_for_the_next_unless_it_is_for_one,
    a_terminal_is_the_programs_own,
    who_does_not_read_is_cut_off_after_a_while_and_nobody_loses_anything,
    who_leaves_makes_room,
];

async fn attach(pod: &TestPod, container: &str, stdin: bool) -> Attach {
    timeout(BOUND, pod.pod.attach(container, stdin)).await.expect("in time").expect("attaches")
}

/// Reads up to and with a text.
async fn read_to(pipe: &mut pipe::Receiver, end: &str) -> String {
    let mut text = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&text).contains(end) {
            let mut buffer = [0; 4096];
            let count = pipe.read(&mut buffer).await.expect("reads");
            assert_ne!(count, 0, "ended after {:?}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&buffer[..count]);
        }
    };
    let in_time = timeout(BOUND, read).await;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(in_time.is_ok(), "waited in vain for {end:?} after {text:?}");
    text
}

fn receiver(end: Option<OwnedFd>) -> pipe::Receiver {
    pipe::Receiver::from_owned_fd(end.expect("is taken once")).expect("a pipe")
}

fn sender(end: Option<OwnedFd>) -> pipe::Sender {
    // Unchecked: it may be a terminal.
    pipe::Sender::from_owned_fd_unchecked(end.expect("there is input")).expect("a descriptor")
}

async fn output_reaches_everybody_who_is_attached_and_the_log(ctx: Ctx) {
    let pod = ctx.pod().await;
    let script = "echo early; trap 'echo out; echo err >&2; exit 5' USR1; while :; do sleep 0.05; done";
    let spec = pod.spec("c", script);
    let log = spec.log_path.clone();
    pod.pod.start_container(spec).await.expect("starts");
    until("the container is ready", || read_log(&log, "stdout").contains("early")).await;
    let mut two = [attach(&pod, "c", false).await, attach(&pod, "c", false).await];
    assert!(two.iter().all(|one| one.stdin.is_none() && !one.has_terminal()));
    match pod.pod.attach("c", true).await {
        Err(RuntimeError::Refused { reason, .. }) => assert!(reason.contains("has no input"), "{reason}"),
        other => panic!("it has no input: {other:?}"),
    }
    assert!(matches!(pod.pod.attach("other", false).await, Err(RuntimeError::NoSuchContainer { .. })));
    pod.pod.signal("c", libc::SIGUSR1).await.expect("signals");
    for one in &mut two {
        let (mut out, mut err) = (receiver(one.stdout.take()), receiver(one.stderr.take()));
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let both = async { tokio::join!(out.read_to_string(&mut stdout), err.read_to_string(&mut stderr)) };
        let (out, err) = timeout(BOUND, both).await.expect("it ends with the container");
        assert!(out.is_ok() && err.is_ok());
        assert_eq!((stdout.as_str(), stderr.as_str()), ("out\n", "err\n"), "from then on");
        timeout(BOUND, one.wait()).await.expect("in time").expect("the container has ended");
    }
    assert_eq!(read_log(&log, "stdout"), "early\nout\n");
    assert!(matches!(pod.pod.attach("c", false).await, Err(RuntimeError::NoSuchContainer { .. })), "it has ended");
    pod.destroy().await;
}

async fn input_stays_open_for_the_next_unless_it_is_for_one(ctx: Ctx) {
    let pod = ctx.pod().await;
    for once in [false, true] {
        let name = if once { "once" } else { "open" };
        let mut spec = pod.spec(name, "while read line; do echo got $line; done; echo over; sleep 100");
        (spec.stdin, spec.stdin_once) = (true, once);
        pod.pod.start_container(spec).await.expect("starts");
        let mut one = attach(&pod, name, true).await;
        let (mut out, mut stdin) = (receiver(one.stdout.take()), sender(one.stdin.take()));
        stdin.write_all(b"a\nb\n").await.expect("writes");
        assert_eq!(read_to(&mut out, "got b\n").await, "got a\ngot b\n");
        drop(stdin);
        one.end_input().expect("says so");
        if once {
            assert_eq!(read_to(&mut out, "over\n").await, "over\n", "its input ends while its output is read on");
            assert!(matches!(pod.pod.attach(name, true).await, Err(RuntimeError::Refused { .. })));
            attach(&pod, name, false).await;
        } else {
            let mut next = attach(&pod, name, true).await;
            sender(next.stdin.take()).write_all(b"c\n").await.expect("writes");
            assert_eq!(read_to(&mut out, "\n").await, "got c\n", "the input goes on, and so does the first to read");
        }
    }
    pod.destroy().await;
}

async fn a_terminal_is_the_programs_own(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut spec = pod.spec("c", "stty -echo; echo ready; while read line; do eval \"$line\"; done");
    (spec.stdin, spec.terminal) = (true, true);
    spec.run_as_user = Some(1000);
    let log = spec.log_path.clone();
    pod.pod.start_container(spec).await.expect("starts");
    until("the program runs", || read_log(&log, "stdout").contains("ready")).await;
    let mut one = attach(&pod, "c", true).await;
    assert!(one.has_terminal());
    one.resize(WindowSize { rows: 33, cols: 99 }).expect("resizes");
    let (mut out, mut stdin) = (receiver(one.stdout.take()), sender(one.stdin.take()));
    stdin.write_all(b"tty; stty size; echo $((6*7))\n").await.expect("writes");
    assert_eq!(read_to(&mut out, "42\r\n").await, "/dev/pts/0\r\n33 99\r\n42\r\n");
    // Its controlling terminal: what is typed there is a signal.
    stdin.write_all(b"trap 'echo stopped' INT; echo set\n").await.expect("writes");
    read_to(&mut out, "set\r\n").await;
    stdin.write_all(b"sleep 100\n").await.expect("writes");
    until("it sleeps", || pod.lines().iter().any(|line| line.starts_with("sleep"))).await;
    stdin.write_all(&[3]).await.expect("writes");
    read_to(&mut out, "stopped\r\n").await;
    stdin.write_all(b"exit 3\n").await.expect("writes");
    timeout(BOUND, one.wait()).await.expect("in time").expect("the container has ended");
    assert!(read_log(&log, "stdout").contains("33 99"), "a terminal's output is logged, too");
    pod.destroy().await;
}

async fn who_does_not_read_is_cut_off_after_a_while_and_nobody_loses_anything(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut spec = pod.spec(
        "c",
        "read go; head -c 2500000 /dev/zero | tr '\\0' x; echo; read end; head -c 1100000 /dev/zero | tr '\\0' y",
    );
    spec.stdin = true;
    pod.pod.start_container(spec).await.expect("starts");
    let (mut reads, mut sleeps) = (attach(&pod, "c", true).await, attach(&pod, "c", false).await);
    let mut stdin = sender(reads.stdin.take());
    let mut out = receiver(reads.stdout.take());
    let begin = std::time::Instant::now();
    stdin.write_all(b"go\n").await.expect("writes");
    // More than all buffers hold, and less than a container may log at once: the container waits for who is slow, and not for ever for who does not read.
    let mut all = vec![0; 2_500_001];
    timeout(BOUND, out.read_exact(&mut all)).await.expect("in time").expect("reads it all");
    assert!(all.iter().take(2_500_000).all(|byte| *byte == b'x'));
    assert!(begin.elapsed() > Duration::from_secs(4), "the container waited for the other");
    let late = timeout(BOUND, sleeps.wait()).await.expect("in time").expect_err("it is cut off");
    assert!(late.to_string().contains("was not read"), "{late}");
    stdin.write_all(b"end\n").await.expect("writes");
    // Also what is still on its way when the container ends.
    let mut last = String::new();
    timeout(BOUND, out.read_to_string(&mut last)).await.expect("in time").expect("reads the rest");
    assert_eq!((last.len(), last.trim_matches('y')), (1_100_000, ""));
    timeout(BOUND, reads.wait()).await.expect("in time").expect("the container has ended");
    pod.destroy().await;
}

async fn who_leaves_makes_room(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut spec = pod.spec("c", "sleep 100");
    spec.stdin = true;
    pod.pod.start_container(spec).await.expect("starts");
    // More than a shim takes connections, so that one that it kept would show.
    for n in 0..300 {
        let left = async {
            loop {
                match pod.pod.attach("c", n % 2 == 0).await {
                    Ok(one) => return drop(one),
                    Err(RuntimeError::Refused { .. }) => tokio::time::sleep(Duration::from_millis(2)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        timeout(BOUND, left).await.expect("there is room");
    }
    let mut kept = Vec::new();
    let full = loop {
        match pod.pod.attach("c", false).await {
            Ok(one) => kept.push(one),
            Err(error) => break error,
        }
        assert!(kept.len() < 100, "it is bounded");
    };
    assert!(full.to_string().contains("attached to container c already"), "{full}");
    assert_eq!(pod.pod.status().await.expect("the shim answers").len(), 1);
    drop(kept);
    pod.destroy().await;
}
