//! The rules of the host's firewall for Services. Pure.
//!
//! The chains that packets pass first stay; what a plan says is in maps, sets and chains that are replaced with it, so that what the table
//! counts of connections and questions is not forgotten whenever a pod becomes ready.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::plan::{Address, Plan};
use super::{Range, ServiceProtocol};
use crate::prefix::{Prefix, nth};

/// The chain that what is translated passes; what it does not accept is refused.
pub(crate) const TRAFFIC: &str = "service_traffic";

/// What rules are written for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer<'a> {
    /// What links of pods are named like.
    pub(crate) links: &'a str,
    pub(crate) range: Range,
    pub(crate) pods4: Prefix,
    pub(crate) pods6: Option<Prefix>,
}

/// One family: its words, range, pods, and what its names end with.
#[derive(Clone, Copy)]
struct Family {
    ip: &'static str,
    kind: &'static str,
    range: Prefix,
    pods: Prefix,
    tag: u8,
}

impl Family {
    fn address(self, number: u16) -> IpAddr {
        nth(self.range, number)
    }

    fn pod(self, number: u16) -> IpAddr {
        nth(self.pods, number)
    }
}

impl Writer<'_> {
    fn families(self) -> impl Iterator<Item = Family> {
        let v4 = Family { ip: "ip", kind: "ipv4_addr", range: self.range.ipv4, pods: self.pods4, tag: 4 };
        let v6 = self.pods6.map(|pods| Family { ip: "ip6", kind: "ipv6_addr", range: self.range.ipv6, pods, tag: 6 });
        std::iter::once(v4).chain(v6)
    }

    /// Maps and chains that are there whatever Services there are; inside of the table.
    pub(crate) fn frame(self, s: &mut String) {
        let pod = self.links;
        for Family { kind, tag, .. } in self.families() {
            let _ = writeln!(s, "  map service_ports{tag} {{ type {kind} . inet_proto . inet_service : verdict; }}");
            let _ = writeln!(s, "  map service_traffic{tag} {{ type {kind} : verdict; }}");
        }
        s.push_str("  chain service_nat {\n    type nat hook prerouting priority dstnat; policy accept;\n");
        for Family { ip, range, tag, .. } in self.families() {
            let key = format!("{ip} daddr . meta l4proto . th dport");
            let _ = writeln!(s, "    iifname {pod} {ip} daddr {range} {key} vmap @service_ports{tag}");
        }
        s.push_str("  }\n");
        // What was not translated leads nowhere; programs are told so, and at once.
        s.push_str("  chain service_end {\n    type filter hook prerouting priority dstnat + 10; policy accept;\n");
        for Family { ip, range, .. } in self.families() {
            let _ = writeln!(s, "    iifname {pod} {ip} daddr {range} jump service_refuse");
        }
        s.push_str("  }\n  chain service_refuse {\n    meta l4proto 6 reject with tcp reset\n");
        s.push_str("    reject with icmpx type admin-prohibited\n  }\n");
        let _ = writeln!(s, "  chain {TRAFFIC} {{");
        for Family { ip, tag, .. } in self.families() {
            let _ = writeln!(s, "    ct original {ip} daddr vmap @service_traffic{tag}");
        }
        s.push_str("  }\n");
    }

    /// The callers' side of the translation, for the chain of source translations.
    pub(crate) fn aliases(self, s: &mut String) {
        for Family { ip, range, pods, .. } in self.families() {
            let Some(aliases) = Prefix::new(range.address(), pods.len()) else { continue };
            let _ = writeln!(
                s,
                "    oifname {} ct status dnat ct original {ip} daddr {range} {ip} saddr {pods} snat {ip} prefix to {aliases}",
                self.links
            );
        }
    }

    /// Replaces a plan by another one, in one transaction.
    pub(crate) fn change(self, s: &mut String, table: &str, old: &Plan, new: &Plan) {
        for Family { tag, .. } in self.families() {
            let _ = writeln!(s, "flush map inet {table} service_ports{tag}");
            let _ = writeln!(s, "flush map inet {table} service_traffic{tag}");
        }
        let own: Vec<String> = self.families().flat_map(|family| chains(old, family.tag)).collect();
        for chain in &own {
            let _ = writeln!(s, "flush chain inet {table} {chain}");
        }
        for chain in own {
            let _ = writeln!(s, "delete chain inet {table} {chain}");
        }
        for Family { tag, .. } in self.families() {
            for group in 0..old.groups.len() {
                let _ = writeln!(s, "delete set inet {table} {}", set(group, tag));
            }
        }
        self.add(s, table, new);
    }

    /// Adds a plan where there is none.
    pub(crate) fn add(self, s: &mut String, table: &str, plan: &Plan) {
        if plan.addresses.is_empty() {
            return;
        }
        for family in self.families() {
            add(s, table, plan, family);
        }
    }
}

