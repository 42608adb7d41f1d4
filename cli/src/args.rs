//! The command line.

mod change;
mod live;
mod region;
mod view;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use change::{
    Annotate, Apply, Cascade, Cordon, Create, Delete, DryRun, Edit, Files, Label, Marks, Patch, PatchType, Replace,
    Scale, Taint,
};
pub(crate) use live::{Attach, Debug, PortForward, Resource, Top, TopNode, TopPod, Trace};
pub(crate) use region::{
    Region, RegionAcme, RegionBackup, RegionDnssec, RegionInspect, RegionMembers, RegionRecover, RegionRecoveryKey,
    RegionRemove, RegionRestore, RegionTransfer, Roll,
};
pub(crate) use view::{
    ApiResources, Completion, Describe, Events, Exec, Explain, Get, Logs, Rollout, RolloutStatus, Shell, Version, Wait,
};

/// Where everything is kept unless `--data-dir` says otherwise.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/hearth";
/// In the place of an address to listen at: the gateway's, with which it is shared.
pub(crate) const GATEWAY: &str = "gateway";

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
    /// Read and write what a container's first process does, from now on.
    Attach(Attach),
    /// Put a container beside those of a running pod, to look into it.
    Debug(Debug),
    /// Have ports of this machine lead to ports of a pod.
    PortForward(PortForward),
    /// Show what pods or nodes use now.
    #[command(subcommand)]
    Top(Top),
    /// Explain how a request for a name travels from here, step by step, and which step is broken.
    Trace(Trace),
    /// Wait until something is true of objects.
    Wait(Wait),
    /// Show events, the newest last.
    Events(Events),
    /// Create objects; fails where there is one of that name.
    Create(Create),
    /// Replace objects by what manifests say, whole.
    Replace(Replace),
    /// Change an object in your editor.
    Edit(Edit),
    /// Change fields of objects.
    Patch(Patch),
    /// Set labels of objects, or remove them.
    Label(Label),
    /// Set annotations of objects, or remove them.
    Annotate(Annotate),
    /// Set how many replicas run.
    Scale(Scale),
    /// Follow how a deployment is rolled out.
    #[command(subcommand)]
    Rollout(Rollout),
    /// Place no more pods on a node.
    Cordon(Cordon),
    /// Place pods on a node again.
    Uncordon(Cordon),
    /// Set taints of nodes, or remove them.
    Taint(Taint),
    /// Show the kinds that there are.
    ApiResources(ApiResources),
    /// Show the fields of a kind.
    Explain(Explain),
    /// Print what completes this program's command lines in a shell.
    Completion(Completion),
    /// Show the version of this program and of the region.
    Version(Version),
    /// Start a region and one device on this machine.
    Up(Up),
    /// Stop what `up` started. Data stays.
    Down(InDataDir),
    /// Show what runs from a data directory.
    Status(LookArgs),
    /// Run a region's server in the foreground.
    Server(Server),
    /// Run a device's agent in the foreground.
    Agent(Agent),
    /// Run a relay of its own in the foreground: devices whose networks let no tunnel through are reached by it.
    Relay(Relay),
    /// Make this machine a device of an owner.
    Join(Join),
    /// Tokens by which devices and servers join.
    #[command(subcommand)]
    Token(Token),
    /// The region itself: its servers, backups, and what is restored from them.
    #[command(subcommand)]
    Region(Region),
    /// Images on this device.
    #[command(subcommand)]
    Image(Image),
}

/// Where a role or a device's state is.
#[derive(Args, Clone, Debug)]
pub(crate) struct InDataDir {
    /// The directory that holds everything of this instance.
    #[arg(long, env = "HEARTH_DATA_DIR", value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    pub(crate) data_dir: PathBuf,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Wide,
    Json,
    Yaml,
    Name,
}

