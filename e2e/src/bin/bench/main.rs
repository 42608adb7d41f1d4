//! Benchmarks against peers on the same machine in the same run. `make bench`, or `make bench NAME=reach`.
//!
//! Every figure is a median of interleaved runs; a ratio above 1 means that Hearth is better. Absolute
//! times on a shared machine are noise. Lines of JSON are printed below each table and go to
//! target/bench/NAME.jsonl.

#![allow(clippy::print_stdout)] // a benchmark prints its figures

mod bombs;
mod device;
mod flash;
mod memory;
mod pull;
mod reach;
mod report;
mod store;
mod up;

use anyhow::{Result, bail};

/// Measures and reports.
type Bench = fn(&mut report::Report) -> Result<()>;

/// The benchmarks by name.
const BENCHES: [(&str, Bench); 8] = [
    ("up", up::run),
    ("device", device::run),
    ("bombs", bombs::run),
    ("pull", pull::run),
    ("flash", flash::run),
    ("reach", reach::run),
    ("memory", memory::run),
    ("store", store::run),
];

fn main() -> Result<()> {
    let wanted = std::env::args().nth(1);
    let known = BENCHES.map(|(name, _)| name).join(", ");
    if let Some(name) = &wanted
        && !BENCHES.iter().any(|(known, _)| known == name)
    {
        bail!("no benchmark {name:?}; there are {known}");
    }
    for (name, bench) in BENCHES {
        if wanted.as_deref().is_none_or(|wanted| wanted == name) {
            let mut report = report::Report::new(name)?;
            let done = bench(&mut report);
            // Also what there is where a later part failed.
            report.finish();
            done?;
        }
    }
    Ok(())
}
