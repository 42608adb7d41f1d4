//! Which pod and container `logs`, `exec` and the like mean: a pod, or one of those behind a Deployment, Install or Service.

use anyhow::{Result, bail};
use hearth_types::{Object, kinds::labels, selector::LabelSelector};
use serde_json::Value;

use crate::{
    context::{Context, Selection},
    output,
    target::{self, Target},
};

/// The annotation of a pod that names the container that is meant where none is.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The pod, given `NAME`, `pod/NAME` or `KIND/NAME`.
pub(crate) async fn pod_of(context: &Context, argument: &str) -> Result<Object> {
    let pods = target::kind("pods")?;
    if !argument.contains('/') {
        return context.get(pods, argument).await;
    }
    let target = target::one(argument)?;
    let name = target.name.unwrap_or_default();
    if target.info.kind == "Pod" {
        return context.get(pods, name).await;
    }
    let selector = selector_of(context, &target).await?;
    let (pods, _) = context.list(pods, &Selection { labels: &selector, ..Selection::default() }).await?;
    // A running one first, then the newest.
    let rank = |pod: &Value| (pod["status"]["phase"] == "Running", pod["metadata"]["creationTimestamp"].to_string());
    match pods.into_iter().max_by_key(|pod| rank(&pod.value())) {
        Some(pod) => Ok(pod),
        None => bail!("{} has no pods", target.info.display_name(name)),
    }
}

/// The label selector of the pods behind an object.
async fn selector_of(context: &Context, target: &Target<'_>) -> Result<String> {
    let name = target.name.unwrap_or_default();
    match target.info.kind {
        "Install" => {
            context.get(target.info, name).await?;
            Ok(format!("{}={name}", labels::INSTALL))
        }
        "Deployment" | "ReplicaSet" => pods_selector(&context.get(target.info, name).await?.value()),
        "Service" => Ok(service_selector(&context.get(target.info, name).await?.value())),
        other => bail!("{other} has no pods; name a pod, a Deployment, an Install or a Service"),
    }
}

/// The label selector of the pods of a Deployment or ReplicaSet.
pub(crate) fn pods_selector(object: &Value) -> Result<String> {
    Ok(LabelSelector::from_json(&object["spec"]["selector"]).map_err(anyhow::Error::msg)?.to_string())
}

/// The label selector of the pods behind a Service.
pub(crate) fn service_selector(object: &Value) -> String {
    let labels = object.pointer("/spec/selector").and_then(Value::as_object).into_iter().flatten();
    labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
}

/// The Service that an argument names, where it names one.
pub(crate) async fn service_of(context: &Context, argument: &str) -> Result<Option<Value>> {
    if !argument.contains('/') {
        return Ok(None);
    }
    let target = target::one(argument)?;
    if target.info.kind != "Service" {
        return Ok(None);
    }
    Ok(Some(context.get(target.info, target.name.unwrap_or_default()).await?.value()))
}

/// The names of a pod's containers.
pub(crate) fn containers(pod: &Value) -> Vec<String> {
    let list = pod.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|container| container["name"].as_str().map(str::to_owned)).collect()
}

/// The container that is meant: the one named, else the default, which is told where there are several.
pub(crate) fn container_of(pod: &Object, wanted: Option<&str>) -> Result<String> {
    let value = pod.value();
    let names = containers(&value);
    if let Some(wanted) = wanted {
        let others = ["initContainers", "ephemeralContainers"].map(|list| value["spec"][list].as_array());
        let mut others = others.into_iter().flatten().flatten();
        if !names.iter().any(|name| name == wanted) && !others.any(|one| one["name"] == wanted) {
            bail!("container {wanted} is not valid for pod {}; it has: {}", pod.name(), names.join(", "));
        }
        return Ok(wanted.to_owned());
    }
    let annotated = value["metadata"]["annotations"][DEFAULT_CONTAINER].as_str();
    if let Some(annotated) = annotated.filter(|annotated| names.iter().any(|name| name == annotated)) {
        return Ok(annotated.to_owned());
    }
    let Some(first) = names.first() else { bail!("pod {} has no containers", pod.name()) };
    if names.len() > 1 {
        output::note(&format!("Defaulted container {first:?} out of: {}", names.join(", ")));
    }
    Ok(first.clone())
}
