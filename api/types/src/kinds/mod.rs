//! The kinds as typed views: Kubernetes' own by `k8s-openapi`, Hearth's in the group
//! `hearth.dev/v1alpha1` by kube-derive.

mod app;
mod bandwidth;
mod certificate;
mod device;
mod dns_endpoint;
mod install;
mod relay;
mod route;

pub use app::{App, AppIngress, AppSpec, AppVolume, Permissions};
pub use bandwidth::{BANDWIDTH_ANNOTATIONS, BadBandwidth, Bandwidth, bits as bandwidth_bits};
pub use certificate::{
    Certificate, CertificateChallenge, CertificateOrder, CertificateSigning, CertificateSpec, CertificateStatus,
    IssuedCertificate,
};
pub use device::{
    Device, DeviceInfo, DeviceNetwork, DeviceSpec, DeviceStatus, Lend, LendWindow, NatMapping, Publish, RelayDistance,
    TunnelKind, UdpPassage,
};
pub use dns_endpoint::{DNSEndpoint, DNSEndpointSpec, DNSEndpointStatus, Endpoint};
pub use install::{Grants, Install, InstallSpec, InstallStatus, Placement};
pub use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus},
        core::v1::{
            ConfigMap, Container, ContainerPort, ContainerState, ContainerStateRunning, ContainerStateTerminated,
            ContainerStateWaiting, ContainerStatus, EnvVar, EphemeralContainer, Event, HTTPGetAction, Lifecycle,
            LifecycleHandler, LocalObjectReference, Namespace, Node, NodeAddress, NodeSpec, NodeStatus,
            PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod, PodCondition, PodSpec, PodStatus, PodTemplateSpec,
            Probe, ResourceRequirements, Secret, Service, ServicePort, ServiceSpec, ServiceStatus, Taint, Toleration,
            Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time},
        util::intstr::IntOrString,
    },
};
pub use relay::{Relay, RelaySpec};
pub use route::{ProxyProtocol, Route, RouteDomain, RouteEndpoint, RouteProtocol, RouteSpec, RouteStatus, RouteTarget};

/// The API group of Hearth's own kinds.
pub const GROUP: &str = "hearth.dev";
/// Their version.
pub const API_VERSION: &str = "hearth.dev/v1alpha1";

/// Labels that Hearth itself sets and reads.
pub mod labels {
    /// On everything made for an Install: its name.
    pub const INSTALL: &str = "hearth.dev/install";
    /// On everything made for an Install: the App's name.
    pub const APP: &str = "hearth.dev/app";
    /// On pods and ReplicaSets: the hash of the pod template.
    pub const TEMPLATE_HASH: &str = "pod-template-hash";
    /// On Nodes: the owner of the device.
    pub const OWNER: &str = "hearth.dev/owner";
    /// On Nodes: the machine's name.
    pub const HOSTNAME: &str = "kubernetes.io/hostname";
    /// On Nodes: the architecture, as Go names it (`amd64`, `arm64`).
    pub const ARCH: &str = "kubernetes.io/arch";
    /// On Nodes: `linux`.
    pub const OS: &str = "kubernetes.io/os";
}

/// The finalizer that keeps a claim until its device has deleted the data.
pub const CLAIM_FINALIZER: &str = "hearth.dev/claim-data";

/// The finalizer that the API gives a Namespace when its deletion is asked for: it stays until everything in the
/// Namespace is gone.
pub const NAMESPACE_FINALIZER: &str = "hearth.dev/contents";

/// The pod annotation that says whether its containers may reach the internet: `"false"` cuts it off.
pub const INTERNET_ANNOTATION: &str = "hearth.dev/internet";

/// The pod annotation that names the Services that it may use beside those of its own Install, or, where it is of none, of none: names in
/// its namespace, separated by commas. An Install's pods have it from what the App asks for and the owner grants.
pub const SERVICES_ANNOTATION: &str = "hearth.dev/services";

/// The conditions by which a device tells that it runs short of something, and the taint of its Node that goes with each, as in Kubernetes.
pub const PRESSURES: [(&str, &str); 2] =
    [("MemoryPressure", MEMORY_PRESSURE_TAINT), ("DiskPressure", "node.kubernetes.io/disk-pressure")];

/// The taint of a Node that is short of memory: what asks for memory is placed there all the same, as in Kubernetes.
pub const MEMORY_PRESSURE_TAINT: &str = "node.kubernetes.io/memory-pressure";

/// The annotation of a Device by which a person says that what its region lost need not be kept on it any longer. Its value is the
/// revision that the device has seen, as its condition `RegionRestored` names it, so that it says nothing about another time.
pub const ACCEPT_RESTORED: &str = "hearth.dev/accept-restored-region";

/// The annotation of a Deployment or ReplicaSet that says after how many seconds of silence of its device a pod is replaced on another one; it goes on
/// counting as there without. Pods that keep data in claims are never replaced, since the data has one home.
pub const MOVE_AFTER_ANNOTATION: &str = "hearth.dev/move-after-seconds";

/// The annotation of a Deployment or ReplicaSet that says which pod stays once a device is back whose pod was replaced: one of [`ON_RETURN`].
pub const ON_RETURN_ANNOTATION: &str = "hearth.dev/on-return";

/// What [`ON_RETURN_ANNOTATION`] and an Install's `spec.placement.disconnect.onReturn` may say; the first, unless one does.
pub const ON_RETURN: [&str; 3] = ["KeepOriginal", "KeepReplacement", "KeepLongestRunning"];

/// The annotation of a pod that says on which architectures its images run: Go's names, separated by commas, as in an App's
/// `spec.architectures`. Without it, on any.
pub const ARCHITECTURES_ANNOTATION: &str = "hearth.dev/architectures";

/// Why a pod is ended on a device of another owner's, in Events and in its status: the hours are over in which that lends.
pub const LENDING_HOURS_OVER: &str = "LendingHoursOver";

/// The type of the Secrets that hold join tokens (in the namespace `kube-system`), after Kubernetes'
/// bootstrap tokens.
pub const JOIN_TOKEN_TYPE: &str = "hearth.dev/join-token";
