//! NSEC records (RFC 4034 section 4).

use std::collections::BTreeSet;

use crate::rrset::{RrSet, code};

/// Bytes of a name at most, with its last, empty label (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 255;

/// The NSEC record at a name that has these types and no others: it covers nothing but the name itself.
pub(crate) fn nsec(owner: &[u8], types: &[u16], ttl: u32) -> RrSet {
    let all: BTreeSet<u16> = types.iter().copied().chain([code::NSEC, code::RRSIG]).collect();
    let mut data = successor(&owner.to_ascii_lowercase());
    data.extend(bitmap(&all));
    RrSet { owner: owner.to_vec(), kind: code::NSEC, ttl, data: vec![data] }
}

/// The next name in the canonical order (RFC 4034 section 6.1) after one in lower case on the wire: that with a label of one zero byte before
/// it, and where there is no room for one, the name with a greater first label.
fn successor(name: &[u8]) -> Vec<u8> {
    if name.len() + 2 <= MAX_NAME {
        return [&[1, 0], name].concat();
    }
    let first = usize::from(name[0]);
    let (label, rest) = name[1..].split_at(first);
    let kept = label.iter().rposition(|byte| *byte != u8::MAX).map_or(0, |last| last + 1);
    let mut next = label[..kept].to_vec();
    if let Some(last) = next.last_mut() {
        // Letters count as in lower case.
        *last = if *last == b'@' { b'[' } else { *last + 1 };
    }
    [&[next.len() as u8], &*next, rest].concat()
}

/// RFC 4034 section 4.1.2.
fn bitmap(types: &BTreeSet<u16>) -> Vec<u8> {
    let mut out = Vec::new();
    for window in 0..=u8::MAX {
        let mut bits = [0_u8; 32];
        let low = u16::from(window) << 8;
        for kind in types.range(low..=low | 0xff) {
            let at = kind & 0xff;
            bits[usize::from(at / 8)] |= 0x80 >> (at % 8);
        }
        if let Some(last) = bits.iter().rposition(|byte| *byte != 0) {
            out.extend([window, last as u8 + 1]);
            out.extend(&bits[..=last]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4034 section 4.3.
    #[test]
    fn types_are_bits_as_in_the_rfc() {
        let mut expected = vec![0, 6, 0x40, 1, 0, 0, 0, 3, 4, 27];
        expected.extend([0; 26]);
        expected.push(0x20);
        assert_eq!(bitmap(&BTreeSet::from([1, 15, 46, 47, 1234])), expected);
    }

    #[test]
    fn nothing_is_between_a_name_and_its_successor() {
        assert_eq!(successor(b"\x01a\x00"), b"\x01\x00\x01a\x00");
        let long = |last: &[u8]| {
            let mut name = vec![63_u8];
            name.extend([b'x'; 63 - 2]);
            name.extend(last);
            for length in [63, 63, 61] {
                name.push(length);
                name.extend(vec![b'y'; usize::from(length)]);
            }
            name.push(0);
            assert_eq!(name.len(), MAX_NAME);
            name
        };
        assert_eq!(successor(&long(b"ab")), long(b"ac"));
        let shorter = successor(&long(b"a\xff"));
        assert_eq!((shorter[0], shorter[62]), (62, b'b'));
    }
}
