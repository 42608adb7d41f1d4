//! The bytes of a log segment: a head, then records. Pure functions over bytes.
//!
//! # Format, version 1
//! Integers are little-endian, checksums CRC-32C.
//! ```text
//! head    "HEARTHLG" | version u32 | number of the segment u64 | checksum of the head u32
//! record  length of the payload u32 | synced u32 | checksum of the payload u32 | checksum of these 12 bytes u32 | payload
//! payload kind u8 | fields
//! ```
//! `synced` is how much of the file was durable when the record was written: everything before it was acknowledged, or
//! could have been.
//!
//! # Torn or damaged
//! A power cut leaves the records since the last sync in any shape: cut off, or with sectors of zeros. Those were never
//! acknowledged and are cut. Anything else that is wrong is damage to records that may have been acknowledged, and is
//! refused: a record is only taken for torn where bytes are missing or a sector of it is zero, and where no record
//! behind it was written after it had been synced.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use hearth_state::Command;
use openraft::Membership;

use crate::types::{Entry, LogId, Payload, Proposal, log_id};

/// The first bytes of a segment.
pub(crate) const MAGIC: &[u8; 8] = b"HEARTHLG";
/// The version that this program writes, and the only one it reads.
pub(crate) const VERSION: u32 = 1;
/// Bytes of a segment's head.
pub(crate) const HEAD: usize = 24;
/// Bytes of a record's head.
pub(crate) const RECORD_HEAD: usize = 16;
/// The longest payload in bytes: twice the largest transaction, which the store bounds.
pub(crate) const MAX_PAYLOAD: usize = 64 << 20;
/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;

const KIND_BLANK: u8 = 1;
const KIND_COMMAND: u8 = 2;
const KIND_MEMBERSHIP: u8 = 3;
const KIND_TRUNCATE: u8 = 4;
const KIND_PURGE: u8 = 5;

/// What a record says.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    /// An entry of the log.
    Entry(Entry),
    /// Entries behind this one do not count any more.
    TruncateAfter(Option<LogId>),
    /// Entries up to this one were let go: a snapshot has them.
    Purge(LogId),
}

/// What is wrong with a segment, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The byte in the file.
    pub(crate) offset: usize,
    /// What is wrong.
    pub(crate) why: String,
    /// Whether the bytes are intact, and of another program.
    pub(crate) unreadable: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.offset, self.why)
    }
}

/// The head of a segment.
pub(crate) fn head(number: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..20].copy_from_slice(&number.to_le_bytes());
    let crc = crc32c::crc32c(&head[..20]);
    head[20..].copy_from_slice(&crc.to_le_bytes());
    head
}

/// Whether bytes can be a head that was never durable, so that the segment was never used.
pub(crate) fn is_unfinished_head(bytes: &[u8]) -> bool {
    bytes.len() < HEAD || bytes[..HEAD].iter().all(|byte| *byte == 0)
}

/// Checks the head of a segment.
pub(crate) fn check_head(bytes: &[u8], number: u64) -> Result<(), Damage> {
    let damage = |why: String| Err(Damage { offset: 0, why, unreadable: false });
    if bytes.len() < HEAD || bytes[..8] != *MAGIC {
        return damage("this is no log segment".into());
    }
    let version = u32_at(bytes, 8);
    if version != VERSION {
        return damage(format!("format version {version}; this program reads {VERSION}"));
    }
    if bytes[..HEAD] != head(number) {
        return damage("the head is damaged, or the file was renamed".into());
    }
    Ok(())
}

/// Appends the record of a payload that `write` writes; [`seal`] completes it.
fn record(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEAD]);
    write(out);
    let length = (out.len() - start - RECORD_HEAD) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Appends the record of an entry.
pub(crate) fn push_entry(out: &mut Vec<u8>, entry: &Entry) {
    record(out, |out| push_payload(out, entry));
}

/// Appends the payload of an entry's record alone, as it also travels between servers.
pub(crate) fn push_payload(out: &mut Vec<u8>, entry: &Entry) {
    let (kind, body) = match &entry.payload {
        Payload::Blank => (KIND_BLANK, Bytes::new()),
        Payload::Normal(proposal) => (KIND_COMMAND, proposal.bytes()),
        Payload::Membership(membership) => {
            (KIND_MEMBERSHIP, serde_json::to_vec(membership).expect("a membership is JSON").into())
        }
    };
    out.push(kind);
    push_log_id(out, &entry.log_id);
    out.extend_from_slice(&body);
}

