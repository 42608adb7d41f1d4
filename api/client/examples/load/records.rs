//! Records of the zone that change all the time, by the region's store.

use std::time::{Duration, Instant};

use hearth_client::{Client, Config, WriteOptions};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::{Failure, line};

/// Records of one transaction.
const A_CALL: usize = 100;
const OWNER: &str = "alice";

/// Makes a DNSEndpoint for each of so many names `r<n>.alice.<zone>` and says so (`made`). After a line on its input it gives `rate` of them a second
/// another address, one after the other, until its input ends; says how many that were (`changed`).
pub(crate) async fn run(count: usize, rate: usize, config: &Config) -> Result<Value, Failure> {
    let client = Client::connect(config)?;
    let zone = config.resolve()?.server_name.trim_start_matches("api.").to_owned();
    let mut serial = 0_u32;
    let mut record = |number: usize| {
        serial += 1;
        let [_, b, c, d] = serial.to_be_bytes();
        let endpoint = json!({"dnsName": format!("r{number}.{OWNER}.{zone}"), "recordType": "A", "recordTTL": 60,
            "targets": [format!("11.{b}.{c}.{d}")]});
        json!({"apiVersion": "externaldns.k8s.io/v1alpha1", "kind": "DNSEndpoint",
            "metadata": {"name": format!("r{number}"), "namespace": OWNER}, "spec": {"endpoints": [endpoint]}})
    };
    let all: Vec<usize> = (0..count).collect();
    for part in all.chunks(A_CALL) {
        let objects: Vec<_> = part.iter().map(|number| record(*number)).collect();
        client.apply_all(&objects, &WriteOptions::default()).await?;
    }
    println!("{}", json!({"made": count}));
    line().await?;
    let mut ticks = interval(Duration::from_secs(1).mul_f64(A_CALL as f64 / rate as f64));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (begun, mut changed) = (Instant::now(), 0);
    let mut end = std::pin::pin!(line());
    loop {
        tokio::select! {
            ended = &mut end => {
                ended?;
                return Ok(json!({"changed": changed, "seconds": begun.elapsed().as_secs_f64()}));
            }
            _ = ticks.tick() => {
                let objects: Vec<_> = (0..A_CALL).map(|n| record((changed + n) % count)).collect();
                client.apply_all(&objects, &WriteOptions::default()).await?;
                changed += A_CALL;
            }
        }
    }
}
