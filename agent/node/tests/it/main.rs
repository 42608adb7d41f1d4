//! An agent with real containers, against a region that does as a test says. Needs root and the Debian package
//! busybox-static.
//!
//! The agent is a process of its own, so that it can be killed: this binary, called again with a data directory in the
//! environment, plays it. A zygote can be forked only while a process has one thread, so it has a main of its own.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stderr)]

mod device;
mod pressure;
mod region;
mod tests;

use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};

/// No test takes longer.
const BOUND: Duration = Duration::from_secs(150);

fn main() {
    if let Ok(dir) = std::env::var(device::DRIVER) {
        return device::drive(dir.as_ref());
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let trials = tests::all()
        .into_iter()
        .map(|(name, body)| {
            Trial::test(name, move || {
                let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
                let result = tokio.block_on(async { tokio::time::timeout(BOUND, tokio::spawn(body())).await });
                match result {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => Err(Failed::from(error.to_string())),
                    Err(_) => Err(Failed::from("took too long")),
                }
            })
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