/// Appends the record of a truncation.
pub(crate) fn push_truncate(out: &mut Vec<u8>, after: Option<&LogId>) {
    record(out, |out| {
        out.push(KIND_TRUNCATE);
        if let Some(id) = after {
            push_log_id(out, id);
        }
    });
}

/// Appends the record of a purge.
pub(crate) fn push_purge(out: &mut Vec<u8>, upto: &LogId) {
    record(out, |out| {
        out.push(KIND_PURGE);
        push_log_id(out, upto);
    });
}

/// Completes the records in `bytes`, which go to a file of which `synced` bytes are durable.
pub(crate) fn seal(bytes: &mut [u8], synced: usize) {
    let mut at = 0;
    while at < bytes.len() {
        let end = at + RECORD_HEAD + u32_at(bytes, at) as usize;
        bytes[at + 4..at + 8].copy_from_slice(&(synced as u32).to_le_bytes());
        let payload = crc32c::crc32c(&bytes[at + RECORD_HEAD..end]);
        bytes[at + 8..at + 12].copy_from_slice(&payload.to_le_bytes());
        let head = crc32c::crc32c(&bytes[at..at + 12]);
        bytes[at + 12..at + 16].copy_from_slice(&head.to_le_bytes());
        at = end;
    }
}

/// How long each of the records is, heads included.
pub(crate) fn lengths(records: &[u8]) -> impl Iterator<Item = usize> + use<'_> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let length = (at < records.len()).then(|| RECORD_HEAD + u32_at(records, at) as usize)?;
        at += length;
        Some(length)
    })
}

/// Reads the entry of one record, whose bytes these are.
pub(crate) fn read_entry(record: &[u8]) -> Result<Entry, Unread> {
    let damaged = |why: &str| Unread { why: why.into(), unreadable: false };
    let found = read_record(record, 0).map_err(|bad| damaged(bad.why))?;
    match read_payload(&record[found.payload])? {
        Record::Entry(entry) => Ok(entry),
        Record::TruncateAfter(_) | Record::Purge(_) => Err(damaged("a record is not that of an entry")),
    }
}

/// What is in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Where the payloads are.
    pub(crate) payloads: Vec<Range<usize>>,
    /// Where the intact part of the file ends; behind it is what a power cut left.
    pub(crate) valid: usize,
}

/// Finds the records of a segment whose head was checked. `last`: whether the segment is the last one, the only one that
/// can be torn.
pub(crate) fn scan(bytes: &[u8], last: bool) -> Result<Scan, Damage> {
    let mut payloads = Vec::new();
    let mut at = HEAD;
    while at < bytes.len() {
        match read_record(bytes, at) {
            Ok(found) => {
                at = found.payload.end;
                payloads.push(found.payload);
            }
            Err(bad) if last && bad.torn && !synced_past(bytes, at) => break,
            Err(bad) => return Err(Damage { offset: at, why: bad.why.into(), unreadable: false }),
        }
    }
    Ok(Scan { payloads, valid: at.min(bytes.len()) })
}

struct Found {
    payload: Range<usize>,
    synced: usize,
}

struct Bad {
    why: &'static str,
    /// Whether a power cut can have done it.
    torn: bool,
}

fn read_record(bytes: &[u8], at: usize) -> Result<Found, Bad> {
    let body = at + RECORD_HEAD;
    if bytes.len() < body {
        return Err(Bad { why: "a record is cut off", torn: true });
    }
    if crc32c::crc32c(&bytes[at..at + 12]) != u32_at(bytes, at + 12) {
        let torn = has_empty_sector(bytes, at..body);
        return Err(Bad { why: "the head of a record does not have its checksum", torn });
    }
    let length = u32_at(bytes, at) as usize;
    if length == 0 || length > MAX_PAYLOAD {
        return Err(Bad { why: "a record has an impossible length", torn: false });
    }
    let payload = body..body + length;
    if bytes.len() < payload.end {
        return Err(Bad { why: "a record is cut off", torn: true });
    }
    if crc32c::crc32c(&bytes[payload.clone()]) != u32_at(bytes, at + 8) {
        let torn = has_empty_sector(bytes, at..payload.end);
        return Err(Bad { why: "a record does not have its checksum", torn });
    }
    Ok(Found { payload, synced: u32_at(bytes, at + 4) as usize })
}

