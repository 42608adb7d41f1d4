//! The OCI runtime specification that libcontainer gets: masks, mounts and capabilities as Docker's defaults, less what
//! a home app needs not.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use libcontainer::oci_spec::{
    OciSpecError,
    runtime::{
        Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
        Mount, MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
    },
};

use super::{
    caps,
    paths::{MASKED, READ_ONLY},
    user::Ids,
};
use crate::{
    model::{ContainerSpec, MountKind},
    unprotected::{Protection, lacks},
};

/// What the specification is made of, as it is found in the helper's small root.
pub(super) struct Parts<'a> {
    pub(super) spec: &'a ContainerSpec,
    /// `/c/<id>`.
    pub(super) dir: &'a Path,
    pub(super) env: &'a [(String, String)],
    pub(super) ids: &'a Ids,
    pub(super) caps: caps::CapSet,
    pub(super) cgroup: PathBuf,
    /// Paths of the pod's namespaces: user, ipc, uts.
    pub(super) namespaces: [PathBuf; 3],
    /// That of the PID namespace of another container, or of the pod, where its containers share one.
    pub(super) pidns: Option<PathBuf>,
    /// `<dir>/cgroup` shows the container's own cgroup (version 2 only).
    pub(super) cgroup_view: bool,
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
        .build()
}

/// Binds keep the attributes that the helper's mount has: no ids of the host, no devices, no setuid.
fn bind(target: &Path, source: &Path, read_only: bool) -> Result<Mount, OciSpecError> {
    let mut options = vec!["bind", "nosuid", "nodev"];
    if read_only {
        options.push("ro");
    }
    bind_with(target, source, &options)
}

fn bind_with(target: &Path, source: &Path, options: &[&str]) -> Result<Mount, OciSpecError> {
    let options = options.iter().map(ToString::to_string).collect::<Vec<_>>();
    MountBuilder::default().destination(target).typ("bind").source(source).options(options).build()
}

fn mounts(parts: &Parts<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let without = |protection| lacks(parts.spec, protection);
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        bind(Path::new("/dev/shm"), Path::new("/shm"), false)?,
        bind(Path::new("/sys"), Path::new("/sysfs"), !without(Protection::ReadOnlySys))?,
    ];
    if without(Protection::PidNamespace) {
        // A new one cannot be mounted by who does not own the namespace.
        all[0] = mount("/proc", "bind", "/proc", &["rbind", "nosuid", "noexec", "nodev"])?;
    }
    if without(Protection::IpcNamespace) {
        all.retain(|mount| mount.destination() != Path::new("/dev/mqueue"));
    }
    if parts.cgroup_view {
        let read_only = !without(Protection::ReadOnlyCgroup);
        all.push(bind(Path::new("/sys/fs/cgroup"), &parts.dir.join("cgroup"), read_only)?);
    }
    for name in ["resolv.conf", "hosts", "hostname"] {
        all.push(bind(
            &Path::new("/etc").join(name),
            &Path::new("/etc").join(name),
            !without(Protection::ReadOnlyEtc),
        )?);
    }
    for (n, m) in parts.spec.mounts.iter().enumerate() {
        all.push(match m.kind {
            MountKind::IdmappedBind | MountKind::SubPath { .. } | MountKind::Memory { .. } => {
                let guards = [("nosuid", Protection::NoSuid), ("nodev", Protection::NoDev)];
                let mut options = vec!["bind"];
                options.extend(guards.iter().filter(|(_, guard)| !without(*guard)).map(|(option, _)| option));
                options.extend(m.read_only.then_some("ro"));
                bind_with(&m.target, &parts.dir.join(format!("v{n}")), &options)?
            }
            MountKind::Tmpfs { size } => {
                let target = m.target.to_string_lossy();
                let size = format!("size={size}");
                let mut options = vec!["nosuid", "nodev", "mode=1777", size.as_str()];
                if m.read_only {
                    options.push("ro");
                }
                mount(&target, "tmpfs", "tmpfs", &options)?
            }
        });
    }
    Ok(all)
}

fn namespaces(parts: &Parts<'_>) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let [user, ipc, uts] = &parts.namespaces;
    let mut all = Vec::new();
    all.push(LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Mount).build()?);
    for (kind, path, protection) in [
        (LinuxNamespaceType::User, Some(user), Protection::UserNamespace),
        (LinuxNamespaceType::Ipc, Some(ipc), Protection::IpcNamespace),
        (LinuxNamespaceType::Uts, Some(uts), Protection::UtsNamespace),
        (LinuxNamespaceType::Pid, parts.pidns.as_ref(), Protection::PidNamespace),
        (LinuxNamespaceType::Cgroup, None, Protection::CgroupNamespace),
    ] {
        if lacks(parts.spec, protection) {
            continue;
        }
        let builder = LinuxNamespaceBuilder::default().typ(kind);
        all.push(match path {
            Some(path) => builder.path(path).build()?,
            None => builder.build()?,
        });
    }
    Ok(all)
}

/// libcontainer's names are without the prefix.
fn capabilities(set: caps::CapSet) -> Result<HashSet<Capability>, OciSpecError> {
    let parse = |name: &str| {
        let bare = name.strip_prefix("CAP_").unwrap_or(name);
        bare.parse().map_err(|e| OciSpecError::Other(format!("capability {name}: {e}")))
    };
    caps::names(set).map(parse).collect()
}

/// Builds the specification. It names no network namespace: the helper is in the pod's already, and its owner is the
/// host, so that no capability of the pod counts in it.
pub(super) fn build(parts: &Parts<'_>) -> Result<Spec, OciSpecError> {
    let set = capabilities(parts.caps)?;
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set.clone())
        .inheritable(set.clone())
        .ambient(set)
        .build()?;
    let user = UserBuilder::default()
        .uid(parts.ids.uid)
        .gid(parts.ids.gid)
        .additional_gids(parts.ids.groups.clone())
        .umask(0o022_u32)
        .build()?;
    let cwd = if parts.spec.cwd.is_empty() { "/" } else { &parts.spec.cwd };
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(parts.spec.args.clone())
        .env(parts.env.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>())
        .cwd(cwd)
        .capabilities(capabilities)
        .rlimits(Vec::new())
        .no_new_privileges(!lacks(parts.spec, Protection::NoNewPrivileges))
        // Never as low as the shim's own, which must outlive it.
        .oom_score_adj(parts.spec.oom_score_adj.clamp(0, 1000))
        .build()?;
    let paths = |list: &[&str], protection| {
        let kept = list.iter().filter(|_| !lacks(parts.spec, protection));
        kept.map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(parts)?)
        .cgroups_path(Path::new("/").join(&parts.cgroup))
        .masked_paths(paths(&MASKED, Protection::MaskedPaths))
        .readonly_paths(paths(&READ_ONLY, Protection::ReadOnlyPaths))
        .build()?;
    // Limits and devices are set on the cgroup already, and this process is in it.
    linux.set_resources(None).set_devices(None).set_seccomp(None);
    let root = RootBuilder::default().path(parts.dir.join("rootfs")).readonly(parts.spec.read_only_root).build()?;
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(root)
        .mounts(mounts(parts)?)
        .process(process)
        .linux(linux)
        .build()?;
    // The pod's UTS namespace has its name already.
    spec.set_hostname(None);
    Ok(spec)
}
