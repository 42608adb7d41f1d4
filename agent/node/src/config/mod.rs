//! What containers get of ConfigMaps, Secrets and what the pod is: environment and files. Pure.

mod downward;

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_pod::Failure;
use hearth_registry::Credentials;
use hearth_types::{
    GroupKind, ObjectKey,
    kinds::{ConfigMap, Container, Secret, Volume},
    names::env_name,
};
use hearth_volume::Projected;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource};

pub(crate) use downward::Myself;

use crate::desired::Objects;

/// The reason that Kubernetes gives where configuration is missing.
const CONFIG_ERROR: &str = "CreateContainerConfigError";
/// Permission bits of projected files where nothing is said, as in Kubernetes.
const DEFAULT_MODE: i32 = 0o644;

type Data = BTreeMap<String, Vec<u8>>;
/// Files by their path in the volume, and whether they are secret.
type Files = (BTreeMap<String, Projected>, bool);

/// The ConfigMaps and Secrets of a namespace.
#[derive(Clone, Copy)]
pub(crate) struct Configs<'a> {
    pub(crate) objects: &'a Objects,
    pub(crate) namespace: &'a str,
    /// The pod that asks.
    pub(crate) myself: Myself<'a>,
}

/// What some files of a volume are made of.
struct Part<'a> {
    source: Source,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    optional: bool,
}

#[derive(Clone, Copy)]
enum Source {
    ConfigMap,
    Secret,
}

impl Source {
    fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }
}

pub(crate) fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(CONFIG_ERROR, message)
}

