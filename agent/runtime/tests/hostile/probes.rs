//! The list of probes: what each tries, which one protection it is to show, and what else would refuse it and is left
//! out of both runs.

use hearth_runtime::Protection as P;

use crate::attempts::{self, Facts, Outcome};

/// Tasks that a probe makes, more than [`FEW_TASKS`].
pub const TASKS: usize = 64;
pub const FEW_TASKS: u64 = 16;
/// Bytes that a probe takes, more than [`LITTLE`].
pub const MUCH: usize = 96 << 20;
pub const LITTLE: u64 = 48 << 20;

/// A protection, and how it is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// By a build for tests.
    Of(P),
    /// All are asked for.
    Capabilities,
    /// The pod is in the host's network namespace: one made for the test.
    NetworkNamespace,
    /// More are allowed.
    TaskLimit,
    /// More is allowed.
    MemoryLimit,
    /// A larger one.
    VolumeSize,
    /// The volume is writable.
    ReadOnlyVolume,
}

/// One row of the table.
#[derive(Clone, Copy)]
pub struct Probe {
    pub name: &'static str,
    pub guard: Guard,
    /// Left out of both runs.
    pub besides: &'static [Guard],
    pub attempt: Attempt,
    /// What is answered with that one protection and without those beside it.
    pub alone: &'static str,
    /// What is answered under all of them.
    pub refused: &'static str,
}

#[derive(Clone, Copy)]
pub enum Attempt {
    Do(fn(&Facts) -> Outcome),
    /// One of the calls that the profile refuses.
    Call(fn() -> libc::c_long),
}

impl Probe {
    /// Whether a volume is mounted where a link of another leads.
    pub fn links(self) -> bool {
        [CHECKED, VERIFIED].contains(&self.guard)
    }
}

impl Guard {
    /// As the page calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Of(P::Seccomp) => "seccomp",
            Self::Of(P::Landlock) => "Landlock",
            Self::Of(P::NoNewPrivileges) => "no_new_privs",
            Self::Of(P::UserNamespace) => "user namespace",
            Self::Of(P::PidNamespace) => "PID namespace",
            Self::Of(P::IpcNamespace) => "IPC namespace",
            Self::Of(P::UtsNamespace) => "UTS namespace",
            Self::Of(P::CgroupNamespace) => "cgroup namespace",
            Self::Of(P::MaskedPaths) => "masked path",
            Self::Of(P::ReadOnlyPaths) => "read-only path",
            Self::Of(P::ReadOnlySys) => "read-only /sys",
            Self::Of(P::ReadOnlyCgroup) => "cgroup not writable",
            Self::Of(P::ReadOnlyEtc) => "read-only files of /etc",
            Self::Of(P::DeviceFilter) => "device filter",
            Self::Of(P::NoSuid) => "nosuid",
            Self::Of(P::NoDev) => "nodev",
            Self::Of(P::ClosedDescriptors) => "closed descriptors",
            Self::Of(P::MappedIds) => "id-mapped volume",
            Self::Of(P::CheckedTargets) => "checked mount target",
            Self::Of(P::VerifiedMounts) => "verified mounts",
            Self::Capabilities => "no capabilities",
            Self::NetworkNamespace => "network namespace",
            Self::TaskLimit => "task limit",
            Self::MemoryLimit => "memory limit",
            Self::VolumeSize => "size of volume",
            Self::ReadOnlyVolume => "read-only volume",
        }
    }
}

const CAPS: Guard = Guard::Capabilities;
const USER: Guard = Guard::Of(P::UserNamespace);
const DEVICES: Guard = Guard::Of(P::DeviceFilter);
const NODEV: Guard = Guard::Of(P::NoDev);
const NOSUID: Guard = Guard::Of(P::NoSuid);
const NNP: Guard = Guard::Of(P::NoNewPrivileges);
const PATHS: Guard = Guard::Of(P::ReadOnlyPaths);
const MASKS: Guard = Guard::Of(P::MaskedPaths);
const SYS: Guard = Guard::Of(P::ReadOnlySys);
const CGROUP: Guard = Guard::Of(P::ReadOnlyCgroup);
const PIDS: Guard = Guard::Of(P::PidNamespace);
const CHECKED: Guard = Guard::Of(P::CheckedTargets);
const VERIFIED: Guard = Guard::Of(P::VerifiedMounts);
const SECCOMP: Guard = Guard::Of(P::Seccomp);
const LANDLOCK: Guard = Guard::Of(P::Landlock);

