//! The volumes of pods, with real containers.

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
      defaultMode: 288
      sources:
      - configMap: {name: conf}
      - secret: {name: login, items: [{key: password, path: db/password, mode: 256}]}
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
        ensure!(status["message"] == "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\".", "{status}");
        Ok(())
    })
}
