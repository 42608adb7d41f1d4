//! `create` and `replace`: manifests as they are, without merging.

use anyhow::{Result, bail};
use hearth_client::WriteOptions;
use hearth_types::{manifest::Document, registry};

use super::{apply::told, modify::changed};
use crate::{
    args::{Create, DryRun, Replace},
    context::Context,
    output, sources,
};

/// Creates objects; fails where there is one of that name.
pub(crate) async fn create(context: &Context, args: &Create) -> Result<()> {
    write(context, &args.files, "created").await
}

/// Replaces objects, which must be there.
pub(crate) async fn replace(context: &Context, args: &Replace) -> Result<()> {
    write(context, &args.files, "replaced").await
}

async fn write(context: &Context, files: &crate::args::Files, verb: &str) -> Result<()> {
    if files.dry_run == DryRun::Client {
        bail!("--dry-run=client is not supported here; use --dry-run=server, by which the region checks everything");
    }
    let options = WriteOptions { dry_run: files.dry_run == DryRun::Server, ..WriteOptions::default() };
    let mut errors = Vec::new();
    for document in sources::read_for(context, &files.filename, files.recursive)? {
        let client = context.client()?;
        let answer = if verb == "created" {
            client.create(&document.value, &options).await
        } else {
            client.update(&document.value, &options).await
        };
        match answer {
            Ok(written) => {
                changed(&written);
                let object = &written.object;
                let name = registry::of_kind(object.kind())
                    .map_or_else(|| object.key().to_string(), |info| info.display_name(object.name()));
                output::line(&format!("{name} {verb}{}", files.dry_run.suffix()));
            }
            Err(status) => errors.push(refused(&document, &status)),
        }
    }
    output::failures(&errors)
}

/// kubectl's words, after the place of the object.
fn refused(document: &Document, status: &hearth_types::Status) -> anyhow::Error {
    let told = told(document, status);
    anyhow::anyhow!("from server ({:?}): error when writing {told}", status.reason)
}
