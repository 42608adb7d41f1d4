//! `server`: the process of a region's server.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs as _},
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{composition, process, signals};
use crate::{
    args::Server,
    data_dir::{DataDir, Report, Role, ServerReport},
};

/// Runs the role until SIGTERM or SIGINT.
pub(crate) async fn main(args: &Server) -> Result<()> {
    let data = DataDir::create(&args.dir.data_dir)?;
    process::name_data_dir("server", &data)?;
    if let Some(parent) = args.supervised {
        signals::end_with_parent(parent)?;
    }
    let _lock = data.lock(Role::Server)?;
    data.clear_report(Role::Server)?;
    let shutdown = signals::shutdown()?;
    let ready = |report: &ServerReport| {
        tracing::info!(region = %report.region, zone = %report.zone, api = %report.api, gateway = %report.gateway, dns = %report.dns, "ready");
        data.write_report(Role::Server, &Report::Ready(report.clone()))
    };
    let ended = composition::run_server(&data, args, shutdown, ready).await;
    match &ended {
        Ok(()) => data.clear_report(Role::Server)?,
        Err(error) => data.write_report::<ServerReport>(Role::Server, &Report::Failed(format!("{error:#}")))?,
    }
    ended
}

/// The address that an argument names.
pub(super) fn address(flag: &str, text: &str) -> Result<SocketAddr> {
    let found =
        text.to_socket_addrs().with_context(|| format!("{flag} {text:?}: must be HOST:PORT, as 127.0.0.1:7443"))?;
    found.into_iter().next().with_context(|| format!("{flag} {text:?}: the host has no address"))
}

/// Binds a TCP port, and says which flag chooses another where that fails.
pub(super) async fn bind(flag: &str, what: &str, text: &str) -> Result<tokio::net::TcpListener> {
    let address = address(flag, text)?;
    tokio::net::TcpListener::bind(address).await.map_err(|error| cannot_listen(flag, what, address, &error))
}

/// Why a port cannot be had, and what to do.
pub(super) fn cannot_listen(
    flag: &str,
    what: &str,
    address: SocketAddr,
    error: &(dyn std::error::Error + 'static),
) -> anyhow::Error {
    let chain = std::iter::successors(Some(error), |error| error.source());
    let kind = chain.filter_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind).next();
    match kind.unwrap_or(io::ErrorKind::Other) {
        io::ErrorKind::AddrInUse => anyhow!(
            "cannot listen on {address} for {what}: the port is in use by another program; choose another with {flag} HOST:PORT (port 0 picks a free one)"
        ),
        io::ErrorKind::AddrNotAvailable => {
            anyhow!(
                "cannot listen on {address} for {what}: this machine does not have that address; choose one it has with {flag}"
            )
        }
        _ => anyhow!("cannot listen on {address} for {what}: {error}; choose another with {flag}"),
    }
}

/// The addresses at which others reach a socket: the one it listens on, else those that were advertised.
pub(super) fn advertised(listen: SocketAddr, advertise: &[std::net::IpAddr]) -> Result<Vec<SocketAddr>> {
    if !listen.ip().is_unspecified() {
        return Ok(vec![listen]);
    }
    if advertise.is_empty() {
        bail!("{listen} means every address: say with --advertise IP at which one others reach this server");
    }
    Ok(advertise.iter().map(|ip| SocketAddr::new(*ip, listen.port())).collect())
}
