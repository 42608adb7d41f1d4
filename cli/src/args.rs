//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where everything is kept unless `--data-dir` says otherwise.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/hearth";

/// Runs apps for people on the devices they own.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, propagate_version = true, max_term_width = 110)]
pub(crate) struct Cli {
    /// The client config in kubeconfig format [default: client.yaml of the default data directory].
    #[arg(long, global = true, env = "HEARTH_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The namespace, which is an owner's name [default: that of the config, else `default`].
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Log lines as text for people or as JSON for programs (roles write them to stderr).
    #[arg(long, global = true, env = "HEARTH_LOG_FORMAT", default_value = "text", hide = true)]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create or change objects to be as manifests say.
    Apply(Apply),
    /// Show objects.
    Get(Get),
    /// Show everything about objects, with their events.
    Describe(Describe),
    /// Delete objects.
    Delete(Delete),
    /// Show what a container printed.
    Logs(Logs),
    /// Run a command in a container.
    Exec(Exec),
    /// Wait until something is true of objects.
    Wait(Wait),
    /// Show events, the newest last.
    Events(Events),
    /// Show the version of this program and of the region.
    Version(Version),
    /// Start a region and one device on this machine.
    Up(Up),
    /// Stop what `up` started. Data stays.
    Down(InDataDir),
    /// Show what runs from a data directory.
    Status(StatusArgs),
    /// Run a region's server in the foreground.
    Server(Server),
    /// Run a device's agent in the foreground.
    Agent(Agent),
    /// Make this machine a device of an owner.
    Join(Join),
    /// Tokens by which devices join.
    #[command(subcommand)]
    Token(Token),
    /// Images on this device.
    #[command(subcommand)]
    Image(Image),
}

/// Where a role or a device's state is.
#[derive(Args, Clone, Debug)]
pub(crate) struct InDataDir {
    /// The directory that holds everything of this instance.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    pub(crate) data_dir: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Apply {
    /// Manifest files or directories, or `-` for standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub(crate) filename: Vec<String>,
    /// Go into subdirectories.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Check everything and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Get {
    /// Kinds and names: `pods`, `pods,installs`, `pod web-1 web-2`, `install/notes`, `all`.
    #[arg(required = true, value_name = "KIND [NAME ...] | KIND/NAME ...")]
    pub(crate) what: Vec<String>,
    /// The form of the answer.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
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
    /// Leave the headings out.
    #[arg(long)]
    pub(crate) no_headers: bool,
    /// Show labels in a last column.
    #[arg(long)]
    pub(crate) show_labels: bool,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Wide,
    Json,
    Yaml,
    Name,
}

#[derive(Args, Debug)]
pub(crate) struct Describe {
    /// A kind with names, or KIND/NAME.
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
pub(crate) struct Delete {
    /// A kind with names, or KIND/NAME.
    #[arg(value_name = "KIND [NAME ...] | KIND/NAME ...")]
    pub(crate) what: Vec<String>,
    /// Delete what these manifests name.
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub(crate) filename: Vec<String>,
    /// Every object with these labels.
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// Every object of the kind in the namespace.
    #[arg(long)]
    pub(crate) all: bool,
    /// Seconds a pod gets to stop; 0 removes it from the region without waiting for its device.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) grace_period: Option<i64>,
    /// Whether to wait until the objects are gone.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "2m", value_parser = duration)]
    pub(crate) timeout: std::time::Duration,
    /// Succeed where there is no such object.
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Logs {
    /// A pod, `deployment/NAME` or `install/NAME`.
    #[arg(value_name = "POD | KIND/NAME")]
    pub(crate) pod: String,
    /// The container, where the pod has several.
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Go on as more is printed.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines.
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u32>,
    /// Of the attempt before this one.
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// With the time of each line.
    #[arg(long)]
    pub(crate) timestamps: bool,
    /// Only what is younger: `10m`.
    #[arg(long, value_parser = duration)]
    pub(crate) since: Option<std::time::Duration>,
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
    /// How long to wait.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub(crate) timeout: std::time::Duration,
    /// Every object with these labels.
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// Every object of the kind in the namespace.
    #[arg(long)]
    pub(crate) all: bool,
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
    /// The form of the answer.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
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

/// Where a server listens. Port 0 picks one anew at each start.
#[derive(Args, Clone, Debug)]
#[allow(clippy::struct_field_names)] // clap makes the flags of the names
pub(crate) struct Listen {
    /// gRPC API for clients and devices.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7443")]
    pub(crate) listen_api: String,
    /// HTTPS for users; plain HTTP on it is redirected.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8443")]
    pub(crate) listen_gateway: String,
    /// DNS, UDP and TCP.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8053")]
    pub(crate) listen_dns: String,
    /// Prometheus metrics of the server, at /metrics, plain HTTP.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9643")]
    pub(crate) listen_metrics: String,
    /// Tunnels of devices, UDP. The host is where devices dial [default: that of the API, port 0].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen_tunnel: Option<String>,
    /// The address at which others reach this server, where it listens on all (0.0.0.0 or ::).
    #[arg(long, value_name = "IP")]
    pub(crate) advertise: Vec<std::net::IpAddr>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) dir: InDataDir,
    /// Go into the background once everything answers.
    #[arg(long)]
    pub(crate) detach: bool,
    /// The DNS suffix under which apps have their names.
    #[arg(long, default_value = "hearth.internal")]
    pub(crate) zone: String,
    /// The example to install: `notes`, or `none` for an empty region.
    #[arg(long, default_value = "notes", value_name = "NAME")]
    pub(crate) example: String,
    #[command(flatten)]
    pub(crate) listen: Listen,
    /// Prometheus metrics of the device, at /metrics, plain HTTP.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9644")]
    pub(crate) listen_device_metrics: String,
    /// The device's name [default: this machine's].
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// Whose the device is.
    #[arg(long, value_name = "NAME", default_value = "alice")]
    pub(crate) owner: String,
    /// Set by `--detach` for the process in the background.
    #[arg(long, hide = true)]
    pub(crate) supervise: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) dir: InDataDir,
    /// The form of the answer.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Server {
    #[command(flatten)]
    pub(crate) dir: InDataDir,
    /// The DNS suffix under which apps have their names. Fixed once the region exists.
    #[arg(long, default_value = "hearth.internal")]
    pub(crate) zone: String,
    /// The region's name.
    #[arg(long, default_value = "home", value_name = "NAME")]
    pub(crate) region: String,
    #[command(flatten)]
    pub(crate) listen: Listen,
    /// Stop when this process, which started this one, does.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) supervised: Option<u32>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Agent {
    #[command(flatten)]
    pub(crate) dir: InDataDir,
    /// The region's server, where it is another than at join.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) server: Option<String>,
    /// Prometheus metrics of the device, at /metrics, plain HTTP.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen_metrics: Option<String>,
    /// Stop when this process, which started this one, does.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) supervised: Option<u32>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Join {
    #[command(flatten)]
    pub(crate) dir: InDataDir,
    /// The token, from `hearth token create`.
    #[arg(value_name = "TOKEN")]
    pub(crate) token: String,
    /// Whose the device is, where the token does not say.
    #[arg(long, value_name = "NAME")]
    pub(crate) owner: Option<String>,
    /// The device's name [default: this machine's].
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The region's server, where the token's addresses do not reach it.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) server: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token by which one device can join.
    Create(TokenCreate),
}

