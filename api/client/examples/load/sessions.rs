//! Sessions of many devices that have nothing to do: each with a connection, a key and a heartbeat of its own, as an agent has them, and each
//! comes back by itself when its server is gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use hearth_client::{
    Client, Config, WriteOptions,
    device::{self, DeviceIdentity, Region},
};
use hearth_proto::{
    MAX_MESSAGE_BYTES, SESSION_VERSION,
    v1::{
        DeviceHello, DeviceMessage, Heartbeat, device_message::Message as Up, devices_client::DevicesClient,
        region_message::Message as Down,
    },
};
use hearth_types::kinds::DeviceInfo;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{interval, sleep, timeout},
};

use crate::{Failure, line};

/// Devices of one owner.
const OF_AN_OWNER: usize = 10;
/// Objects of one call.
const A_CALL: usize = 400;
/// How long connecting and the region's hello may take, as the agent has it.
const HELLO: Duration = Duration::from_secs(10);
/// Pauses before the next try, as the agent has them; half of each is left to chance.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How often it is looked whether all are there.
const LOOK: Duration = Duration::from_millis(50);

/// Makes devices, opens a session of each and says so (`open`); with each line on its input it waits until a session was lost, and says when all
/// are there again (`back`).
pub(crate) async fn run(count: usize, config: &Config) -> Result<serde_json::Value, Failure> {
    let identities: Vec<_> = (0..count).map(identity).collect::<Result<_, _>>()?;
    make(&identities, config).await?;
    let resolved = config.resolve()?;
    let region = Arc::new(Region {
        addresses: resolved.addresses,
        server_name: resolved.server_name,
        ca_pem: resolved.ca_pem,
        ignore_validity: false,
        has_others: false,
    });
    println!("{}", json!({"made": count}));
    line().await?;
    let (open, begun) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    for (number, identity) in identities.into_iter().enumerate() {
        tokio::spawn(lives(number, Arc::clone(&region), identity, Arc::clone(&open)));
    }
    let all = |wanted: usize| {
        let open = Arc::clone(&open);
        async move {
            while open.load(Ordering::Relaxed) < wanted {
                sleep(LOOK).await;
            }
        }
    };
    all(count).await;
    println!("{}", json!({"open": count, "millis": begun.elapsed().as_millis()}));
    loop {
        if line().await? == 0 {
            return Ok(json!({"ended": open.load(Ordering::Relaxed)}));
        }
        // Each has to find out that its server is gone; those that did are on their way already.
        while open.load(Ordering::Relaxed) > count / 2 {
            sleep(LOOK).await;
        }
        println!("{}", json!({"lost": count - open.load(Ordering::Relaxed)}));
        let begun = Instant::now();
        all(count).await;
        println!("{}", json!({"back": count, "millis": begun.elapsed().as_millis()}));
    }
}

fn identity(number: usize) -> Result<DeviceIdentity, Failure> {
    let mut seed = [0x5e; 32];
    seed[..8].copy_from_slice(&(number as u64).to_be_bytes());
    Ok(DeviceIdentity::from_seed(&seed)?)
}

async fn make(identities: &[DeviceIdentity], config: &Config) -> Result<(), Failure> {
    let client = Client::connect(config)?;
    let device = |(number, identity): (usize, &DeviceIdentity)| {
        let owner = format!("owner-{:04}", number / OF_AN_OWNER);
        json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device",
            "metadata": {"name": format!("nas-{number:05}"), "namespace": owner},
            "spec": {"owner": owner, "keys": [identity.key().to_string()]}})
    };
    let devices: Vec<_> = identities.iter().enumerate().map(device).collect();
    for part in devices.chunks(A_CALL) {
        client.apply_all(part, &WriteOptions::default()).await?;
    }
    Ok(())
}

/// One device: a session after the other.
async fn lives(number: usize, region: Arc<Region>, identity: DeviceIdentity, open: Arc<AtomicUsize>) {
    // As after a power cut: not all at the same moment, but nearly.
    sleep(chance(number, FIRST_PAUSE * 10)).await;
    let (mut pause, mut said) = (FIRST_PAUSE, false);
    loop {
        let mut was_open = false;
        if let Err(error) = session(&region, &identity, &open, &mut was_open).await
            && !std::mem::replace(&mut said, true)
            && number == 0
        {
            eprintln!("the first device: {error}");
        }
        pause = if was_open { FIRST_PAUSE } else { (pause * 2).min(MAX_PAUSE) };
        sleep(pause / 2 + chance(number, pause / 2)).await;
    }
}

/// Some part of a time, which differs from device to device.
fn chance(number: usize, most: Duration) -> Duration {
    most.mul_f64((number.wrapping_mul(2_654_435_761) % 1000) as f64 / 1000.0)
}

/// A mini-PC.
fn info() -> DeviceInfo {
    DeviceInfo {
        architecture: "amd64".into(),
        kernel_version: "6.12.0".into(),
        os_image: "Debian GNU/Linux 13 (trixie)".into(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        cpu_millis: 4000,
        memory_bytes: 8 << 30,
        pods: 110,
        storage_bytes: Some(100 << 30),
        storage_allocatable_bytes: Some(80 << 30),
        missing: Vec::new(),
        features: Vec::new(),
    }
}

/// Counts a session as open.
struct Open<'a>(&'a AtomicUsize);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn session(
    region: &Region,
    identity: &DeviceIdentity,
    open: &AtomicUsize,
    was_open: &mut bool,
) -> Result<(), Failure> {
    let mut client =
        DevicesClient::new(device::connect(region, identity)?).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let (sender, receiver) = mpsc::channel(4);
    let message = |message| DeviceMessage { message: Some(message) };
    let hello = DeviceHello {
        versions: vec![SESSION_VERSION],
        info_json: serde_json::to_vec(&info())?.into(),
        ..DeviceHello::default()
    };
    sender.send(message(Up::Hello(hello))).await?;
    let outgoing =
        stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|one| (one, receiver)) });
    let begin = async {
        let mut inbound = client.session(outgoing).await?.into_inner();
        match inbound.next().await.transpose()?.and_then(|first| first.message) {
            Some(Down::Hello(hello)) => Ok((inbound, hello)),
            other => Err::<_, Failure>(format!("no hello: {other:?}").into()),
        }
    };
    let (mut inbound, hello) = timeout(HELLO, begin).await??;
    open.fetch_add(1, Ordering::Relaxed);
    let _open = Open(open);
    *was_open = true;
    let mut beat = interval(Duration::from_millis(hello.heartbeat_millis.max(1)));
    let mut sequence = 0;
    loop {
        tokio::select! {
            _ = beat.tick() => {
                sequence += 1;
                sender.send(message(Up::Heartbeat(Heartbeat { sequence }))).await?;
            }
            told = inbound.next() => match told.transpose()?.and_then(|told| told.message) {
                Some(Down::Goodbye(_)) | None => return Err("the session ended".into()),
                Some(_) => {}
            }
        }
    }
}
