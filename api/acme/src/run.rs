//! What is to be done next: a loop over the Certificates, on the server that leads.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _};
use hearth_types::{
    GroupKind, Object, ObjectKey, Reason, RequestId, Status, Timestamp, Uid,
    acme::{self, Settings},
    admission::{Context, Part, prepare_update},
    condition, registry,
    selector::{FieldSelector, Selector},
    store::{Consistency, Expect, Op, Query, WatchEvent, WatchStream, list_all, write_one},
};
use serde_json::Value;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    AcmeConfig,
    account::{self, Authority},
    facts,
    metrics::Metrics,
    order::{self, OrderError},
    pace::{self, Failure, Issue, Limits, ORDERS_WINDOW, Wish},
    status::{self, View},
};

/// The pause before what broke is begun anew.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest sleep: times on the wall may be set anew.
const LONGEST: Duration = Duration::from_mins(1);
/// How often the authority is asked when to renew, unless it says; and the bounds of what it may say.
const SUGGESTION: Duration = Duration::from_hours(6);
const SOONEST_SUGGESTION: Duration = Duration::from_secs(1);
const LATEST_SUGGESTION: Duration = Duration::from_hours(24);
/// Tries to store a change, against others that write the object.
const TRIES: usize = 8;

/// Orders certificates for as long as it runs.
pub struct Acme {
    config: AcmeConfig,
    metrics: Metrics,
}

impl Acme {
    /// With these parts; fails where the metrics are registered already.
    pub fn new(config: AcmeConfig, registry: &prometheus::Registry) -> prometheus::Result<Self> {
        Ok(Self { config, metrics: Metrics::register(registry)? })
    }

    /// Orders whenever this server leads, until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        stop.run_until_cancelled(self.always()).await;
        Ok(())
    }

    async fn always(&self) {
        let mut changes = self.config.group.watch_leadership();
        let mut now = self.config.group.leadership();
        loop {
            let changed = async {
                loop {
                    match changes.next().await {
                        Some(next) if next.here == now.here && next.term == now.term => {}
                        next => return next,
                    }
                }
            };
            let next = if now.here {
                tokio::select! {
                    next = changed => next,
                    never = crate::ct::watch(&self.config, &self.metrics) => match never {},
                    status = lead(&self.config) => {
                        if let Err(status) = status {
                            tracing::warn!(%status, "cannot look at certificates to be ordered; beginning anew");
                        }
                        sleep(PAUSE).await;
                        continue;
                    }
                }
            } else {
                changed.await
            };
            match next {
                Some(next) => now = next,
                None => return std::future::pending().await,
            }
        }
    }
}

/// Reads and writes objects.
pub(crate) struct Objects {
    config: AcmeConfig,
}

impl Objects {
    /// Changes a Certificate's status, against whoever else does.
    pub(crate) async fn change(&self, key: &ObjectKey, change: impl Fn(&mut Value)) -> Result<Object, Status> {
        self.write(key, Part::Status, change).await
    }

    async fn write(&self, key: &ObjectKey, part: Part, change: impl Fn(&mut Value)) -> Result<Object, Status> {
        let info = registry::of_kind(&key.kind).ok_or_else(|| Status::internal(format!("no kind {}", key.kind)))?;
        for _ in 0..TRIES {
            let stored = self.config.store.get(key, Consistency::Linearizable).await?;
            let old = stored.ok_or_else(|| Status::not_found(key))?;
            let mut value = old.value();
            change(&mut value);
            let now = self.config.clock.now();
            let uid = Uid::from(uuid::Uuid::new_v4().to_string());
            let context = Context { now, uid, suffix: "", zone: &self.config.zone };
            let object = prepare_update(info, &old, value, part, &context)?.object;
            let op = Op::Update { object, expect: Expect::same(&old) };
            let id = RequestId::from(format!("acme-{}", uuid::Uuid::new_v4().simple()));
            match write_one(self.config.store.as_ref(), id, op, now).await {
                Err(status) if status.reason == Reason::Conflict => {}
                done => return done,
            }
        }
        Err(Status::new(Reason::Conflict, format!("{key} is changed by others all the time")))
    }
}

/// What is known while this server leads.
struct Work<'a> {
    config: &'a AcmeConfig,
    objects: Objects,
    views: BTreeMap<ObjectKey, View>,
    /// The Secret with the settings, and what it says.
    settings: Option<(Object, Settings)>,
    authority: Option<Authority>,
    /// No try to open the account before, and how many failed.
    account: (Timestamp, u32),
    /// When each certificate's time of renewal is asked for next, by the certificate's serial number.
    suggestions: BTreeMap<ObjectKey, (String, Timestamp)>,
    orders: VecDeque<Timestamp>,
}

