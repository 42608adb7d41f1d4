//! Hostile containers: every probe is the entrypoint of a real one, made three times. Without the protection that it is
//! to show it must have its effect, or it would show nothing; with that one alone, and under all, it must be refused.
//! ISOLATION.md has the table. Needs root, Debian's busybox-static, and the feature `unprotected`.
//!
//! What the probes reach when they succeed is made for them: this process has namespaces of its own for network, IPC and
//! host name, which are the host's as far as its containers go.
#![allow(missing_docs, unreachable_pub, unsafe_code, clippy::print_stdout)]
#![allow(dead_code)] // of what is shared with the other tests

mod attempts;
#[path = "../../src/seccomp/calls.rs"]
mod calls;
mod containers;
mod crun;
mod page;
#[path = "../../src/child/paths.rs"]
mod paths;
mod probes;
mod race;
#[path = "../it/support.rs"]
mod support;
#[path = "../../src/seccomp/table.rs"]
mod table;

use std::{
    os::{linux::net::SocketAddrExt as _, unix::net::UnixListener},
    sync::Arc,
};

use attempts::Facts;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::CloneFlags;
use probes::Probe;
use support::{Ctx, Instance};

/// First argument of this program where it is a probe; its name and the facts follow.
pub const ATTEMPT: &str = "--attempt";

fn main() {
    let args: Vec<_> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == ATTEMPT) {
        return attempt(&args[2], &args[3]);
    }
    if args.get(1).is_some_and(|a| a == race::FLIP) {
        race::flip();
    }
    let args = Arguments::from_args();
    if args.list {
        libtest_mimic::run(&args, trials(|_| Ok(()), || Ok(()), || Ok(()))).exit();
    }
    let facts = make_a_host();
    let instance = Arc::new(Instance::new("hostile"));
    containers::furnish(&instance.dir.path().join("layer"));
    let zygote = hearth_runtime::fork_zygote(&instance.config()).expect("the zygote is forked; are you root?");
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio starts");
    let runtime = {
        let _guard = tokio.enter();
        hearth_runtime::Runtime::new(zygote).expect("the runtime starts")
    };
    let tokio = Arc::new(tokio);
    let ctx = Ctx { runtime, instance };
    let run = {
        let (tokio, ctx, facts) = (Arc::clone(&tokio), ctx.clone(), facts.0.clone());
        move |probe: Probe| tokio.block_on(containers::show(&ctx, &facts, probe)).map_err(Failed::from)
    };
    let racing = {
        let (tokio, ctx, facts) = (Arc::clone(&tokio), ctx.clone(), facts.0.clone());
        move || tokio.block_on(race::show(&ctx, &facts)).map_err(Failed::from)
    };
    let beside = {
        let (ctx, facts) = (ctx.clone(), facts.0.clone());
        move || crun::compare(&ctx, &facts).map_err(Failed::from)
    };
    let conclusion = libtest_mimic::run(&args, trials(run, racing, beside));
    drop(ctx);
    drop(tokio);
    drop(facts);
    conclusion.exit();
}

fn trials(
    run: impl Fn(Probe) -> Result<(), Failed> + Clone + Send + 'static,
    racing: impl FnOnce() -> Result<(), Failed> + Send + 'static,
    beside: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Vec<Trial> {
    let mut all: Vec<_> = probes::all()
        .into_iter()
        .map(|probe| {
            let run = run.clone();
            Trial::test(probe.name, move || run(probe))
        })
        .collect();
    all.push(Trial::test("the_page_lists_the_probes", || page::compare().map_err(Failed::from)));
    all.push(Trial::test("no_link_that_is_put_in_the_way_leads_a_mount_onto_proc", racing));
    let without = !crun::is_installed();
    all.push(Trial::test("crun_answers_as_the_page_says", beside).with_ignored_flag(without));
    all
}

/// Plays the probe, inside a container.
fn attempt(name: &str, facts: &str) {
    let facts: Facts = serde_json::from_str(facts).expect("facts");
    let probe = probes::all().into_iter().find(|p| p.name == name).expect("a probe");
    let outcome = match probe.attempt {
        probes::Attempt::Do(attempt) => attempt(&facts),
        probes::Attempt::Call(call) => attempts::answered(call()),
    };
    match outcome {
        Ok(()) => println!("succeeds"),
        Err(refusal) => println!("{}", refusal.0),
    }
}

/// What holds the host's things: a socket, and a segment of shared memory that goes with its namespace.
struct Host(Facts, #[expect(dead_code, reason = "listens while it lives")] UnixListener);

/// The host as it is for the containers of this test.
fn make_a_host() -> Host {
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    nix::sched::unshare(own).expect("root can make namespaces; are you root?");
    let facts = Facts {
        victim: 0,
        key: 0x4845_4152,
        host: "the-host".to_owned(),
        socket: format!("hearth-hostile-{}", std::process::id()),
    };
    nix::unistd::sethostname(&facts.host).expect("root can");
    // SAFETY: a new segment in a namespace of our own, which the kernel fills with zeros; its first byte is set.
    unsafe {
        let id = libc::shmget(facts.key, 4096, libc::IPC_CREAT | 0o666);
        let at = libc::shmat(id, std::ptr::null(), 0);
        assert!(id >= 0 && at as isize != -1, "makes shared memory");
        *at.cast::<u8>() = 42;
    }
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&facts.socket).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("binds");
    Host(facts, listener)
}
