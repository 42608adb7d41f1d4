//! Following objects as they change, across broken watches and restarts of the region.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use anyhow::Result;
use futures_util::{Stream, StreamExt as _, stream};
use hearth_client::{Answers, Client, Selection};
use hearth_types::{Object, ObjectKey, Reason, Revision, Status, store::WatchEvent};

use crate::{context::refusal, output};

/// The first pause before a watch is taken up again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause: a server that starts is noticed soon enough.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// What changed.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// It is new.
    Added(Object),
    /// It is another than before.
    Modified(Object),
    /// It is gone; this is how it was.
    Deleted(Object),
    /// Everything that was there when the objects were listed has been told.
    Listed,
}

/// A selection of objects and what is known of it.
struct Follower<E> {
    source: E,
    /// Tell on stderr, once an outage, that the watch broke.
    tell: bool,
    known: HashMap<ObjectKey, Object>,
    /// From where to watch; `None`: list anew first.
    from: Option<Revision>,
    events: Option<Answers<WatchEvent>>,
    ready: VecDeque<Change>,
    failures: u32,
}

/// Where objects come from: a region, or a fake in tests.
pub(crate) trait Source {
    /// Everything that is selected now.
    fn list(&self) -> impl Future<Output = Result<(Vec<Object>, Revision), Status>> + Send;
    /// Changes after a revision.
    fn watch(&self, from: Revision) -> impl Future<Output = Result<Answers<WatchEvent>, Status>> + Send;
}

/// A selection of a region's objects.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) client: Client,
    pub(crate) selection: Selection,
}

impl Source for Remote {
    async fn list(&self) -> Result<(Vec<Object>, Revision), Status> {
        self.client.list(&self.selection).await
    }

    async fn watch(&self, from: Revision) -> Result<Answers<WatchEvent>, Status> {
        self.client.watch(&self.selection, from).await
    }
}

/// Lists, then follows. A watch that expires is begun anew from a new list, whose differences are told; one
/// that breaks is taken up again, after a pause, as long as the region says nothing that waiting cannot mend.
pub(crate) fn anew(source: impl Source, tell: bool) -> impl Stream<Item = Result<Change>> {
    follow(source, HashMap::new(), None, tell)
}

/// Follows what was listed at a revision.
pub(crate) fn after<S: Source>(
    source: S,
    objects: &[Object],
    revision: Revision,
    tell: bool,
) -> impl Stream<Item = Result<Change>> + use<S> {
    let known = objects.iter().map(|object| (object.key().clone(), object.clone())).collect();
    follow(source, known, Some(revision), tell)
}

fn follow<S: Source>(
    source: S,
    known: HashMap<ObjectKey, Object>,
    from: Option<Revision>,
    tell: bool,
) -> impl Stream<Item = Result<Change>> + use<S> {
    let follower = Follower { source, tell, known, from, events: None, ready: VecDeque::new(), failures: 0 };
    stream::try_unfold(follower, |mut follower| async move {
        let change = follower.next().await.map_err(|status| refusal(&status))?;
        Ok(Some((change, follower)))
    })
}

