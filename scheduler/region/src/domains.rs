//! Owners' domains: asks DNS for them, again and again, and writes what came of it. On the server that leads.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use hearth_controllers::domain;
use hearth_types::{
    GroupKind, Object, ObjectKey, acme, condition,
    domains::{DomainLookup, challenge_value, is_custom},
    external::External,
};
use tokio::time::Instant;

use crate::{hub::Hub, writer};

/// How often it is looked which domains there are, and which are due.
const EVERY: Duration = Duration::from_secs(1);
/// Domains that are asked for at once.
const AT_ONCE: usize = 8;
/// Domains that are asked for in one turn; the others come in the next.
const IN_A_TURN: usize = 64;
/// The first pause before a domain that is not verified is asked for again; it doubles up to the last one.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LAST_PAUSE: Duration = Duration::from_mins(10);
/// The pause before one that is verified is asked for again.
const VERIFIED_PAUSE: Duration = Duration::from_hours(1);

/// What the loop needs of the world.
#[derive(Clone)]
pub struct Domains {
    /// Asks DNS.
    pub lookup: Arc<dyn DomainLookup>,
    /// The gateways' addresses, to say whether a domain points there.
    pub gateways: Arc<[IpAddr]>,
}

/// When a domain is asked for next.
struct Plan {
    identity: Identity,
    tries: u32,
    due: Instant,
}

pub(crate) async fn run(hub: Arc<Hub>) {
    let Some(domains) = hub.config.domains.clone() else { return std::future::pending().await };
    let mut plans: HashMap<ObjectKey, Plan> = HashMap::new();
    loop {
        let routes = custom(&hub);
        plans.retain(|key, _| routes.iter().any(|route| route.key() == key));
        let now = Instant::now();
        let due = routes.into_iter().filter(|route| {
            let identity = identity(&hub, route);
            plans.get(route.key()).is_none_or(|plan| plan.due <= now || plan.identity != identity)
        });
        let due: Vec<Object> = due.take(IN_A_TURN).collect();
        let looks = stream::iter(due).map(|route| look(&hub, &domains, route)).buffer_unordered(AT_ONCE);
        let looked: Vec<(Object, bool)> = looks.collect().await;
        for (route, verified) in looked {
            let identity = identity(&hub, &route);
            let before = plans.get(route.key()).filter(|plan| plan.identity == identity);
            let tries = before.map_or(0, |plan| plan.tries + 1);
            let pause = if verified { VERIFIED_PAUSE } else { pause(tries) };
            plans.insert(route.key().clone(), Plan { identity, tries, due: Instant::now() + pause });
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn pause(tries: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << tries.min(16)).min(LAST_PAUSE)
}

/// A domain is looked at anew at once where any of this is another: which Route it is, what it asks for, which device serves it, and whether
/// certificates are ordered.
type Identity = (String, i64, String, bool);

fn identity(hub: &Hub, route: &Object) -> Identity {
    // As it is by now: what was looked at may have been written meanwhile.
    let cache = hub.cache();
    let value = cache.get(route.key()).map_or_else(|| route.value(), |entry| entry.object.value());
    let generation = value.pointer("/metadata/generation").and_then(serde_json::Value::as_i64);
    let device = domain::serving(&value).unwrap_or_default().to_owned();
    let ordered = cache.orders_certificates();
    (route.uid().to_string(), generation.unwrap_or_default(), device, ordered)
}

/// The Routes of domains.
fn custom(hub: &Hub) -> Vec<Object> {
    let cache = hub.cache();
    let routes = cache.of_kind(GroupKind::ROUTE).filter(|entry| !entry.deleting);
    let custom = routes.filter(|entry| entry.hostname().is_some_and(|name| is_custom(name, &hub.config.zone)));
    custom.map(|entry| entry.object.clone()).collect()
}

/// Asks for one, and writes what came of it. Whether it is verified, its record was seen, and nothing of its certificate is awaited.
async fn look(hub: &Arc<Hub>, domains: &Domains, route: Object) -> (Object, bool) {
    let hostname =
        route.value().pointer("/spec/hostname").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let found = domains.lookup.look(&hostname).await;
    let (current, token, taken, ordered, certificate, here) = {
        let cache = hub.cache();
        // As it is by now: others write its status, too.
        let current = cache.get(route.key()).filter(|entry| entry.object.uid() == route.uid());
        let Some(current) = current.map(|entry| entry.object.clone()) else { return (route, false) };
        let namespace = cache.object(GroupKind::NAMESPACE, "", route.namespace());
        let uid = namespace.map(|entry| entry.object.uid().to_string()).unwrap_or_default();
        let token = challenge_value(&hub.config.zone, route.namespace(), &uid, &hostname);
        let taken = cache.routes_named(&hostname).any(|other| {
            other.object.namespace() != route.namespace()
                && other.object.value().pointer("/status/domain/verifiedSince").is_some()
        });
        let value = current.value();
        let name = domain::serving(&value).map(|device| domain::certificate_name(device, &hostname));
        let certificate = name.and_then(|name| cache.object(GroupKind::CERTIFICATE, route.namespace(), &name));
        let certificate = certificate.map(|entry| entry.object.clone());
        // By a CNAME to a name of the zone that leads straight to the device.
        let device = domain::serving(&value).and_then(|device| cache.object(GroupKind::DEVICE, "", device));
        let external = device.and_then(|device| External::of(&device.object.value()));
        let external = external.filter(|external| external.owner == route.namespace());
        let mut here = domains.gateways.to_vec();
        here.extend(external.into_iter().flat_map(|external| external.addresses));
        (current, token, taken, cache.orders_certificates(), certificate, here)
    };
    let alias = format!("api.{}", hub.config.zone);
    let proofs = acme::challenge_name(&hostname, route.namespace(), &hub.config.zone).unwrap_or_default();
    let certificate = certificate.as_ref();
    let seen = domain::Seen { found, token, taken, gateways: &here, alias, proofs, ordered, certificate };
    let reconciled = domain::reconcile(&current, &seen, hub.now());
    if let Err(error) = writer::execute(hub, &reconciled.actions, "domain").await {
        tracing::debug!(%error, route = %route.key(), "what DNS says of a domain was not written; trying again");
        return (route, false);
    }
    let now = hub.cache().get(route.key()).map(|entry| entry.object.value()).unwrap_or_default();
    let settled =
        now.pointer("/status/domain/verifiedSince").is_some() && now.pointer("/status/domain/failingSince").is_none();
    let settled = settled && (!ordered || condition::is_true(&now, "CertificateReady"));
    (route, settled)
}
