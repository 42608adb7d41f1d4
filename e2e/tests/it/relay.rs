//! Devices whose networks let no tunnel through are reached by the region's relays, in servers or by themselves.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command, eventually,
    instance::binary,
    nat::{Behaviour, Home, Internet, Kind},
    netns::Netns,
    region::{API, Region, bytes_of, start},
};

/// How long the app may not answer when a relay dies: five seconds on a machine that has nothing else to do, and this beside other tests. The
/// tunnels by themselves take half a minute to leave a relay that stands still.
const FAILOVER: Duration = Duration::from_secs(15);

#[test]
fn a_device_that_lets_only_tcp_443_out_is_reached_by_the_relay_which_counts_its_owners_bytes() -> Result<()> {
    let internet = Internet::new()?;
    let region = Region::start(&internet, true)?;
    let home = internet.home(Kind::Only443, 1)?;
    assert_eq!(Behaviour::measure(&home.netns, &internet)?, Behaviour::Blocked);
    let (device, _agent) = region.device(&home, "")?;
    eventually("the app answers in the cafe", Duration::from_secs(30), || region.page("/healthz"))
        .with_context(|| device.logs() + &region.instance.logs())?;
    // Whoever asks is told why.
    let step = region.device_step().with_context(|| device.logs())?;
    let facts = &step["facts"];
    assert_eq!(
        (&facts["path"], &facts["relay"], &facts["udp"]),
        (&"Relay".into(), &"home-1".into(), &false.into()),
        "{step:#}"
    );
    let says = step["says"].as_str().unwrap_or_default();
    assert!(says.contains("its network blocks UDP, so it is reached by relay home-1; "), "{step:#}");
    let count = bytes_of(&region.metrics()?, "alice")?;
    ensure!(count > 1000.0, "{count}");
    Ok(())
}

#[test]
fn relays_of_their_own_join_by_token_and_one_that_stands_still_is_left_for_another_in_five_seconds() -> Result<()> {
    let internet = Internet::new()?;
    let region = Region::start(&internet, false)?;
    let relays = [region.relay(&internet, "fra-1", 120)?, region.relay(&internet, "fra-2", 130)?];
    region.instance.eventually("both relays have joined", || {
        let there = region.instance.run("get relays -o wide")?;
        ensure!(there.contains("https://198.51.120.2:443") && there.contains("https://198.51.130.2:443"), "{there}");
        ensure!(region.instance.run("token ls")?.contains("used by relay fra-2"));
        Ok(())
    })?;
    let home = internet.home(Kind::Only443, 1)?;
    let (device, _agent) = region.device(&home, "")?;
    let logs = || device.logs() + &region.instance.logs() + &relays[0].log() + &relays[1].log();
    // The gateway may go to a nearer relay while the first page is under way.
    let used = eventually("the app answers in the cafe by a relay that counts it", Duration::from_secs(30), || {
        region.page("/healthz")?;
        let step = region.device_step()?;
        let used = relays.iter().position(|relay| step["facts"]["relay"] == relay.name.as_str());
        let used = used.with_context(|| format!("{step:#}"))?;
        let bytes = relays[used].bytes_of("alice")?;
        ensure!(bytes > 1000.0, "{bytes} bytes by {}", relays[used].name);
        Ok(used)
    })
    .with_context(logs)?;
    let (used, other) = (&relays[used], &relays[1 - used]);

    used.signal("-STOP")?;
    let broken = Instant::now();
    eventually("the app is reached by the other relay", FAILOVER, || region.page_within("/healthz", 1.5))
        .with_context(logs)?;
    ensure!(broken.elapsed() <= FAILOVER + Duration::from_secs(1), "{:?}", broken.elapsed());
    assert_eq!(region.device_step()?["facts"]["relay"], other.name.as_str());
    ensure!(other.bytes_of("alice")? > 0.0);
    used.signal("-CONT")?;

    // One whose Relay is deleted is none of the region any more, and says so when it starts again.
    region.instance.run(&format!("delete relay {}", used.name))?;
    let mut again =
        used.instance.hearth(["relay", "--listen", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0", "--data-dir"]);
    used.signal("-KILL")?;
    let said = command::fail(again.arg(used.instance.path()))?;
    assert!(said.contains("no Relay of the region has this relay's key"), "{said}");
    let token = region.instance.run("token create --relay")?;
    let mut again = used.instance.hearth([
        "relay",
        "--listen",
        "127.0.0.1:0",
        "--listen-metrics",
        "127.0.0.1:0",
        "--join",
        token.trim(),
    ]);
    again.arg("--data-dir").arg(used.instance.path());
    let _again = start(&used.instance, "again.log", again)?;
    region.instance.eventually("it has joined anew under its name", || {
        let there = region.instance.run("get relays")?;
        ensure!(
            there
                .lines()
                .any(|line| line.starts_with(&format!("{} ", used.name)) && line.contains("https://127.0.0.1:")),
            "{there}"
        );
        Ok(())
    })
}

/// How many packets a counter of [`watch_line`] has seen.
fn packets(netns: &Netns, counter: &str) -> Result<u64> {
    let said = netns.run(&format!("nft list counter ip line {counter}"))?;
    let count = said.split_whitespace().skip_while(|word| *word != "packets").nth(1).context("a count")?;
    count.parse().with_context(|| said.clone())
}

/// Counts what leaves a home: for the gateway's port, and everything else.
fn watch_line(internet: &Internet, home: &Home) -> Result<()> {
    let device = &home.device;
    internet.netns.nft(&format!(
        "table ip line {{
            counter gateway {{ }}
            counter other {{ }}
            chain through {{
                type filter hook forward priority filter;
                iifname {device} ip daddr {API} tcp dport 443 counter name gateway accept
                iifname {device} counter name other
            }}
        }}"
    ))
}

