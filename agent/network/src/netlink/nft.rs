//! As much of nf_tables as is asked and told directly (`include/uapi/linux/netfilter/nf_tables.h`): is the table there, which
//! changes were made, and the small table inside of each pod's namespace, which has to be made in microseconds. The host's
//! rules are written by the `nft` program, whose language people can read.

use std::io;

use super::{
    Attributes, Batch, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, attributes,
    socket::{Protocol, Socket},
};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;

const fn message(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

const NFT_MSG_NEWTABLE: u16 = message(0);
const NFT_MSG_GETTABLE: u16 = message(1);
const NFT_MSG_DELTABLE: u16 = message(2);
const NFT_MSG_NEWCHAIN: u16 = message(3);
const NFT_MSG_DELCHAIN: u16 = message(5);
const NFT_MSG_NEWRULE: u16 = message(6);
const NFT_MSG_NEWSET: u16 = message(9);
const NFT_MSG_NEWSETELEM: u16 = message(12);
const NFT_MSG_NEWGEN: u16 = message(15);
const NFT_MSG_GETGEN: u16 = message(16);
/// The last kind of message (`NFT_MSG_MAX`, with room for what later kernels add).
const NFT_MSG_LAST: u16 = message(0xff);

/// The name of the table, in the messages of tables, chains, rules, sets and their elements alike.
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_GEN_ID: u16 = 1;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_LIST_SET_ID: u16 = 4;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFT_SET_INTERVAL: u32 = 4;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_GOTO: u32 = -4i32 as u32;
const NF_INET_LOCAL_OUT: u32 = 3;
const NFPROTO_INET: u8 = 1;
/// The register that all values pass through, of 16 bytes; register 0 is the verdict.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;
const NFT_REJECT_TCP_RST: u32 = 1;
const NFT_REJECT_ICMPX_UNREACH: u32 = 2;
const NFT_REJECT_ICMPX_ADMIN_PROHIBITED: u8 = 3;

/// `struct nfgenmsg`: family, version, resource id in network byte order.
const INET: [u8; 4] = [NFPROTO_INET, 0, 0, 0];
const BATCH: [u8; 4] = [0, 0, 0, NFNL_SUBSYS_NFTABLES as u8];
/// Intervals in one message: the attribute that holds them is at most 64 KiB, and each takes up to 72 bytes.
const INTERVALS_A_MESSAGE: usize = 256;

/// A change that the kernel tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change<'a> {
    /// The table that it is about, of whatever family.
    pub(crate) table: &'a str,
    /// The lower half of the ruleset's generation that it led to.
    pub(crate) generation: u16,
    /// Whether it is about a table or a chain: what decides whether packets pass a table at all.
    pub(crate) is_structure: bool,
}

/// The change in a notification of nf_tables; `None` for the end of a transaction, and for what has no table.
pub(crate) fn change(kind: u16, payload: &[u8]) -> Option<Change<'_>> {
    if !(NFT_MSG_NEWTABLE..=NFT_MSG_LAST).contains(&kind) || kind == NFT_MSG_NEWGEN {
        return None;
    }
    let is_structure = matches!(kind, NFT_MSG_NEWTABLE | NFT_MSG_DELTABLE | NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN);
    let generation = u16::from_be_bytes(payload.get(2..4)?.try_into().ok()?);
    Some(Change { table: table_name(payload)?, generation, is_structure })
}

fn table_name(payload: &[u8]) -> Option<&str> {
    attributes(payload.get(INET.len()..)?).find(|(kind, _)| *kind == NFTA_TABLE_NAME).and_then(|(_, name)| {
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        std::str::from_utf8(&name[..end]).ok()
    })
}

pub(crate) fn parse_generation(payload: &[u8]) -> Option<u32> {
    let (_, id) = attributes(payload.get(INET.len()..)?).find(|(kind, _)| *kind == NFTA_GEN_ID)?;
    id.try_into().ok().map(u32::from_be_bytes)
}