/// Where a server listens. Port 0 picks one anew at each start.
#[derive(Args, Clone, Debug)]
#[expect(clippy::struct_field_names, reason = "as the flags are called")]
pub(crate) struct Listen {
    /// gRPC API for clients and devices; `gateway`: at the gateway's port alone, where api.ZONE leads to it in any case.
    #[arg(long, value_name = "HOST:PORT|gateway", default_value = "127.0.0.1:7443")]
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
    /// A relay for devices whose networks let no tunnel through, TCP, and UDP at the same port [default: none]. Port 443 is open nearly everywhere.
    /// `gateway`: at the gateway's port, where relay.api.ZONE leads to it in any case.
    #[arg(long, value_name = "HOST:PORT|gateway")]
    pub(crate) listen_relay: Option<String>,
    /// The address at which others reach this server, where it listens on all (0.0.0.0 or ::). The first one is where the other servers do.
    #[arg(long, value_name = "IP")]
    pub(crate) advertise: Vec<std::net::IpAddr>,
    /// A file that says where gateways are and which are nearest to whom: lines `gateway ADDRESS LOCATION` and `clients PREFIX LOCATION...`.
    #[arg(long, value_name = "FILE")]
    pub(crate) dns_locations: Option<PathBuf>,
    /// The name server that is asked for owners' domains (TXT, A, AAAA) [default: those of /etc/resolv.conf].
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) resolver: Option<std::net::SocketAddr>,
    /// The TCP and UDP ports that Routes may ask for, such as 30000-32767, at the gateway's host [default: none]. The same at every server.
    #[arg(long, value_name = "FIRST-LAST", value_parser = port_range)]
    pub(crate) port_range: Option<std::ops::RangeInclusive<u16>>,
    /// How long a device goes on with volumes of the policy Move after it last heard from its region; another one gets them a tenth later. The
    /// same at every server.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = volume_lease)]
    pub(crate) volume_lease: std::time::Duration,
    /// How long the gateway lets answers under way go on once it is told to stop, and takes nobody new. More than the default where there are
    /// other gateways, which take who comes meanwhile.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = drain)]
    pub(crate) drain: std::time::Duration,
}

/// A server that is told to stop has to end while who told it still knows.
fn drain(text: &str) -> Result<std::time::Duration, String> {
    let drain = duration(text)?;
    if drain <= std::time::Duration::from_mins(10) { Ok(drain) } else { Err("must be at most 10m".into()) }
}

/// Between what a busy device renews in time and how long anybody would be without an app.
fn volume_lease(text: &str) -> Result<std::time::Duration, String> {
    let lease = duration(text)?;
    let allowed = hearth_types::lease::MIN_LEASE..=hearth_types::lease::MAX_LEASE;
    if allowed.contains(&lease) { Ok(lease) } else { Err("must be from 5s to 1h".into()) }
}

/// Reads `FIRST-LAST`, or one port.
fn port_range(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first @ 1..), Ok(last)) if first <= last => Ok(first..=last),
        _ => Err("must be two ports between 1 and 65535, the lower one first, such as 30000-32767".into()),
    }
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
    #[command(flatten)]
    pub(crate) give: Give,
    /// Set by `--detach` for the process in the background.
    #[arg(long, hide = true)]
    pub(crate) supervise: bool,
}

/// What is looked at from a data directory, and how it is told.
#[derive(Args, Clone, Debug)]
pub(crate) struct LookArgs {
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
    /// Join a region as one more server, by a token from `hearth token create --server`. Needed once: a server that has joined is passed over.
    #[arg(long, value_name = "TOKEN", env = "HEARTH_JOIN_TOKEN", hide_env_values = true)]
    pub(crate) join: Option<String>,
    /// The DNS suffix under which apps have their names [default: as it was, else hearth.internal]. Fixed once the region exists.
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// The region's name [default: that of the region it joined, else home].
    #[arg(long, value_name = "NAME")]
    pub(crate) region: Option<String>,
    #[command(flatten)]
    pub(crate) listen: Listen,
    /// How often the region's leader is heard of by the other servers; the same at all of them. Twice the longest round trip between
    /// servers, where that is above 35 ms. A leader's death is noticed after 8 to 10 of them.
    #[arg(long, value_name = "DURATION", default_value = "75ms", value_parser = heartbeat)]
    pub(crate) heartbeat: std::time::Duration,
    /// Take part in the region as the release with this feature level does. After an update of all servers, so that the release before can
    /// still be gone back to; without it, the region's level rises for good once all servers know a higher one.
    #[arg(long = "emulated-feature-level", value_name = "LEVEL", default_value_t = hearth_raft::FEATURE_LEVEL,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(hearth_raft::FEATURE_LEVEL)))]
    pub(crate) feature_level: u32,
    /// Stop when this process, which started this one, does.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) supervised: Option<u32>,
}

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Agent {
    /// What to do instead of running.
    #[command(subcommand)]
    pub(crate) instead: Option<AgentVerb>,
    #[command(flatten)]
    pub(crate) dir: InDataDir,
    /// The region's server, where it is another than at join.
    #[arg(long, value_name = "HOST:PORT", value_parser = api_address)]
    pub(crate) server: Option<String>,
    /// Prometheus metrics of the device, at /metrics, plain HTTP.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen_metrics: Option<String>,
    #[command(flatten)]
    pub(crate) give: Give,
    /// Stop when this process, which started this one, does.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) supervised: Option<u32>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Relay {
    #[command(flatten)]
    pub(crate) dir: InDataDir,
    /// Join a region by a token from `hearth token create --relay`. Needed once: one of the region already passes it over.
    #[arg(long, value_name = "TOKEN", env = "HEARTH_JOIN_TOKEN", hide_env_values = true)]
    pub(crate) join: Option<String>,
    /// The relay's name [default: this machine's].
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Devices and gateways, TCP, and UDP at the same port. Port 443 is open nearly everywhere.
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:443")]
    pub(crate) listen: String,
    /// The address at which others reach this relay, where it listens on all (0.0.0.0 or ::).
    #[arg(long, value_name = "IP", conflicts_with = "url")]
    pub(crate) advertise: Vec<std::net::IpAddr>,
    /// Where others reach this relay, where that is by a name or another port: https://HOST:PORT.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Prometheus metrics of the relay, at /metrics, plain HTTP.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9645")]
    pub(crate) listen_metrics: String,
}

