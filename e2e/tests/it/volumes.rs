//! Volumes of pods, with real containers.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use hearth_e2e::{command, instance::Instance};

fn sh(instance: &Instance, pod: &str, script: &str) -> Result<String> {
    command::succeed(&mut instance.hearth(["exec", pod, "-n", "alice", "--", "sh", "-c", script]))
}

const PARTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: conf, namespace: alice}
data: {app.conf: first, other: x}
---
apiVersion: v1
kind: Secret
metadata: {name: key, namespace: alice}
stringData: {password: hunter2}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: alice}
spec: {resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: alice, labels: {app: web}, annotations: {note: 'say \"hi\"'}}
spec:
  securityContext: {runAsUser: 1234, runAsGroup: 5678, fsGroup: 4321, supplementalGroups: [77]}
  terminationGracePeriodSeconds: 1
  containers:
  - name: a
    image: busybox
    args: [sh, -c, 'while [ ! -e /tmp/end ]; do sleep 0.1; done']
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}
    - {name: MILLIS, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    volumeMounts:
    - {name: data, mountPath: /data, subPath: www/html}
    - {name: data, mountPath: /mine, subPathExpr: of/$(POD)}
    - {name: conf, mountPath: /etc/app.conf, subPath: app.conf}
    - {name: memory, mountPath: /memory}
    - {name: all, mountPath: /all}
    - {name: scratch, mountPath: /scratch}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: conf, configMap: {name: conf}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 2Mi}}
  - {name: scratch, emptyDir: {}}
  - name: all
    projected:
      defaultMode: 0o400
      sources:
      - configMap: {name: conf, items: [{key: app.conf, path: conf/app}]}
      - secret: {name: key}
      - configMap: {name: none, optional: true}
      - downwardAPI:
          items:
          - {path: labels, fieldRef: {fieldPath: metadata.labels}}
          - {path: notes, fieldRef: {fieldPath: metadata.annotations}}
          - {path: memory, resourceFieldRef: {containerName: a, resource: limits.memory, divisor: 1Mi}}
";

#[test]
fn parts_groups_memory_and_what_a_pod_knows_of_itself_reach_its_containers() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(PARTS)?;
    instance.run("wait pod/p -n alice --for condition=Ready --timeout 60s")?;
    let sh = |script: &str| sh(&instance, "p", script);
    let pod = instance.get("pod", "p", "alice")?;
    let (node, ip) = (pod["spec"]["nodeName"].as_str().unwrap(), pod["status"]["podIP"].as_str().unwrap());
    // A command has the environment of its container.
    assert_eq!(sh("echo $POD $APP $MILLIS $NODE $IP")?, format!("p web 500 {node} {ip}\n"));
    assert_eq!(sh("id -G")?.trim(), "5678 77 4321");
    // Parts of a claim, which its group may write to, and a single file.
    sh("echo page > /data/index && echo own > /mine/file")?;
    assert_eq!(sh("stat -c %g /data/index /mine/file; cat /etc/app.conf; ls /data")?, "4321\n4321\nfirstindex\n");
    // What is in memory has its size, and is the group's.
    assert_eq!(
        sh("stat -c %g:%a /memory /scratch; mount | grep -c ' /memory type tmpfs'")?,
        "4321:2777\n4321:2777\n1\n"
    );
    assert_eq!(
        sh("dd if=/dev/zero of=/memory/big bs=1k count=3000 2>/dev/null || echo full; rm /memory/big")?,
        "full\n"
    );
    // All sources in one directory, readable for the group alone.
    assert_eq!(sh("cat /all/conf/app /all/password; echo; cat /all/labels")?, "firsthunter2\napp=\"web\"");
    // What apply keeps is an annotation, too.
    assert_eq!(sh("tail -n 1 /all/notes")?, "note=\"say \\\"hi\\\"\"");
    assert_eq!(sh("cat /all/memory; echo; stat -Lc %u:%g:%a /all/password")?, "64\n0:4321:440\n");
    instance.run("label pod p -n alice --overwrite app=shop tier=front")?;
    instance.eventually("the file follows the labels", || {
        ensure!(sh("cat /all/labels")? == "app=\"shop\"\ntier=\"front\"");
        Ok(())
    })?;
    instance.apply(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: conf, namespace: alice}, data: {app.conf: second}}",
    )?;
    instance.eventually("the projected file follows", || {
        ensure!(sh("cat /all/conf/app")? == "second");
        Ok(())
    })?;
    assert_eq!(sh("cat /etc/app.conf")?, "first", "a part stays as it was mounted, as in Kubernetes");
    // A container that starts again finds its memory, and the part as it is now.
    sh("echo kept > /memory/kept; touch /tmp/end")?;
    instance.eventually("the container has started again", || {
        let pod = instance.get("pod", "p", "alice")?;
        ensure!(pod["status"]["containerStatuses"][0]["restartCount"] == 1, "{}", pod["status"]);
        ensure!(pod["status"]["containerStatuses"][0]["ready"] == true, "{}", pod["status"]);
        Ok(())
    })?;
    assert_eq!(sh("cat /memory/kept /etc/app.conf")?, "kept\nsecond");
    // A pod that comes after it finds the claim, and no memory.
    instance.run("delete pod p -n alice --grace-period 1")?;
    instance.apply(PARTS)?;
    instance.run("wait pod/p -n alice --for condition=Ready --timeout 60s")?;
    assert_eq!(sh("ls /memory /scratch; cat /data/index /mine/file")?, "/memory:\n\n/scratch:\npage\nown\n");
    Ok(())
}

