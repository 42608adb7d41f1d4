//! Supervises `hearth server` and `hearth agent`: starts both, joins the device the first time, and starts
//! again what ends, until told to stop.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hearth_client::{Client, Config};
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::{
    args::{GATEWAY, Listen, Up},
    data_dir::{AgentReport, DataDir, Lock, Report, Role, ServerReport, UpReport},
    roles::{process, process_logs},
    verbs,
};

/// How long a started process may take to report.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often its report is looked for.
const POLL: Duration = Duration::from_millis(5);
/// The pause before a process that ended is started again; doubles each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest pause.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A process that ran this long starts anew without a pause.
const STABLE: Duration = Duration::from_secs(30);
/// How long a process gets to stop, beside the time in which a gateway's answers go on.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the lock of a supervisor that was just killed may still be held by its children.
const LOCK_WAIT: Duration = Duration::from_secs(15);

/// Where a server shall listen, as arguments.
pub(super) fn listen_arguments(listen: &Listen) -> Vec<String> {
    let pairs = [
        ("--listen-api", &listen.listen_api),
        ("--listen-gateway", &listen.listen_gateway),
        ("--listen-dns", &listen.listen_dns),
        ("--listen-metrics", &listen.listen_metrics),
    ];
    let tunnel = listen.listen_tunnel.iter().map(|value| ("--listen-tunnel", value.clone()));
    let advertise = listen.advertise.iter().map(|ip| ("--advertise", ip.to_string()));
    let locations = listen.dns_locations.iter().map(|path| ("--dns-locations", path.display().to_string()));
    let ports = listen.port_range.iter().map(|range| ("--port-range", format!("{}-{}", range.start(), range.end())));
    let resolver = listen.resolver.iter().map(|address| ("--resolver", address.to_string()));
    let pairs = pairs.into_iter().map(|(flag, value)| (flag, value.clone()));
    let relay = listen.listen_relay.iter().map(|value| ("--listen-relay", value.clone()));
    let lease = [("--volume-lease", listen.volume_lease), ("--drain", listen.drain)];
    let lease = lease.map(|(flag, duration)| (flag, format!("{}ms", duration.as_millis())));
    pairs
        .chain(lease)
        .chain(tunnel)
        .chain(relay)
        .chain(advertise)
        .chain(locations)
        .chain(ports)
        .chain(resolver)
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
}

/// Takes the instance, and forgets what the last one reported.
pub(super) fn take(data: &DataDir) -> Result<Lock> {
    let lock = data.lock(Role::Up)?;
    data.clear_report(Role::Up)?;
    Ok(lock)
}

/// Runs until told to stop, or until a process cannot be started at all.
pub(super) async fn run(_lock: Lock, data: &DataDir, args: &Up, shutdown: CancellationToken) -> Result<()> {
    wait_unlocked(data).await?;
    let mut listen = args.listen.clone();
    let (server, report) = start_server(data, args, &listen).await?;
    // A port that was picked stays the same for as long as this runs.
    fix(&mut listen, &report);
    join_once(data, args, &report).await?;
    let mut metrics = args.listen_device_metrics.clone();
    let patience = args.listen.drain + STOP_TIMEOUT;
    let (agent, agent_report) = match start_agent(data, args, &report, &metrics).await {
        Ok(started) => started,
        Err(error) => {
            stop("server", server, patience).await;
            return Err(error);
        }
    };
    if let Some(address) = agent_report.metrics {
        metrics = address.to_string();
    }
    data.write_report(Role::Up, &Report::Ready(UpReport { pid: std::process::id() }))?;
    // Neither waits for the other: a server that does not start again holds up no device.
    let agent_gone = CancellationToken::new();
    let agent = async {
        let again = || spawn(data, Role::Agent, &agent_arguments(args, &report, &metrics));
        keep("agent", agent, again, STOP_TIMEOUT, &shutdown).await;
        agent_gone.cancel();
    };
    let again = || spawn(data, Role::Server, &server_arguments(args, &listen));
    tokio::select! {
        ((), ()) = async { tokio::join!(agent, keep("server", server, again, patience, &agent_gone)) } => {}
        () = process_logs::rotate(data) => {}
    }
    data.clear_report(Role::Up)
}

