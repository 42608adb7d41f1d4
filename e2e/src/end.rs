//! What the programs share that are one end of something for a test or benchmark, and speak lines of JSON with it.

#![allow(clippy::print_stdout)] // lines for who started it

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Prepares the process; its arguments. What it logs (`HEARTH_LOG`) goes to stderr.
pub fn begin() -> Result<Vec<String>> {
    rustls::crypto::ring::default_provider().install_default().ok().context("the provider")?;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("HEARTH_LOG"))
        .with_writer(std::io::stderr)
        .init();
    Ok(std::env::args().skip(1).collect())
}

/// Says a line.
pub fn say(value: &Value) {
    println!("{value}");
}
