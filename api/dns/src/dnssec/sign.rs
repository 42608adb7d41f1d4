//! Signatures of record sets (RFC 4034 section 3), the last ones of which are kept.

use std::sync::{Mutex, PoisonError};

use hearth_types::{
    Timestamp,
    dns::keys::{ALGORITHM, Role},
};
use ring::digest;

use super::{Keys, keys::Pair};
use crate::{
    limits,
    rrset::{RrSet, code},
};

/// A signature that is kept.
struct Kept {
    /// Of what is signed, with the key, without the times.
    of: [u8; 32],
    inception: u32,
    expiration: u32,
    signature: Vec<u8>,
}

/// A table of fixed size: a new signature takes the place of whichever is there.
struct Table(Box<[Mutex<Option<Kept>>]>);

impl Table {
    fn new(places: usize) -> Self {
        Self((0..places).map(|_| Mutex::default()).collect())
    }

    fn place(&self, of: &[u8; 32]) -> &Mutex<Option<Kept>> {
        let [a, b, c, d, ..] = *of;
        &self.0[u32::from_be_bytes([a, b, c, d]) as usize % self.0.len()]
    }
}

/// Makes signatures, and keeps the last ones. What names that do not exist need is kept apart: anybody can ask for any number of those.
pub(crate) struct Signatures {
    sets: Table,
    denials: Table,
}

impl std::fmt::Debug for Signatures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signatures")
    }
}

/// RFC 4034 section 3.1.3: without the empty last one, and without the `*` of a wildcard.
fn labels(owner: &[u8]) -> u8 {
    let (mut at, mut count) = (0, 0);
    while owner[at] != 0 {
        if !(at == 0 && owner.starts_with(b"\x01*")) {
            count += 1;
        }
        at += usize::from(owner[at]) + 1;
    }
    count
}

impl Signatures {
    pub(crate) fn new() -> Self {
        Self { sets: Table::new(limits::SIGNATURES), denials: Table::new(limits::DENIAL_SIGNATURES) }
    }

    /// The RRSIG set of a record set. `None` where there is no key.
    pub(crate) fn sign(&self, set: &RrSet, zone: &[u8], keys: &Keys, now: Timestamp) -> Option<RrSet> {
        let role = if matches!(set.kind, code::DNSKEY | code::CDS | code::CDNSKEY) { Role::Ksk } else { Role::Zsk };
        let pair = keys.signer(role, now)?;
        let owner = set.owner.to_ascii_lowercase();
        // Type covered, algorithm, labels, original TTL; then the times; then key tag, signer.
        let mut head = set.kind.to_be_bytes().to_vec();
        head.extend([ALGORITHM, labels(&owner)]);
        head.extend(set.ttl.to_be_bytes());
        let mut tail = pair.tag.to_be_bytes().to_vec();
        tail.extend(zone);
        let records = canonical(set, &owner);
        let kept = self.kept(set, pair, (&head, &tail, &records), now)?;
        let mut data = head;
        data.extend(kept.expiration.to_be_bytes());
        data.extend(kept.inception.to_be_bytes());
        data.extend(tail);
        data.extend(kept.signature);
        Some(RrSet { owner: set.owner.clone(), kind: code::RRSIG, ttl: set.ttl, data: vec![data] })
    }

    fn kept(&self, set: &RrSet, pair: &Pair, parts: (&[u8], &[u8], &[u8]), now: Timestamp) -> Option<Kept> {
        let (head, tail, records) = parts;
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [&pair.dnskey, head, tail, records] {
            context.update(part);
        }
        let mut of = [0; 32];
        of.copy_from_slice(context.finish().as_ref());
        // Seconds of 32 bits, which wrap (RFC 1982).
        let now = now.0.div_euclid(1000) as u32;
        let table = if set.kind == code::NSEC { &self.denials } else { &self.sets };
        let place = table.place(&of);
        {
            let held = place.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(kept) = held.as_ref().filter(|kept| kept.of == of) {
                let age = now.wrapping_sub(kept.inception.wrapping_add(limits::INCEPTION_BACK));
                if age < limits::SIGNATURE_REUSE {
                    return Some(Kept { signature: kept.signature.clone(), ..*kept });
                }
            }
        }
        let jitter = u32::from_be_bytes([of[28], of[29], of[30], of[31]]) % limits::SIGNATURE_JITTER;
        let inception = now.wrapping_sub(limits::INCEPTION_BACK);
        let expiration = now.wrapping_add(limits::SIGNATURE_VALIDITY + jitter);
        let mut message = head.to_vec();
        message.extend(expiration.to_be_bytes());
        message.extend(inception.to_be_bytes());
        message.extend(tail);
        message.extend(records);
        let signature = pair.sign(&message)?;
        let made = Kept { of, inception, expiration, signature };
        let copy = Kept { signature: made.signature.clone(), ..made };
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        Some(copy)
    }
}

/// The records in canonical form and order (RFC 4034 section 6). Names in their data are in lower case already.
fn canonical(set: &RrSet, owner: &[u8]) -> Vec<u8> {
    let mut all: Vec<&Vec<u8>> = set.data.iter().collect();
    all.sort_unstable();
    let mut out = Vec::new();
    for data in all {
        out.extend(owner);
        out.extend(set.kind.to_be_bytes());
        out.extend(1_u16.to_be_bytes());
        out.extend(set.ttl.to_be_bytes());
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    }
    out
}
