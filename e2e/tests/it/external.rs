//! Devices that the internet reaches at an address of their own: names lead straight there where the owner wants it, and to the gateways where the
//! device is not found there.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command, eventually,
    instance::Instance,
    nat::{Home, Internet, Kind},
    netns::Netns,
    region::{API as GATEWAY, HOST, Region},
};

/// How long it may take until a device is found at a new address.
const FOUND: Duration = Duration::from_secs(20);
/// How long it may take until a name leads elsewhere after its device is reached no more; resolvers may add their minute.
const GONE: Duration = Duration::from_mins(1);
/// How long what an owner said may take to be in an answer, with the time that the command itself takes.
const SAID: Duration = Duration::from_secs(5);

/// The line that drops what comes to the app, and nothing of the session.
const UNREACHABLE: &str =
    "table inet unreachable { chain in { type filter hook input priority filter; tcp dport 443 drop; }\n}";

/// What the region's name server says in the cafe, a record a line.
fn dig(region: &Region, kind: &str) -> Result<Vec<String>> {
    let answer = region.cafe.netns.run(&format!("kdig @{GATEWAY} +short {HOST} {kind}"))?;
    Ok(answer.lines().map(str::to_owned).collect())
}

fn told(region: &Region, limit: Duration, kind: &str, expected: &[&str]) -> Result<()> {
    eventually("the name leads there", limit, || {
        let found = dig(region, kind)?;
        ensure!(found == expected, "{kind}: {found:?}");
        Ok(())
    })
}

/// The app's page in the cafe, fetched at an address; with a certificate of the region for the app's name, or not at all.
fn page_at(region: &Region, ip: &str) -> Result<String> {
    let mut curl = region.cafe.netns.program("curl");
    curl.args(["-sS", "--fail", "--max-time", "5", "--cacert"]).arg(region.instance.path().join("ca.pem"));
    curl.args(["--resolve", &format!("{HOST}:443:{ip}"), &format!("https://{HOST}/api/notes")]);
    command::succeed(&mut curl)
}

/// The bytes that the gateway has passed on so far.
fn passed(region: &Region) -> Result<Vec<String>> {
    let metrics = region.metrics()?;
    let bytes = metrics.lines().filter(|line| line.starts_with("hearth_gateway_bytes_total"));
    let passed: Vec<String> = bytes.map(str::to_owned).collect();
    ensure!(!passed.is_empty(), "{metrics}");
    Ok(passed)
}

