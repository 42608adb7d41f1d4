//! The volumes of pods, with real containers.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use hearth_e2e::{command, instance::Instance};

fn inside(instance: &Instance, script: &str) -> Result<String> {
    inside_of(instance, "main", script)
}

fn inside_of(instance: &Instance, container: &str, script: &str) -> Result<String> {
    let mut exec = instance.hearth(["exec", "p", "-n", "alice", "-c", container, "--", "sh", "-c", script]);
    Ok(command::succeed(&mut exec)?.trim_end().to_owned())
}

#[test]
fn a_pod_is_told_of_itself_and_has_several_sources_in_one_volume() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(
        r#"
{apiVersion: v1, kind: ConfigMap, metadata: {name: conf, namespace: alice}, data: {greeting: hello}}
---
{apiVersion: v1, kind: Secret, metadata: {name: login, namespace: alice}, stringData: {password: hunter2}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: alice, labels: {app: web, tier: front}, annotations: {note: 'two "words"'}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    args: [sh, -c, 'sleep 100000']
    resources: {limits: {cpu: 1500m, memory: 64Mi}}
    env:
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    volumeMounts: [{name: all, mountPath: /all}]
  volumes:
  - name: all
    projected:
      defaultMode: 0440
      sources:
      - configMap: {name: conf}
      - secret: {name: login, items: [{key: password, path: db/password, mode: 0400}]}
      - downwardAPI:
          items:
          - {path: labels, fieldRef: {fieldPath: metadata.labels}}
          - {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: 1Mi}}
"#,
    )?;
    instance.run("wait pod/p -n alice --for=condition=Ready --timeout=60s")?;
    let pod = instance.get("pod", "p", "alice")?;
    let told = inside(&instance, "echo $NAME $APP $IP $NODE $CPU")?;
    let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
    ensure!(told == format!("p web {ip} nas 2"), "{told}");
    let files = inside(&instance, "cd /all; cat greeting db/password memory; echo; cat labels")?;
    ensure!(files == "hellohunter264\napp=\"web\"\ntier=\"front\"", "{files}");
    let modes = inside(&instance, "cd /all; stat -L -c %a greeting db/password")?;
    ensure!(modes == "440\n400", "{modes}");
    // What a source becomes is seen by the running container.
    instance
        .apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: conf, namespace: alice}, data: {greeting: bye}}")?;
    instance.eventually("the update is there", || {
        ensure!(inside(&instance, "cat /all/greeting")? == "bye");
        Ok(())
    })
}

#[test]
fn memory_outlives_containers_and_the_agent_and_parts_of_volumes_stay_in_them() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(
        r"
{apiVersion: v1, kind: ConfigMap, metadata: {name: conf, namespace: alice}, data: {app.conf: 'x=1'}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: alice}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    args: [sh, -c, 'trap exit TERM; sleep 100000 & wait']
    env: [{name: WHO, value: main}]
    volumeMounts:
    - {name: cache, mountPath: /cache}
    - {name: disk, mountPath: /own, subPathExpr: of/$(WHO)}
    - {name: conf, mountPath: /etc/app.conf, subPath: app.conf}
  - name: side
    image: busybox
    args: [sh, -c, 'sleep 100000']
    volumeMounts: [{name: cache, mountPath: /cache}, {name: disk, mountPath: /all}]
  volumes:
  - {name: cache, emptyDir: {medium: Memory, sizeLimit: 4Mi}}
  - {name: disk, emptyDir: {}}
  - {name: conf, configMap: {name: conf}}
",
    )?;
    instance.run("wait pod/p -n alice --for=condition=Ready --timeout=60s")?;
    let kind = inside(&instance, "grep ' /cache ' /proc/mounts | cut -d' ' -f3; cat /etc/app.conf")?;
    ensure!(kind == "tmpfs\nx=1", "{kind}");
    inside(
        &instance,
        "echo kept > /cache/x; echo mine > /own/file; ! dd if=/dev/zero of=/cache/large bs=64k count=80 2>/dev/null; rm /cache/large",
    )?;
    ensure!(inside_of(&instance, "side", "cat /cache/x /all/of/main/file")? == "kept\nmine");
    // The container ends and is started again; then the agent is killed and comes back.
    let restarts = |instance: &Instance| -> Result<u64> {
        let pod = instance.get("pod", "p", "alice")?;
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        Ok(all.iter().filter(|one| one["name"] == "main").filter_map(|one| one["restartCount"].as_u64()).sum())
    };
    let _ = inside(&instance, "kill -TERM 1");
    instance.eventually("it runs again", || {
        ensure!(restarts(&instance)? == 1);
        ensure!(inside(&instance, "cat /cache/x /own/file")? == "kept\nmine");
        Ok(())
    })?;
    for pid in instance.pids("hearth agent") {
        instance.kill9(pid)?;
    }
    instance.eventually("the agent is back and knows it", || {
        ensure!(inside(&instance, "cat /cache/x")? == "kept");
        Ok(())
    })?;
    ensure!(restarts(&instance)? == 1, "nothing was restarted for that");
    instance.run("delete pod p -n alice")?;
    instance.eventually("it is gone", || {
        ensure!(instance.pids("hearth shim").is_empty());
        Ok(())
    })
}

