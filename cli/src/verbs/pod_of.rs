//! Which pod `logs` and `exec` mean: a pod, or one of those behind a Deployment or Install.

use anyhow::{Result, bail};
use hearth_types::{kinds::labels, selector::LabelSelector};
use serde_json::Value;

use crate::{
    context::{Context, Selection},
    target::{self, Target},
};

/// The name of the pod, given `NAME`, `pod/NAME` or `KIND/NAME`.
pub(crate) async fn pod_of(context: &Context, argument: &str) -> Result<String> {
    if !argument.contains('/') {
        return Ok(argument.to_owned());
    }
    let target = target::one(argument)?;
    let name = target.name.unwrap_or_default();
    let selector = match target.info.kind {
        "Pod" => return Ok(name.to_owned()),
        "Install" => {
            context.get(target.info, name).await?;
            format!("{}={name}", labels::INSTALL)
        }
        "Deployment" | "ReplicaSet" => {
            let object = context.get(target.info, name).await?.value();
            LabelSelector::from_json(&object["spec"]["selector"]).map_err(anyhow::Error::msg)?.to_string()
        }
        other => bail!("{other} has no pods; name a pod, a Deployment or an Install"),
    };
    first_of(context, &target, &selector).await
}

async fn first_of(context: &Context, target: &Target<'_>, selector: &str) -> Result<String> {
    let (pods, _) =
        context.list(target::kind("pods")?, &Selection { labels: selector, ..Selection::default() }).await?;
    // A running one first, then the newest.
    let rank = |pod: &Value| (pod["status"]["phase"] == "Running", pod["metadata"]["creationTimestamp"].to_string());
    let newest = pods.iter().max_by_key(|pod| rank(&pod.value()));
    match newest {
        Some(pod) => Ok(pod.name().to_owned()),
        None => bail!("{} has no pods", target.info.display_name(target.name.unwrap_or_default())),
    }
}
