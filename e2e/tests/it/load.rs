//! Clients that ask one thing after the other while something befalls the servers, and what they were told, judged by the checker of histories.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hearth_client::{Client, Config, Selection, WriteOptions};
use hearth_e2e::{
    eventually,
    netns::Netns,
    server::{PATIENCE, Server},
};
use hearth_sim::history::{
    Outcome, Recorder,
    objects::{self, Answer, Call, Key, ObjectOperation, Stored},
};
use hearth_types::{GroupKind, Object, ObjectKey, Reason};
use serde_json::json;
use tokio::{runtime::Runtime, task::JoinHandle, time::timeout};

/// Clients at once. More would only make the history harder to check.
const CLIENTS: u64 = 6;
const KEYS: [&str; 3] = ["default/a", "default/b", "default/c"];
/// How long a client of this test waits for one answer, over all servers that it asks by itself.
const PATIENT: Duration = Duration::from_secs(30);
/// How many answers the clients wait for before the next fault, so that there was load before it and after it.
const BETWEEN: u64 = 60;

/// Clients that ask one thing after the other, and what they were told.
pub(crate) struct Load {
    runtime: Runtime,
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Result<()>>>,
}

struct Shared {
    recorder: Recorder<Call, Answer>,
    values: AtomicU64,
    answers: AtomicU64,
    /// Requests that came to nothing, though the client tried them again under their id.
    failures: std::sync::Mutex<Vec<String>>,
    over: AtomicBool,
}

fn object_key(key: &str) -> ObjectKey {
    let (namespace, name) = key.split_once('/').unwrap_or_default();
    ObjectKey::new(GroupKind::CONFIG_MAP, namespace, name)
}

fn stored(object: &Object) -> Stored {
    let value = object.value()["data"]["value"].as_str().and_then(|text| text.parse().ok()).unwrap_or_default();
    Stored { value, revision: object.revision().0 }
}

impl Shared {
    /// Asks one thing, and notes what comes of it.
    async fn ask(&self, client: &Client, number: u64, call: Call) -> Option<Answer> {
        let writes = call.writes().is_some();
        let token = self.recorder.invoke(number, call.clone());
        let outcome = match timeout(PATIENT, attempt(client, &call)).await {
            Ok(Ok(answer)) => Outcome::Ok(answer),
            // It was refused, and changed nothing; at which revision the client is not told.
            Ok(Err(status)) if status.reason == Reason::Conflict => Outcome::Failed,
            Ok(Err(status)) => self.failed(&call, &status.to_string(), writes),
            Err(_) => self.failed(&call, "no answer", writes),
        };
        let answer = if let Outcome::Ok(answer) = &outcome { Some(answer.clone()) } else { None };
        self.recorder.finish(token, outcome);
        self.answers.fetch_add(1, Ordering::Relaxed);
        answer
    }

    fn failed(&self, call: &Call, why: &str, writes: bool) -> Outcome<Answer> {
        self.failures.lock().expect("nobody panics with it").push(format!("{call}: {why}"));
        if writes { Outcome::Unknown } else { Outcome::Failed }
    }

    async fn run(self: Arc<Self>, client: Client, number: u64) -> Result<()> {
        let mut known: BTreeMap<Key, u64> = BTreeMap::new();
        for step in number.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let key: Key = KEYS[(step as usize) % KEYS.len()].into();
            let value = self.values.fetch_add(1, Ordering::Relaxed);
            let call = match step % 5 {
                0 | 3 => Call::Get { key: key.clone() },
                1 => Call::Put { key: key.clone(), value, expect: None },
                2 => Call::Put { key: key.clone(), value, expect: known.get(&key).copied() },
                _ => Call::List { prefix: "default/".into() },
            };
            match self.ask(&client, number, call).await {
                Some(Answer::Found(Some(found))) => drop(known.insert(key, found.revision)),
                Some(Answer::Written { revision }) => drop(known.insert(key, revision)),
                _ => {}
            }
        }
        Ok(())
    }
}

async fn attempt(client: &Client, call: &Call) -> Result<Answer, hearth_types::Status> {
    let object = |key: &str, value: u64, revision: Option<u64>| {
        let of = object_key(key);
        let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"value": value.to_string()},
            "metadata": {"name": &*of.name, "namespace": &*of.namespace}});
        if let Some(revision) = revision {
            object["metadata"]["resourceVersion"] = json!(revision.to_string());
        }
        object
    };
    let options = WriteOptions::default();
    Ok(match call {
        Call::Get { key } => Answer::Found(match client.get(&object_key(key)).await {
            Ok(object) => Some(stored(&object)),
            Err(status) if status.reason == Reason::NotFound => None,
            Err(status) => return Err(status),
        }),
        Call::Create { key, value } => {
            let written = client.create(&object(key, *value, None), &options).await?;
            Answer::Written { revision: written.object.revision().0 }
        }
        Call::Put { key, value, expect } => {
            let written = client.update(&object(key, *value, *expect), &options).await?;
            Answer::Written { revision: written.object.revision().0 }
        }
        Call::List { .. } => {
            let (all, revision) = client.list(&Selection::namespace(GroupKind::CONFIG_MAP, "default")).await?;
            let item = |object: &Object| (Key::from(format!("default/{}", object.name())), stored(object));
            Answer::Listed { items: all.iter().map(item).collect(), revision: revision.0 }
        }
        Call::Delete { .. } => unreachable!("nobody here deletes"),
    })
}