/// What of the machine apps get beyond what is theirs.
#[derive(Args, Clone, Debug)]
pub(crate) struct Give {
    /// A directory of this machine that its owner's apps may mount (hostPath) with what is below it; with `:ro` none may write. Once for each.
    #[arg(long = "host-path", value_name = "PATH[:ro]", env = "HEARTH_HOST_PATHS", value_delimiter = ',')]
    pub(crate) host_paths: Vec<hearth_agent::HostPath>,
    /// The TCP port at this machine's own addresses, where the owner's apps answer if the Device says so (spec.publish): inside the home (lan), and to
    /// the internet (external, which takes 443, and externalIPs, of which the router's port 443 has to lead here).
    #[arg(long, value_name = "PORT", default_value_t = 443, value_parser = clap::value_parser!(u16).range(1..), env = "HEARTH_LAN_PORT")]
    pub(crate) lan_port: u16,
}

impl Give {
    /// For a process that is to give the same.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = String> + '_ {
        let paths = self.host_paths.iter().map(|path| format!("--host-path={path}"));
        paths.chain([format!("--lan-port={}", self.lan_port)])
    }
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum AgentVerb {
    /// Look at this machine: what it has and lacks for running apps, and what to do about it. Fails where something is lacking.
    Check(LookArgs),
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
    /// The region's server, where the token's addresses do not reach it: HOST:PORT or https://HOST. Also at a gateway's port.
    #[arg(long, value_name = "HOST:PORT", value_parser = api_address)]
    pub(crate) server: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token by which one device, or one server of the region, can join.
    Create(TokenCreate),
    /// List the tokens, without their secrets.
    Ls(TokenLs),
    /// Delete a token, so that nobody joins by it any more.
    Delete(TokenDelete),
}