fn add(s: &mut String, table: &str, plan: &Plan, family: Family) {
    let Family { ip, kind, tag, .. } = family;
    let _ = writeln!(s, "table inet {table} {{");
    for (at, pods) in plan.groups.iter().enumerate() {
        let pods = joined(pods.iter().map(|pod| family.pod(*pod).to_string()));
        let _ = writeln!(s, "  set {} {{ type {kind}; elements = {{ {pods} }}; }}", set(at, tag));
    }
    for (number, address) in &plan.addresses {
        for (port, doors) in &address.doors {
            let _ = writeln!(s, "  chain {} {{", door(*number, *port, tag));
            for one in doors {
                let protocol = number_of(port.0);
                let to = destination(&one.targets, family);
                let clients = set(one.clients, tag);
                let _ = writeln!(s, "    {ip} saddr @{clients} meta l4proto {protocol} dnat {to}");
            }
            s.push_str("  }\n");
        }
        let (clients, members) = (set(address.clients, tag), set(address.members, tag));
        let _ = writeln!(
            s,
            "  chain {} {{\n    ct direction original {ip} saddr @{clients} {ip} daddr @{members} accept\n    \
             ct direction reply {ip} saddr @{members} {ip} daddr @{clients} accept\n  }}",
            traffic(*number, tag)
        );
    }
    s.push_str("}\n");
    let doors = plan.addresses.iter().flat_map(|(number, address)| {
        address.doors.keys().map(move |port| {
            let (ip, protocol) = (family.address(*number), number_of(port.0));
            format!("{ip} . {protocol} . {} : goto {}", port.1, door(*number, *port, tag))
        })
    });
    let doors = joined(doors);
    if !doors.is_empty() {
        let _ = writeln!(s, "add element inet {table} service_ports{tag} {{ {doors} }}");
    }
    let all = plan.addresses.keys().map(|at| format!("{} : goto {}", family.address(*at), traffic(*at, tag)));
    let _ = writeln!(s, "add element inet {table} service_traffic{tag} {{ {} }}", joined(all));
}

/// One of the targets, at random.
fn destination(targets: &[(u16, u16)], family: Family) -> String {
    let ip = family.ip;
    if let [(pod, port)] = targets {
        return format!("{ip} to {}", std::net::SocketAddr::new(family.pod(*pod), *port));
    }
    let each = targets.iter().enumerate().map(|(at, (pod, port))| format!("{at} : {} . {port}", family.pod(*pod)));
    format!("{ip} addr . port to numgen random mod {} map {{ {} }}", targets.len(), joined(each))
}

/// The chains of a plan.
fn chains(plan: &Plan, tag: u8) -> Vec<String> {
    let of = |(number, address): (&u16, &Address)| {
        let doors: BTreeSet<String> = address.doors.keys().map(|port| door(*number, *port, tag)).collect();
        doors.into_iter().chain([traffic(*number, tag)])
    };
    plan.addresses.iter().flat_map(of).collect()
}

fn set(group: usize, tag: u8) -> String {
    format!("service_pods{group}_{tag}")
}

fn door(number: u16, (protocol, port): (ServiceProtocol, u16), tag: u8) -> String {
    format!("service_{number}_{}_{port}_{tag}", number_of(protocol))
}

fn traffic(number: u16, tag: u8) -> String {
    format!("service_{number}_{tag}")
}

/// By number, since `nft` takes names from /etc/protocols, which a small system has not.
fn number_of(protocol: ServiceProtocol) -> u8 {
    match protocol {
        ServiceProtocol::Tcp => 6,
        ServiceProtocol::Udp => 17,
    }
}

fn joined(all: impl Iterator<Item = String>) -> String {
    all.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::super::plan::Door;
    use super::*;

    fn writer() -> Writer<'static> {
        let range = Range { ipv4: "10.66.0.0/16".parse().unwrap(), ipv6: "fd00:9::/64".parse().unwrap() };
        let pods6 = Some("fd00:1::/64".parse().unwrap());
        Writer { links: "\"hearth-abcd-*\"", range, pods4: "10.65.128.0/17".parse().unwrap(), pods6 }
    }

    fn plan(targets: Vec<(u16, u16)>) -> Plan {
        let doors = BTreeMap::from([((ServiceProtocol::Udp, 53), vec![Door { clients: 0, targets }])]);
        let address = Address { clients: 0, members: 1, doors };
        Plan {
            groups: vec![BTreeSet::from([7]), BTreeSet::from([2, 3])],
            addresses: BTreeMap::from([(0x8002, address)]),
        }
    }

    #[test]
    fn both_ends_of_a_connection_are_translated() {
        let mut frame = String::new();
        writer().frame(&mut frame);
        writer().aliases(&mut frame);
        assert!(frame.contains("ip daddr 10.66.0.0/16 ip daddr . meta l4proto . th dport vmap @service_ports4"));
        assert!(frame.contains("ip saddr 10.65.128.0/17 snat ip prefix to 10.66.0.0/17"), "{frame}");
        assert!(frame.contains("ip6 saddr fd00:1::/64 snat ip6 prefix to fd00:9::/64"), "{frame}");
        let mut rules = String::new();
        writer().add(&mut rules, "t", &plan(vec![(2, 5353)]));
        assert!(rules.contains("ip saddr @service_pods0_4 meta l4proto 17 dnat ip to 10.65.128.2:5353"), "{rules}");
        assert!(rules.contains("meta l4proto 17 dnat ip6 to [fd00:1::2]:5353"), "{rules}");
        assert!(rules.contains("{ 10.66.128.2 . 17 . 53 : goto service_32770_17_53_4 }"), "{rules}");
        let mut several = String::new();
        writer().add(&mut several, "t", &plan(vec![(2, 53), (3, 54)]));
        assert!(
            several.contains("numgen random mod 2 map { 0 : 10.65.128.2 . 53, 1 : 10.65.128.3 . 54 }"),
            "{several}"
        );
    }

    #[test]
    fn all_of_the_old_plan_goes_before_the_new_one_comes() {
        let mut s = String::new();
        writer().change(&mut s, "t", &plan(vec![(2, 53)]), &Plan::default());
        for gone in [
            "delete chain inet t service_32770_17_53_6",
            "delete set inet t service_pods1_4",
            "flush map inet t service_ports6",
        ] {
            assert!(s.contains(gone), "{gone}: {s}");
        }
        assert!(!s.contains("add element"), "{s}");
    }
}
