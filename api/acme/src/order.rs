//! One order (RFC 8555 section 7.4): made, proved by DNS, finalized with the device's request, and its certificate checked.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hearth_types::{
    ObjectKey, Status,
    acme::challenge_name,
    dns::record::{RecordKind, ZoneRecord},
    kinds::CertificateChallenge,
};
use instant_acme::{
    AuthorizationStatus, ChallengeType, Error, Identifier, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use tokio::time::{Instant, sleep};

use crate::{
    AcmeConfig,
    account::Authority,
    facts::{self, Asked, Facts},
    pace::Failure,
    run::Objects,
    status::View,
};

/// How long an order may take in all.
const LIMIT: Duration = Duration::from_mins(3);
/// How the authority is asked how far it is: soon, then less often; its `Retry-After` is honoured.
const POLL: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.6).timeout(Duration::from_secs(75));
/// How long this server's own DNS may take to answer with a proof that was stored.
const SEEN: Duration = Duration::from_secs(5);
/// How long the other servers' DNS may take after that: a follower is a heartbeat behind.
const SPREAD: Duration = Duration::from_millis(500);
/// What every problem's type begins with (RFC 8555 section 6.7).
const PROBLEM: &str = "urn:ietf:params:acme:error:";

/// Why an order failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct OrderError {
    pub(crate) kind: Failure,
    pub(crate) message: String,
    /// The pause that the authority asked for.
    pub(crate) pause: Option<Duration>,
    /// Whether the order may go on later.
    pub(crate) resume: bool,
    /// The account is not known there any more.
    pub(crate) no_account: bool,
    /// The device's request is of no use.
    pub(crate) bad_request: bool,
}

impl OrderError {
    pub(crate) fn new(kind: Failure, message: String) -> Self {
        Self { kind, message, pause: None, resume: false, no_account: false, bad_request: false }
    }

    pub(crate) fn after(self, pause: Option<Duration>) -> Self {
        Self { pause, ..self }
    }
}

impl From<Status> for OrderError {
    fn from(status: Status) -> Self {
        Self { resume: true, ..Self::new(Failure::Unreachable, format!("the region's store: {}", status.message)) }
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.dedup();
    texts.join(": ")
}

/// What kind of failure an error is.
pub(crate) fn failure(error: Error, http: &crate::http::Http, what: &str) -> OrderError {
    let asked = http.take_asked_pause();
    match error {
        Error::Api(problem) => {
            let kind = kind_of(&problem);
            let no_account = problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist");
            let resume = kind == Failure::Unreachable;
            OrderError { resume, no_account, ..OrderError::new(kind, format!("{what}: {problem}")).after(asked) }
        }
        Error::Timeout(next) => {
            let asked = next.map(|next| next.saturating_duration_since(Instant::now().into_std()));
            OrderError {
                resume: true,
                ..OrderError::new(Failure::Unreachable, format!("{what}: {error}")).after(asked)
            }
        }
        other => {
            let text = format!("{what}: the authority cannot be reached, or does not speak ACME: {}", chain(&other));
            OrderError { resume: true, ..OrderError::new(Failure::Unreachable, text).after(asked) }
        }
    }
}

fn kind_of(problem: &Problem) -> Failure {
    let kind = problem.r#type.as_deref().and_then(|kind| kind.strip_prefix(PROBLEM)).unwrap_or_default();
    match kind {
        "rateLimited" => Failure::RateLimited,
        "serverInternal" | "badNonce" | "orderNotReady" => Failure::Unreachable,
        "accountDoesNotExist" | "externalAccountRequired" | "userActionRequired" => Failure::Account,
        _ if problem.status == Some(429) => Failure::RateLimited,
        _ if problem.status.is_some_and(|status| status >= 500) => Failure::Unreachable,
        _ => Failure::Refused,
    }
}

/// Orders a certificate for a device's request. `replaces`: the certificate in whose place it comes, for the authority's limits.
pub(crate) async fn place(
    config: &AcmeConfig,
    objects: &Objects,
    authority: &Authority,
    view: &View,
    csr: &[u8],
    replaces: Option<&Facts>,
) -> Result<(String, Facts), OrderError> {
    let asked = facts::request(csr).and_then(|asked| {
        if asked.names == view.names {
            Ok(asked)
        } else {
            Err(facts::FactsError::Request("it is not for the names of the Certificate".into()))
        }
    });
    let bad = |error: facts::FactsError| OrderError {
        bad_request: true,
        ..OrderError::new(Failure::Refused, error.to_string())
    };
    let asked = asked.map_err(bad)?;
    let placing = Placing { config, objects, authority, view, asked: &asked, csr };
    tokio::time::timeout(LIMIT, placing.run(replaces)).await.unwrap_or_else(|_| {
        let text = format!("the order took more than {} s", LIMIT.as_secs());
        Err(OrderError { resume: true, ..OrderError::new(Failure::Unreachable, text) })
    })
}

struct Placing<'a> {
    config: &'a AcmeConfig,
    objects: &'a Objects,
    authority: &'a Authority,
    view: &'a View,
    asked: &'a Asked,
    csr: &'a [u8],
}

