//! Watches logs of Certificate Transparency (RFC 6962) for certificates of the zone's names that no device asked for: a region could have
//! one issued, as could whoever takes over its DNS, and it is seen here. Whoever reads all of a large public log needs a line for that:
//! some 2 MB/s.
//!
//! # Caveats
//! The log is believed by its TLS: that it shows everybody the same (its signed tree heads) is left to those who audit logs.

mod entry;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_types::{
    GroupKind, Object, ObjectKey, RequestId, Status, Uid,
    acme::{self, Settings},
    admission::{Context, Part, prepare_create, prepare_update},
    registry,
    store::{Consistency, Expect, Op, Query, list_all, write_one},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::entry::Logged;
use crate::{AcmeConfig, facts, http::Http, status::View};

/// How often it is looked which logs there are to watch: a look into memory.
const LOOK: Duration = Duration::from_secs(5);
/// How often a log is asked whether it has more.
const POLL: Duration = Duration::from_mins(1);
/// The same after a failure.
const POLL_FAILED: Duration = Duration::from_mins(5);
/// Entries that are asked for at once; a log may send fewer.
const BATCH: u64 = 256;
/// Of a log that is new here, so many of its last entries are read: what was issued a moment before is seen too.
const FIRST: u64 = 1024;
/// Entries of one log in one go; the others wait that long.
const TURN: u64 = 65_536;
/// Certificates that were told of, so that none is told of by each log and as certificate and precertificate.
const TOLD: usize = 1024;
/// Where it is kept how far logs were read.
const NAME: &str = "region-ct";

/// How far a log was read.
struct Place {
    next: Option<u64>,
    due: Instant,
}

#[derive(Deserialize)]
struct TreeHead {
    tree_size: u64,
}

#[derive(Deserialize)]
struct Entries {
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    leaf_input: String,
}

/// Watches for as long as it runs.
pub(crate) async fn watch(config: &AcmeConfig) -> std::convert::Infallible {
    let mut watch = Watch { config, places: BTreeMap::new(), told: VecDeque::new() };
    loop {
        if let Err(status) = watch.turn().await {
            tracing::warn!(%status, "cannot look for certificates that nobody asked for; trying again");
        }
        sleep(LOOK).await;
    }
}

struct Watch<'a> {
    config: &'a AcmeConfig,
    places: BTreeMap<String, Place>,
    told: VecDeque<(String, String)>,
}

/// Where it is kept how far logs were read.
fn place_key() -> ObjectKey {
    ObjectKey::new(GroupKind::CONFIG_MAP, &acme::object_key().namespace, NAME)
}

/// A log in the ConfigMap: its URL is no name there.
fn field(log: &str) -> String {
    facts::sha256(log.as_bytes())[..16].to_owned()
}

