//! What the region stores: an object as canonical JSON in one shared buffer, with a parsed header.
//!
//! Typed structs ([`crate::kinds`]) are views. Nothing reads an object typed and writes it back whole,
//! since a field that the typed struct does not know would be lost.

use std::{borrow::Cow, cmp::Ordering, fmt, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{LabelMap, Revision, Uid};

/// The largest object in bytes of canonical JSON: what etcd takes, so what Kubernetes tools expect.
pub const MAX_OBJECT_BYTES: usize = 1_572_864;
/// The deepest nesting of an object, so that recursive readers have a bounded stack.
pub const MAX_DEPTH: usize = 64;

/// A kind in its API group, without a version; the core group is the empty text.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupKind {
    /// The API group; empty for the core group.
    pub group: Cow<'static, str>,
    /// The kind, in CamelCase.
    pub kind: Cow<'static, str>,
}

macro_rules! group_kinds {
    ($($name:ident = $group:literal $kind:literal),* $(,)?) => {
        impl GroupKind {
            $(#[doc = concat!("`", $kind, "` of the group `", $group, "`.")]
            pub const $name: Self = Self::of($group, $kind);)*
        }
    };
}

group_kinds! {
    NAMESPACE = "" "Namespace",
    NODE = "" "Node",
    POD = "" "Pod",
    CONFIG_MAP = "" "ConfigMap",
    SECRET = "" "Secret",
    PERSISTENT_VOLUME_CLAIM = "" "PersistentVolumeClaim",
    EVENT = "" "Event",
    SERVICE = "" "Service",
    DEPLOYMENT = "apps" "Deployment",
    REPLICA_SET = "apps" "ReplicaSet",
    APP = "hearth.dev" "App",
    INSTALL = "hearth.dev" "Install",
    DEVICE = "hearth.dev" "Device",
    ROUTE = "hearth.dev" "Route",
    DNS_ENDPOINT = "externaldns.k8s.io" "DNSEndpoint",
    RELAY = "hearth.dev" "Relay",
    CERTIFICATE = "hearth.dev" "Certificate",
}

impl GroupKind {
    /// A kind that the program knows.
    pub const fn of(group: &'static str, kind: &'static str) -> Self {
        Self { group: Cow::Borrowed(group), kind: Cow::Borrowed(kind) }
    }

    /// The kind that an object's `apiVersion` and `kind` name.
    pub fn from_api_version(api_version: &str, kind: &str) -> Self {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        crate::registry::by_group_kind(group, kind).map_or_else(
            || Self { group: Cow::Owned(group.into()), kind: Cow::Owned(kind.into()) },
            crate::registry::KindInfo::group_kind,
        )
    }
}

/// The order of two texts that are mostly one: those of kinds that the program knows are in one place.
fn cmp_shared(one: &str, other: &str) -> Ordering {
    if std::ptr::eq(one, other) { Ordering::Equal } else { one.cmp(other) }
}

impl Ord for GroupKind {
    fn cmp(&self, other: &Self) -> Ordering {
        cmp_shared(&self.group, &other.group).then_with(|| cmp_shared(&self.kind, &other.kind))
    }
}

impl PartialOrd for GroupKind {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(&self.kind) } else { write!(f, "{}.{}", self.kind, self.group) }
    }
}

impl fmt::Debug for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What names an object. Ordered by kind, then namespace, then name, which is the order of lists.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// The kind.
    pub kind: GroupKind,
    /// The namespace; empty for a cluster-scoped kind.
    pub namespace: Box<str>,
    /// The name.
    pub name: Box<str>,
}

