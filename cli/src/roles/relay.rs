//! `relay`: the process of a relay of its own, which has no part in the region's store.
//!
//! ```text
//! relay/relay.key     its Ed25519 key, 32 bytes, mode 0600
//! relay/joined.json   what the region told it last: its certificate, whom to believe, where the region is
//! ```
//!
//! It relays by what it knows, whether the region is reached or not; once an hour it says where it is and gets another certificate. Whoever
//! deletes its Relay object ends it.

use std::{
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use hearth_api::server_name;
use hearth_client::{
    device::{DeviceIdentity, Region},
    relays::{self, RelayCertificate},
    servers,
};
use hearth_proto::v1::RelayAdmission;
use hearth_relay::{Gate, PassGate, Rates, RelayConfig, RelayServer};
use hearth_types::{
    Clock, DeviceKey, Reason, names,
    recovery::PublicKey,
    relay::{BadPass, Pass, check_url},
    token::JoinToken,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    SystemClock,
    composition::tunnel_seed,
    metrics, process,
    server::{address, advertised, bind},
    signals,
};
use crate::{
    args::Relay,
    data_dir::{DataDir, RelayReport, Report, Role, write_atomically},
};

/// The version of `joined.json`.
const VERSION: u32 = 1;
/// How often the region is told where this relay is. Its certificate is good for 90 days, and a deleted Relay is noticed by this.
const RENEWAL: Duration = Duration::from_hours(1);
/// Pauses before the region is asked again that was not reached; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_mins(5);
/// Servers that are remembered.
const MAX_SERVERS: usize = 16;

/// What the region told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Joined {
    version: u32,
    name: String,
    region: String,
    zone: String,
    ca_pem: String,
    /// The relay's certificate and what it was signed with.
    certificate_pem: String,
    /// By which passes are signed.
    pass_key: [u8; 32],
    servers: Vec<String>,
}

impl Joined {
    fn of(answer: &RelayAdmission) -> Result<Self> {
        let text = |bytes: &[u8], what: &str| {
            String::from_utf8(bytes.to_vec()).map_err(|_| anyhow!("the region's answer: {what} is not text"))
        };
        let mut servers = names::addresses(&answer.servers);
        servers.truncate(MAX_SERVERS);
        Ok(Self {
            version: VERSION,
            name: answer.name.clone(),
            region: answer.region.clone(),
            zone: answer.zone.clone(),
            ca_pem: text(&answer.ca_pem, "its CA")?,
            certificate_pem: text(&answer.certificate_pem, "the certificate")?,
            pass_key: answer
                .pass_key
                .as_ref()
                .try_into()
                .map_err(|_| anyhow!("the region's answer: the key of passes has not 32 bytes"))?,
            servers,
        })
    }

    fn load(data: &DataDir) -> Result<Option<Self>> {
        let path = joined_path(data);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let damaged = || format!("{}: not what a relay wrote; remove it and join with a new token", path.display());
        let value: serde_json::Value = serde_json::from_slice(&bytes).with_context(damaged)?;
        if value["version"] != VERSION {
            bail!(
                "{}: of version {}; this release reads {VERSION}: use the release that wrote it",
                path.display(),
                value["version"]
            );
        }
        serde_json::from_value(value).with_context(damaged).map(Some)
    }

    fn write(&self, data: &DataDir) -> Result<()> {
        write_atomically(&joined_path(data), &serde_json::to_vec_pretty(self)?, 0o600)
    }

    fn region(&self) -> Region {
        Region {
            addresses: self.servers.clone(),
            server_name: server_name(&self.zone),
            ca_pem: self.ca_pem.clone().into_bytes(),
            ignore_validity: false,
            has_others: false,
        }
    }
}

fn joined_path(data: &DataDir) -> PathBuf {
    data.relay().join("joined.json")
}

/// Lets nobody in before it is known whose passes to believe.
#[derive(Debug)]
struct LateGate(OnceLock<PassGate>);

impl Gate for LateGate {
    fn admit(&self, key: &DeviceKey, pass: &str) -> Result<Pass, BadPass> {
        self.0.get().ok_or(BadPass::Signature)?.admit(key, pass)
    }
}

/// Runs the role until SIGTERM or SIGINT.
pub(crate) async fn main(args: &Relay) -> Result<()> {
    let data = DataDir::create(&args.dir.data_dir)?;
    process::name_data_dir("relay", &data)?;
    let _lock = data.lock(Role::Relay)?;
    data.clear_report(Role::Relay)?;
    let ended = run(&data, args, signals::shutdown()?).await;
    match &ended {
        Ok(()) => data.clear_report(Role::Relay)?,
        Err(error) => data.write_report::<RelayReport>(Role::Relay, &Report::Failed(format!("{error:#}")))?,
    }
    ended
}

