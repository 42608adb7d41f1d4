//! `agent`: the process of a device's agent.

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hearth_agent::AgentExit;
use hearth_runtime::Zygote;

use super::{SystemClock, metrics, process, server, signals};
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
    let data = DataDir::create(&args.dir.data_dir)?;
    process::name_data_dir("agent", &data)?;
    if let Some(parent) = args.supervised {
        signals::end_with_parent(parent)?;
    }
    let begin = Instant::now();
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
            let over = Over::after(begin.elapsed());
            tracing::warn!(pause = ?over.pause(), "starting over as the same process; containers go on");
            std::thread::sleep(over.pause());
            drop(lock);
            let words = std::env::args_os().skip(1);
            let error = process::program().args(words).env(Over::VARIABLE, over.0.to_string()).exec();
            Err(error).context("cannot start over")
        }
    }
}

/// How often the agent has started over in a row: what breaks it at every start must not make it spin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Over(u32);

impl Over {
    /// Carries the number through the execution.
    const VARIABLE: &str = "HEARTH_AGENT_OVER";
    /// An agent that ran so long was well.
    const STABLE: Duration = Duration::from_secs(30);
    const FIRST_PAUSE: Duration = Duration::from_millis(50);
    const MAX_PAUSE: Duration = Duration::from_secs(10);

    /// One more, after a run of this length.
    fn after(ran: Duration) -> Self {
        let before = std::env::var(Self::VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        Self(before).next(ran)
    }

    fn next(self, ran: Duration) -> Self {
        if ran >= Self::STABLE { Self(1) } else { Self(self.0.saturating_add(1)) }
    }

    /// How long to wait: not at all the first time, when most likely the zygote was killed.
    fn pause(self) -> Duration {
        match self.0 {
            0 | 1 => Duration::ZERO,
            more => Self::FIRST_PAUSE.saturating_mul(1 << (more - 2).min(16)).min(Self::MAX_PAUSE),
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
        host_paths: args.give.host_paths.clone(),
        lan_port: args.give.lan_port,
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
    let ready = || {
        if let Err(error) = data.write_report(Role::Agent, &Report::Ready(report)) {
            tracing::error!("{error:#}; nobody will know that the agent runs");
        }
    };
    Ok(agent.run(shutdown.cancelled_owned(), ready).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starting_over_again_and_again_slows_down() {
        let mut over = Over(0);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            over = over.next(Duration::from_secs(1));
            pauses.push(over.pause());
        }
        assert_eq!(pauses[0], Duration::ZERO);
        assert!(pauses.is_sorted());
        assert_eq!(pauses[11], Over::MAX_PAUSE);
        assert_eq!(over.next(Over::STABLE).pause(), Duration::ZERO);
    }
}
