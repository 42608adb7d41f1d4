//! What clients do all the while: read, write and watch through whatever server they like, and send again what was not answered, under the
//! same request id.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use hearth_types::{
    Clock as _, GroupKind, Object, ObjectKey, Reason, RequestId, Revision, Status,
    store::{Consistency, Expect, Op, OpError, Query, Store as _, Txn, TxnOutcome, WatchEvent},
};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{
    cluster::{Cluster, Up, until_end},
    dice::Dice,
    observed::{Change, LocalList, Sight, What},
};
use crate::history::{
    Outcome, Recorder,
    objects::{Answer, Call, Key, Refusal, Stored},
};

/// The objects of the region: the part before the slash is the namespace.
const KEYS: [&str; 5] = ["a/1", "a/2", "a/3", "b/1", "b/2"];
/// How often a request is sent at most.
const ATTEMPTS: u64 = 6;
/// How long a client waits where no server runs.
const NOBODY: Duration = Duration::from_millis(50);
/// Servers that say that a watch is too late, until the watcher lists anew.
const TOO_LATE: usize = 6;

/// The clients' side of a run.
pub struct Workload {
    cluster: Arc<Cluster>,
    /// What they asked and were told.
    pub recorder: Recorder<Call, Answer>,
    /// Values that were written.
    values: AtomicU64,
    /// How long a value's object is made, in bytes.
    padding: usize,
    /// No client begins anything new.
    pub over: AtomicBool,
}

/// The key of an object.
fn object_key(key: &str) -> ObjectKey {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    ObjectKey::new(GroupKind::CONFIG_MAP, namespace, name)
}

fn name_of(object: &Object) -> Key {
    Arc::from(format!("{}/{}", object.namespace(), object.name()))
}

