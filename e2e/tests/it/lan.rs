//! Names inside the home: told where the owner wants it, and served there without a gateway.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance, netns::Netns};

const APP: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: alice, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: busybox
    args: [sh, -c, 'mkdir -p /tmp/w; echo hello > /tmp/w/index.html; exec busybox httpd -f -p 8080 -h /tmp/w']
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
    volumeMounts: [{name: tmp, mountPath: /tmp}]
  volumes: [{name: tmp, emptyDir: {}}]
---
apiVersion: hearth.dev/v1alpha1
kind: Route
metadata: {name: web, namespace: alice}
spec: {hostname: web.alice.hearth.internal, target: {selector: {app: web}, port: http}}
";
const INSIDE: &str = "web.lan.alice.hearth.internal";

/// What the region's name server answers, a record a line.
fn dig(instance: &Instance, name: &str, kind: &str) -> Result<Vec<String>> {
    let dns = instance.address("dns")?;
    let (ip, port) = dns.rsplit_once(':').context("an address")?;
    let mut kdig = instance.program("kdig");
    let answer = command::succeed(kdig.args(["+short", &format!("@{ip}"), "-p", port, name, kind]))?;
    Ok(answer.lines().map(str::to_owned).collect())
}

fn told(instance: &Instance, kind: &str, expected: &[&str]) -> Result<()> {
    instance.eventually("the name is told", || {
        let found = dig(instance, INSIDE, kind)?;
        ensure!(found == expected, "{kind}: {found:?}");
        Ok(())
    })
}

#[test]
fn a_neighbour_finds_the_app_inside_the_home_while_its_owner_wants_that() -> Result<()> {
    let (home, neighbour) = (Netns::new("home")?, Netns::new("guest")?);
    home.link(
        "up0",
        &["192.168.77.10/24", "fd77::10/64", "203.0.113.9/24"],
        &neighbour,
        "eth0",
        &["192.168.77.1/24", "fd77::1/64"],
    )?;
    home.run("ip route add default via 192.168.77.1")?;
    let instance = Instance::empty()?.in_netns(home.name());
    instance.start("none").with_context(|| instance.logs())?;
    instance.import_busybox()?;
    instance.apply(APP)?;
    instance.run("wait pod/web -n alice --for=condition=Ready --timeout=60s").with_context(|| instance.logs())?;
    instance.eventually("it answers by the gateway", || instance.fetch("web.alice.hearth.internal", "/"))?;
    assert_eq!(dig(&instance, INSIDE, "A")?, Vec::<String>::new(), "its owner said nothing");

    let devices = instance.list("device", "default")?;
    let device = devices[0]["metadata"]["name"].as_str().context("a device")?;
    let publish = |lan: bool| {
        instance.run(&format!(r#"patch device {device} --type=merge -p {{"spec":{{"publish":{{"lan":{lan}}}}}}}"#))
    };
    publish(true)?;
    told(&instance, "A", &["192.168.77.10"])?;
    told(&instance, "AAAA", &["fd77::10"])?;
    let public = dig(&instance, "web.alice.hearth.internal", "A")?;
    assert!(!public.is_empty() && public.iter().all(|ip| !ip.starts_with("192.168.")), "{public:?}");
    let ask = |name: &str, ip: &str| {
        let mut curl = neighbour.program("curl");
        curl.args(["-sS", "--fail", "--max-time", "10", "--cacert"]).arg(instance.path().join("ca.pem"));
        let body =
            command::succeed(curl.args(["--resolve", &format!("{name}:443:{ip}"), &format!("https://{name}/")]))?;
        ensure!(body == "hello\n", "{body}");
        Ok(())
    };
    for ip in ["192.168.77.10", "fd77::10"] {
        instance.eventually("a neighbour is served", || ask(INSIDE, ip))?;
    }
    // A name that is nobody's gets no certificate.
    ask("other.lan.alice.hearth.internal", "192.168.77.10").expect_err("not served");

    // The router gave it another address.
    home.run("ip address delete 192.168.77.10/24 dev up0")?;
    home.run("ip address add 192.168.77.20/24 dev up0")?;
    home.run("ip route replace default via 192.168.77.1")?;
    let begun = Instant::now();
    told(&instance, "A", &["192.168.77.20"])?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    instance.eventually("a neighbour is served there", || ask(INSIDE, "192.168.77.20"))?;

    publish(false)?;
    told(&instance, "A", &[])?;
    instance.eventually("nobody is served any more", || {
        ensure!(ask(INSIDE, "192.168.77.20").is_err());
        Ok(())
    })
}
