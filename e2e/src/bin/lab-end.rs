//! One end in the laboratory of lines, as a process that can be put into a network namespace: a relay, a gateway or a device, made of the
//! product's own tunnels. Told what to do by lines of JSON, and answers by them.
//!
//! `lab-end relay NAME LISTEN`, `lab-end gateway LISTEN`, `lab-end device`, each with the authority's folder and the relays behind that.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)] // a part of tests

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use hearth_client::device::relay_trust;
use hearth_e2e::end::{begin, say};
use hearth_relay::{PassGate, Rates, RelayConfig, RelayServer};
use hearth_tunnel::{DeviceTunnel, DeviceTunnelConfig, HubConfig, IncomingStreams, RelaySet, TunnelHub, TunnelPath};
use hearth_types::{
    BoxFuture, Clock, DeviceKey, DeviceName, Timestamp,
    recovery::SigningKey,
    relay::{Pass, Relay, RelayAccess, server_name},
    tunnel::{DialError, DialNotice, DialNotifier, Dialer as _, StreamKind},
};
use prometheus::Registry;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_util::sync::CancellationToken;

/// The name of the only device.
const DEVICE: &str = "nas";
const ZONE: &str = "example.test";
/// How long a stream may take that carries nothing much.
const STREAM: Duration = Duration::from_secs(60);

struct Now;

impl Clock for Now {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        Timestamp(i64::try_from(since.as_millis()).expect("not the far future"))
    }
}

fn region() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn seed(role: &str) -> [u8; 32] {
    if role == "gateway" { [2; 32] } else { [3; 32] }
}

fn key(role: &str) -> DeviceKey {
    DeviceKey(SigningKey::from_seed(&seed(role)).public().0)
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = begin()?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["relay", folder, listen] => relay(Path::new(folder), listen).await,
        ["gateway", folder, listen, relays @ ..] => gateway(Path::new(folder), listen, relays).await,
        ["device", folder, relays @ ..] => device(Path::new(folder), relays).await,
        other => bail!("what is {other:?}?"),
    }
}

async fn relay(folder: &Path, listen: &str) -> Result<()> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let chain = CertificateDer::pem_file_iter(folder.join("relay.pem"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(folder.join("relay.key"))?;
    let tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    let config = RelayConfig {
        listen: Some(listen.parse()?),
        listen_discovery: listen.parse()?,
        tls: Arc::new(tls),
        gate: Arc::new(PassGate::new(region().public(), Arc::new(Now))),
        rates: Rates::default(),
    };
    let server = RelayServer::bind(config, &Registry::new()).await?;
    say(&json!({"ready": server.address()}));
    Ok(server.run(CancellationToken::new()).await?)
}

/// The relays of the command line, `NAME=HOST:PORT`.
fn relays(folder: &Path, texts: &[&str], role: &str) -> Result<RelaySet> {
    let relay = |text: &&str| {
        let (name, address) = text.split_once('=').context("NAME=HOST:PORT")?;
        let address: std::net::SocketAddr = address.parse()?;
        Ok(Relay { name: name.into(), url: format!("https://{address}"), discovery_port: address.port() })
    };
    let relays = texts.iter().map(relay).collect::<Result<Vec<_>>>()?;
    let pass = match role {
        "gateway" => Pass::of_gateway(key(role), Now.now()),
        _ => Pass::of_device(key(role), "alice", Now.now()),
    };
    let access = RelayAccess { relays, pass: pass.sign(&region()) };
    let trust = relay_trust(&std::fs::read(folder.join("ca.pem"))?, false)?;
    Ok(RelaySet { access, trust, server_name: server_name(ZONE) })
}

/// The region's sessions: notices are told to whoever started this process, who takes them to the device.
struct Sessions;

impl DialNotifier for Sessions {
    fn ask_to_dial<'a>(
        &'a self,
        _: &'a DeviceName,
        notice: DialNotice,
    ) -> BoxFuture<'a, Result<Vec<DeviceKey>, DialError>> {
        say(&json!({"notice": {"addresses": notice.addresses, "relays": notice.relays}}));
        Box::pin(async { Ok(vec![key("device")]) })
    }

    fn device_of_key(&self, found: &DeviceKey) -> Option<DeviceName> {
        (*found == key("device")).then(|| DEVICE.into())
    }

    fn session_of(&self, _: &DeviceName) -> Option<u64> {
        Some(1)
    }
}

