//! `delete`: by name, label or manifest; waits until the objects are gone.

use anyhow::{Result, bail};
use hearth_client::DeleteOptions;
use hearth_types::{Object, ObjectKey, Status, admission, registry::KindInfo};

use super::wait::{Awaited, until};
use crate::{
    args::{Cascade, Delete, DryRun},
    context::{Context, Selection, refusal},
    output, sources, target,
};

type Victim = (&'static KindInfo, ObjectKey);

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Delete) -> Result<()> {
    let grace_seconds = grace(args)?;
    let victims = victims(context, args).await?;
    let mut errors = Vec::new();
    if args.dry_run != DryRun::None {
        for (info, key) in &victims {
            match context.find(key).await? {
                Some(_) => output::line(&format!("{} deleted{}", quoted(info, key), args.dry_run.suffix())),
                None if args.ignore_not_found => {}
                None => errors.push(refusal(&Status::not_found(key))),
            }
        }
        return output::failures(&errors);
    }
    if grace_seconds == Some(0) && victims.iter().any(|(info, _)| info.kind == "Pod") {
        output::note(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. \
             The resource may continue to run on its device until the device hears of it.",
        );
    }
    let options = DeleteOptions { grace_seconds, ..DeleteOptions::default() };
    let verb = if args.force { "force deleted" } else { "deleted" };
    let mut waiting = Vec::new();
    for (info, key) in &victims {
        match context.client()?.delete(key, &options).await {
            Ok(deleted) => {
                output::line(&format!("{} {verb}", quoted(info, key)));
                if !deleted.removed {
                    waiting.push((*info, deleted.object));
                }
            }
            Err(status) if status.reason == hearth_types::Reason::NotFound && args.ignore_not_found => {}
            Err(status) => errors.push(refusal(&status)),
        }
    }
    if args.wait {
        for (info, object) in &waiting {
            if let Err(error) = wait_gone(context, args, info, object).await {
                errors.push(error);
            }
        }
    }
    output::failures(&errors)
}

/// The seconds that pods get, of the flags that say so.
fn grace(args: &Delete) -> Result<Option<i64>> {
    match args.cascade {
        Cascade::Background => {}
        Cascade::Foreground => bail!(
            "--cascade=foreground is not supported: what an object owns goes after it (background); wait for it with `hearth wait --for=delete`"
        ),
        Cascade::Orphan => bail!("--cascade=orphan is not supported: what an object owns goes with it"),
    }
    match (args.force, args.now, args.grace_period) {
        (true, _, -1 | 0) => Ok(Some(0)),
        (true, ..) => bail!("--force and --grace-period greater than 0 cannot be specified together"),
        (_, true, -1) => Ok(Some(1)),
        (_, true, _) => bail!("--now and --grace-period cannot be specified together"),
        (_, _, -1) => Ok(None),
        (_, _, seconds) if seconds < -1 => bail!("--grace-period must be -1 or more, not {seconds}"),
        (_, _, seconds) => Ok(Some(seconds)),
    }
}

async fn victims(context: &Context, args: &Delete) -> Result<Vec<Victim>> {
    let mut victims = Vec::new();
    let selecting = args.selector.is_some() || args.field_selector.is_some();
    if !args.filename.is_empty() {
        for document in sources::read_for(context, &args.filename, args.recursive)? {
            let info = admission::kind_of(&document.value)
                .map_err(|status| anyhow::anyhow!("{}: {status}", document.origin))?;
            victims.push((info, admission::key_of(info, &document.value)));
        }
        // The other way round than they were applied.
        victims.reverse();
        return Ok(victims);
    }
    if args.what.is_empty() {
        bail!("name what to delete: a kind with names, KIND/NAME, or -f FILE");
    }
    if args.all && selecting {
        bail!("cannot set --all and --selector or --field-selector at the same time");
    }
    let targets = target::parse(&args.what)?;
    let named = targets.iter().any(|target| target.name.is_some());
    if named && (args.all || selecting) {
        bail!("name cannot be provided when a selector or --all is specified");
    }
    if named && args.all_namespaces {
        bail!("a resource cannot be retrieved by name across all namespaces");
    }
    let mut selected = false;
    for target in targets {
        if let Some(name) = target.name {
            victims.push((target.info, context.key(target.info, name)));
        } else if args.all || selecting {
            selected = true;
            let selection = Selection {
                all_namespaces: args.all_namespaces,
                labels: args.selector.as_deref().unwrap_or_default(),
                fields: args.field_selector.as_deref().unwrap_or_default(),
            };
            let (objects, _) = context.list(target.info, &selection).await?;
            victims.extend(objects.iter().map(|object| (target.info, object.key().clone())));
        } else {
            bail!(
                "resource(s) were provided, but no name was specified: say which {}: names, a label selector (-l), or --all",
                target.info.plural
            );
        }
    }
    if selected && victims.is_empty() {
        output::note("No resources found");
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
            "{} is still there: {error}. It goes once its device has stopped it; `--force` does not wait for the device",
            quoted(info, object.key())
        ),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn graces_are_kubectls() {
        let read = |flags: &str| {
            let line = format!("hearth delete pod x {flags}");
            let Command::Delete(args) = Cli::try_parse_from(line.split_whitespace()).expect(flags).command else {
                panic!("a deletion")
            };
            grace(&args)
        };
        for (flags, expected) in [
            ("", None),
            ("--grace-period=-1", None),
            ("--grace-period 5", Some(5)),
            ("--grace-period 0", Some(0)),
            ("--force", Some(0)),
            ("--force --grace-period=0", Some(0)),
            ("--now", Some(1)),
            ("--cascade=background", None),
        ] {
            assert_eq!(read(flags).expect(flags), expected, "{flags}");
        }
        for bad in [
            "--grace-period=-2",
            "--force --grace-period=3",
            "--now --grace-period=3",
            "--cascade=orphan",
            "--cascade=foreground",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
