//! The seeded simulation. `make sim SEED=n` runs one and prints what happened; `make sim RUNS=n` runs many, and prints those that violate
//! what must hold. `HEARTH_LOG=debug` shows what the servers of one run log.

#![allow(clippy::print_stdout)] // its findings are what it is for

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use hearth_sim::Report;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let number = |text: Option<String>| -> Result<u64> {
        let text = text.context("a number is missing")?;
        text.parse().with_context(|| format!("{text:?} is no number"))
    };
    match arguments.next().as_deref() {
        Some("seed") => one(number(arguments.next())?),
        Some("runs") => many(number(arguments.next())?, arguments.next().map(|first| number(Some(first))).transpose()?),
        #[cfg(feature = "sabotage")]
        Some("bugs") => bugs(number(arguments.next())?),
        _ => bail!("say `seed N` for one run and its trace, or `runs N [FIRST]` for many"),
    }
}

fn one(seed: u64) -> Result<()> {
    if let Ok(filter) = std::env::var("HEARTH_LOG") {
        // What the servers say of themselves comes between; the trace with its times comes at the end.
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let report = hearth_sim::run(seed)?;
    for line in &report.trace {
        println!("{line}");
    }
    println!("hash {:016x}, {}", report.hash, summary(&report));
    conclude(&report.violations)
}

fn many(runs: u64, first: Option<u64>) -> Result<()> {
    let first = first.unwrap_or_default();
    let (next, started) = (AtomicU64::new(first), Instant::now());
    let work = || -> Result<Vec<String>> {
        let mut found = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + runs {
                return Ok(found);
            }
            let report = hearth_sim::run(seed)?;
            for violation in &report.violations {
                println!("seed {seed}: {violation}");
            }
            if !report.violations.is_empty() {
                found.push(format!("make sim SEED={seed}"));
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let found: Vec<Result<Vec<String>>> = thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().map(|one| one.join().unwrap_or_else(|_| bail!("a run panicked"))).collect()
    });
    let found = found.into_iter().collect::<Result<Vec<_>>>()?.concat();
    println!("{runs} runs in {:.1} s, {} of them bad", started.elapsed().as_secs_f64(), found.len());
    conclude(&found)
}

/// Within how many runs each known bug is found, and by what.
#[cfg(feature = "sabotage")]
fn bugs(runs: u64) -> Result<()> {
    let mut missed = Vec::new();
    for bug in hearth_raft::sabotage::Bug::ALL {
        let started = Instant::now();
        let mut found = None;
        for seed in 0..runs {
            let report = hearth_sim::run_with(bug, seed)?;
            if let Some(violation) = report.violations.into_iter().next() {
                found = Some((seed, violation));
                break;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        if let Some((seed, violation)) = found {
            let violation: String = violation.chars().take(160).collect();
            println!("{bug:?}: seed {seed}, {seconds:.1} s: {}", violation.replace('\n', " "));
        } else {
            println!("{bug:?}: not within {runs} seeds, {seconds:.1} s");
            missed.push(format!("{bug:?}"));
        }
    }
    conclude(&missed)
}

fn summary(report: &Report) -> String {
    let seen = &report.observed;
    let answered = seen.history.iter().filter(|one| one.answer().is_some()).count();
    let revision = seen.finals.first().map_or(0, |last| last.revision);
    format!(
        "{} operations, {answered} answered, revision {revision}, {} servers at the end",
        seen.history.len(),
        seen.finals.len()
    )
}

fn conclude(found: &[String]) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    bail!("what must hold does not:\n{}", found.join("\n"))
}