impl Placing<'_> {
    fn failed(&self, error: Error, what: &str) -> OrderError {
        failure(error, &self.authority.http, what)
    }

    fn key(&self) -> &ObjectKey {
        self.view.object.key()
    }

    async fn run(&self, replaces: Option<&Facts>) -> Result<(String, Facts), OrderError> {
        let mut order = self.begin(replaces).await?;
        if order.state().status == OrderStatus::Pending {
            self.prove(&mut order).await?;
            let status = order.poll_ready(&POLL).await;
            if !matches!(status, Ok(OrderStatus::Ready)) {
                return Err(self.unproved(&mut order, status).await);
            }
        }
        if order.state().status == OrderStatus::Ready {
            order
                .finalize_csr(self.csr)
                .await
                .map_err(|error| self.failed(error, "the order with the device's request"))?;
        }
        let pem = order.poll_certificate(&POLL).await.map_err(|error| self.failed(error, "the certificate"))?;
        let wrong = |why: String| OrderError::new(Failure::Refused, why);
        let facts = facts::chain(&pem).map_err(|error| wrong(error.to_string()))?;
        if facts.spki != self.asked.spki || facts.names != self.asked.names {
            // Of an order that an earlier request finalized.
            return Err(wrong(
                "the authority's certificate is for another key or other names than were asked for".into(),
            ));
        }
        if facts.not_after <= self.config.clock.now() {
            return Err(wrong("the authority's certificate has expired already: is this server's clock right?".into()));
        }
        Ok((pem, facts))
    }

    /// The order that was under way, or a new one.
    async fn begin(&self, replaces: Option<&Facts>) -> Result<Order, OrderError> {
        if let Some(known) = &self.view.status.order
            && let Ok(mut order) = self.authority.account.order(known.url.clone()).await
            && matches!(order.state().status, OrderStatus::Pending | OrderStatus::Ready)
        {
            return Ok(order);
        }
        let names: Vec<Identifier> = self.view.names.iter().cloned().map(Identifier::Dns).collect();
        if let Some(id) = replaces.and_then(|facts| facts.id.clone()).filter(|_| self.authority.suggests) {
            match self.authority.account.new_order(&NewOrder::new(&names).replaces(id)).await {
                Ok(order) => return Ok(order),
                Err(Error::Api(problem)) if kind_of(&problem) != Failure::Refused => {
                    return Err(self.failed(Error::Api(problem), "a new order"));
                }
                // Replaced already, or not its own: an order like any other.
                Err(error) => tracing::info!(%error, "the authority takes no order that replaces a certificate"),
            }
        }
        self.authority
            .account
            .new_order(&NewOrder::new(&names))
            .await
            .map_err(|error| self.failed(error, "a new order"))
    }

    /// Has the zone answer with the proofs, and the authority look.
    async fn prove(&self, order: &mut Order) -> Result<(), OrderError> {
        let mut challenges = BTreeSet::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| self.failed(error, "an authorization"))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let named = authorization.identifier().to_string();
            let challenge = authorization.challenge(ChallengeType::Dns01).ok_or_else(|| {
                OrderError::new(Failure::Refused, format!("the authority takes no proof by DNS for {named}"))
            })?;
            let Identifier::Dns(dns_name) = challenge.identifier().identifier else { continue };
            let value = challenge.key_authorization().dns_value();
            challenges.insert(CertificateChallenge { dns_name: dns_name.clone(), value });
        }
        let challenges: Vec<_> = challenges.into_iter().collect();
        let (url, now) = (order.url().to_owned(), self.config.clock.now());
        self.objects.change(self.key(), |value| crate::status::ordering(value, &url, &challenges, now)).await?;
        self.seen(&challenges).await?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| self.failed(error, "an authorization"))?;
            if authorization.status == AuthorizationStatus::Pending
                && let Some(mut challenge) = authorization.challenge(ChallengeType::Dns01)
            {
                challenge.set_ready().await.map_err(|error| self.failed(error, "a proof"))?;
            }
        }
        Ok(())
    }

    /// Waits until the zone answers with the proofs.
    async fn seen(&self, challenges: &[CertificateChallenge]) -> Result<(), OrderError> {
        let mut wanted: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for one in challenges {
            let at = challenge_name(&one.dns_name, self.view.object.namespace(), &self.config.zone);
            if let Some((at, data)) = at.zip(RecordKind::Txt.parse(&one.value).ok()) {
                wanted.entry(at).or_default().push(data);
            }
        }
        let has = |records: &[ZoneRecord], data: &Vec<u8>| {
            records.iter().any(|record| record.kind == RecordKind::Txt && *record.data == **data)
        };
        let all = || {
            wanted.iter().all(|(at, all)| {
                let records = self.config.routes.records(at);
                all.iter().all(|data| has(&records, data))
            })
        };
        let deadline = Instant::now() + SEEN;
        loop {
            let serial = self.config.routes.serial();
            if all() {
                sleep(SPREAD).await;
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, self.config.routes.changed(serial)).await.is_err() {
                let text = "the region's DNS does not answer with the proofs; is this server behind the others?";
                return Err(OrderError { resume: true, ..OrderError::new(Failure::Unreachable, text.into()) });
            }
        }
    }

    /// Why the authority did not take the proofs: what it says of each name.
    async fn unproved(&self, order: &mut Order, status: Result<OrderStatus, Error>) -> OrderError {
        let general = match status {
            Ok(_) => OrderError::new(Failure::Refused, "the authority did not take the proofs".into()),
            Err(error) => self.failed(error, "the proofs"),
        };
        if general.kind == Failure::RateLimited || general.resume {
            return general;
        }
        let mut reasons = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let Ok(state) = authorization.refresh().await else { break };
            let name = state.identifier().to_string();
            let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            reasons.extend(errors.map(|problem| format!("{name}: {problem}")));
        }
        if reasons.is_empty() { general } else { OrderError { message: reasons.join("; "), ..general } }
    }
}
