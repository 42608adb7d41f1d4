//! What the region has to be told: the newest status of each object until it is acknowledged, and events.
//!
//! Statuses are coalesced: of an object only the newest is kept. A status is sent again in each session until an
//! acknowledgement covers it. Events are worth less: they are bounded and sent once.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use hearth_client::convert;
use hearth_proto::v1;
use hearth_types::{ObjectKey, Timestamp, Uid};
use serde_json::Value;
use tokio::sync::Notify;

/// Statuses in one report: keeps a message far below the largest.
const MAX_BATCH: usize = 64;
/// Reports on their way at once: more gain nothing, since the region stores them in order.
const MAX_IN_FLIGHT: usize = 4;
/// Events that wait for a session; the oldest go first.
const MAX_EVENTS: usize = 512;
/// The longest message of an event in bytes, as Kubernetes has it.
const MAX_EVENT_BYTES: usize = 1024;

#[derive(Debug)]
struct Entry {
    uid: Uid,
    status: Vec<u8>,
    finished: bool,
    /// Rises with each change, so that an old acknowledgement does not cover a new status.
    version: u64,
    /// Up to which version it was sent in this session.
    sent: u64,
    acked: u64,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<ObjectKey, Entry>,
    version: u64,
    sequence: u64,
    in_flight: VecDeque<(u64, Vec<(ObjectKey, u64)>)>,
    events: VecDeque<v1::DeviceEvent>,
}

/// What is to be told; shared by all who have something to tell.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    state: Mutex<State>,
    changed: Notify,
}

