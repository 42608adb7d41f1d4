//! `wait`: until something is true of objects, by watching them.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::{StreamExt as _, pin_mut};
use hearth_types::{Object, ObjectKey, Status, Uid, registry::KindInfo};
use tokio::time::Instant;

pub(crate) use super::wait_condition::Awaited;
use crate::{
    args::Wait,
    context::{Context, Selection, refusal},
    follow::{self, Change},
    output, target,
};

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Wait) -> Result<()> {
    let awaited = Awaited::parse(&args.condition)?;
    let deadline = Instant::now() + args.timeout;
    let left = || deadline.saturating_duration_since(Instant::now());
    let (mut met, mut errors) = (0, Vec::new());
    for target in target::parse(&args.what)? {
        let keys = match target.name {
            Some(_) if args.all_namespaces => {
                bail!("a resource cannot be retrieved by name across all namespaces")
            }
            Some(_) if args.selector.is_some() || args.all => {
                bail!("name cannot be provided when a selector or --all is specified")
            }
            Some(name) => vec![context.key(target.info, name)],
            None if args.all || args.selector.is_some() => {
                selected(context, args, target.info, &awaited, left()).await?
            }
            None => bail!("say which {}: names, a label selector (-l), or --all", target.info.plural),
        };
        for key in &keys {
            // What is waited for may come up or go; everything else needs the object.
            let absent = match awaited {
                Awaited::Deleted | Awaited::Created => Absent::Wait,
                _ => Absent::Fail,
            };
            match wait(context, target.info, key, None, &awaited, absent, left()).await {
                Ok(_) => {
                    let verb = if awaited == Awaited::Deleted { "deleted" } else { "condition met" };
                    output::line(&format!("{} {verb}", target.info.display_name(&key.name)));
                    met += 1;
                }
                Err(error) => errors.push(error),
            }
        }
    }
    output::failures(&errors)?;
    if met == 0 && awaited != Awaited::Deleted {
        bail!("no matching resources found")
    }
    Ok(())
}

/// The objects that a selector means; for `create`, as soon as there is one.
async fn selected(
    context: &Context,
    args: &Wait,
    info: &'static KindInfo,
    awaited: &Awaited,
    timeout: Duration,
) -> Result<Vec<ObjectKey>> {
    let labels = args.selector.as_deref().unwrap_or_default();
    let selection = Selection { all_namespaces: args.all_namespaces, labels, fields: "" };
    if *awaited != Awaited::Created {
        let (objects, _) = context.list(info, &selection).await?;
        return Ok(objects.iter().map(|object| object.key().clone()).collect());
    }
    let changes = follow::anew(context.source(info, context.namespace(), &selection)?, true);
    pin_mut!(changes);
    let first = async {
        while let Some(change) = changes.next().await {
            if let Change::Added(object) = change? {
                return Ok(vec![object.key().clone()]);
            }
        }
        Ok(Vec::new())
    };
    tokio::time::timeout(timeout, first)
        .await
        .unwrap_or_else(|_| bail!("timed out waiting for the condition: no {} came", info.plural))
}

/// What it means that there is no such object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absent {
    /// It may come.
    Wait,
    /// It is a mistake.
    Fail,
}

/// Waits until something is true of an object, and returns it as it then is. For a bounded time: on
/// expiry the error tells what is true instead. A watch that breaks is taken up again.
pub(crate) async fn until(
    context: &Context,
    info: &'static KindInfo,
    namespace: &str,
    selected: Option<(&str, Option<Uid>)>,
    awaited: &Awaited,
    timeout: Duration,
) -> Result<Option<Object>> {
    let (name, uid) = selected.unwrap_or_default();
    let key = ObjectKey::new(info.group_kind(), namespace, name);
    wait(context, info, &key, uid.as_ref(), awaited, Absent::Wait, timeout).await
}

async fn wait(
    context: &Context,
    info: &'static KindInfo,
    key: &ObjectKey,
    uid: Option<&Uid>,
    awaited: &Awaited,
    absent: Absent,
    timeout: Duration,
) -> Result<Option<Object>> {
    let mut seen = Seen::default();
    // Without time it is looked once.
    let once = timeout.is_zero();
    let watching = follow(context, info, key, uid, awaited, absent, once, &mut seen);
    let done = if once { Ok(watching.await) } else { tokio::time::timeout(timeout, watching).await };
    match done {
        Ok(Err(error)) => return Err(error),
        Ok(Ok(true)) => return Ok(seen.last),
        Ok(Ok(false)) | Err(_) => {}
    }
    let told = match &seen.last {
        _ if !seen.listed => ": the region did not answer".into(),
        None if *awaited == Awaited::Deleted => String::new(),
        None => ": there is no such object".into(),
        Some(object) => format!(": {}", state(object)),
    };
    bail!("timed out waiting for the condition on {}/{}{told}", info.plural, key.name)
}

/// What was seen of an object while it was waited for.
#[derive(Debug, Default)]
struct Seen {
    /// Whether the region answered at all.
    listed: bool,
    /// The object as it was last.
    last: Option<Object>,
}

/// Looks, then watches; true once it holds, false if it was to be looked only once.
#[allow(clippy::too_many_arguments)] // the whole question, and where to leave what was seen
async fn follow(
    context: &Context,
    info: &'static KindInfo,
    key: &ObjectKey,
    uid: Option<&Uid>,
    awaited: &Awaited,
    absent: Absent,
    once: bool,
    seen: &mut Seen,
) -> Result<bool> {
    let fields = format!("metadata.name={}", key.name);
    let selection = Selection { all_namespaces: false, labels: "", fields: &fields };
    if once {
        let (objects, _) = context.list_in(info, &key.namespace, &selection).await?;
        seen.listed = true;
        seen.last = objects.into_iter().find(|object| uid.is_none_or(|uid| uid == object.uid()));
        if seen.last.is_none() && absent == Absent::Fail {
            return Err(refusal(&Status::not_found(key)));
        }
        return Ok(awaited.holds(seen.last.as_ref().map(Object::value).as_ref()));
    }
    let changes = follow::anew(context.source(info, &key.namespace, &selection)?, true);
    pin_mut!(changes);
    while let Some(change) = changes.next().await {
        match change? {
            // Another object of the same name is not the one that was meant.
            Change::Added(object) | Change::Modified(object) => {
                seen.last = uid.is_none_or(|uid| uid == object.uid()).then_some(object);
            }
            Change::Deleted(_) => seen.last = None,
            Change::Listed => seen.listed = true,
        }
        if !seen.listed {
            continue;
        }
        if seen.last.is_none() && absent == Absent::Fail {
            return Err(refusal(&Status::not_found(key)));
        }
        if awaited.holds(seen.last.as_ref().map(Object::value).as_ref()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What an object says of itself, for people who wait: its conditions that are not true.
pub(crate) fn state(object: &Object) -> String {
    let value = object.value();
    let conditions = value.pointer("/status/conditions").and_then(serde_json::Value::as_array).into_iter().flatten();
    let unmet: Vec<_> = conditions
        .filter(|condition| condition["status"] != "True")
        .map(|condition| {
            let text = |field: &str| condition[field].as_str().unwrap_or_default();
            let message = if text("message").is_empty() { String::new() } else { format!(": {}", text("message")) };
            format!("{} is {} ({}){message}", text("type"), text("status"), text("reason"))
        })
        .collect();
    if !unmet.is_empty() {
        return unmet.join("; ");
    }
    match value.pointer("/status/phase").and_then(serde_json::Value::as_str) {
        Some(phase) => format!("its phase is {phase}"),
        None => "it says nothing of that yet".into(),
    }
}
