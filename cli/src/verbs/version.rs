//! `version`: of this program and of the region.

use anyhow::Result;
use serde_json::json;

use crate::{
    args::{Output, Version},
    context::{Context, refusal},
    output,
};

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Version) -> Result<()> {
    let client = env!("CARGO_PKG_VERSION");
    let structured = match args.output {
        Some(output @ (Output::Json | Output::Yaml)) => Some(output),
        _ => None,
    };
    if structured.is_none() {
        output::line(&format!("Client Version: {client}"));
    }
    let server =
        if args.client { None } else { Some(context.client()?.info().await.map_err(|status| refusal(&status))?) };
    match (structured, server) {
        (Some(output), server) => {
            let server = server.map(|info| {
                json!({"version": info.version, "region": info.region, "zone": info.zone, "incarnation": info.incarnation, "revision": info.revision})
            });
            output::documents(&[json!({"clientVersion": {"version": client}, "serverVersion": server})], false, output)
        }
        (None, Some(info)) => {
            output::line(&format!("Server Version: {} (region {}, zone {})", info.version, info.region, info.zone));
            Ok(())
        }
        (None, None) => Ok(()),
    }
}