/// Whether a sector, as far as it is in the range, is all zeros.
fn has_empty_sector(bytes: &[u8], range: Range<usize>) -> bool {
    let mut start = range.start;
    while start < range.end {
        let end = ((start / SECTOR + 1) * SECTOR).min(bytes.len());
        if bytes[start..end].iter().all(|byte| *byte == 0) {
            return true;
        }
        start = end;
    }
    // The record's own share of its last sector: the rest may be another record.
    let start = (range.end.saturating_sub(1) / SECTOR * SECTOR).max(range.start);
    bytes[start..range.end].iter().all(|byte| *byte == 0)
}

/// Whether an intact record behind `at` says that the file was durable beyond `at` when it was written.
fn synced_past(bytes: &[u8], at: usize) -> bool {
    (at + 1..bytes.len()).any(|other| read_record(bytes, other).is_ok_and(|found| found.synced > at))
}

/// Why a payload cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) why: String,
    /// Whether it is of another program, rather than damaged.
    pub(crate) unreadable: bool,
}

/// Reads a payload. A command that this program cannot apply is an error: what comes after it stands on it.
pub(crate) fn read_payload(payload: &[u8]) -> Result<Record, Unread> {
    let damaged = |why: String| Unread { why, unreadable: false };
    let newer = |why: String| Unread { why, unreadable: true };
    let (kind, rest) = payload.split_first().ok_or_else(|| damaged("a record is empty".into()))?;
    let cut_off = || damaged("a record is too short for its kind".into());
    if *kind == KIND_TRUNCATE && rest.is_empty() {
        return Ok(Record::TruncateAfter(None));
    }
    let (id, body) = rest.split_at_checked(24).ok_or_else(cut_off)?;
    let log_id = read_log_id(id);
    let payload = match *kind {
        KIND_TRUNCATE => return Ok(Record::TruncateAfter(Some(log_id))),
        KIND_PURGE => return Ok(Record::Purge(log_id)),
        KIND_BLANK => Payload::Blank,
        KIND_COMMAND => {
            let command = Command::decode(body);
            if let Some(why) = command.unread() {
                return Err(newer(why));
            }
            Payload::Normal(Proposal { command: Arc::new(command), encoded: Bytes::new() })
        }
        KIND_MEMBERSHIP => Payload::Membership(
            serde_json::from_slice::<Membership<_, _>>(body)
                .map_err(|error| damaged(format!("a membership: {error}")))?,
        ),
        other => return Err(newer(format!("a record of the unknown kind {other}"))),
    };
    Ok(Record::Entry(Entry { log_id, payload }))
}

