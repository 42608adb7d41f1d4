//! Install: one owner's App.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Bandwidth, EnvVar, LocalObjectReference};
use crate::condition::Condition;

/// One owner's App: which one, where it may run, what it is granted. Its name is the first label of its
/// hostname, `<name>.<namespace>.<zone>`.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "hearth.dev",
    version = "v1alpha1",
    kind = "Install",
    plural = "installs",
    namespaced,
    status = "InstallStatus"
)]
#[kube(crates(
    kube_core = "::kube_core",
    k8s_openapi = "::k8s_openapi",
    schemars = "::schemars",
    serde = "::serde",
    serde_json = "::serde_json"
))]
#[serde(rename_all = "camelCase")]
pub struct InstallSpec {
    /// The App's name.
    pub app: String,
    /// How many replicas; 1 unless said. An App with kept volumes has at most one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Stops the app and keeps its data and name: its page says that it is stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Environment variables set in every container, over those of the App.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Secrets of the owner's namespace with logins for the registries of the App's images, of the type
    /// `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// What the owner grants of what the App asks for.
    #[serde(default)]
    pub grants: Grants,
    /// Where it may run.
    #[serde(default)]
    pub placement: Placement,
    /// What each of its pods may send and receive. Changing it restarts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
}

/// What an owner grants to an Install.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Grants {
    /// Whether it may reach the internet: as the App asks unless said. `true` grants nothing that the
    /// App does not ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internet: Option<bool>,
    /// The Linux capabilities it gets, of those the App asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// The Services that it may reach beside those of its own Install, of those the App asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Directories of the device for the App's volumes of the kind `hostPath`. The device has to be told too, where its agent is
    /// started (`--host-path`), and takes nobody else's word for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_paths: Vec<HostPathGrant>,
}

/// A directory of the device that an App gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPathGrant {
    /// The App's volume.
    pub volume: String,
    /// An absolute path on the device.
    pub path: String,
    /// Nothing may be written, whatever the App asks for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// Where an Install may run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// On this device only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Never on devices that others lend; they are used where the owner's own have no room otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_devices_only: bool,
    /// What becomes of it while its device is silent: it waits for its device, unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnect: Option<Disconnect>,
}

/// What becomes of an Install whose device is silent. Its pods run on there all the while; an App that keeps data stays with it, unless all its
/// volumes have the policy `Move`: then its device stops it once its lease is over, and it begins anew, with empty volumes, on another one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disconnect {
    /// Seconds of silence after which another device runs it too; at least 5.
    pub move_after_seconds: i64,
    /// Which of both stays once the device is back: `KeepOriginal` (unless set), `KeepReplacement` or `KeepLongestRunning`.
    /// The other one goes only when the one that stays is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_return: Option<String>,
}

/// What is seen of an Install.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstallStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The hostname it answers at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The device that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// `AppFound`, `PermissionsGranted`, `Deployed`, `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
