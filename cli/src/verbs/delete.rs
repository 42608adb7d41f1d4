//! `delete`: by name, label or manifest; waits until the objects are gone.

use anyhow::{Result, bail};
use hearth_client::DeleteOptions;
use hearth_types::{Object, ObjectKey, Reason, admission, registry::KindInfo};

use super::wait::{Awaited, until};
use crate::{
    args::Delete,
    context::{Context, Selection, refusal},
    output, sources, target,
};

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Delete) -> Result<()> {
    let victims = victims(context, args).await?;
    let options = DeleteOptions { grace_seconds: args.grace_period, ..DeleteOptions::default() };
    let mut failed = 0;
    let mut waiting = Vec::new();
    for (info, key) in &victims {
        match context.client()?.delete(key, &options).await {
            Ok(deleted) => {
                output::line(&format!("{} deleted", quoted(info, key)));
                if !deleted.removed {
                    waiting.push((*info, deleted.object));
                }
            }
            Err(status) if status.reason == Reason::NotFound && args.ignore_not_found => {}
            Err(status) => {
                output::note(&format!("Error {}", refusal(&status)));
                failed += 1;
            }
        }
    }
    if args.wait {
        for (info, object) in &waiting {
            wait_gone(context, args, info, object).await?;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} objects could not be deleted", victims.len());
    }
    Ok(())
}

async fn victims(context: &Context, args: &Delete) -> Result<Vec<(&'static KindInfo, ObjectKey)>> {
    let mut victims = Vec::new();
    if !args.filename.is_empty() {
        for document in sources::read(&args.filename, false, context.namespace())? {
            let mut object = document.value;
            super::apply::fill_namespace(&mut object, context.namespace());
            let info =
                admission::kind_of(&object).map_err(|status| anyhow::anyhow!("{}: {status}", document.origin))?;
            victims.push((info, admission::key_of(info, &object)));
        }
        // The other way round than they were applied.
        victims.reverse();
    }
    if args.what.is_empty() {
        if victims.is_empty() {
            bail!("name what to delete: a kind with names, KIND/NAME, or -f FILE");
        }
        return Ok(victims);
    }
    for target in target::parse(&args.what)? {
        if let Some(name) = target.name {
            victims.push((target.info, context.key(target.info, name)));
        } else if args.all || args.selector.is_some() {
            let selection =
                Selection { all_namespaces: false, labels: args.selector.as_deref().unwrap_or_default(), fields: "" };
            let (objects, _) = context.list(target.info, &selection).await?;
            victims.extend(objects.iter().map(|object| (target.info, object.key().clone())));
        } else {
            bail!("say which {}: names, a label selector (-l), or --all", target.info.plural);
        }
    }
    Ok(victims)
}

fn quoted(info: &KindInfo, key: &ObjectKey) -> String {
    format!("{} \"{}\"", info.display_name("").trim_end_matches('/'), key.name)
}

async fn wait_gone(context: &Context, args: &Delete, info: &'static KindInfo, object: &Object) -> Result<()> {
    let selected = Some((object.name(), Some(object.uid().clone())));
    match until(context, info, object.namespace(), selected, &Awaited::Deleted, args.timeout).await {
        Ok(_) => Ok(()),
        Err(error) => bail!(
            "{} is still there: {error}. It goes once its device has stopped it; `--grace-period 0` does not wait for the device",
            quoted(info, object.key())
        ),
    }
}
