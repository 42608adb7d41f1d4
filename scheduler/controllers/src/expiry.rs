//! What goes by itself after a time: Events and join tokens.

use std::{collections::BTreeMap, time::Duration};

use hearth_types::{Object, Timestamp};
use serde_json::Value;

use crate::{
    action::Reconciled,
    meta::{text, time},
};

/// How long an Event is kept, as in Kubernetes.
pub const EVENT_TTL: Duration = Duration::from_hours(1);
/// Events of one namespace at most: what a person can read, and a bound on what a device in trouble can write.
pub const MAX_EVENTS: usize = 1000;
/// How long an expired join token that nobody used is kept, so that its refusal can be explained.
pub const TOKEN_KEPT: Duration = Duration::from_hours(24);
/// How long one that a device used is kept: the same device may ask again by it.
pub const USED_TOKEN_KEPT: Duration = Duration::from_hours(30 * 24);
/// Objects that one call deletes at most: one transaction holds them.
const BURST: usize = 500;

/// Deletes Events that are older than [`EVENT_TTL`], and the oldest of a namespace that has more than [`MAX_EVENTS`].
pub fn events(events: &[Object], now: Timestamp) -> Reconciled {
    let mut out = Reconciled::default();
    let mut kept: BTreeMap<&str, Vec<(Timestamp, &Object)>> = BTreeMap::new();
    for event in events {
        let last = last_seen(&event.value()).unwrap_or_default();
        if now.since(last) >= EVENT_TTL {
            out.delete(event);
        } else {
            kept.entry(event.namespace()).or_default().push((last, event));
        }
    }
    for list in kept.values_mut() {
        let surplus = list.len().saturating_sub(MAX_EVENTS);
        list.sort_by(|(a, one), (b, other)| (a, one.name()).cmp(&(b, other.name())));
        list.iter().take(surplus).for_each(|(_, event)| out.delete(event));
    }
    out.actions.truncate(BURST);
    out
}

fn last_seen(event: &Value) -> Option<Timestamp> {
    ["/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"].into_iter().find_map(|pointer| time(event, pointer))
}

/// Deletes join tokens that expired more than [`TOKEN_KEPT`] ago, or [`USED_TOKEN_KEPT`] where a device used it. `expires` reads a
/// token's expiry; one that has none is kept.
pub fn tokens(secrets: &[Object], expires: impl Fn(&Value) -> Option<Timestamp>, now: Timestamp) -> Reconciled {
    let mut out = Reconciled::default();
    for secret in secrets {
        let value = secret.value();
        let is_token =
            text(&value, "/type") == hearth_types::kinds::JOIN_TOKEN_TYPE && secret.namespace() == "kube-system";
        let used = value.get("data").is_some_and(|data| data.get("used-by-key").is_some());
        let kept = if used { USED_TOKEN_KEPT } else { TOKEN_KEPT };
        if is_token && expires(&value).is_some_and(|expires| now.since(expires) >= kept) {
            out.delete(secret);
        }
    }
    out.actions.truncate(BURST);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::deletes;

    fn event(name: &str, last: Timestamp) -> Object {
        Object::from_value(json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "n"},
            "lastTimestamp": last.to_string()}))
        .expect("an object")
    }

    #[test]
    fn old_events_and_the_surplus_of_a_namespace_go() {
        let now = Timestamp(10_000_000_000);
        let ago = |seconds: u64| Timestamp(now.0 - i64::try_from(seconds * 1000).expect("small"));
        assert_eq!(deletes(&events(&[event("a", ago(3599)), event("b", ago(3600))], now)), 1);
        let many: Vec<_> = (0..1003).map(|index| event(&format!("e{index}"), ago(index))).collect();
        let out = events(&many, now);
        assert_eq!(deletes(&out), 3);
        let crate::Action::Delete { base, .. } = &out.actions[0] else { panic!("a delete") };
        assert_eq!(base.name(), "e1002", "the oldest first");
    }

    #[test]
    fn only_long_expired_join_tokens_go() {
        let secret = |namespace: &str, kind: &str| {
            Object::from_value(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": namespace}, "type": kind}))
                .expect("an object")
        };
        let token = secret("kube-system", hearth_types::kinds::JOIN_TOKEN_TYPE);
        let day = 24 * 3600 * 1000;
        for (secret, now, deleted) in [
            (&token, day + 5000, 1),
            (&token, day - 1, 0),
            (&secret("alice", hearth_types::kinds::JOIN_TOKEN_TYPE), day * 9, 0),
            (&secret("kube-system", "Opaque"), day * 9, 0),
        ] {
            let out = tokens(std::slice::from_ref(secret), |_| Some(Timestamp(5000)), Timestamp(now));
            assert_eq!(deletes(&out), deleted);
        }
        assert_eq!(deletes(&tokens(&[token], |_| None, Timestamp(day * 9))), 0);
    }
}
