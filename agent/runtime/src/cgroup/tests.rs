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
