//! One end of many tunnels at once, made of the product's own parts, for benchmarks. What it is told and says are lines of JSON.
//!
//! - `gateway LISTEN COUNT`: with the first line on its input it opens a stream to each of so many devices, and keeps them; it says each notice that
//!   a device has to get (`notice`), and when all are open (`open`, `millis`). With the next line, a number of seconds, it sends something over
//!   each stream once a second and waits for it to come back; it says how long that took (`p50_ms`, `p99_ms`).
//! - `devices COUNT`: so many devices, each with a key and a socket of its own, which dial as they are noticed.

#![allow(clippy::print_stdout)] // lines for who started it

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use futures_util::{StreamExt as _, stream};
use hearth_e2e::end::{begin, say};
use hearth_tunnel::{DeviceTunnel, DeviceTunnelConfig, HubConfig, IncomingStreams, TunnelHub};
use hearth_types::{
    BoxFuture, DeviceKey, DeviceName,
    recovery::SigningKey,
    tunnel::{DialError, DialNotice, DialNotifier, Dialer as _, StreamKind},
};
use prometheus::Registry;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

/// Dials at once.
const AT_ONCE: usize = 100;
/// Tries for one tunnel, and the pause before the next one.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(500);
/// What is sent over each new stream, and back.
const WORD: &[u8; 4] = b"ping";
const GATEWAY: [u8; 32] = [2; 32];

fn seed(number: usize) -> [u8; 32] {
    let mut seed = [3; 32];
    seed[..8].copy_from_slice(&(number as u64).to_be_bytes());
    seed
}

fn key(seed: &[u8; 32]) -> DeviceKey {
    DeviceKey(SigningKey::from_seed(seed).public().0)
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = begin()?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["gateway", listen, count] => gateway(listen, count.parse()?).await,
        ["devices", count] => devices(count.parse()?).await,
        other => bail!("what is {other:?}?"),
    }
}

/// The region's sessions: notices are told to whoever started this process, who takes them to the device.
struct Sessions {
    keys: Vec<DeviceKey>,
}

impl Sessions {
    fn number(device: &DeviceName) -> Option<usize> {
        device.to_string().strip_prefix('d')?.parse().ok()
    }
}

impl DialNotifier for Sessions {
    fn ask_to_dial<'a>(
        &'a self,
        device: &'a DeviceName,
        notice: DialNotice,
    ) -> BoxFuture<'a, Result<Vec<DeviceKey>, DialError>> {
        let number = Self::number(device).unwrap_or_default();
        say(&json!({"notice": {"device": number, "addresses": notice.addresses}}));
        Box::pin(async move { Ok(vec![self.keys[number]]) })
    }

    fn device_of_key(&self, found: &DeviceKey) -> Option<DeviceName> {
        self.keys.iter().position(|key| key == found).map(|number| format!("d{number}").as_str().into())
    }

    fn session_of(&self, _: &DeviceName) -> Option<u64> {
        Some(1)
    }
}

async fn gateway(listen: &str, count: usize) -> Result<()> {
    let sessions = Sessions { keys: (0..count).map(|number| key(&seed(number))).collect() };
    let hub = HubConfig::new(GATEWAY, listen.parse()?, Vec::new());
    let hub = TunnelHub::start(hub, Arc::new(sessions), &Registry::new()).await?;
    say(&json!({"ready": true}));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    lines.next_line().await?;
    let begun = Instant::now();
    let open = |number: usize| {
        let hub = hub.clone();
        async move {
            let device = format!("d{number}").as_str().into();
            let mut last = None;
            for _ in 0..TRIES {
                match open_one(&hub, &device).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = Some(error),
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(last.context("no try")?)
        }
    };
    let streams: Vec<_> = stream::iter(0..count).map(open).buffer_unordered(AT_ONCE).collect().await;
    let streams = streams.into_iter().collect::<Result<Vec<_>>>()?;
    say(&json!({"open": streams.len(), "millis": begun.elapsed().as_millis()}));
    let Some(line) = lines.next_line().await? else { return Ok(()) };
    let seconds: u32 = line.trim().parse()?;
    // Spread over the second.
    let each = |(number, stream)| busy(stream, seconds, Duration::from_secs(1).mul_f64(number as f64 / count as f64));
    let busy: Vec<_> = streams.into_iter().enumerate().map(|one| tokio::spawn(each(one))).collect();
    let (mut times, mut kept) = (Vec::new(), Vec::new());
    for one in busy {
        let (stream, taken) = one.await??;
        kept.push(stream);
        times.extend(taken);
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    say(&json!({"echoes": times.len(), "p50_ms": at(50), "p99_ms": at(99)}));
    // Until the input ends.
    while lines.next_line().await?.is_some() {}
    Ok(())
}

/// Sends a kilobyte a second, and has it back.
async fn busy(
    mut stream: hearth_tunnel::TunnelStream,
    seconds: u32,
    first: Duration,
) -> Result<(hearth_tunnel::TunnelStream, Vec<Duration>)> {
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + first, Duration::from_secs(1));
    let (sent, mut back, mut times) = ([7; 1024], [0; 1024], Vec::new());
    for _ in 0..seconds {
        tick.tick().await;
        let begun = Instant::now();
        stream.write_all(&sent).await?;
        stream.read_exact(&mut back).await?;
        anyhow::ensure!(sent == back, "what came back is not what was sent");
        times.push(begun.elapsed());
    }
    Ok((stream, times))
}

async fn open_one(hub: &TunnelHub, device: &DeviceName) -> Result<hearth_tunnel::TunnelStream> {
    let mut stream = hub.dial(device, StreamKind::Rpc).await?;
    stream.write_all(WORD).await?;
    let mut answer = [0; WORD.len()];
    stream.read_exact(&mut answer).await?;
    Ok(stream)
}

async fn devices(count: usize) -> Result<()> {
    let gateway = key(&GATEWAY).0;
    let mut tunnels = Vec::new();
    for number in 0..count {
        let config = DeviceTunnelConfig::new(seed(number), move |key| *key == gateway);
        let (tunnel, incoming) = DeviceTunnel::start(config, &Registry::new())?;
        tokio::spawn(echo(incoming));
        tunnels.push(tunnel);
    }
    say(&json!({"ready": true}));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let order: Value = serde_json::from_str(&line)?;
        let number = order["notice"]["device"].as_u64().context("a device")?;
        let addresses = serde_json::from_value(order["notice"]["addresses"].clone())?;
        let notice = DialNotice { gateway_key: gateway, addresses, relays: Vec::new() };
        let tunnel = tunnels.get(usize::try_from(number)?).context("no such device")?.clone();
        tokio::spawn(async move {
            if let Err(error) = tunnel.dial(notice).await {
                tracing::warn!(number, ?error, "cannot dial");
            }
        });
    }
    Ok(())
}

/// Sends back what comes.
async fn echo(mut incoming: IncomingStreams) {
    while let Some(stream) = incoming.next().await {
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(stream.stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
    }
}
