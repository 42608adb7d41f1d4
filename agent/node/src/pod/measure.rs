//! How much a pod takes of the disk, against what it may: `sizeLimit` of its empty directories, and its containers' limits of
//! `ephemeral-storage`. That is the kubelet's eviction manager, as far as it is about one pod (`localStorageEviction`).
//!
//! The directories are walked, since most file systems at home have no quotas for directories. A walk writes nothing, ends as soon as it
//! knows enough, and is followed by a rest a hundred times as long, so that many small files cost no more than a hundredth of a core.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_pod::Failure;
use hearth_types::{
    kinds::{Container, Pod, Volume},
    quantity,
};
use hearth_volume::{VolumeError, VolumeStore};

use super::uses::claims_of;
use crate::{
    container::{self, Places},
    files::chain,
    mounts::{empty_dirs, size_limit},
};

/// How often it is measured, as the kubelet's `evictionMonitoringPeriod`.
const EVERY: Duration = Duration::from_secs(10);
/// So many times as long as the last walk took is the least rest.
pub(crate) const REST: u32 = 100;
/// When it is tried again where it could not be measured.
const RETRY: Duration = Duration::from_mins(10);

/// The name of the resource.
pub(crate) const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

/// Something of a pod's that takes room, and how much it may take by itself, in bytes and as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    name: String,
    limit: Option<(u64, String)>,
}

/// What a pod may take of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Its empty directories on the disk.
    volumes: Vec<Part>,
    /// Its containers: of each its writable layer and its logs count.
    containers: Vec<Part>,
    /// All of that together.
    pod: Option<u64>,
}

impl Limits {
    fn of(pod: &Pod) -> Self {
        let volume = |volume: &Volume| Part {
            name: volume.name.clone(),
            limit: size_limit(volume).map(|(bytes, text)| (bytes, text.to_owned())),
        };
        let part = |one: &Container| Part { name: one.name.clone(), limit: limit(one) };
        let bytes = |one: &Container| Some(limit(one).map_or(0, |(bytes, _)| bytes));
        Self {
            volumes: empty_dirs(pod).map(volume).collect(),
            containers: container::all(pod).map(|one| part(&one)).collect(),
            pod: container::most_beside(pod, bytes).filter(|bytes| *bytes > 0),
        }
    }

    fn is_unlimited(&self) -> bool {
        self.pod.is_none() && self.volumes.iter().all(|volume| volume.limit.is_none())
    }
}

/// A container's limit. Nothing is no limit, as in Kubernetes.
fn limit(container: &Container) -> Option<(u64, String)> {
    let text = container.resources.as_ref()?.limits.as_ref()?.get(EPHEMERAL_STORAGE)?.0.as_str();
    quantity::bytes(text).ok().filter(|bytes| *bytes > 0).map(|bytes| (bytes, text.to_owned()))
}

/// When to look at the disk of a pod that runs: what it takes, and whether its claims are still there.
pub(super) struct Gauge {
    limits: Arc<Limits>,
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
        let claims = claims_of(pod).next().is_some();
        Self { limits: Arc::new(Limits::of(pod)), claims, next: Instant::now() + EVERY, under_way: false }
    }

    /// When to look next; none where there is nothing to look at, or somebody is looking.
    pub(super) fn next(&self) -> Option<Instant> {
        ((self.claims || !self.limits.is_unlimited()) && !self.under_way).then_some(self.next)
    }

    pub(super) fn begin(&mut self) -> Arc<Limits> {
        self.under_way = true;
        Arc::clone(&self.limits)
    }

    pub(super) fn ended(&mut self, measured: &Measured) {
        self.under_way = false;
        self.next = Instant::now() + measured.rest;
    }
}

/// Measures a pod of which these containers run. Blocks for as long as that takes.
pub(super) fn measure(store: &VolumeStore, places: &Places, limits: &Limits, running: &[String]) -> Measured {
    let begun = Instant::now();
    match too_much(store, places, limits, running) {
        Ok(Some(why)) => Measured { too_much: Some(Failure::new("Evicted", why)), rest: EVERY },
        Ok(None) => Measured { too_much: None, rest: EVERY.max(begun.elapsed() * REST) },
        Err(error) => {
            tracing::warn!(pod = places.uid, error = chain(&error), "what a pod takes of the disk cannot be measured");
            Measured { too_much: None, rest: RETRY }
        }
    }
}

