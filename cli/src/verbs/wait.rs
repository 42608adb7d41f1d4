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
            let wanted = Wanted { info: target.info, key, uid: None, awaited: &awaited, absent };
            match wanted.wait(context, left()).await {
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
    let wanted = Wanted { info, key: &key, uid: uid.as_ref(), awaited, absent: Absent::Wait };
    wanted.wait(context, timeout).await
}

/// What was seen of an object while it was waited for.
#[derive(Debug, Default)]
struct Seen {
    /// Whether the region answered at all.
    listed: bool,
    /// The object as it was last.
    last: Option<Object>,
}

/// What is waited for, of which object.
struct Wanted<'a> {
    info: &'static KindInfo,
    key: &'a ObjectKey,
    /// Only this very object.
    uid: Option<&'a Uid>,
    awaited: &'a Awaited,
    absent: Absent,
}

impl Wanted<'_> {
    async fn wait(&self, context: &Context, timeout: Duration) -> Result<Option<Object>> {
        let mut seen = Seen::default();
        // Without time it is looked once.
        let done = if timeout.is_zero() {
            Ok(self.look(context, &mut seen).await)
        } else {
            tokio::time::timeout(timeout, self.follow(context, &mut seen)).await
        };
        match done {
            Ok(Err(error)) => return Err(error),
            Ok(Ok(true)) => return Ok(seen.last),
            Ok(Ok(false)) | Err(_) => {}
        }
        let told = match &seen.last {
            _ if !seen.listed => ": the region did not answer".into(),
            None if *self.awaited == Awaited::Deleted => String::new(),
            None => ": there is no such object".into(),
            Some(object) => format!(": {}", state(object)),
        };
        bail!("timed out waiting for the condition on {}/{}{told}", self.info.plural, self.key.name)
    }

    /// Looks once; whether it holds.
    async fn look(&self, context: &Context, seen: &mut Seen) -> Result<bool> {
        let fields = self.fields();
        let (objects, _) = context.list_in(self.info, &self.key.namespace, &selection(&fields)).await?;
        seen.listed = true;
        seen.last = objects.into_iter().find(|object| self.means(object));
        self.holds(seen)
    }

    /// Watches; true once it holds.
    async fn follow(&self, context: &Context, seen: &mut Seen) -> Result<bool> {
        let fields = self.fields();
        let changes = follow::anew(context.source(self.info, &self.key.namespace, &selection(&fields))?, true);
        pin_mut!(changes);
        while let Some(change) = changes.next().await {
            match change? {
                Change::Added(object) | Change::Modified(object) => {
                    seen.last = self.means(&object).then_some(object);
                }
                Change::Deleted(_) => seen.last = None,
                Change::Listed => seen.listed = true,
            }
            if seen.listed && self.holds(seen)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn fields(&self) -> String {
        format!("metadata.name={}", self.key.name)
    }

    /// Another object of the same name is not the one that was meant.
    fn means(&self, object: &Object) -> bool {
        self.uid.is_none_or(|uid| uid == object.uid())
    }

    fn holds(&self, seen: &Seen) -> Result<bool> {
        if seen.last.is_none() && self.absent == Absent::Fail {
            return Err(refusal(&Status::not_found(self.key)));
        }
        Ok(self.awaited.holds(seen.last.as_ref().map(Object::value).as_ref()))
    }
}

fn selection(fields: &str) -> Selection<'_> {
    Selection { all_namespaces: false, labels: "", fields }
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
