//! Which gateways are nearest to whom: asked of anything that knows, or of a table of prefixes in a file.

use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::limits;

/// Where a client is, as far as that matters for gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The leading bits of the address that decided: all addresses that share them are located the same (the SCOPE of RFC 7871).
    pub scope: u8,
    /// The locations of gateways, the nearest first. Empty: any.
    pub nearest: Arc<[Arc<str>]>,
}

/// Knows where clients are. Asked with every answer that has gateways' addresses, so it must not wait.
pub trait Locate: Send + Sync + fmt::Debug + 'static {
    /// Where an address is, of which only the first `bits` are known.
    fn locate(&self, ip: IpAddr, bits: u8) -> Located;
}

/// Knows nothing: every gateway is as near as any other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl Locate for Nowhere {
    fn locate(&self, _: IpAddr, _: u8) -> Located {
        Located { scope: 0, nearest: Arc::from([]) }
    }
}

/// Why a table of locations cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    /// The file.
    #[error("cannot read the locations in {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line.
    #[error(
        "line {line} of the locations: {why}; a line is `gateway ADDRESS LOCATION` or `clients PREFIX LOCATION...`, the nearest first"
    )]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

#[derive(Clone, Debug, Default)]
struct Node {
    children: [u32; 2],
    /// 1 more than the place of its value; 0 has none.
    value: u32,
}

/// One family's prefixes, a bit a step.
#[derive(Clone, Debug)]
struct Trie(Vec<Node>);

impl Trie {
    fn new() -> Self {
        Self(vec![Node::default()])
    }

    fn insert(&mut self, bits: u128, length: u8, value: u32) -> Result<(), String> {
        let mut at = 0;
        for depth in 0..length {
            let bit = bit(bits, depth);
            at = match self.0[at].children[bit] {
                0 => {
                    if self.0.len() >= limits::LOCATION_NODES {
                        return Err(format!("the table is too large: {} steps at most", limits::LOCATION_NODES));
                    }
                    self.0.push(Node::default());
                    let new = self.0.len() - 1;
                    self.0[at].children[bit] = new as u32;
                    new
                }
                child => child as usize,
            };
        }
        if self.0[at].value != 0 {
            return Err("the prefix is there twice".to_owned());
        }
        self.0[at].value = value + 1;
        Ok(())
    }

    /// The value of the longest prefix of the address, and how many bits had to be looked at to know that there is no longer one.
    fn find(&self, bits: u128, known: u8) -> (Option<u32>, u8) {
        let (mut at, mut value) = (0, 0);
        for depth in 0..=known {
            let node = &self.0[at];
            if node.value != 0 {
                value = node.value;
            }
            if depth == known || node.children == [0, 0] {
                return (value.checked_sub(1), depth);
            }
            match node.children[bit(bits, depth)] {
                0 => return (value.checked_sub(1), depth + 1),
                child => at = child as usize,
            }
        }
        (value.checked_sub(1), known)
    }
}

/// Of 128, the first is bit 0.
fn bit(bits: u128, depth: u8) -> usize {
    (bits >> (127 - depth)) as usize & 1
}

/// The address at the front of 128 bits, and how many it has.
fn bits_of(ip: IpAddr) -> (u128, u8) {
    match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    }
}

/// Prefixes of clients with the locations nearest to each, and the locations of gateways; the longest prefix decides.
///
/// ```text
/// # where gateways are
/// gateway 192.0.2.1 amsterdam
/// gateway 2001:db8::1 amsterdam
/// gateway 198.51.100.1 newyork
/// # which are nearest to whom
/// clients 0.0.0.0/0 amsterdam newyork
/// clients 203.0.113.0/24 newyork amsterdam
/// ```
#[derive(Clone, Debug)]
pub struct PrefixTable {
    ipv4: Trie,
    ipv6: Trie,
    nearest: Vec<Arc<[Arc<str>]>>,
    gateways: Vec<(IpAddr, Arc<str>)>,
}

impl PrefixTable {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, LocationError> {
        let read = |source| LocationError::Read { path: path.to_owned(), source };
        Self::parse(&fs::read_to_string(path).map_err(read)?)
    }

    /// Reads its text.
    pub fn parse(text: &str) -> Result<Self, LocationError> {
        let mut table = Self { ipv4: Trie::new(), ipv6: Trie::new(), nearest: Vec::new(), gateways: Vec::new() };
        for (index, line) in text.lines().enumerate() {
            let line = line.split_once('#').map_or(line, |(before, _)| before);
            table.line(line).map_err(|why| LocationError::Line { line: index + 1, why })?;
        }
        Ok(table)
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { return Ok(()) };
        let address = |text: &str| text.parse::<IpAddr>().map_err(|_| format!("{text:?} is no address"));
        let subject = words.next().ok_or("it ends early")?;
        let locations: Vec<Arc<str>> = words.map(Arc::from).collect();
        match (first, &*locations) {
            (_, []) => Err("it names no location".to_owned()),
            ("gateway", [location]) => {
                self.gateways.push((address(subject)?.to_canonical(), Arc::clone(location)));
                Ok(())
            }
            ("gateway", _) => Err("a gateway is at one location".to_owned()),
            ("clients", _) => {
                let (ip, length) = subject.split_once('/').ok_or_else(|| format!("{subject:?} is no prefix"))?;
                let ip = address(ip)?;
                let (bits, most) = bits_of(ip);
                let length: u8 =
                    length.parse().ok().filter(|length| *length <= most).ok_or("its length does not fit")?;
                if length < 128 && bits << length != 0 {
                    return Err(format!("{subject} has bits behind its length"));
                }
                let known = self.nearest.iter().position(|one| **one == *locations);
                let value = known.unwrap_or_else(|| {
                    self.nearest.push(locations.into());
                    self.nearest.len() - 1
                });
                let trie = if ip.is_ipv4() { &mut self.ipv4 } else { &mut self.ipv6 };
                trie.insert(bits, length, value as u32)
            }
            (other, _) => Err(format!("{other:?} is neither gateway nor clients")),
        }
    }

