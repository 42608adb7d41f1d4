//! What the tests of this crate share: a world that executes actions by the rules of admission.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use hearth_types::{GroupKind, Object, ObjectKey, Timestamp, Uid, admission::Context, registry};
use serde_json::{Value, json};

use crate::{Action, PodView, Reconciled, SeenPod, Wanted, prepare};

pub(crate) const ZONE: &str = "hearth.internal";

/// Objects in memory, changed only as the executor would.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) objects: BTreeMap<ObjectKey, Object>,
    pub(crate) now: Timestamp,
    pub(crate) count: u64,
    pub(crate) events: Vec<(String, String)>,
}

impl World {
    fn context<R>(&mut self, f: impl FnOnce(&Context<'_>) -> R) -> R {
        self.count += 1;
        let suffix = format!("{:05}", self.count);
        f(&Context { now: self.now, uid: Uid::from(format!("uid-{}", self.count)), suffix: &suffix, zone: ZONE })
    }

    pub(crate) fn apply(&mut self, reconciled: &Reconciled) {
        for action in &reconciled.actions {
            if let Action::Event { reason, message, .. } = action {
                self.events.push(((*reason).to_owned(), message.clone()));
            }
            match self.context(|context| prepare(action, context)).unwrap() {
                Wanted::Create(object) => {
                    assert!(!self.objects.contains_key(object.key()), "{} is there already", object.key());
                    self.objects.insert(object.key().clone(), object);
                }
                Wanted::Update { base, new } => {
                    assert_eq!(self.objects.get(base.key()), Some(&base), "changed since it was read");
                    self.objects.insert(new.key().clone(), new);
                }
                Wanted::Remove(object) => drop(self.objects.remove(object.key())),
                Wanted::Nothing => assert!(matches!(action, Action::Event { .. }), "{action:?} asks for nothing"),
            }
        }
    }

    pub(crate) fn create(&mut self, object: Value) -> Object {
        let wanted = self.context(|context| prepare(&Action::Create { object }, context)).unwrap();
        let Wanted::Create(object) = wanted else { panic!("a create") };
        self.objects.insert(object.key().clone(), object.clone());
        object
    }

    pub(crate) fn put(&mut self, object: &Object) {
        self.objects.insert(object.key().clone(), object.clone());
    }

    pub(crate) fn delete(&mut self, object: &Object) {
        self.apply(&Reconciled {
            actions: vec![Action::Delete { base: object.clone(), grace_seconds: None }],
            again: None,
        });
    }

    pub(crate) fn edit(&mut self, kind: &str, name: &str, f: impl FnOnce(&mut Value)) -> Object {
        let base = self.find(kind, name).unwrap();
        let mut value = base.value();
        f(&mut value);
        let unchanged =
            self.context(|context| prepare(&Action::Update { base: base.clone(), value: value.clone() }, context));
        if matches!(unchanged, Ok(Wanted::Nothing)) {
            return base;
        }
        self.apply(&Reconciled { actions: vec![Action::Update { base, value }], again: None });
        self.find(kind, name).unwrap_or_else(|| device_placeholder(name))
    }

    pub(crate) fn all(&self, kind: &str) -> Vec<Object> {
        self.objects.values().filter(|object| object.kind().kind == kind).cloned().collect()
    }

    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<Object> {
        self.objects.values().find(|object| object.kind().kind == kind && object.name() == name).cloned()
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Object> {
        self.objects.values().filter(|object| object.namespace() == namespace).cloned().collect()
    }

    /// Every pod, those on `silent` devices without contact.
    pub(crate) fn pods(&self, silent: &[&str]) -> Vec<SeenPod> {
        let pods = self.all("Pod").into_iter().map(|object| Arc::new(PodView::read(&object, &object.value())));
        let connected = |pod: &PodView| pod.is_bound() && !silent.contains(&&*pod.device);
        pods.map(|pod| SeenPod { connected: connected(&pod), since: None, pod }).collect()
    }
}

fn device_placeholder(name: &str) -> Object {
    Object::from_value(json!({"apiVersion": "v1", "kind": "Gone", "metadata": {"name": name}})).unwrap()
}

/// Reconciles one object until nothing is asked for, at most thrice; `None` where it was removed.
pub(crate) fn fix_point(object: &Object, reconcile: impl Fn(&Object) -> Reconciled) -> Option<Object> {
    let mut world = World::default();
    world.put(object);
    for _ in 0..3 {
        let object = world.objects.get(object.key()).cloned()?;
        let out = reconcile(&object);
        if out.actions.is_empty() {
            return Some(object);
        }
        world.apply(&out);
    }
    panic!("it asks for more and more");
}

/// What the actions come to, without events and what asks for nothing.
pub(crate) fn prepared(out: &Reconciled) -> Vec<Wanted> {
    let context = Context { now: Timestamp(0), uid: Uid::from("u"), suffix: "abcde", zone: ZONE };
    let all = out.actions.iter().map(|action| prepare(action, &context).unwrap());
    all.filter(|wanted| !matches!(wanted, Wanted::Nothing)).collect()
}

pub(crate) fn deletes(out: &Reconciled) -> usize {
    out.actions.iter().filter(|action| matches!(action, Action::Delete { .. })).count()
}

pub(crate) fn creates(out: &Reconciled) -> usize {
    out.actions.iter().filter(|action| matches!(action, Action::Create { .. })).count()
}

/// Makes pods to look at.
#[derive(Clone, Debug)]
pub(crate) struct Pods(Value);

impl Pods {
    pub(crate) fn named(name: &str) -> Self {
        assert!(registry::of_kind(&GroupKind::POD).is_some());
        Self(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "alice", "uid": format!("uid-{name}"),
            "creationTimestamp": "1970-01-01T00:00:00Z", "labels": {}},
            "spec": {"containers": [{"name": "c", "image": "x"}]}, "status": {"phase": "Pending"}}),
        )
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][key] = json!(value);
        self
    }

    pub(crate) fn on(mut self, device: &str) -> Self {
        self.0["spec"]["nodeName"] = json!(device);
        self
    }

    pub(crate) fn phase(mut self, phase: &str) -> Self {
        self.0["status"]["phase"] = json!(phase);
        self
    }

    pub(crate) fn ready(mut self) -> Self {
        self.0["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:01Z"}]});
        self
    }

    pub(crate) fn deleting(mut self) -> Self {
        self.0["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:00:30Z");
        self
    }

    pub(crate) fn view(&self) -> PodView {
        let object = Object::from_value(self.0.clone()).unwrap();
        PodView::read(&object, &object.value())
    }

    pub(crate) fn seen(&self, connected: bool) -> SeenPod {
        SeenPod { pod: Arc::new(self.view()), connected, since: None }
    }
}