/// Why the pod is to be evicted, in the kubelet's words.
fn too_much(
    store: &VolumeStore,
    places: &Places,
    limits: &Limits,
    running: &[String],
) -> Result<Option<String>, VolumeError> {
    let mut total = 0_u64;
    let counts = |part: &&Part| part.limit.is_some() || limits.pod.is_some();
    // What of a part is looked at: enough to know that it, or the whole, is too much.
    let enough = |part: &Part, total: u64| {
        let own = part.limit.as_ref().map_or(u64::MAX, |(bytes, _)| *bytes);
        own.min(limits.pod.map_or(u64::MAX, |pod| pod.saturating_sub(total)))
    };
    let exceeds =
        |part: &Part, used: u64| part.limit.as_ref().filter(|(bytes, _)| used > *bytes).map(|one| one.1.clone());
    let of_pod = |total: u64| {
        let limit = limits.pod.filter(|limit| total > *limit)?;
        let limit = quantity::format_bytes(limit);
        Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "))
    };
    for volume in limits.volumes.iter().filter(counts) {
        let used = store.usage(&places.uid, &volume.name, enough(volume, total))?.bytes;
        total = total.saturating_add(used);
        let own = exceeds(volume, used);
        let own = own.map(|text| format!("Usage of EmptyDir volume {:?} exceeds the limit {text:?}. ", volume.name));
        if let Some(why) = own.or_else(|| of_pod(total)) {
            return Ok(Some(why));
        }
    }
    for one in limits.containers.iter().filter(counts).filter(|one| running.contains(&one.name)) {
        let mut used = 0_u64;
        for directory in places.written_by(&one.name) {
            let more = hearth_volume::taken(&directory, enough(one, total).saturating_sub(used))?.bytes;
            used = used.saturating_add(more);
        }
        total = total.saturating_add(used);
        let own = exceeds(one, used);
        let own =
            own.map(|text| format!("Container {} exceeded its local ephemeral storage limit {text:?}. ", one.name));
        if let Some(why) = of_pod(total).or(own) {
            return Ok(Some(why));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Paths;

    /// What was written where in MiB, which containers run, and why the pod is evicted.
    type Case = (&'static [(&'static str, usize)], &'static [&'static str], Option<String>);

    fn pod(spec: &Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).expect("a pod")
    }

    fn limited(name: &str, limit: &str) -> Value {
        json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}})
    }

    #[test]
    fn a_pod_may_take_what_its_containers_may_together() {
        for (spec, expected) in [
            (json!({"containers": [{"name": "a"}]}), None),
            (json!({"containers": [limited("a", "0")]}), None),
            (json!({"containers": [limited("a", "1Mi"), {"name": "b"}]}), Some(1 << 20)),
            (json!({"containers": [limited("a", "1Mi"), limited("b", "2Mi")]}), Some(3 << 20)),
            (json!({"containers": [limited("a", "1Mi")], "initContainers": [limited("i", "5Mi")]}), Some(5 << 20)),
        ] {
            assert_eq!(Limits::of(&pod(&spec)).pod, expected, "{spec}");
        }
    }

    #[test]
    fn it_is_looked_at_only_what_may_be_too_much_and_once_at_a_time() {
        let volumes = json!([{"name": "free", "emptyDir": {}}, {"name": "zero", "emptyDir": {"sizeLimit": "0"}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]);
        assert_eq!(Gauge::new(&pod(&json!({"containers": [{"name": "a"}], "volumes": volumes}))).next(), None);
        let claims = json!({"containers": [], "volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "a"}}]});
        let limits = json!({"containers": [limited("a", "1Mi")]});
        let sized = json!({"containers": [], "volumes": [{"name": "a", "emptyDir": {"sizeLimit": "1Mi"}}]});
        for spec in [claims, limits, sized] {
            let mut gauge = Gauge::new(&pod(&spec));
            assert!(gauge.next().is_some(), "{spec}");
            drop(gauge.begin());
            assert_eq!(gauge.next(), None, "one at a time");
            gauge.ended(&Measured { too_much: None, rest: EVERY });
            assert!(gauge.next().is_some());
        }
    }

    #[test]
    fn what_exceeds_its_limit_is_told_in_the_words_of_the_kubelet() {
        const MIB: usize = 1 << 20;
        const ALL: &[&str] = &["a", "b", "c"];
        let total = "Pod ephemeral local storage usage exceeds the total limit of containers";
        let spec = json!({"volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "4Mi"}}, {"name": "free", "emptyDir": {}}],
            "containers": [limited("a", "2Mi"), limited("b", "4Mi"), {"name": "c"}]});
        let limits = Limits::of(&pod(&spec));
        let cases: [Case; 11] = [
            (&[], ALL, None),
            (&[("cache", 3)], ALL, None),
            (&[("cache", 5)], ALL, Some("Usage of EmptyDir volume \"cache\" exceeds the limit \"4Mi\". ".into())),
            (&[("free", 5)], ALL, None),
            (&[("free", 7)], ALL, Some(format!("{total} 6Mi. "))),
            (&[("layer a", 1), ("log b", 3)], ALL, None),
            (&[("layer a", 3)], ALL, Some("Container a exceeded its local ephemeral storage limit \"2Mi\". ".into())),
            (
                &[("layer b", 3), ("log b", 2)],
                ALL,
                Some("Container b exceeded its local ephemeral storage limit \"4Mi\". ".into()),
            ),
            // One that does not run counts for nothing, as with the kubelet.
            (&[("layer a", 3)], &["b", "c"], None),
            // One without a limit counts against what all may take.
            (&[("log c", 7)], ALL, Some(format!("{total} 6Mi. "))),
            (&[("cache", 3), ("log a", 1), ("layer b", 3)], ALL, Some(format!("{total} 6Mi. "))),
        ];
        for (written, running, expected) in cases {
            let dir = tempfile::tempdir().expect("a directory");
            let (namespace, name) = ("alice".to_owned(), "p".to_owned());
            let places = Places { paths: Paths::new(dir.path()), namespace, pod: name, uid: "u".into() };
            let store = VolumeStore::open(&dir.path().join("volumes")).expect("a store");
            for (what, mib) in written {
                let place = match what.split_once(' ') {
                    Some(("layer", one)) => places.layer(one, 1),
                    Some((_, one)) => places.logs().join(one),
                    None => store.empty_dir("u", what, None).expect("a volume"),
                };
                std::fs::create_dir_all(&place).expect("made");
                std::fs::write(place.join("big"), vec![1; mib * MIB]).expect("written");
            }
            let running: Vec<String> = running.iter().map(ToString::to_string).collect();
            let found = measure(&store, &places, &limits, &running).too_much;
            let expected = expected.map(|text| Failure::new("Evicted", text));
            assert_eq!(found, expected, "{written:?}");
        }
    }
}