/// A supervisor that was killed leaves children that are just stopping.
async fn wait_unlocked(data: &DataDir) -> Result<()> {
    let deadline = Instant::now() + LOCK_WAIT;
    for role in [Role::Server, Role::Agent] {
        while data.is_locked(role) {
            if Instant::now() > deadline {
                data.lock(role)?; // says who holds it and what to do
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

fn fix(listen: &mut Listen, report: &ServerReport) {
    if listen.listen_api != GATEWAY {
        listen.listen_api = report.api.to_string();
    }
    listen.listen_gateway = report.gateway.to_string();
    listen.listen_dns = report.dns.to_string();
    listen.listen_metrics = report.metrics.to_string();
    listen.listen_tunnel = Some(report.tunnel.to_string());
    if listen.listen_relay.as_deref() != Some(GATEWAY) {
        listen.listen_relay = report.relay.map(|relay| relay.to_string());
    }
}

fn server_arguments(args: &Up, listen: &Listen) -> Vec<String> {
    let mut arguments = vec!["--zone".to_owned(), args.zone.clone()];
    arguments.extend(listen_arguments(listen));
    arguments
}

fn agent_arguments(args: &Up, server: &ServerReport, metrics: &str) -> Vec<String> {
    let api = super::example::reachable(server.api).to_string();
    let mut arguments = vec!["--server".to_owned(), api, "--listen-metrics".to_owned(), metrics.to_owned()];
    arguments.extend(args.give.arguments());
    arguments
}

async fn start_server(data: &DataDir, args: &Up, listen: &Listen) -> Result<(Child, ServerReport)> {
    start(data, Role::Server, &server_arguments(args, listen)).await
}

async fn start_agent(data: &DataDir, args: &Up, server: &ServerReport, metrics: &str) -> Result<(Child, AgentReport)> {
    start(data, Role::Agent, &agent_arguments(args, server, metrics)).await
}

/// Starts the process of a role; what it says goes to its log.
fn spawn(data: &DataDir, role: Role, arguments: &[String]) -> Result<Child> {
    data.clear_report(role)?;
    let out = process_logs::open(data, role)?;
    Command::from(process::program())
        .args([role.name(), "--data-dir"])
        .arg(data.root())
        .args(arguments)
        .args(["--supervised", &std::process::id().to_string()])
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("cannot share the log")?)
        .stderr(out)
        .kill_on_drop(false)
        .spawn()
        .with_context(|| format!("cannot start hearth {}", role.name()))
}

/// Starts a process and waits until it answers.
async fn start<T: DeserializeOwned>(data: &DataDir, role: Role, arguments: &[String]) -> Result<(Child, T)> {
    let mut child = spawn(data, role, arguments)?;
    let (verb, log) = (role.name(), data.log(role));
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let ended = child.try_wait().with_context(|| format!("cannot watch hearth {verb}"))?;
        match data.report::<T>(role) {
            Some(Report::Ready(report)) => return Ok((child, report)),
            Some(Report::Failed(why)) if ended.is_some() => bail!("{why}"),
            _ => {}
        }
        if let Some(status) = ended {
            bail!("hearth {verb} ended at once ({status}); see {}", log.display());
        }
        if Instant::now() > deadline {
            child.kill().await.ok();
            bail!("hearth {verb} did not answer within {} s; see {}", START_TIMEOUT.as_secs(), log.display());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The first time, makes this machine a device of the owner, as any device joins: by a token.
async fn join_once(data: &DataDir, args: &Up, server: &ServerReport) -> Result<()> {
    if hearth_agent::Identity::load(data.root())?.is_some() {
        return Ok(());
    }
    let client = Client::connect(&Config::load(&data.client_config())?)?;
    let token = client.create_token(&args.owner, Duration::from_secs(600)).await.context("cannot make a join token")?;
    let api = super::example::reachable(server.api).to_string();
    let name = args.device.as_deref();
    verbs::join::join(data, &token.token, Some(&args.owner), name, Some(&api))
        .await
        .context("cannot join this machine to its region")?;
    Ok(())
}

/// Starts a process again whenever it ended, after a pause, until told to stop; then stops it.
async fn keep(
    what: &'static str,
    mut child: Child,
    again: impl Fn() -> Result<Child>,
    patience: Duration,
    until: &CancellationToken,
) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let since = Instant::now();
        let status = tokio::select! {
            () = until.cancelled() => return stop(what, child, patience).await,
            status = child.wait() => status,
        };
        if since.elapsed() > STABLE {
            backoff = FIRST_BACKOFF;
        }
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        tracing::warn!(%status, pause = ?backoff, "hearth {what} ended; starting it again");
        child = loop {
            tokio::select! {
                () = until.cancelled() => return,
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
            match again() {
                Ok(child) => break child,
                Err(error) => tracing::error!(pause = ?backoff, "{error:#}"),
            }
        };
    }
}

async fn stop(what: &'static str, mut child: Child, patience: Duration) {
    use rustix::process::{Pid, Signal, kill_process};
    let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) else { return };
    // The child is not reaped yet, so the pid is its own.
    let _ = kill_process(pid, Signal::TERM);
    if tokio::time::timeout(patience, child.wait()).await.is_err() {
        tracing::warn!(pid = pid.as_raw_nonzero(), "hearth {what} did not stop in time; killing it");
        let _ = child.kill().await;
    }
}
