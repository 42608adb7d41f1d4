//! What the kernel can do, and its control groups.

use hearth_runtime::KernelFeatures;

use super::{Area, Finding, Verdict};

/// The oldest kernel that Hearth is tried with: that of Debian 12.
const TRIED: (u32, u32) = (6, 1);
const NEWER: &str = "run a kernel of 6.1 or newer, as Debian 12 has it";

pub(super) fn judge(kernel: &KernelFeatures) -> Vec<Finding> {
    let mut findings = vec![release(&kernel.release)];
    let needs = [
        (
            kernel.user_namespaces,
            "user namespaces",
            "apps cannot be isolated",
            "a kernel with CONFIG_USER_NS, and user.max_user_namespaces above 0 (sysctl)",
        ),
        (kernel.idmapped_mounts, "idmapped mounts", "apps cannot have files of their own", "Linux 5.12 or newer"),
        (kernel.seccomp, "seccomp filters", "apps cannot be isolated", "a kernel with CONFIG_SECCOMP_FILTER"),
        (kernel.pidfd, "pidfds", "exec does not work", "Linux 5.8 or newer"),
    ];
    for (there, what, without, with) in needs {
        findings.push(if there {
            Finding::fine(Area::Kernel, format!("it has {what}"))
        } else {
            Finding::lacks(Area::Kernel, format!("it has no {what}: {without}"), format!("run {with}"))
        });
    }
    findings.push(landlock(kernel.landlock));
    let way =
        if kernel.overlay_detached_idmapped { "shortest way" } else { "way of kernels before 6.15, a little slower" };
    findings.push(Finding::fine(Area::Kernel, format!("images are mounted in the {way}")));
    findings.extend(cgroups(kernel));
    findings
}

fn landlock(there: bool) -> Finding {
    if there {
        return Finding::fine(Area::Kernel, "it has Landlock");
    }
    let what = "it has no Landlock of Linux 5.19 or newer: apps are isolated with a wall less";
    let advice =
        "run a kernel with CONFIG_SECURITY_LANDLOCK, and with landlock in CONFIG_LSM or in lsm= on its command line";
    Finding::poor(Area::Kernel, what, advice)
}

fn release(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= TRIED => {
            Finding::fine(Area::Kernel, format!("Linux {release}"))
        }
        (Some(_), Some(_)) => {
            Finding::poor(Area::Kernel, format!("Linux {release} is older than what Hearth is tried with"), NEWER)
        }
        _ => Finding::poor(Area::Kernel, format!("its release {release:?} cannot be read"), NEWER),
    }
}

fn cgroups(kernel: &KernelFeatures) -> Vec<Finding> {
    if kernel.controllers.is_empty() {
        return vec![Finding::lacks(
            Area::Cgroups,
            "no control groups are mounted: apps cannot be limited, and what they started cannot be ended",
            "mount cgroup2 at /sys/fs/cgroup, as systemd does",
        )];
    }
    let version = if kernel.cgroup_v2 { "version 2" } else { "version 1, or both" };
    let mut findings = vec![Finding::fine(Area::Cgroups, format!("control groups are of {version}"))];
    for controller in ["memory", "cpu", "pids"] {
        if !kernel.controllers.iter().any(|one| one == controller) {
            // A Raspberry Pi's firmware leaves it off.
            let advice = if controller == "memory" {
                "add cgroup_enable=memory to the kernel's command line (on a Raspberry Pi in /boot/firmware/cmdline.txt) and start it again"
            } else {
                "run a kernel with this controller, and do not disable it on its command line"
            };
            let what = format!("the controller {controller} is missing: its limits are not enforced");
            findings.push(Finding::lacks(Area::Cgroups, what, advice));
        }
    }
    findings
}

/// What the kernel lacks, as the device's status says it.
pub(crate) fn lacks(kernel: &KernelFeatures) -> Vec<String> {
    let bad = judge(kernel).into_iter().filter(|finding| finding.verdict == Verdict::Lacks);
    bad.map(|Finding { area, what, advice, .. }| format!("{area}: {what} ({advice})")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said, and without what.
    type Case = (&'static str, fn(&mut KernelFeatures));

    fn whole() -> KernelFeatures {
        KernelFeatures {
            release: "6.1.0-18-amd64".into(),
            user_namespaces: true,
            idmapped_mounts: true,
            overlay_layer_fds: true,
            overlay_detached_idmapped: true,
            cgroup_v2: true,
            controllers: ["cpu", "memory", "pids"].map(String::from).to_vec(),
            seccomp: true,
            landlock: true,
            pidfd: true,
        }
    }

    #[test]
    fn each_thing_that_is_missing_is_said_with_what_to_do() {
        assert!(judge(&whole()).iter().all(|finding| finding.verdict == Verdict::Fine), "{:?}", judge(&whole()));
        assert!(lacks(&whole()).is_empty());
        let without: [Case; 6] = [
            ("user namespaces", |kernel| kernel.user_namespaces = false),
            ("idmapped mounts", |kernel| kernel.idmapped_mounts = false),
            ("seccomp filters", |kernel| kernel.seccomp = false),
            ("pidfds", |kernel| kernel.pidfd = false),
            ("cgroup_enable=memory", |kernel| kernel.controllers.retain(|one| one != "memory")),
            ("no control groups", |kernel| kernel.controllers.clear()),
        ];
        for (expected, remove) in without {
            let mut kernel = whole();
            remove(&mut kernel);
            let said = lacks(&kernel);
            assert!(said.len() == 1 && said[0].contains(expected), "{expected}: {said:?}");
            assert!(
                judge(&kernel).iter().all(|finding| (finding.verdict == Verdict::Fine) == finding.advice.is_empty())
            );
        }
    }

    #[test]
    fn apps_run_without_landlock_and_the_owner_is_told() {
        let kernel = KernelFeatures { landlock: false, ..whole() };
        assert!(lacks(&kernel).is_empty());
        let poor: Vec<_> = judge(&kernel).into_iter().filter(|finding| finding.verdict == Verdict::Poor).collect();
        assert!(poor.len() == 1 && poor[0].advice.contains("lsm="), "{poor:?}");
    }

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        for (text, verdict) in [
            ("6.1.0-18-amd64", Verdict::Fine),
            ("6.12.34+rpt-rpi-v8", Verdict::Fine),
            ("7.0", Verdict::Fine),
            ("5.15.0-91-generic", Verdict::Poor),
            ("6.0.19", Verdict::Poor),
            ("", Verdict::Poor),
            ("linux", Verdict::Poor),
        ] {
            assert_eq!(release(text).verdict, verdict, "{text}");
        }
    }
}