#[test]
fn a_part_that_leads_out_of_its_volume_keeps_its_container_from_starting() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let manifest = "
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: alice}
spec:
  initContainers:
  - {name: evil, image: busybox, args: [ln, -s, /etc, /v/part], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: a, image: busybox, args: [sleep, '100000'], volumeMounts: [{name: v, mountPath: /part, subPath: part/hearth}]}
  volumes: [{name: v, emptyDir: {}}]
";
    instance.apply(manifest)?;
    instance.eventually("the pod says why it does not start", || {
        let pod = instance.get("pod", "p", "alice")?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        ensure!(waiting["reason"] == "CreateContainerConfigError", "{}", pod["status"]);
        let message = waiting["message"].as_str().unwrap_or_default();
        ensure!(message.contains("\"part/hearth\" of the volume at /part: a link on the way leads out"), "{message}");
        Ok(())
    })?;
    for (field, why) in [
        ("subPath: /etc", "volumeMounts[0].subPath: must be a relative path"),
        ("subPath: a/../..", "volumeMounts[0].subPath: must not contain '..'"),
        ("recursiveReadOnly: Enabled", "volumeMounts[0].recursiveReadOnly: not supported"),
    ] {
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: x, namespace: alice}}, spec: {{containers: [{{name: a, image: busybox, \
             volumeMounts: [{{name: v, mountPath: /v, {field}}}]}}], volumes: [{{name: v, emptyDir: {{}}}}]}}}}"
        );
        let refused = instance.apply_refused(&pod)?;
        ensure!(refused.contains(why), "{refused}");
    }
    Ok(())
}

#[test]
fn a_pod_that_fills_its_empty_directory_is_evicted_and_replaced() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let pod = |name: &str, script: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: alice}}, spec: {{containers: [{{name: a, image: busybox, \
             args: [sh, -c, '{script}; sleep 100000'], volumeMounts: [{{name: cache, mountPath: /cache}}]}}], \
             volumes: [{{name: cache, emptyDir: {{sizeLimit: 2Mi}}}}]}}}}"
        )
    };
    instance.apply(&pod("fits", "dd if=/dev/zero of=/cache/x bs=1k count=1000"))?;
    instance.apply(&pod("greedy", "mkdir -p /cache/a/b; dd if=/dev/zero of=/cache/a/b/x bs=1k count=4000"))?;
    instance.eventually("the greedy one is evicted", || {
        let status = &instance.get("pod", "greedy", "alice")?["status"];
        ensure!(status["phase"] == "Failed" && status["reason"] == "Evicted", "{status}");
        assert_eq!(status["message"], "Usage of EmptyDir volume \"cache\" exceeds the limit \"2Mi\".");
        Ok(())
    })?;
    instance.eventually("people are told, and the room is free", || {
        let told = instance.run("describe pod greedy -n alice")?;
        ensure!(told.contains("Usage of EmptyDir volume") && told.contains("Evicted"), "{told}");
        let uid = instance.get("pod", "greedy", "alice")?["metadata"]["uid"].as_str().unwrap().to_owned();
        ensure!(!instance.path().join("agent/volumes/pods").join(uid).exists());
        Ok(())
    })?;
    let fits = instance.get("pod", "fits", "alice")?;
    assert_eq!(fits["status"]["phase"], "Running", "{}", fits["status"]);
    Ok(())
}

