//! Devices whose networks let no tunnel through are reached by the region's relays.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    eventually,
    nat::{Behaviour, Internet, Kind},
    region::Region,
};

#[test]
fn a_device_that_lets_only_tcp_443_out_is_reached_by_the_relay_which_counts_its_owners_bytes() -> Result<()> {
    let internet = Internet::new()?;
    let region = Region::start(&internet)?;
    let home = internet.home(Kind::Only443, 1)?;
    assert_eq!(Behaviour::measure(&home.netns, &internet)?, Behaviour::Blocked);
    let (device, _agent) = region.device(&home)?;
    eventually("the app answers in the cafe", Duration::from_secs(30), || region.page("/healthz"))
        .with_context(|| device.logs() + &region.instance.logs())?;
    let metrics = region.metrics()?;
    let bytes = metrics.lines().find(|line| line.starts_with("hearth_relay_bytes_total") && line.contains("\"alice\""));
    let bytes = bytes.context("alice's bytes are counted")?;
    let count: f64 = bytes.rsplit_once(' ').context("a number")?.1.parse()?;
    ensure!(count > 1000.0, "{bytes}");
    Ok(())
}