impl<E: Source> Follower<E> {
    async fn next(&mut self) -> Result<Change, Status> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            if let Err(status) = self.step().await {
                self.events = None;
                match status.reason {
                    Reason::Expired => self.from = None,
                    Reason::ServiceUnavailable | Reason::Timeout | Reason::TooManyRequests | Reason::InternalError => {
                        self.pause(&status).await
                    }
                    _ => return Err(status),
                }
            }
        }
    }

    /// Lists, begins a watch or takes its next event, whichever is due.
    async fn step(&mut self) -> Result<(), Status> {
        let Some(from) = self.from else {
            let (objects, revision) = self.source.list().await?;
            self.differences(objects);
            self.ready.push_back(Change::Listed);
            self.from = Some(revision);
            return Ok(());
        };
        let Some(events) = &mut self.events else {
            self.events = Some(self.source.watch(from).await?);
            return Ok(());
        };
        match events.next().await {
            None => Err(Status::unavailable("the region ended the watch")),
            Some(event) => {
                let event = event?;
                self.failures = 0;
                self.note(event);
                Ok(())
            }
        }
    }

    /// Takes in an event. Changes of one transaction have one revision, and a watch may break between them: it is taken up before the
    /// revision that was told last, and what is told twice for that is skipped here.
    fn note(&mut self, event: WatchEvent) {
        let (WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object)) = &event else {
            if let WatchEvent::Bookmark(revision) = event {
                self.from = self.from.max(Some(revision));
            }
            return;
        };
        self.from = self.from.max(Some(Revision(object.revision().0.saturating_sub(1))));
        match event {
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Added(object) | WatchEvent::Modified(object) => match self.known.get(object.key()) {
                Some(known) if known.revision() >= object.revision() => {}
                known => {
                    let is_new = known.is_none();
                    self.known.insert(object.key().clone(), object.clone());
                    self.ready.push_back(if is_new { Change::Added(object) } else { Change::Modified(object) });
                }
            },
            WatchEvent::Deleted(object) => {
                if self.known.remove(object.key()).is_some() {
                    self.ready.push_back(Change::Deleted(object));
                }
            }
        }
    }

    /// Tells how a new list differs from what was known.
    fn differences(&mut self, objects: Vec<Object>) {
        let mut before = std::mem::take(&mut self.known);
        for object in objects {
            match before.remove(object.key()) {
                None => self.ready.push_back(Change::Added(object.clone())),
                Some(old) if old.uid() != object.uid() => {
                    self.ready.push_back(Change::Deleted(old));
                    self.ready.push_back(Change::Added(object.clone()));
                }
                Some(old) if old.revision() != object.revision() => {
                    self.ready.push_back(Change::Modified(object.clone()));
                }
                Some(_) => {}
            }
            self.known.insert(object.key().clone(), object);
        }
        self.ready.extend(before.into_values().map(Change::Deleted));
    }

    async fn pause(&mut self, why: &Status) {
        if self.failures == 0 && self.tell {
            output::note(&format!("Warning: {why}; trying again"));
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(8)).min(LONGEST_PAUSE);
        self.failures += 1;
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;

    use super::*;

    fn object(name: &str, uid: &str, revision: u64) -> Object {
        Object::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "a", "uid": uid, "resourceVersion": revision.to_string()}}))
        .expect("an object")
    }

    type List = Result<(Vec<Object>, Revision), Status>;
    type Watch = Result<Vec<Result<WatchEvent, Status>>, Status>;

    /// Answers lists and watches in the order in which they were put down; then it is forbidden.
    struct Script {
        lists: Mutex<VecDeque<List>>,
        watches: Mutex<VecDeque<(u64, Watch)>>,
    }

    impl Source for &Script {
        async fn list(&self) -> Result<(Vec<Object>, Revision), Status> {
            self.lists.lock().expect("a lock").pop_front().expect("a list was not expected")
        }

        async fn watch(&self, from: Revision) -> Result<Answers<WatchEvent>, Status> {
            let next = self.watches.lock().expect("a lock").pop_front();
            let (expected, watch) = next.unwrap_or((from.0, Err(Status::new(Reason::Forbidden, "the script is over"))));
            assert_eq!(from.0, expected, "the watch begins where the last one got to");
            Ok(Box::pin(stream::iter(watch?)))
        }
    }

    fn told(script: &Script) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let changes = runtime.block_on(anew(script, false).collect::<Vec<_>>());
        let text = |change: Result<Change>| match change {
            Ok(Change::Added(object)) => format!("+{}", object.name()),
            Ok(Change::Modified(object)) => format!("~{}", object.name()),
            Ok(Change::Deleted(object)) => format!("-{}", object.name()),
            Ok(Change::Listed) => "listed".into(),
            Err(error) => error.to_string(),
        };
        changes.into_iter().map(text).collect()
    }

    #[test]
    fn a_broken_watch_goes_on_and_an_expired_one_begins_anew_with_the_differences() {
        let expired = || Status::new(Reason::Expired, "too old");
        let script = Script {
            lists: Mutex::new(VecDeque::from([
                Err(Status::unavailable("starting")),
                Ok((vec![object("a", "1", 1), object("b", "2", 2)], Revision(5))),
                Ok((vec![object("a", "9", 9), object("c", "3", 10)], Revision(12))),
            ])),
            watches: Mutex::new(VecDeque::from([
                (5, Ok(vec![Ok(WatchEvent::Modified(object("b", "2", 6))), Err(Status::unavailable("broke"))])),
                (5, Err(Status::unavailable("no server in reach"))),
                (
                    5,
                    Ok(vec![
                        Ok(WatchEvent::Modified(object("b", "2", 6))),
                        Ok(WatchEvent::Bookmark(Revision(8))),
                        Err(expired()),
                    ]),
                ),
                (12, Ok(vec![Ok(WatchEvent::Deleted(object("c", "3", 13)))])),
            ])),
        };
        assert_eq!(
            told(&script),
            [
                "+a",
                "+b",
                "listed",
                "~b",
                "-a",
                "+a",
                "+c",
                "-b",
                "listed",
                "-c",
                "from server (Forbidden): the script is over"
            ]
        );
    }

    #[test]
    fn a_watch_that_breaks_within_a_transaction_loses_nothing_and_tells_nothing_twice() {
        let broke = || Err(Status::unavailable("the server is gone"));
        let added = |name: &str| Ok(WatchEvent::Added(object(name, name, 7)));
        let script = Script {
            lists: Mutex::new(VecDeque::from([Ok((vec![object("old", "1", 1)], Revision(5)))])),
            watches: Mutex::new(VecDeque::from([
                // One transaction, of revision 7: two created, one deleted. Each server breaks one event further.
                (5, Ok(vec![added("a"), broke()])),
                (6, Ok(vec![added("a"), Ok(WatchEvent::Deleted(object("old", "1", 7))), broke()])),
                (
                    6,
                    Ok(vec![
                        added("a"),
                        Ok(WatchEvent::Deleted(object("old", "1", 7))),
                        added("b"),
                        Ok(WatchEvent::Modified(object("a", "a", 8))),
                    ]),
                ),
            ])),
        };
        let told = told(&script);
        assert_eq!(told[..6], ["+old", "listed", "+a", "-old", "+b", "~a"]);
    }
}