fn value_of(object: &Object) -> u64 {
    object.value()["data"]["value"].as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn stored(object: &Object) -> Stored {
    Stored { value: value_of(object), revision: object.revision().0 }
}

fn query(prefix: &str) -> Query {
    let namespace = prefix.strip_suffix('/').map(str::to_owned);
    Query { namespace, ..Query::all(GroupKind::CONFIG_MAP) }
}

/// Why an attempt came to nothing.
enum Trouble {
    /// It may be tried again.
    Again,
    /// The server said what it must not.
    Wrong(String),
}

impl From<Status> for Trouble {
    fn from(status: Status) -> Self {
        match status.reason {
            Reason::ServiceUnavailable | Reason::Timeout | Reason::TooManyRequests | Reason::Expired => Self::Again,
            _ => Self::Wrong(status.to_string()),
        }
    }
}

impl Workload {
    /// Clients of a region.
    pub fn new(cluster: Arc<Cluster>, padding: usize) -> Arc<Self> {
        let trace = cluster.trace.clone();
        Arc::new(Self {
            cluster,
            recorder: Recorder::new(move || trace.now()),
            values: AtomicU64::new(0),
            padding,
            over: AtomicBool::new(false),
        })
    }

    /// One client, which asks one thing after the other until it is over.
    pub async fn client(self: Arc<Self>, number: u64, mut dice: Dice, pause: Duration) {
        let mut seen: HashMap<Key, Vec<u64>> = HashMap::new();
        let mut count = 0;
        while !self.over.load(Ordering::Relaxed) {
            sleep(dice.between(Duration::ZERO..pause)).await;
            count += 1;
            let call = self.choose(&mut dice, &seen);
            if dice.chance(60) {
                self.look(&mut dice).await;
            }
            let id = format!("{number}-{count}");
            self.ask(number, &id, call, &mut dice, &mut seen).await;
        }
    }

    fn choose(&self, dice: &mut Dice, seen: &HashMap<Key, Vec<u64>>) -> Call {
        let key: Key = Arc::from(*dice.pick(&KEYS));
        let value = self.values.fetch_add(1, Ordering::Relaxed) + 1;
        let known = seen.get(&key).and_then(|known| known.last().copied());
        match dice.below(100) {
            0..25 => Call::Get { key },
            25..37 => Call::Create { key, value },
            37..57 => Call::Put { key, value, expect: None },
            57..77 => Call::Put { key, value, expect: known },
            77..82 => Call::Delete { key, expect: None },
            82..86 => Call::Delete { key, expect: known },
            86..94 => Call::List { prefix: Arc::from("") },
            _ => Call::List { prefix: Arc::from("a/") },
        }
    }

    /// Asks until there is an answer or patience is at its end.
    async fn ask(&self, number: u64, id: &str, call: Call, dice: &mut Dice, seen: &mut HashMap<Key, Vec<u64>>) {
        let token = self.recorder.invoke(number, call.clone());
        let attempts = 1 + dice.below(ATTEMPTS);
        let mut outcome = match call.key() {
            Some(_) if !matches!(call, Call::Get { .. }) => Outcome::Unknown,
            // A read that was not answered changed nothing.
            _ => Outcome::Failed,
        };
        for _ in 0..attempts {
            let running = self.cluster.running();
            if running.is_empty() {
                sleep(NOBODY).await;
                continue;
            }
            let Some(up) = self.cluster.up(*dice.pick(&running)) else { continue };
            let patience = dice.between(Duration::from_millis(200)..Duration::from_millis(2_500));
            match until_end(&up.end, timeout(patience, self.attempt(&up, id, &call, dice))).await {
                Some(Ok(Ok(answer))) => {
                    remember(&call, &answer, seen);
                    outcome = Outcome::Ok(answer);
                    break;
                }
                Some(Ok(Err(Trouble::Wrong(why)))) => {
                    self.cluster.notebook.note(|seen| seen.troubles.push(format!("{call} was answered with: {why}")));
                    break;
                }
                Some(Ok(Err(Trouble::Again)) | Err(_)) | None => {}
            }
        }
        self.cluster.trace.count(&[2, number, matches!(outcome, Outcome::Ok(_)).into()]);
        self.recorder.finish(token, outcome);
    }

    async fn attempt(&self, up: &Up, id: &str, call: &Call, dice: &mut Dice) -> Result<Answer, Trouble> {
        let expect = |revision: &Option<u64>| Expect { revision: revision.map(Revision), uid: None };
        let op = match call {
            Call::Get { key } => {
                let found = up.store.get(&object_key(key), Consistency::Linearizable).await?;
                return Ok(Answer::Found(found.as_ref().map(stored)));
            }
            Call::List { prefix } => {
                let limit = dice.below(4) as usize;
                let (items, revision) = list(up, prefix, limit, Consistency::Linearizable).await?;
                return Ok(Answer::Listed { items, revision });
            }
            Call::Create { key, value } => Op::Create { object: self.object(key, *value)? },
            Call::Put { key, value, expect: revision } => {
                Op::Update { object: self.object(key, *value)?, expect: expect(revision) }
            }
            Call::Delete { key, expect: revision } => Op::Delete { key: object_key(key), expect: expect(revision) },
        };
        let request_id = RequestId::from(id);
        let outcome = up.store.write(Txn { request_id, atomic: true, ops: vec![op], now: up.clock.now() }).await?;
        answer_of(call, outcome)
    }

    fn object(&self, key: &str, value: u64) -> Result<Object, Trouble> {
        let of = object_key(key);
        let padding = "x".repeat(self.padding);
        Object::from_value(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": { "value": value.to_string(), "padding": padding },
            "metadata": { "name": &*of.name, "namespace": &*of.namespace, "uid": format!("uid-{key}") },
        }))
        .map_err(|error| Trouble::Wrong(error.to_string()))
    }

    /// Notes what one server has.
    async fn look(&self, dice: &mut Dice) {
        let running = self.cluster.running();
        if running.is_empty() {
            return;
        }
        let server = *dice.pick(&running);
        let prefix = *dice.pick(&["", "a/"]);
        let Some(up) = self.cluster.up(server) else { return };
        if let Some(Ok((items, revision))) = until_end(&up.end, list(&up, prefix, 0, Consistency::Local)).await {
            let list = LocalList { server, prefix: prefix.into(), items, revision };
            self.cluster.notebook.note(|seen| seen.local.push(list));
        }
    }

    /// Reads everything at every member, as a client of its own.
    pub async fn read_all(&self, number: u64, dice: &mut Dice) {
        for server in self.cluster.members() {
            let Some(up) = self.cluster.up(server) else { continue };
            let gets = KEYS.map(|key| Call::Get { key: Arc::from(key) });
            for call in gets.into_iter().chain([Call::List { prefix: Arc::from("") }]) {
                let token = self.recorder.invoke(number, call.clone());
                let outcome = match self.attempt(&up, "", &call, dice).await {
                    Ok(answer) => Outcome::Ok(answer),
                    Err(_) => Outcome::Failed,
                };
                self.recorder.finish(token, outcome);
            }
        }
    }

    /// One watcher, which moves from server to server and misses nothing, until it is aborted. It writes into the notebook at its number.
    pub async fn watcher(self: Arc<Self>, number: usize, prefix: &'static str, mut dice: Dice) {
        let notebook = Arc::clone(&self.cluster.notebook);
        let see = |sight| notebook.note(|seen| seen.watches[number].sights.push(sight));
        let (mut position, mut too_late) = (0, 0);
        loop {
            let running = self.cluster.running();
            if running.is_empty() {
                sleep(NOBODY).await;
                continue;
            }
            let server = *dice.pick(&running);
            let Some(up) = self.cluster.up(server) else { continue };
            let stay = dice.between(Duration::from_millis(100)..Duration::from_secs(3));
            let dawdles = dice.chance(200);
            let watching = async {
                let mut events = match up.store.watch(query(prefix), Revision(position)).await {
                    Ok(events) => events,
                    Err(status) => return status.reason == Reason::Expired,
                };
                see(Sight::Began { server, from: position });
                if dawdles {
                    sleep(stay / 2).await;
                }
                while let Some(event) = events.next().await {
                    let Ok(event) = event else { return false };
                    position = note(&see, &event);
                }
                false
            };
            let expired = until_end(&up.end, timeout(stay, watching)).await;
            too_late = if matches!(expired, Some(Ok(true))) { too_late + 1 } else { 0 };
            if too_late >= TOO_LATE
                && let Some(Ok((_, revision))) =
                    until_end(&up.end, list(&up, prefix, 0, Consistency::Linearizable)).await
            {
                see(Sight::Listed { revision });
                (position, too_late) = (revision, 0);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Notes an event; returns the position after it.
fn note(see: &impl Fn(Sight), event: &WatchEvent) -> u64 {
    let (what, object) = match event {
        WatchEvent::Added(object) => (What::Added, object),
        WatchEvent::Modified(object) => (What::Modified, object),
        WatchEvent::Deleted(object) => (What::Deleted, object),
        WatchEvent::Bookmark(revision) => {
            see(Sight::Bookmark { revision: revision.0 });
            return revision.0;
        }
    };
    let revision = object.revision().0;
    see(Sight::Event { revision, change: Change { key: name_of(object), what, value: value_of(object) } });
    revision
}

/// Lists page by page at one server.
pub(super) async fn list_of(up: &Up, prefix: &str) -> Option<(BTreeMap<Key, Stored>, u64)> {
    list(up, prefix, 0, Consistency::Local).await.ok()
}

async fn list(up: &Up, prefix: &str, limit: usize, read: Consistency) -> Result<(BTreeMap<Key, Stored>, u64), Trouble> {
    let query = query(prefix);
    let mut items = BTreeMap::new();
    let (mut token, mut revision) = (None, None);
    loop {
        let page = up.store.list(&query, limit, token.as_deref(), read).await?;
        items.extend(page.items.iter().map(|object| (name_of(object), stored(object))));
        let first = *revision.get_or_insert(page.revision);
        if first != page.revision {
            return Err(Trouble::Wrong(format!("the first page shows revision {first}, another {}", page.revision)));
        }
        token = page.continue_token;
        if token.is_none() {
            return Ok((items, first.0));
        }
    }
}

fn answer_of(call: &Call, outcome: TxnOutcome) -> Result<Answer, Trouble> {
    let at = outcome.revision.0;
    let refused = |why| Ok(Answer::Refused { why, at });
    match outcome.outcomes.into_iter().next() {
        Some(Ok(object)) => Ok(match call {
            Call::Delete { .. } => Answer::Deleted { revision: at },
            _ => Answer::Written { revision: object.revision().0 },
        }),
        Some(Err(OpError::AlreadyExists(_))) => refused(Refusal::Exists),
        Some(Err(OpError::NotFound(_))) => refused(Refusal::Missing),
        Some(Err(OpError::Conflict { .. })) => refused(Refusal::Changed),
        other => Err(Trouble::Wrong(format!("{other:?}"))),
    }
}

/// Remembers the revisions that a client was told.
fn remember(call: &Call, answer: &Answer, seen: &mut HashMap<Key, Vec<u64>>) {
    let mut add = |key: &Key, revision| seen.entry(Arc::clone(key)).or_default().push(revision);
    match (call.key(), answer) {
        (Some(key), Answer::Found(Some(stored))) => add(key, stored.revision),
        (Some(key), Answer::Written { revision }) => add(key, *revision),
        (_, Answer::Listed { items, .. }) => {
            for (key, stored) in items {
                add(key, stored.revision);
            }
        }
        _ => {}
    }
}
