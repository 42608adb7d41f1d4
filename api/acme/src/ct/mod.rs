//! Watches logs of Certificate Transparency for certificates of the zone's names that no device asked for: a region could have one issued,
//! as could whoever takes over its DNS, and it is seen here. Whoever reads all of a large public log needs a line for that: some 2 MB/s.
//!
//! | module | what it answers |
//! |---|---|
//! | `head` | what a log says of its tree, and whether its key signed that; pure |
//! | `merkle` | whether what was read is what a tree's root commits to; pure |
//! | `tile` | where tiles of the static API are, and what they hold; pure |
//! | `entry` | the certificate of an entry, and whose names it has; pure |
//! | `place` | how far a log was read; pure |
//! | `source` | a log, by the static API or by RFC 6962 |
//!
//! # Guarantees
//! No entry is passed over: whatever cannot be fetched or read, or is not what the log's tree head commits to, stops that log at its place,
//! with a word in the log, among the metrics and (but for a log that just does not answer) as an event. What was read is kept as the
//! tree that it makes, so that all that was ever read of a log from its first entry here on is one history. Where the operator gave the
//! log's key, that history is what the log signed, and it is told where it signed nothing new for two days.
//!
//! # Caveats
//! Without the key, the log is believed by its TLS. That a log shows everybody the same history is left to those who compare what others
//! were shown (witnesses, gossip). That an SCT's certificate comes into the log at all is not checked, nor are the chains of entries.

#[cfg(test)]
mod decoders;
mod entry;
mod head;
mod merkle;
mod place;
mod source;
mod tile;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use hearth_types::{
    GroupKind, Object, ObjectKey, RequestId, Status, Timestamp, Uid,
    acme::{self, Settings},
    admission::{Context, Part, prepare_create, prepare_update},
    registry,
    store::{Consistency, Expect, Op, Query, list_all, write_one},
    transparency::Log,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

pub(crate) use self::source::Failure;
use self::{
    entry::Logged,
    merkle::Prefix,
    place::Place,
    source::{Api, LogError, Source},
};
use crate::{AcmeConfig, facts, http::Http, metrics::Metrics, order::chain, status::View};

/// How often it is looked which logs there are to watch: a look into memory.
const LOOK: Duration = Duration::from_secs(5);
/// How often a log is asked whether it has more.
const POLL: Duration = Duration::from_mins(1);
/// The same after a failure.
const POLL_FAILED: Duration = Duration::from_mins(5);
/// Of a log that is new here, some of its last entries are read: what was issued a moment before is seen too. From the begin of a tile on.
const FIRST: u64 = 4 * tile::WIDTH;
/// Entries of one log in one go; the others wait that long.
const TURN: u64 = 65_536;
/// A tree head that is older than this is stale, in milliseconds: logs sign one within a day of the last (their maximum merge delay).
const STALE: u64 = 2 * DAY;
const DAY: u64 = 24 * 3_600_000;
/// Certificates that were told of, so that none is told of by each log and as certificate and precertificate.
const TOLD: usize = 1024;
/// Logs of which it is kept how far they were read; of those that are not watched any more, the rest.
const MAX_KEPT: usize = 64;
/// Where it is kept how far logs were read.
const NAME: &str = "region-ct";

/// A log that is watched.
struct Watched {
    /// How it is read, once it was.
    api: Option<Api>,
    /// How far; `None`: it is kept in the store.
    place: Option<Place>,
    /// Entries that it has and that were not read.
    behind: u64,
    due: Instant,
}

/// Why a log was not read to the end of this turn.
enum Stop {
    Store(Status),
    Log(LogError),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Store(status)
    }
}

impl From<LogError> for Stop {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

/// Watches for as long as it runs.
pub(crate) async fn watch(config: &AcmeConfig, metrics: &Metrics) -> std::convert::Infallible {
    let mut watch = Watch { config, metrics, settings: None, logs: BTreeMap::new(), told: VecDeque::new() };
    loop {
        if let Err(status) = watch.turn().await {
            tracing::warn!(%status, "cannot look for certificates that nobody asked for; trying again");
        }
        sleep(LOOK).await;
    }
}

struct Watch<'a> {
    config: &'a AcmeConfig,
    metrics: &'a Metrics,
    /// As they were at the last look.
    settings: Option<Settings>,
    logs: BTreeMap<String, Watched>,
    told: VecDeque<(String, String)>,
}