impl Watch<'_> {
    async fn turn(&mut self) -> Result<(), Status> {
        let stored = self.config.store.get(&acme::object_key(), Consistency::Local).await?;
        let settings = stored.and_then(|object| Settings::read(&object.value()).ok());
        let logs = settings.as_ref().map(|settings| settings.logs.clone()).unwrap_or_default();
        self.places.retain(|log, _| logs.contains(log));
        let Some(settings) = settings.filter(|_| !logs.is_empty()) else { return Ok(()) };
        for log in logs {
            if !self.places.contains_key(&log) {
                let next = self.kept(&log).await?;
                self.places.insert(log.clone(), Place { next, due: Instant::now() });
            }
            let Some(place) = self.places.get(&log).filter(|place| place.due <= Instant::now()) else { continue };
            let from = place.next;
            let (next, pause) = match self.read(&settings, &log, from).await? {
                Ok((next, whole)) => (Some(next), if whole { POLL } else { Duration::ZERO }),
                Err(why) => {
                    tracing::warn!(log, why, "a log of Certificate Transparency cannot be read");
                    (from, POLL_FAILED)
                }
            };
            if let Some(next) = next.filter(|_| next != from) {
                self.keep(&log, next).await?;
            }
            self.places.insert(log, Place { next, due: Instant::now() + pause });
        }
        Ok(())
    }

    /// Reads what a log has from a place on. Returns where to go on, and whether that is its end; or why it cannot be read.
    async fn read(
        &mut self,
        settings: &Settings,
        log: &str,
        from: Option<u64>,
    ) -> Result<Result<(u64, bool), String>, Status> {
        let base = log.trim_end_matches('/');
        let http = match Http::for_log(settings) {
            Ok(http) => http,
            Err(error) => return Ok(Err(crate::order::chain(&error))),
        };
        let head: TreeHead = match fetch(&http, &format!("{base}/ct/v1/get-sth")).await {
            Ok(head) => head,
            Err(why) => return Ok(Err(why)),
        };
        let size = head.tree_size;
        let mut next = from.unwrap_or_else(|| size.saturating_sub(FIRST));
        if next > size {
            return Ok(Err(format!("it has {size} entries, and had {next}: a log never gets shorter")));
        }
        let end = size.min(next.saturating_add(TURN));
        while next < end {
            let last = end.min(next + BATCH) - 1;
            let page: Entries = match fetch(&http, &format!("{base}/ct/v1/get-entries?start={next}&end={last}")).await {
                Ok(page) => page,
                Err(why) => return Ok(Err(why)),
            };
            if page.entries.is_empty() {
                return Ok(Err(format!("it does not give entry {next}, though it has {size}")));
            }
            let wanted = usize::try_from(last + 1 - next).unwrap_or(usize::MAX);
            for entry in page.entries.iter().take(wanted) {
                let logged = STANDARD.decode(&entry.leaf_input).ok().and_then(|leaf| entry::read(&leaf));
                if let Some(logged) = logged {
                    self.judge(log, &logged).await?;
                }
                next += 1;
            }
        }
        Ok(Ok((next, end == size)))
    }

    /// Tells the owners whose names a certificate has, unless a device of theirs asked for it.
    async fn judge(&mut self, log: &str, logged: &Logged) -> Result<(), Status> {
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
            "a certificate for {} that no device asked for is in the log {log}: issuer {:?}, serial {}, key {}; unless you know whose it is, \
             have its issuer revoke it, and look who can change the region's DNS",
            names.join(", "),
            logged.issuer,
            logged.serial,
            logged.spki
        );
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

    async fn kept(&self, log: &str) -> Result<Option<u64>, Status> {
        let stored = self.config.store.get(&place_key(), Consistency::Linearizable).await?;
        let value = stored.map(|object| object.value()).unwrap_or_default();
        let text = value.pointer("/data").and_then(|data| data.get(field(log))).and_then(Value::as_str);
        Ok(text.and_then(|text| text.split(' ').next()?.parse().ok()))
    }

    async fn keep(&self, log: &str, next: u64) -> Result<(), Status> {
        let info = registry::of_kind(&GroupKind::CONFIG_MAP).ok_or_else(|| Status::internal("no kind ConfigMap"))?;
        let now = self.config.clock.now();
        let uid = Uid::from(uuid::Uuid::new_v4().to_string());
        let context = Context { now, uid, suffix: "", zone: &self.config.zone };
        let old = self.config.store.get(&place_key(), Consistency::Linearizable).await?;
        let op = if let Some(old) = &old {
            let mut value = old.value();
            if !value["data"].is_object() {
                value["data"] = json!({});
            }
            value["data"][field(log)] = json!(format!("{next} {log}"));
            let object = prepare_update(info, old, value, Part::Region, &context)?.object;
            Op::Update { object, expect: Expect::same(old) }
        } else {
            let key = place_key();
            let value = json!({"apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": key.name, "namespace": key.namespace},
                    "data": {field(log): format!("{next} {log}")}});
            Op::Create { object: prepare_create(info, value, &context)?.object }
        };
        let id = RequestId::from(format!("ct-{}", uuid::Uuid::new_v4().simple()));
        write_one(self.config.store.as_ref(), id, op, now).await.map(drop)
    }
}

async fn fetch<T: serde::de::DeserializeOwned>(http: &Http, url: &str) -> Result<T, String> {
    let body = http.get(url).await.map_err(|error| crate::order::chain(&error))?;
    serde_json::from_slice(&body).map_err(|error| format!("{url}: {error}"))
}
