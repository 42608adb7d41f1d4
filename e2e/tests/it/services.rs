//! Services: names under which pods of a device reach each other, and who does not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::instance::Instance;

/// A server behind two ports of a Service, the client that calls it by its names, and pods that must not.
const APPS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: db, namespace: alice}
spec:
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}, annotations: {hearth.dev/internet: 'false'}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: db
        image: busybox
        args: [sh, -c, 'mkdir -p /tmp/w; echo rows > /tmp/w/index.html; touch /tmp/ready; busybox httpd -p 8080 -h /tmp/w; exec busybox nc -ll -u -p 9000 -e busybox cat']
        ports: [{name: http, containerPort: 8080}, {name: raw, containerPort: 9000, protocol: UDP}]
        readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}
        volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: alice}
spec:
  selector: {app: db}
  ports: [{name: http, port: 80, targetPort: http}, {name: raw, port: 5432, targetPort: raw, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: alice}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: others, namespace: alice, labels: {hearth.dev/install: other}}
spec: {selector: {app: db}, ports: [{port: 80, targetPort: http}]}
";

fn idle(name: &str, namespace: &str, metadata: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, {metadata}}}, spec: \
         {{terminationGracePeriodSeconds: 1, containers: [{{name: c, image: busybox, args: [sleep, '3600']}}]}}}}\n"
    )
}

/// What a command says in a pod.
fn exec(instance: &Instance, pod: &str, namespace: &str, command: &str) -> Result<String> {
    let mut hearth = instance.hearth(["exec", pod, "-n", namespace, "--", "busybox", "sh", "-c", command]);
    hearth_e2e::command::succeed(&mut hearth)
}

fn wget(instance: &Instance, pod: &str, namespace: &str, url: &str) -> Result<String> {
    exec(instance, pod, namespace, &format!("busybox wget -q -T 5 -O - {url}"))
}

#[test]
fn pods_reach_a_service_of_their_owner_by_its_names_and_nobody_else_does() -> Result<()> {
    let instance = Instance::empty()?;
    instance.start("none").with_context(|| instance.logs())?;
    instance.import_busybox()?;
    let pods = [
        idle("web", "alice", "labels: {app: web}"),
        idle("offline", "alice", "annotations: {hearth.dev/internet: 'false'}"),
        idle("installed", "alice", "labels: {hearth.dev/install: other}"),
        idle("granted", "alice", "labels: {hearth.dev/install: other}, annotations: {hearth.dev/services: db}"),
        idle("stranger", "bob", "annotations: {hearth.dev/services: db}"),
    ];
    instance.apply(&format!("{APPS}{}", pods.concat()))?;
    for (pod, namespace) in
        [("web", "alice"), ("offline", "alice"), ("installed", "alice"), ("granted", "alice"), ("stranger", "bob")]
    {
        instance
            .run(&format!("wait pod/{pod} -n {namespace} --for=condition=Ready --timeout=60s"))
            .with_context(|| instance.logs())?;
    }
    instance.run("wait deployment/db -n alice --for=condition=Available --timeout=60s")?;

    // By every name, and by the port's name; from a pod without internet, too.
    for name in ["db", "db.alice", "db.alice.svc", "db.alice.svc.cluster.local", "peers:8080"] {
        let rows = instance
            .eventually("the client is served", || wget(&instance, "web", "alice", &format!("http://{name}/")))?;
        ensure!(rows == "rows\n", "{name}: {rows:?}");
    }
    for pod in ["offline", "granted"] {
        let rows = wget(&instance, pod, "alice", "http://db/").with_context(|| pod.to_owned())?;
        ensure!(rows == "rows\n", "{pod}: {rows:?}");
    }
    let echoed = exec(&instance, "web", "alice", "echo hello | busybox timeout 3 busybox nc -u -w 1 db 5432 || true")?;
    ensure!(echoed == "hello\n", "{echoed:?}");
    let resolv = exec(&instance, "web", "alice", "cat /etc/resolv.conf")?;
    ensure!(resolv.starts_with("search alice.svc.cluster.local svc.cluster.local cluster.local\n"), "{resolv}");

    // An address of a Service serves those alone that may use it, and for the others it has no name.
    let found = exec(&instance, "web", "alice", "busybox nslookup db.alice.svc.cluster.local | tail -n +3")?;
    let address = found.split_whitespace().find(|word| word.parse::<std::net::Ipv4Addr>().is_ok());
    let address = address.with_context(|| found.clone())?.to_owned();
    let pod_ip = instance.list("pod", "alice")?;
    let pod_ip = pod_ip.iter().find(|pod| pod["metadata"]["labels"]["app"] == "db").context("the server")?;
    let pod_ip = pod_ip["status"]["podIP"].as_str().context("an address")?.to_owned();
    for (pod, namespace) in [("stranger", "bob"), ("installed", "alice")] {
        for url in ["db.alice.svc.cluster.local", &address, &format!("{pod_ip}:8080")] {
            let refused = wget(&instance, pod, namespace, &format!("http://{url}/")).expect_err("not its Service");
            ensure!(!refused.to_string().contains("rows"), "{refused}");
        }
    }
    wget(&instance, "web", "alice", &format!("http://{pod_ip}:8080/")).expect_err("only by the Service");
    wget(&instance, "web", "alice", "http://others/").expect_err("a Service of an Install is its own pods'");
    ensure!(wget(&instance, "installed", "alice", "http://others/")? == "rows\n");

    // What people see of it.
    let table = instance.run("get services -n alice")?;
    let row = table.lines().find(|line| line.starts_with("db ")).with_context(|| table.clone())?;
    let cells: Vec<&str> = row.split_whitespace().collect();
    ensure!(cells[..5] == ["db", "ClusterIP", "<per-device>", "<none>", "80/TCP,5432/UDP"], "{row}");
    ensure!(instance.run("get svc peers -n alice")?.contains("None"));
    ensure!(instance.run("explain service.spec.ports.targetPort")?.contains("targetPort"));
    let refused = instance.apply_refused(
        "{apiVersion: v1, kind: Service, metadata: {name: out, namespace: alice}, \
         spec: {type: LoadBalancer, selector: {app: db}, ports: [{port: 80}]}}",
    )?;
    ensure!(refused.contains("spec.type") && refused.contains("kind Route"), "{refused}");

    // Whoever is not ready is not called, within a second or so of being found out; and again when it is.
    let db = "deployment/db -n alice";
    let touch = |verb: &str| instance.run(&format!("exec {db} -- busybox {verb} /tmp/ready"));
    touch("rm")?;
    let begun = Instant::now();
    instance.eventually("nobody is called", || {
        ensure!(wget(&instance, "web", "alice", "http://db/").is_err());
        Ok(())
    })?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    touch("touch")?;
    instance.eventually("it is called again", || wget(&instance, "web", "alice", "http://db/"))?;

    // Edited: another port, at once.
    instance.run(r#"patch service db -n alice --type=merge -p {"spec":{"ports":[{"name":"http","port":81,"targetPort":"http"}]}}"#)?;
    instance.eventually("the new port is served", || wget(&instance, "web", "alice", "http://db:81/"))?;
    instance.eventually("the old one is not", || {
        ensure!(wget(&instance, "web", "alice", "http://db/").is_err());
        Ok(())
    })?;
    instance.run("delete service db -n alice")?;
    instance.eventually("its name is gone", || {
        ensure!(exec(&instance, "web", "alice", "busybox nslookup db.alice.svc.cluster.local").is_err());
        Ok(())
    })
}