#[derive(Args, Debug)]
pub(crate) struct TokenCreate {
    /// Whose device it will be; without it, the device says.
    #[arg(long, value_name = "NAME")]
    pub(crate) owner: Option<String>,
    /// How long it can be used.
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub(crate) valid: std::time::Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Take an image into this device's store: an OCI layout directory, an OCI or docker archive.
    Import(ImageImport),
    /// Pack files into an OCI image archive, without Docker.
    Build(ImageBuild),
    /// List the images in this device's store.
    Ls(ImageLs),
}

#[derive(Args, Debug)]
pub(crate) struct ImageImport {
    /// The layout directory or archive.
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// The name to give it, where it has none or another is wanted.
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub(crate) tag: Option<String>,
    #[command(flatten)]
    pub(crate) dir: InDataDir,
}

#[derive(Args, Debug)]
pub(crate) struct ImageLs {
    #[command(flatten)]
    pub(crate) dir: InDataDir,
    /// The form of the answer.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
}

#[derive(Args, Debug)]
pub(crate) struct ImageBuild {
    /// The image's name.
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub(crate) tag: String,
    /// Where to write the archive.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// A file or directory to put in: SOURCE:TARGET[:MODE].
    #[arg(long, value_name = "SOURCE:TARGET[:MODE]")]
    pub(crate) copy: Vec<String>,
    /// An image (OCI layout or archive) to put the files on top of.
    #[arg(long, value_name = "PATH")]
    pub(crate) base: Option<PathBuf>,
    /// The program, once per argument.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) entrypoint: Vec<String>,
    /// Its default arguments, once per argument.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) cmd: Vec<String>,
    /// An environment variable.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// The user it runs as: UID[:GID] or NAME[:GROUP].
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// The directory it starts in.
    #[arg(long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// A port it listens on: PORT[/tcp|/udp].
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Vec<String>,
    /// The architecture [default: this machine's], as `amd64`.
    #[arg(long, value_name = "ARCH")]
    pub(crate) arch: Option<String>,
}

/// Reads `90s`, `5m`, `2h`, `1d`, `1h30m`, or plain seconds.
pub(crate) fn duration(text: &str) -> Result<std::time::Duration, String> {
    const WHY: &str = "a duration such as 90s, 5m, 1h30m or 1d";
    let (mut total, mut number) = (0_u64, String::new());
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(WHY.into()),
        };
        let amount: u64 = number.parse().map_err(|_| WHY)?;
        total = amount.checked_mul(unit).and_then(|seconds| total.checked_add(seconds)).ok_or(WHY)?;
        number.clear();
    }
    if !number.is_empty() {
        total = total.checked_add(number.parse().map_err(|_| WHY)?).ok_or(WHY)?;
    } else if text.is_empty() {
        return Err(WHY.into());
    }
    Ok(std::time::Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("1h30m", 5400), ("1d", 86_400), ("7", 7), ("0s", 0)] {
            assert_eq!(duration(text), Ok(std::time::Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "5x", "-1s", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
