//! The way of a request: DNS, gateway, tunnel, ingress, app.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Stdio},
    sync::mpsc,
    thread,
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

/// The key and its answer in RFC 6455, section 1.3.
const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const WEBSOCKET_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A server that speaks just enough WebSocket: it takes the upgrade (RFC 6455, 4.2.2), then sends back what it gets.
const WEBSOCKET_SERVER: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: ws, namespace: alice}
data:
  serve: |
    #!/bin/sh
    key= upgrade=
    while read -r line; do
      line=$(printf %s "$line" | busybox tr -d '\r')
      [ -n "$line" ] || break
      case $line in
        [Ss]ec-[Ww]eb[Ss]ocket-[Kk]ey:*) key=${line#*: } ;;
        [Uu]pgrade:*) upgrade=${line#*: } ;;
        [Ff]orwarded:*) forwarded=${line#*: } ;;
        [Xx]-[Ff]orwarded-[Pp]roto:*) proto=${line#*: } ;;
      esac
    done
    if [ "$upgrade" != websocket ]; then printf 'HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n'; exit; fi
    accept=$(printf %s "${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11" | busybox sha1sum | busybox cut -c 1-40 | busybox xxd -r -p | busybox base64)
    printf 'HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: %s\r\nx-proto: %s\r\nx-was-forwarded: %s\r\n\r\n' "$accept" "$proto" "$forwarded"
    exec busybox cat
---
apiVersion: hearth.dev/v1alpha1
kind: App
metadata: {name: ws}
spec:
  containers:
  - name: web
    image: busybox
    args: [sh, -c, 'cp /conf/serve /tmp/serve; chmod 755 /tmp/serve; exec busybox nc -ll -p 8080 -e /tmp/serve']
    ports: [{name: http, containerPort: 8080}]
    volumeMounts: [{name: conf, mountPath: /conf}, {name: tmp, mountPath: /tmp}]
  volumes: [{name: conf, configMap: ws}, {name: tmp, size: 10Mi}]
  ingress: {port: http}
---
apiVersion: hearth.dev/v1alpha1
kind: Install
metadata: {name: ws, namespace: alice}
spec: {app: ws}
"#;

/// A TLS connection through the gateway that only sends what it is told to.
pub(crate) struct Tls {
    client: Child,
    from: mpsc::Receiver<Vec<u8>>,
    got: Vec<u8>,
}

impl Tls {
    pub(crate) fn connect(instance: &Instance, host: &str, alpn: &str) -> Result<Self> {
        let mut openssl = instance.program("openssl");
        openssl
            .args(["s_client", "-quiet", "-verify_return_error", "-servername", host, "-verify_hostname", host])
            .args(["-alpn", alpn, "-connect", &instance.address("gateway")?, "-CAfile"])
            .arg(instance.path().join("ca.pem"));
        let mut client = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut out = client.stdout.take().context("stdout")?;
        let (to, from) = mpsc::sync_channel(64);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                if to.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { client, from, got: Vec::new() })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.client.stdin.as_mut().context("stdin")?;
        stdin.write_all(bytes)?;
        Ok(stdin.flush()?)
    }

    /// Takes what came once `enough` says how much of it is a whole.
    pub(crate) fn receive(&mut self, enough: impl Fn(&[u8]) -> Option<usize>) -> Result<Vec<u8>> {
        loop {
            if let Some(length) = enough(&self.got) {
                return Ok(self.got.drain(..length).collect());
            }
            let more = self.from.recv_timeout(Duration::from_secs(20));
            self.got.extend(more.with_context(|| format!("got only {:?}", String::from_utf8_lossy(&self.got)))?);
        }
    }

    /// Waits for the other side's end of the connection.
    pub(crate) fn closed(&mut self) -> Result<()> {
        match self.from.recv_timeout(Duration::from_secs(20)) {
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(()),
            other => anyhow::bail!("not closed: {other:?}"),
        }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// A text frame of a client, which masks (RFC 6455, 5.2), with a length that fits 16 bits.
fn frame(text: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let length = u16::try_from(text.len()).unwrap().to_be_bytes();
    let mut frame = vec![0x81, 0x80 | 0x7e, length[0], length[1]];
    frame.extend(mask);
    frame.extend(text.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

#[test]
fn a_websocket_goes_through_gateway_and_tunnel_both_ways() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(WEBSOCKET_SERVER)?;
    instance.wait_ready("ws", "alice")?;
    let host = "ws.alice.hearth.internal";
    instance.eventually("it asks for the upgrade", || {
        let arguments = ["--http1.1", "-o", "/dev/null", "-w", "%{http_code}"];
        assert_eq!(command::succeed(&mut instance.curl(host, "/", &arguments)?)?, "426");
        Ok(())
    })?;
    let mut tls = Tls::connect(&instance, host, "http/1.1")?;
    let request = format!(
        "GET /chat HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {WEBSOCKET_KEY}\r\n\
         Forwarded: for=6.6.6.6\r\n\
         Sec-WebSocket-Version: 13\r\n\r\n"
    );
    tls.send(request.as_bytes())?;
    let head = tls.receive(|got| got.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4))?;
    let head = String::from_utf8(head)?.to_lowercase();
    ensure!(head.starts_with("http/1.1 101 "), "{head}");
    ensure!(head.contains(&format!("sec-websocket-accept: {}\r\n", WEBSOCKET_ACCEPT.to_lowercase())), "{head}");
    ensure!(head.contains("upgrade: websocket") && head.contains("x-proto: https"), "{head}");
    ensure!(head.contains(&format!("x-was-forwarded: for=127.0.0.1;host={host};proto=https\r\n")), "{head}");
    // To and fro, small and large, with the connection kept in between.
    for size in [5, 60_000, 1, 20_000] {
        let sent = frame(&vec![b'w'; size]);
        tls.send(&sent)?;
        let got = tls.receive(|got| (got.len() >= sent.len()).then_some(sent.len()))?;
        ensure!(got == sent, "a frame of {size} came back changed");
    }
    // The end of the app is the end of the connection.
    let id = instance.id()?;
    for pid in instance.container_pids(&id, "busybox cat") {
        instance.kill9(pid)?;
    }
    tls.closed()
}

#[test]
fn many_requests_on_many_connections_go_through_without_a_failure() -> Result<()> {
    let instance = Instance::up("notes")?;
    let gateway = instance.address("gateway")?;
    let port = gateway.rsplit_once(':').context("an address")?.1;
    // h2load knows no other names than DNS has, so that it connects elsewhere than the URL says.
    let url = format!("https://{HOST}:{port}/healthz");
    let text = run("h2load", ["-n", "2000", "-c", "20", "-m", "10", "--connect-to", &gateway, &url])?;
    ensure!(text.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
    ensure!(text.contains("Application protocol: h2"), "{text}");
    Ok(())
}
