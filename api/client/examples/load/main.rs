//! Load for a store: `load hearth|etcd puts|reads CLIENTS SECONDS BYTES ENDPOINT...`, where an endpoint is a client.yaml, or the
//! address of an etcd server. Clients are spread over the endpoints, and each sends one request at a time. Prints one line of JSON.
//!
//! Every put replaces one of ten thousand objects with another value; reads are linearizable. `load hearth watches COUNT 0 0 ENDPOINT`
//! opens watches, says so, and after a line on its input tells how long one event took to all of them.
//!
//! `load hearth sessions COUNT 0 0 ENDPOINT` has the sessions of idle devices, `load hearth records COUNT 0 RATE ENDPOINT` changes records of
//! the zone: see there.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for the terminal

mod records;
mod sessions;

use std::{
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use hearth_client::{Client, Config, Selection, WriteOptions};
use hearth_proto::v1::{GetRequest, ObjectRef, WriteRequest, resources_client::ResourcesClient};
use hearth_types::GroupKind;
use serde_json::json;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// Objects that are written over and over.
const OBJECTS: usize = 10_000;
/// Clients that share a connection.
const CLIENTS_A_CONNECTION: usize = 32;
/// Bytes of the part of a value that differs from put to put.
const SERIAL_BYTES: usize = 32;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A store under load.
#[derive(Clone)]
enum Target {
    Hearth(ResourcesClient<Channel>),
    Etcd(Grpc<Channel>),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Range {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

/// An answer that nobody looks at.
#[derive(Clone, PartialEq, prost::Message)]
struct Any {}

fn object(number: usize, value: &str) -> Bytes {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"value": value},
        "metadata": {"name": format!("o{number}"), "namespace": "default"}});
    object.to_string().into_bytes().into()
}

fn key(number: usize) -> Bytes {
    format!("/registry/configmaps/default/o{number}").into_bytes().into()
}

