//! `patch`: changes fields of objects by a JSON merge patch (RFC 7386).

use std::fs;

use anyhow::{Context as _, Result, bail};
use hearth_client::WriteOptions;
use serde_json::Value;

use super::modify::{changed, chosen};
use crate::{
    args::{DryRun, Patch, PatchType},
    context::{Context, refusal},
    output,
};

/// Runs the verb.
pub(crate) async fn run(context: &Context, args: &Patch) -> Result<()> {
    match args.patch_type {
        PatchType::Merge => {}
        PatchType::Json => bail!("--type=json (RFC 6902) is not supported; write a merge patch (RFC 7386)"),
        PatchType::Strategic => {
            bail!(
                "--type=strategic is not supported; write a merge patch (RFC 7386), in which a list replaces the whole list"
            )
        }
    }
    let patch = read(args)?;
    let status = args.subresource.is_some();
    let options = WriteOptions { dry_run: args.dry_run != DryRun::None, ..WriteOptions::default() };
    let mut errors = Vec::new();
    for (info, key) in chosen(context, &args.what, None, false).await? {
        match context.client()?.patch(&key, &patch, status, &options).await {
            Ok(written) => {
                let done = if changed(&written) { "patched" } else { "patched (no change)" };
                output::line(&format!("{} {done}{}", info.display_name(&key.name), args.dry_run.suffix()));
            }
            Err(error) => errors.push(refusal(&error)),
        }
    }
    output::failures(&errors)
}

fn read(args: &Patch) -> Result<Value> {
    let text = match (&args.patch, &args.patch_file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
        (None, None) => bail!("must specify --patch or --patch-file containing the contents of the patch"),
    };
    // JSON is YAML too.
    let value: Value = serde_yaml_ng::from_str(&text).context("unable to parse the patch as YAML or JSON")?;
    if !value.is_object() {
        bail!("the patch must be a map of fields, as {{\"spec\": {{\"replicas\": 2}}}}");
    }
    Ok(value)
}