/// Something to be done now.
enum Step {
    Open,
    Order(Box<View>),
    Hold(Box<View>, Timestamp, &'static str),
    Suggest(Box<View>),
    Expire(Box<View>),
    /// Nothing before then.
    Wait(Timestamp),
}

fn settings_query() -> Query {
    let key = acme::object_key();
    let fields = FieldSelector::equal("metadata.name", &key.name);
    let selector = Selector { fields, ..Selector::default() };
    Query { kind: key.kind, namespace: Some(key.namespace.to_string()), selector }
}

/// Works for as long as this server leads. Ends where a watch does.
async fn lead(config: &AcmeConfig) -> Result<(), Status> {
    let (settings, mut settings_watch) = follow(config, settings_query()).await?;
    let (certificates, mut watch) = follow(config, Query::all(GroupKind::CERTIFICATE)).await?;
    let mut work = Work {
        config,
        objects: Objects { config: config.clone() },
        views: BTreeMap::new(),
        settings: None,
        authority: None,
        account: (Timestamp::default(), 0),
        suggestions: BTreeMap::new(),
        orders: VecDeque::new(),
    };
    settings.into_iter().chain(certificates).for_each(|object| work.take(object));
    loop {
        // What was told while a step was under way.
        while let Some(event) = settings_watch.next().now_or_never() {
            work.observe(event)?;
        }
        while let Some(event) = watch.next().now_or_never() {
            work.observe(event)?;
        }
        let until = match work.step(config.clock.now()) {
            Step::Wait(until) => until,
            step => {
                work.execute(step).await?;
                continue;
            }
        };
        let pause = until.since(config.clock.now()).min(LONGEST);
        tokio::select! {
            event = settings_watch.next() => work.observe(event)?,
            event = watch.next() => work.observe(event)?,
            () = sleep(pause) => {}
        }
    }
}

async fn follow(config: &AcmeConfig, query: Query) -> Result<(Vec<Object>, WatchStream), Status> {
    let (objects, revision) = list_all(config.store.as_ref(), &query, Consistency::Local).await?;
    Ok((objects, config.store.watch(query, revision).await?))
}

impl Work<'_> {
    fn observe(&mut self, event: Option<Result<WatchEvent, Status>>) -> Result<(), Status> {
        match event.ok_or_else(|| Status::unavailable("the watch ended"))?? {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => self.take(object),
            WatchEvent::Deleted(object) => {
                if *object.kind() == GroupKind::CERTIFICATE {
                    self.views.remove(object.key());
                    self.suggestions.remove(object.key());
                } else {
                    (self.settings, self.authority) = (None, None);
                }
            }
            WatchEvent::Bookmark(_) => {}
        }
        Ok(())
    }

    fn take(&mut self, object: Object) {
        if *object.kind() == GroupKind::CERTIFICATE {
            // Never back to what a write of ours replaced.
            if self.views.get(object.key()).is_some_and(|known| known.object.revision() >= object.revision()) {
                return;
            }
            match View::read(&object) {
                Some(view) => drop(self.views.insert(object.key().clone(), view)),
                None => drop(self.views.remove(object.key())),
            }
            return;
        }
        if self.settings.as_ref().is_some_and(|(known, _)| known.revision() >= object.revision()) {
            return;
        }
        match Settings::read(&object.value()) {
            Ok(settings) => {
                if self.settings.as_ref().is_none_or(|(_, known)| *known != settings) {
                    (self.authority, self.account) = (None, (Timestamp::default(), 0));
                }
                self.settings = Some((object, settings));
            }
            Err(why) => {
                tracing::error!(
                    why,
                    "the settings of certificate orders cannot be read; set them anew with `hearth region acme`"
                );
                (self.settings, self.authority) = (None, None);
            }
        }
    }

