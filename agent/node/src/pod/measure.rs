//! How much a pod's empty directories take of the disk, against their `sizeLimit`: the kubelet's eviction manager, as far as it is about that.
//!
//! The directories are walked, since most file systems at home have no quotas for directories. A walk writes nothing, ends as soon as it
//! knows enough, and is followed by a rest a hundred times as long, so that many small files cost no more than a hundredth of a core.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_pod::Failure;
use hearth_types::kinds::Pod;
use hearth_volume::VolumeStore;

use super::uses::claims_of;
use crate::{
    files::chain,
    mounts::{memory, size_limit},
};

/// How often it is measured, as the kubelet's `evictionMonitoringPeriod`.
const EVERY: Duration = Duration::from_secs(10);
/// So many times as long as the last walk took is the least rest.
const REST: u32 = 100;
/// When it is tried again where it could not be measured.
const RETRY: Duration = Duration::from_mins(10);

/// A volume and what it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    volume: String,
    bytes: u64,
    text: String,
}

/// When to look at the volumes of a pod that runs: what they take, and whether its claims are still there.
pub(super) struct Gauge {
    limits: Arc<[Limit]>,
    claims: bool,
    next: Instant,
    under_way: bool,
}

/// What was found.
pub(super) struct Measured {
    /// Why the pod is to be evicted.
    pub(super) too_much: Option<Failure>,
    rest: Duration,
}

impl Gauge {
    pub(super) fn new(pod: &Pod) -> Self {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        // What is in memory cannot grow further.
        let limits = volumes.filter(|volume| memory(volume).is_none()).filter_map(|volume| {
            let (bytes, text) = size_limit(volume)?;
            Some(Limit { volume: volume.name.clone(), bytes, text: text.to_owned() })
        });
        let claims = claims_of(pod).next().is_some();
        Self { limits: limits.collect(), claims, next: Instant::now() + EVERY, under_way: false }
    }

    /// When to look next; none where there is nothing to look at, or somebody is looking.
    pub(super) fn next(&self) -> Option<Instant> {
        ((self.claims || !self.limits.is_empty()) && !self.under_way).then_some(self.next)
    }

    pub(super) fn begin(&mut self) -> Arc<[Limit]> {
        self.under_way = true;
        Arc::clone(&self.limits)
    }

    pub(super) fn ended(&mut self, measured: &Measured) {
        self.under_way = false;
        self.next = Instant::now() + measured.rest;
    }
}

/// Measures volumes of a pod. Blocks for as long as that takes.
pub(super) fn measure(store: &VolumeStore, uid: &str, limits: &[Limit]) -> Measured {
    let begun = Instant::now();
    for limit in limits {
        match store.usage(uid, &limit.volume, limit.bytes) {
            Ok(Some(used)) if used > limit.bytes => {
                let (volume, text) = (&limit.volume, &limit.text);
                let why = format!("Usage of EmptyDir volume {volume:?} exceeds the limit {text:?}.");
                return Measured { too_much: Some(Failure::new("Evicted", why)), rest: EVERY };
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(pod = uid, limit.volume, error = chain(&error), "a volume cannot be measured");
                return Measured { too_much: None, rest: RETRY };
            }
        }
    }
    Measured { too_much: None, rest: EVERY.max(begun.elapsed() * REST) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_exceeds_its_limit_is_told_in_the_words_of_the_kubelet() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [
            {"name": "free", "emptyDir": {}}, {"name": "zero", "emptyDir": {"sizeLimit": "0"}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "cache", "emptyDir": {"sizeLimit": "1Mi"}}]}}))
        .expect("a pod");
        let mut gauge = Gauge::new(&pod);
        assert!(gauge.next().is_some());
        let limits = gauge.begin();
        assert_eq!(*limits, [Limit { volume: "cache".into(), bytes: 1 << 20, text: "1Mi".into() }]);
        assert_eq!(gauge.next(), None, "one at a time");
        let dir = tempfile::tempdir().expect("a directory");
        let store = VolumeStore::open(&dir.path().join("volumes")).expect("a store");
        assert!(measure(&store, "u", &limits).too_much.is_none(), "not made yet");
        let volume = store.empty_dir("u", "cache", None).expect("a volume");
        let fits = measure(&store, "u", &limits);
        assert!(fits.too_much.is_none());
        gauge.ended(&fits);
        assert!(gauge.next().is_some());
        std::fs::write(volume.join("big"), vec![1; 2 << 20]).expect("written");
        let failure = measure(&store, "u", &limits).too_much.expect("too much");
        assert_eq!(failure.reason, "Evicted");
        assert_eq!(failure.message, "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\".");
        assert_eq!(Gauge::new(&Pod::default()).next(), None);
        let claims = json!({"spec": {"containers": [], "volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "a"}}]}});
        assert!(Gauge::new(&serde_json::from_value(claims).expect("a pod")).next().is_some());
    }
}
