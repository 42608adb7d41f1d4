//! The command lines of the verbs that look.

use clap::{Args, Subcommand};

use super::{Output, duration, timeout};
use crate::output::format::Format;

#[derive(Args, Debug)]
pub(crate) struct Get {
    /// Kinds and names: `pods`, `pods,installs`, `pod web-1 web-2`, `install/notes`, `all`.
    #[arg(required = true, value_name = "KIND [NAME ...] | KIND/NAME ...")]
    pub(crate) what: Vec<String>,
    /// wide, json, yaml, name, jsonpath=TEMPLATE or custom-columns=HEADING:PATH,...
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    /// Only objects with these labels: `app=web,tier!=db`.
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// Only objects with these fields: `status.phase=Running`.
    #[arg(long)]
    pub(crate) field_selector: Option<String>,
    /// In every namespace.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Go on showing changes.
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Show changes alone, not what is there now.
    #[arg(long)]
    pub(crate) watch_only: bool,
    /// Leave the headings out.
    #[arg(long)]
    pub(crate) no_headers: bool,
    /// Show labels in a last column.
    #[arg(long)]
    pub(crate) show_labels: bool,
    /// Show these labels, each in a column of its own.
    #[arg(short = 'L', long, value_name = "LABEL", value_delimiter = ',')]
    pub(crate) label_columns: Vec<String>,
    /// In the order of a field: `.metadata.creationTimestamp`.
    #[arg(long, value_name = "JSONPATH")]
    pub(crate) sort_by: Option<String>,
    /// Succeed where there is no such object.
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Describe {
    /// A kind with names or beginnings of names, or KIND/NAME.
    #[arg(required = true, value_name = "KIND [NAME ...] | KIND/NAME ...")]
    pub(crate) what: Vec<String>,
    /// Only objects with these labels.
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// In every namespace.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Logs {
    /// A pod, `deployment/NAME` or `install/NAME`.
    #[arg(value_name = "POD | KIND/NAME", required_unless_present = "selector")]
    pub(crate) pod: Option<String>,
    /// The container, where the pod has several.
    #[arg(value_name = "CONTAINER", conflicts_with = "container")]
    pub(crate) container_argument: Option<String>,
    /// The container, where the pod has several.
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Of every container.
    #[arg(long, conflicts_with_all = ["container", "container_argument"])]
    pub(crate) all_containers: bool,
    /// Of every pod with these labels; the last 10 lines of each unless --tail says otherwise.
    #[arg(short = 'l', long, conflicts_with = "pod")]
    pub(crate) selector: Option<String>,
    /// Begin each line with its pod and container.
    #[arg(long)]
    pub(crate) prefix: bool,
    /// Go on as more is printed.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines; -1 for all.
    #[arg(long, value_name = "LINES", allow_hyphen_values = true, value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    pub(crate) tail: Option<i64>,
    /// Of the attempt before this one.
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// With the time of each line.
    #[arg(long)]
    pub(crate) timestamps: bool,
    /// Only what is younger: `10m`.
    #[arg(long, value_parser = duration, conflicts_with = "since_time")]
    pub(crate) since: Option<std::time::Duration>,
    /// Only what is younger than a time, as `2026-01-31T12:00:00Z`.
    #[arg(long, value_name = "RFC3339")]
    pub(crate) since_time: Option<String>,
    /// How many logs to follow at once at most.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) max_log_requests: usize,
}

#[derive(Args, Debug)]
pub(crate) struct Exec {
    /// A pod, `deployment/NAME` or `install/NAME`.
    #[arg(value_name = "POD | KIND/NAME")]
    pub(crate) pod: String,
    /// The container, where the pod has several.
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Pass standard input on.
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// With a terminal.
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// The command, after `--`.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Wait {
    /// A kind with names, or KIND/NAME.
    #[arg(required = true, value_name = "KIND [NAME ...] | KIND/NAME ...")]
    pub(crate) what: Vec<String>,
    /// `condition=Ready`, `condition=Ready=False`, `jsonpath={.status.phase}=Running`, `delete`, `create`.
    #[arg(long = "for", value_name = "CONDITION")]
    pub(crate) condition: String,
    /// How long to wait: 0 looks once, a negative time is a week.
    #[arg(long, default_value = "30s", value_parser = timeout, allow_hyphen_values = true)]
    pub(crate) timeout: std::time::Duration,
    /// Every object with these labels.
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// Every object of the kind in the namespace.
    #[arg(long)]
    pub(crate) all: bool,
    /// In every namespace.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Events {
    /// Only those of one object: KIND/NAME.
    #[arg(long = "for", value_name = "KIND/NAME")]
    pub(crate) regarding: Option<String>,
    /// In every namespace.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Go on as more happens.
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// wide, json, yaml, name, jsonpath=TEMPLATE or custom-columns=HEADING:PATH,...
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    /// Leave the headings out.
    #[arg(long)]
    pub(crate) no_headers: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Version {
    /// Only of this program; does not ask the region.
    #[arg(long)]
    pub(crate) client: bool,
    /// The form of the answer.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rollout {
    /// Wait until a deployment runs what it asks for, and tell each step.
    Status(RolloutStatus),
}

#[derive(Args, Debug)]
pub(crate) struct RolloutStatus {
    /// The deployment.
    #[arg(required = true, value_name = "KIND NAME | KIND/NAME")]
    pub(crate) what: Vec<String>,
    /// Whether to wait until it is done.
    #[arg(short, long, default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) watch: bool,
    /// How long to wait; 0 for as long as it takes.
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub(crate) timeout: std::time::Duration,
}

#[derive(Args, Debug)]
pub(crate) struct ApiResources {
    /// Only kinds in namespaces, or only those that are not.
    #[arg(long)]
    pub(crate) namespaced: Option<bool>,
    /// `name` for the names alone.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
    /// Leave the headings out.
    #[arg(long)]
    pub(crate) no_headers: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Explain {
    /// A kind, and a field of it: `deployment.spec.template`.
    #[arg(value_name = "KIND[.FIELD ...]")]
    pub(crate) what: String,
    /// With the fields of fields.
    #[arg(long)]
    pub(crate) recursive: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Completion {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

/// A shell that command lines can be completed in.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}
