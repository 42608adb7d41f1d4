//! The way out of the machine, and the firewall that keeps apps from the home.

use std::net::IpAddr;

use super::{Area, Finding};
use crate::facts;

/// What was seen of the network.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The machine's own addresses on the way out.
    addresses: Vec<IpAddr>,
    /// Whether some resolver is named.
    resolver: bool,
    /// The firewall's program, or why it does not run.
    firewall: Result<String, String>,
    /// Whether apps can be held to a bandwidth, or why not.
    shaping: Result<(), String>,
}

pub(super) fn look() -> Seen {
    Seen {
        addresses: facts::host_ips(),
        resolver: facts::read("/etc/resolv.conf").lines().any(|line| line.trim_start().starts_with("nameserver")),
        firewall: hearth_network::firewall_version().map_err(|error| crate::files::chain(&error)),
        shaping: hearth_network::check_shaping().map_err(|error| crate::files::chain(&error)),
    }
}

pub(super) fn judge(seen: &Seen) -> Vec<Finding> {
    let out: Vec<_> = seen.addresses.iter().map(ToString::to_string).collect();
    let mut findings = vec![if out.is_empty() {
        let what = "it has no way out: there is no default route";
        Finding::poor(Area::Network, what, "connect it to the home's router; apps that are here run meanwhile")
    } else {
        Finding::fine(Area::Network, format!("it goes out from {}", out.join(" and ")))
    }];
    findings.push(if seen.resolver {
        Finding::fine(Area::Network, "it has a resolver of names")
    } else {
        let what = "/etc/resolv.conf names no resolver: apps cannot look up names";
        Finding::poor(
            Area::Network,
            what,
            "have the network's service write it, as NetworkManager or systemd-resolved do",
        )
    });
    findings.push(match &seen.firewall {
        Ok(version) => Finding::fine(Area::Network, format!("it has {version}")),
        Err(why) => {
            let what = format!("apps cannot be kept from the home's network: {why}");
            Finding::lacks(Area::Network, what, "install the package nftables")
        }
    });
    findings.push(match &seen.shaping {
        Ok(()) => Finding::fine(Area::Network, "it can limit the bandwidth of apps"),
        Err(why) => {
            let what = format!("apps that have a limit of bandwidth do not start: {why}");
            Finding::poor(
                Area::Network,
                what,
                "run a kernel with CONFIG_NET_SCH_TBF, as Debian's, or set no such limits",
            )
        }
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn a_machine_without_a_firewall_runs_no_apps_and_one_without_a_way_out_does() {
        let good = Seen {
            addresses: vec![[192, 0, 2, 7].into()],
            resolver: true,
            firewall: Ok("nftables v1.0.6".into()),
            shaping: Ok(()),
        };
        let worst = |seen: &Seen| judge(seen).into_iter().max_by_key(|finding| finding.verdict).expect("findings");
        assert_eq!(worst(&good).verdict, Verdict::Fine);
        assert_eq!(worst(&Seen { addresses: Vec::new(), ..good.clone() }).verdict, Verdict::Poor);
        assert_eq!(worst(&Seen { resolver: false, ..good.clone() }).verdict, Verdict::Poor);
        let unshaped = worst(&Seen { shaping: Err("no token bucket".into()), ..good.clone() });
        assert!(unshaped.verdict == Verdict::Poor && unshaped.what.contains("no token bucket"), "{unshaped:?}");
        let worst = worst(&Seen { firewall: Err("no such file".into()), ..good });
        assert!(worst.verdict == Verdict::Lacks && worst.what.contains("no such file"), "{worst:?}");
    }
}