impl Configs<'_> {
    /// The data of a ConfigMap or Secret; `None` where it is missing and may be.
    fn data(&self, source: Source, name: &str, optional: bool) -> Result<Option<Data>, Failure> {
        let kind = match source {
            Source::ConfigMap => GroupKind::CONFIG_MAP,
            Source::Secret => GroupKind::SECRET,
        };
        let Some(object) = self.objects.get(&ObjectKey::new(kind, self.namespace, name)) else {
            return if optional { Ok(None) } else { Err(wrong(format!("{} \"{name}\" not found", source.word()))) };
        };
        let unreadable = |error: String| wrong(format!("{} \"{name}\" cannot be read: {error}", source.word()));
        // Taken from the JSON: data travels as base64 there, whatever the typed view makes of it.
        let value = object.value();
        let mut data = Data::new();
        let mut take = |field: &str, encoded: bool| -> Result<(), Failure> {
            for (key, content) in value.get(field).and_then(|map| map.as_object()).into_iter().flatten() {
                let text = content.as_str().unwrap_or_default();
                let bytes = if encoded {
                    STANDARD.decode(text).map_err(|error| unreadable(format!("{key}: {error}")))?
                } else {
                    text.as_bytes().to_vec()
                };
                data.insert(key.clone(), bytes);
            }
            Ok(())
        };
        match source {
            Source::ConfigMap => {
                object.view::<ConfigMap>().map_err(|error| unreadable(error.to_string()))?;
                take("data", false)?;
                take("binaryData", true)?;
            }
            Source::Secret => {
                object.view::<Secret>().map_err(|error| unreadable(error.to_string()))?;
                take("data", true)?;
            }
        }
        Ok(Some(data))
    }

    fn key(&self, source: Source, name: &str, key: &str, optional: bool) -> Result<Option<Vec<u8>>, Failure> {
        let Some(mut data) = self.data(source, name, optional)? else { return Ok(None) };
        match data.remove(key) {
            Some(bytes) => Ok(Some(bytes)),
            None if optional => Ok(None),
            None => {
                let (word, namespace) = (source.word(), self.namespace);
                Err(wrong(format!("couldn't find key {key} in {word} {namespace}/{name}")))
            }
        }
    }

    /// The logins of a Secret of one of the two types that Kubernetes has for them, or why there are none.
    pub(crate) fn pull_secret(&self, name: &str) -> Result<Credentials, String> {
        let data = self.data(Source::Secret, name, false).map_err(|failure| failure.message)?.unwrap_or_default();
        let read = match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
            (Some(bytes), _) => Credentials::from_docker_config_json(bytes),
            (None, Some(bytes)) => Credentials::from_docker_cfg(bytes),
            (None, None) => return Err("it has neither .dockerconfigjson nor .dockercfg".into()),
        };
        read.map_err(|error| error.to_string())
    }

    /// A container's environment as its spec says: `envFrom`, then `env` over it, with `$(NAME)` expanded by what came before.
    pub(crate) fn environment(&self, container: &Container) -> Result<Vec<(String, String)>, Failure> {
        let mut env = Environment::default();
        for from in container.env_from.iter().flatten() {
            let prefix = from.prefix.as_deref().unwrap_or_default();
            let (source, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
                (Some(reference), _) => (Source::ConfigMap, &reference.name, reference.optional),
                (None, Some(reference)) => (Source::Secret, &reference.name, reference.optional),
                (None, None) => continue,
            };
            for (key, bytes) in self.data(source, name, optional.unwrap_or(false))?.into_iter().flatten() {
                let full = format!("{prefix}{key}");
                // Kubernetes leaves out what is no name, too.
                if env_name(&full).is_ok() {
                    env.set(&full, text(source, name, &key, bytes)?);
                }
            }
        }
        for variable in container.env.iter().flatten() {
            let from = variable.value_from.as_ref();
            if let Some(field) = from.and_then(|from| from.field_ref.as_ref()) {
                env.set(&variable.name, self.myself.field(field, false)?);
                continue;
            }
            if let Some(resource) = from.and_then(|from| from.resource_field_ref.as_ref()) {
                env.set(&variable.name, self.myself.resource(Some(container), resource)?);
                continue;
            }
            let config = from.and_then(|from| from.config_map_key_ref.as_ref());
            let secret = from.and_then(|from| from.secret_key_ref.as_ref());
            let (source, name, key, optional) = match (config, secret) {
                (Some(one), _) => (Source::ConfigMap, &one.name, &one.key, one.optional),
                (None, Some(one)) => (Source::Secret, &one.name, &one.key, one.optional),
                (None, None) => {
                    let value = env.expand(variable.value.as_deref().unwrap_or_default());
                    env.set(&variable.name, value);
                    continue;
                }
            };
            if let Some(bytes) = self.key(source, name, key, optional.unwrap_or(false))? {
                env.set(&variable.name, text(source, name, key, bytes)?);
            }
        }
        Ok(env.list)
    }

    /// The files of a volume that the agent writes, and whether some are secret; `None` for other volumes.
    pub(crate) fn files(&self, volume: &Volume) -> Result<Option<Files>, Failure> {
        let mut files = BTreeMap::new();
        let secret = if let Some(one) = &volume.config_map {
            let (items, optional) = (one.items.as_deref(), one.optional == Some(true));
            let part = Part { source: Source::ConfigMap, name: &one.name, items, optional };
            self.part(&part, one.default_mode, &mut files)?
        } else if let Some(one) = &volume.secret {
            let (items, optional) = (one.items.as_deref(), one.optional == Some(true));
            let name = one.secret_name.as_deref().unwrap_or_default();
            self.part(&Part { source: Source::Secret, name, items, optional }, one.default_mode, &mut files)?
        } else if let Some(one) = &volume.downward_api {
            self.downward(one.items.iter().flatten(), one.default_mode, &mut files)?
        } else if let Some(one) = &volume.projected {
            self.projected(one, &mut files)?
        } else {
            return Ok(None);
        };
        Ok(Some((files, secret)))
    }

    /// What several sources give; of two files of one path, the later one stays.
    fn projected(
        &self,
        volume: &ProjectedVolumeSource,
        files: &mut BTreeMap<String, Projected>,
    ) -> Result<bool, Failure> {
        let (mode, mut secret) = (volume.default_mode, false);
        for source in volume.sources.iter().flatten() {
            secret |= if let Some(one) = &source.config_map {
                let (items, optional) = (one.items.as_deref(), one.optional == Some(true));
                self.part(&Part { source: Source::ConfigMap, name: &one.name, items, optional }, mode, files)?
            } else if let Some(one) = &source.secret {
                let (items, optional) = (one.items.as_deref(), one.optional == Some(true));
                self.part(&Part { source: Source::Secret, name: &one.name, items, optional }, mode, files)?
            } else if let Some(one) = &source.downward_api {
                self.downward(one.items.iter().flatten(), mode, files)?
            } else {
                return Err(wrong("a projected volume has a source that is not supported by this device"));
            };
        }
        Ok(secret)
    }

    /// Puts the files of a ConfigMap or Secret to the others; whether they are secret.
    fn part(
        &self,
        part: &Part<'_>,
        mode: Option<i32>,
        files: &mut BTreeMap<String, Projected>,
    ) -> Result<bool, Failure> {
        let Part { source, name, items, optional } = *part;
        let mode = mode.unwrap_or(DEFAULT_MODE);
        let secret = matches!(source, Source::Secret);
        let data = self.data(source, name, optional)?.unwrap_or_default();
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            files.extend(data.into_iter().map(|(key, bytes)| (key, Projected { bytes, mode: bits(mode) })));
            return Ok(secret);
        };
        for KeyToPath { key, path, mode: own } in items {
            match data.get(key) {
                Some(bytes) => {
                    let file = Projected { bytes: bytes.clone(), mode: bits(own.unwrap_or(mode)) };
                    files.insert(path.clone(), file);
                }
                None if optional => {}
                None => {
                    return Err(wrong(format!("{} \"{name}\" references non-existent key: {key}", source.word())));
                }
            }
        }
        Ok(secret)
    }

    fn downward<'a>(
        &self,
        items: impl Iterator<Item = &'a DownwardAPIVolumeFile>,
        mode: Option<i32>,
        files: &mut BTreeMap<String, Projected>,
    ) -> Result<bool, Failure> {
        for item in items {
            let mode = bits(item.mode.or(mode).unwrap_or(DEFAULT_MODE));
            files.insert(item.path.clone(), Projected { bytes: self.myself.file(item)?.into_bytes(), mode });
        }
        Ok(false)
    }
}

