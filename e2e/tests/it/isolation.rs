//! An app is a guest: its container, its volumes, the internet, and nothing else.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};

const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: NAME, namespace: alice}, spec: {containers: [{name: a, image: busybox, args: [sleep, '100000'], \
                   resources: {limits: {memory: 64Mi, cpu: 500m}}}]}}";

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
        ("mount -t tmpfs x /mnt", "denied|not permitted|No such"),
        ("unshare -U true", "denied|not permitted|not found|applet"),
        ("echo 1 > /proc/sys/kernel/core_pattern", "denied|Read-only|not permitted"),
        ("mknod /tmp/sda b 8 0", "denied|not permitted|No such"),
        ("cat /proc/kcore | head -c 1 | wc -c", "^0|denied|not permitted"),
        ("echo x > /sys/kernel/uevent_helper", "denied|Read-only|nonexistent|not permitted"),
        ("hostname hacked", "denied|not permitted"),
    ] {
        let text = sh(&instance, "one", &format!("({script}) 2>&1 || true"))?;
        ensure!(expected.split('|').any(|part| text.contains(part.trim_start_matches('^'))), "{script}: {text}");
    }
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

#[test]
fn pods_reach_neither_the_host_nor_each_other_nor_private_networks() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    for name in ["one", "two"] {
        instance
            .apply(&POD.replace("NAME", name).replace("args: [sleep, '100000']", "args: [httpd, -f, -p, '8080']"))?;
    }
    for name in ["one", "two"] {
        instance.run(&format!("wait pod/{name} -n alice --for condition=Ready --timeout 60s"))?;
    }
    let pod = instance.get("pod", "two", "alice")?;
    let other = pod["status"]["podIP"].as_str().context("an address")?.to_owned();
    ensure!(pod["status"]["podIPs"].as_array().is_some_and(|list| !list.is_empty()), "{}", pod["status"]);
    // The host itself reaches the pod: that is how the ingress does.
    command::run("curl", ["-sS", "--max-time", "5", "-o", "/dev/null", &format!("http://{other}:8080/")])?;
    let gateway = sh(&instance, "one", "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'")?;
    let listener = std::net::TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    let host: Vec<_> = command::run("hostname", ["-I"])?
        .split_whitespace()
        .filter(|ip| !ip.contains(':'))
        .map(str::to_owned)
        .collect();
    let mut targets = vec![format!("{other} 8080"), format!("{} {port}", gateway.trim())];
    targets.extend(host.iter().map(|ip| format!("{ip} {port}")));
    targets.extend(
        ["10.0.0.1 80", "192.168.1.1 80", "172.16.0.1 80", "169.254.169.254 80", "100.64.0.1 80"].map(str::to_owned),
    );
    for target in targets {
        let text = sh(
            &instance,
            "one",
            &format!("if nc -w 2 {target} < /dev/null; then echo reached; else echo refused; fi 2>&1"),
        )?;
        ensure!(text.contains("refused") && !text.contains("reached"), "{target}: {text}");
    }
    Ok(())
}
