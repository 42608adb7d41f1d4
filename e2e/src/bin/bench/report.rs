//! Tables and JSON lines.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::json;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// The figures of one benchmark.
pub(crate) struct Report {
    name: &'static str,
    file: File,
    lines: Vec<String>,
    rows: Vec<[String; 6]>,
}

impl Report {
    pub(crate) fn new(name: &'static str) -> Result<Self> {
        // Of the workspace, from wherever it is called.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?.join("target/bench");
        fs::create_dir_all(&folder)?;
        println!("\n{name}: {}", conditions());
        let heading = ["case", "hearth", "unit", "peer", "peer's", "ratio"].map(str::to_owned);
        let file = File::create(folder.join(format!("{name}.jsonl")))?;
        Ok(Self { name, file, lines: Vec::new(), rows: vec![heading] })
    }

    /// A figure, beside a peer's where one ran.
    pub(crate) fn figure(
        &mut self,
        case: &str,
        value: f64,
        unit: &str,
        better: Better,
        peer: Option<(&str, f64)>,
    ) -> Result<()> {
        let ratio = peer.map(|(_, theirs)| match better {
            Better::Lower => theirs / value,
            Better::Higher => value / theirs,
        });
        let line = json!({"bench": self.name, "case": case, "value": value, "unit": unit, "peer": peer.map(|(name, _)| name),
            "peer_value": peer.map(|(_, theirs)| theirs), "ratio": ratio});
        writeln!(self.file, "{line}")?;
        self.lines.push(line.to_string());
        let text = |value: f64| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
        self.rows.push([
            case.to_owned(),
            text(value),
            unit.to_owned(),
            peer.map_or_else(|| "-".into(), |(name, _)| name.to_owned()),
            peer.map_or_else(|| "-".into(), |(_, theirs)| text(theirs)),
            ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
        ]);
        Ok(())
    }

    /// Something to know of the figures.
    pub(crate) fn note(&mut self, text: &str) {
        println!("{}: {text}", self.name);
    }

    pub(crate) fn finish(self) {
        let width = |at: usize| self.rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        for row in &self.rows {
            let cells: Vec<_> =
                row.iter().enumerate().map(|(at, cell)| format!("{cell:<width$}", width = width(at))).collect();
            println!("  {}", cells.join("  ").trim_end());
        }
        for line in &self.lines {
            println!("{line}");
        }
    }
}

fn conditions() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let build = if cfg!(debug_assertions) { "a debug build, whose figures mean nothing" } else { "release" };
    format!("{cores} cores, Linux {}; {build}; medians of interleaved runs", release.trim())
}

/// The median of some samples.
pub(crate) fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    match samples.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => samples[n / 2],
        n => f64::midpoint(samples[n / 2 - 1], samples[n / 2]),
    }
}
