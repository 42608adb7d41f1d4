//! `agent`: the process of a device's agent.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context as _, Result, bail};
use hearth_agent::AgentExit;
use hearth_runtime::Zygote;

use super::{SystemClock, metrics, server, signals};
use crate::{
    args::{Agent, LogFormat},
    data_dir::{AgentReport, DataDir, Report, Role},
    logging,
};

/// Runs the role until SIGTERM or SIGINT. Must be called while the process has one thread: it forks the
/// zygote before the async runtime starts and before any key is read.
pub(crate) fn main(args: &Agent, log_format: LogFormat) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("hearth agent must run as root: it makes containers, network links and cgroups");
    }
    if args.supervised {
        signals::end_with_parent()?;
    }
    let data = DataDir::create(&args.dir.data_dir)?;
    let lock = data.lock(Role::Agent)?;
    data.clear_report(Role::Agent)?;
    let started = start(&data, args, log_format);
    let exit = match started {
        Ok(exit) => exit,
        Err(error) => {
            data.write_report::<AgentReport>(Role::Agent, &Report::Failed(format!("{error:#}")))?;
            return Err(error);
        }
    };
    data.clear_report(Role::Agent)?;
    match exit {
        AgentExit::Stopped => Ok(ExitCode::SUCCESS),
        AgentExit::Reexec => {
            tracing::warn!("the zygote is gone: starting over as the same process; containers go on");
            drop(lock);
            // The file may have been replaced by an update; the link leads to what runs now otherwise.
            let program = std::env::current_exe().context("cannot find this program's file")?;
            let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).exec();
            Err(error).context("cannot start over")
        }
    }
}

fn start(data: &DataDir, args: &Agent, log_format: LogFormat) -> Result<AgentExit> {
    let instance = data.instance();
    let zygote = hearth_runtime::fork_zygote(&hearth_agent::zygote_config(data.root(), &instance))
        .context("cannot fork the zygote")?;
    // Only now: what the zygote's children would log goes where containers log.
    logging::log_to_stderr(log_format, logging::ROLE);
    rustls::crypto::ring::default_provider().install_default().ok().context("cannot install the TLS provider")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the async runtime")?;
    runtime.block_on(run(data, args, zygote))
}

async fn run(data: &DataDir, args: &Agent, zygote: Zygote) -> Result<AgentExit> {
    let shutdown = signals::shutdown()?;
    let registry = metrics::registry()?;
    let listener = match &args.listen_metrics {
        Some(text) => Some(server::bind("--listen-metrics", "the device's metrics", text).await?),
        None => None,
    };
    let address =
        listener.as_ref().map(tokio::net::TcpListener::local_addr).transpose().context("the metrics' own address")?;
    let agent = hearth_agent::Agent::new(hearth_agent::Config {
        data_dir: data.root().to_owned(),
        instance: data.instance(),
        server: args.server.clone(),
        zygote,
        clock: Arc::new(SystemClock),
        registry: registry.clone(),
        resolv_conf: PathBuf::from("/etc/resolv.conf"),
    })?;
    if let Some(listener) = listener {
        let stop = shutdown.clone();
        tokio::spawn(async move {
            if let Err(error) = metrics::serve(listener, registry, stop).await {
                tracing::warn!("metrics are not served any more: {error}");
            }
        });
    }
    let report = AgentReport { pid: std::process::id(), device: agent.handle().device().to_string(), metrics: address };
    data.write_report(Role::Agent, &Report::Ready(report))?;
    Ok(agent.run(shutdown.cancelled_owned()).await?)
}