fn bits(mode: i32) -> u32 {
    mode.unsigned_abs() & 0o777
}

fn text(source: Source, name: &str, key: &str, bytes: Vec<u8>) -> Result<String, Failure> {
    let binary = || wrong(format!("{} \"{name}\": key {key} is no text, so it cannot be a variable", source.word()));
    let text = String::from_utf8(bytes).map_err(|_| binary())?;
    if text.contains('\0') { Err(binary()) } else { Ok(text) }
}

/// Variables in the order they were first set.
#[derive(Default)]
pub(crate) struct Environment {
    pub(crate) list: Vec<(String, String)>,
}

impl Environment {
    pub(crate) fn set(&mut self, name: &str, value: String) {
        match self.list.iter_mut().find(|(had, _)| had == name) {
            Some((_, old)) => *old = value,
            None => self.list.push((name.to_owned(), value)),
        }
    }

    /// Replaces `$(NAME)`; `$$` stands for `$`, and what is unknown stays as it is (Kubernetes' `expansion.Expand`).
    pub(crate) fn expand(&self, text: &str) -> String {
        self.expand_or(text, |_| {})
    }

    /// The same, and what is unknown is the error: the first such name.
    pub(crate) fn expand_all(&self, text: &str) -> Result<String, String> {
        let mut unknown = None;
        let out = self.expand_or(text, |name| {
            unknown.get_or_insert_with(|| name.to_owned());
        });
        unknown.map_or(Ok(out), Err)
    }

    fn expand_or(&self, text: &str, mut unknown: impl FnMut(&str)) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            if let Some(tail) = after.strip_prefix('$') {
                out.push('$');
                rest = tail;
            } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
                if let Some((_, value)) = self.list.iter().find(|(had, _)| had == name) {
                    out.push_str(value);
                } else {
                    unknown(name);
                    out.extend(["$(", name, ")"]);
                }
                rest = tail;
            } else {
                out.push('$');
                rest = after;
            }
        }
        out.push_str(rest);
        out
    }
}

#[cfg(test)]
mod tests {
    use hearth_types::{Object, kinds::Pod};
    use serde_json::{Value, json};

    use super::*;

