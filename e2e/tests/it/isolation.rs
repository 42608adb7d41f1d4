//! An app is a guest: its container, its volumes, the internet, and nothing else.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance, netns::Netns};

/// A pod with directories of its own at /tmp and /mnt: what is refused there is not for want of a place.
const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: NAME, namespace: alice}, spec: {containers: [{name: a, image: busybox, args: [sleep, '100000'], \
                   volumeMounts: [{name: tmp, mountPath: /tmp}, {name: mnt, mountPath: /mnt}], resources: {limits: {memory: 64Mi, cpu: 500m}}}], \
                   volumes: [{name: tmp, emptyDir: {}}, {name: mnt, emptyDir: {}}]}}";

fn sh(instance: &Instance, pod: &str, script: &str) -> Result<String> {
    command::succeed(&mut instance.hearth(["exec", pod, "-n", "alice", "--", "sh", "-c", script]))
}

#[test]
fn a_container_has_what_it_needs_and_no_more() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    for name in ["one", "two"] {
        instance.apply(&POD.replace("NAME", name))?;
    }
    for name in ["one", "two"] {
        instance.run(&format!("wait pod/{name} -n alice --for condition=Ready --timeout 60s"))?;
    }
    let status = sh(&instance, "one", "cat /proc/1/status; cat /proc/self/status")?;
    ensure!(status.matches("NoNewPrivs:\t1").count() == 2, "{status}");
    ensure!(status.matches("Seccomp:\t2").count() == 2, "the profile is on for the program and for exec: {status}");
    ensure!(status.matches("CapEff:\t0000000000000000").count() == 2, "{status}");
    // Root inside is nobody outside, and another one in every pod.
    let mut bases = BTreeSet::new();
    for name in ["one", "two"] {
        let map = sh(&instance, name, "cat /proc/self/uid_map")?;
        let fields: Vec<u64> = map.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(fields[0] == 0 && fields[1] >= 65_536 && fields[2] == 65_536, "{map}");
        bases.insert(fields[1]);
    }
    ensure!(bases.len() == 2, "each pod has ids of its own");
    for (script, expected) in [
        ("mount -t tmpfs x /mnt", "mount: permission denied (are you root?)"),
        ("mount -o bind /tmp /mnt", "mount: permission denied (are you root?)"),
        ("unshare -U true", "unshare: unshare(0x10000000): Operation not permitted"),
        ("mknod /tmp/sda b 8 0", "mknod: /tmp/sda: Operation not permitted"),
        ("mknod /tmp/kmsg c 1 11", "mknod: /tmp/kmsg: Operation not permitted"),
        ("hostname hacked", "hostname: sethostname: Operation not permitted"),
        (
            "sh -c 'echo 1 > /proc/sys/kernel/core_pattern'",
            "can't create /proc/sys/kernel/core_pattern: Read-only file system",
        ),
        ("sh -c 'echo 1 > /proc/sys/vm/drop_caches'", "can't create /proc/sys/vm/drop_caches: Read-only file system"),
        ("sh -c 'echo x > /sys/kernel/uevent_helper'", "can't create /sys/kernel/uevent_helper: Read-only file system"),
    ] {
        let text = sh(&instance, "one", &format!("busybox {script} 2>&1 && echo SUCCEEDED; true"))?;
        ensure!(text.contains(expected) && !text.contains("SUCCEEDED"), "{script}: {text}");
    }
    // What is denied is the device, not the making of nodes nor the place.
    sh(&instance, "one", "mknod /tmp/fifo p && touch /mnt/file")?;
    assert_eq!(sh(&instance, "one", "cat /proc/kcore | wc -c")?, "0\n", "the host's memory is masked");
    // Processes of others are not to be seen.
    let processes = sh(&instance, "one", "ls /proc | grep -c '^[0-9]'")?;
    ensure!(processes.trim().parse::<u32>()? < 8, "{processes}");
    Ok(())
}

#[test]
fn limits_hold_and_are_told() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    // Room for every process that the limit allows, so that it is the limit of pids that is met.
    instance.apply(&POD.replace("NAME", "one").replace("memory: 64Mi", "memory: 2Gi"))?;
    instance.run("wait pod/one -n alice --for condition=Ready --timeout 60s")?;
    // A fork bomb hits the limit of pids and harms nobody.
    let text = sh(&instance, "one", "(i=0; while [ $i -lt 3000 ]; do sleep 30 & i=$((i+1)); done) 2>&1; true")?;
    ensure!(text.contains("fork"), "the limit of pids holds: {text}");
    ensure!(instance.run("get pods -n alice")?.contains("one"), "the device is well");
    Ok(())
}