/// Mounts and unmounts a disk, and unmounts it when it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn over(at: &Path, disk: &Path, options: &str) -> Result<Self> {
        let (at, disk) = (at.display().to_string(), disk.display().to_string());
        command::run("mount", ["-o", options, disk.as_str(), at.as_str()])?;
        Ok(Self(at.into()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = command::run("umount", ["--lazy", &self.0.display().to_string()]);
    }
}

/// A person moves a claim to a disk of its own.
#[test]
fn a_pod_whose_claim_lost_its_disk_is_stopped_and_runs_again_when_it_is_back() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let manifest = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: alice}
spec: {resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: alice}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: a, image: busybox, args: [sh, -c, 'while true; do date > /data/now; sleep 0.2; done'],
    volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
";
    instance.apply(manifest)?;
    instance.run("wait pod/p -n alice --for condition=Ready --timeout 60s")?;
    sh(&instance, "p", "echo kept > /data/kept")?;
    instance.run("delete pod p -n alice --grace-period 1")?;
    let uid = instance.get("pvc", "data", "alice")?["metadata"]["uid"].as_str().unwrap().to_owned();
    let claim = instance.path().join(format!("agent/volumes/claims/alice/data.{uid}"));
    // A disk with what the claim had, mounted in the claim's place.
    let disk = instance.path().join("usb.disk");
    std::fs::File::create(&disk)?.set_len(32 << 20)?;
    command::run("mkfs.ext4", ["-q", disk.to_str().unwrap()])?;
    let old = claim.with_extension("old");
    std::fs::rename(&claim, &old)?;
    std::fs::create_dir(&claim)?;
    let mounted = Mounted::over(&claim, &disk, "loop")?;
    command::run("cp", ["-a", &format!("{}/.", old.display()), &claim.display().to_string()])?;
    instance.apply(manifest)?;
    instance.run("wait pod/p -n alice --for condition=Ready --timeout 60s")?;
    assert_eq!(sh(&instance, "p", "cat /data/kept")?, "kept\n");

    // Somebody pulls it.
    drop(mounted);
    let waits = |why: &str| {
        instance.eventually(why, || {
            let status = instance.get("pod", "p", "alice")?["status"].clone();
            let waiting = &status["containerStatuses"][0]["state"]["waiting"];
            ensure!(waiting["reason"] == "FailedMount", "{status}");
            ensure!(waiting["message"].as_str().is_some_and(|text| text.contains(why)), "{waiting}");
            Ok(())
        })
    };
    waits("is its disk mounted? No empty volume is made in its place")?;
    instance.eventually("nothing of it runs", || {
        ensure!(instance.container_pids(&instance.id()?, "date").is_empty());
        Ok(())
    })?;
    ensure!(instance.run("describe pod p -n alice")?.contains("FailedMount"), "people are told");
    assert_eq!(std::fs::read_dir(&claim)?.count(), 0, "nothing is written beneath");

    // Its file system is broken, and mounted read-only.
    let mounted = Mounted::over(&claim, &disk, "loop,ro")?;
    waits("is on a file system that is read-only")?;
    drop(mounted);
    let _mounted = Mounted::over(&claim, &disk, "loop")?;
    instance.run("wait pod/p -n alice --for condition=Ready --timeout 90s")?;
    assert_eq!(sh(&instance, "p", "cat /data/kept")?, "kept\n");
    Ok(())
}
