//! `describe`: everything about objects in words, with their events.

mod data;
mod page;
mod pod;

use anyhow::Result;
use hearth_types::{
    Object, ObjectKey,
    kinds::labels,
    registry::KindInfo,
    selector::text_at,
    time::{Timestamp, human_duration},
};
use serde_json::{Map, Value};

use self::page::Page;
use crate::{
    args::Describe,
    context::{Context, Selection, now, refusal},
    output, target,
};

/// Annotations that only programs read.
const HIDDEN_ANNOTATIONS: [&str; 1] = [hearth_types::patch::LAST_APPLIED];

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Describe) -> Result<()> {
    let (mut first, mut errors) = (true, Vec::new());
    let targets = target::parse(&args.what)?;
    for target in &targets {
        let objects = if let Some(name) = target.name {
            named(context, target.info, name).await
        } else {
            let labels = args.selector.as_deref().unwrap_or_default();
            let selection = Selection { all_namespaces: args.all_namespaces, labels, fields: "" };
            context.list(target.info, &selection).await.map(|(objects, _)| objects)
        };
        match objects {
            Ok(objects) => {
                for object in objects {
                    if !first {
                        output::line("\n");
                    }
                    first = false;
                    let around = around(context, &object).await?;
                    output::lines(&describe(target.info, &object.value(), &around, now()));
                }
            }
            Err(error) => errors.push(error),
        }
    }
    if first && errors.is_empty() {
        let namespaced = targets.iter().any(|target| target.info.is_namespaced()) && !args.all_namespaces;
        let place = if namespaced { format!(" in {} namespace.", context.namespace()) } else { String::new() };
        output::note(&format!("No resources found{place}"));
    }
    output::failures(&errors)
}

/// The object of a name, else those whose names begin with it, as kubectl does.
async fn named(context: &Context, info: &'static KindInfo, name: &str) -> Result<Vec<Object>> {
    let key = context.key(info, name);
    if let Some(object) = context.find(&key).await? {
        return Ok(vec![object]);
    }
    let (mut objects, _) = context.list(info, &Selection::default()).await?;
    objects.retain(|object| object.name().starts_with(name));
    if objects.is_empty() { Err(refusal(&hearth_types::Status::not_found(&key))) } else { Ok(objects) }
}

/// What is told of an object beside itself.
#[derive(Debug, Default)]
struct Around {
    events: Vec<Value>,
    /// The pods of what runs pods.
    pods: Option<Vec<Value>>,
}

async fn around(context: &Context, object: &Object) -> Result<Around> {
    Ok(Around { events: events_of(context, object.key(), object).await?, pods: pods_of(context, object).await? })
}

async fn events_of(context: &Context, key: &ObjectKey, object: &Object) -> Result<Vec<Value>> {
    let fields = format!("involvedObject.kind={},involvedObject.name={}", key.kind.kind, key.name);
    let namespace = if object.namespace().is_empty() { super::events::CLUSTER_EVENTS } else { object.namespace() };
    let selection = Selection { all_namespaces: false, labels: "", fields: &fields };
    let (events, _) = context.list_in(target::kind("events")?, namespace, &selection).await?;
    let same = |event: &Value| {
        let uid = text_at(event, "involvedObject.uid");
        uid.is_empty() || uid == object.uid().as_str()
    };
    Ok(super::events::sorted(&events).into_iter().filter(same).collect())
}

async fn pods_of(context: &Context, object: &Object) -> Result<Option<Vec<Value>>> {
    let (labels, fields) = match object.kind().kind.as_ref() {
        "Install" => (format!("{}={}", labels::INSTALL, object.name()), String::new()),
        "Deployment" | "ReplicaSet" => (super::pod_of::pods_selector(&object.value())?, String::new()),
        "Service" => (super::pod_of::service_selector(&object.value()), String::new()),
        "Node" | "Device" => (String::new(), format!("spec.nodeName={}", object.name())),
        _ => return Ok(None),
    };
    let selection = Selection { all_namespaces: object.namespace().is_empty(), labels: &labels, fields: &fields };
    let (pods, _) = context.list_in(target::kind("pods")?, object.namespace(), &selection).await?;
    Ok(Some(pods.iter().map(Object::value).collect()))
}