const fn probe(
    name: &'static str,
    attempt: fn(&Facts) -> Outcome,
    guard: Guard,
    besides: &'static [Guard],
    alone: &'static str,
    refused: &'static str,
) -> Probe {
    Probe { name, guard, besides, attempt: Attempt::Do(attempt), alone, refused }
}

/// Where the answer depends on the version of cgroups: version 1 shows a container none, version 2 its own.
const VIEW_ALONE: &str = "ENOENT on v1, EROFS on v2";
const VIEW: &str = "ENOENT on v1, EACCES on v2";

#[rustfmt::skip] // a table
const OTHERS: &[Probe] = &[
    probe("give a file away", attempts::chown_own_file, CAPS, &[], "EPERM", "EPERM"),
    probe("become another user", attempts::become_another, CAPS, &[], "EPERM", "EPERM"),
    probe("join a group", attempts::join_a_group, CAPS, &[], "EPERM", "EPERM"),
    probe("change the root", attempts::change_root, CAPS, &[], "EPERM", "EPERM"),
    probe("read another user's file", attempts::read_anothers_file, CAPS, &[], "EACCES", "EACCES"),
    probe("change the mode of another user's file", attempts::open_anothers_file, CAPS, &[], "EPERM", "EPERM"),
    probe("raw socket, without capabilities", attempts::raw_socket, CAPS, &[USER], "EPERM", "EPERM"),
    probe("raw socket, with capabilities", attempts::raw_socket, USER, &[CAPS], "EPERM", "EPERM"),
    probe("packet socket", attempts::packet_socket, USER, &[CAPS], "EPERM", "EPERM"),
    probe("change a network link", attempts::change_a_link, USER, &[CAPS], "EPERM", "EPERM"),
    probe("a priority before others", attempts::go_before_others, USER, &[CAPS], "EACCES", "EACCES"),
    probe("make a device node, in the user namespace", attempts::make_a_device, USER, &[CAPS, DEVICES, LANDLOCK], "EPERM", "EACCES"),
    probe("make a device node, as the host's root", attempts::make_a_device, DEVICES, &[CAPS, USER, LANDLOCK], "EPERM", "EACCES"),
    probe("make a device node, in the list or not", attempts::make_a_device, LANDLOCK, &[CAPS, USER, DEVICES], "EACCES", "EACCES"),
    probe("open the image's device node, in the list or not", attempts::open_the_images_device, NODEV, &[DEVICES], "EACCES", "EACCES"),
    probe("open the image's device node, nodev or not", attempts::open_the_images_device, DEVICES, &[NODEV], "EPERM", "EACCES"),
    probe("open a volume's device node", attempts::open_the_volumes_device, NODEV, &[DEVICES], "EACCES", "EACCES"),
    probe("set-user-ID program of the image, nosuid or not", attempts::images_set_user_id, NNP, &[NOSUID, SECCOMP, LANDLOCK], "ignored", "ignored"),
    probe("set-user-ID program of the image, new privileges or not", attempts::images_set_user_id, NOSUID, &[NNP, LANDLOCK], "ignored", "ignored"),
    probe("set-user-ID program of a volume", attempts::volumes_set_user_id, NOSUID, &[NNP, LANDLOCK], "ignored", "ignored"),
    probe("kill a process of another container", attempts::kill_another, PIDS, &[], "ESRCH", "ESRCH"),
    probe("trace a process of another container", attempts::trace_another, PIDS, &[LANDLOCK], "ESRCH", "ESRCH"),
    probe("trace a process of another container that is seen", attempts::trace_another, LANDLOCK, &[PIDS], "EPERM", "ESRCH"),
    probe("read the environment of another container's process", attempts::read_anothers_memory, PIDS, &[LANDLOCK], "ENOENT", "ENOENT"),
    probe("mount, profile or not", attempts::mount_something, LANDLOCK, &[SECCOMP, USER, CAPS], "EPERM", "EPERM"),
    probe("attach the host's shared memory", attempts::shared_memory, Guard::Of(P::IpcNamespace), &[], "ENOENT", "ENOENT"),
    probe("see the host's name", attempts::hosts_name, Guard::Of(P::UtsNamespace), &[], "hidden", "hidden"),
    probe("rename the host", attempts::rename_the_host, USER, &[SECCOMP, CAPS, Guard::Of(P::UtsNamespace)], "EPERM", "EPERM"),
    probe("see the path of its cgroup", attempts::cgroups_path, Guard::Of(P::CgroupNamespace), &[], "hidden", "hidden"),
    probe("read /proc/interrupts", attempts::interrupts, MASKS, &[], "empty", "empty"),
    probe("read /proc/keys", attempts::keys, MASKS, &[USER], "empty", "empty"),
    probe("read /proc/timer_list", attempts::timers, MASKS, &[USER, CAPS], "empty", "empty"),
    probe("list /sys/firmware", attempts::firmware, MASKS, &[], "empty", "empty"),
    probe("set forwarding of packets", attempts::forwarding, PATHS, &[USER, CAPS], "EROFS", "EACCES"),
    probe("set the host's core_pattern, in the user namespace", attempts::core_pattern, USER, &[PATHS], "EACCES", "EACCES"),
    probe("set the host's core_pattern, as the host's root", attempts::core_pattern, PATHS, &[USER], "EROFS", "EACCES"),
    probe("set the CPUs of interrupts", attempts::interrupts_cpus, PATHS, &[USER], "EROFS", "EACCES"),
    probe("set a link's queue in /sys, as the host's root", attempts::links_queue, SYS, &[USER, CAPS], "EROFS", "EROFS"),
    probe("set a link's queue in /sys, in the user namespace", attempts::links_queue, USER, &[SYS, CAPS], "EACCES", "EROFS"),
    probe("lift the limit of its cgroup, as the host's root", attempts::lift_own_limit, CGROUP, &[USER, SYS], VIEW_ALONE, VIEW),
    probe("lift the limit of its cgroup, in the user namespace", attempts::lift_own_limit, USER, &[CGROUP, SYS], "EACCES", VIEW),
    probe("change /etc/hosts", attempts::hosts_file, Guard::Of(P::ReadOnlyEtc), &[], "EROFS", "EROFS"),
    probe("write to a read-only volume", attempts::write_the_volume, Guard::ReadOnlyVolume, &[], "EROFS", "EROFS"),
    probe("many tasks", attempts::many_tasks, Guard::TaskLimit, &[], "EAGAIN", "EAGAIN"),
    probe("much memory", attempts::much_memory, Guard::MemoryLimit, &[], "SIGKILL", "SIGKILL"),
    probe("much memory by files", attempts::fill_memory_by_files, Guard::VolumeSize, &[], "ENOSPC", "ENOSPC"),
    probe("use a descriptor of the shim", attempts::descriptors, Guard::Of(P::ClosedDescriptors), &[], "EBADF", "EBADF"),
    probe("a file of the pod's host id on a volume", attempts::hosts_ids, Guard::Of(P::MappedIds), &[], "EACCES", "EACCES"),
    probe("connect to the host's abstract socket", attempts::abstract_socket, Guard::NetworkNamespace, &[], "ECONNREFUSED", "ECONNREFUSED"),
    probe("list the host's sockets", attempts::list_of_sockets, Guard::NetworkNamespace, &[], "hidden", "hidden"),
    probe("a volume's link leads a mount onto /proc", attempts::planted_proc, CHECKED, &[VERIFIED], "not started", "not started"),
    probe("the same, linked after the look", attempts::planted_proc, VERIFIED, &[CHECKED], "not started", "not started"),
];

/// All of them: those of the profile first.
pub fn all() -> Vec<Probe> {
    let calls = crate::calls::CALLS.iter().map(|(name, call)| Probe {
        name,
        guard: SECCOMP,
        besides: &[USER, CAPS, LANDLOCK],
        attempt: Attempt::Call(*call),
        alone: "EPERM",
        refused: "EPERM",
    });
    calls.chain(OTHERS.iter().copied()).collect()
}
