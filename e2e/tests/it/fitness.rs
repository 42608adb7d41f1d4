//! `hearth agent check` on this machine, and on one that something was taken from.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command,
    instance::{Instance, binary},
    netns::{self, Netns},
};
use serde_json::Value;

/// Whether the machine is fit, and what was found, `area verdict what` each.
fn check(command: &mut Command) -> Result<(bool, Vec<String>)> {
    let done = command::output(command, b"", command::LIMIT)?;
    let text = String::from_utf8_lossy(&done.stdout);
    let said = String::from_utf8_lossy(&done.stderr);
    let all: Value = serde_json::from_str(&text).with_context(|| format!("{text}{said}"))?;
    let fit = all["fit"].as_bool().context("fit")?;
    ensure!(done.status.success() == fit, "the exit code says so too: {all}");
    let line = |one: &Value| {
        let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
        ensure!(
            (one["verdict"] == "fine") == text("advice").is_empty(),
            "what to do is said where something is: {one}"
        );
        Ok(format!("{} {} {}", text("area"), text("verdict"), text("what")))
    };
    Ok((fit, all["findings"].as_array().context("findings")?.iter().map(line).collect::<Result<_>>()?))
}

fn has(found: &[String], start: &str, what: &str) -> Result<()> {
    ensure!(found.iter().any(|line| line.starts_with(start) && line.contains(what)), "{start} .. {what}: {found:#?}");
    Ok(())
}

#[test]
fn a_machine_that_runs_these_tests_is_fit_and_says_what_it_is() -> Result<()> {
    let instance = Instance::empty()?;
    let mut command = Command::new(binary());
    let place = instance.path().join("not/there/yet");
    let (fit, found) = check(command.args(["agent", "check", "-o", "json", "--data-dir"]).arg(&place))?;
    ensure!(fit, "{found:#?}");
    has(&found, "kernel fine", "Linux")?;
    has(&found, "kernel fine", "idmapped mounts")?;
    has(&found, "cgroups fine", "control groups are of version")?;
    has(&found, "disk fine", "are free")?;
    has(&found, "network fine", "nftables")?;
    ensure!(!place.exists(), "nothing is made");
    let text = instance.run(&format!("agent check --data-dir {}", instance.path().display()))?;
    let kernel = text.lines().any(|line| line.split_whitespace().take(3).eq(["kernel", "fine", "Linux"]));
    ensure!(kernel && text.contains("This machine is fit to run apps"), "{text}");
    Ok(())
}

#[test]
fn what_is_wrong_with_a_disk_or_a_network_is_said_and_fails_where_apps_could_not_run() -> Result<()> {
    let instance = Instance::empty()?;
    // Mounts that nobody else sees, and that end with the process.
    let with = |mount: &str| {
        let mut command = Command::new("unshare");
        let script = format!("mount {mount} \"$1\" && exec \"$2\" agent check -o json --data-dir \"$1\"");
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(instance.path()).arg(binary());
        command
    };
    let (fit, found) = check(&mut with("-t tmpfs none"))?;
    ensure!(!fit, "{found:#?}");
    has(&found, "disk lacks", "is in memory")?;
    let (fit, found) = check(&mut with("-t tmpfs -o ro none"))?;
    ensure!(!fit);
    has(&found, "disk lacks", "is mounted read-only")?;
    let (_, found) = check(&mut with("-t tmpfs -o size=1m none"))?;
    has(&found, "disk lacks", "too little to run at all")?;

    let netns = Netns::new("away")?;
    let mut command = netns::program_in(netns.name(), &binary().display().to_string());
    let (fit, found) = check(command.args(["agent", "check", "-o", "json", "--data-dir"]).arg(instance.path()))?;
    ensure!(fit, "apps run without a network: {found:#?}");
    has(&found, "network poor", "no way out")
}
