//! The command lines of the verbs that change objects.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::deletion_timeout;
use crate::output::format::Format;

/// Whether a change is made or only tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DryRun {
    /// It is made.
    #[default]
    None,
    /// Everything is checked here, and nothing is sent that changes something.
    Client,
    /// The region checks everything and changes nothing.
    Server,
}

impl DryRun {
    /// What is put after an outcome, as kubectl does.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Client => " (dry run)",
            Self::Server => " (server dry run)",
        }
    }
}

/// Manifests.
#[derive(Args, Debug)]
pub(crate) struct Files {
    /// Manifest files or directories, or `-` for standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true, value_delimiter = ',')]
    pub(crate) filename: Vec<String>,
    /// Go into subdirectories.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Check everything and change nothing.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "server")]
    pub(crate) dry_run: DryRun,
}

#[derive(Args, Debug)]
pub(crate) struct Apply {
    #[command(flatten)]
    pub(crate) files: Files,
    /// json, yaml, name or jsonpath=TEMPLATE: what to print of each object.
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) files: Files,
}

#[derive(Args, Debug)]
pub(crate) struct Replace {
    #[command(flatten)]
    pub(crate) files: Files,
}

/// What becomes of objects that an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cascade {
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
    /// They stay.
    Orphan,
}

#[derive(Args, Debug)]
pub(crate) struct Delete {
    /// A kind with names, or KIND/NAME.
    #[arg(value_name = "KIND [NAME ...] | KIND/NAME ...", conflicts_with = "filename")]
    pub(crate) what: Vec<String>,
    /// Delete what these manifests name.
    #[arg(short = 'f', long = "filename", value_name = "FILE", value_delimiter = ',')]
    pub(crate) filename: Vec<String>,
    /// Go into subdirectories.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Every object with these labels.
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// Every object with these fields: `status.phase=Failed`.
    #[arg(long)]
    pub(crate) field_selector: Option<String>,
    /// Every object of the kind in the namespace.
    #[arg(long)]
    pub(crate) all: bool,
    /// In every namespace.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Seconds a pod gets to stop; -1 for its own, 0 removes it from the region without waiting for its device.
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, default_value_t = -1)]
    pub(crate) grace_period: i64,
    /// Remove pods from the region without waiting for their device.
    #[arg(long, conflicts_with = "now")]
    pub(crate) force: bool,
    /// Give pods one second to stop.
    #[arg(long)]
    pub(crate) now: bool,
    /// What becomes of what the objects own.
    #[arg(long, value_enum, default_value = "background")]
    pub(crate) cascade: Cascade,
    /// Whether to wait until the objects are gone.
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub(crate) wait: bool,
    /// How long to wait; 0 for a week.
    #[arg(long, default_value = "2m", value_parser = deletion_timeout, allow_hyphen_values = true)]
    pub(crate) timeout: std::time::Duration,
    /// Succeed where there is no such object.
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
    /// Say what would be deleted, and delete nothing.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "client")]
    pub(crate) dry_run: DryRun,
}

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PatchType {
    /// RFC 7386.
    Merge,
    /// RFC 6902.
    Json,
    /// Kubernetes' own.
    Strategic,
}

#[derive(Args, Debug)]
#[allow(clippy::struct_field_names)] // clap makes the flags of the names
pub(crate) struct Patch {
    /// A kind with names, or KIND/NAME.
    #[arg(required = true, value_name = "KIND NAME ... | KIND/NAME ...")]
    pub(crate) what: Vec<String>,
    /// The patch, as JSON or YAML.
    #[arg(short, long, required_unless_present = "patch_file", conflicts_with = "patch_file")]
    pub(crate) patch: Option<String>,
    /// A file with the patch.
    #[arg(long, value_name = "FILE")]
    pub(crate) patch_file: Option<PathBuf>,
    /// How the patch is written.
    #[arg(long = "type", value_enum, default_value = "merge")]
    pub(crate) patch_type: PatchType,
    /// Patch `status` instead of the object.
    #[arg(long, value_parser = ["status"])]
    pub(crate) subresource: Option<String>,
    /// Check everything and change nothing.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "server")]
    pub(crate) dry_run: DryRun,
}

/// Objects and what to set or remove of them.
#[derive(Args, Debug)]
pub(crate) struct Marks {
    /// A kind with names or KIND/NAME, then KEY=VALUE to set and KEY- to remove.
    #[arg(required = true, value_name = "KIND NAME ... KEY=VALUE|KEY- ...")]
    pub(crate) words: Vec<String>,
    /// Every object with these labels.
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// Every object of the kind in the namespace.
    #[arg(long)]
    pub(crate) all: bool,
    /// Change what is set already.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Check everything and change nothing.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "server")]
    pub(crate) dry_run: DryRun,
}

#[derive(Args, Debug)]
pub(crate) struct Label {
    #[command(flatten)]
    pub(crate) marks: Marks,
}

#[derive(Args, Debug)]
pub(crate) struct Annotate {
    #[command(flatten)]
    pub(crate) marks: Marks,
}

#[derive(Args, Debug)]
pub(crate) struct Taint {
    #[command(flatten)]
    pub(crate) marks: Marks,
}

#[derive(Args, Debug)]
pub(crate) struct Scale {
    /// A deployment, replica set or install: KIND NAME ... or KIND/NAME ...
    #[arg(required = true, value_name = "KIND NAME ... | KIND/NAME ...")]
    pub(crate) what: Vec<String>,
    /// How many are to run.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..=i64::from(i32::MAX)))]
    pub(crate) replicas: i64,
    /// Only where so many are asked for now.
    #[arg(long, value_name = "N", allow_hyphen_values = true, default_value_t = -1)]
    pub(crate) current_replicas: i64,
}

#[derive(Args, Debug)]
pub(crate) struct Cordon {
    /// The nodes.
    #[arg(required_unless_present = "selector", conflicts_with = "selector", value_name = "NODE ...")]
    pub(crate) nodes: Vec<String>,
    /// Every node with these labels.
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Edit {
    /// The object: KIND NAME or KIND/NAME.
    #[arg(required = true, value_name = "KIND NAME | KIND/NAME")]
    pub(crate) what: Vec<String>,
}
