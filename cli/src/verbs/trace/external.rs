//! Whether the name leads straight to its device.

use std::net::IpAddr;

use hearth_types::external::External;

use super::{name::Subject, report::Step, within};
use crate::{context::Context, target};

/// The device of the name, where its owner publishes addresses of it.
pub(super) async fn look(context: &Context, subject: &Subject) -> Option<External> {
    let device = subject.device()?;
    let object = async { context.get(target::kind("devices")?, &device).await };
    let object = within(super::REGION, object).await?.ok()?;
    External::of(&object.value()).filter(|external| external.owner == subject.namespace)
}

/// Says which of the addresses that DNS told are the device's own, and which of those that its owner publishes it does not tell.
pub(super) fn explain(mut step: Step, external: Option<&External>, told: &[IpAddr]) -> Step {
    let Some(external) = external.filter(|_| !told.is_empty()) else { return step };
    let (own, not): (Vec<IpAddr>, Vec<IpAddr>) = external.addresses.iter().partition(|ip| told.contains(ip));
    let list = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let device = &external.device;
    if !own.is_empty() {
        step = step.detail(format!("the name leads straight to device {device}: its owner publishes {}", list(&own)));
    }
    if !not.is_empty() {
        let too = if own.is_empty() { "" } else { " too" };
        step = step.detail(format!(
            "its owner publishes {}{too}, where device {device} was not found, or the name has a port at the gateways: does the router let port 443 of TCP through to the device?",
            list(&not)
        ));
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_learns_which_of_the_addresses_are_told() {
        let ip = |last: u8| IpAddr::from([25, 0, 0, last]);
        let external =
            External { device: "nas".into(), owner: "alice".into(), keys: Vec::new(), addresses: vec![ip(1), ip(2)] };
        let details =
            |external: Option<&External>, told: &[IpAddr]| explain(Step::ok("dns", "x"), external, told).details;
        assert!(details(None, &[ip(1)]).is_empty() && details(Some(&external), &[]).is_empty());
        let both = details(Some(&external), &[ip(1)]);
        assert!(both[0].contains("straight to device nas") && both[0].ends_with("25.0.0.1"), "{both:?}");
        assert!(both[1].contains("publishes 25.0.0.2 too, where device nas was not found"), "{both:?}");
        assert_eq!(details(Some(&external), &[ip(9)]).len(), 1);
    }
}