fn push_log_id(out: &mut Vec<u8>, id: &LogId) {
    out.extend_from_slice(&id.leader_id.term.to_le_bytes());
    // Reserved: the first releases wrote the leader's number here.
    out.extend_from_slice(&0_u64.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
}

fn read_log_id(bytes: &[u8]) -> LogId {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    log_id(number(0), number(16))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use hearth_types::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn id(index: u64) -> LogId {
        log_id(3, index)
    }

    fn entry(index: u64, size: usize) -> Entry {
        // No zero bytes, as in JSON, so that only a real hole looks like one.
        let command = Command::Initialize { incarnation: "x".repeat(size).as_str().into(), now: Timestamp(i64::MIN) };
        Entry { log_id: id(index), payload: Payload::Normal(Proposal::new(command)) }
    }

    /// A segment of records in batches of the given sizes.
    fn segment(batches: &[&[usize]]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = head(1).to_vec();
        let (mut starts, mut index) = (Vec::new(), 0);
        for batch in batches {
            let synced = bytes.len();
            let mut more = Vec::new();
            for size in *batch {
                starts.push(synced + more.len());
                push_entry(&mut more, &entry(index, *size));
                index += 1;
            }
            seal(&mut more, synced);
            bytes.extend_from_slice(&more);
        }
        (bytes, starts)
    }

    #[test]
    fn records_survive_their_bytes() {
        let mut bytes = head(7).to_vec();
        let mut records = Vec::new();
        push_entry(&mut records, &Entry { log_id: id(1), payload: Payload::Blank });
        push_entry(&mut records, &entry(2, 100));
        let membership = Membership::new_with_defaults(vec![[1_u64].into()], []);
        push_entry(&mut records, &Entry { log_id: id(3), payload: Payload::Membership(membership.clone()) });
        push_truncate(&mut records, None);
        push_truncate(&mut records, Some(&id(2)));
        push_purge(&mut records, &id(1));
        seal(&mut records, HEAD);
        bytes.extend_from_slice(&records);
        check_head(&bytes, 7).expect("intact");
        check_head(&bytes, 8).expect_err("another number");
        let scan = scan(&bytes, false).expect("intact");
        let read: Vec<_> = scan.payloads.iter().map(|at| read_payload(&bytes[at.clone()]).expect("readable")).collect();
        assert!(matches!(&read[0], Record::Entry(one) if one.log_id == id(1) && matches!(one.payload, Payload::Blank)));
        assert!(matches!(&read[1], Record::Entry(one) if one.log_id == id(2)));
        assert!(
            matches!(&read[2], Record::Entry(one) if matches!(&one.payload, Payload::Membership(found) if *found == membership))
        );
        assert!(matches!(read[3], Record::TruncateAfter(None)));
        assert!(matches!(read[4], Record::TruncateAfter(Some(after)) if after == id(2)));
        assert!(matches!(read[5], Record::Purge(upto) if upto == id(1)));
    }

    #[test]
    fn a_command_of_a_newer_program_is_no_damage_and_is_not_passed_over() {
        for body in [&[1, 77, 5][..], &[2, 2, 0], b""] {
            let command = Command::Unknown(body.into());
            let mut bytes = Vec::new();
            push_entry(&mut bytes, &Entry { log_id: id(1), payload: Payload::Normal(Proposal::new(command)) });
            let error = read_payload(&bytes[RECORD_HEAD..]).expect_err("unknown");
            assert!(error.unreadable && error.why.contains("unknown to this server"), "{error:?}");
        }
        assert!(read_payload(&[99; 40]).expect_err("unknown").unreadable);
    }

    #[test]
    fn a_tail_that_is_cut_off_anywhere_is_torn() {
        let (bytes, starts) = segment(&[&[40], &[700]]);
        for end in starts[1]..bytes.len() {
            let scan = scan(&bytes[..end], true).expect("torn, not damaged");
            assert_eq!((scan.payloads.len(), scan.valid), (1, starts[1]), "{end}");
            if end > starts[1] {
                super::scan(&bytes[..end], false).expect_err("only the last segment can be torn");
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_damage_wherever_it_is() {
        let (bytes, _) = segment(&[&[40], &[30, 900, 20], &[10]]);
        for at in HEAD..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                scan(&bytes, true).expect_err("refused");
            }
        }
    }

    #[test]
    fn sectors_of_zeros_are_torn_in_the_last_batch_and_damage_before_it() {
        let (bytes, starts) = segment(&[&[600, 600], &[600, 3_000, 600]]);
        for sector in 0..bytes.len() / SECTOR {
            let mut torn = bytes.clone();
            let from = (sector * SECTOR).max(HEAD);
            torn[from..(sector + 1) * SECTOR].fill(0);
            let result = scan(&torn, true);
            if from < starts[2] {
                result.expect_err("was durable");
            } else {
                let scan = result.expect("was not durable");
                assert!(starts[2] <= scan.valid && scan.valid <= from, "sector {sector}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..300), last in any::<bool>()) {
            let mut bytes = head(1).to_vec();
            bytes.extend_from_slice(&tail);
            let _ = scan(&bytes, last);
            let _ = read_payload(&tail);
            let _ = check_head(&tail, 1);
        }

        #[test]
        fn sealed_payloads_of_arbitrary_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 1..80), kind in 0_u8..7) {
            let mut bytes = Vec::new();
            record(&mut bytes, |out| {
                out.push(kind);
                out.extend_from_slice(&tail);
            });
            seal(&mut bytes, HEAD);
            let mut file = head(1).to_vec();
            file.extend_from_slice(&bytes);
            let scan = scan(&file, true).expect("intact");
            let _ = read_payload(&file[scan.payloads[0].clone()]);
        }
    }
}