async fn run(data: &DataDir, args: &Relay, shutdown: CancellationToken) -> Result<()> {
    let token = args.join.as_deref().map(str::parse::<JoinToken>).transpose().context("--join")?;
    let known = Joined::load(data)?;
    ensure!(
        known.is_some() || token.is_some(),
        "this relay has not joined a region: start it with --join TOKEN, a token of `hearth token create --relay`"
    );
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let registry = metrics::registry()?;
    // Ports first: what cannot listen fails before a token is used up.
    let metrics_listener = bind("--listen-metrics", "metrics", &args.listen_metrics).await?;
    let metrics_address = metrics_listener.local_addr().context("the metrics' own address")?;
    let listen = address("--listen", &args.listen)?;
    let (certificate, gate) = (RelayCertificate::default(), Arc::new(LateGate(OnceLock::new())));
    let config = RelayConfig {
        listen: Some(listen),
        listen_discovery: listen,
        tls: certificate.server_config()?,
        gate: gate.clone(),
        rates: Rates::default(),
    };
    let server = RelayServer::bind(config, &registry).await.context("cannot start the relay (--listen)")?;
    let own = server.address().context("the relay's own address")?;
    let (url, discovery) = (url(args, own)?, server.discovery_address().port());

    fs::create_dir_all(data.relay()).with_context(|| format!("cannot make {}", data.relay().display()))?;
    let identity = DeviceIdentity::from_seed(&tunnel_seed(&data.relay().join("relay.key"))?)?;
    let place = Place { url: &url, discovery };
    let joined = match (known, token) {
        (Some(known), None) => known,
        (Some(known), Some(token)) if is_of(&known, &token, &identity, &place).await? => known,
        (known, Some(token)) => {
            let name = args.name.clone().or(known.map(|known| known.name)).map_or_else(machine_name, Ok)?;
            let joined = join(&token, &identity, &name, &place).await?;
            joined.write(data)?;
            tracing::info!(relay = joined.name, region = joined.region, url, "joined a region");
            joined
        }
        (None, None) => unreachable!("refused above"),
    };
    certificate.set(&identity, joined.certificate_pem.as_bytes()).map_err(|status| anyhow!(status.message))?;
    let _ = gate.0.set(PassGate::new(PublicKey(joined.pass_key), clock));
    let report = RelayReport {
        pid: std::process::id(),
        name: joined.name.clone(),
        region: joined.region.clone(),
        url: url.clone(),
        relay: own,
        metrics: metrics_address,
    };
    data.write_report(Role::Relay, &Report::Ready(report))?;
    tracing::info!(relay = joined.name, region = joined.region, url, "ready");
    let keeping = keep(data, joined, &identity, &certificate, &place);
    let metrics = async {
        let served = metrics::serve(metrics_listener, registry, shutdown.clone()).await;
        served.context("cannot serve metrics")?;
        // Told to stop: those who are connected are to hear of it.
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        ended = server.run(shutdown.clone()) => Ok(ended?),
        failed = metrics => failed,
        ended = keeping => ended,
    }
}

/// Where this relay answers.
struct Place<'a> {
    url: &'a str,
    discovery: u16,
}

/// Whether this relay is one of the region of a token already, so that the token is passed over. One whose Relay was deleted is none, nor one of
/// a region that was recovered since, which has another CA.
async fn is_of(known: &Joined, token: &JoinToken, identity: &DeviceIdentity, place: &Place<'_>) -> Result<bool> {
    ensure!(
        token.server_name == server_name(&known.zone),
        "--join: the data here is that of a relay of the zone {:?}, and the token is another zone's; use another --data-dir",
        known.zone
    );
    if servers::ca_hash(known.ca_pem.as_bytes()) != Some(token.ca_hash) {
        return Ok(false);
    }
    let told = relays::renew(&known.region(), identity, place.url, place.discovery).await;
    Ok(told.err().is_none_or(|status| status.reason != Reason::Forbidden))
}

async fn join(token: &JoinToken, identity: &DeviceIdentity, name: &str, place: &Place<'_>) -> Result<Joined> {
    let answer = relays::join(token, identity, name, place.url, place.discovery).await;
    let answer = answer.map_err(|status| anyhow!("cannot join the region: {}", status.message))?;
    ensure!(
        server_name(&answer.zone) == token.server_name,
        "the region's answer is of the zone {:?}, and the token is not",
        answer.zone
    );
    Joined::of(&answer)
}

/// Where others reach this relay.
fn url(args: &Relay, listens: SocketAddr) -> Result<String> {
    let url = if let Some(url) = &args.url {
        url.clone()
    } else {
        let own = advertised(listens, &args.advertise)?;
        format!("https://{}", own.first().context("the relay's own address")?)
    };
    check_url(&url).map_err(|why| anyhow!("--url {url:?}: {why}"))?;
    Ok(url)
}

fn machine_name() -> Result<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let label = name.split('.').next().unwrap_or_default().to_owned();
    names::dns_label(&label)
        .map_err(|why| anyhow!("this machine's name {label:?} is no name of a relay ({why}); say one with --name"))?;
    Ok(label)
}

/// Tells the region where this relay is, for as long as it runs. Ends once the region says that it is none of its relays any more.
async fn keep(
    data: &DataDir,
    mut joined: Joined,
    identity: &DeviceIdentity,
    certificate: &RelayCertificate,
    place: &Place<'_>,
) -> Result<()> {
    let (mut pause, mut said) = (FIRST_PAUSE, String::new());
    loop {
        let status = match relays::renew(&joined.region(), identity, place.url, place.discovery).await {
            Ok(answer) => {
                let newer = Joined::of(&answer)?;
                certificate
                    .set(identity, newer.certificate_pem.as_bytes())
                    .map_err(|status| anyhow!(status.message))?;
                // Servers that cannot be told of now are still there.
                let servers = if newer.servers.is_empty() { joined.servers.clone() } else { newer.servers.clone() };
                joined = Joined { servers, ..newer };
                joined.write(data)?;
                (pause, said) = (FIRST_PAUSE, String::new());
                tokio::time::sleep(RENEWAL).await;
                continue;
            }
            Err(status) => status,
        };
        if status.reason == Reason::Forbidden {
            bail!("{}. Its data is in {}", status.message, data.relay().display());
        }
        if said != status.message {
            tracing::warn!(%status, "the region cannot be told of this relay, which goes on with what it knows");
            said = status.message;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}