async fn etcd<Q>(grpc: &mut Grpc<Channel>, path: &'static str, message: Q) -> Result<(), Failure>
where
    Q: prost::Message + Send + Sync + 'static,
{
    grpc.ready().await?;
    let codec = ProstCodec::<Q, Any>::default();
    grpc.unary(Request::new(message), PathAndQuery::from_static(path), codec).await?;
    Ok(())
}

impl Target {
    async fn connect(store: &str, endpoint: &str) -> Result<Self, Failure> {
        Ok(match store {
            "hearth" => Self::Hearth(ResourcesClient::new(hearth(endpoint)?.channel())),
            "etcd" => Self::Etcd(Grpc::new(Endpoint::from_shared(format!("http://{endpoint}"))?.connect().await?)),
            other => return Err(format!("no store {other:?}: hearth or etcd").into()),
        })
    }

    async fn put(&mut self, number: usize, value: &str) -> Result<(), Failure> {
        let json = object(number, value);
        match self {
            Self::Hearth(client) => {
                let request_id = uuid::Uuid::new_v4().to_string();
                client.update(WriteRequest { json, request_id, dry_run: false }).await?;
                Ok(())
            }
            // The value is as large as the object of the other store.
            Self::Etcd(grpc) => etcd(grpc, "/etcdserverpb.KV/Put", Put { key: key(number), value: json }).await,
        }
    }

    async fn read(&mut self, number: usize) -> Result<(), Failure> {
        match self {
            Self::Hearth(client) => {
                let name = format!("o{number}");
                let reference =
                    ObjectRef { kind: "ConfigMap".into(), namespace: "default".into(), name, ..ObjectRef::default() };
                client.get(GetRequest { r#ref: Some(reference), local: false }).await?;
                Ok(())
            }
            Self::Etcd(grpc) => etcd(grpc, "/etcdserverpb.KV/Range", Range { key: key(number) }).await,
        }
    }
}

/// Waits for a line on the input; its length, 0 where the input has ended.
async fn line() -> Result<usize, Failure> {
    Ok(tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??)
}

fn hearth(config: &str) -> Result<Client, Failure> {
    Ok(Client::connect(&Config::load(Path::new(config))?)?)
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", json!({"error": error.to_string()}));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<serde_json::Value, Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, act, clients, seconds, bytes, endpoints @ ..] = &args[..] else {
        return Err("load hearth|etcd puts|reads CLIENTS SECONDS BYTES ENDPOINT...".into());
    };
    let (clients, seconds, bytes): (usize, u64, usize) = (clients.parse()?, seconds.parse()?, bytes.parse()?);
    match act.as_str() {
        "watches" => return watches(clients, &endpoints[0]).await,
        "sessions" => return sessions::run(clients, &Config::load(Path::new(&endpoints[0]))?).await,
        "records" => return records::run(clients, bytes, &Config::load(Path::new(&endpoints[0]))?).await,
        _ => {}
    }
    let puts = act == "puts";
    let connections = clients.div_ceil(CLIENTS_A_CONNECTION).max(endpoints.len().min(clients));
    let mut targets = Vec::new();
    for number in 0..connections {
        targets.push(Target::connect(store, &endpoints[number % endpoints.len()]).await?);
    }
    make_objects(&endpoints[0], &mut targets[0]).await?;
    let filler: Arc<str> = "v".repeat(bytes.saturating_sub(SERIAL_BYTES)).into();
    let started = Instant::now();
    let end = started + Duration::from_secs(seconds);
    let client = |client: usize| {
        let (mut target, filler) = (targets[client % targets.len()].clone(), Arc::clone(&filler));
        tokio::spawn(async move {
            let (mut taken, mut failed, mut number) = (Vec::new(), 0_u64, client);
            while Instant::now() < end {
                number = (number + 7_919) % OBJECTS;
                let start = Instant::now();
                let done = if puts {
                    target.put(number, &format!("{}{filler}", uuid::Uuid::new_v4().simple())).await
                } else {
                    target.read(number).await
                };
                match done {
                    Ok(()) => taken.push(start.elapsed()),
                    Err(_) => failed += 1,
                }
            }
            (taken, failed)
        })
    };
    let running: Vec<_> = (0..clients).map(client).collect();
    let (mut taken, mut failed) = (Vec::new(), 0);
    for one in running {
        let (more, errors) = one.await?;
        taken.extend(more);
        failed += errors;
    }
    let rate = taken.len() as f64 / started.elapsed().as_secs_f64();
    taken.sort_unstable();
    let at = |percent: usize| {
        let place = (taken.len() * percent / 100).min(taken.len().saturating_sub(1));
        taken.get(place).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    };
    Ok(json!({"rate": rate, "p50_ms": at(50), "p99_ms": at(99), "failed": failed}))
}

/// Watches on one connection: as many as a server takes streams.
const WATCHES_A_CONNECTION: usize = 200;

async fn watches(count: usize, endpoint: &str) -> Result<serde_json::Value, Failure> {
    let writer = hearth(endpoint)?;
    let selection = Selection::namespace(GroupKind::CONFIG_MAP, "default");
    let (_, from) = writer.list(&selection).await?;
    let mut open = Vec::new();
    let mut client = hearth(endpoint)?;
    for number in 0..count {
        if number % WATCHES_A_CONNECTION == 0 {
            client = hearth(endpoint)?;
        }
        open.push((client.clone(), client.watch(&selection, from).await?));
    }
    println!("{}", json!({"open": open.len()}));
    line().await?;
    let waiting: Vec<_> = open
        .into_iter()
        .map(|(client, mut events)| {
            tokio::spawn(async move {
                let event = events.next().await;
                (Instant::now(), event.is_some_and(|event| event.is_ok()), client)
            })
        })
        .collect();
    // Those who wait have to be waiting.
    tokio::task::yield_now().await;
    let started = Instant::now();
    // One that no run before wrote, or there would be no event.
    let value = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let object = serde_json::from_slice(&object(OBJECTS, &value.to_string()))?;
    writer.apply(&object, &WriteOptions::default()).await?;
    let written = started.elapsed();
    let (mut last, mut told) = (started, 0);
    for one in waiting {
        let (at, fine, _) = one.await?;
        last = last.max(at);
        told += usize::from(fine);
    }
    let all = last.duration_since(started).as_secs_f64() * 1e3;
    Ok(json!({"told": told, "written_ms": written.as_secs_f64() * 1e3, "all_ms": all}))
}

/// Makes what is written and read.
async fn make_objects(endpoint: &str, target: &mut Target) -> Result<(), Failure> {
    if let Target::Etcd(_) = target {
        for number in 0..OBJECTS {
            target.put(number, "").await?;
        }
        return Ok(());
    }
    let client = hearth(endpoint)?;
    let all = (0..OBJECTS).map(|number| serde_json::from_slice(&object(number, "")));
    let all = all.collect::<Result<Vec<_>, _>>()?;
    for part in all.chunks(200) {
        client.apply_all(part, &WriteOptions::default()).await?;
    }
    Ok(())
}