/// Where it is kept how far logs were read.
fn place_key() -> ObjectKey {
    ObjectKey::new(GroupKind::CONFIG_MAP, &acme::object_key().namespace, NAME)
}

/// A log in the ConfigMap: its URL is no name there.
fn field(url: &str) -> String {
    facts::sha256(url.as_bytes())[..16].to_owned()
}

/// Where to begin with a log of so many entries.
fn first(size: u64) -> u64 {
    size.saturating_sub(FIRST).next_multiple_of(tile::WIDTH).min(size)
}

/// What is said of a tree head that was signed too long ago, in milliseconds since 1970; nothing of one whose time is not known.
fn stale(signed: Option<u64>, now: Timestamp) -> Option<LogError> {
    let age = u64::try_from(now.0).unwrap_or_default().saturating_sub(signed?);
    (age > STALE).then_some(LogError::Stale { days: age / DAY })
}

impl Watch<'_> {
    async fn turn(&mut self) -> Result<(), Status> {
        let stored = self.config.store.get(&acme::object_key(), Consistency::Local).await?;
        let read = stored.as_ref().and_then(|object| Settings::read(&object.value()).ok());
        let texts = read.as_ref().map(|settings| settings.logs.clone()).unwrap_or_default();
        self.logs.retain(|text, _| texts.contains(text));
        if self.settings != read {
            // Whoever changed something wants to see what comes of it.
            self.logs.values_mut().for_each(|watched| watched.due = Instant::now());
            self.settings.clone_from(&read);
        }
        if let (Some(object), Some(settings)) = (stored, read) {
            for text in &texts {
                self.attend(&object, &settings, text).await?;
            }
        }
        self.metrics.behind.set(self.logs.values().map(|watched| watched.behind).sum::<u64>().cast_signed());
        Ok(())
    }

    /// Reads on in a log, if it is time for that.
    async fn attend(&mut self, object: &Object, settings: &Settings, text: &str) -> Result<(), Status> {
        let new = || Watched { api: None, place: None, behind: 0, due: Instant::now() };
        let mut watched = self.logs.remove(text).unwrap_or_else(new);
        if watched.due > Instant::now() {
            self.logs.insert(text.to_owned(), watched);
            return Ok(());
        }
        // What is stored was checked when it was set.
        let log = Log::parse(text).map_err(Status::internal)?;
        let pause = match self.read(settings, &log, &mut watched).await {
            Ok(true) => POLL,
            Ok(false) => Duration::ZERO,
            Err(Stop::Store(status)) => return Err(status),
            Err(Stop::Log(error)) => {
                let why = chain(&error);
                self.metrics.failed(error.label());
                tracing::warn!(log = log.url, why, "a log of Certificate Transparency is not read any further");
                if error.label() != Failure::Unreachable {
                    let message = format!("the log {} is not read any further: {why}", log.url);
                    self.config.events.note(object, true, "TransparencyLogRefused", message);
                }
                (watched.api, watched.place) = (None, None);
                POLL_FAILED
            }
        };
        watched.due = Instant::now() + pause;
        self.logs.insert(text.to_owned(), watched);
        Ok(())
    }

    /// Reads what a log has from its place on; whether that is all.
    async fn read(&mut self, settings: &Settings, log: &Log, watched: &mut Watched) -> Result<bool, Stop> {
        let http = Http::for_log(settings).map_err(LogError::Http)?;
        let mut source = Source::open(&http, log, watched.api).await?;
        watched.api = Some(source.api);
        let (size, signed) = (source.head.size, source.head.signed);
        let place = match watched.place.take() {
            Some(place) => place,
            None => self.kept(log).await?,
        };
        if place.next() > size {
            return Err(LogError::Shorter { size, had: place.next() }.into());
        }
        let before = match place {
            Place::New => source.begin(first(size)).await?,
            Place::Entry(next) => source.begin(next).await?,
            Place::Tree(prefix) => prefix,
        };
        let (prefix, failed) = self.leaves(log, &source, before.clone()).await?;
        // Also what came before a failure is held against the head, and counts.
        source.holds(&prefix).await?;
        watched.behind = size - prefix.size();
        if prefix != before {
            self.keep(log, &prefix).await?;
        }
        let whole = prefix.size() == size;
        watched.place = Some(Place::Tree(prefix));
        match failed {
            Some(error) => Err(error.into()),
            None if whole => stale(signed, self.config.clock.now()).map_or(Ok(true), |error| Err(error.into())),
            None => Ok(false),
        }
    }

    /// Judges the leaves behind those of a tree, and adds them to it. Ends at the end, after a turn's leaves, or where it says why.
    async fn leaves(
        &mut self,
        log: &Log,
        source: &Source<'_>,
        mut tree: Prefix,
    ) -> Result<(Prefix, Option<LogError>), Status> {
        let (size, begin) = (source.head.size, tree.size());
        while tree.size() < size && tree.size() - begin < TURN {
            let leaves = match source.leaves(tree.size()).await {
                Ok(leaves) => leaves,
                Err(error) => return Ok((tree, Some(error))),
            };
            self.metrics.entries.inc_by(leaves.len() as u64);
            for leaf in leaves {
                match entry::read(&leaf) {
                    Some(logged) => self.judge(log, &logged).await?,
                    None => self.unreadable(log, tree.size(), &leaf).await?,
                }
                if !tree.push(0, merkle::leaf(&leaf)) {
                    return Ok((tree, Some(LogError::Missing { entry: size, size })));
                }
            }
        }
        Ok((tree, None))
    }

    /// An entry that is no certificate for this release may be one for browsers: where it has the zone's name, it is told.
    async fn unreadable(&self, log: &Log, index: u64, leaf: &[u8]) -> Result<(), Status> {
        self.metrics.unreadable.inc();
        let zone = self.config.zone.as_bytes();
        if !leaf.windows(zone.len().max(1)).any(|part| part.eq_ignore_ascii_case(zone)) {
            return Ok(());
        }
        tracing::error!(log = log.url, index, "an entry with the zone's name is no certificate that can be read");
        if let Some(object) = self.config.store.get(&acme::object_key(), Consistency::Local).await? {
            let message = format!(
                "entry {index} of the log {} has the zone's name and is no certificate that can be read: look at it with another program",
                log.url
            );
            self.config.events.note(&object, true, "UnreadableCertificate", message);
        }
        Ok(())
    }

    /// Tells the owners whose names a certificate has, unless a device of theirs asked for it.
    async fn judge(&mut self, log: &Log, logged: &Logged) -> Result<(), Status> {
        let owners = entry::owners(logged, &self.config.zone);
        if owners.is_empty() {
            return Ok(());
        }
        let which = (logged.spki.clone(), logged.serial.clone());
        if self.told.contains(&which) {
            return Ok(());
        }
        // What a device asks for is stored before it is ordered, so whoever reads all of the store knows it before any log does.
        let query = Query::all(GroupKind::CERTIFICATE);
        let (objects, _) = list_all(self.config.store.as_ref(), &query, Consistency::Linearizable).await?;
        let views: Vec<View> = objects.iter().filter_map(View::read).collect();
        if views.iter().any(|view| view.knows(&logged.spki)) {
            return Ok(());
        }
        let names: Vec<&str> = logged.names.iter().map(String::as_str).take(10).collect();
        let message = format!(
            "a certificate for {} that no device asked for is in the log {}: issuer {:?}, serial {}, key {}; unless you know whose it is, \
             have its issuer revoke it, and look who can change the region's DNS",
            names.join(", "),
            log.url,
            logged.issuer,
            logged.serial,
            logged.spki
        );
        self.metrics.unexpected.inc();
        tracing::error!(names = ?names, issuer = logged.issuer, serial = logged.serial, "a certificate that no device asked for");
        for owner in owners {
            let of_owner = views.iter().find(|view| view.object.namespace() == owner).map(|view| view.object.clone());
            let regarding = match of_owner {
                Some(object) => Some(object),
                None => self.elsewhere(&owner).await?,
            };
            if let Some(object) = regarding {
                self.config.events.note(&object, true, "UnexpectedCertificate", message.clone());
            }
        }
        if self.told.len() >= TOLD {
            self.told.pop_front();
        }
        self.told.push_back(which);
        Ok(())
    }

    /// What an event is about where the owner has no Certificate: their Namespace, or the settings where the names are nobody's.
    async fn elsewhere(&self, owner: &str) -> Result<Option<Object>, Status> {
        let namespace = ObjectKey::new(GroupKind::NAMESPACE, "", owner);
        let found = if owner.is_empty() { None } else { self.config.store.get(&namespace, Consistency::Local).await? };
        match found {
            Some(object) => Ok(Some(object)),
            None => self.config.store.get(&acme::object_key(), Consistency::Local).await,
        }
    }

    async fn kept(&self, log: &Log) -> Result<Place, Status> {
        let stored = self.config.store.get(&place_key(), Consistency::Linearizable).await?;
        let value = stored.map(|object| object.value()).unwrap_or_default();
        let text = value.pointer("/data").and_then(|data| data.get(field(&log.url))).and_then(Value::as_str);
        Ok(text.map_or(Place::New, Place::read))
    }

    async fn keep(&self, log: &Log, prefix: &Prefix) -> Result<(), Status> {
        let info = registry::of_kind(&GroupKind::CONFIG_MAP).ok_or_else(|| Status::internal("no kind ConfigMap"))?;
        let now = self.config.clock.now();
        let uid = Uid::from(uuid::Uuid::new_v4().to_string());
        let context = Context { now, uid, suffix: "", zone: &self.config.zone };
        let (field, kept) = (field(&log.url), Place::write(prefix, &log.url));
        let old = self.config.store.get(&place_key(), Consistency::Linearizable).await?;
        let op = if let Some(old) = &old {
            let mut value = old.value();
            let mut data = value["data"].as_object().cloned().unwrap_or_default();
            data.insert(field, json!(kept));
            if data.len() > MAX_KEPT {
                let watched = self.settings.iter().flat_map(|settings| &settings.logs);
                let watched: BTreeSet<_> =
                    watched.filter_map(|text| Log::parse(text).ok()).map(|log| self::field(&log.url)).collect();
                data.retain(|field, _| watched.contains(field));
            }
            value["data"] = data.into();
            let object = prepare_update(info, old, value, Part::Region, &context)?.object;
            Op::Update { object, expect: Expect::same(old) }
        } else {
            let key = place_key();
            let value = json!({"apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": key.name, "namespace": key.namespace},
                    "data": {field: kept}});
            Op::Create { object: prepare_create(info, value, &context)?.object }
        };
        let id = RequestId::from(format!("ct-{}", uuid::Uuid::new_v4().simple()));
        write_one(self.config.store.as_ref(), id, op, now).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_was_signed_long_ago_is_stale() {
        let now = Timestamp(1_800_000_000_000);
        let days = |signed: Option<u64>| match stale(signed, now) {
            Some(LogError::Stale { days }) => Some(days),
            _ => None,
        };
        let ago = |age: u64| Some(1_800_000_000_000 - age);
        assert_eq!([days(None), days(ago(0)), days(ago(STALE)), days(Some(u64::MAX))], [None; 4]);
        assert_eq!([days(ago(STALE + 1)), days(ago(30 * DAY))], [Some(2), Some(30)]);
    }

    #[test]
    fn a_log_that_is_new_here_is_begun_with_its_last_entries_at_a_tile() {
        for (size, begin) in [(0, 0), (1, 0), (1024, 0), (1025, 256), (1280, 256), (70_000, 69_120)] {
            assert_eq!(first(size), begin, "{size}");
        }
    }
}
