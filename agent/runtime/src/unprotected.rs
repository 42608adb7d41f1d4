//! Protections that a build for tests can leave out, one by one, so that a probe is known to need each of them. In a
//! build without the feature `unprotected` no field says so and all of this is false; `hearth` refuses to be built with
//! the feature.

/// One protection of a container. Others are switched off by what is asked for: capabilities, limits, the network
/// namespace, a writable volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(not(feature = "unprotected"), allow(unreachable_pub))]
pub enum Protection {
    /// The profile of system calls.
    Seccomp,
    /// `no_new_privs`. Without it neither profile nor Landlock are loaded, which would need it.
    NoNewPrivileges,
    /// The Landlock domain.
    Landlock,
    /// The pod's user namespace: without it, root inside is the host's.
    UserNamespace,
    /// A PID namespace of the container's own.
    PidNamespace,
    /// The pod's IPC namespace.
    IpcNamespace,
    /// The pod's UTS namespace.
    UtsNamespace,
    /// A cgroup namespace of the container's own.
    CgroupNamespace,
    /// Paths of `/proc` and `/sys` that are hidden.
    MaskedPaths,
    /// Paths of `/proc` that are read-only.
    ReadOnlyPaths,
    /// `/sys` is read-only.
    ReadOnlySys,
    /// The container's cgroup is not shown, or read-only.
    ReadOnlyCgroup,
    /// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` are read-only.
    ReadOnlyEtc,
    /// The list of devices that may be opened.
    DeviceFilter,
    /// Mounts on which set-user-ID does not count.
    NoSuid,
    /// Mounts on which device nodes do not count.
    NoDev,
    /// Descriptors of shim and helper are closed before the program runs.
    ClosedDescriptors,
    /// Ids of volumes are the container's own.
    MappedIds,
    /// The way to a mount's target is looked at before it is mounted.
    CheckedTargets,
    /// Nothing of others is mounted in `/proc`, `/sys` and `/dev` when the program is run.
    VerifiedMounts,
}

/// Whether a container is to do without a protection.
#[cfg(feature = "unprotected")]
pub(crate) fn lacks(spec: &crate::model::ContainerSpec, protection: Protection) -> bool {
    spec.without.contains(&protection)
}

/// None ever is.
#[cfg(not(feature = "unprotected"))]
pub(crate) const fn lacks(_: &crate::model::ContainerSpec, _: Protection) -> bool {
    false
}
