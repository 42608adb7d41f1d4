//! As much of DNS messages (RFC 1035 section 4) as a relay needs: header, one question. Pure.

/// Length of the header.
pub(super) const HEADER: usize = 12;
/// Longest name on the wire, RFC 1035 section 2.3.4.
const MAX_NAME: usize = 255;
/// Longest label; the two bits above are compression, which a question needs not.
const MAX_LABEL: u8 = 63;

const FLAG_RESPONSE: u8 = 0x80;
const FLAG_TRUNCATED: u8 = 0x02;
const OPCODE_MASK: u8 = 0x78;
const FLAG_RECURSION_DESIRED: u8 = 0x01;
const FLAG_RECURSION_AVAILABLE: u8 = 0x80;
/// Zone transfers are answered by a stream of messages, which a relay does not carry.
const TYPE_TRANSFERS: [u16; 2] = [251, 252];

/// The internet.
const CLASS_IN: [u8; 2] = [0, 1];

/// All is well.
pub(crate) const NOERROR: u8 = 0;
/// There is no such name.
pub(crate) const NXDOMAIN: u8 = 3;
/// The format of a query is wrong.
pub(crate) const FORMERR: u8 = 1;
/// The relay, or what it asks, failed.
pub(crate) const SERVFAIL: u8 = 2;
/// The kind of query is not served.
pub(crate) const NOTIMP: u8 = 4;

/// The one who asks may not.
pub(crate) const REFUSED: u8 = 5;

/// A query that may be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    bytes: Vec<u8>,
    /// Where the question ends.
    question_end: usize,
}

/// Why a message is not passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not a query: answering it could make two servers answer each other for ever.
    Ignore,
    /// Answered at once with this message.
    Answer(Vec<u8>),
}

impl Query {
    /// Checks a message from a pod: a query with one question that is not a zone transfer.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let header = bytes.get(..HEADER).ok_or(Refusal::Ignore)?;
        if header[2] & FLAG_RESPONSE != 0 {
            return Err(Refusal::Ignore);
        }
        if header[2] & OPCODE_MASK != 0 {
            return Err(Refusal::Answer(refusal(header, &[], NOTIMP)));
        }
        let one_question = header[4..6] == [0, 1] && header[6..10] == [0; 4];
        let question_end = question_end(bytes).filter(|_| one_question);
        let Some(question_end) = question_end else {
            return Err(Refusal::Answer(refusal(header, &[], FORMERR)));
        };
        let kind = u16::from_be_bytes([bytes[question_end - 4], bytes[question_end - 3]]);
        if TYPE_TRANSFERS.contains(&kind) {
            return Err(Refusal::Answer(refusal(header, &bytes[HEADER..question_end], NOTIMP)));
        }
        Ok(Self { bytes: bytes.to_vec(), question_end })
    }

    /// A question of the relay's own; `None` where no such name can be.
    pub(crate) fn of(labels: &[Vec<u8>], kind: u16) -> Option<Self> {
        let mut bytes = vec![0, 0, FLAG_RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            bytes.push(u8::try_from(label.len()).ok()?);
            bytes.extend_from_slice(label);
        }
        bytes.push(0);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&CLASS_IN);
        Self::parse(&bytes).ok()
    }

    /// The labels of the name that is asked for, in lower case.
    pub(crate) fn labels(&self) -> Vec<Vec<u8>> {
        let mut labels = Vec::new();
        let mut rest = &self.bytes[HEADER..self.question_end];
        while let [len, after @ ..] = rest
            && *len > 0
            && let Some((label, next)) = after.split_at_checked(usize::from(*len))
        {
            labels.push(label.to_ascii_lowercase());
            rest = next;
        }
        labels
    }

    /// The type of record that is asked for.
    pub(crate) fn kind(&self) -> u16 {
        u16::from_be_bytes([self.bytes[self.question_end - 4], self.bytes[self.question_end - 3]])
    }

    /// Where the records of an answer begin that has the same question.
    pub(crate) fn question_end(&self) -> usize {
        self.question_end
    }

    /// The query as it goes out, with an id of the relay's own.
    pub(crate) fn with_id(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes
    }

    /// The answer as it goes to the pod, where `bytes` is an answer to this query as sent under `id`; else `None`.
    ///
    /// The question must be the same to the byte: resolvers echo it, and those that randomise its case (draft-vixie-dnsext-
    /// dns0x20) rely on that.
    pub(crate) fn accept(&self, id: u16, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let matches = bytes.len() >= HEADER
            && bytes[..2] == id.to_be_bytes()
            && bytes[2] & FLAG_RESPONSE != 0
            && bytes[2] & OPCODE_MASK == 0
            && self.same_question(&bytes);
        matches.then(|| {
            bytes[..2].copy_from_slice(&self.bytes[..2]);
            bytes
        })
    }

    /// Servers may leave the question out of errors (FORMERR of one that knows no EDNS, for example), and of nothing else.
    fn same_question(&self, answer: &[u8]) -> bool {
        match &answer[4..6] {
            [0, 1] => answer.get(HEADER..self.question_end) == Some(&self.bytes[HEADER..self.question_end]),
            [0, 0] => answer[3] & 0x0f != 0 && answer[6..10] == [0; 4],
            _ => false,
        }
    }

    /// Whether an answer says that there is more than it holds.
    pub(crate) fn is_truncated(answer: &[u8]) -> bool {
        answer.get(2).is_some_and(|flags| flags & FLAG_TRUNCATED != 0)
    }

    /// An answer that says only: ask over TCP.
    pub(crate) fn truncated(&self) -> Vec<u8> {
        let mut answer = self.failure(NOERROR);
        answer[2] |= FLAG_TRUNCATED;
        answer
    }

    /// An answer that says only `code`; with [`NOERROR`], that there is no such record.
    pub(crate) fn failure(&self, code: u8) -> Vec<u8> {
        refusal(&self.bytes[..HEADER], &self.bytes[HEADER..self.question_end], code)
    }
}

