//! The firewall of one instance: one table, independent of which pods there are.
//!
//! A pod's rights hang on its link: its name begins with the instance's prefix and its group says whether it may reach the
//! internet. So attaching a pod changes no rule, and a crash leaves no rule behind that is wrong.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use crate::NetworkError;
use crate::names::{GROUP_INTERNET, Instance};
use crate::prefix::Prefix;

/// IPv4 that is not the public internet: IANA's special-purpose registry (RFC 6890 and its updates), multicast, class E.
const DENIED4: [&str; 16] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/5",
    "248.0.0.0/5",
];

/// The only IPv6 that can be the public internet: global unicast (RFC 4291) and NAT64's well-known prefix (RFC 6052), the
/// internet of IPv6-only homes. Unique local, link-local, multicast, mapped and compatible addresses are outside.
const GLOBAL6: [&str; 2] = ["2000::/3", "64:ff9b::/96"];

/// What of it is not: protocol assignments with Teredo (RFC 2928, RFC 4380), documentation (RFC 3849, RFC 9637), and 6to4
/// (RFC 3056), whose addresses embed IPv4 ones.
const DENIED6: [&str; 4] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

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
}

impl Firewall {
    /// The script that puts the table in the place of any older one of this instance, in one transaction.
    pub(crate) fn script(&self, on_link: &BTreeSet<Prefix>) -> String {
        let table = self.instance.table();
        let mut s = format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
        Self::sets(&mut s, on_link);
        self.source_check(&mut s);
        self.host_chains(&mut s);
        self.forward_chains(&mut s);
        self.nat_chains(&mut s);
        s.push_str("}\n");
        s
    }

    /// The script that replaces the prefixes of the host's neighbours, in one transaction.
    pub(crate) fn on_link_script(&self, on_link: &BTreeSet<Prefix>) -> String {
        let table = self.instance.table();
        let mut s = String::new();
        for (set, v4) in [("lan4", true), ("lan6", false)] {
            let _ = writeln!(s, "flush set inet {table} {set}");
            if let Some(elements) = elements(on_link, v4) {
                let _ = writeln!(s, "add element inet {table} {set} {{ {elements} }}");
            }
        }
        s
    }

