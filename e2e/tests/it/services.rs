//! Services: names under which pods of a device reach each other, and who does not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::instance::Instance;

/// A server without internet, and Services that lead to it.
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
        args: [sh, -c, 'mkdir -p /tmp/w; echo rows > /tmp/w/index.html; touch /tmp/ready; exec busybox httpd -f -p 8080 -h /tmp/w']
        ports: [{name: http, containerPort: 8080}, {name: raw, containerPort: 9000, protocol: UDP}]
        readinessProbe: {exec: {command: [busybox, test, -e, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}
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
         {{terminationGracePeriodSeconds: 1, containers: [{{name: c, image: busybox, args: [sleep, '3600'], \
         resources: {{limits: {{memory: 16Mi, cpu: 200m}}}}}}]}}}}\n"
    )
}

/// What a command says in a pod.
fn exec(instance: &Instance, pod: &str, namespace: &str, command: &str) -> Result<String> {
    let mut hearth = instance.hearth(["exec", pod, "-n", namespace, "--", "busybox", "sh", "-c", command]);
    hearth_e2e::command::succeed(&mut hearth)
}

/// Whether a pod is served at a name or address. Not by wget: of a static program, it looks up names by libraries that an image of one
/// file has not.
fn served(instance: &Instance, pod: &str, namespace: &str, to: &str, port: u16) -> Result<()> {
    let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 {to} {port} 2>&1 | busybox tail -n 1");
    let line = exec(instance, pod, namespace, &ask)?;
    ensure!(line == "rows\n", "{pod} at {to}:{port}: {line:?}");
    Ok(())
}

fn refused(instance: &Instance, pod: &str, namespace: &str, to: &str, port: u16) -> Result<()> {
    ensure!(served(instance, pod, namespace, to, port).is_err(), "{pod} is served at {to}:{port}");
    Ok(())
}

#[test]
fn pods_reach_a_service_of_their_owner_by_its_names_and_nobody_else_does() -> Result<()> {
    let instance = Instance::empty()?;
    instance.start("none").with_context(|| instance.logs())?;
    instance.import_busybox()?;
    // So that another owner has a pod beside them.
    let device = instance.list("device", "default")?;
    let device = device[0]["metadata"]["name"].as_str().context("a device")?.to_owned();
    instance.run(&format!(
        r#"patch device {device} --type=merge -p {{"spec":{{"lend":{{"cpu":"1","memory":"256Mi"}}}}}}"#
    ))?;
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

    // By every name; a pod without internet, too.
    for (name, port) in
        [("db", 80), ("db.alice", 80), ("db.alice.svc", 80), ("db.alice.svc.cluster.local", 80), ("peers", 8080)]
    {
        instance.eventually("the client is served", || served(&instance, "web", "alice", name, port))?;
    }
    for pod in ["offline", "granted"] {
        served(&instance, pod, "alice", "db", 80)?;
    }
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
        for (to, port) in [("db.alice.svc.cluster.local", 80), (&address, 80), (&pod_ip, 8080)] {
            refused(&instance, pod, namespace, to, port)?;
        }
    }
    refused(&instance, "web", "alice", &pod_ip, 8080)?;
    refused(&instance, "web", "alice", "others", 80)?;
    served(&instance, "installed", "alice", "others", 80)?;

    // What people see of it.
    let table = instance.run("get services -n alice")?;
    let row = table.lines().find(|line| line.starts_with("db ")).with_context(|| table.clone())?;
    let cells: Vec<&str> = row.split_whitespace().collect();
    ensure!(cells[..5] == ["db", "ClusterIP", "<per-device>", "<none>", "80/TCP,5432/UDP"], "{row}");
    ensure!(instance.run("get svc peers -n alice")?.contains("None"));
    ensure!(instance.run("explain service.spec.ports.targetPort")?.contains("targetPort"));
    let told = instance.apply_refused(
        "{apiVersion: v1, kind: Service, metadata: {name: out, namespace: alice}, \
         spec: {type: LoadBalancer, selector: {app: db}, ports: [{port: 80}]}}",
    )?;
    ensure!(told.contains("spec.type") && told.contains("kind Route"), "{told}");

    // Whoever is not ready is not called, soon after it is found out; and again when it is.
    let touch = |verb: &str| instance.run(&format!("exec deployment/db -n alice -- busybox {verb} /tmp/ready"));
    touch("rm")?;
    let begun = Instant::now();
    instance.eventually("nobody is called", || refused(&instance, "web", "alice", "db", 80))?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    touch("touch")?;
    instance.eventually("it is called again", || served(&instance, "web", "alice", "db", 80))?;

    // Edited: another port.
    instance.run(
        r#"patch service db -n alice --type=merge -p {"spec":{"ports":[{"name":"http","port":81,"targetPort":"http"}]}}"#,
    )?;
    instance.eventually("the new port is served", || served(&instance, "web", "alice", "db", 81))?;
    refused(&instance, "web", "alice", "db", 80)?;
    instance.run("delete service db -n alice")?;
    instance.eventually("its name is gone", || {
        let found = exec(&instance, "web", "alice", "busybox nslookup db.alice.svc.cluster.local || true")?;
        ensure!(found.contains("NXDOMAIN"), "{found}");
        Ok(())
    })
}
