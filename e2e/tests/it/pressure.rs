//! Pods that take more of their device than they may, or than it has: who is evicted, and who is not.

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};
use serde_json::Value;

fn inside(instance: &Instance, pod: &str, script: &str) -> Result<String> {
    let mut exec = instance.hearth(["exec", pod, "-n", "alice", "--", "sh", "-c", script]);
    Ok(command::succeed(&mut exec)?.trim_end().to_owned())
}

fn ensure_evicted(status: &Value, message: &str) -> Result<()> {
    ensure!(status["phase"] == "Failed" && status["reason"] == "Evicted", "{status}");
    ensure!(status["message"].as_str().context("no message")?.starts_with(message), "{status}");
    Ok(())
}

fn ensure_condition(instance: &Instance, which: &str, status: &str, reason: &str) -> Result<()> {
    instance.eventually("the device says how it is", || {
        let found = instance.condition("node", "nas", "default", which)?;
        ensure!(found["status"] == status && found["reason"] == reason, "{found}");
        Ok(())
    })
}

#[test]
fn a_container_that_writes_more_than_its_limit_is_evicted_and_says_so() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: alice}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    args: [sh, -c, 'sleep 100000']
    resources: {limits: {ephemeral-storage: 2Mi}}
    env: [{name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.ephemeral-storage}}}]
  - {name: other, image: busybox, args: [sh, -c, 'sleep 100000'], resources: {limits: {ephemeral-storage: 1Gi}}}
",
    )?;
    instance.run("wait pod/p -n alice --for=condition=Ready --timeout=60s")?;
    ensure!(inside(&instance, "p", "echo $LIMIT")? == "2097152");
    // Its own root: no volume is mounted there.
    inside(&instance, "p", "dd if=/dev/zero of=/big bs=64k count=64 2>/dev/null")?;
    let why = "Container main exceeded its local ephemeral storage limit \"2Mi\". ";
    instance.eventually("it is evicted", || ensure_evicted(&instance.get("pod", "p", "alice")?["status"], why))?;
    let described = instance.run("describe pod p -n alice")?;
    ensure!(described.contains("Evicted") && described.contains(why.trim_end()), "{described}");
    Ok(())
}

/// What is left on the instance's disk, in MiB.
fn left(instance: &Instance) -> Result<u64> {
    let stat = rustix::fs::statvfs(instance.path())?;
    Ok((stat.f_bavail * stat.f_frsize) >> 20)
}

fn finished(pod: &Value) -> &str {
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"].as_str().unwrap_or_default()
}

/// Under this much that is left, in MiB, the device counts as short.
const THRESHOLD: u64 = 200;

