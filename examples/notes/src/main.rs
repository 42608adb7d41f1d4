//! Notes: a small web app that keeps notes on its volume.
//!
//! Environment: `PORT` (default 8080), `NOTES_DATA` (default `/data`), `RUST_LOG` (default `info`). It listens on all addresses, IPv6 and
//! IPv4, and stops within ten seconds of SIGTERM, requests under way answered.

mod http;
mod store;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long requests under way may take after SIGTERM. A pod has 30 seconds by default before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// Why the app does not run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("PORT {0:?} is not a port: use 0 to 65535")]
    Port(String),
    #[error("{0}")]
    Store(#[from] store::StoreError),
    #[error("cannot listen on port {0}: {1}")]
    Listen(u16, std::io::Error),
    #[error("cannot wait for signals: {0}")]
    Signal(std::io::Error),
    #[error("cannot serve: {0}")]
    Serve(std::io::Error),
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), StartError> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "8080".into());
    let port: u16 = port.parse().map_err(|_| StartError::Port(port))?;
    let data = std::env::var_os("NOTES_DATA").map_or_else(|| PathBuf::from("/data"), PathBuf::from);
    let store = store::Store::open(&data)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signal)?;
    let listener = listen(port).await.map_err(|error| StartError::Listen(port, error))?;
    let address = listener.local_addr().map_err(|error| StartError::Listen(port, error))?;
    tracing::info!(%address, data = %data.display(), notes = store.list().len(), "listening");

    let (stop, stopped) = tokio::sync::watch::channel(());
    let mut stopping = stopped.clone();
    let service = http::router(store).into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, service).with_graceful_shutdown(async move { drop(stopping.changed().await) });
    let deadline = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
        drop(stop);
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = async { server.await } => result.map_err(StartError::Serve)?,
        () = deadline => tracing::warn!("requests were still under way after {} s", GRACE.as_secs()),
    }
    tracing::info!("stopped");
    Ok(())
}

/// One socket for IPv6 and IPv4, or IPv4 alone where the kernel has no IPv6.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        other => other,
    }
}
