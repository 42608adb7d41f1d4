//! The firewall of one instance: one table, independent of which pods there are.
//!
//! A pod's rights hang on its link: its name begins with the instance's prefix and its group says whether it may reach the
//! internet. So attaching a pod changes no rule, and a crash leaves no rule behind that is wrong.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::NetworkError;
use crate::denied::{DENIED4, GLOBAL6, denied6};
use crate::names::{GROUP_GUEST_INTERNET, GROUP_INTERNET, Instance};
use crate::prefix::Prefix;
use crate::program;
use crate::services::{Plan, Range, rules};
use crate::shared::SharedBandwidth;

/// Connections that one pod may have in the host's table, whose room (65,536 on a device with 1 GiB) it shares with the host and
/// all other pods: far more than an app needs, and a sixteenth of that.
const MAX_CONNECTIONS_A_POD: u32 = 4096;
/// Questions to the name relay that one pod may send by UDP in a second, and at once: what is over never reaches the relay's
/// socket, whose room the pods share. A busy mail server asks some 100 a second.
const MAX_QUESTIONS_A_SECOND: u32 = 500;
/// Pods that are counted: as many as there can be.
const MAX_COUNTED_PODS: usize = crate::store::MAX_PODS;

/// Longest piece of `nft`'s complaints that is passed on, in bytes.
const MAX_STDERR: usize = 2000;
/// What usually helps when `nft` refuses the rules.
const KERNEL_HINT: &str = "this needs root, nftables 0.9.9 or newer, and a kernel with CONFIG_NF_TABLES_INET, CONFIG_NFT_CT, \
     CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_FIB_INET and CONFIG_NFT_REJECT_INET (Debian's kernels have them; on a kernel \
     of your own: modprobe nft_fib_inet nft_masq nft_reject_inet)";

/// What the table is made from.
#[derive(Clone, Debug)]
pub(crate) struct Firewall {
    pub(crate) instance: Instance,
    pub(crate) pods4: Prefix,
    pub(crate) gateway4: IpAddr,
    /// Prefix and gateway, where the host has IPv6.
    pub(crate) pods6: Option<(Prefix, IpAddr)>,
    /// Where the name relay listens on the gateway addresses: 53, or another port where 53 was taken.
    pub(crate) relay_port: u16,
    /// Where Services have their addresses.
    pub(crate) services: Range,
    /// The families whose forwarding this instance enabled, on a host that forwarded nothing before.
    pub(crate) strangers: Strangers,
}

/// What the host is to the rules, and changes while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Home {
    /// The prefixes of its neighbours, and what else is denied by request.
    pub(crate) denied: BTreeSet<Prefix>,
    /// The links that lead to its neighbours and to the internet.
    pub(crate) uplinks: BTreeSet<String>,
    /// The host's own addresses on those links, which the rules do not name.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// Whether packets of others, which the host forwards only because of us, are to be dropped; by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Strangers {
    pub(crate) drop4: bool,
    pub(crate) drop6: bool,
}

impl Firewall {
    /// The script that puts the table in the place of any older one of this instance, in one transaction.
    ///
    /// `count` says whether connections and questions are counted: not every kernel can (`CONFIG_NFT_CONNLIMIT`, `CONFIG_NFT_LIMIT`).
    /// Without `services` there is nothing for any.
    pub(crate) fn script(&self, home: &Home, count: bool, shared: SharedBandwidth, services: Option<&Plan>) -> String {
        let table = self.instance.table();
        let mut s = format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
        Self::sets(&mut s, home, count);
        self.source_check(&mut s);
        self.host_chains(&mut s, count);
        if services.is_some() {
            self.write_services(|writer| writer.frame(&mut s));
        }
        self.forward_chains(&mut s, count, services.is_some());
        self.nat_chains(&mut s, services.is_some());
        shared.chains(&mut s, &self.pod_links());
        s.push_str("}\n");
        if let Some(plan) = services {
            self.write_services(|writer| writer.add(&mut s, &table, plan));
        }
        s
    }

