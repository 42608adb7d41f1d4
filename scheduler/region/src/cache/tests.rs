#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

const KEYS: usize = 3;

fn config_map(name: usize, revision: u64) -> Object {
    Object::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": format!("c{name}"), "namespace": "n", "uid": format!("u{revision}"), "resourceVersion": revision.to_string()}}))
    .unwrap()
}

/// One change in the store's history.
#[derive(Clone, Debug)]
enum Event {
    Put(Object),
    Removed(ObjectKey, Revision),
}

impl Event {
    fn revision(&self) -> Revision {
        match self {
            Self::Put(object) => object.revision(),
            Self::Removed(_, revision) => *revision,
        }
    }

    fn observe(&self, cache: &mut Cache, from: Source) {
        match self {
            Self::Put(object) => drop(cache.put(object.clone(), from)),
            Self::Removed(key, revision) => drop(cache.remove(key, *revision)),
        }
    }
}

/// What the hub does with an event of the watch.
fn watch(cache: &mut Cache, event: &Event) {
    event.observe(cache, Source::Watch);
    cache.advance(&GroupKind::CONFIG_MAP, Revision(event.revision().0 - 1));
}

fn shown(cache: &Cache) -> Vec<(ObjectKey, Revision)> {
    let all = cache.of_kind(GroupKind::CONFIG_MAP);
    all.map(|entry| (entry.object.key().clone(), entry.object.revision())).collect()
}

/// A history over a few keys, two changes of different keys to a revision now and then, and what is stored after it.
fn history(steps: &[(usize, bool, bool)]) -> (Vec<Event>, BTreeMap<ObjectKey, Object>) {
    let (mut events, mut stored, mut revision) = (Vec::new(), BTreeMap::new(), 10);
    let mut touched = BTreeSet::new();
    for (name, remove, together) in steps {
        let key = config_map(*name, 1).key().clone();
        if !together || touched.contains(&key) {
            revision += 1;
            touched.clear();
        }
        if *remove {
            if stored.remove(&key).is_none() {
                continue;
            }
            events.push(Event::Removed(key.clone(), Revision(revision)));
        } else {
            let object = config_map(*name, revision);
            stored.insert(key.clone(), object.clone());
            events.push(Event::Put(object));
        }
        touched.insert(key);
    }
    (events, stored)
}

proptest! {
    #[test]
    fn late_and_early_news_in_any_order_end_with_what_is_stored(
        steps in proptest::collection::vec((0..KEYS, any::<bool>(), any::<bool>()), 1..24),
        told in proptest::collection::vec((any::<prop::sample::Index>(), 0..24_usize), 0..24),
        relist in proptest::option::of(0..24_usize),
    ) {
        let (events, stored) = history(&steps);
        let mut cache = Cache::default();
        cache.replace(&GroupKind::CONFIG_MAP, Vec::new(), Revision(10));
        let mut listed = false;
        for at in 0..=events.len() {
            // Outcomes of this server's own writes and answers to its reads: of any change, before the watch tells of it or long after.
            for (which, when) in &told {
                if *when == at && !events.is_empty() {
                    which.get(&events).observe(&mut cache, Source::Elsewhere);
                }
            }
            if relist == Some(at) {
                // The watch ends, the list is that of now, and the next watch tells what comes after.
                listed = true;
                let upto = events.last().map_or(Revision(10), Event::revision);
                cache.replace(&GroupKind::CONFIG_MAP, stored.values().cloned().collect(), upto);
            } else if let Some(event) = events.get(at).filter(|_| !listed) {
                watch(&mut cache, event);
            }
        }
        for (which, when) in &told {
            if *when > events.len() && !events.is_empty() {
                which.get(&events).observe(&mut cache, Source::Elsewhere);
            }
        }
        let expected: Vec<_> = stored.iter().map(|(key, object)| (key.clone(), object.revision())).collect();
        prop_assert_eq!(shown(&cache), expected);
        let last = events.last().map_or(Revision(10), Event::revision);
        cache.advance(&GroupKind::CONFIG_MAP, last);
        let progress = cache.progress(&GroupKind::CONFIG_MAP);
        prop_assert!(progress.gone.is_empty() && progress.order.is_empty(), "nothing is remembered for ever");
    }
}

#[test]
fn an_older_word_on_what_is_gone_does_not_bring_it_back() {
    let mut cache = Cache::default();
    cache.replace(&GroupKind::CONFIG_MAP, Vec::new(), Revision(10));
    let (object, key) = (config_map(0, 11), config_map(0, 11).key().clone());
    watch(&mut cache, &Event::Put(object.clone()));
    watch(&mut cache, &Event::Removed(key.clone(), Revision(12)));
    assert!(cache.remove(&key, Revision(12)).is_none(), "the outcome of the own write comes after the watch");
    assert!(cache.put(object, Source::Elsewhere).is_none(), "a read that took its time");
    watch(&mut cache, &Event::Put(config_map(1, 13)));
    let progress = cache.progress(&GroupKind::CONFIG_MAP);
    assert!(progress.gone.is_empty(), "the watch is past it");
    assert_eq!(shown(&cache).len(), 1);
    assert!(cache.put(config_map(0, 14), Source::Elsewhere).is_some(), "made anew");
}
