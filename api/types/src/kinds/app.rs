//! App: what a developer publishes.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Container, IntOrString, Quantity};

/// What a developer publishes once and many owners install: containers, the volumes they keep data on,
/// the port that users reach, and the permissions it asks for.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "hearth.dev", version = "v1alpha1", kind = "App", plural = "apps")]
#[kube(crates(
    kube_core = "::kube_core",
    k8s_openapi = "::k8s_openapi",
    schemars = "::schemars",
    serde = "::serde",
    serde_json = "::serde_json"
))]
#[serde(rename_all = "camelCase")]
pub struct AppSpec {
    /// The version of the app, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The name that people see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// One or two sentences on what it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The containers that run to their end one after another before those of `containers` start, and with `restartPolicy: Always` the
    /// sidecars, which are started before and run beside them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init_containers: Vec<Container>,
    /// The containers that run side by side in one pod.
    pub containers: Vec<Container>,
    /// The architectures that its images are built for, as Go and OCI name them (`amd64`, `arm64`): it is placed on devices
    /// whose Node has one of them in the label `kubernetes.io/arch`. None: on any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// The volumes that containers mount by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<AppVolume>,
    /// What users reach by name; none for an app without a door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<AppIngress>,
    /// What the app asks for beyond its own container.
    #[serde(default)]
    pub permissions: Permissions,
}

/// A volume of an App. With `size` it is data that is kept: every Install gets a claim of its own,
/// named `<install>-<volume>`. Exactly one of `size`, `emptyDir`, `configMap`, `secret` and `hostPath` is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppVolume {
    /// The name by which containers mount it.
    pub name: String,
    /// How much data it is made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// What becomes of it while its device is silent, with `size` alone: `Keep` (unless set), it waits with its data for its device; or `Move`,
    /// where the owner's Install says after how long (`spec.placement.disconnect`), it is BEGUN ANEW, EMPTY, on another device: for caches, indices
    /// and other data that the app makes again by itself. The device that has it holds a lease, and stops the app once it has not heard from
    /// its region for that long, so that never two write it; what it wrote stays there, aside. A claim keeps the policy that it was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Scratch space that goes with the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<std::collections::BTreeMap<String, String>>,
    /// The name of a ConfigMap in the owner's namespace, each key a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<String>,
    /// The name of a Secret in the owner's namespace, each key a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// A directory that the owner has already, as one with photos: an Install says which, or the app does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<AppHostPath>,
}

/// What an App does with a directory of the owner's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppHostPath {
    /// It only reads.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// The port behind `<install>.<owner>.<zone>`: speaks HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppIngress {
    /// A container port, by its name or number.
    pub port: IntOrString,
}

/// What an app asks for. The owner sees it, and an Install grants it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Permissions {
    /// Whether it may open connections to the internet. Default true. Never to the home's network.
    #[serde(default = "yes")]
    pub internet: bool,
    /// Linux capabilities it needs, as `NET_BIND_SERVICE`. An Install has to grant each one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Names of Services of the owner's that it is to reach beside those of its own Install, as `db`. An Install has to grant each one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
}

impl Default for Permissions {
    fn default() -> Self {
        Self { internet: true, capabilities: Vec::new(), services: Vec::new() }
    }
}

fn yes() -> bool {
    true
}