    /// What is to be done now, or when something is.
    fn step(&mut self, now: Timestamp) -> Step {
        let mut next = now.plus(LONGEST);
        let expired = |view: &&View| {
            view.not_after().is_some_and(|end| end <= now) && condition::is_true(&view.object.value(), "Ready")
        };
        if let Some(view) = self.views.values().find(expired) {
            return Step::Expire(Box::new(view.clone()));
        }
        let Some((_, settings)) = &self.settings else { return Step::Wait(next) };
        if self.authority.is_none() {
            return if self.account.0 <= now { Step::Open } else { Step::Wait(self.account.0) };
        }
        let limits = Limits { per_week: settings.certificates_per_week, ..Limits::default() };
        while self.orders.front().is_some_and(|at| at.plus(ORDERS_WINDOW) <= now) {
            self.orders.pop_front();
        }
        let orders: Vec<Timestamp> = self.orders.iter().copied().collect();
        let mut waiting: Vec<&View> = self.views.values().filter(|view| view.request.is_some()).collect();
        // The longest wait first.
        waiting.sort_by_key(|view| view.request.as_ref().map(|(_, at)| *at));
        let issues: Vec<Issue> =
            if waiting.is_empty() { Vec::new() } else { self.views.values().flat_map(View::issues).collect() };
        for view in waiting {
            if view.next_try() > now {
                next = next.min(view.next_try());
                continue;
            }
            let limits = view.life().map_or(limits, |life| limits.for_life(life));
            let (at, why) = pace::earliest(&limits, &issues, &orders, self.wish(view), now);
            if at <= now {
                return Step::Order(Box::new(view.clone()));
            }
            if !view.waits(at, why) {
                return Step::Hold(Box::new(view.clone()), at, why);
            }
            next = next.min(at);
        }
        if self.authority.as_ref().is_some_and(|authority| authority.suggests) {
            for (key, view) in &self.views {
                let Some(serial) = view.status.issued.first().map(|issued| &issued.serial) else { continue };
                let due = match self.suggestions.get(key) {
                    Some((known, due)) if known == serial => *due,
                    _ => now,
                };
                if due <= now && view.request.is_none() {
                    return Step::Suggest(Box::new(view.clone()));
                }
                next = next.min(due.max(now));
            }
        }
        for end in self.views.values().filter_map(View::not_after).filter(|end| *end > now) {
            next = next.min(end);
        }
        Step::Wait(next)
    }

