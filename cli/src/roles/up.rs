//! `up`: a region and one device on this machine, with an example to begin with.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{example, process, process_logs, signals, status, supervisor};
use crate::{
    args::Up,
    context::Context,
    data_dir::{DataDir, Report, Role, ServerReport, UpReport},
    output,
};

/// How long server and agent may take to answer: a store with a long log is read within seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the report of a process in the background is looked for.
const POLL: Duration = Duration::from_millis(10);

/// Runs the verb.
pub(crate) async fn main(args: &Up) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "hearth up must run as root: its device makes containers, network links and cgroups. Try: sudo hearth up"
        );
    }
    let example = example::find(&args.example)?;
    let data = DataDir::create(&args.dir.data_dir)?;
    process::name_data_dir("up", &data)?;
    if args.supervise {
        return supervise_in_background(&data, args).await;
    }
    let started = Instant::now();
    let installing = async {
        let server = wait_ready(&data).await?;
        say(started, &format!("region {} answers at {} (zone {})", server.region, server.api, server.zone));
        let context = Context::new(Some(data.client_config()), Some(args.owner.clone()));
        let url =
            example::install(&context, &data, &server, example.as_ref(), &mut |text: &str| say(started, text)).await?;
        tell(&data, &server, url.as_deref());
        Ok::<(), anyhow::Error>(())
    };
    if args.detach {
        refuse_second(&data)?;
        spawn_background(&data, args)?;
        return installing.await;
    }
    let shutdown = signals::shutdown()?;
    let supervising = supervisor::run(supervisor::take(&data)?, &data, args, shutdown.clone());
    tokio::pin!(supervising);
    tokio::select! {
        ended = &mut supervising => return ended,
        installed = installing => {
            if let Err(error) = installed {
                shutdown.cancel();
                supervising.await?;
                return Err(error);
            }
        }
    }
    output::line("press Ctrl-C to stop the region and the agent; apps go on until `hearth down`");
    supervising.await
}

fn say(started: Instant, text: &str) {
    output::note(&format!("[{:5.1} s] {text}", started.elapsed().as_secs_f64()));
}

fn refuse_second(data: &DataDir) -> Result<()> {
    // The process in the background takes the lock itself; this only gives the reason early and plainly.
    data.lock(Role::Up).map(drop)
}

fn spawn_background(data: &DataDir, args: &Up) -> Result<()> {
    data.clear_report(Role::Up)?;
    let out = process_logs::open(data, Role::Up)?;
    process::program()
        .args(["up", "--data-dir"])
        .arg(data.root())
        .args(["--supervise", "--zone", &args.zone, "--example", "none", "--owner", &args.owner])
        .args(args.device.iter().flat_map(|name| ["--device", name]))
        .args(["--listen-device-metrics", &args.listen_device_metrics])
        .args(supervisor::listen_arguments(&args.listen))
        .args(args.give.arguments())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("cannot share the log")?)
        .stderr(out)
        .spawn()
        .context("cannot start the process in the background")?;
    Ok(())
}

async fn supervise_in_background(data: &DataDir, args: &Up) -> Result<()> {
    // A session of its own: the terminal's end does not reach it.
    rustix::process::setsid().context("cannot leave the terminal's session")?;
    let shutdown = signals::shutdown()?;
    let ended = match supervisor::take(data) {
        Ok(lock) => supervisor::run(lock, data, args, shutdown).await,
        Err(error) => Err(error),
    };
    if let Err(error) = &ended {
        data.write_report::<UpReport>(Role::Up, &Report::Failed(format!("{error:#}")))?;
    }
    ended
}

/// Waits for the report of the supervisor.
async fn wait_ready(data: &DataDir) -> Result<ServerReport> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match data.report::<UpReport>(Role::Up) {
            Some(Report::Ready(_)) => break,
            Some(Report::Failed(why)) => bail!("{why}"),
            None if Instant::now() > deadline => bail!(
                "server and agent did not answer within {} s; see the logs in {}",
                START_TIMEOUT.as_secs(),
                data.log(Role::Up).parent().unwrap_or(data.root()).display()
            ),
            None => tokio::time::sleep(POLL).await,
        }
    }
    match data.report::<ServerReport>(Role::Server) {
        Some(Report::Ready(server)) => Ok(server),
        _ => bail!("the server stopped again; see {}", data.log(Role::Server).display()),
    }
}

fn tell(data: &DataDir, server: &ServerReport, url: Option<&str>) {
    let default = data.root() == std::path::Path::new(crate::args::DEFAULT_DATA_DIR);
    let program = std::env::current_exe().map_or_else(|_| "hearth".into(), |path| path.display().to_string());
    let config = if default { String::new() } else { format!(" --config {}", data.client_config().display()) };
    let dir = if default { String::new() } else { format!(" --data-dir {}", data.root().display()) };
    let device = status::now(data)["device"].as_str().unwrap_or_default().to_owned();
    output::line(&format!("\nregion {} and device {device} are up", server.region));
    if let Some(url) = url {
        let host = url.trim_start_matches("https://").split([':', '/']).next().unwrap_or_default();
        let port = server.gateway.port();
        let gateway = example::reachable(server.gateway).ip();
        output::line(&format!("\n  {url}\n"));
        output::line(&format!("  curl --cacert {} --resolve {host}:{port}:{gateway} {url}\n", data.ca().display()));
    }
    output::line(&format!("look around:  {program} get all -A{config}"));
    output::line(&format!("stop it all:  {program} down{dir}"));
}
