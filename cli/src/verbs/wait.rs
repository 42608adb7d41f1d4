//! `wait`: until something is true of objects, by watching them.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use hearth_types::{Object, Uid, registry::KindInfo, store::WatchEvent};

pub(crate) use super::wait_condition::Awaited;
use crate::{
    args::Wait,
    context::{Context, Selection},
    output, target,
};

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Wait) -> Result<()> {
    let awaited = Awaited::parse(&args.condition)?;
    let deadline = tokio::time::Instant::now() + args.timeout;
    let mut matched = 0;
    for target in target::parse(&args.what)? {
        let names: Vec<String> = match target.name {
            Some(name) => vec![name.to_owned()],
            None if args.all || args.selector.is_some() => {
                let selection = Selection {
                    all_namespaces: false,
                    labels: args.selector.as_deref().unwrap_or_default(),
                    fields: "",
                };
                context.list(target.info, &selection).await?.0.iter().map(|object| object.name().to_owned()).collect()
            }
            None => bail!("say which {}: names, a label selector (-l), or --all", target.info.plural),
        };
        for name in &names {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let namespace = if target.info.is_namespaced() { context.namespace() } else { "" };
            until(context, target.info, namespace, Some((name, None)), &awaited, left).await?;
            let verb = if awaited == Awaited::Deleted { "deleted" } else { "condition met" };
            output::line(&format!("{} {verb}", target.info.display_name(name)));
            matched += 1;
        }
    }
    if matched == 0 {
        bail!("no matching resources found")
    }
    Ok(())
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
    let mut last: Option<Object> = None;
    let (name, uid) = selected.unwrap_or_default();
    let watching = async {
        loop {
            match follow(context, info, namespace, name, uid.as_ref(), awaited, &mut last).await {
                Ok(true) => return Ok(last.take()),
                Ok(false) => {}
                Err(error) => return Err(error),
            }
        }
    };
    if let Ok(done) = tokio::time::timeout(timeout, watching).await {
        done
    } else {
        let what = info.display_name(name);
        let seen = match &last {
            None if *awaited == Awaited::Deleted => String::new(),
            None => "; there is no such object".into(),
            Some(object) => format!("; {}", state(object)),
        };
        bail!("timed out after {} s waiting for {what}{seen}", timeout.as_secs())
    }
}

/// Looks, then watches; true once it holds, false where the watch has to be made anew.
async fn follow(
    context: &Context,
    info: &'static KindInfo,
    namespace: &str,
    name: &str,
    uid: Option<&Uid>,
    awaited: &Awaited,
    last: &mut Option<Object>,
) -> Result<bool> {
    let fields = format!("metadata.name={name}");
    let selection = Selection { all_namespaces: false, labels: "", fields: &fields };
    let (objects, revision) = context.list_in(info, namespace, &selection).await?;
    // Another object of the same name is not the one that was meant.
    *last = objects.into_iter().find(|object| uid.is_none_or(|uid| uid == object.uid()));
    let holds = |object: Option<&Object>| awaited.holds(object.map(Object::value).as_ref());
    if holds(last.as_ref()) {
        return Ok(true);
    }
    let mut events = context.watch_in(info, namespace, &selection, revision).await?;
    while let Some(event) = events.next().await {
        match event {
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                *last = uid.is_none_or(|uid| uid == object.uid()).then_some(object);
            }
            Ok(WatchEvent::Deleted(_)) => *last = None,
            Ok(WatchEvent::Bookmark(_)) => continue,
            Err(_) => return Ok(false),
        }
        if holds(last.as_ref()) {
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
    if unmet.is_empty() { "it says nothing of itself yet".into() } else { unmet.join("; ") }
}