/// Where the first question ends; `None` where it is malformed or has a compressed name.
fn question_end(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let label = *bytes.get(at)?;
        if label > MAX_LABEL {
            return None;
        }
        at += 1 + usize::from(label);
        if at - HEADER > MAX_NAME {
            return None;
        }
        if label == 0 {
            break;
        }
    }
    // Type and class.
    let end = at + 4;
    (end <= bytes.len()).then_some(end)
}

fn refusal(header: &[u8], question: &[u8], code: u8) -> Vec<u8> {
    let mut answer = Vec::with_capacity(HEADER + question.len());
    answer.extend_from_slice(&header[..2]);
    answer.push(FLAG_RESPONSE | header[2] & (OPCODE_MASK | FLAG_RECURSION_DESIRED));
    answer.push(FLAG_RECURSION_AVAILABLE | code);
    answer.extend_from_slice(&[0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    answer
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// A query for `name`, type `kind`, with id 0x1234 and recursion desired.
    pub(crate) fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|l| !l.is_empty()) {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        bytes
    }

    fn answer_to(query: &[u8]) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        answer.extend_from_slice(&[9; 16]);
        answer
    }

    #[test]
    fn a_query_goes_out_under_another_id_and_its_answer_comes_back_under_its_own() {
        let bytes = query("example.com", 1);
        let query = Query::parse(&bytes).unwrap();
        let sent = query.with_id(0xabcd);
        assert_eq!((&sent[..2], &sent[2..]), ([0xab, 0xcd].as_slice(), &bytes[2..]));
        let received = query.accept(0xabcd, answer_to(&sent)).unwrap();
        assert_eq!(received, answer_to(&bytes));
    }

    #[test]
    fn answers_to_something_else_are_not_accepted() {
        let bytes = query("example.com", 1);
        let query_ = Query::parse(&bytes).unwrap();
        let good = answer_to(&query_.with_id(7));
        assert!(query_.accept(7, good.clone()).is_some());
        assert!(query_.accept(8, good.clone()).is_none(), "another id");
        assert!(query_.accept(7, query_.with_id(7)).is_none(), "not a response");
        let other = Query::parse(&query("example.net", 1)).unwrap();
        assert!(query_.accept(7, answer_to(&other.with_id(7))).is_none(), "another name");
        let other = Query::parse(&query("example.com", 28)).unwrap();
        assert!(query_.accept(7, answer_to(&other.with_id(7))).is_none(), "another type");
        assert!(query_.accept(7, good[..11].to_vec()).is_none(), "too short");
        let mut bare = vec![0, 7, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(query_.accept(7, bare.clone()).is_some(), "an error may lack the question");
        bare[3] = 0x80;
        assert!(query_.accept(7, bare).is_none(), "an answer may not");
    }

    #[test]
    fn what_is_not_a_plain_query_is_not_passed_on() {
        let with = |at: usize, value: u8| {
            let mut bytes = query("a", 1);
            bytes[at] = value;
            Query::parse(&bytes)
        };
        assert_eq!(Query::parse(&[0; 11]), Err(Refusal::Ignore));
        assert_eq!(with(2, 0x80), Err(Refusal::Ignore), "a response");
        for (at, value, code) in
            [(2, 0x28, NOTIMP), (5, 0, FORMERR), (5, 2, FORMERR), (7, 1, FORMERR), (12, 0xc0, FORMERR)]
        {
            let Err(Refusal::Answer(answer)) = with(at, value) else { panic!("{at} {value}") };
            assert_eq!((&answer[..2], answer[3] & 0xf), ([0x12, 0x34].as_slice(), code), "{at} {value}");
        }
        let Err(Refusal::Answer(answer)) = Query::parse(&query("a", 252)) else { panic!("a zone transfer") };
        assert_eq!(answer[3] & 0xf, NOTIMP);
        let long = ["x".repeat(63).as_str(); 4].join(".");
        assert!(Query::parse(&query(&long, 1)).is_err(), "257 bytes of name");
    }

    #[test]
    fn name_and_type_of_a_question_are_read() {
        let query_ = Query::parse(&query("Www.Example.com", 28)).unwrap();
        assert_eq!(query_.labels(), [b"www".to_vec(), b"example".to_vec(), b"com".to_vec()]);
        assert_eq!(query_.kind(), 28);
        assert!(Query::parse(&query("", 2)).unwrap().labels().is_empty());
        let truncated = query_.truncated();
        assert!(Query::is_truncated(&truncated) && !Query::is_truncated(&query_.failure(SERVFAIL)));
    }

    #[test]
    fn a_failure_carries_id_question_and_code() {
        let bytes = query("example.com", 1);
        let answer = Query::parse(&bytes).unwrap().failure(SERVFAIL);
        assert_eq!(answer[..12], [0x12, 0x34, 0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answer[12..], bytes[12..]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), other in proptest::collection::vec(any::<u8>(), 0..64)) {
            match Query::parse(&bytes) {
                Ok(query) => {
                    prop_assert!(query.question_end <= bytes.len());
                    prop_assert_eq!(&query.with_id(1)[2..], &bytes[2..]);
                    let _ = query.accept(1, other);
                    prop_assert!(query.accept(1, answer_to(&query.with_id(1))).is_some());
                }
                Err(Refusal::Answer(answer)) => {
                    prop_assert_eq!(&answer[..2], &bytes[..2]);
                    prop_assert!(answer[2] & 0x80 != 0 && answer.len() <= bytes.len());
                }
                Err(Refusal::Ignore) => {}
            }
        }

        #[test]
        fn queries_with_any_tail_and_name_are_understood(labels in proptest::collection::vec("[a-z0-9_-]{1,63}", 0..4), kind in 1u16..200, tail in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = query(&labels.join("."), kind);
            let end = bytes.len();
            bytes.extend(tail);
            match Query::parse(&bytes) {
                Ok(query) => prop_assert_eq!(query.question_end, end),
                Err(_) => prop_assert!(end - 16 > 250),
            }
        }
    }
}