impl ObjectKey {
    /// A key; `namespace` is empty for a cluster-scoped kind.
    pub fn new(kind: GroupKind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.kind, self.name)
        } else {
            write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why some JSON is no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The text is not JSON.
    #[error("not JSON: {0}")]
    Json(String),
    /// The JSON is something else than an object.
    #[error("an object is a JSON object")]
    NotAnObject,
    /// A field of the header is missing or is no text.
    #[error("{0}: required, and a string")]
    Header(&'static str),
    /// Larger than [`MAX_OBJECT_BYTES`].
    #[error("{0} bytes: an object has at most {MAX_OBJECT_BYTES}; move large data into a volume or an image")]
    TooLarge(usize),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// A typed view does not fit.
    #[error("{kind} {name}: cannot be read as such: {why}")]
    View {
        /// The kind.
        kind: String,
        /// The object's name.
        name: String,
        /// What serde said.
        why: String,
    },
}

struct Inner {
    head: Arc<Head>,
    revision: Revision,
    json: Box<[u8]>,
}

/// What another revision does not change.
struct Head {
    key: ObjectKey,
    api_version: Box<str>,
    uid: Uid,
    labels: LabelMap,
}

/// An object: canonical JSON (sorted keys, no white space, no nulls in maps) and the header that the
/// store needs. Cheap to clone; state, history and watches point to one buffer.
#[derive(Clone)]
pub struct Object(Arc<Inner>);

impl Object {
    /// Makes an object of a JSON value. Nulls in maps are dropped, as Kubernetes does.
    pub fn from_value(mut value: Value) -> Result<Self, ObjectError> {
        if depth_exceeds(&value, MAX_DEPTH) {
            return Err(ObjectError::TooDeep);
        }
        drop_nulls(&mut value);
        let root = value.as_object().ok_or(ObjectError::NotAnObject)?;
        let text = |map: &Map<String, Value>, field: &str| {
            map.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let api_version = text(root, "apiVersion").ok_or(ObjectError::Header("apiVersion"))?;
        let kind = text(root, "kind").ok_or(ObjectError::Header("kind"))?;
        let meta = root.get("metadata").and_then(Value::as_object).ok_or(ObjectError::Header("metadata.name"))?;
        let name = text(meta, "name").ok_or(ObjectError::Header("metadata.name"))?;
        let namespace = text(meta, "namespace").unwrap_or_default();
        let labels = meta
            .get("labels")
            .and_then(Value::as_object)
            .map(|labels| labels.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect());
        let revision = text(meta, "resourceVersion").and_then(|text| text.parse().ok()).unwrap_or_default();
        let head = Head {
            key: ObjectKey::new(GroupKind::from_api_version(&api_version, &kind), &namespace, &name),
            uid: Uid::new(text(meta, "uid").unwrap_or_default()),
            labels: labels.unwrap_or_default(),
            api_version: api_version.into(),
        };
        let inner = Inner { head: Arc::new(head), revision, json: canonical(&value).into_boxed_slice() };
        if inner.json.len() > MAX_OBJECT_BYTES {
            return Err(ObjectError::TooLarge(inner.json.len()));
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Makes an object of JSON text, canonical or not.
    pub fn from_json(json: &[u8]) -> Result<Self, ObjectError> {
        // Spare the parser what cannot be stored anyway; 2 allows for white space.
        if json.len() > 2 * MAX_OBJECT_BYTES {
            return Err(ObjectError::TooLarge(json.len()));
        }
        Self::from_value(serde_json::from_slice(json).map_err(|error| ObjectError::Json(error.to_string()))?)
    }

    /// Makes an object of a typed one.
    pub fn from_typed<T: Serialize>(typed: &T) -> Result<Self, ObjectError> {
        Self::from_value(serde_json::to_value(typed).map_err(|error| ObjectError::Json(error.to_string()))?)
    }

    /// What names it.
    pub fn key(&self) -> &ObjectKey {
        &self.0.head.key
    }

    /// Its kind.
    pub fn kind(&self) -> &GroupKind {
        &self.0.head.key.kind
    }

    /// Its `apiVersion`.
    pub fn api_version(&self) -> &str {
        &self.0.head.api_version
    }

    /// Its namespace; empty for a cluster-scoped kind.
    pub fn namespace(&self) -> &str {
        &self.0.head.key.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.head.key.name
    }

    /// Its uid; empty before it was stored.
    pub fn uid(&self) -> &Uid {
        &self.0.head.uid
    }

    /// The revision that last changed it; zero before it was stored.
    pub fn revision(&self) -> Revision {
        self.0.revision
    }

    /// Its labels.
    pub fn labels(&self) -> &LabelMap {
        &self.0.head.labels
    }

    /// The canonical JSON.
    pub fn json(&self) -> &[u8] {
        &self.0.json
    }

    /// The JSON, parsed.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.0.json).expect("the buffer was written by `canonical`")
    }

    /// A typed view. Fields that `T` does not know are not in it: never write a view back whole.
    pub fn view<T: DeserializeOwned>(&self) -> Result<T, ObjectError> {
        serde_json::from_slice(&self.0.json).map_err(|error| ObjectError::View {
            kind: self.kind().kind.to_string(),
            name: self.name().to_owned(),
            why: error.to_string(),
        })
    }

    /// The same object with another `metadata.resourceVersion`. Costs one copy of the bytes and no parsing.
    #[must_use]
    pub fn with_revision(&self, revision: Revision) -> Self {
        let Some((slot, before, after)) = revision_slot(&self.0.json) else {
            return self.with_revision_by_value(revision);
        };
        let digits = revision.to_string();
        let mut json = Vec::with_capacity(self.0.json.len() + before.len() + digits.len() + after.len());
        json.extend_from_slice(&self.0.json[..slot.start]);
        json.extend_from_slice(before);
        json.extend_from_slice(digits.as_bytes());
        json.extend_from_slice(after);
        json.extend_from_slice(&self.0.json[slot.end..]);
        Self(Arc::new(Inner { head: Arc::clone(&self.0.head), revision, json: json.into_boxed_slice() }))
    }

    fn with_revision_by_value(&self, revision: Revision) -> Self {
        let mut value = self.value();
        value["metadata"]["resourceVersion"] = Value::String(revision.to_string());
        Self::from_value(value).expect("an object with another revision is an object")
    }

    /// Whether its deletion was asked for (`metadata.deletionTimestamp` is set).
    pub fn is_deleting(&self) -> bool {
        self.value().pointer("/metadata/deletionTimestamp").is_some()
    }
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.json == other.0.json
    }
}

impl Eq for Object {}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.0.head.key, self.0.revision)
    }
}