/// The number of the ruleset's last change in the calling thread's namespace: each transaction counts one.
pub(crate) fn generation() -> io::Result<u32> {
    let mut batch = Batch::new();
    batch.push("read the generation of the firewall", NFT_MSG_GETGEN, 0, &[0; 4], |_| {});
    Socket::open(Protocol::Netfilter, 0)?.get(&batch, NFT_MSG_NEWGEN, parse_generation)
}

/// Whether the table `name` of family `inet` is there.
pub(crate) fn table_exists(name: &str) -> io::Result<bool> {
    let mut batch = Batch::new();
    batch.push("look up a firewall table", NFT_MSG_GETTABLE, NLM_F_ACK, &INET, |a| {
        a.str(NFTA_TABLE_NAME, name);
    });
    match Socket::open(Protocol::Netfilter, 0)?.transact(&batch)?.first() {
        Some(Err(e)) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Some(Err(e)) => Err(io::Error::from_raw_os_error(e.raw_os_error().unwrap_or(libc::EIO))),
        Some(Ok(())) => Ok(true),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// One step of a rule. Values are compared in network byte order, and each test that fails ends the rule.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step<'a> {
    /// Loads `meta` key.
    Meta(Meta),
    /// Loads bytes of the packet: from the network header, or the transport header.
    Network {
        offset: u32,
        len: u32,
    },
    /// See above.
    Transport {
        offset: u32,
        len: u32,
    },
    /// Clears bits of the one byte that was loaded.
    Mask(u8),
    Equals(&'a [u8]),
    Differs(&'a [u8]),
    /// Whether the value is in the set of that number.
    In(&'a Set),
    Accept,
    Goto(&'a str),
    /// ICMP "administratively prohibited", of the packet's family.
    Reject,
    /// A TCP reset.
    Reset,
}

/// A key of `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meta {
    /// Index of the link that the packet leaves by, in the host's byte order.
    OutLink = 5,
    /// `AF_INET` or `AF_INET6`, one byte.
    Family = 15,
    /// Protocol number of the transport layer, one byte.
    Transport = 16,
}

/// A set of address ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// Its number in the transaction.
    pub(crate) id: u32,
    /// The type of its keys for the `nft` program, and their length in bytes.
    key: (u32, usize),
}

impl Set {
    pub(crate) const fn ipv4(name: &'static str, id: u32) -> Self {
        Self { name, id, key: (7, 4) }
    }

    pub(crate) const fn ipv6(name: &'static str, id: u32) -> Self {
        Self { name, id, key: (8, 16) }
    }
}

/// Changes that happen together or not at all, to one table of family `inet`.
#[derive(Debug)]
pub(crate) struct Transaction {
    batch: Batch,
    table: &'static str,
}

impl Transaction {
    /// Begins with an empty table where there is none.
    pub(crate) fn making(table: &'static str) -> Self {
        let mut batch = Batch::new();
        batch.push("begin a firewall transaction", NFNL_MSG_BATCH_BEGIN, 0, &BATCH, |_| {});
        let mut transaction = Self { batch, table };
        transaction.command("make the pod's firewall", NFT_MSG_NEWTABLE, NLM_F_CREATE, |_| {});
        transaction
    }

    /// Begins with an empty table, in the place of an older one if there is one.
    pub(crate) fn replacing(table: &'static str) -> Self {
        // Deleting what is not there is an error, so it is made first.
        let mut transaction = Self::making(table);
        transaction.command("remove the pod's old firewall", NFT_MSG_DELTABLE, 0, |_| {});
        transaction.command("make the pod's firewall", NFT_MSG_NEWTABLE, NLM_F_CREATE, |_| {});
        transaction
    }

    fn command(&mut self, doing: &'static str, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let table = self.table;
        self.batch.push(doing, kind, flags, &INET, |a| {
            a.str(NFTA_TABLE_NAME, table);
            fill(a);
        });
    }

    /// A chain that rules go to.
    pub(crate) fn chain(&mut self, name: &str) {
        self.command("make a chain of the pod's firewall", NFT_MSG_NEWCHAIN, NLM_F_CREATE, |a| {
            a.str(NFTA_CHAIN_NAME, name);
        });
    }

    /// The chain that everything passes that leaves the namespace; what no rule accepts is dropped.
    pub(crate) fn output_chain(&mut self, name: &str) {
        self.command("make the output chain of the pod's firewall", NFT_MSG_NEWCHAIN, NLM_F_CREATE, |a| {
            a.str(NFTA_CHAIN_NAME, name)
                .nest(NFTA_CHAIN_HOOK, &[], |a| {
                    a.be32(NFTA_HOOK_HOOKNUM, NF_INET_LOCAL_OUT).be32(NFTA_HOOK_PRIORITY, 0);
                })
                .be32(NFTA_CHAIN_POLICY, NF_DROP)
                .str(NFTA_CHAIN_TYPE, "filter");
        });
    }

    /// A set of ranges, in order and apart.
    pub(crate) fn set(&mut self, set: &Set, ranges: &[(u128, u128)]) {
        let (key_type, key_len) = set.key;
        self.command("make a set of the pod's firewall", NFT_MSG_NEWSET, NLM_F_CREATE, |a| {
            a.str(NFTA_SET_NAME, set.name)
                .be32(NFTA_SET_FLAGS, NFT_SET_INTERVAL)
                .be32(NFTA_SET_KEY_TYPE, key_type)
                .be32(NFTA_SET_KEY_LEN, key_len as u32)
                .be32(NFTA_SET_ID, set.id);
        });
        for ranges in ranges.chunks(INTERVALS_A_MESSAGE) {
            self.command("fill a set of the pod's firewall", NFT_MSG_NEWSETELEM, NLM_F_CREATE, |a| {
                a.str(NFTA_SET_ELEM_LIST_SET, set.name).be32(NFTA_SET_ELEM_LIST_SET_ID, set.id).nest(
                    NFTA_SET_ELEM_LIST_ELEMENTS,
                    &[],
                    |a| ranges.iter().for_each(|range| interval(a, *range, key_len)),
                );
            });
        }
    }

    pub(crate) fn rule(&mut self, chain: &str, steps: &[Step<'_>]) {
        self.command("add a rule to the pod's firewall", NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |a| {
            a.str(NFTA_RULE_CHAIN, chain).nest(NFTA_RULE_EXPRESSIONS, &[], |a| {
                for step in steps {
                    a.nest(NFTA_LIST_ELEM, &[], |a| step.write(a));
                }
            });
        });
    }

    /// Makes the changes in the socket's namespace; an error says what was not possible.
    pub(crate) fn commit(mut self, socket: &Socket) -> Result<(), (&'static str, io::Error)> {
        self.batch.acknowledge_last();
        let acknowledged = self.batch.doings().len() as u32;
        self.batch.push("end a firewall transaction", NFNL_MSG_BATCH_END, 0, &BATCH, |_| {});
        socket.transact_whole(&self.batch, acknowledged).map_err(|(sequence, error)| {
            let at = (sequence as usize).checked_sub(1);
            let doing = at.and_then(|at| self.batch.doings().get(at)).copied();
            (doing.unwrap_or("change the pod's firewall"), error)
        })
    }
}

/// One range: where it begins, and the first key after it, unless it ends with the last of all.
fn interval(a: &mut Attributes<'_>, (first, last): (u128, u128), key_len: usize) {
    let mut element = |key: u128, flags: u32| {
        a.nest(NFTA_LIST_ELEM, &[], |a| {
            a.nest(NFTA_SET_ELEM_KEY, &[], |a| {
                a.bytes(NFTA_DATA_VALUE, &key.to_be_bytes()[16 - key_len..]);
            });
            if flags != 0 {
                a.be32(NFTA_SET_ELEM_FLAGS, flags);
            }
        });
    };
    element(first, 0);
    let end = if key_len == 4 { u128::from(u32::MAX) } else { u128::MAX };
    if last < end {
        element(last + 1, NFT_SET_ELEM_INTERVAL_END);
    }
}

impl Step<'_> {
    fn write(self, a: &mut Attributes<'_>) {
        match self {
            Self::Meta(key) => expression(a, "meta", |a| {
                a.be32(1, REGISTER).be32(2, key as u32);
            }),
            Self::Network { offset, len } => payload(a, 1, offset, len),
            Self::Transport { offset, len } => payload(a, 2, offset, len),
            Self::Mask(mask) => expression(a, "bitwise", |a| {
                a.be32(1, REGISTER).be32(2, REGISTER).be32(3, 1);
                for (attribute, byte) in [(4, mask), (5, 0)] {
                    a.nest(attribute, &[], |a| {
                        a.bytes(NFTA_DATA_VALUE, &[byte]);
                    });
                }
            }),
            Self::Equals(value) => compare(a, 0, value),
            Self::Differs(value) => compare(a, 1, value),
            Self::In(set) => expression(a, "lookup", |a| {
                a.str(1, set.name).be32(2, REGISTER).be32(4, set.id);
            }),
            Self::Accept => verdict(a, NF_ACCEPT, None),
            Self::Goto(chain) => verdict(a, NFT_GOTO, Some(chain)),
            Self::Reject => expression(a, "reject", |a| {
                a.be32(1, NFT_REJECT_ICMPX_UNREACH).u8(2, NFT_REJECT_ICMPX_ADMIN_PROHIBITED);
            }),
            Self::Reset => expression(a, "reject", |a| {
                a.be32(1, NFT_REJECT_TCP_RST);
            }),
        }
    }
}

fn expression(a: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    a.str(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, &[], fill);
}

fn payload(a: &mut Attributes<'_>, base: u32, offset: u32, len: u32) {
    expression(a, "payload", |a| {
        a.be32(1, REGISTER).be32(2, base).be32(3, offset).be32(4, len);
    });
}

fn compare(a: &mut Attributes<'_>, operation: u32, value: &[u8]) {
    expression(a, "cmp", |a| {
        a.be32(1, REGISTER).be32(2, operation).nest(3, &[], |a| {
            a.bytes(NFTA_DATA_VALUE, value);
        });
    });
}

fn verdict(a: &mut Attributes<'_>, code: u32, chain: Option<&str>) {
    expression(a, "immediate", |a| {
        a.be32(1, VERDICT).nest(2, &[], |a| {
            a.nest(NFTA_DATA_VERDICT, &[], |a| {
                a.be32(NFTA_VERDICT_CODE, code);
                if let Some(chain) = chain {
                    a.str(NFTA_VERDICT_CHAIN, chain);
                }
            });
        });
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::netlink::messages;

    #[test]
    fn a_change_says_table_and_generation() {
        let mut batch = Batch::new();
        batch.push("x", NFT_MSG_DELCHAIN, 0, &[NFPROTO_INET, 0, 0x12, 0x34], |a| {
            a.str(NFTA_TABLE_NAME, "hearth-abcd").str(NFTA_CHAIN_NAME, "forwarded");
        });
        batch.push("x", message(8), 0, &[2, 0, 0, 7], |a| {
            a.str(NFTA_TABLE_NAME, "filter");
        });
        batch.push("x", NFT_MSG_NEWGEN, 0, &[0, 0, 0, 7], |a| {
            a.be32(NFTA_GEN_ID, 7);
        });
        batch.push("x", 24, 0, &[2, 0, 0, 7], |a| {
            a.str(1, "a route");
        });
        let read: Vec<_> =
            messages(batch.bytes()).map(|m| (change(m.kind, m.payload), parse_generation(m.payload))).collect();
        let first = Change { table: "hearth-abcd", generation: 0x1234, is_structure: true };
        let second = Change { table: "filter", generation: 7, is_structure: false };
        assert_eq!(read.iter().map(|(c, _)| *c).collect::<Vec<_>>(), [Some(first), Some(second), None, None]);
        assert_eq!(read[2].1, Some(7));
    }

    #[test]
    fn the_last_command_of_a_transaction_is_the_one_that_answers() {
        let mut transaction = Transaction::replacing("hearth");
        transaction.rule("output", &[Step::Reject]);
        transaction.batch.acknowledge_last();
        let flags: Vec<bool> = messages(transaction.batch.bytes()).map(|m| m.flags & NLM_F_ACK != 0).collect();
        assert_eq!(flags, [false, false, false, false, true]);
    }
}
