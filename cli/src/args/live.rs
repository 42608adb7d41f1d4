//! The command lines of the verbs that reach into what runs: `attach`, `debug`, `port-forward`, `top`, `trace`.

use clap::{Args, Subcommand};

use super::Output;

#[derive(Args, Debug)]
pub(crate) struct PortForward {
    /// A pod, `deployment/NAME` or `install/NAME`.
    #[arg(value_name = "POD | KIND/NAME")]
    pub(crate) pod: String,
    /// Ports: `8080:80`, `80` for the same here, `:80` for any free one here. The pod's may be given by its name.
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    pub(crate) ports: Vec<String>,
    /// Where to listen: IP addresses, or `localhost`.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "localhost")]
    pub(crate) address: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Attach {
    /// A pod, `deployment/NAME` or `install/NAME`.
    #[arg(value_name = "POD | KIND/NAME")]
    pub(crate) pod: String,
    /// The container, where the pod has several.
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Pass standard input on; the container must have `stdin: true`.
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// With a terminal; the container must have `tty: true`.
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Debug {
    /// A pod, `deployment/NAME` or `install/NAME`.
    #[arg(value_name = "POD | KIND/NAME")]
    pub(crate) pod: String,
    /// The image of the container.
    #[arg(long)]
    pub(crate) image: String,
    /// When its image is pulled.
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub(crate) image_pull_policy: Option<String>,
    /// The name of the container [default: debugger-xxxxx].
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// See the processes of this container of the pod.
    #[arg(long, value_name = "CONTAINER")]
    pub(crate) target: Option<String>,
    /// An environment variable.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// With an input, which is standard input while this is attached.
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// With a terminal.
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// Wait until it runs, and attach to it [default: with -i].
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) attach: Option<bool>,
    /// How long to wait until it runs; its image may have to be pulled.
    #[arg(long, default_value = "5m", value_parser = super::timeout)]
    pub(crate) timeout: std::time::Duration,
    /// What follows `--` are arguments of the image's own command.
    #[arg(long)]
    pub(crate) arguments_only: bool,
    /// Say nothing of what is done.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The command, after `--` [default: the image's own].
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Trace {
    /// A hostname or URL, or the name of an Install or a Route in the namespace, as `notes` or `route/web`.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// The form of the answer: json or yaml.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Top {
    /// What pods use now.
    #[command(visible_aliases = ["pods", "po"])]
    Pod(TopPod),
    /// What nodes, which are the devices, use now.
    #[command(visible_aliases = ["nodes", "no", "device", "devices"])]
    Node(TopNode),
}

#[derive(Args, Debug)]
pub(crate) struct TopPod {
    /// One pod.
    #[arg(value_name = "NAME", conflicts_with = "selector")]
    pub(crate) name: Option<String>,
    /// Only pods with these labels.
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// In every namespace.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Each container in a line of its own.
    #[arg(long)]
    pub(crate) containers: bool,
    /// The most of it first.
    #[arg(long, value_enum, value_name = "RESOURCE")]
    pub(crate) sort_by: Option<Resource>,
    /// Leave the headings out.
    #[arg(long)]
    pub(crate) no_headers: bool,
}

#[derive(Args, Debug)]
pub(crate) struct TopNode {
    /// One node.
    #[arg(value_name = "NAME", conflicts_with = "selector")]
    pub(crate) name: Option<String>,
    /// Only nodes with these labels.
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// The most of it first.
    #[arg(long, value_enum, value_name = "RESOURCE")]
    pub(crate) sort_by: Option<Resource>,
    /// Leave the headings out.
    #[arg(long)]
    pub(crate) no_headers: bool,
}

/// What is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Resource {
    Cpu,
    Memory,
}