#[test]
fn a_pods_group_has_its_volumes() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(
        r"
{apiVersion: v1, kind: Secret, metadata: {name: login, namespace: alice}, stringData: {password: hunter2}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: alice}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: alice}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000, supplementalGroups: [3000]}
  containers:
  - name: main
    image: busybox
    args: [sh, -c, 'sleep 100000']
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: cache, mountPath: /cache}
    - {name: disk, mountPath: /disk}
    - {name: login, mountPath: /login}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: cache, emptyDir: {medium: Memory}}
  - {name: disk, emptyDir: {}}
  - {name: login, secret: {secretName: login, defaultMode: 256}}
",
    )?;
    instance.run("wait pod/p -n alice --for=condition=Ready --timeout=60s")?;
    let ids = inside(&instance, "id -u; id -g; id -G")?;
    ensure!(ids == "1000\n1000\n1000 3000 2000" || ids == "1000\n1000\n1000 2000 3000", "{ids}");
    let groups = inside(
        &instance,
        "for one in data cache disk; do mkdir /$one/new; stat -c '%g %a' /$one; stat -c %g /$one/new; done; cat /login/password",
    )?;
    ensure!(groups == "2000 2777\n2000\n2000 2777\n2000\n2000 2777\n2000\nhunter2", "{groups}");
    Ok(())
}

#[test]
fn a_pod_that_takes_more_disk_than_it_may_is_evicted() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: alice, labels: {tier: one}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    args: [sh, -c, 'sleep 100000']
    volumeMounts: [{name: cache, mountPath: /cache}, {name: self, mountPath: /self}]
  volumes:
  - {name: cache, emptyDir: {sizeLimit: 1Mi}}
  - {name: self, downwardAPI: {items: [{path: tier, fieldRef: {fieldPath: "metadata.labels['tier']"}}]}}
"#,
    )?;
    instance.run("wait pod/p -n alice --for=condition=Ready --timeout=60s")?;
    // What the pod is told of itself follows.
    instance.run("label pod p -n alice tier=two --overwrite")?;
    instance.eventually("the file follows the label", || {
        ensure!(inside(&instance, "cat /self/tier")? == "two");
        Ok(())
    })?;
    inside(&instance, "dd if=/dev/zero of=/cache/big bs=64k count=64 2>/dev/null")?;
    instance.eventually("it is evicted", || {
        let status = instance.get("pod", "p", "alice")?["status"].clone();
        ensure!(status["phase"] == "Failed" && status["reason"] == "Evicted", "{status}");
        ensure!(status["message"] == "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ", "{status}");
        Ok(())
    })
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

/// Mounts and unmounts a disk, and unmounts it when it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn over(at: &Path, disk: &Path) -> Result<Self> {
        command::run("mount", ["-o", "loop", &disk.display().to_string(), &at.display().to_string()])?;
        Ok(Self(at.to_owned()))
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
    inside_of(&instance, "a", "echo kept > /data/kept")?;
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
    let mounted = Mounted::over(&claim, &disk)?;
    command::run("cp", ["-a", &format!("{}/.", old.display()), &claim.display().to_string()])?;
    instance.apply(manifest)?;
    instance.run("wait pod/p -n alice --for condition=Ready --timeout 60s")?;
    assert_eq!(inside_of(&instance, "a", "cat /data/kept")?, "kept");

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

    // It is back, and takes no writes, as after errors; whether the pod has started again by then or not.
    let _mounted = Mounted::over(&claim, &disk)?;
    let remount = |how: &str| command::run("mount", ["-o", how, &claim.display().to_string()]);
    remount("remount,bind,ro")?;
    waits("is on a file system that is read-only")?;
    remount("remount,bind,rw")?;
    instance.eventually("it runs again", || {
        let status = instance.get("pod", "p", "alice")?["status"].clone();
        ensure!(status["containerStatuses"][0]["ready"] == true, "{}", status["containerStatuses"]);
        Ok(())
    })?;
    assert_eq!(inside_of(&instance, "a", "cat /data/kept")?, "kept");
    Ok(())
}
