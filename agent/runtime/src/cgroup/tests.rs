use std::{path::Path, process::Command};

use super::*;

const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
35 30 0:31 /nested /sys/fs/cgroup/other rw,relatime - cgroup cgroup rw,pids
garbage";

#[test]
fn hierarchies_are_found_once_each_whatever_the_mix() {
    let found = parse_mountinfo(HYBRID);
    let view: Vec<_> = found.iter().map(|h| (h.mount.to_str().expect("text"), h.controllers.join("+"), h.v2)).collect();
    assert_eq!(
        view,
        [
            ("/sys/fs/cgroup/cpu", "cpu+cpuacct".to_owned(), false),
            ("/sys/fs/cgroup/systemd", "name=systemd".to_owned(), false),
            ("/sys/fs/cgroup/unified", String::new(), true),
        ]
    );
}

/// Mountinfo, controllers of the hierarchy of version 2, whether it is a pure one, where containers are, where each
/// needed controller is.
type Host = (&'static str, &'static str, &'static str, bool, &'static [&'static str], [Option<&'static str>; 3]);

const HOSTS: [Host; 7] = [
    (
        "version 2",
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "cpuset cpu io memory hugetlb pids",
        true,
        &["/sys/fs/cgroup"],
        [Some("/sys/fs/cgroup"); 3],
    ),
    (
        "version 2 and the net_cls of a VPN",
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
         99 23 0:50 / /opt/mullvad/net_cls rw - cgroup net_cls rw,net_cls",
        "cpuset cpu io memory pids",
        true,
        &["/sys/fs/cgroup"],
        [Some("/sys/fs/cgroup"); 3],
    ),
    (
        "version 2 and the names of elogind",
        "31 23 0:27 / /sys/fs/cgroup/elogind rw - cgroup cgroup rw,xattr,name=elogind\n\
         30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
        "cpu memory pids",
        true,
        &["/sys/fs/cgroup/unified"],
        [Some("/sys/fs/cgroup/unified"); 3],
    ),
    (
        "hybrid",
        "31 23 0:27 / /c/cpu rw - cgroup cgroup rw,cpu,cpuacct\n32 23 0:28 / /c/memory rw - cgroup cgroup rw,memory\n\
         33 23 0:29 / /c/pids rw - cgroup cgroup rw,pids\n34 23 0:30 / /c/devices rw - cgroup cgroup rw,devices\n\
         35 23 0:31 / /c/unified rw - cgroup2 cgroup2 rw",
        "hugetlb",
        false,
        &["/c/cpu", "/c/memory", "/c/pids", "/c/devices"],
        [Some("/c/cpu"), Some("/c/memory"), Some("/c/pids")],
    ),
    (
        "hybrid, with memory in version 2 and devices denied there",
        "31 23 0:27 / /c/cpu rw - cgroup cgroup rw,cpu,cpuacct\n33 23 0:29 / /c/pids rw - cgroup cgroup rw,pids\n\
         35 23 0:31 / /c/unified rw - cgroup2 cgroup2 rw",
        "memory",
        false,
        &["/c/cpu", "/c/pids", "/c/unified"],
        [Some("/c/cpu"), Some("/c/unified"), Some("/c/pids")],
    ),
    (
        "version 1, without memory",
        "31 23 0:27 / /c/cpu rw - cgroup cgroup rw,cpu\n33 23 0:29 / /c/pids rw - cgroup cgroup rw,pids",
        "",
        false,
        &["/c/cpu", "/c/pids"],
        [Some("/c/cpu"), None, Some("/c/pids")],
    ),
    (
        "version 2, without memory (a Raspberry Pi as delivered)",
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "cpuset cpu io pids",
        true,
        &["/sys/fs/cgroup"],
        [Some("/sys/fs/cgroup"), None, Some("/sys/fs/cgroup")],
    ),
];

#[test]
fn each_controller_is_used_where_it_is() {
    for (host, mounts, controllers, v2, working, homes) in HOSTS {
        let mut hierarchies = parse_mountinfo(mounts);
        for h in hierarchies.iter_mut().filter(|h| h.v2) {
            h.controllers = controllers.split_whitespace().map(String::from).collect();
        }
        let cgroups = Cgroups { hierarchies };
        assert_eq!(cgroups.is_v2(), v2, "{host}");
        assert_eq!(
            cgroups.working().map(|h| h.mount.as_path()).collect::<Vec<_>>(),
            working.iter().map(Path::new).collect::<Vec<_>>(),
            "{host}"
        );
        assert_eq!(NEEDED.map(|c| cgroups.with(c).map(|h| h.mount.to_str().expect("text"))), homes, "{host}");
        assert_eq!(cgroups.own_view(Path::new("x"), false).is_some(), v2, "{host}: only a whole view is shown");
    }
}

struct Dir<'a>(&'a Cgroups, PathBuf);
impl Drop for Dir<'_> {
    fn drop(&mut self) {
        let _ = self.0.kill(&self.1);
        let _ = self.0.remove(&self.1);
    }
}

#[test]
fn killing_a_cgroup_ends_its_processes_and_no_other() {
    let cgroups = Cgroups::find().expect("cgroups are mounted");
    let rel = PathBuf::from(format!("hearth-unit-{}", std::process::id()));
    cgroups.create(&rel.join("a")).expect("root can make cgroups");
    let dir = Dir(&cgroups, rel);
    let mut inside = Command::new("sleep").arg("60").spawn().expect("sleep is there");
    let mut outside = Command::new("sleep").arg("60").spawn().expect("sleep is there");
    for h in cgroups.working() {
        write(&h.mount.join(&dir.1).join("a/cgroup.procs"), &inside.id().to_string()).expect("joins");
    }
    let reaper = std::thread::spawn(move || inside.wait());
    assert_eq!(cgroups.kill(&dir.1).expect("all die"), 1);
    assert!(!reaper.join().expect("joins").expect("waits").success());
    assert!(outside.try_wait().expect("waits").is_none(), "the process outside lives");
    outside.kill().expect("our child");
    outside.wait().expect("our child");
    assert!(cgroups.remove(&dir.1).expect("empty") > 0);
    assert_eq!(cgroups.remove(&dir.1).expect("idempotent"), 0);
    for path in cgroups.paths(&dir.1) {
        assert!(!path.exists(), "{} is left", path.display());
    }
}

struct Rm<'a>(&'a Path);
impl Drop for Rm<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.0);
    }
}

#[test]
fn the_device_filter_of_version_2_denies_all_but_the_standard_nodes() {
    let cgroups = Cgroups::find().expect("cgroups are mounted");
    let Some(v2) = cgroups.hierarchies.iter().find(|h| h.v2) else {
        // A host without any cgroup2 has the devices controller of version 1.
        assert!(cgroups.controllers().iter().any(|c| c == "devices"));
        return;
    };
    let dir = v2.mount.join(format!("hearth-unit-dev-{}", std::process::id()));
    fs::create_dir(&dir).expect("root can make cgroups");
    let _rm = Rm(&dir);
    devices::deny_v2(&dir).expect("the program loads and attaches");
    let script = format!(
        "echo $$ > {}/cgroup.procs && head -c1 /dev/urandom >/dev/null && ! head -c1 /dev/kmsg 2>/dev/null \
         && ! mknod /tmp/hearth-unit-{} c 1 3 2>/dev/null",
        dir.display(),
        std::process::id()
    );
    let status = Command::new("sh").args(["-c", &script]).status().expect("sh is there");
    assert!(status.success(), "{status}");
}