impl Load {
    fn config(server: &Server) -> Result<Config> {
        Ok(Config::load(&server.instance.path().join("client.yaml"))?)
    }

    /// Makes the objects, and lets the clients go; each begins at another server.
    pub(crate) fn begin(servers: &[Server]) -> Result<Self> {
        Self::begin_on(tokio::runtime::Builder::new_multi_thread().worker_threads(2), servers)
    }

    /// The same with clients in a network namespace.
    pub(crate) fn begin_in(netns: &Netns, servers: &[Server]) -> Result<Self> {
        let netns = Arc::new(netns.file()?);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let enter = move || {
            // Of this thread alone.
            let network = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(netns.as_fd(), network).expect("the namespace is there");
        };
        Self::begin_on(runtime.worker_threads(2).on_thread_start(enter), servers)
    }

    fn begin_on(runtime: &mut tokio::runtime::Builder, servers: &[Server]) -> Result<Self> {
        let runtime = runtime.enable_all().build()?;
        let started = Instant::now();
        let shared = Arc::new(Shared {
            recorder: Recorder::new(move || started.elapsed().as_nanos() as u64),
            values: AtomicU64::new(1),
            answers: AtomicU64::new(0),
            failures: std::sync::Mutex::default(),
            over: AtomicBool::new(false),
        });
        let configs = servers.iter().map(Self::config).collect::<Result<Vec<_>>>()?;
        // All of it runs on the runtime's own threads, wherever those are.
        let clients = runtime.block_on(runtime.spawn({
            let shared = Arc::clone(&shared);
            async move {
                let first = Client::connect(&configs[0])?;
                for key in KEYS {
                    let value = shared.values.fetch_add(1, Ordering::Relaxed);
                    let made = shared.ask(&first, CLIENTS, Call::Create { key: key.into(), value }).await;
                    made.context("it is created")?;
                }
                let client = |number: u64| {
                    let client = Client::connect(&configs[number as usize % configs.len()])?;
                    Ok(tokio::spawn(Arc::clone(&shared).run(client, number)))
                };
                (0..CLIENTS).map(client).collect::<Result<Vec<_>>>()
            }
        }))??;
        let load = Self { runtime, shared, clients };
        load.goes_on()?;
        Ok(load)
    }

    /// Waits until the clients had some more answers.
    pub(crate) fn goes_on(&self) -> Result<()> {
        let answers = || self.shared.answers.load(Ordering::Relaxed);
        let wanted = answers() + BETWEEN;
        eventually("the clients go on", PATIENCE, || {
            ensure!(answers() >= wanted, "{} of {wanted} answers", answers());
            Ok(())
        })
    }

    /// Ends it; reads everything once more at every server. What came to nothing, and the history.
    pub(crate) fn end(self, servers: &[Server]) -> Result<(Vec<String>, Vec<ObjectOperation>)> {
        self.shared.over.store(true, Ordering::Relaxed);
        let configs = servers.iter().map(Self::config).collect::<Result<Vec<_>>>()?;
        let (clients, shared) = (self.clients, Arc::clone(&self.shared));
        self.runtime.block_on(self.runtime.spawn(async move {
            for client in clients {
                client.await??;
            }
            for config in configs {
                let client = Client::connect(&config)?;
                for key in KEYS {
                    shared.ask(&client, CLIENTS, Call::Get { key: key.into() }).await.context("it is read")?;
                }
            }
            anyhow::Ok(())
        }))??;
        let failures = std::mem::take(&mut *self.shared.failures.lock().expect("nobody panics with it"));
        Ok((failures, self.shared.recorder.history()))
    }
}

/// What the clients were told is what one copy of the data would have said; and the check can fail.
pub(crate) fn judge(history: &[ObjectOperation]) -> Result<()> {
    if let Err(violation) = objects::check(history) {
        bail!("no order of the operations explains what the clients were told: {violation}");
    }
    // The last read of all, as if it had shown what was there before: an acknowledged write would be lost.
    let mut spoiled = history.to_vec();
    let seen = |one: &ObjectOperation| match (&one.call, one.answer()) {
        (Call::Get { key }, Some(Answer::Found(Some(found)))) => Some((key.clone(), *found)),
        _ => None,
    };
    let (key, last) = spoiled.last().and_then(seen).context("the last one is a read")?;
    let older = spoiled.iter().filter_map(seen).find(|(of, found)| *of == key && found.revision < last.revision);
    let (_, older) = older.context("the object changed meanwhile")?;
    spoiled.last_mut().context("an operation")?.outcome = Outcome::Ok(Answer::Found(Some(older)));
    ensure!(objects::check(&spoiled).is_err(), "a lost write is found");
    Ok(())
}
