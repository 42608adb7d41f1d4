//! One entry per kind: what it is called, its scope, schema, printer columns, and the fields it can be
//! selected by. One generic set of handlers serves every kind from this table; to add a kind, add a row.

mod columns;
mod schema;

use serde_json::Value;

pub use columns::{Cell, Column};
pub use schema::SchemaView;

use crate::{GroupKind, Timestamp, status::Cause};

/// Whether objects of a kind live in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One for the region.
    Cluster,
    /// In a namespace.
    Namespaced,
}

/// What the region knows of a kind.
#[derive(Debug)]
pub struct KindInfo {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version that is served and stored.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// The resource name in URLs and on the command line.
    pub plural: &'static str,
    /// What else the command line takes for it.
    pub short_names: &'static [&'static str],
    /// Whether it lives in namespaces.
    pub scope: Scope,
    /// Whether `status` is a subresource, which writes to the object itself leave alone.
    pub has_status: bool,
    /// Selectable fields beyond `metadata.name` and `metadata.namespace`.
    fields: &'static [&'static str],
    columns: &'static [Column],
    schema: &'static str,
}

impl KindInfo {
    /// The kind with its group.
    pub const fn group_kind(&self) -> GroupKind {
        GroupKind::of(self.group, self.kind)
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, `deployments.apps`: how kubectl names it in messages.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `pod/name`, `deployment.apps/name`: how kubectl names one object.
    pub fn display_name(&self, name: &str) -> String {
        let singular = self.kind.to_lowercase();
        if self.group.is_empty() { format!("{singular}/{name}") } else { format!("{singular}.{}/{name}", self.group) }
    }

    /// Whether it lives in namespaces.
    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// The fields it can be selected by.
    pub fn selectable_fields(&self) -> impl Iterator<Item = &'static str> {
        let namespace = self.is_namespaced().then_some("metadata.namespace");
        std::iter::once("metadata.name").chain(namespace).chain(self.fields.iter().copied())
    }

    /// The columns of its table, the name first, without the namespace.
    pub fn columns(&self) -> &'static [Column] {
        self.columns
    }

    /// The cells of an object's row; `now` is for ages.
    pub fn row(&self, object: &Value, now: Timestamp) -> Vec<String> {
        self.columns().iter().map(|column| (column.cell)(object, now)).collect()
    }

    /// The kind's schema, to be walked.
    pub fn schema(&self) -> SchemaView {
        schema::view(self.schema)
    }

    /// Holds an object against the kind's schema: unknown fields, wrong types, missing fields, each with its path.
    /// Numbers that stand for quantities become texts, as Kubernetes stores them.
    pub fn check_schema(&self, object: &mut Value) -> Vec<Cause> {
        schema::check(self.schema, object)
    }
}

macro_rules! kind {
    ($group:literal $version:literal $kind:literal $plural:literal $short:expr, $scope:ident, status: $status:literal, fields: $fields:expr, columns: $columns:ident) => {
        KindInfo {
            group: $group,
            version: $version,
            kind: $kind,
            plural: $plural,
            short_names: &$short,
            scope: Scope::$scope,
            has_status: $status,
            fields: &$fields,
            columns: columns::$columns,
            schema: $kind,
        }
    };
}

static KINDS: [KindInfo; 17] = [
    kind!("" "v1" "Namespace" "namespaces" ["ns"], Cluster, status: true, fields: ["status.phase"], columns: NAMESPACE),
    kind!("" "v1" "Node" "nodes" ["no"], Cluster, status: true, fields: ["spec.unschedulable"], columns: NODE),
    kind!("" "v1" "Pod" "pods" ["po"], Namespaced, status: true,
        fields: ["spec.nodeName", "status.phase", "spec.restartPolicy"], columns: POD),
    kind!("" "v1" "ConfigMap" "configmaps" ["cm"], Namespaced, status: false, fields: [], columns: CONFIG_MAP),
    kind!("" "v1" "Secret" "secrets" [], Namespaced, status: false, fields: ["type"], columns: SECRET),
    kind!("" "v1" "PersistentVolumeClaim" "persistentvolumeclaims" ["pvc"], Namespaced, status: true, fields: ["status.phase"], columns: CLAIM),
    kind!("" "v1" "Event" "events" ["ev"], Namespaced, status: false,
        fields: ["involvedObject.kind", "involvedObject.name", "involvedObject.namespace", "involvedObject.uid", "reason", "type"], columns: EVENT),
    kind!("" "v1" "Service" "services" ["svc"], Namespaced, status: true, fields: ["spec.clusterIP", "spec.type"], columns: SERVICE),
    kind!("apps" "v1" "Deployment" "deployments" ["deploy"], Namespaced, status: true, fields: [], columns: DEPLOYMENT),
    kind!("apps" "v1" "ReplicaSet" "replicasets" ["rs"], Namespaced, status: true, fields: ["status.replicas"], columns: REPLICA_SET),
    kind!("hearth.dev" "v1alpha1" "App" "apps" [], Cluster, status: false, fields: [], columns: APP),
    kind!("hearth.dev" "v1alpha1" "Install" "installs" ["in"], Namespaced, status: true, fields: ["spec.app"], columns: INSTALL),
    kind!("hearth.dev" "v1alpha1" "Device" "devices" ["dev"], Cluster, status: true, fields: ["spec.owner"], columns: DEVICE),
    kind!("hearth.dev" "v1alpha1" "Route" "routes" [], Namespaced, status: true, fields: ["spec.hostname"], columns: ROUTE),
    kind!("externaldns.k8s.io" "v1alpha1" "DNSEndpoint" "dnsendpoints" [], Namespaced, status: true, fields: [], columns: DNS_ENDPOINT),
    kind!("hearth.dev" "v1alpha1" "Relay" "relays" [], Cluster, status: false, fields: [], columns: RELAY),
    kind!("hearth.dev" "v1alpha1" "Certificate" "certificates" ["cert", "certs"], Namespaced, status: true, fields: ["spec.device"], columns: CERTIFICATE),
];

