//! The device is behind a home router with no way in: a caller in a cafe reaches the app by its name all
//! the same, and on the wire there is nothing but the session and the tunnel.

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command, eventually,
    instance::{Instance, binary},
    netns::Netns,
    region::start,
};
use std::{process::Command, time::Duration};

const SERVER: &str = "198.51.100.2";
const HOME_WAN: &str = "203.0.113.2";
const ZONE: &str = "example.test";
const HOST: &str = "notes.alice.example.test";

/// Four places on a small internet.
struct World {
    internet: Netns,
    server: Netns,
    device: Netns,
    cafe: Netns,
    _router: Netns,
}

fn world() -> Result<World> {
    let [internet, server, router, device, cafe] = ["inet", "srv", "rtr", "dev", "cafe"].map(Netns::new);
    let (internet, server, router, device, cafe) = (internet?, server?, router?, device?, cafe?);
    internet.link("srv", &["198.51.100.1/24"], &server, "eth0", &["198.51.100.2/24"])?;
    internet.link("home", &["203.0.113.1/24"], &router, "wan", &["203.0.113.2/24"])?;
    internet.link("cafe", &["192.0.2.1/24"], &cafe, "eth0", &["192.0.2.2/24"])?;
    router.link("lan", &["192.168.7.1/24"], &device, "eth0", &["192.168.7.10/24"])?;
    server.run("ip route add default via 198.51.100.1")?;
    router.run("ip route add default via 203.0.113.1")?;
    cafe.run("ip route add default via 192.0.2.1")?;
    device.run("ip route add default via 192.168.7.1")?;
    for netns in [&internet, &router] {
        netns.run("sysctl -qw net.ipv4.ip_forward=1")?;
    }
    // A home router: everything out by one address, nothing new in.
    router.nft(
        "table ip home {
            chain outgoing { type nat hook postrouting priority srcnat; oifname wan masquerade; }
            chain incoming { type filter hook input priority filter; iifname wan ct state new drop; }
            chain forward { type filter hook forward priority filter; iifname wan ct state new drop; }
        }",
    )?;
    Ok(World { internet, server, device, cafe, _router: router })
}

#[test]
fn an_app_behind_a_home_router_answers_in_the_cafe_and_the_wire_shows_session_and_tunnel_only() -> Result<()> {
    let world = world()?;
    let region = Instance::empty()?.in_netns(world.server.name());
    let device = Instance::empty()?.in_netns(world.device.name());
    let pcap = device.path().join("wire.pcap");
    let mut tcpdump = world.internet.program("tcpdump");
    tcpdump.args(["-i", "home", "-U", "-s", "0", "-Z", "root", "-w"]).arg(&pcap);
    let mut capture = start(&device, "tcpdump.log", tcpdump)?;
    let mut server = region.hearth(["server", "--zone", ZONE, "--listen-metrics", "127.0.0.1:0", "--data-dir"]);
    server.arg(region.path());
    for (flag, port) in
        [("--listen-api", 7443), ("--listen-gateway", 443), ("--listen-dns", 53), ("--listen-tunnel", 0)]
    {
        server.args([flag, &format!("{SERVER}:{port}")]);
    }
    let _server = start(&region, "server.log", server)?;
    region.eventually("the server answers", || {
        region.run("get ns")?;
        ensure!(region.status()?["tunnel"].is_string());
        Ok(())
    })?;
    // The token alone leads the device to its region.
    let token = region.run("token create --owner alice")?;
    let mut join = device.hearth(["join", token.trim(), "--name", "nas", "--data-dir"]);
    command::succeed(join.arg(device.path()))?;
    let examples = binary().parent().context("a folder")?.join("hearth-examples/notes");
    device.import(&examples.join("image.tar"))?;
    let mut agent = device.hearth(["agent", "--data-dir"]);
    agent.arg(device.path());
    let _agent = start(&device, "agent.log", agent)?;
    for file in ["app.yaml", "install.yaml"] {
        region.run(&format!("apply -f {}", examples.join(file).display()))?;
    }
    region
        .run("wait install/notes -n alice --for condition=Ready --timeout 60s")
        .with_context(|| device.logs() + &region.logs())?;
    // In the cafe: the name, then the page.
    let answer = world.cafe.run(&format!("kdig @{SERVER} +short {HOST} A"))?;
    assert_eq!(answer.trim(), SERVER);
    let ca = region.path().join("ca.pem").display().to_string();
    let curl = |arguments: &[&str], path: &str| {
        let mut curl = world.cafe.program("curl");
        curl.args([
            "-sS",
            "--fail-with-body",
            "--max-time",
            "20",
            "--cacert",
            &ca,
            "--resolve",
            &format!("{HOST}:443:{SERVER}"),
        ]);
        curl.args(arguments).arg(format!("https://{HOST}{path}"));
        command::succeed(&mut curl)
    };
    let marked = r#"{"text":"PLAINTEXT-MARKER-0xC0FFEE"}"#;
    eventually("the app answers in the cafe", Duration::from_secs(30), || curl(&[], "/healthz"))
        .with_context(|| device.logs() + &region.logs())?;
    curl(&["-X", "POST", "-H", "content-type: application/json", "-d", marked], "/api/notes")?;
    ensure!(curl(&[], "/api/notes")?.contains("PLAINTEXT-MARKER"));
    // Logs go the same way. The app saw who called.
    ensure!(region.run("logs install/notes -n alice")?.contains("192.0.2.2"), "the caller's address reaches the app");
    // There is no way in but the tunnel.
    for port in ["7443", "443", "8080"] {
        let tried = command::fail(world.cafe.program("curl").args([
            "-sS",
            "--max-time",
            "2",
            &format!("http://{HOME_WAN}:{port}/"),
        ]))?;
        ensure!(tried.contains("timed out") || tried.contains("refused") || tried.contains("Failed"), "{tried}");
    }
    capture.signal("-INT")?;
    capture.0.wait()?;
    let status = region.status()?;
    let tunnel = status["tunnel"]
        .as_str()
        .and_then(|address| address.rsplit_once(':'))
        .context("the tunnel's port")?
        .1
        .to_owned();
    let read = |filter: &str| {
        let mut tcpdump = Command::new("tcpdump");
        command::succeed(tcpdump.args(["-nn", "-r"]).arg(&pcap).arg(filter))
    };
    // The attempts from the cafe above are the test's own.
    let other =
        read(&format!("ip and not host 192.0.2.2 and not (host {SERVER} and (tcp port 7443 or udp port {tunnel}))"))?;
    ensure!(other.is_empty(), "on the wire there was something else: {other}");
    ensure!(!read(&format!("udp port {tunnel}"))?.is_empty(), "the tunnel was used");
    ensure!(!read("tcp port 7443")?.is_empty(), "the session was used");
    let bytes = std::fs::read(&pcap)?;
    ensure!(!bytes.windows(16).any(|window| window == b"PLAINTEXT-MARKER"), "the payload is readable on the wire");
    Ok(())
}