#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("whose").required(true).args(["owner", "any_owner", "server", "relay"])))]
pub(crate) struct TokenCreate {
    /// Whose device it will be.
    #[arg(long, value_name = "NAME")]
    pub(crate) owner: Option<String>,
    /// The joining device says whose it is: whoever has the token chooses any owner.
    #[arg(long)]
    pub(crate) any_owner: bool,
    /// For another server of the region, which gets the key of the region's CA by it: whoever has the token can be the region.
    #[arg(long)]
    pub(crate) server: bool,
    /// For a relay of the region that runs by itself (`hearth relay`).
    #[arg(long)]
    pub(crate) relay: bool,
    /// Where the joining one is to find the region, in the place of its servers' own addresses; once for each. A gateway's port (443) as well
    /// as the API's: api.ZONE leads from the one to the other.
    #[arg(long = "at", value_name = "HOST:PORT", value_parser = api_address)]
    pub(crate) at: Vec<String>,
    /// No device joins by it: it is a link to the status page of the owner, at `status.<zone>`, good as often as it is followed.
    #[arg(long, requires = "owner", conflicts_with = "at")]
    pub(crate) status: bool,
    /// How long it can be used [default: 1h; with --status 90d].
    #[arg(long, value_parser = duration)]
    pub(crate) valid: Option<std::time::Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct TokenLs {
    /// The form of the answer: json or yaml.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
}

#[derive(Args, Debug)]
pub(crate) struct TokenDelete {
    /// The token's id, from `hearth token ls`.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Take an image into this device's store: an OCI layout directory, an OCI or docker archive.
    Import(ImageImport),
    /// Fetch an image from its registry (see registries.yaml in the data directory).
    Pull(ImagePull),
    /// Pack files into an OCI image archive, without Docker.
    Build(ImageBuild),
    /// List the images in this device's store.
    Ls(ImageLs),
    /// Remove names of images from this device's store; what nothing uses then is removed by the agent.
    Rm(ImageRm),
}

#[derive(Args, Debug)]
pub(crate) struct ImageRm {
    /// The names, or digests.
    #[arg(value_name = "NAME[:TAG]", required = true)]
    pub(crate) references: Vec<String>,
    /// Also where pods of this device use it: they run on, and cannot be started again.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) dir: InDataDir,
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
pub(crate) struct ImagePull {
    /// The image: `name[:tag]` or `name@sha256:...`, with its registry's host before it unless it is Docker Hub.
    #[arg(value_name = "IMAGE")]
    pub(crate) reference: String,
    /// Also where the image is here: the registry may have a newer one.
    #[arg(long)]
    pub(crate) always: bool,
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

/// Reads where an API answers: `HOST:PORT`, or a URL, whose port is 443 unless it says another.
pub(crate) fn api_address(text: &str) -> Result<String, String> {
    let (rest, url) = text.strip_prefix("https://").map_or((text, false), |rest| (rest, true));
    let rest = if url { rest.strip_suffix('/').unwrap_or(rest) } else { rest };
    let bare = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some() || !rest.contains(':');
    let address = if url && bare { format!("{rest}:443") } else { rest.to_owned() };
    let why = "must be HOST:PORT, or https://HOST:PORT and nothing behind that";
    if hearth_types::names::is_address(&address) { Ok(address) } else { Err(why.into()) }
}

/// Between what a busy machine keeps up with and what anybody would wait for.
fn heartbeat(text: &str) -> Result<std::time::Duration, String> {
    let beat = duration(text)?;
    let allowed = std::time::Duration::from_millis(20)..=std::time::Duration::from_secs(5);
    if allowed.contains(&beat) { Ok(beat) } else { Err("must be from 20ms to 5s".into()) }
}

/// Reads `500ms`, `90s`, `1.5h`, `1h30m`, `1d`, or plain seconds.
pub(crate) fn duration(text: &str) -> Result<std::time::Duration, String> {
    const WHY: &str = "a duration such as 500ms, 90s, 5m, 1h30m or 1d";
    let mut total = std::time::Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            // A number without a unit stands alone.
            "" if digits == text.len() => 1.0,
            _ => return Err(WHY.into()),
        };
        let amount: f64 = number.parse().map_err(|_| WHY)?;
        let part = std::time::Duration::try_from_secs_f64(amount * seconds).map_err(|_| WHY)?;
        total = total.checked_add(part).ok_or(WHY)?;
        rest = after;
    }
    if text.is_empty() { Err(WHY.into()) } else { Ok(total) }
}

/// What kubectl takes a negative timeout for.
const A_WEEK: std::time::Duration = std::time::Duration::from_hours(7 * 24);

/// Reads how long to wait: a negative time is a week, as kubectl has it.
pub(crate) fn timeout(text: &str) -> Result<std::time::Duration, String> {
    match text.strip_prefix('-') {
        Some(positive) => duration(positive).map(|_| A_WEEK),
        None => duration(text),
    }
}

/// Reads how long a deletion is waited for: none given means a week, as kubectl has it.
pub(crate) fn deletion_timeout(text: &str) -> Result<std::time::Duration, String> {
    timeout(text).map(|time| if time.is_zero() { A_WEEK } else { time })
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
    fn addresses_of_the_api_are_read() {
        for (text, address) in [
            ("api.example.test:443", "api.example.test:443"),
            ("https://api.example.test", "api.example.test:443"),
            ("https://api.example.test/", "api.example.test:443"),
            ("https://192.0.2.1:7443", "192.0.2.1:7443"),
            ("https://[2001:db8::1]", "[2001:db8::1]:443"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ] {
            assert_eq!(api_address(text).as_deref(), Ok(address), "{text}");
        }
        for text in [
            "",
            "api.example.test",
            "http://a.b:1",
            "https://",
            "https://a.b/path",
            "a.b:0",
            "https://a b",
            "2001:db8::1",
        ] {
            assert!(api_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("1h30m", 5400), ("1d", 86_400), ("7", 7), ("0s", 0)] {
            assert_eq!(duration(text), Ok(std::time::Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("1m500ms"), Ok(std::time::Duration::from_millis(60_500)));
        assert_eq!(duration("1.5h"), Ok(std::time::Duration::from_secs(5400)));
        assert_eq!(timeout("-1s"), Ok(A_WEEK));
        assert_eq!(timeout("0"), Ok(std::time::Duration::ZERO));
        assert_eq!(deletion_timeout("0s"), Ok(A_WEEK));
        assert_eq!(heartbeat("150ms"), Ok(std::time::Duration::from_millis(150)));
        assert!(heartbeat("5ms").is_err() && heartbeat("1m").is_err());
        assert!(drain("10m").is_ok() && drain("601s").is_err());
        assert!(volume_lease("10s").is_ok() && volume_lease("1s").is_err() && volume_lease("1d").is_err());
        for text in ["", "s", "5x", "-1s", "1h5", "5 m", "1..2s", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
