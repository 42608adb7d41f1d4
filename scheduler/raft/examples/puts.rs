//! Durable puts per second: `cargo run --release -p hearth-raft --example puts [-- DIR [SECONDS]]`.
//!
//! One server, objects of 1 KiB, every put acknowledged after fdatasync. Prints a table and JSON lines.
#![allow(clippy::print_stdout)] // a program for the terminal

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_raft::{RaftConfig, RaftStore};
use hearth_types::{
    Clock, Object, RequestId, Timestamp,
    store::{Consistency, Expect, Op, Store as _, write_one},
};
use serde_json::json;

struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or_default())
    }
}

/// Objects that are written over and over, so that the state stays small.
const OBJECTS: usize = 1_000;

fn object(number: usize, value: &str) -> Object {
    Object::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"value": value},
        "metadata": {"name": format!("o{number}"), "namespace": "bench", "uid": format!("00000000-0000-4000-8000-{number:012}"),
        "labels": {"app": "bench"}, "creationTimestamp": "2026-01-01T00:00:00Z"}}))
    .expect("an object")
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = args.next().map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let seconds = args.next().and_then(|text| text.parse().ok()).unwrap_or(5_u64);
    let config = RaftConfig::new(dir.join("raft"), 1, "bench");
    let store = RaftStore::open(config, &prometheus::Registry::new(), Arc::new(SystemClock)).await.expect("opens");
    let store = Arc::new(store);
    for number in 0..OBJECTS {
        let op = Op::Create { object: object(number, "") };
        // A second run finds them there.
        let _ = write_one(&*store, RequestId::from(format!("make-{number}")), op, SystemClock.now()).await;
    }
    println!("{:>8} {:>10} {:>9} {:>9} {:>9}", "writers", "puts/s", "p50 ms", "p99 ms", "max ms");
    for writers in [1_usize, 32, 128, 1_000] {
        run(&store, writers, Duration::from_secs(seconds)).await;
    }
    let started = Instant::now();
    let mut reads = 0_u32;
    while started.elapsed() < Duration::from_secs(2) {
        let key = object(reads as usize % OBJECTS, "").key().clone();
        store.get(&key, Consistency::Linearizable).await.expect("read");
        reads += 1;
    }
    println!("linearizable reads/s by one reader: {:.0}", f64::from(reads) / started.elapsed().as_secs_f64());
    store.shutdown().await.expect("closes");
}

async fn run(store: &Arc<RaftStore>, writers: usize, time: Duration) {
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let mut number = writer;
            while started.elapsed() < time {
                number += writers;
                let value = format!("{number:08}{}", "x".repeat(780));
                let op = Op::Update { object: object(number % OBJECTS, &value), expect: Expect::default() };
                let id = RequestId::from(format!("{writers}-{writer}-{number}-{}", SystemClock.now().0));
                let put = Instant::now();
                write_one(&*store, id, op, SystemClock.now()).await.expect("written");
                latencies.push(put.elapsed());
            }
            latencies
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done.expect("a writer"));
    }
    let elapsed = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let rate = latencies.len() as f64 / elapsed;
    let milliseconds = |place: f64| latencies[((latencies.len() - 1) as f64 * place) as usize].as_secs_f64() * 1e3;
    let (half, high, most) = (milliseconds(0.5), milliseconds(0.99), milliseconds(1.0));
    println!("{writers:>8} {rate:>10.0} {half:>9.2} {high:>9.2} {most:>9.2}");
    println!(
        r#"{{"bench":"store","case":"puts/{writers}","value":{rate:.0},"unit":"1/s","peer":null,"peer_value":null,"ratio":null}}"#
    );
}