    /// The location of a gateway.
    pub fn gateway(&self, ip: IpAddr) -> Option<Arc<str>> {
        let ip = ip.to_canonical();
        self.gateways.iter().find(|(gateway, _)| *gateway == ip).map(|(_, location)| Arc::clone(location))
    }

    /// Every gateway that it names.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.gateways.iter().map(|(ip, _)| *ip)
    }
}

impl Locate for PrefixTable {
    fn locate(&self, ip: IpAddr, bits: u8) -> Located {
        let trie = if ip.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        let (address, most) = bits_of(ip);
        let (value, scope) = trie.find(address, bits.min(most));
        let nearest = value.and_then(|value| self.nearest.get(value as usize));
        Located { scope, nearest: nearest.cloned().unwrap_or_else(|| Arc::from([])) }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    const TABLE: &str = "
        gateway 192.0.2.1 ams  # the first
        gateway 2001:db8::1 ams
        gateway 198.51.100.1 nyc
        clients 203.0.0.0/8 ams nyc
        clients 203.0.113.0/24 nyc
        clients 2001:db8:1::/48 nyc ams
    ";

    fn locate(table: &PrefixTable, ip: &str, bits: u8) -> (String, u8) {
        let found = table.locate(ip.parse().expect("an address"), bits);
        (found.nearest.join(" "), found.scope)
    }

    #[test]
    fn the_longest_prefix_decides_and_the_scope_says_for_whom_else() {
        let table = PrefixTable::parse(TABLE).expect("a table");
        for (ip, bits, nearest, scope) in [
            ("203.0.113.7", 32, "nyc", 24),
            ("203.0.113.0", 24, "nyc", 24),
            // Whoever tells too little of itself gets what holds for what it told.
            ("203.0.112.0", 20, "ams nyc", 20),
            // The bit that tells it from 203.0.113.0/24.
            ("203.0.112.1", 32, "ams nyc", 24),
            ("203.128.0.1", 32, "ams nyc", 9),
            ("10.0.0.1", 32, "", 1),
            ("2001:db8:1::5", 128, "nyc ams", 48),
            ("2001:db8:1::", 56, "nyc ams", 48),
            ("2001:db8:2::", 56, "", 47),
        ] {
            assert_eq!(locate(&table, ip, bits), (nearest.to_owned(), scope), "{ip}/{bits}");
        }
        assert_eq!(table.gateway("::ffff:192.0.2.1".parse().expect("an address")).as_deref(), Some("ams"));
        assert_eq!(table.gateway("192.0.2.2".parse().expect("an address")), None);
        let empty = PrefixTable::parse("").expect("nothing is a table");
        assert_eq!(locate(&empty, "192.0.2.1", 32), (String::new(), 0));
    }

    #[test]
    fn what_is_no_table_is_refused_with_its_line() {
        for (text, part) in [
            ("clients 10.0.0.0/8", "no location"),
            ("\ngateway 10.0.0.x ams", "line 2"),
            ("gateway 10.0.0.1 ams nyc", "one location"),
            ("clients 10.0.0.1/8 ams", "behind its length"),
            ("clients 10.0.0.0/33 ams", "does not fit"),
            ("clients 10.0.0.0 ams", "no prefix"),
            ("clients 10.0.0.0/8 ams\nclients 10.0.0.0/8 nyc", "twice"),
            ("where 10.0.0.0/8 ams", "neither"),
            ("clients", "ends early"),
        ] {
            let error = PrefixTable::parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against the same by looking at every prefix: the value, and that everybody in the scope gets it too.
        #[test]
        fn everybody_in_a_scope_is_located_the_same(
            prefixes in prop::collection::btree_map((any::<u16>(), 0..=16_u8), 0..3_usize, 0..12),
            asked in any::<u16>(),
            other in any::<u32>(),
        ) {
            let mut text = String::new();
            let mut all = std::collections::BTreeMap::new();
            for ((ip, length), place) in prefixes {
                let network = u32::from(ip) << 16 & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                all.insert((network, length), place);
            }
            for ((network, length), place) in &all {
                let network = std::net::Ipv4Addr::from(*network);
                writeln!(text, "clients {network}/{length} place{place}").expect("a text takes all");
            }
            let table = PrefixTable::parse(&text).expect("a table");
            let ip = u32::from(asked) << 16 | 1;
            let found = table.locate(std::net::Ipv4Addr::from(ip).into(), 32);
            let longest = all.iter().filter(|((network, length), _)| {
                u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0) & ip == *network
            }).max_by_key(|((_, length), _)| *length).map(|(_, place)| format!("place{place}"));
            prop_assert_eq!(found.nearest.join(" "), longest.unwrap_or_default());
            let mask = u32::MAX.checked_shl(32 - u32::from(found.scope)).unwrap_or(0);
            let neighbour = ip & mask | other & !mask;
            let beside = table.locate(std::net::Ipv4Addr::from(neighbour).into(), 32);
            prop_assert_eq!(beside, found);
        }
    }
}