    fn wish<'b>(&self, view: &'b View) -> Wish<'b> {
        let renewal = view.is_renewal();
        let suggests = self.authority.as_ref().is_some_and(|authority| authority.suggests);
        Wish { names: &view.names, renewal, replaces: renewal && suggests && self.is_own(view) }
    }

    /// Whether the present certificate is this authority's.
    fn is_own(&self, view: &View) -> bool {
        self.settings.as_ref().is_some_and(|(_, settings)| view.status.issuer.as_deref() == Some(&*settings.directory))
    }

    async fn execute(&mut self, step: Step) -> Result<(), Status> {
        let now = self.config.clock.now();
        match step {
            Step::Wait(_) => Ok(()),
            Step::Open => self.open(now).await,
            Step::Order(view) => self.order(&view).await,
            Step::Suggest(view) => self.suggest(&view, now).await,
            Step::Hold(view, until, why) => {
                self.keep(view.object.key(), |value| status::waiting(value, until, why, now)).await
            }
            Step::Expire(view) => {
                let text = "the certificate expired, and no other came in time";
                self.config.events.note(&view.object, true, "Expired", text.into());
                self.keep(view.object.key(), |value| status::expired(value, now)).await
            }
        }
    }

    /// The Certificates for which a device's request waits.
    fn waiting(&self) -> Vec<ObjectKey> {
        self.views.iter().filter(|(_, view)| view.request.is_some()).map(|(key, _)| key.clone()).collect()
    }

    /// Stores a change; one whose Certificate is gone is forgotten.
    async fn keep(&mut self, key: &ObjectKey, change: impl Fn(&mut Value)) -> Result<(), Status> {
        match self.objects.change(key, change).await {
            Ok(object) => self.take(object),
            Err(status) if status.reason == Reason::NotFound => drop(self.views.remove(key)),
            Err(status) => return Err(status),
        }
        Ok(())
    }

    async fn open(&mut self, now: Timestamp) -> Result<(), Status> {
        let Some((object, settings)) = self.settings.clone() else { return Ok(()) };
        match account::open(&settings, self.config.vault.as_ref()).await {
            Ok((authority, made)) => {
                if let Some(made) = made {
                    tracing::info!(
                        directory = settings.directory,
                        account = made.uri,
                        "an account at the authority was made"
                    );
                    self.save_account(&settings.directory, Some(made)).await?;
                    for key in self.waiting() {
                        self.keep(&key, status::begin_anew).await?;
                    }
                }
                (self.authority, self.account) = (Some(authority), (Timestamp::default(), 0));
            }
            Err(error) => {
                let failures = self.account.1.saturating_add(1);
                let pause = pace::pause(error.kind, failures, error.pause, rand::random());
                self.account = (now.plus(pause), failures);
                tracing::warn!(directory = settings.directory, %error, "no account at the authority; trying again in {} s", pause.as_secs());
                self.config.events.note(&object, true, error.kind.reason(), error.message.clone());
                for key in self.waiting() {
                    self.keep(&key, |value| status::no_account(value, error.kind.reason(), &error.message, now))
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// Keeps the account in the settings, or forgets it.
    async fn save_account(&mut self, directory: &str, account: Option<acme::Account>) -> Result<(), Status> {
        let change = |value: &mut Value| {
            if let Ok(mut settings) = Settings::read(value)
                && settings.directory == directory
            {
                settings.account.clone_from(&account);
                *value = settings.write(Some(value));
            }
        };
        let object = self.objects.write(&acme::object_key(), Part::Region, change).await?;
        // Before the watch tells, which would have the account opened anew.
        if let Ok(settings) = Settings::read(&object.value()) {
            self.settings = Some((object, settings));
        }
        Ok(())
    }

    async fn order(&mut self, view: &View) -> Result<(), Status> {
        let Some(authority) = &self.authority else { return Ok(()) };
        let Some((csr, _)) = &view.request else { return Ok(()) };
        let present = view.status.certificate.as_deref().and_then(|pem| facts::chain(pem).ok());
        let (renewal, replaces) = (view.is_renewal(), present.filter(|_| self.is_own(view)));
        let directory = authority.directory.clone();
        self.orders.push_back(self.config.clock.now());
        let done = order::place(self.config, &self.objects, authority, view, csr, replaces.as_ref()).await;
        let (now, key) = (self.config.clock.now(), view.object.key());
        match done {
            Ok((pem, facts)) => {
                let at = pace::renewal(facts.not_before, facts.not_after, rand::random());
                let text = format!(
                    "a certificate for {} was issued",
                    view.names.iter().cloned().collect::<Vec<_>>().join(", ")
                );
                self.keep(key, |value| status::issued(value, (&pem, &facts, &directory), renewal, at, now)).await?;
                tracing::info!(certificate = %key, serial = facts.serial, expires = %facts.not_after, "issued");
                self.config.events.note(&view.object, false, "Issued", text);
                Ok(())
            }
            Err(error) => self.order_failed(view, &error, now).await,
        }
    }

    async fn order_failed(&mut self, view: &View, error: &OrderError, now: Timestamp) -> Result<(), Status> {
        let key = view.object.key();
        tracing::warn!(certificate = %key, %error, "no certificate was issued");
        let reason = error.kind.reason();
        self.config.events.note(
            &view.object,
            true,
            if error.bad_request { "BadRequest" } else { reason },
            error.message.clone(),
        );
        if error.bad_request {
            return self.keep(key, |value| status::refused(value, &error.message, now)).await;
        }
        if error.no_account {
            let directory = self.settings.as_ref().map(|(_, settings)| settings.directory.clone()).unwrap_or_default();
            self.save_account(&directory, None).await?;
            self.authority = None;
        }
        let failures = view.status.failures.unwrap_or(0).saturating_add(1);
        let next = now.plus(pace::pause(error.kind, failures, error.pause, rand::random()));
        if matches!(error.kind, Failure::RateLimited | Failure::Unreachable) {
            // It is about the account or the authority, not about one name: nobody else asks before.
            let others = self.views.values().filter(|other| other.request.is_some() && other.next_try() < next);
            let others: Vec<ObjectKey> =
                others.map(|other| other.object.key().clone()).filter(|other| other != key).collect();
            for other in others {
                self.keep(&other, |value| status::failed(value, reason, &error.message, next, true, now)).await?;
            }
        }
        self.keep(key, |value| status::failed(value, reason, &error.message, next, error.resume, now)).await
    }

    /// Asks the authority when a certificate is to be renewed (RFC 9773).
    async fn suggest(&mut self, view: &View, now: Timestamp) -> Result<(), Status> {
        let Some(authority) = &self.authority else { return Ok(()) };
        let serial = view.status.issued.first().map(|issued| issued.serial.clone()).unwrap_or_default();
        let id = view.status.certificate.as_deref().and_then(|pem| facts::chain(pem).ok()).and_then(|facts| facts.id);
        let answer = match id.filter(|_| self.is_own(view)) {
            Some(id) => authority.account.renewal_info(&id).await.map_err(|error| error.to_string()),
            None => Err("it is not this authority's".into()),
        };
        let key = view.object.key();
        let again = match answer {
            Ok((info, again)) => {
                let time = |at: i128| Timestamp(i64::try_from(at / 1_000_000).unwrap_or(i64::MAX));
                let (start, end) = (
                    time(info.suggested_window.start.unix_timestamp_nanos()),
                    time(info.suggested_window.end.unix_timestamp_nanos()),
                );
                if start < end {
                    let at = pace::suggested(start, end, view.renewal_time(), rand::random());
                    if view.renewal_time() != Some(at) {
                        self.keep(key, |value| status::renew_at(value, at)).await?;
                    }
                }
                again.clamp(SOONEST_SUGGESTION, LATEST_SUGGESTION)
            }
            Err(error) => {
                tracing::debug!(certificate = %key, error, "no time of renewal is suggested; two thirds of its life are");
                SUGGESTION
            }
        };
        self.suggestions.insert(key.clone(), (serial, now.plus(again)));
        Ok(())
    }
}