impl Serialize for Object {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_value(Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Canonical JSON: keys sorted by their bytes, no white space, integers exact.
pub fn canonical(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_canonical(item, out);
            }
            out.push(b']');
        }
        Value::Object(map) => {
            // `Map` is sorted by itself unless some crate of the build turns on `preserve_order`.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| key.as_bytes());
            out.push(b'{');
            for (index, (key, item)) in entries.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                serde_json::to_writer(&mut *out, key).expect("writing to memory");
                out.push(b':');
                write_canonical(item, out);
            }
            out.push(b'}');
        }
        scalar => serde_json::to_writer(out, scalar).expect("writing to memory"),
    }
}

/// Where canonical JSON of an object has, or would have, `metadata.resourceVersion`: the bytes to replace, and what to put
/// around the digits. `None` where that cannot be told without a parser.
fn revision_slot(json: &[u8]) -> Option<(std::ops::Range<usize>, &'static [u8], &'static [u8])> {
    const KEY: &[u8] = b"resourceVersion";
    let mut at = metadata_start(json)?;
    loop {
        // `at` is behind the brace or comma before a member.
        let key_end = skip_value(json, at)?;
        let key = json.get(at + 1..key_end - 1)?;
        let value = key_end + 1;
        if key.contains(&b'\\') {
            return None;
        }
        match key.cmp(KEY) {
            Ordering::Less => {}
            Ordering::Equal => return Some((value..skip_value(json, value)?, b"\"", b"\"")),
            Ordering::Greater => return Some((at..at, b"\"resourceVersion\":\"", b"\",")),
        }
        let end = skip_value(json, value)?;
        if json.get(end) == Some(&b'}') {
            return Some((end..end, b",\"resourceVersion\":\"", b"\""));
        }
        at = end + 1;
    }
}

/// Behind the opening brace of `metadata`, which has members.
fn metadata_start(json: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        let key_end = skip_value(json, at)?;
        let value = key_end + 1;
        if json.get(at..key_end)? == b"\"metadata\"" {
            return (json.get(value) == Some(&b'{') && json.get(value + 1) == Some(&b'"')).then_some(value + 1);
        }
        let end = skip_value(json, value)?;
        if json.get(end) != Some(&b',') {
            return None;
        }
        at = end + 1;
    }
}

