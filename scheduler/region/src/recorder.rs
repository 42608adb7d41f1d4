//! Events (core/v1): counted where they repeat, limited in rate, bounded in number.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use hearth_controllers::Action;
use hearth_types::{GroupKind, Object, ObjectKey, Timestamp, Uid, acme::EventSink};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use crate::{hub::Hub, metrics::Metrics, writer};

/// Events that wait to be written at most; more are dropped and counted.
const QUEUE: usize = 1024;
/// How long events are collected for one write.
const LINGER: Duration = Duration::from_millis(50);
/// Events of one write at most.
const BATCH: usize = 200;
/// Events of one object that may come at once (the spam filter of client-go).
const BURST: u32 = 25;
/// How long until an object that used up its burst may tell one more event.
const REFILL: Duration = Duration::from_mins(1);
/// Objects and messages that are remembered at most.
const REMEMBERED: usize = 4096;
/// The longest message in bytes, as in Kubernetes.
const MAX_MESSAGE: usize = 1024;
/// The longest reason in bytes, as in Kubernetes.
const MAX_REASON: usize = 128;

/// Something to tell about an object.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub(crate) key: ObjectKey,
    pub(crate) api_version: String,
    pub(crate) uid: Uid,
    pub(crate) warning: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) component: String,
}

/// Takes events of another part of the server.
pub(crate) struct Events {
    pub(crate) hub: Arc<Hub>,
    pub(crate) component: &'static str,
}

impl EventSink for Events {
    fn note(&self, regarding: &Object, warning: bool, reason: &str, message: String) {
        self.hub.recorder.note(Note::about(regarding, warning, reason, message, self.component));
    }
}

impl Note {
    pub(crate) fn about(object: &Object, warning: bool, reason: &str, message: String, component: &str) -> Self {
        Self {
            key: object.key().clone(),
            api_version: object.api_version().to_owned(),
            uid: object.uid().clone(),
            warning,
            reason: cut(reason, MAX_REASON),
            message: cut(&message, MAX_MESSAGE),
            component: component.to_owned(),
        }
    }

    fn same_as(&self) -> (Uid, String, String, String) {
        (self.uid.clone(), self.reason.clone(), self.message.clone(), self.component.clone())
    }
}

fn cut(text: &str, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Takes notes from everywhere; never waits.
pub(crate) struct Recorder {
    queue: mpsc::Sender<Note>,
    dropped: prometheus::IntCounter,
}

impl Recorder {
    pub(crate) fn new(metrics: &Metrics) -> (Self, mpsc::Receiver<Note>) {
        let (queue, notes) = mpsc::channel(QUEUE);
        (Self { queue, dropped: metrics.events_dropped.clone() }, notes)
    }

    pub(crate) fn note(&self, note: Note) {
        if self.queue.try_send(note).is_err() {
            self.dropped.inc();
        }
    }
}

/// A map that forgets its oldest entries.
struct Recent<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Clone + Eq + std::hash::Hash, V> Recent<K, V> {
    fn new() -> Self {
        Self { map: HashMap::new(), order: VecDeque::new() }
    }

    fn entry(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        if !self.map.contains_key(key) {
            self.order.push_back(key.clone());
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.map.remove(&oldest);
            }
        }
        self.map.entry(key.clone()).or_insert_with(make)
    }
}

/// How many more events an object may tell now.
struct Bucket {
    left: u32,
    refilled: Instant,
}

impl Bucket {
    fn take(&mut self) -> bool {
        while self.left < BURST && self.refilled.elapsed() >= REFILL {
            self.left += 1;
            self.refilled += REFILL;
        }
        if self.left == BURST {
            self.refilled = Instant::now();
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

/// Writes what is noted, for ever.
pub(crate) async fn run(hub: Arc<Hub>) {
    let mut notes = hub.notes.lock().await;
    let mut names: Recent<(Uid, String, String, String), ObjectKey> = Recent::new();
    let mut buckets: Recent<Uid, Bucket> = Recent::new();
    while let Some(first) = notes.recv().await {
        tokio::time::sleep(LINGER).await;
        let mut batch: Vec<(Note, u64)> = Vec::new();
        let mut next = Some(first);
        while let Some(note) = next {
            if !buckets.entry(&note.uid, || Bucket { left: BURST, refilled: Instant::now() }).take() {
                hub.metrics.events_dropped.inc();
            } else if let Some((_, count)) = batch.iter_mut().find(|(old, _)| old.same_as() == note.same_as()) {
                *count += 1;
            } else {
                batch.push((note, 1));
            }
            next = if batch.len() < BATCH { notes.try_recv().ok() } else { None };
        }
        let now = hub.now();
        let mut ops = Vec::new();
        for (note, count) in &batch {
            let key = names.entry(&note.same_as(), || event_key(note)).clone();
            let Some(action) = action(&hub, note, *count, &key, now) else { continue };
            match writer::to_op(&hub, &action) {
                Ok(op) => ops.extend(op),
                Err(error) => {
                    tracing::warn!(object = %note.key, reason = note.reason, %error, "an event cannot be written")
                }
            }
        }
        if ops.is_empty() {
            continue;
        }
        if let Err(error) = writer::write(&hub, ops, false).await {
            hub.metrics.events_dropped.inc_by(batch.len() as u64);
            tracing::debug!(%error, "events were lost: the store cannot be written");
        }
    }
}

fn event_key(note: &Note) -> ObjectKey {
    let namespace = if note.key.namespace.is_empty() { "default" } else { &note.key.namespace };
    // As Kubernetes names them: the object's name and something unique.
    let prefix: String = note.key.name.chars().take(200).collect();
    let unique = uuid::Uuid::new_v4().simple().to_string();
    ObjectKey::new(GroupKind::EVENT, namespace, &format!("{}.{}", prefix.trim_end_matches(['.', '-']), &unique[..16]))
}

fn action(hub: &Hub, note: &Note, count: u64, key: &ObjectKey, now: Timestamp) -> Option<Action> {
    let cache = hub.cache();
    // A namespace that is to go gets no new contents.
    if cache.object(GroupKind::NAMESPACE, "", &key.namespace).is_some_and(|namespace| namespace.deleting) {
        return None;
    }
    let time = now.seconds().to_string();
    if let Some(stored) = cache.get(key) {
        let base = stored.object.clone();
        drop(cache);
        let mut value = base.value();
        let before = value.get("count").and_then(serde_json::Value::as_u64).unwrap_or(1);
        value["count"] = json!(before.saturating_add(count).min(i32::MAX.unsigned_abs().into()));
        value["lastTimestamp"] = json!(time);
        return Some(Action::Update { base, value });
    }
    let mut involved = json!({
        "apiVersion": note.api_version,
        "kind": note.key.kind.kind,
        "name": note.key.name,
        "uid": note.uid.as_str(),
    });
    if !note.key.namespace.is_empty() {
        involved["namespace"] = json!(note.key.namespace);
    }
    Some(Action::Create {
        object: json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "involvedObject": involved,
            "type": if note.warning { "Warning" } else { "Normal" },
            "reason": note.reason,
            "message": note.message,
            "source": {"component": note.component},
            "reportingComponent": note.component,
            "reportingInstance": hub.config.region,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": count,
        }),
    })
}
