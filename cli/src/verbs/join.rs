//! `join`: makes this machine a device of an owner.

use anyhow::{Context as _, Result, bail};

use crate::{args::Join, data_dir::DataDir, output};

/// Runs the verb.
pub(crate) async fn run(args: &Join) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("hearth join must run as root: it writes the device's key, which only root may read");
    }
    let data = DataDir::create(&args.dir.data_dir)?;
    let (device, owner) = join(&data, &args.token, args.owner.as_deref(), args.name.as_deref(), args.server.as_deref()).await?;
    output::line(&format!("this machine is now the device {device} of {owner}"));
    output::line(&format!("start it with: hearth agent --data-dir {}", data.root().display()));
    Ok(())
}

/// Joins, and returns the device's and the owner's name. Doing it again with the same token is harmless.
pub(crate) async fn join(
    data: &DataDir,
    token: &str,
    owner: Option<&str>,
    name: Option<&str>,
    server: Option<&str>,
) -> Result<(String, String)> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => machine_name()?,
    };
    let options = hearth_agent::JoinOptions {
        data_dir: data.root().to_owned(),
        token: token.to_owned(),
        name,
        owner: owner.unwrap_or_default().to_owned(),
        server: server.map(str::to_owned),
    };
    let identity = hearth_agent::join(&options).await?;
    Ok((identity.device.to_string(), identity.owner))
}

/// This machine's name as a DNS label.
fn machine_name() -> Result<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let label: String = name.split('.').next().unwrap_or_default().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let label = label.trim_matches('-').chars().take(hearth_types::names::MAX_LABEL).collect::<String>();
    hearth_types::names::dns_label(&label).map_err(anyhow::Error::msg).with_context(|| format!("this machine's name {name:?} is no device name; give one with --name"))?;
    Ok(label)
}
