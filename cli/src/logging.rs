//! Log lines on stderr, as text for people or JSON for programs.

use tracing_subscriber::{EnvFilter, fmt};

use crate::args::LogFormat;

/// What a role logs unless `HEARTH_LOG` says otherwise: its own doings, and only what is wrong of the libraries
/// below, which tell of every packet and vote. Of heartbeats not even that: of a dead server it would be said many times a second.
pub(crate) const ROLE: &str = "info,openraft=warn,openraft::core::heartbeat=error,iroh=warn,noq=warn,noq_proto=warn,noq_udp=warn,netwatch=warn,hickory_server=warn";

/// Begins to log; `default` is a filter in the syntax of `RUST_LOG`.
pub(crate) fn log_to_stderr(format: LogFormat, default: &str) {
    let filter = EnvFilter::try_from_env("HEARTH_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // A line that cannot be written, on a full disk, is lost; telling so on stderr would panic where it was to be logged.
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
    }
}
