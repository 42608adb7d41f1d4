//! The `nameserver` lines of resolv.conf(5). Pure.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// As many as glibc reads (`MAXNS`).
pub(crate) const MAX_NAMESERVERS: usize = 3;
/// Where name servers listen.
const PORT: u16 = 53;

/// The name servers in the order given; lines that cannot be read are skipped, as the resolver does. `scope` finds the
/// index of a link by its name, for addresses such as `fe80::1%eth0`.
pub(crate) fn nameservers(text: &str, scope: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let server = words.next().and_then(|word| parse(word, &scope));
        found.extend(server.filter(|s| !found.contains(s)));
        if found.len() == MAX_NAMESERVERS {
            break;
        }
    }
    found
}

fn parse(word: &str, scope: &impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    if let Some((address, link)) = word.split_once('%') {
        let index = link.parse().ok().or_else(|| scope(link))?;
        return Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, index).into());
    }
    word.parse().ok().map(|address: IpAddr| SocketAddr::new(address, PORT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn name_servers_are_read_as_the_resolver_reads_them() {
        let text = "# comment\nsearch lan\nnameserver 192.168.1.1\n  nameserver\t2001:db8::1 # trailing\nnameserver\n\
             nameserver nonsense\nnameserver 192.168.1.1\nnameserver fe80::1%eth0\nnameserver 9.9.9.9\n;nameserver 1.1.1.1\n";
        let found = nameservers(text, |name| (name == "eth0").then_some(4));
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.168.1.1:53", "[2001:db8::1]:53", "[fe80::1%4]:53"]);
    }

    #[test]
    fn no_name_server_is_no_name_server() {
        assert!(nameservers("", |_| None).is_empty());
        assert!(nameservers("options edns0\nnameserver fe80::1%gone\n", |_| None).is_empty());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(nameserver )?.{0,80}") {
            prop_assert!(nameservers(&text, |_| Some(1)).len() <= MAX_NAMESERVERS);
        }
    }
}
