//! A small netlink codec (RFC 3549; the kernel's `Documentation/userspace-api/netlink/`). Pure: bytes in, bytes out.
//!
//! Why not the netlink crates: one batch of hand-built messages makes a whole pod link in one system call, and what is
//! needed of the protocol fits on two pages.

pub(crate) mod conntrack;
pub(crate) mod nft;
pub(crate) mod route;
pub(crate) mod socket;
pub(crate) mod tc;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// Both flag bits of an attribute's type (nested, network byte order) are not part of the type.
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;

fn align4(len: usize) -> usize {
    len.div_ceil(4) * 4
}

/// Requests to be sent to the kernel in one datagram; each is answered on its own.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// What each request does, for error messages.
    doings: Vec<&'static str>,
    /// Where the last request begins.
    last: usize,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a request whose fixed part is `fixed` and whose attributes `fill` writes; `doing` says what it does.
    pub(crate) fn push(
        &mut self,
        doing: &'static str,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let start = self.bytes.len();
        self.last = start;
        self.doings.push(doing);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        // Sequence numbers count from 1 inside a batch; port 0 lets the kernel fill in ours.
        self.bytes.extend_from_slice(&(self.doings.len() as u32).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        self.bytes.resize(align4(self.bytes.len()), 0);
        fill(&mut Attributes { bytes: &mut self.bytes });
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// Asks for an answer to the last request.
    pub(crate) fn acknowledge_last(&mut self) {
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            for (byte, flag) in flags.iter_mut().zip(NLM_F_ACK.to_ne_bytes()) {
                *byte |= flag;
            }
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn doings(&self) -> &[&'static str] {
        &self.doings
    }
}

/// Writes attributes at the end of a message.
#[derive(Debug)]
pub(crate) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Attributes<'_> {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = (ATTRIBUTE_HEADER + value.len()) as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(align4(self.bytes.len()), 0);
        self
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// In network byte order, as nf_tables wants numbers.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    pub(crate) fn str(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut with_nul = Vec::with_capacity(value.len() + 1);
        with_nul.extend_from_slice(value.as_bytes());
        with_nul.push(0);
        self.bytes(kind, &with_nul)
    }

    /// An attribute that holds `fixed` and then attributes.
    pub(crate) fn nest(&mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        self.bytes.extend_from_slice(fixed);
        self.bytes.resize(align4(self.bytes.len()), 0);
        fill(&mut Attributes { bytes: self.bytes });
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }
}

/// One message as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of one datagram, up to the first malformed one.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = u32_at(rest, 0)? as usize;
        if len < HEADER || len > rest.len() {
            return None;
        }
        let message = Message {
            kind: u16_at(rest, 4)?,
            flags: u16_at(rest, 6)?,
            sequence: u32_at(rest, 8)?,
            payload: &rest[HEADER..len],
        };
        rest = rest.get(align4(len)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`, up to the first malformed one.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        if len < ATTRIBUTE_HEADER || len > rest.len() {
            return None;
        }
        let attribute = (u16_at(rest, 2)? & ATTRIBUTE_TYPE_MASK, &rest[ATTRIBUTE_HEADER..len]);
        rest = rest.get(align4(len)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The error code in the payload of an `NLMSG_ERROR`: 0 is an acknowledgement, else a positive errno.
pub(crate) fn error_code(payload: &[u8]) -> Option<i32> {
    u32_at(payload, 0).map(|code| (code as i32).wrapping_neg())
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_built_is_what_is_read() {
        let mut batch = Batch::new();
        batch.push("first", 16, NLM_F_ACK, &[9; 16], |a| {
            a.str(3, "eth0").nest(18, &[], |a| {
                a.str(1, "veth").nest(2, &[7; 16], |a| {
                    a.u32(4, 1500);
                });
            });
        });
        batch.push("second", 20, 0, &[1, 2], |_| {});
        let read: Vec<_> = messages(batch.bytes()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].kind, read[0].flags, read[0].sequence), (16, NLM_F_ACK | NLM_F_REQUEST, 1));
        assert_eq!((read[1].kind, read[1].sequence), (20, 2));
        let top: Vec<_> = attributes(&read[0].payload[16..]).collect();
        assert_eq!(top[0], (3, b"eth0\0".as_slice()));
        let info: Vec<_> = attributes(top[1].1).collect();
        assert_eq!(info[0], (1, b"veth\0".as_slice()));
        assert_eq!(attributes(&info[1].1[16..]).collect::<Vec<_>>(), [(4, 1500u32.to_ne_bytes().as_slice())]);
    }

    #[test]
    fn lengths_that_lie_end_the_iteration() {
        let mut bytes = vec![0; 32];
        for lie in [0u32, 15, 33, u32::MAX] {
            bytes[..4].copy_from_slice(&lie.to_ne_bytes());
            assert_eq!(messages(&bytes).count(), 0, "{lie}");
        }
        for lie in [0u16, 3, 33, u16::MAX] {
            bytes[..2].copy_from_slice(&lie.to_ne_bytes());
            assert_eq!(attributes(&bytes).count(), 0, "{lie}");
        }
    }

    fn read_as_everything(bytes: &[u8]) {
        let total: usize = messages(bytes).map(|m| m.payload.len() + HEADER).sum();
        assert!(total <= bytes.len());
        for Message { kind, payload, .. } in messages(bytes) {
            let _ = (route::parse_link(payload), route::parse_address(payload), route::parse_route(payload));
            let _ = (route::changed_prefix(kind, payload), nft::change(kind, payload), error_code(payload));
            let _ = tc::parse_root(payload);
        }
        let _ = (route::parse_link(bytes), route::parse_address(bytes), route::parse_route(bytes));
        let _ = (route::changed_prefix(20, bytes), route::changed_prefix(24, bytes), route::is_local_route(bytes));
        let _ = (tc::parse_root(bytes), tc::is_change(36));
        let _ = (nft::change(0xa05, bytes), nft::parse_generation(bytes), error_code(bytes));
    }

    /// Every file of the corpus (what kernels send, and what none should), cut and changed everywhere.
    #[test]
    fn the_corpus_cut_and_changed_confuses_no_reader() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/netlink");
        for path in std::fs::read_dir(directory).unwrap() {
            let bytes = std::fs::read(path.unwrap().path()).unwrap();
            for at in 0..bytes.len() {
                read_as_everything(&bytes[..at]);
                for byte in [0, 1, 4, 0x7f, 0xff] {
                    let mut changed = bytes.clone();
                    changed[at] = byte;
                    read_as_everything(&changed);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_confuse_the_readers(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            read_as_everything(&bytes);
        }

        #[test]
        fn attributes_round_trip(values in proptest::collection::vec((0u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let mut batch = Batch::new();
            batch.push("x", 1, 0, &[], |a| for (kind, value) in &values { a.bytes(*kind, value); });
            let message = messages(batch.bytes()).next().unwrap();
            let read: Vec<_> = attributes(message.payload).map(|(k, v)| (k, v.to_vec())).collect();
            prop_assert_eq!(read, values);
        }
    }
}