async fn gateway(folder: &Path, listen: &str, texts: &[&str]) -> Result<()> {
    let hub = HubConfig::new(seed("gateway"), listen.parse()?, Vec::new());
    let hub = TunnelHub::start(hub, Arc::new(Sessions), &Registry::new()).await?;
    hub.set_relays(relays(folder, texts, "gateway")?).await;
    say(&json!({"ready": true}));
    let kept: Arc<Mutex<HashMap<u64, hearth_tunnel::TunnelStream>>> = Arc::default();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let order: Value = serde_json::from_str(&line)?;
        let (hub, kept) = (hub.clone(), Arc::clone(&kept));
        tokio::spawn(async move {
            let begun = Instant::now();
            let done = obey(&hub, &kept, &order).await;
            let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            say(&match done {
                Ok(value) => json!({"done": value, "millis": millis}),
                Err(error) => json!({"failed": format!("{error:#}"), "millis": millis}),
            });
        });
    }
    Ok(())
}

/// `{"echo": BYTES, "stream": N}`: sends so many bytes and wants them back, by a stream that is kept under a number.
async fn obey(
    hub: &TunnelHub,
    kept: &Mutex<HashMap<u64, hearth_tunnel::TunnelStream>>,
    order: &Value,
) -> Result<Value> {
    if order["relay"].is_boolean() {
        return Ok(json!(hub.relay()));
    }
    let bytes = usize::try_from(order["echo"].as_u64().context("echo")?)?;
    let number = order["stream"].as_u64().unwrap_or_default();
    let found = kept.lock().unwrap().remove(&number);
    let stream = match found {
        Some(stream) => stream,
        None => hub.dial(&DEVICE.into(), StreamKind::Rpc).await?,
    };
    let (mut read, mut write) = tokio::io::split(stream);
    let sent: Vec<u8> = (0..bytes).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut received = vec![0; bytes];
    let both = async { tokio::try_join!(write.write_all(&sent), read.read_exact(&mut received)) };
    tokio::time::timeout(STREAM, both).await.context("the stream stands still")??;
    ensure!(sent == received, "what came back is not what was sent");
    kept.lock().unwrap().insert(number, read.unsplit(write));
    Ok(json!(bytes))
}

async fn device(folder: &Path, texts: &[&str]) -> Result<()> {
    let gateway = key("gateway").0;
    let config = DeviceTunnelConfig::new(seed("device"), move |key| *key == gateway);
    let (tunnel, incoming) = DeviceTunnel::start(config, &Registry::new())?;
    tunnel.set_relays(relays(folder, texts, "device")?).await;
    tokio::spawn(echo(incoming));
    say(&json!({"ready": true}));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let order: Value = serde_json::from_str(&line)?;
        if let Some(notice) = order.get("notice") {
            let addresses = serde_json::from_value(notice["addresses"].clone())?;
            let relays = serde_json::from_value(notice["relays"].clone())?;
            let notice = DialNotice { gateway_key: gateway, addresses, relays };
            let tunnel = tunnel.clone();
            tokio::spawn(async move {
                if let Err(error) = tunnel.dial(notice).await {
                    tracing::warn!(?error, "cannot dial");
                }
            });
        } else {
            let tunnels = tunnel.tunnels();
            let paths: Vec<_> = tunnels
                .iter()
                .map(|one| match &one.path {
                    Some(TunnelPath::Direct(address)) => json!({"direct": address}),
                    Some(TunnelPath::Relay(name)) => json!({"relay": name}),
                    None => Value::Null,
                })
                .collect();
            let line = tunnel.line(Duration::ZERO).await;
            let line =
                line.map(|line| json!({"udp": line.udp, "portVaries": line.port_varies, "relays": line.relays.len()}));
            say(&json!({"paths": paths, "line": line}));
        }
    }
    tunnel.close().await;
    Ok(())
}

/// Sends back what comes.
async fn echo(mut incoming: IncomingStreams) {
    while let Some(stream) = incoming.next().await {
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(stream.stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
    }
}