fn describe(info: &KindInfo, object: &Value, around: &Around, now: Timestamp) -> Vec<String> {
    let mut page = Page::new(now);
    head(&mut page, info, object, now);
    match info.kind {
        "ConfigMap" => data::config_map(&mut page, object),
        "Secret" => data::secret(&mut page, object),
        "Pod" => pod::pod(&mut page, info, object),
        "Deployment" | "ReplicaSet" => workload(&mut page, info, object),
        _ => whole(&mut page, info, object),
    }
    if let Some(pods) = &around.pods {
        page.pods(pods);
    }
    page.events(&around.events);
    page.lines
}

fn head(page: &mut Page, info: &KindInfo, object: &Value, now: Timestamp) {
    page.field("Name", &text_at(object, "metadata.name"));
    if info.is_namespaced() {
        page.field("Namespace", &text_at(object, "metadata.namespace"));
    }
    page.pairs("Labels", &object["metadata"]["labels"], &[]);
    page.pairs("Annotations", &object["metadata"]["annotations"], &HIDDEN_ANNOTATIONS);
    let created = text_at(object, "metadata.creationTimestamp");
    let age = Timestamp::parse(&created).map(|then| human_duration(now.since(then))).unwrap_or_default();
    page.field("Created", &format!("{created} ({age} ago)"));
    if let Some(owner) = object.pointer("/metadata/ownerReferences/0") {
        page.field("Controlled By", &format!("{}/{}", text_at(owner, "kind"), text_at(owner, "name")));
    }
    let finalizers = object.pointer("/metadata/finalizers").and_then(Value::as_array).into_iter().flatten();
    let finalizers: Vec<_> = finalizers.filter_map(Value::as_str).collect();
    if !finalizers.is_empty() {
        page.field("Finalizers", &finalizers.join(", "));
    }
    let deleted = text_at(object, "metadata.deletionTimestamp");
    if !deleted.is_empty() {
        page.field("Status", &format!("Terminating (until {deleted})"));
    }
}

/// A Deployment or ReplicaSet.
fn workload(page: &mut Page, info: &KindInfo, object: &Value) {
    let number = |path: &str| object.pointer(path).and_then(Value::as_i64).unwrap_or_default();
    let selector = super::pod_of::pods_selector(object).unwrap_or_default();
    page.field("Selector", &selector);
    let desired = number("/spec/replicas");
    if info.kind == "Deployment" {
        let available = number("/status/availableReplicas");
        page.field(
            "Replicas",
            &format!(
                "{desired} desired | {} updated | {} total | {available} available | {} unavailable",
                number("/status/updatedReplicas"),
                number("/status/replicas"),
                (number("/status/replicas").max(desired) - available).max(0),
            ),
        );
    } else {
        page.field(
            "Replicas",
            &format!(
                "{} current / {desired} desired / {} ready",
                number("/status/replicas"),
                number("/status/readyReplicas")
            ),
        );
    }
    let spec = info.schema().field("spec");
    let rest = without(&object["spec"], &["selector", "replicas", "template"]);
    page.rest(&rest, spec, 0);
    page.lines.push("Pod Template:".into());
    let template = &object["spec"]["template"];
    page.indented(1, |page| {
        page.pairs("Labels", &template["metadata"]["labels"], &[]);
        if template["metadata"]["annotations"].is_object() {
            page.pairs("Annotations", &template["metadata"]["annotations"], &[]);
        }
        let view = spec.and_then(|spec| spec.field("template")).and_then(|template| template.field("spec"));
        pod::spec(page, view, &template["spec"], &Value::Null);
    });
    page.conditions(&object["status"]["conditions"]);
}

/// Every field of a kind that has no page of its own.
fn whole(page: &mut Page, info: &KindInfo, object: &Value) {
    let schema = info.schema();
    for (heading, value) in object.as_object().into_iter().flatten() {
        if !matches!(heading.as_str(), "apiVersion" | "kind" | "metadata" | "status") {
            page.tree(&page::title(heading), value, schema.field(heading));
        }
    }
    let status = without(&object["status"], &["conditions"]);
    if status.as_object().is_some_and(|status| !status.is_empty()) {
        page.tree("Status", &status, schema.field("status"));
    }
    page.conditions(&object["status"]["conditions"]);
}

/// A map without some of its fields.
fn without(map: &Value, fields: &[&str]) -> Value {
    let rest = map.as_object().into_iter().flatten().filter(|(key, _)| !fields.contains(&key.as_str()));
    Value::Object(rest.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests;
