//! The command lines of the verbs that reach into what runs: `attach`, `port-forward`, `top`.

use clap::{Args, Subcommand};

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
