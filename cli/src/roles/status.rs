//! `status`: what runs from a data directory, and where it answers.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::{
    args::{LookArgs, Output},
    data_dir::{AgentReport, DataDir, RelayReport, Report, Role, ServerReport},
    output::{self, table},
};

/// What runs now; `Null` for a part that does not.
pub(crate) fn now(data: &DataDir) -> Value {
    let server = data.is_locked(Role::Server).then(|| data.report::<ServerReport>(Role::Server)).flatten();
    let agent = data.is_locked(Role::Agent).then(|| data.report::<AgentReport>(Role::Agent)).flatten();
    let server = match server {
        Some(Report::Ready(server)) => Some(server),
        _ => None,
    };
    let agent = match agent {
        Some(Report::Ready(agent)) => Some(agent),
        _ => None,
    };
    let relay = data.is_locked(Role::Relay).then(|| data.report::<RelayReport>(Role::Relay)).flatten();
    let relay = match relay {
        Some(Report::Ready(relay)) => Some(relay),
        _ => None,
    };
    let text = |address: std::net::SocketAddr| Value::String(address.to_string());
    json!({
        "region": server.as_ref().map(|one| &one.region).or(relay.as_ref().map(|one| &one.region)),
        "zone": server.as_ref().map(|one| one.zone.clone()),
        "api": server.as_ref().map(|one| text(one.api)),
        "gateway": server.as_ref().map(|one| text(one.gateway)),
        "dns": server.as_ref().map(|one| text(one.dns)),
        "metrics": server.as_ref().map(|one| one.metrics).or(relay.as_ref().map(|one| one.metrics)).map(text),
        "tunnel": server.as_ref().map(|one| text(one.tunnel)),
        "relay": server.as_ref().and_then(|one| one.relay).or(relay.as_ref().map(|one| one.relay)).map(text),
        "relayName": relay.as_ref().map(|one| &one.name),
        "relayUrl": relay.as_ref().map(|one| &one.url),
        "device": agent.as_ref().map(|one| one.device.clone()),
        "deviceMetrics": agent.as_ref().and_then(|one| one.metrics).map(text),
        "pids": {
            "server": server.as_ref().map(|one| one.pid),
            "agent": agent.as_ref().map(|one| one.pid),
            "relay": relay.as_ref().map(|one| one.pid),
        },
        "dataDir": data.root(),
        "instance": data.instance().as_str(),
        "supervised": data.is_locked(Role::Up),
    })
}

/// Runs the verb: fails where nothing runs.
pub(crate) fn run(args: &LookArgs) -> Result<()> {
    let data = DataDir::existing(&args.dir.data_dir)?;
    let status = now(&data);
    if ["api", "device", "relay"].iter().all(|part| status[part].is_null()) {
        bail!("nothing runs from {}; start it with `hearth up --data-dir {0}`", data.root().display());
    }
    if let Some(output @ (Output::Json | Output::Yaml)) = args.output {
        return output::documents(&[status], false, output);
    }
    let rows = [
        ("REGION", "region"),
        ("ZONE", "zone"),
        ("API", "api"),
        ("GATEWAY", "gateway"),
        ("DNS", "dns"),
        ("RELAY", "relay"),
        ("METRICS", "metrics"),
        ("DEVICE", "device"),
        ("DEVICE METRICS", "deviceMetrics"),
        ("DATA", "dataDir"),
    ];
    let rows: Vec<_> = rows
        .iter()
        .map(|(name, field)| vec![(*name).to_owned(), status[field].as_str().unwrap_or("not running").to_owned()])
        .collect();
    output::lines(&table::layout(&rows));
    Ok(())
}
