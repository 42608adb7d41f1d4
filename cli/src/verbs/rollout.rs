//! `rollout status`: follows a Deployment until it runs what it asks for.

use anyhow::{Result, bail};
use futures_util::{StreamExt as _, pin_mut};
use hearth_types::{Status, condition};
use serde_json::Value;

use crate::{
    args::RolloutStatus,
    context::{Context, Selection, refusal},
    follow::{self, Change},
    output, target,
};

/// Runs the verb.
pub(crate) async fn status(context: &Context, args: &RolloutStatus) -> Result<()> {
    let targets = target::parse(&args.what)?;
    let [target] = targets.as_slice() else { bail!("rollout status follows one deployment; name one") };
    let Some(name) = target.name else { bail!("rollout status follows one deployment; name it") };
    if target.info.kind != "Deployment" {
        bail!("no status viewer for {}: rollouts are those of Deployments", target.info.plural);
    }
    let followed = follow_status(context, target, name, args.watch);
    if args.timeout.is_zero() {
        return followed.await;
    }
    tokio::time::timeout(args.timeout, followed).await.unwrap_or_else(|_| bail!("timed out waiting for the condition"))
}

async fn follow_status(context: &Context, target: &target::Target<'_>, name: &str, watch: bool) -> Result<()> {
    let fields = format!("metadata.name={name}");
    let selection = Selection { all_namespaces: false, labels: "", fields: &fields };
    let source = context.source(target.info, context.namespace(), &selection)?;
    let changes = follow::anew(source, true);
    pin_mut!(changes);
    let (mut seen, mut told) = (false, String::new());
    while let Some(change) = changes.next().await {
        let object = match change? {
            Change::Added(object) | Change::Modified(object) => object,
            Change::Deleted(_) => bail!("object has been deleted"),
            Change::Listed if seen => continue,
            Change::Listed => return Err(refusal(&Status::not_found(&context.key(target.info, name)))),
        };
        seen = true;
        let (text, done) = progress(&object.value())?;
        // Other changes of the object are no news.
        if text != told {
            output::line(&text);
            told = text;
        }
        if done || !watch {
            return Ok(());
        }
    }
    bail!("the watch ended")
}

/// What to tell of a Deployment, and whether it is rolled out.
fn progress(object: &Value) -> Result<(String, bool)> {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let generation = number("/metadata/generation").unwrap_or_default();
    if number("/status/observedGeneration").unwrap_or_default() < generation {
        return Ok(("Waiting for deployment spec update to be observed...".into(), false));
    }
    if condition::get(object, "Progressing").is_some_and(|one| one.reason == "ProgressDeadlineExceeded") {
        bail!("deployment {name:?} exceeded its progress deadline");
    }
    let count = |field: &str| number(&format!("/status/{field}")).unwrap_or_default();
    let wanted = number("/spec/replicas").unwrap_or(1);
    let (updated, total, available) = (count("updatedReplicas"), count("replicas"), count("availableReplicas"));
    let waiting = |text: String| Ok((format!("Waiting for deployment {name:?} rollout to finish: {text}..."), false));
    if updated < wanted {
        return waiting(format!("{updated} out of {wanted} new replicas have been updated"));
    }
    if total > updated {
        return waiting(format!("{} old replicas are pending termination", total - updated));
    }
    if available < updated {
        return waiting(format!("{available} of {updated} updated replicas are available"));
    }
    Ok((format!("deployment {name:?} successfully rolled out"), true))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_is_told_in_kubectls_words() {
        let deployment = |observed: i64, updated: i64, total: i64, available: i64| {
            json!({"metadata": {"name": "web", "generation": 2}, "spec": {"replicas": 3},
                "status": {"observedGeneration": observed, "updatedReplicas": updated, "replicas": total, "availableReplicas": available}})
        };
        for (object, part, done) in [
            (deployment(1, 3, 3, 3), "spec update to be observed", false),
            (deployment(2, 1, 3, 3), "1 out of 3 new replicas have been updated...", false),
            (deployment(2, 3, 4, 3), "1 old replicas are pending termination...", false),
            (deployment(2, 3, 3, 2), "2 of 3 updated replicas are available...", false),
            (deployment(2, 3, 3, 3), "deployment \"web\" successfully rolled out", true),
        ] {
            let (text, is_done) = progress(&object).expect("progress");
            assert!(text.contains(part), "{text}");
            assert_eq!(is_done, done, "{text}");
        }
    }
}
