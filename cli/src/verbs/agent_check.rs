//! `agent check`: whether this machine is fit to run apps.

use std::process::ExitCode;

use anyhow::{Result, bail};
use hearth_agent::{Finding, Verdict, check};
use serde_json::json;

use crate::{
    args::{LookArgs, Output},
    output::{self, table},
};

pub(crate) fn run(args: &LookArgs) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("hearth agent check must run as root, as the agent does: it tries what apps need");
    }
    let findings = check(&args.dir.data_dir);
    let worst = findings.iter().map(|finding| finding.verdict).max();
    match args.output {
        Some(output @ (Output::Json | Output::Yaml)) => {
            let all: Vec<_> = findings.iter().map(as_json).collect();
            output::documents(&[json!({"fit": worst != Some(Verdict::Lacks), "findings": all})], false, output)?;
        }
        _ => output::lines(&as_lines(&findings)),
    }
    Ok(if worst == Some(Verdict::Lacks) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn as_json(finding: &Finding) -> serde_json::Value {
    let Finding { area, verdict, what, advice } = finding;
    json!({"area": area.to_string(), "verdict": verdict.to_string(), "what": what, "advice": advice})
}

/// A line a finding, with what to do below it; then a word on all of it.
fn as_lines(findings: &[Finding]) -> Vec<String> {
    let mut rows = Vec::new();
    for Finding { area, verdict, what, advice } in findings {
        rows.push(vec![area.to_string(), verdict.to_string(), table::one_line(what)]);
        if !advice.is_empty() {
            rows.push(vec![String::new(), String::new(), format!("-> {}", table::one_line(advice))]);
        }
    }
    let mut lines = table::layout(&rows);
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    lines.push(String::new());
    lines.push(match (count(Verdict::Lacks), count(Verdict::Poor)) {
        (0, 0) => "This machine is fit to run apps.".into(),
        (0, poor) => format!("This machine is fit to run apps; {poor} of what was looked at could be better."),
        (lacks, _) => format!("This machine is not fit to run apps: {lacks} of what was looked at is lacking."),
    });
    lines
}