#[test]
fn where_all_shares_the_gateways_port_a_device_that_reaches_that_alone_joins_and_serves() -> Result<()> {
    let internet = Internet::new()?;
    let region = Region::start_shared(&internet)?;
    let home = internet.home(Kind::Only443, 1)?;
    // Not even another TCP 443.
    home.routers[0].nft(&format!(
        "table ip strict {{ chain through {{ type filter hook forward priority filter;
            oifname wan ip daddr {API} tcp dport 443 accept; oifname wan drop; }}\n}}"
    ))?;
    watch_line(&internet, &home)?;
    let (device, _agent) = region.device(&home, "--at https://198.51.100.2")?;
    eventually("the app answers in the cafe", Duration::from_secs(30), || region.page("/healthz"))
        .with_context(|| device.logs() + &region.instance.logs())?;
    let step = region.device_step().with_context(|| device.logs())?;
    let facts = &step["facts"];
    assert_eq!((&facts["path"], &facts["relay"]), (&"Relay".into(), &"home-1".into()), "{step:#}");
    ensure!(bytes_of(&region.metrics()?, "alice")? > 1000.0);

    // Its owner at home works with the region by the same port: calls, watches, and streams from the device.
    let at_home = |line: &str| {
        let mut hearth = home.netns.program(&binary().display().to_string());
        hearth.env("HEARTH_CONFIG", region.instance.path().join("client.yaml")).args(line.split_whitespace());
        command::succeed(&mut hearth)
    };
    ensure!(at_home("get devices -o wide")?.contains("nas"));
    at_home("wait install/notes -n alice --for condition=Ready --timeout 20s")?;
    ensure!(!at_home("logs install/notes -n alice")?.is_empty());

    // What else asks for those names at the port: the relay says that it is there, DNS says where, and no other name is known.
    let ca = region.instance.path().join("ca.pem").display().to_string();
    let ask = |name: &str, path: &str| {
        let mut curl = region.cafe.netns.program("curl");
        curl.args(["-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &ca]);
        curl.args(["--resolve", &format!("{name}:443:{API}")]).arg(format!("https://{name}{path}"));
        curl
    };
    assert_eq!(command::succeed(&mut ask("relay.api.example.test", "/ping"))?, "200");
    let refused = command::fail(&mut ask("relay.example.test", "/ping"))?;
    ensure!(refused.contains("unrecognized name"), "{refused}");
    for name in ["api.example.test", "198-51-100-2.relay.api.example.test"] {
        assert_eq!(region.cafe.netns.run(&format!("kdig @{API} +short {name} A"))?.trim(), API, "{name}");
    }
    let listening = region.host.netns.run("ss -tlnH")?;
    let mut ports: Vec<_> = listening.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    ports.sort_unstable();
    assert_eq!(ports, ["127.0.0.1:9643", "198.51.100.2:443", "198.51.100.2:53"]);
    // On the line was nothing else.
    assert_eq!(packets(&internet.netns, "other")?, 0);
    ensure!(packets(&internet.netns, "gateway")? > 100);
    Ok(())
}