impl Reporter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status of an object is this now.
    pub(crate) fn status(&self, key: &ObjectKey, uid: &Uid, status: &Value, finished: bool) {
        let status = hearth_types::object::canonical(status);
        {
            let mut state = self.state();
            state.version += 1;
            let version = state.version;
            match state.entries.get_mut(key) {
                Some(old) if old.uid == *uid && old.status == status && old.finished == finished => return,
                Some(old) if old.uid == *uid => {
                    old.status = status;
                    old.finished = finished;
                    old.version = version;
                }
                _ => {
                    let entry = Entry { uid: uid.clone(), status, finished, version, sent: 0, acked: 0 };
                    state.entries.insert(key.clone(), entry);
                }
            }
        }
        self.changed.notify_one();
    }

    /// Nobody needs to hear of the object any more.
    pub(crate) fn forget(&self, key: &ObjectKey, uid: &Uid) {
        let mut state = self.state();
        if state.entries.get(key).is_some_and(|entry| entry.uid == *uid) {
            state.entries.remove(key);
        }
    }

    /// Something happened to an object.
    pub(crate) fn event(
        &self,
        (key, uid): (&ObjectKey, &Uid),
        kind: &str,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        {
            let mut state = self.state();
            if state.events.len() >= MAX_EVENTS {
                state.events.pop_front();
            }
            state.events.push_back(v1::DeviceEvent {
                regarding: Some(convert::reference(key)),
                uid: uid.to_string(),
                r#type: kind.into(),
                reason: reason.into(),
                message: clip(message, MAX_EVENT_BYTES).into(),
                time_millis: now.0,
            });
        }
        self.changed.notify_one();
    }

    /// A session begins: what was not acknowledged is sent again.
    pub(crate) fn begin_session(&self) {
        let mut state = self.state();
        state.in_flight.clear();
        state.sequence = 0;
        state.entries.values_mut().for_each(|entry| entry.sent = entry.acked);
        drop(state);
        self.changed.notify_one();
    }

    /// The region has forgotten what it had acknowledged: everything is sent again.
    pub(crate) fn begin_anew(&self) {
        self.state().entries.values_mut().for_each(|entry| entry.acked = 0);
        self.begin_session();
    }

    /// The next report to send, if there is something to report and not too much on its way.
    pub(crate) fn next_report(&self) -> Option<v1::StatusReport> {
        let mut state = self.state();
        if state.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let (mut items, mut sent) = (Vec::new(), Vec::new());
        for (key, entry) in state.entries.iter_mut().filter(|(_, entry)| entry.sent < entry.version).take(MAX_BATCH) {
            entry.sent = entry.version;
            sent.push((key.clone(), entry.version));
            items.push(v1::ObjectStatus {
                r#ref: Some(convert::reference(key)),
                uid: entry.uid.to_string(),
                status_json: entry.status.clone().into(),
                finished: entry.finished,
            });
        }
        if items.is_empty() {
            return None;
        }
        state.sequence += 1;
        let sequence = state.sequence;
        state.in_flight.push_back((sequence, sent));
        Some(v1::StatusReport { sequence, items })
    }

    /// The region has stored everything up to a report of this session.
    pub(crate) fn acknowledge(&self, sequence: u64) {
        let mut state = self.state();
        while state.in_flight.front().is_some_and(|(sent, _)| *sent <= sequence) {
            let Some((_, items)) = state.in_flight.pop_front() else { break };
            for (key, version) in items {
                if let Some(entry) = state.entries.get_mut(&key) {
                    entry.acked = entry.acked.max(version);
                }
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The events that wait.
    pub(crate) fn take_events(&self) -> Option<v1::EventReport> {
        let items: Vec<_> = self.state().events.drain(..).collect();
        (!items.is_empty()).then_some(v1::EventReport { items })
    }

    /// Resolves when there may be something to send.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// The beginning of a text, whole characters.
pub(crate) fn clip(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use hearth_types::GroupKind;
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(GroupKind::POD, "alice", name)
    }

    #[test]
    fn of_an_object_only_the_newest_status_is_sent_until_it_is_acknowledged() {
        let reporter = Reporter::default();
        let uid = Uid::from("u");
        reporter.status(&key("a"), &uid, &json!({"phase": "Pending"}), false);
        reporter.status(&key("a"), &uid, &json!({"phase": "Running"}), false);
        let first = reporter.next_report().expect("one");
        assert_eq!((first.sequence, first.items.len()), (1, 1));
        assert_eq!(&first.items[0].status_json[..], br#"{"phase":"Running"}"#);
        assert!(reporter.next_report().is_none(), "sent once a session");
        // The session breaks before it was stored.
        reporter.begin_session();
        let again = reporter.next_report().expect("again");
        assert_eq!(again.items, first.items);
        // It changes while the acknowledgement of the old one is on its way.
        reporter.status(&key("a"), &uid, &json!({"phase": "Failed"}), true);
        reporter.acknowledge(again.sequence);
        let newer = reporter.next_report().expect("the newer");
        assert!(newer.items[0].finished);
        reporter.acknowledge(newer.sequence);
        reporter.begin_session();
        assert!(reporter.next_report().is_none());
        reporter.begin_anew();
        assert_eq!(reporter.next_report().expect("all again").items, newer.items);
    }

    #[test]
    fn what_is_on_its_way_and_what_waits_is_bounded() {
        let reporter = Reporter::default();
        for n in 0..MAX_BATCH * (MAX_IN_FLIGHT + 1) {
            reporter.status(&key(&format!("p{n}")), &Uid::from("u"), &json!({}), false);
        }
        let sent = std::iter::from_fn(|| reporter.next_report()).count();
        assert_eq!(sent, MAX_IN_FLIGHT);
        reporter.acknowledge(1);
        assert!(reporter.next_report().is_some());
        for n in 0..MAX_EVENTS + 5 {
            reporter.event((&key("a"), &Uid::from("u")), "Normal", "R", &format!("{n}"), Timestamp(0));
        }
        let events = reporter.take_events().expect("events");
        assert_eq!((events.items.len(), events.items[0].message.as_str()), (MAX_EVENTS, "5"));
    }

    #[test]
    fn text_is_clipped_between_characters() {
        assert_eq!(clip("aä", 2), "a");
        assert_eq!(clip("aä", 9), "aä");
    }
}