/// The end of the JSON value that starts at `start`, in canonical JSON.
fn skip_value(json: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut depth) = (start, 0_usize);
    loop {
        match json.get(at)? {
            b'"' => {
                at += 1;
                while *json.get(at)? != b'"' {
                    at += if json[at] == b'\\' { 2 } else { 1 };
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        at += 1;
        let scalar_goes_on = !matches!(json[at - 1], b'"' | b'}' | b']')
            && !matches!(json.get(at), None | Some(b',' | b':' | b'}' | b']'));
        if depth == 0 && !scalar_goes_on {
            return Some(at);
        }
    }
}

/// Removes nulls from maps: a null field is an absent one.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, item| !item.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn depth_exceeds(value: &Value, left: usize) -> bool {
    if left == 0 {
        return true;
    }
    match value {
        Value::Object(map) => map.values().any(|item| depth_exceeds(item, left - 1)),
        Value::Array(items) => items.iter().any(|item| depth_exceeds(item, left - 1)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_header_is_read_and_nulls_are_dropped() {
        let object = Object::from_json(
            br#"{"kind":"Pod","apiVersion":"v1","metadata":{"uid":"u","name":"a","labels":{"x":"y"},
                "namespace":"n","resourceVersion":"7","creationTimestamp":null}}"#,
        )
        .expect("an object");
        assert_eq!(object.key(), &ObjectKey::new(GroupKind::POD, "n", "a"));
        assert_eq!(object.revision(), Revision(7));
        assert_eq!(object.labels().get("x"), Some("y"));
        assert!(!String::from_utf8_lossy(object.json()).contains("creationTimestamp"));
        assert_eq!(object.with_revision(Revision(9)).revision(), Revision(9));
    }

    #[test]
    fn what_is_no_object_says_why() {
        let cases: [(&[u8], ObjectError); 4] = [
            (b"[]", ObjectError::NotAnObject),
            (b"{}", ObjectError::Header("apiVersion")),
            (br#"{"apiVersion":"v1"}"#, ObjectError::Header("kind")),
            (br#"{"apiVersion":"v1","kind":"Pod"}"#, ObjectError::Header("metadata.name")),
        ];
        for (json, error) in cases {
            assert_eq!(Object::from_json(json).expect_err("refused"), error);
        }
        let mut deep = json!(1);
        for _ in 0..100 {
            deep = json!({ "a": deep });
        }
        assert_eq!(Object::from_value(deep).expect_err("refused"), ObjectError::TooDeep);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Object::from_json(&bytes);
        }

        #[test]
        fn another_revision_is_the_same_with_and_without_a_parser(
            meta in proptest::collection::btree_map("[a-z\"\\\\V{},:é]{1,16}", ".{0,8}", 0..6),
            before in proptest::collection::btree_map("[a-m\"]{1,6}", any::<Option<i64>>(), 0..4),
            old in proptest::option::of(any::<u64>()),
            new in any::<u64>(),
        ) {
            let mut value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "spec": {"metadata": {"a": [1, "}"]}}});
            value["metadata"]["name"] = json!("x");
            if let Some(old) = old {
                value["metadata"]["resourceVersion"] = json!(old.to_string());
            }
            for (key, one) in before {
                value[format!("a{key}")] = json!({"x": [one, {"metadata": {}}], "y": {}});
            }
            let object = Object::from_value(value).expect("an object");
            let (fast, slow) = (object.with_revision(Revision(new)), object.with_revision_by_value(Revision(new)));
            prop_assert_eq!(String::from_utf8_lossy(fast.json()), String::from_utf8_lossy(slow.json()));
            prop_assert_eq!(fast.revision(), Revision(new));
            prop_assert_eq!(fast.uid(), slow.uid());
        }

        /// A snapshot refuses an object that reads back as another one. (serde_json's parser is exact by its feature
        /// `float_roundtrip` alone.)
        #[test]
        fn fractions_are_read_back_as_they_were_written(bits in any::<u64>()) {
            let fraction = f64::from_bits(bits);
            prop_assume!(fraction.is_finite());
            let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "n": [fraction]});
            let once = Object::from_value(value).expect("an object");
            let twice = Object::from_json(once.json()).expect("an object");
            prop_assert_eq!(&once, &twice);
            prop_assert_eq!(twice.value()["n"][0].as_f64(), Some(fraction));
        }

        #[test]
        fn canonical_json_is_a_fixed_point(pairs in proptest::collection::btree_map("[a-z]{1,4}", any::<i64>(), 0..6)) {
            let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "n": pairs, "m": u64::MAX});
            let once = Object::from_value(value).expect("an object");
            let twice = Object::from_json(once.json()).expect("an object");
            prop_assert_eq!(once.json(), twice.json());
        }
    }
}