#[test]
fn on_a_disk_that_fills_up_guests_go_first_then_who_takes_most_and_neighbours_go_on() -> Result<()> {
    let instance = Instance::on_disk(640)?;
    // Longer than it takes until the evicted pod's place is filled again, so that this is seen to wait.
    let settings =
        format!("evictionHard: {{nodefs.available: {THRESHOLD}Mi}}\nevictionPressureTransitionPeriod: 30s\n");
    instance.say_evictions(&settings)?;
    instance.start("none")?;
    instance.import_busybox()?;
    instance.run(r#"patch device nas --type merge -p {"spec":{"lend":{"cpu":"2","memory":"1Gi","pods":2}}}"#)?;
    instance.apply(
        "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: alice}
spec: {resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept, namespace: alice}
spec: {resources: {requests: {storage: 10Mi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: greedy, namespace: alice}
spec:
  selector: {matchLabels: {app: greedy}}
  template:
    metadata: {labels: {app: greedy}}
    spec:
      containers:
      - name: main
        image: busybox
        args: [sh, -c, 'date >> /data/starts; sleep 100000']
        volumeMounts: [{name: data, mountPath: /data}, {name: cache, mountPath: /cache}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}, {name: cache, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: keeper, namespace: alice}
spec:
  containers:
  - {name: main, image: busybox, args: [sh, -c, 'sleep 100000'], volumeMounts: [{name: kept, mountPath: /kept}]}
  volumes: [{name: kept, persistentVolumeClaim: {claimName: kept}}]
---
apiVersion: v1
kind: Pod
metadata: {name: modest, namespace: alice}
spec:
  containers:
  - {name: main, image: busybox, args: [sh, -c, 'sleep 100000'], resources: {requests: {ephemeral-storage: 100Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: guest, namespace: bob}
spec:
  containers:
  - {name: main, image: busybox, args: [sh, -c, 'sleep 100000'], resources: {limits: {cpu: 100m, memory: 256Mi}}}
",
    )?;
    for wait in ["pod/keeper -n alice", "pod/modest -n alice", "pod/guest -n bob"] {
        instance.run(&format!("wait {wait} --for=condition=Ready --timeout=60s"))?;
    }
    instance.run("wait deployment/greedy -n alice --for=condition=Available --timeout=60s")?;
    ensure_condition(&instance, "DiskPressure", "False", "KubeletHasNoDiskPressure")?;
    let greedy = instance.list("pod", "alice")?.into_iter().find(|pod| pod["metadata"]["labels"]["app"] == "greedy");
    let greedy = greedy.context("no pod of the Deployment")?;
    let name = greedy["metadata"]["name"].as_str().context("no name")?.to_owned();

    let write = |pod: &str, namespace: &str, file: &str, mib: u64| -> Result<()> {
        let script = format!("dd if=/dev/zero of={file} bs=1024k count={mib} 2>/dev/null && sync");
        let mut exec = instance.hearth(["exec", pod, "-n", namespace, "--", "sh", "-c", &script]);
        command::succeed(&mut exec).map(drop)
    };
    write("keeper", "alice", "/kept/photos", 60)?;
    write("modest", "alice", "/own", 40)?;
    write("guest", "bob", "/own", 50)?;
    let much = left(&instance)?.checked_sub(THRESHOLD - 80).context("the disk is too small for this test")?;
    write(&name, "alice", "/cache/big", much)?;

    let evicted = |name: &str, namespace: &str| {
        instance.eventually("it is evicted", || {
            let pod = instance.get("pod", name, namespace)?;
            ensure_evicted(
                &pod["status"],
                "The node was low on resource: ephemeral-storage. Threshold quantity: 200Mi, ",
            )?;
            Ok(pod)
        })
    };
    let guest = evicted("guest", "bob")?;
    ensure_condition(&instance, "DiskPressure", "True", "KubeletHasDiskPressure")?;
    let pods = || -> Result<Vec<Value>> {
        let all = instance.list("pod", "alice")?;
        Ok(all.into_iter().filter(|pod| pod["metadata"]["labels"]["app"] == "greedy").collect())
    };
    let greedy = evicted(&name, "alice")?;
    ensure!(finished(&guest) < finished(&greedy), "the guest goes first: {guest} {greedy}");
    let message = greedy["status"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("Container main was using "), "{message}");
    ensure!(message.contains(", request is 0, has larger consumption of ephemeral-storage. "), "{message}");

    // Its place is filled again, on the device that has its data, and not before there is room.
    let waits = instance.eventually("another one waits for room", || {
        let next = pods()?.into_iter().find(|pod| pod["metadata"]["name"] != *name).context("not yet")?;
        let scheduled = next["status"]["conditions"].as_array().into_iter().flatten();
        let scheduled = scheduled.into_iter().find(|one| one["type"] == "PodScheduled").context("not yet")?;
        let why = scheduled["message"].as_str().unwrap_or_default().to_owned();
        ensure!(why.contains("node.kubernetes.io/disk-pressure:NoSchedule"), "{why}");
        Ok(next)
    })?;
    ensure!(waits["spec"]["nodeName"].is_null(), "{waits}");
    let described = instance.run("describe node nas")?;
    ensure!(described.contains("DiskPressure") && described.contains("KubeletHasDiskPressure"), "{described}");
    instance.eventually("there is room again, and it runs", || {
        let pressed = instance.condition("node", "nas", "default", "DiskPressure")?;
        ensure!(pressed["status"] == "False", "{pressed}");
        let running: Vec<Value> = pods()?.into_iter().filter(|pod| pod["status"]["phase"] == "Running").collect();
        ensure!(running.len() == 1 && running[0]["spec"]["nodeName"] == "nas", "{running:?}");
        let name = running[0]["metadata"]["name"].as_str().context("no name")?;
        ensure!(inside(&instance, name, "wc -l < /data/starts; ls /cache")? == "2", "with its data, and a new cache");
        Ok(())
    })?;
    ensure!(instance.get("node", "nas", "default")?["spec"]["taints"].is_null());
    // Nobody else was touched.
    for pod in ["keeper", "modest"] {
        let status = instance.get("pod", pod, "alice")?["status"].clone();
        ensure!(status["phase"] == "Running" && status["containerStatuses"][0]["restartCount"] == 0, "{status}");
    }
    ensure!(inside(&instance, "keeper", "wc -c < /kept/photos")? == (60 << 20).to_string());
    let events = instance.run("get events -A")?;
    for reason in ["NodeHasDiskPressure", "NodeHasNoDiskPressure", "EvictionThresholdMet"] {
        ensure!(events.contains(reason), "{reason}: {events}");
    }
    Ok(())
}

#[test]
fn where_memory_is_short_who_takes_it_goes_and_nobody_comes_who_asks_for_none() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let say = |threshold: &str| {
        let disk = "nodefs.available: 0%, nodefs.inodesFree: 0%";
        let hard = format!("evictionHard: {{memory.available: {threshold}, {disk}}}");
        instance.say_evictions(&format!("{hard}\nevictionPressureTransitionPeriod: 15s\n"))
    };
    let pod = |name: &str, resources: &str| {
        format!(
            "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: alice}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: main, image: busybox, args: [sh, -c, 'sleep 100000'], resources: {resources}, volumeMounts: [{{name: m, mountPath: /m}}]}}
  volumes: [{{name: m, emptyDir: {{medium: Memory}}}}]
"
        )
    };
    let asks = "{requests: {memory: 2Gi}}";
    instance.apply(&(pod("hog", "{}") + &pod("promised", asks) + &pod("small", "{}")))?;
    for name in ["hog", "promised", "small"] {
        instance.run(&format!("wait pod/{name} -n alice --for=condition=Ready --timeout=60s"))?;
    }
    // What the kernel kills first is what was promised least.
    let score = |name: &str| inside(&instance, name, "cat /proc/self/oom_score_adj").map(|text| text.parse::<i32>());
    let (hog, promised) = (score("hog")??, score("promised")??);
    ensure!(hog == 1000 && (2..999).contains(&promised), "{hog} {promised}");
    // Enough to matter on a large machine: a hundredth of all its memory, and more than that.
    let node = instance.get("node", "nas", "default")?;
    let total = node["status"]["capacity"]["memory"].as_str().context("no memory")?;
    let mib = hearth_types::quantity::bytes(total)? / 50 / (1 << 20);
    inside(&instance, "hog", &format!("dd if=/dev/zero of=/m/big bs=1024k count={mib} 2>/dev/null"))?;
    // All of its memory is to be free, so it is short whatever else this machine does.
    say("100%")?;
    let hog = instance.eventually("the one that asked for nothing is evicted", || {
        let pod = instance.get("pod", "hog", "alice")?;
        ensure_evicted(&pod["status"], "The node was low on resource: memory. Threshold quantity: ")?;
        Ok(pod)
    })?;
    say("10Mi")?;
    let message = hog["status"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("Container main was using "), "{message}");
    ensure!(message.ends_with("request is 0, has larger consumption of memory. "), "{message}");
    ensure_condition(&instance, "MemoryPressure", "True", "KubeletHasInsufficientMemory")?;
    instance.apply(&(pod("late", "{}") + &pod("asks", "{requests: {memory: 1Mi}}")))?;
    instance.run("wait pod/asks -n alice --for=condition=Ready --timeout=60s")?;
    let late = instance.get("pod", "late", "alice")?;
    ensure!(late["spec"]["nodeName"].is_null(), "{late}");
    ensure!(late.to_string().contains("node.kubernetes.io/memory-pressure:NoSchedule"), "{late}");
    instance.run("wait pod/late -n alice --for=condition=Ready --timeout=60s")?;
    ensure_condition(&instance, "MemoryPressure", "False", "KubeletHasSufficientMemory")?;
    for name in ["promised", "small"] {
        let status = instance.get("pod", name, "alice")?["status"].clone();
        ensure!(status["phase"] == "Running" && status["containerStatuses"][0]["restartCount"] == 0, "{status}");
    }
    Ok(())
}
