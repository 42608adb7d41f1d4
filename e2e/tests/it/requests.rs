//! The way of a request: DNS, gateway, tunnel, ingress, app.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command::{self, run},
    instance::Instance,
};

const HOST: &str = "notes.alice.hearth.internal";

fn dig(instance: &Instance, arguments: &[&str]) -> Result<String> {
    let dns = instance.address("dns")?;
    let (ip, port) = dns.rsplit_once(':').context("an address")?;
    let mut all = vec![format!("@{ip}"), "-p".into(), port.to_owned()];
    all.extend(arguments.iter().map(|one| (*one).to_owned()));
    run("kdig", all)
}

#[test]
fn names_are_answered_over_udp_and_tcp() -> Result<()> {
    let instance = Instance::up("notes")?;
    for transport in ["+notcp", "+tcp"] {
        let answer = dig(&instance, &[transport, HOST, "A"])?;
        ensure!(answer.contains("NOERROR") && answer.contains("127.0.0.1") && answer.contains(" aa"), "{answer}");
        let answer = dig(&instance, &[transport, "nobody.alice.hearth.internal", "A"])?;
        ensure!(answer.contains("NXDOMAIN") && answer.contains("SOA"), "{answer}");
        let answer = dig(&instance, &[transport, "example.com", "A"])?;
        ensure!(answer.contains("REFUSED"), "{answer}");
        let answer = dig(&instance, &[transport, "hearth.internal", "SOA"])?;
        ensure!(answer.contains("NOERROR") && answer.contains("SOA"), "{answer}");
    }
    let answer = dig(&instance, &["alice.hearth.internal", "A"])?;
    ensure!(answer.contains("NOERROR"), "an empty non-terminal exists: {answer}");
    instance.run("delete install notes -n alice")?;
    instance.eventually("the name goes with its Install", || {
        let answer = dig(&instance, &[HOST, "A"])?;
        ensure!(answer.contains("NXDOMAIN"), "{answer}");
        Ok(())
    })
}

#[test]
fn http_1_and_2_reach_the_app_with_the_callers_address() -> Result<()> {
    let instance = Instance::up("notes")?;
    for version in ["--http1.1", "--http2"] {
        let body =
            command::succeed(&mut instance.curl(HOST, "/healthz", &[version, "--fail", "-w", " %{http_version}"])?)?;
        ensure!(body.ends_with(if version == "--http2" { " 2" } else { " 1.1" }), "{body}");
    }
    // A forged address is replaced.
    command::succeed(&mut instance.curl(HOST, "/api/notes", &["--fail", "-H", "X-Forwarded-For: 6.6.6.6"])?)?;
    instance.eventually("the app's log has the caller", || {
        let log = instance.run("logs install/notes -n alice")?;
        ensure!(log.contains("127.0.0.1"), "{log}");
        ensure!(!log.contains("6.6.6.6"), "{log}");
        Ok(())
    })
}

#[test]
fn a_large_body_goes_through_whole_both_ways() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    // busybox httpd with a CGI that answers with what it was sent.
    instance.apply(
        "
apiVersion: v1
kind: ConfigMap
metadata: {name: cgi, namespace: alice}
data:
  echo: |
    #!/bin/sh
    echo content-type: application/octet-stream
    echo
    exec /bin/busybox head -c \"$CONTENT_LENGTH\"
---
apiVersion: hearth.dev/v1alpha1
kind: App
metadata: {name: echo}
spec:
  containers:
  - name: web
    image: busybox
    args: [sh, -c, 'mkdir -p /w/cgi-bin; cp /conf/echo /w/cgi-bin/echo; chmod 755 /w/cgi-bin/echo; exec httpd -f -p 8080 -h /w']
    ports: [{name: http, containerPort: 8080}]
    volumeMounts: [{name: conf, mountPath: /conf}]
  volumes: [{name: conf, configMap: cgi}]
  ingress: {port: http}
---
apiVersion: hearth.dev/v1alpha1
kind: Install
metadata: {name: echo, namespace: alice}
spec: {app: echo}
",
    )?;
    instance.wait_ready("echo", "alice")?;
    let dir = tempfile::tempdir()?;
    let (sent, got) = (dir.path().join("sent"), dir.path().join("got"));
    let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&sent, &bytes)?;
    let (data, out) = (format!("@{}", sent.display()), got.display().to_string());
    let arguments = ["--fail", "--data-binary", &data, "-o", &out, "-H", "content-type: application/octet-stream"];
    command::succeed(&mut instance.curl("echo.alice.hearth.internal", "/cgi-bin/echo", &arguments)?)?;
    ensure!(std::fs::read(&got)? == bytes, "the body came back changed");
    Ok(())
}

#[test]
fn names_that_nobody_has_are_refused_at_once_and_plain_http_is_redirected() -> Result<()> {
    let instance = Instance::up("notes")?;
    let started = Instant::now();
    let error = command::fail(&mut instance.curl("nobody.alice.hearth.internal", "/", &[])?)?;
    ensure!(error.contains("unrecognized name") || error.contains("alert"), "{error}");
    ensure!(started.elapsed() < Duration::from_secs(5), "it hung for {:?}", started.elapsed());
    let gateway = instance.address("gateway")?;
    let (ip, port) = gateway.rsplit_once(':').context("an address")?;
    let resolve = format!("{HOST}:{port}:{ip}");
    let text = run("curl", ["-sS", "-i", "--resolve", &resolve, &format!("http://{HOST}:{port}/a?b=c")])?;
    ensure!(text.contains(" 308 ") && text.contains(&format!("https://{HOST}:{port}/a?b=c")), "{text}");
    // A client that says nothing is let go.
    let mut silent = TcpStream::connect(&gateway)?;
    silent.set_read_timeout(Some(Duration::from_secs(30)))?;
    silent.write_all(b"\x16\x03\x01")?;
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).context("a half-open connection is closed by the gateway")?;
    Ok(())
}

#[test]
fn an_app_that_is_down_gets_a_clear_page() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(
        "{apiVersion: hearth.dev/v1alpha1, kind: App, metadata: {name: broken}, spec: {containers: [{name: web, image: busybox, \
         args: [sh, -c, 'exit 5'], ports: [{name: http, containerPort: 8080}]}], ingress: {port: http}}}",
    )?;
    instance.apply("{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {name: broken, namespace: alice}, spec: {app: broken}}")?;
    instance.eventually("the page tells", || {
        let done = command::output(
            &mut instance.curl("broken.alice.hearth.internal", "/", &["-i", "-H", "accept: text/html"])?,
            b"",
            command::LIMIT,
        )?;
        let text = String::from_utf8_lossy(&done.stdout).to_lowercase();
        ensure!(text.starts_with("http/2 503"), "{text}{}", String::from_utf8_lossy(&done.stderr));
        ensure!(text.contains("<html") && text.contains("retry-after"), "{text}");
        Ok(())
    })?;
    // After the first failure it is started again; from then on it waits.
    instance.eventually("the Install says why", || {
        let install = instance.run("get install broken -n alice -o wide")?;
        ensure!(install.contains("CrashLoopBackOff"), "{install}");
        Ok(())
    })
}