    fn sets(s: &mut String, on_link: &BTreeSet<Prefix>) {
        let nat64 = DENIED4.iter().filter_map(|d| nat64(d));
        let denied6: Vec<String> = DENIED6.iter().map(ToString::to_string).chain(nat64).collect();
        for (name, kind, body) in [
            ("denied4", "ipv4_addr", DENIED4.join(", ")),
            ("global6", "ipv6_addr", GLOBAL6.join(", ")),
            ("denied6", "ipv6_addr", denied6.join(", ")),
        ] {
            let _ = writeln!(s, "  set {name} {{ type {kind}; flags interval; elements = {{ {body} }}; }}");
        }
        // The host's neighbours by global address: an IPv6 LAN is not told from the internet by its addresses.
        for (name, kind, v4) in [("lan4", "ipv4_addr", true), ("lan6", "ipv6_addr", false)] {
            let body = elements(on_link, v4).map(|e| format!(" elements = {{ {e} }};")).unwrap_or_default();
            let _ = writeln!(s, "  set {name} {{ type {kind}; flags interval; auto-merge;{body} }}");
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
    fn host_chains(&self, s: &mut String) {
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
        for gateway in gateways() {
            for protocol in ["udp", "tcp"] {
                let to = format!("{} daddr {gateway} {protocol} dport {port}", family(gateway));
                let _ = writeln!(s, "    meta iifgroup {GROUP_INTERNET} {to} accept");
            }
        }
        s.push_str("    reject with icmpx type admin-prohibited\n  }\n");
        s.push_str("  chain from_host {\n    type filter hook output priority filter; policy accept;\n");
        let _ = writeln!(s, "    oifname {pod} ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} drop");
        let _ = writeln!(s, "    oifname {pod} ip6 daddr ff00::/8 drop\n  }}");
    }

    /// What is forwarded from and to pods: connections that pods open to the internet, and their replies.
    fn forward_chains(&self, s: &mut String) {
        let pod = self.pod_links();
        let refuse = "reject with icmpx type admin-prohibited";
        s.push_str("  chain forwarded {\n    type filter hook forward priority filter; policy accept;\n");
        // Also to pods of other instances.
        let _ = writeln!(s, "    iifname {pod} oifname \"hearth-*\" {refuse}");
        let _ = writeln!(s, "    oifname {pod} jump to_pod");
        let _ = writeln!(s, "    iifname {pod} jump from_pod\n  }}");
        s.push_str("  chain to_pod {\n");
        let _ = writeln!(s, "    meta oifgroup != {GROUP_INTERNET} drop");
        s.push_str("    ct state established ct direction reply accept\n");
        icmp_errors(s);
        s.push_str("    drop\n  }\n");
        // Every packet is judged by its destination, not only the first: a connection does not outlive a change of the LAN.
        s.push_str("  chain from_pod {\n");
        for rule in [
            format!("meta iifgroup != {GROUP_INTERNET}"),
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
        s.push_str("    ct state invalid drop\n  }\n");
    }

    fn nat_chains(&self, s: &mut String) {
        let pod = self.pod_links();
        s.push_str("  chain source_nat {\n    type nat hook postrouting priority srcnat; policy accept;\n");
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

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

fn elements(prefixes: &BTreeSet<Prefix>, v4: bool) -> Option<String> {
    let of_family: Vec<String> =
        prefixes.iter().filter(|p| p.address().is_ipv4() == v4).map(ToString::to_string).collect();
    (!of_family.is_empty()).then(|| of_family.join(", "))
}

/// The NAT64 form of an IPv4 prefix (RFC 6052 section 2.2).
fn nat64(prefix: &str) -> Option<String> {
    let prefix: Prefix = prefix.parse().ok()?;
    let IpAddr::V4(v4) = prefix.address() else { return None };
    let [a, b, c, d] = v4.octets();
    let embedded =
        std::net::Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Prefix::new(embedded.into(), 96 + prefix.len()).map(|p| p.to_string())
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

fn nft(doing: &'static str, arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    let failed = |source: io::Error| NetworkError::NftMissing { doing, source };
    let spawn = |program: &str| {
        Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    // Root's PATH under sudo or systemd may lack sbin.
    let mut child = spawn("nft").or_else(|_| spawn("/usr/sbin/nft")).map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A script is a few KiB, less than a pipe holds; where nft died early its own message says more than EPIPE.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
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
        }
    }

    #[test]
    fn every_denied_prefix_is_canonical() {
        for prefix in DENIED4.iter().chain(&DENIED6).chain(&GLOBAL6) {
            assert!(prefix.parse::<Prefix>().is_ok(), "{prefix}");
        }
    }

    #[test]
    fn private_addresses_are_denied_in_their_nat64_form_too() {
        assert_eq!(nat64("10.0.0.0/8").unwrap(), "64:ff9b::a00:0/104");
        assert_eq!(nat64("192.168.0.0/16").unwrap(), "64:ff9b::c0a8:0/112");
        let script = firewall(53).script(&BTreeSet::new());
        assert!(script.contains("64:ff9b::a9fe:0/112"));
    }

    #[test]
    fn the_relay_is_translated_only_where_port_53_was_taken() {
        assert!(!firewall(53).script(&BTreeSet::new()).contains("dnat ip"));
        let script = firewall(1053).script(&BTreeSet::new());
        assert!(script.contains("ip6 daddr fd00:1:2:3::1 tcp dport 53 dnat ip6 to [fd00:1:2:3::1]:1053"));
        assert!(script.contains("ip daddr 10.64.128.1 udp dport 1053 accept"));
    }

    #[test]
    fn empty_sets_have_no_elements() {
        let script = firewall(53).on_link_script(&BTreeSet::from(["198.51.100.0/24".parse().unwrap()]));
        assert!(script.contains("add element inet hearth-abcd lan4 { 198.51.100.0/24 }"));
        assert!(!script.contains("add element inet hearth-abcd lan6"));
        assert!(script.contains("flush set inet hearth-abcd lan6"));
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
