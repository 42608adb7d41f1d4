//! The page by which an owner sees in a browser what they have, when something of it is away.

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};

#[test]
fn an_owner_sees_in_a_browser_what_they_have_and_what_is_away_and_nobody_else_does() -> Result<()> {
    let instance = Instance::up("notes")?;
    instance.wait_ready("notes", "alice")?;
    let link = instance.run("token create --status --owner alice")?;
    let (host, path) = link.trim().strip_prefix("https://").and_then(|rest| rest.split_once('/')).context("a link")?;
    let (host, port) = host.rsplit_once(':').context("the gateway's port")?;
    ensure!(host == "status.hearth.internal" && instance.address("gateway")?.ends_with(&format!(":{port}")), "{link}");
    let jar = instance.path().join("cookies").display().to_string();
    let see = |path: &str, more: &[&str]| {
        command::succeed(&mut instance.curl(host, path, &[more, &["-i", "-b", &jar, "-c", &jar]].concat())?)
    };
    let locked = see("/", &[])?;
    ensure!(locked.starts_with("HTTP/2 401") && !locked.contains("alice"), "{locked}");

    let entered = see(&format!("/{path}"), &[])?;
    ensure!(entered.starts_with("HTTP/2 303") && entered.contains("\r\nlocation: /\r\n"), "{entered}");
    let page = instance.eventually("the page says that all is well", || {
        let page = see("/", &[])?;
        ensure!(page.contains("<b>notes</b>: running on "), "{page}");
        Ok(page)
    })?;
    for part in [
        "HTTP/2 200",
        "cache-control: no-store",
        "default-src 'none'",
        ": here since 2",
        "https://notes.alice.hearth.internal",
    ] {
        ensure!(page.contains(part), "{part}: {page}");
    }
    let refused = see("/", &["-X", "POST"])?;
    ensure!(refused.starts_with("HTTP/2 405"), "{refused}");
    // Whoever has another's token for joining, or none that was made here, sees nothing.
    let joins = instance.run("token create --owner alice")?;
    for token in [joins.trim(), "aaaaaaaaaa.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "%3Cscript%3E"] {
        let refused = see(&format!("/in/{token}"), &[])?;
        ensure!(refused.starts_with("HTTP/2 403") && !refused.contains("set-cookie"), "{refused}");
    }

    // The device goes away: its agent is killed, and nobody starts it again meanwhile.
    // What they start has their command line for a moment.
    let (agent, supervisor) = instance.eventually("one agent and its supervisor", || {
        match (&instance.pids(" agent ")[..], &instance.pids(" up ")[..]) {
            ([agent], [supervisor]) => Ok((*agent, *supervisor)),
            other => anyhow::bail!("{other:?}"),
        }
    })?;
    let signal = |name: &str, pid: u32| command::run("kill", [name, &pid.to_string()]);
    signal("-STOP", supervisor)?;
    signal("-KILL", agent)?;
    let away = instance.eventually("the page says that the device is away", || {
        let page = see("/", &[])?;
        ensure!(page.contains(": away since 2"), "{page}");
        Ok(page)
    });
    signal("-CONT", supervisor)?;
    let away = away?;
    ensure!(away.contains("ago)") || away.contains("(just now)"), "{away}");

    let id = path.strip_prefix("in/").and_then(|token| token.split_once('.')).context("a token")?.0;
    ensure!(instance.run("token ls")?.lines().any(|line| line.starts_with(id) && line.contains("status page")));
    instance.run(&format!("token delete {id}"))?;
    let refused = see("/", &[])?;
    ensure!(refused.starts_with("HTTP/2 403") && !refused.contains("alice"), "{refused}");
    Ok(())
}
