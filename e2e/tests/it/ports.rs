//! TCP ports of Routes, and what a gateway does with connections when it ends.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, free_port, instance::Instance};

/// Busybox with an echo on a port of bytes, and a large file over HTTP.
const APP: &str = "
apiVersion: v1
kind: Pod
metadata: {name: echo, namespace: alice, labels: {app: echo}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: echo
    image: busybox
    args: [sh, -c, 'mkdir -p /tmp/w; busybox dd if=/dev/zero of=/tmp/w/large bs=1M count=48; busybox httpd -p 8080 -h /tmp/w; exec busybox nc -ll -p 9000 -e busybox cat']
    ports: [{name: raw, containerPort: 9000}, {name: http, containerPort: 8080}]
    volumeMounts: [{name: tmp, mountPath: /tmp}]
  volumes: [{name: tmp, emptyDir: {}}]
";

fn route(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: hearth.dev/v1alpha1, kind: Route, metadata: {{name: {name}, namespace: alice}}, \
         spec: {{hostname: {name}.alice.hearth.internal, {spec}}}}}"
    )
}

fn started(flag: &str, value: &str) -> Result<Instance> {
    let instance = Instance::empty()?;
    command::succeed(instance.up_command("none").args([flag, value])).with_context(|| instance.logs())?;
    instance.import_busybox()?;
    instance.apply(APP)?;
    instance.run("wait pod/echo -n alice --for=condition=Ready --timeout=60s").with_context(|| instance.logs())?;
    Ok(instance)
}

/// Says something and hears it again.
fn echo(port: u16) -> Result<()> {
    let mut tcp = TcpStream::connect(("127.0.0.1", port))?;
    tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
    tcp.write_all(b"EHLO\n")?;
    let mut got = [0; 5];
    tcp.read_exact(&mut got)?;
    ensure!(&got == b"EHLO\n", "{got:?}");
    Ok(())
}

#[test]
fn a_port_leads_to_the_app_of_the_oldest_route_and_the_younger_one_is_told() -> Result<()> {
    let port = free_port()?;
    let instance = started("--port-range", &format!("{port}-{port}"))?;
    let raw = |port: u16| format!("protocol: TCP, port: {port}, target: {{selector: {{app: echo}}, port: raw}}");
    let accepted = |name: &str, status: &str, says: &str| {
        instance.eventually("the route is told", || {
            let condition = instance.condition("route", name, "alice", "Accepted")?;
            ensure!(
                condition["status"] == status && condition["message"].as_str().unwrap_or_default().contains(says),
                "{condition}"
            );
            Ok(())
        })
    };
    instance.apply(&route("one", &raw(port)))?;
    accepted("one", "True", "leads to it")?;
    instance.eventually("the port answers", || echo(port))?;
    // One that comes later, be it in the same second, has a later name.
    instance.apply(&route("two", &raw(port)))?;
    accepted("two", "False", "the older Route one")?;
    instance.apply(&route("far", &raw(if port == u16::MAX { port - 1 } else { port + 1 })))?;
    accepted("far", "False", "--port-range")?;
    echo(port)?;
    // The port's name is none for HTTPS.
    command::fail(&mut instance.curl("one.alice.hearth.internal", "/", &[])?)?;
    instance.run("delete route one -n alice")?;
    accepted("two", "True", "leads to it")?;
    instance.eventually("the port answers for the next", || echo(port))?;
    instance.run("delete route two -n alice")?;
    instance.eventually("nobody listens", || {
        ensure!(TcpStream::connect(("127.0.0.1", port)).is_err());
        Ok(())
    })
}

#[test]
fn a_server_that_is_told_to_stop_lets_a_download_end_and_takes_no_new_callers() -> Result<()> {
    // However slow the machine is, the download ends in that.
    let instance = started("--drain", "2m")?;
    instance.apply(&route("web", "target: {selector: {app: echo}, port: http}"))?;
    let host = "web.alice.hearth.internal";
    let small = ["--fail", "-o", "/dev/null", "-r", "0-1"];
    instance.eventually("it answers", || command::succeed(&mut instance.curl(host, "/large", &small)?))?;
    let (gateway, server) = (instance.address("gateway")?, instance.pids(" server "));
    let [server] = server[..] else { anyhow::bail!("one server was expected: {server:?}") };
    // More than the buffers on the way take, so that it is under way when the server is told, and shorter than it waits.
    let out = instance.path().join("large");
    let mut curl =
        instance.curl(host, "/large", &["--fail", "--limit-rate", "16M", "-o", &out.display().to_string()])?;
    let mut curl = curl.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    instance.eventually("the download has begun", || {
        ensure!(out.metadata()?.len() > 0);
        Ok(())
    })?;
    command::run("kill", ["-TERM", &server.to_string()])?;
    instance.eventually("nobody new is taken by the one that stops", || {
        let gone = !instance.pids(" server ").contains(&server);
        ensure!(gone || TcpStream::connect(&gateway).is_err());
        Ok(())
    })?;
    let status = curl.wait()?;
    let mut said = String::new();
    curl.stderr.take().context("stderr")?.read_to_string(&mut said)?;
    ensure!(status.success(), "{said}{}", instance.logs());
    ensure!(out.metadata()?.len() == 48 << 20, "{}", out.metadata()?.len());
    Ok(())
}