    /// The script that replaces what is known of Services, in one transaction.
    pub(crate) fn services_script(&self, old: &Plan, new: &Plan) -> String {
        let (table, mut s) = (self.instance.table(), String::new());
        self.write_services(|writer| writer.change(&mut s, &table, old, new));
        s
    }

    fn write_services(&self, write: impl FnOnce(rules::Writer<'_>)) {
        let links = self.pod_links();
        let pods6 = self.pods6.map(|(prefix, _)| prefix);
        write(rules::Writer { links: &links, range: self.services, pods4: self.pods4, pods6 });
    }

    /// The script that replaces what is known of the host, in one transaction.
    pub(crate) fn home_script(&self, home: &Home) -> String {
        let table = self.instance.table();
        let mut s = String::new();
        for (set, v4) in [("lan4", true), ("lan6", false)] {
            let _ = writeln!(s, "flush set inet {table} {set}");
            if let Some(elements) = elements(&home.denied, v4) {
                let _ = writeln!(s, "add element inet {table} {set} {{ {elements} }}");
            }
        }
        let _ = writeln!(s, "flush set inet {table} uplinks");
        if let Some(links) = links(home) {
            let _ = writeln!(s, "add element inet {table} uplinks {{ {links} }}");
        }
        s
    }

    fn sets(s: &mut String, home: &Home, count: bool) {
        let denied6: Vec<String> = denied6().collect();
        for (name, kind, body) in [
            ("denied4", "ipv4_addr", DENIED4.join(", ")),
            ("global6", "ipv6_addr", GLOBAL6.join(", ")),
            ("denied6", "ipv6_addr", denied6.join(", ")),
        ] {
            let _ = writeln!(s, "  set {name} {{ type {kind}; flags interval; elements = {{ {body} }}; }}");
        }
        // The host's neighbours by global address: an IPv6 LAN is not told from the internet by its addresses.
        for (name, kind, v4) in [("lan4", "ipv4_addr", true), ("lan6", "ipv6_addr", false)] {
            let body = elements(&home.denied, v4).map(|e| format!(" elements = {{ {e} }};")).unwrap_or_default();
            let _ = writeln!(s, "  set {name} {{ type {kind}; flags interval; auto-merge;{body} }}");
        }
        let body = links(home).map(|links| format!(" elements = {{ {links} }};")).unwrap_or_default();
        let _ = writeln!(s, "  set uplinks {{ type ifname;{body} }}");
        if count {
            let _ = writeln!(s, "  set connections {{ type ifname; size {MAX_COUNTED_PODS}; flags dynamic; }}");
            let _ =
                writeln!(s, "  set questions {{ type ifname; size {MAX_COUNTED_PODS}; flags dynamic; timeout 1m; }}");
        }
    }

    /// A pod speaks from its own address only: the one whose route leads back over its link. Before conntrack sees it.
    fn source_check(&self, s: &mut String) {
        let pod = self.pod_links();
        s.push_str("  chain source_check {\n    type filter hook prerouting priority raw; policy accept;\n");
        let _ = writeln!(s, "    iifname {pod} fib saddr . iif oif missing drop");
        let _ = writeln!(s, "    iifname {pod} ip saddr != {} drop", self.pods4);
        let _ = match self.pods6 {
            Some((prefix, _)) => writeln!(s, "    iifname {pod} ip6 saddr != {prefix} drop"),
            None => writeln!(s, "    iifname {pod} meta nfproto ipv6 drop"),
        };
        s.push_str("  }\n");
    }

    /// What pods may say to the host: replies, and questions to the name relay. Anything addressed to the host arrives at
    /// the input hook whichever of its addresses was used. And what the host says to pods: nothing to groups, since mDNS
    /// and the like would tell them about the home.
    fn host_chains(&self, s: &mut String, count: bool) {
        let (pod, port) = (self.pod_links(), self.relay_port);
        let gateways = || [Some(self.gateway4), self.pods6.map(|(_, g)| g)].into_iter().flatten();
        s.push_str("  chain to_host {\n    type filter hook input priority filter; policy accept;\n");
        for gateway in gateways() {
            // The relay is for this instance's pods (and the host itself), not for the LAN.
            let _ = writeln!(s, "    iifname != \"lo\" iifname != {pod} {} daddr {gateway} drop", family(gateway));
        }
        let _ = writeln!(s, "    iifname {pod} jump pod_to_host\n  }}");
        s.push_str("  chain pod_to_host {\n");
        s.push_str("    ct state established ct direction reply accept\n");
        icmp_errors(s);
        if count {
            let over =
                format!("limit rate over {MAX_QUESTIONS_A_SECOND}/second burst {MAX_QUESTIONS_A_SECOND} packets");
            let _ = writeln!(s, "    udp dport {port} update @questions {{ iifname {over} }} drop");
        }
        for gateway in gateways() {
            for protocol in ["udp", "tcp"] {
                let to = format!("{} daddr {gateway} {protocol} dport {port}", family(gateway));
                let _ = writeln!(s, "    {to} accept");
            }
        }
        s.push_str("    reject with icmpx type admin-prohibited\n  }\n");
        s.push_str("  chain from_host {\n    type filter hook output priority filter; policy accept;\n");
        let _ = writeln!(s, "    oifname {pod} ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} drop");
        // A pod that calls its own Service is on the best way already, and needs not be told.
        let _ = writeln!(s, "    oifname {pod} icmp type redirect drop");
        let _ = writeln!(s, "    oifname {pod} ip6 daddr ff00::/8 drop\n  }}");
    }

    /// What is forwarded from and to pods: connections that pods open to the internet, and their replies.
    fn forward_chains(&self, s: &mut String, count: bool, services: bool) {
        let pod = self.pod_links();
        let refuse = "reject with icmpx type admin-prohibited";
        s.push_str("  chain counted {\n");
        if count {
            let over = format!("iifname ct count over {MAX_CONNECTIONS_A_POD}");
            let _ = writeln!(s, "    add @connections {{ {over} }} {refuse}");
        }
        s.push_str("  }\n  chain forwarded {\n    type filter hook forward priority filter; policy accept;\n");
        if services {
            let translated = format!("iifname {pod} oifname {pod} ct status dnat");
            let _ = writeln!(s, "    {translated} ct state new jump counted");
            let _ = writeln!(s, "    {translated} jump {}", rules::TRAFFIC);
        }
        // Also to pods of other instances.
        let _ = writeln!(s, "    iifname {pod} oifname \"hearth-*\" {refuse}");
        let _ = writeln!(s, "    oifname {pod} jump to_pod");
        let _ = writeln!(s, "    iifname {pod} jump from_pod");
        for (drops, family) in [(self.strangers.drop4, "ipv4"), (self.strangers.drop6, "ipv6")] {
            if drops {
                let not_pods = "iifname @uplinks oifname != \"hearth-*\"";
                let _ = writeln!(s, "    {not_pods} meta nfproto {family} jump stranger");
            }
        }
        s.push_str("  }\n");
        // The host became a router for its pods' sake only: nobody on its networks is to be routed by it. What came to be
        // since (containers, virtual machines) goes on: replies to it, and what its port forwarding lets in.
        s.push_str(
            "  chain stranger {\n    ct state established,related return\n    ct status dnat return\n    drop\n  }\n",
        );
        s.push_str("  chain to_pod {\n");
        let _ = writeln!(s, "    meta oifgroup != {} drop", internet());
        s.push_str("    ct state established ct direction reply accept\n");
        icmp_errors(s);
        s.push_str("    drop\n  }\n");
        // Every packet is judged by its destination, not only the first: a connection does not outlive a change of the LAN.
        s.push_str("  chain from_pod {\n");
        for rule in [
            format!("meta iifgroup != {}", internet()),
            // Somebody else's port forwarding must not lead around the rules below.
            "ct status dnat".to_owned(),
            "ip daddr @denied4".to_owned(),
            "ip daddr @lan4".to_owned(),
            "ip6 daddr != @global6".to_owned(),
            "ip6 daddr @denied6".to_owned(),
            "ip6 daddr @lan6".to_owned(),
            // No tunnels: inside them the rules above could not see. ICMP, TCP, UDP and ICMPv6 by number, since nft takes names
            // from /etc/protocols, which a small system has not.
            "meta l4proto != { 1, 6, 17, 58 }".to_owned(),
        ] {
            let _ = writeln!(s, "    {rule} {refuse}");
        }
        s.push_str("    ct state invalid drop\n");
        s.push_str("    ct state new jump counted\n  }\n");
    }

    fn nat_chains(&self, s: &mut String, services: bool) {
        let pod = self.pod_links();
        s.push_str("  chain source_nat {\n    type nat hook postrouting priority srcnat; policy accept;\n");
        if services {
            self.write_services(|writer| writer.aliases(s));
        }
        let _ = writeln!(s, "    ip saddr {} oifname != {pod} masquerade", self.pods4);
        if let Some((prefix, _)) = self.pods6 {
            let _ = writeln!(s, "    ip6 saddr {prefix} oifname != {pod} masquerade");
        }
        s.push_str("  }\n");
        if self.relay_port == 53 {
            return;
        }
        s.push_str("  chain relay_nat {\n    type nat hook prerouting priority dstnat; policy accept;\n");
        for gateway in [Some(self.gateway4), self.pods6.map(|(_, g)| g)].into_iter().flatten() {
            let (ip, port) = (family(gateway), self.relay_port);
            let to = std::net::SocketAddr::new(gateway, port);
            for protocol in ["udp", "tcp"] {
                let _ = writeln!(s, "    iifname {pod} {ip} daddr {gateway} {protocol} dport 53 dnat {ip} to {to}");
            }
        }
        s.push_str("  }\n");
    }

    fn pod_links(&self) -> String {
        format!("\"{}*\"", self.instance.link_prefix())
    }
}

/// Errors about a connection that is known, without redirects and the rest of ICMP.
fn icmp_errors(s: &mut String) {
    s.push_str("    ct state related icmp type { destination-unreachable, time-exceeded, parameter-problem } accept\n");
    s.push_str(
        "    ct state related icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept\n",
    );
}

/// The groups of pods that may reach the internet.
fn internet() -> String {
    format!("{{ {GROUP_INTERNET}, {GROUP_GUEST_INTERNET} }}")
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

fn elements(prefixes: &BTreeSet<Prefix>, v4: bool) -> Option<String> {
    let of_family: Vec<String> =
        prefixes.iter().filter(|p| p.address().is_ipv4() == v4).map(ToString::to_string).collect();
    (!of_family.is_empty()).then(|| of_family.join(", "))
}

fn links(home: &Home) -> Option<String> {
    let quoted: Vec<String> = home.uplinks.iter().map(|link| format!("\"{link}\"")).collect();
    (!quoted.is_empty()).then(|| quoted.join(", "))
}

/// Deletes the instance's table; false where there was none.
pub(crate) fn delete(instance: &Instance) -> Result<bool, NetworkError> {
    let table = instance.table();
    let exists = || {
        crate::netlink::nft::table_exists(&table).map_err(|e| NetworkError::netlink("look up the firewall table", e))
    };
    if !exists()? {
        return Ok(false);
    }
    match run("deleting the firewall table", &format!("delete table inet {table}\n")) {
        // Somebody else was faster.
        Err(NetworkError::NftFailed { .. }) if !exists()? => Ok(false),
        other => other.map(|_| true),
    }
}

/// Feeds a script to `nft`, in the calling thread's network namespace; what it printed.
pub(crate) fn run(doing: &'static str, script: &str) -> Result<String, NetworkError> {
    nft(doing, &["-f", "-"], script)
}

/// Chains of others that drop what they do not know and see pods' packets: their verdict is final, whatever ours is.
pub(crate) fn foreign_drop_policies(instance: &Instance) -> Result<Vec<String>, NetworkError> {
    let listing = nft("listing chains", &["list", "chains"], "")?;
    Ok(drop_policies(&listing, &instance.table()))
}

/// What the firewall's program calls itself, once it was seen that it can read this kernel's tables.
pub fn firewall_version() -> Result<String, NetworkError> {
    nft("listing tables", &["list", "tables"], "")?;
    Ok(nft("telling its version", &["--version"], "")?.trim().to_owned())
}

fn nft(doing: &'static str, arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    // Root's PATH under sudo or systemd may lack sbin. A script is a few KiB.
    let output = program::output("nft", arguments, input)
        .or_else(|_| program::output("/usr/sbin/nft", arguments, input))
        .map_err(|source| NetworkError::NftMissing { doing, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(MAX_STDERR).collect();
    Err(NetworkError::NftFailed { doing, stderr, hint: KERNEL_HINT })
}

/// The chains in `nft list chains` that belong to others, sit at the forward or input hook and have the policy `drop`.
fn drop_policies(listing: &str, own_table: &str) -> Vec<String> {
    let (mut table, mut chain, mut found) = ("", "", Vec::new());
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(['{', ' ']);
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(['{', ' ']);
        } else if line.contains("policy drop")
            && (line.contains("hook forward") || line.contains("hook input"))
            && table != format!("inet {own_table}")
            && !table.starts_with("inet hearth-")
        {
            found.push(format!("{table} {chain}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn firewall(relay_port: u16) -> Firewall {
        Firewall {
            instance: Instance::parse("abcd").unwrap(),
            pods4: "10.64.128.0/17".parse().unwrap(),
            gateway4: "10.64.128.1".parse().unwrap(),
            pods6: Some(("fd00:1:2:3::/64".parse().unwrap(), "fd00:1:2:3::1".parse().unwrap())),
            relay_port,
            services: Range { ipv4: "10.66.0.0/16".parse().unwrap(), ipv6: "fd00:9::/64".parse().unwrap() },
            strangers: Strangers::default(),
        }
    }

    fn script(firewall: &Firewall) -> String {
        firewall.script(&Home::default(), true, SharedBandwidth::default(), None)
    }

    #[test]
    fn the_relay_is_translated_only_where_port_53_was_taken() {
        assert!(!script(&firewall(53)).contains("dnat ip"));
        let script = script(&firewall(1053));
        assert!(script.contains("ip6 daddr fd00:1:2:3::1 tcp dport 53 dnat ip6 to [fd00:1:2:3::1]:1053"));
        assert!(script.contains("ip daddr 10.64.128.1 udp dport 1053 accept"));
    }

    #[test]
    fn empty_sets_have_no_elements() {
        let denied = BTreeSet::from(["198.51.100.0/24".parse().unwrap()]);
        let script = firewall(53).home_script(&Home { denied, ..Home::default() });
        assert!(script.contains("add element inet hearth-abcd lan4 { 198.51.100.0/24 }"));
        assert!(!script.contains("add element inet hearth-abcd lan6"));
        assert!(script.contains("flush set inet hearth-abcd lan6"));
        assert!(!script.contains("add element inet hearth-abcd uplinks"));
    }

    #[test]
    fn strangers_are_dropped_only_where_they_are_routed_for_our_sake() {
        let mut firewall = firewall(53);
        assert!(!script(&firewall).contains("jump stranger"));
        firewall.strangers.drop6 = true;
        assert_eq!(script(&firewall).matches("jump stranger").count(), 1);
        assert!(script(&firewall).contains("meta nfproto ipv6 jump stranger"));
    }

    #[test]
    fn connections_are_counted_only_where_the_kernel_can() {
        for counted in ["ct count over 4096", "limit rate over 500/second"] {
            assert!(script(&firewall(53)).contains(counted));
        }
        let without = firewall(53).script(&Home::default(), false, SharedBandwidth::default(), None);
        assert!(!without.contains("ct count") && !without.contains("connections") && !without.contains("questions"));
    }

    #[test]
    fn dockers_forward_policy_is_noticed() {
        let listing = "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n\
             \tchain INPUT {\n\t\ttype filter hook input priority filter; policy accept;\n\t}\n}\n\
             table inet hearth-abcd {\n\tchain x {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n";
        assert_eq!(drop_policies(listing, "hearth-abcd"), ["ip filter FORWARD"]);
        assert!(drop_policies("", "x").is_empty());
    }
}
