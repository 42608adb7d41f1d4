//! Devices whose networks let no tunnel through are reached by the region's relays, in servers or by themselves.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command, eventually,
    nat::{Behaviour, Internet, Kind},
    region::{Region, bytes_of, start},
};

/// How long the app may not answer when a relay dies.
const FAILOVER: Duration = Duration::from_secs(5);

#[test]
fn a_device_that_lets_only_tcp_443_out_is_reached_by_the_relay_which_counts_its_owners_bytes() -> Result<()> {
    let internet = Internet::new()?;
    let region = Region::start(&internet, true)?;
    let home = internet.home(Kind::Only443, 1)?;
    assert_eq!(Behaviour::measure(&home.netns, &internet)?, Behaviour::Blocked);
    let (device, _agent) = region.device(&home)?;
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
    let (device, _agent) = region.device(&home)?;
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
