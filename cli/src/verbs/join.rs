//! `join`: makes this machine a device of an owner.

use anyhow::{Result, bail};

use crate::{args::Join, context::now, data_dir::DataDir, output};

/// Runs the verb.
pub(crate) async fn run(args: &Join) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("hearth join must run as root: it writes the device's key, which only root may read");
    }
    let data = DataDir::create(&args.dir.data_dir)?;
    let (device, owner) =
        join(&data, &args.token, args.owner.as_deref(), args.name.as_deref(), args.server.as_deref()).await?;
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
    let options = hearth_agent::JoinOptions {
        data_dir: data.root().to_owned(),
        token: token.to_owned(),
        name: name.map(str::to_owned),
        owner: owner.map(str::to_owned),
        server: server.map(str::to_owned),
        now: now(),
    };
    let joined = hearth_agent::join(options).await?;
    Ok((joined.device.to_string(), joined.owner))
}