    fn objects() -> Objects {
        let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"},
            "data": {"a": "1", "b.conf": "two"}, "binaryData": {"raw": "AAE="}});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "n"},
            "data": {"password": "aHVudGVyMg=="}});
        [config, secret]
            .into_iter()
            .map(|value| Object::from_value(value).expect("an object"))
            .map(|object| (object.key().clone(), object))
            .collect()
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "labels": {"app": "web"}}})).expect("a pod")
    }

    fn myself(pod: &Pod) -> Myself<'_> {
        Myself { pod, addresses: None, machine: &crate::facts::Machine::default }
    }

    fn environment(container: Value) -> Result<Vec<(String, String)>, Failure> {
        let container: Container = serde_json::from_value(container).expect("a container");
        Configs { objects: &objects(), namespace: "n", myself: myself(&pod()) }.environment(&container)
    }

    #[test]
    fn variables_come_from_where_kubernetes_takes_them() {
        let env = environment(json!({"name": "c",
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c"}},
            {"secretRef": {"name": "gone", "optional": true}}],
        "env": [
            {"name": "PLAIN", "value": "x"},
            {"name": "BOTH", "value": "$(PLAIN)-$(P_a)-$(NONE)-$$(PLAIN)-$"},
            {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}},
            {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "no", "optional": true}}},
        ]}));
        // `raw` is no text.
        assert_eq!(env.expect_err("binary").reason, "CreateContainerConfigError");
        let env = environment(json!({"name": "c", "env": [
            {"name": "PLAIN", "value": "x"},
            {"name": "BOTH", "value": "$(PLAIN)-$(NONE)-$$(PLAIN)-$"},
            {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}},
            {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "no", "optional": true}}},
            {"name": "PLAIN", "value": "y"},
        ]}))
        .expect("variables");
        let expected = [("PLAIN", "y"), ("BOTH", "x-$(NONE)-$(PLAIN)-$"), ("PW", "hunter2")];
        assert_eq!(env, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (source, message) in [
            (json!({"configMapKeyRef": {"name": "x", "key": "k"}}), "configmap \"x\" not found"),
            (json!({"secretKeyRef": {"name": "s", "key": "k"}}), "couldn't find key k in secret n/s"),
        ] {
            let failure = environment(json!({"name": "c", "env": [{"name": "A", "valueFrom": source}]}));
            let failure = failure.expect_err("missing");
            assert_eq!((failure.reason.as_str(), failure.message.as_str()), ("CreateContainerConfigError", message));
        }
    }

    #[test]
    fn volumes_have_the_files_that_are_asked_for() {
        let objects = objects();
        let pod = pod();
        let configs = Configs { objects: &objects, namespace: "n", myself: myself(&pod) };
        let files = |volume: Value| configs.files(&serde_json::from_value(volume).expect("a volume"));
        let (all, secret) = files(json!({"name": "v", "configMap": {"name": "c"}})).expect("files").expect("some");
        assert!(!secret);
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b.conf", "raw"]);
        assert_eq!((all["raw"].bytes.as_slice(), all["a"].mode), (&[0_u8, 1][..], 0o644));
        let some = json!({"name": "v", "secret": {"secretName": "s", "defaultMode": 0o400,
            "items": [{"key": "password", "path": "db/pw"}]}});
        let (some, secret) = files(some).expect("files").expect("some");
        assert!(secret);
        assert_eq!(some["db/pw"].mode, 0o400);
        let joined = json!({"name": "v", "projected": {"defaultMode": 0o440, "sources": [
            {"configMap": {"name": "c", "items": [{"key": "a", "path": "conf/a"}]}},
            {"secret": {"name": "s"}},
            {"downwardAPI": {"items": [{"path": "labels", "mode": 0o444, "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"configMap": {"name": "x", "optional": true}}]}});
        let (joined, secret) = files(joined).expect("files").expect("some");
        assert!(secret, "a part of it is");
        let list: Vec<_> =
            joined.iter().map(|(path, file)| (path.as_str(), file.bytes.as_slice(), file.mode)).collect();
        let expected: [(&str, &[u8], u32); 3] =
            [("conf/a", b"1", 0o440), ("labels", b"app=\"web\"", 0o444), ("password", b"hunter2", 0o440)];
        assert_eq!(list, expected);
        files(json!({"name": "v", "configMap": {"name": "x"}})).expect_err("missing");
        let none = files(json!({"name": "v", "configMap": {"name": "x", "optional": true}}));
        assert!(none.expect("optional").expect("files").0.is_empty());
        assert!(files(json!({"name": "v", "emptyDir": {}})).expect("another").is_none());
    }

    proptest::proptest! {
        #[test]
        fn expansion_never_panics(text in ".{0,60}") {
            let env = Environment { list: vec![("A".into(), "$(B)".into()), ("B".into(), "ä".into())] };
            let _ = env.expand(&text);
        }
    }
}
