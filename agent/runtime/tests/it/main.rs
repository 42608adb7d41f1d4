//! Real containers, made from a root file system of busybox. Needs root and the Debian package busybox-static.
//!
//! A zygote can be forked only while the process has one thread, so this binary has a main of its own: it forks one,
//! then runs the tests, or, called by a test as `driver`, it plays an agent that is to be killed.
#![allow(missing_docs, unreachable_pub, clippy::print_stdout)]
#![allow(clippy::assigning_clones)] // `spec.user = ...` reads better than `clone_into`

mod attach;
mod containers;
mod cutoff;
mod exec;
mod isolation;
mod lease;
mod processes;
mod support;
mod survive;
mod volumes;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use libtest_mimic::{Arguments, Failed, Trial};
use support::{Ctx, Instance};

/// A test: its name and body.
pub type Test = (&'static str, fn(Ctx) -> Pin<Box<dyn Future<Output = ()> + Send>>);

/// Lists tests of a module.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[$crate::Test] = &[$((concat!(module_path!(), "::", stringify!($name)), |ctx| Box::pin($name(ctx)))),*];
    };
}

/// Supplementary groups of the agent under test, as a login gives root; none is a container's.
pub const AGENT_GROUPS: [u32; 2] = [0, 4711];
/// No test takes longer.
const TEST_BOUND: Duration = Duration::from_mins(2);

fn main() {
    if let Ok(dir) = std::env::var("HEARTH_TEST_DRIVER") {
        return survive::driver(dir.as_ref());
    }
    let args = Arguments::from_args();
    let all: Vec<_> = [
        attach::TESTS,
        containers::TESTS,
        cutoff::TESTS,
        exec::TESTS,
        isolation::TESTS,
        lease::TESTS,
        processes::TESTS,
        survive::TESTS,
        volumes::TESTS,
    ]
    .concat();
    if args.list {
        libtest_mimic::run(&args, all.iter().map(|(name, _)| Trial::test(*name, || Ok(()))).collect()).exit();
    }
    nix::unistd::setgroups(&AGENT_GROUPS.map(nix::unistd::Gid::from_raw)).expect("root may");
    let instance = Arc::new(Instance::new("main"));
    let zygote = hearth_runtime::fork_zygote(&instance.config()).expect("the zygote is forked; are you root?");
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio starts");
    let runtime = {
        let _guard = tokio.enter();
        hearth_runtime::Runtime::new(zygote).expect("the runtime starts")
    };
    let tokio = Arc::new(tokio);
    let ctx = Ctx { runtime, instance };
    let trials = all
        .into_iter()
        .map(|(name, body)| {
            let (tokio, ctx) = (Arc::clone(&tokio), ctx.clone());
            Trial::test(name, move || {
                let run = async { tokio::time::timeout(TEST_BOUND, body(ctx)).await };
                tokio.block_on(run).map_err(|_| Failed::from("took too long"))
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&args, trials);
    drop(ctx);
    drop(tokio);
    conclusion.exit();
}
