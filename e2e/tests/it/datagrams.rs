//! UDP ports of Routes before Debian's Knot DNS, and apps that want to know who calls.

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, free_ports, instance::Instance};
use hearth_types::{routes::Transport, tunnel::proxy::ProxyHeader};

/// `whoami.test` has the address of who asks, as the server sees it; `big.test` has 3 KB of text.
fn app() -> String {
    let text = format!("\"{}\" ", "x".repeat(250)).repeat(12);
    format!(
        r"
apiVersion: v1
kind: ConfigMap
metadata: {{name: knot, namespace: alice}}
data:
  knot.conf: |
    server:
      listen: 0.0.0.0@5300
      rundir: /tmp
      proxy-allowlist: [ 0.0.0.0/0 ]
      udp-workers: 1
      tcp-workers: 1
      background-workers: 1
      udp-max-payload: 4096
    database:
      storage: /tmp
    log:
      - target: stderr
        any: info
    zone:
      - domain: whoami.test
        file: /etc/knot/empty
        module: mod-whoami
      - domain: big.test
        file: /etc/knot/big
  empty: |
    @ 1 SOA ns hostmaster 1 1 1 1 1
    @ 1 NS ns
  big: |
    @ 1 SOA ns hostmaster 1 1 1 1 1
    @ 1 NS ns
    @ 1 TXT {text}
---
apiVersion: v1
kind: Pod
metadata: {{name: knot, namespace: alice, labels: {{app: knot}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: knot
    image: knot
    args: [-c, /etc/knot/knot.conf]
    ports: [{{name: dns, containerPort: 5300, protocol: UDP}}]
    readinessProbe: {{tcpSocket: {{port: 5300}}, periodSeconds: 1}}
    volumeMounts: [{{name: tmp, mountPath: /tmp}}, {{name: conf, mountPath: /etc/knot}}]
  - name: echo
    image: busybox
    args: [nc, -ll, -p, '9000', -e, busybox, cat]
    ports: [{{name: raw, containerPort: 9000}}]
  volumes: [{{name: tmp, emptyDir: {{}}}}, {{name: conf, configMap: {{name: knot}}}}]
"
    )
}

/// A program of Debian's with its libraries, as an image.
fn import_program(instance: &Instance, name: &str, program: &str) -> Result<()> {
    let archive = instance.path().join(format!("{name}.tar"));
    let mut build = instance.hearth(["image", "build", "--tag", name, "--entrypoint", program, "--copy"]);
    build.arg(format!("{program}:{program}:0755"));
    for line in command::run("ldd", [program])?.lines() {
        // `libc.so.6 => /lib/... (0x...)`, and the loader alone.
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(path) = path {
            build.arg("--copy").arg(format!("{path}:{path}:0755"));
        }
    }
    command::succeed(build.arg("--output").arg(&archive))?;
    instance.import(&archive)
}

/// What a name server at a port answers, asked by UDP alone from this address.
fn ask(port: u16, from: &str, name: &str, kind: &str) -> Result<String> {
    let port = port.to_string();
    let arguments = [
        "+short",
        "+notcp",
        "+ignore",
        "+bufsize=4096",
        "+retry=0",
        "+timeout=2",
        "@127.0.0.1",
        "-p",
        &port,
        "-b",
        from,
        name,
        kind,
    ];
    let answer = command::run("kdig", arguments)?;
    ensure!(!answer.trim().is_empty() && !answer.starts_with(";;"), "{answer}");
    Ok(answer.trim().to_owned())
}

#[test]
fn a_udp_port_leads_to_the_app_and_an_app_that_wants_to_know_is_told_who_calls() -> Result<()> {
    let port = free_ports(2)?;
    let instance = Instance::empty()?;
    let mut up = instance.up_command("none");
    up.args(["--port-range", &format!("{port}-{}", port + 1)]);
    command::succeed(&mut up).with_context(|| instance.logs())?;
    instance.import_busybox()?;
    let knotd = ["/usr/sbin/knotd", "/usr/local/sbin/knotd"].into_iter().find(|path| Path::new(path).exists());
    import_program(&instance, "knot", knotd.context("Debian's knot is needed: scripts/deps.sh test")?)?;
    instance.apply(&app())?;
    let route = |name: &str, protocol: &str, port: u16, target: &str, more: &str| {
        instance.apply(&format!(
            "{{apiVersion: hearth.dev/v1alpha1, kind: Route, metadata: {{name: {name}, namespace: alice}}, spec: {{hostname: \
             {name}.alice.hearth.internal, protocol: {protocol}, port: {port}, {more} target: {{selector: {{app: knot}}, port: {target}}}}}}}"
        ))
    };
    route("plain", "UDP", port, "dns", "")?;
    // The same number of the other transport is another port.
    route("echo", "TCP", port, "raw", "proxyProtocol: v2,")?;
    route("told", "UDP", port + 1, "dns", "proxyProtocol: v2,")?;
    instance.run("wait pod/knot -n alice --for=condition=Ready --timeout=60s").with_context(|| instance.logs())?;

    // The app sees its device, and where it asked for it, who calls.
    let seen = instance.eventually("the app answers", || ask(port, "127.0.0.7", "whoami.test", "A"))?;
    assert!(!seen.starts_with("127."), "{seen}");
    instance.eventually("the app knows who calls", || {
        let seen = ask(port + 1, "127.0.0.7", "whoami.test", "A")?;
        ensure!(seen == "127.0.0.7", "{seen}");
        Ok(())
    })?;
    assert_eq!(ask(port + 1, "127.0.0.8", "whoami.test", "A")?, "127.0.0.8");
    // Larger than a packet of the tunnel, or of the pod's link.
    assert_eq!(ask(port, "127.0.0.7", "big.test", "TXT")?.matches('x').count(), 3000);

    instance.eventually("the echo is told who calls", || {
        let mut tcp = TcpStream::connect(("127.0.0.1", port))?;
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        tcp.write_all(b"EHLO\n")?;
        let expected = ProxyHeader {
            transport: Transport::Tcp,
            caller: tcp.local_addr()?,
            called: tcp.peer_addr()?,
            authority: Some("echo.alice.hearth.internal".into()),
        };
        let expected = [&expected.encode()[..], b"EHLO\n"].concat();
        let mut got = vec![0; expected.len()];
        tcp.read_exact(&mut got)?;
        ensure!(got == expected, "{got:?}");
        Ok(())
    })?;

    // Without its app it is silent, and its port is nobody's once the Route is gone.
    instance.run("delete pod knot -n alice")?;
    instance.eventually("nobody answers", || {
        ensure!(ask(port, "127.0.0.7", "whoami.test", "A").is_err());
        Ok(())
    })?;
    instance.run("delete route plain -n alice")?;
    instance.eventually("nobody listens", || UdpSocket::bind(("127.0.0.1", port)).map(drop).map_err(Into::into))
}