/// Addresses of the world's far side that a pod must not reach, one of each range that is not the public internet.
const NOT_INTERNET: [&str; 9] = [
    "10.9.9.9",
    "172.16.9.9",
    "192.168.99.9",
    "169.254.169.254",
    "100.64.9.9",
    "198.18.9.9",
    "fd09::9",
    "2001:db8::9",
    "2002:a09:909::9",
];
/// Addresses of it that are.
const INTERNET: [&str; 2] = ["1.1.1.1", "2606:4700::1111"];
/// The home's router and the device, on the home's LAN.
const LAN: [&str; 2] = ["192.168.7.1", "2a01:db00:7::1"];
const DEVICE: [&str; 2] = ["192.168.7.10", "2a01:db00:7::10"];

/// A web server in a network namespace, ended with the test.
struct Web(Child);

impl Web {
    fn start(netns: &Netns, page: &str, folder: &Path) -> Result<Self> {
        let folder = folder.join(page);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("index.html"), page)?;
        let mut httpd = netns.program("busybox");
        httpd.args(["httpd", "-f", "-p", "[::]:80", "-h"]).arg(&folder).stdin(Stdio::null());
        Ok(Self(httpd.spawn()?))
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A script that fetches a page from inside a pod.
fn fetch(address: &str) -> String {
    // Not wget: of a static program, it looks up names by libraries that an image of one file has not.
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 10 {address} 80 2>&1 | busybox tail -n 1")
}

fn url(address: &str) -> String {
    if address.contains(':') { format!("http://[{address}]/") } else { format!("http://{address}/") }
}

/// A home with its router, which stands for the internet too and has a listener at every address.
fn home() -> Result<(Netns, Netns)> {
    let (router, device) = (Netns::new("rtr")?, Netns::new("dev")?);
    router.link(
        "lan",
        &["192.168.7.1/24", "2a01:db00:7::1/64"],
        &device,
        "eth0",
        &["192.168.7.10/24", "2a01:db00:7::10/64"],
    )?;
    for address in NOT_INTERNET.iter().chain(&INTERNET) {
        let (length, nodad) = if address.contains(':') { (128, " nodad") } else { (32, "") };
        router.run(&format!("ip address add {address}/{length} dev lo{nodad}"))?;
    }
    device.run("ip route add default via 192.168.7.1")?;
    device.run("ip route add default via 2a01:db00:7::1")?;
    Ok((router, device))
}

#[test]
fn pods_reach_the_internet_and_neither_the_host_nor_each_other_nor_private_networks() -> Result<()> {
    let (router, device) = home()?;
    let folder = tempfile::tempdir()?;
    let _far = Web::start(&router, "far", folder.path())?;
    let _host = Web::start(&device, "host", folder.path())?;
    let instance = Instance::empty()?.in_netns(device.name());
    instance.start("none")?;
    instance.import_busybox()?;
    let server = POD.replace(
        "args: [sleep, '100000']",
        "args: [sh, -c, 'mkdir /tmp/w; echo pod > /tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w']",
    );
    instance.apply(&POD.replace("NAME", "one"))?;
    instance.apply(&server.replace("NAME", "two"))?;
    for name in ["one", "two"] {
        instance.run(&format!("wait pod/{name} -n alice --for condition=Ready --timeout 60s"))?;
    }
    let addresses = |pod: &str| -> Result<Vec<String>> {
        let pod = instance.get("pod", pod, "alice")?;
        let all = pod["status"]["podIPs"].as_array().cloned().unwrap_or_default();
        ensure!(all.len() == 2, "an address of each family: {}", pod["status"]);
        all.iter().map(|one| one["ip"].as_str().map(str::to_owned).context("an address")).collect()
    };
    let (one, two) = (addresses("one")?, addresses("two")?);
    // Each target answers whoever may ask: what a pod does not reach is there.
    let curl = |from: &Netns, to: &str| {
        let mut curl = from.program("curl");
        command::succeed(curl.args(["-sS", "--max-time", "10", &url(to)]))
    };
    for to in NOT_INTERNET.iter().chain(&INTERNET).chain(&LAN) {
        hearth_e2e::eventually(to, Duration::from_secs(10), || {
            let page = curl(&device, to)?;
            ensure!(page == "far", "{page}");
            Ok(())
        })?;
    }
    for to in DEVICE {
        assert_eq!(curl(&router, to)?, "host", "{to}");
    }
    for to in &two {
        assert_eq!(curl(&device, to)?, "pod\n", "the host itself reaches the pod, as the ingress does: {to}");
    }
    let get = |to: &str| sh(&instance, "one", &fetch(to));
    for to in INTERNET {
        assert_eq!(get(to)?, "far", "{to}");
    }
    // A pod's gateway is an address of the host.
    let gateways =
        sh(&instance, "one", "(busybox ip route; busybox ip -6 route) | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'")?;
    ensure!(gateways.lines().count() == 2, "{gateways}");
    let denied = NOT_INTERNET.iter().chain(&LAN).chain(&DEVICE).map(|one| (*one).to_owned());
    for to in denied.chain(two).chain(gateways.lines().map(str::to_owned)) {
        let text = get(&to)?;
        // It comes at once, from the pod's own firewall (a reset) or the host's (administratively prohibited: RFC 1812, RFC 4443).
        let refused =
            ["Connection refused", "Permission denied", "No route to host"].iter().any(|why| text.contains(why));
        ensure!(text.contains("can't connect to remote host") && refused, "{to}: {text:?}");
    }
    // Nobody outside reaches a pod, not even who knows a way to it.
    for (to, via) in one.iter().zip(DEVICE) {
        router.run(&format!("ip route add {to} via {via}"))?;
        let tried = command::fail(router.program("curl").args(["-sS", "--max-time", "3", &url(to)]))?;
        ensure!(tried.contains("timed out") || tried.contains("Failed to connect"), "{to}: {tried}");
    }
    Ok(())
}

#[test]
fn an_app_without_the_permission_has_no_internet() -> Result<()> {
    let (router, device) = home()?;
    let folder = tempfile::tempdir()?;
    let _far = Web::start(&router, "far", folder.path())?;
    let instance = Instance::empty()?.in_netns(device.name());
    instance.start("none")?;
    instance.import_busybox()?;
    for (name, internet) in [("online", true), ("shutin", false)] {
        instance.apply(&format!(
            "{{apiVersion: hearth.dev/v1alpha1, kind: App, metadata: {{name: {name}}}, spec: {{containers: [{{name: a, image: busybox, args: [httpd, -f, -p, '80'], \
             ports: [{{name: http, containerPort: 80}}]}}], ingress: {{port: http}}, permissions: {{internet: {internet}}}}}}}\n---\n\
             {{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {{name: {name}, namespace: alice}}, spec: {{app: {name}}}}}"
        ))?;
        instance.wait_ready(name, "alice")?;
        for to in INTERNET {
            let script = fetch(to);
            let text = command::succeed(&mut instance.hearth([
                "exec",
                &format!("install/{name}"),
                "-n",
                "alice",
                "--",
                "sh",
                "-c",
                &script,
            ]))?;
            if internet {
                ensure!(text == "far", "{to}: {text}");
            } else {
                ensure!(text.contains("can't connect to remote host"), "{to}: {text}");
            }
        }
    }
    Ok(())
}

#[test]
fn guests_share_what_their_host_lends_and_a_change_holds_for_those_who_are_here() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let lend = |memory: &str| {
        let mut patch = instance.hearth(["patch", "device", "nas", "-p"]);
        let text = format!("{{\"spec\": {{\"lend\": {{\"cpu\": \"500m\", \"memory\": \"{memory}\", \"pods\": 5}}}}}}");
        command::succeed(patch.arg(text)).map(drop)
    };
    lend("64Mi")?;
    instance.apply("{apiVersion: v1, kind: Namespace, metadata: {name: bob}}")?;
    for owner in ["alice", "bob"] {
        instance.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: app, namespace: {owner}}}, spec: {{containers: [{{name: app, image: busybox, \
             args: [sleep, '100000'], resources: {{limits: {{memory: 16Mi, cpu: 100m}}}}}}]}}}}"
        ))?;
    }
    let uid_of = |owner: &str| {
        instance.eventually(&format!("the pod of {owner} runs"), || {
            let pod = instance.get("pod", "app", owner)?;
            ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
            Ok(pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
        })
    };
    let (alice, bob) = (uid_of("alice")?, uid_of("bob")?);
    let root = format!("hearth-{}", instance.id()?);
    let memory = |below: &str| {
        let files = [("memory/", "memory.limit_in_bytes"), ("", "memory.max")];
        let read = files.iter().find_map(|(mount, file)| {
            std::fs::read_to_string(format!("/sys/fs/cgroup/{mount}{root}/{below}/{file}")).ok()
        });
        read.map(|text| text.trim().to_owned())
    };
    let limit = (16_u64 << 20).to_string();
    ensure!(memory(&alice) == Some(limit.clone()) && memory(&format!("guests/{bob}")) == Some(limit));
    ensure!(memory(&bob).is_none() && memory("guests") == Some((64_u64 << 20).to_string()));
    lend("96Mi")?;
    instance.eventually("the new limit holds", || {
        ensure!(memory("guests") == Some((96_u64 << 20).to_string()), "{:?}", memory("guests"));
        Ok(())
    })
}