fn publish(region: &Region, publish: &str) -> Result<()> {
    let patch = format!(r#"patch device nas --type=merge -p {{"spec":{{"publish":{publish}}}}}"#);
    region.instance.run(&patch).map(drop)
}

/// An address of IPv6 beside that of IPv4, and the way there.
fn add_ipv6(internet: &Internet, device: &str, netns: &Netns, net: &str) -> Result<()> {
    internet.netns.run("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
    internet.netns.run(&format!("ip -6 address add {net}::1/64 dev {device} nodad"))?;
    netns.run(&format!("ip -6 address add {net}::2/64 dev eth0 nodad"))?;
    netns.run(&format!("ip -6 route add default via {net}::1"))?;
    Ok(())
}

fn start(internet: &Internet, home: &Home) -> Result<(Region, Instance, command::Running)> {
    let region = Region::start_shared(internet)?;
    let (device, agent) = region.device(home, "")?;
    eventually("the app answers by the gateway", Duration::from_secs(30), || region.page("/api/notes"))?;
    Ok((region, device, agent))
}

#[test]
fn a_name_leads_straight_to_a_device_with_public_addresses_while_its_owner_wants_that_and_it_answers() -> Result<()> {
    let internet = Internet::new()?;
    let home = internet.home(Kind::Public, 1)?;
    add_ipv6(&internet, &home.device, &home.netns, "2a0e:1")?;
    let (region, device, _agent) = start(&internet, &home)?;
    add_ipv6(&internet, &region.host.device, &region.host.netns, "2a0e:2")?;
    add_ipv6(&internet, &region.cafe.device, &region.cafe.netns, "2a0e:3")?;
    assert_eq!(dig(&region, "A")?, [GATEWAY], "its owner said nothing");
    publish(&region, r#"{"external":true}"#)?;
    told(&region, FOUND, "A", &["203.0.1.2"]).with_context(|| device.logs() + &region.instance.logs())?;
    told(&region, FOUND, "AAAA", &["2a0e:1::2"])?;
    let said = region.instance.get("device", "nas", "default")?["status"]["addresses"].to_string();
    assert!(said.contains(r#""type":"ExternalIP""#) && !said.contains("InternalIP"), "{said}");

    let before = passed(&region)?;
    for ip in ["203.0.1.2", "[2a0e:1::2]"] {
        page_at(&region, ip)?;
    }
    assert_eq!(passed(&region)?, before, "no gateway had a part in it");
    assert!(
        region.instance.run("logs install/notes -n alice")?.contains(&region.cafe.address),
        "the app sees who calls"
    );
    let trace = region.instance.run("trace notes -n alice").context("everything is fine")?;
    assert!(trace.contains("straight to device nas"), "{trace}");

    // The line lets nobody in any more: back to the gateways, by which it is reached all the same.
    home.netns.nft(UNREACHABLE)?;
    told(&region, GONE, "A", &[GATEWAY])?;
    told(&region, GONE, "AAAA", &[])?;
    region.page("/api/notes")?;
    home.netns.run("nft delete table inet unreachable")?;
    told(&region, GONE, "A", &["203.0.1.2"])?;

    // Addresses come and go.
    home.netns.run("ip address add 203.0.1.3/24 dev eth0")?;
    told(&region, FOUND, "A", &["203.0.1.2", "203.0.1.3"])?;
    page_at(&region, "203.0.1.3")?;
    home.netns.run("ip address delete 203.0.1.3/24 dev eth0")?;
    told(&region, SAID, "A", &["203.0.1.2"])?;

    let begun = Instant::now();
    publish(&region, "null")?;
    told(&region, SAID, "A", &[GATEWAY]).with_context(|| format!("{:?}", begun.elapsed()))?;
    eventually("nobody is served there any more", FOUND, || {
        ensure!(page_at(&region, "203.0.1.2").is_err());
        Ok(())
    })
}

/// The router of a home of this number passes port 443 on to the device.
fn forward(home: &Home, number: u8) -> Result<()> {
    home.routers[0].nft(
        &"table ip home { chain through { }\n}
        flush chain ip home through
        table ip home {
            chain through { iifname wan ct state new ct status dnat accept; iifname wan ct state new drop; }
            chain forward { type nat hook prerouting priority dstnat; iifname wan tcp dport 443 dnat to 192.168.NUMBER.10; }
        }"
        .replace("NUMBER", &number.to_string()),
    )
}

#[test]
fn a_router_that_forwards_leads_to_its_device_and_another_machine_is_never_taken_for_it() -> Result<()> {
    let internet = Internet::new()?;
    let home = internet.home(Kind::PortRestricted, 2)?;
    let (region, device, _agent) = start(&internet, &home)?;
    // Another machine that speaks TLS at port 443.
    let _relay = region.relay(&internet, "other", 120)?;
    let (router, other) = ("203.0.2.2", "198.51.120.2");
    let refused = region
        .instance
        .refused(r#"patch device nas --type=merge -p {"spec":{"publish":{"externalIPs":["192.168.2.10"]}}}"#)?;
    assert!(refused.contains("spec.publish.externalIPs[0]"), "{refused}");
    publish(&region, &format!(r#"{{"externalIPs":["{other}","{router}"]}}"#))?;
    forward(&home, 2)?;
    told(&region, GONE, "A", &[router]).with_context(|| device.logs() + &region.instance.logs())?;
    assert_eq!(dig(&region, "AAAA")?, Vec::<String>::new());
    let before = passed(&region)?;
    page_at(&region, router)?;
    assert_eq!(passed(&region)?, before, "no gateway had a part in it");
    page_at(&region, other).expect_err("it is another machine");
    let rules = home.netns.run("nft list ruleset")?;
    assert!(rules.contains(router), "pods are kept from the home's address: {rules}");
    let kept = region.instance.get("device", "nas", "default")?["status"]["addresses"].clone();
    assert!(kept.is_null(), "the device tells none of its own: {kept}");

    // The router forgets; until the name has the gateway's address again, and then, nothing else is told.
    home.routers[0].run("nft delete chain ip home forward")?;
    let mut seen = BTreeSet::new();
    eventually("the name leads to the gateway again", GONE, || {
        let found = dig(&region, "A")?;
        seen.extend(found.clone());
        ensure!(found == [GATEWAY], "{found:?}");
        Ok(())
    })?;
    assert!(seen.iter().all(|ip| ip == GATEWAY || ip == router), "{seen:?}");
    region.page("/api/notes").map(drop)
}

/// The line gets another address, as some providers' do each night.
fn renumber(home: &Home, gate: &str, address: &str) -> Result<()> {
    let router = &home.routers[0];
    router.run("ip -4 address flush dev wan")?;
    router.run(&format!("ip address add {address}/24 dev wan"))?;
    router.run(&format!("ip route add default via {gate}")).map(drop)
}

#[test]
fn a_router_that_gets_another_address_is_followed() -> Result<()> {
    let internet = Internet::new()?;
    let home = internet.home(Kind::PortRestricted, 3)?;
    let (region, device, _agent) = start(&internet, &home)?;
    forward(&home, 3)?;
    publish(&region, r#"{"external":true}"#)?;
    eventually("the region says where it sees the device", FOUND, || {
        let said = region.instance.get("device", "nas", "default")?["status"]["addresses"].to_string();
        ensure!(said == r#"[{"address":"203.0.3.2","type":"ExternalIP"}]"#, "{said}");
        Ok(())
    })?;
    told(&region, FOUND, "A", &["203.0.3.2"]).with_context(|| device.logs() + &region.instance.logs())?;
    page_at(&region, "203.0.3.2")?;
    renumber(&home, "203.0.3.1", "203.0.3.9")?;
    told(&region, GONE, "A", &["203.0.3.9"]).with_context(|| device.logs() + &region.instance.logs())?;
    page_at(&region, "203.0.3.9")?;
    let rules = home.netns.run("nft list ruleset")?;
    assert!(rules.contains("203.0.3.9"), "pods are kept from the home's address: {rules}");
    Ok(())
}