/// Every kind that the region serves.
pub fn all() -> &'static [KindInfo] {
    &KINDS
}

/// The entry of a kind.
pub fn of_kind(kind: &GroupKind) -> Option<&'static KindInfo> {
    by_group_kind(&kind.group, &kind.kind)
}

/// The entry of a kind in a group.
pub fn by_group_kind(group: &str, kind: &str) -> Option<&'static KindInfo> {
    KINDS.iter().find(|info| info.kind == kind && info.group == group)
}

/// The entry that an object's `apiVersion` and `kind` name, the version included.
pub fn by_api_version(api_version: &str, kind: &str) -> Option<&'static KindInfo> {
    KINDS.iter().find(|info| info.kind == kind && info.api_version() == api_version)
}

/// The entry that somebody means on the command line: plural, singular, kind or short name, in any case,
/// optionally with `.group` or `.version.group`.
pub fn by_argument(text: &str) -> Option<&'static KindInfo> {
    let text = text.to_lowercase();
    let (name, group) = text.split_once('.').map_or((text.as_str(), None), |(name, group)| (name, Some(group)));
    KINDS.iter().find(|info| {
        let named = info.plural == name || info.kind.to_lowercase() == name || info.short_names.contains(&name);
        named && group.is_none_or(|group| group == info.group || group == format!("{}.{}", info.version, info.group))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_are_found_by_every_name() {
        for text in [
            "pods",
            "pod",
            "po",
            "Pod",
            "deployments.apps",
            "deploy",
            "deployments.v1.apps",
            "installs.hearth.dev",
            "pvc",
        ] {
            assert!(by_argument(text).is_some(), "{text}");
        }
        assert!(by_argument("jobs").is_none());
        assert!(by_api_version("v1", "Deployment").is_none());
        assert_eq!(by_api_version("apps/v1", "Deployment").map(KindInfo::resource), Some("deployments.apps".into()));
    }

    #[test]
    fn every_kind_has_a_schema_and_a_table() {
        for info in all() {
            let mut object =
                json!({"apiVersion": info.api_version(), "kind": info.kind, "metadata": {"name": "x"}, "nonsense": 1});
            let causes = info.check_schema(&mut object);
            assert!(causes.iter().any(|cause| cause.field == "nonsense"), "{}: {causes:?}", info.kind);
            assert_eq!(info.columns().len(), info.row(&object, Timestamp(0)).len());
        }
    }

    #[test]
    fn mistakes_are_told_with_their_path() {
        let info = by_argument("deployment").expect("a kind");
        let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "labels": {"a": 1}},
            "spec": {"replcas": 1, "replicas": "three", "selector": {}, "template": {"spec": {"containers": [
                {"image": "x", "ports": [{"containerPort": "80"}], "resources": {"limits": {"cpu": 2, "memory": "64Mi"}}}]}}}});
        let causes: Vec<_> = info.check_schema(&mut object).iter().map(ToString::to_string).collect();
        assert_eq!(
            causes,
            [
                "metadata.labels.a: must be a string, is a number",
                "spec.replcas: unknown field; did you mean \"replicas\"?",
                "spec.replicas: must be an integer, is a string",
                "spec.template.spec.containers[0].ports[0].containerPort: must be an integer, is a string",
                "spec.template.spec.containers[0].name: required",
            ]
        );
        assert_eq!(object.pointer("/spec/template/spec/containers/0/resources/limits/cpu"), Some(&json!("2")));
    }

    #[test]
    fn a_schema_can_be_walked() {
        let pod = by_argument("pod").expect("a kind").schema();
        let containers = pod.field("spec").and_then(|spec| spec.field("containers")).expect("a field");
        assert_eq!(containers.type_name(), "[]Container");
        assert_eq!(containers.field("name").map(SchemaView::type_name), Some("string".into()));
        assert!(containers.fields().iter().any(|(name, _, required)| *name == "name" && *required));
        let labels = pod.field("metadata").and_then(|meta| meta.field("labels")).expect("a field");
        assert_eq!((labels.type_name().as_str(), labels.is_struct()), ("map[string]string", false));
        assert!(pod.field("nonsense").is_none());
        for info in all() {
            assert!(info.schema().is_struct(), "{}", info.kind);
        }
    }

    #[test]
    fn null_takes_no_place_in_a_list() {
        let info = by_argument("pod").expect("a kind");
        let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "finalizers": [null], "labels": {"a": null}},
            "spec": {"restartPolicy": null, "containers": [{"name": "a", "args": ["x", null, "y"], "ports": [null]}, null]}});
        let causes: Vec<_> = info.check_schema(&mut object).iter().map(ToString::to_string).collect();
        assert_eq!(
            causes,
            [
                "metadata.finalizers[0]: must be a string, is null",
                "spec.containers[0].args[1]: must be a string, is null",
                "spec.containers[0].ports[0]: must be a map, is null",
                "spec.containers[1]: must be a map, is null",
            ]
        );
    }

    #[test]
    fn own_kinds_have_strict_schemas_too() {
        let info = by_argument("install").expect("a kind");
        let mut object = json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Install", "metadata": {"name": "x"},
            "spec": {"placement": {"devices": []}, "replicas": 1.5}});
        let causes: Vec<_> = info.check_schema(&mut object).iter().map(ToString::to_string).collect();
        assert_eq!(
            causes,
            [
                "spec.placement.devices: unknown field; did you mean \"device\"?",
                "spec.replicas: must be an integer, is a number",
                "spec.app: required",
            ]
        );
    }
}
