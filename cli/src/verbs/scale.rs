//! `scale`: how many replicas run.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::modify::{chosen, modify};
use crate::{
    args::{DryRun, Scale},
    context::Context,
    output,
};

/// The kinds that have replicas.
const SCALABLE: [&str; 3] = ["Deployment", "ReplicaSet", "Install"];

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Scale) -> Result<()> {
    let mut errors = Vec::new();
    for (info, key) in chosen(context, &args.what, None, false).await? {
        if !SCALABLE.contains(&info.kind) {
            bail!("{} cannot be scaled; Deployments, ReplicaSets and Installs can", info.plural);
        }
        let make = |object: &Value| {
            let current = object["spec"]["replicas"].as_i64().unwrap_or(1);
            if args.current_replicas >= 0 && current != args.current_replicas {
                bail!("Expected replicas to be {}, was {current}", args.current_replicas);
            }
            Ok((current != args.replicas).then(|| json!({"spec": {"replicas": args.replicas}})))
        };
        match modify(context, &key, DryRun::None, make).await {
            Ok(_) => output::line(&format!("{} scaled", info.display_name(&key.name))),
            Err(error) => errors.push(error),
        }
    }
    output::failures(&errors)
}
