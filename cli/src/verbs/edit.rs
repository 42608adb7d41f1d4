//! `edit`: an object as YAML in an editor, and what was changed back into the region.

use std::{fs, io::Write as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use hearth_client::WriteOptions;
use hearth_types::{Reason, registry};
use serde_json::Value;

use super::modify::changed;
use crate::{
    args::Edit,
    context::{Context, refusal},
    output, target,
};

/// The variables that name an editor, the first that is set.
const EDITORS: [&str; 3] = ["KUBE_EDITOR", "VISUAL", "EDITOR"];

/// Runs the verb. The region refuses what was edited if the object changed meanwhile; the text is kept then.
pub(crate) async fn run(context: &Context, args: &Edit) -> Result<()> {
    let targets = target::parse(&args.what)?;
    let [target] = targets.as_slice() else { bail!("edit takes one object; name one") };
    let Some(name) = target.name else { bail!("edit takes one object; name it, as {}/NAME", target.info.plural) };
    let object = context.get(target.info, name).await?;
    let before = object.value();
    let file = Draft::write(&format!("hearth-edit-{name}-"), &before)?;
    let edited = file.edit()?;
    if edited == before {
        output::line("Edit cancelled, no changes made.");
        return Ok(());
    }
    if edited["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"] {
        bail!("metadata.resourceVersion must stay as it was read; the edited text is kept in {}", file.keep());
    }
    match context.client()?.update(&edited, &WriteOptions::default()).await {
        Ok(written) => {
            changed(&written);
            let info = registry::of_kind(written.object.kind()).unwrap_or(target.info);
            output::line(&format!("{} edited", info.display_name(name)));
            Ok(())
        }
        Err(status) => {
            let error = refusal(&status);
            let hint = if status.reason == Reason::Conflict { "; edit it again" } else { "" };
            bail!("{error}{hint}; the edited text is kept in {}", file.keep())
        }
    }
}

/// A file with an object in it, removed unless it is kept.
struct Draft {
    path: PathBuf,
    kept: std::cell::Cell<bool>,
}

impl Draft {
    fn write(prefix: &str, object: &Value) -> Result<Self> {
        let directory = std::env::temp_dir();
        // Others on this machine may not read it, nor have put something else in its place.
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        for number in 0..1000 {
            let path = directory.join(format!("{prefix}{}-{number}.yaml", std::process::id()));
            match options.write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    let draft = Self { path, kept: false.into() };
                    let head = "# Please edit the object below. Lines beginning with a '#' will be ignored, and an empty file\n# will abort the edit.\n";
                    let text = format!("{head}{}", serde_yaml_ng::to_string(object)?);
                    file.write_all(text.as_bytes())
                        .with_context(|| format!("cannot write {}", draft.path.display()))?;
                    return Ok(draft);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot create {}", path.display())),
            }
        }
        bail!("cannot find a free name for a file in {}", directory.display())
    }

    fn edit(&self) -> Result<Value> {
        let editor = EDITORS.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let editor = editor.unwrap_or_else(|| "vi".into());
        // The variable may have arguments; as other programs do, it is given to a shell.
        let status =
            Command::new("sh").arg("-c").arg(format!("{editor} \"$1\"")).arg("hearth-edit").arg(&self.path).status();
        let status = status.with_context(|| format!("cannot run the editor {editor:?}; set KUBE_EDITOR or EDITOR"))?;
        if !status.success() {
            bail!("the editor {editor:?} failed ({status}); nothing was changed");
        }
        let text = fs::read_to_string(&self.path).with_context(|| format!("cannot read {}", self.path.display()))?;
        if text.lines().all(|line| line.trim().is_empty() || line.starts_with('#')) {
            bail!("Edit cancelled, saved file was empty.");
        }
        serde_yaml_ng::from_str(&text)
            .with_context(|| format!("the edited text is not YAML; it is kept in {}", self.keep()))
    }

    fn keep(&self) -> std::path::Display<'_> {
        self.kept.set(true);
        self.path.display()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept.get() {
            // Nothing depends on it: a file in the directory for temporary ones.
            let _ = fs::remove_file(&self.path);
        }
    }
}
