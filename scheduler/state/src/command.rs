//! What an entry of the replicated log says, and its bytes.
//!
//! # Format
//! One byte format version ([`FORMAT`]), one byte kind, then the fields in postcard. Objects are their canonical JSON.
//! A new kind of command, or a new kind of operation, is written only once the cluster's feature level says that every
//! server reads it. A server that meets an entry it does not know must stop there: what comes after it stands on it.
//! [`Command::decode`] keeps its bytes, and says what it is by [`Command::unread`].

use std::borrow::Cow;

use hearth_types::{
    Incarnation, Object, ObjectKey, RequestId, Timestamp,
    store::{Expect, MAX_OPS, Op, Txn},
};
use serde::{Deserialize, Serialize};

/// The version of the encoding that this program writes.
pub const FORMAT: u8 = 1;
/// The longest [`RequestId`] in bytes: a UUID has 36; room for a prefix that tells who asked.
pub const MAX_REQUEST_ID_BYTES: usize = 128;

const KIND_INITIALIZE: u8 = 1;
const KIND_TXN: u8 = 2;
const KIND_FEATURE_LEVEL: u8 = 3;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Gives the data its identity. The first one counts; later ones change nothing.
    Initialize {
        /// The identity, made by the proposer.
        incarnation: Incarnation,
        /// The time at the proposer.
        now: Timestamp,
    },
    /// A transaction.
    Txn(Txn),
    /// Raises the cluster's feature level: from here on, entries of that level may follow. Never lowers it.
    RaiseFeatureLevel {
        /// The new level.
        level: u32,
        /// The time at the proposer.
        now: Timestamp,
    },
    /// What a newer server wrote: its bytes, unchanged.
    Unknown(Box<[u8]>),
}

/// Why a command as a whole did nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The entry is of a newer program.
    #[error(
        "an entry of format {format}, kind {kind} is unknown to this server; update it to the version of the others"
    )]
    Unknown {
        /// The format byte.
        format: u8,
        /// The kind byte.
        kind: u8,
    },
    /// Too many operations.
    #[error("a transaction of {0} operations; at most {MAX_OPS} are taken, split it")]
    TooManyOps(usize),
    /// The request id is empty or too long.
    #[error("a request id of {0} bytes; it needs 1 to {MAX_REQUEST_ID_BYTES}")]
    RequestId(usize),
    /// A feature level below the present one.
    #[error("the feature level is {present} and cannot go down to {asked}")]
    FeatureLevel {
        /// What it is.
        present: u32,
        /// What was asked for.
        asked: u32,
    },
    /// The request id was used for something else.
    #[error(
        "the request id was used already, for another request; every write has an id of its own, and only the same write is sent again under it"
    )]
    Reused,
}

/// Whether a transaction keeps the bounds that `apply` holds it to; a proposer asks before it writes an entry.
pub fn check_txn(txn: &Txn) -> Result<(), Refusal> {
    if txn.ops.len() > MAX_OPS {
        return Err(Refusal::TooManyOps(txn.ops.len()));
    }
    let length = txn.request_id.as_str().len();
    if length == 0 || length > MAX_REQUEST_ID_BYTES {
        return Err(Refusal::RequestId(length));
    }
    Ok(())
}

impl Command {
    /// The bytes of the command.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Initialize { incarnation, now } => with_head(KIND_INITIALIZE, 64, &(incarnation, now)),
            Self::Txn(txn) => {
                let size = txn.ops.iter().map(op_size).sum::<usize>() + 64;
                with_head(KIND_TXN, size, &WireTxn::of(txn))
            }
            Self::RaiseFeatureLevel { level, now } => with_head(KIND_FEATURE_LEVEL, 32, &(level, now)),
            Self::Unknown(bytes) => bytes.to_vec(),
        }
    }

    /// The command that bytes say. Never fails: what cannot be read is [`Command::Unknown`], since whether bytes are
    /// intact is for the log's checksum to say.
    pub fn decode(bytes: &[u8]) -> Self {
        Self::try_decode(bytes).unwrap_or_else(|| Self::Unknown(bytes.into()))
    }

    fn try_decode(bytes: &[u8]) -> Option<Self> {
        let [FORMAT, kind, body @ ..] = bytes else {
            return None;
        };
        match *kind {
            KIND_INITIALIZE => {
                let (incarnation, now) = exactly(body)?;
                Some(Self::Initialize { incarnation, now })
            }
            KIND_TXN => exactly::<WireTxn<'_>>(body)?.into_txn().map(Self::Txn),
            KIND_FEATURE_LEVEL => {
                let (level, now) = exactly(body)?;
                Some(Self::RaiseFeatureLevel { level, now })
            }
            _ => None,
        }
    }

    /// Why a command cannot be applied by this program: it is unknown, or raises the feature level above what this program knows.
    pub fn unread(&self) -> Option<String> {
        self.unread_at(crate::FEATURE_LEVEL)
    }

    /// The same for a program that knows feature levels up to `known` alone.
    pub fn unread_at(&self, known: u32) -> Option<String> {
        match self {
            Self::Unknown(bytes) => Some(Self::refusal_of_unknown(bytes).to_string()),
            Self::RaiseFeatureLevel { level, .. } if *level > known => Some(format!(
                "the cluster is at feature level {level}, this server knows {known}; update it to the version of the others"
            )),
            _ => None,
        }
    }

    pub(crate) fn refusal_of_unknown(bytes: &[u8]) -> Refusal {
        let byte = |index: usize| bytes.get(index).copied().unwrap_or_default();
        Refusal::Unknown { format: byte(0), kind: byte(1) }
    }
}

/// As its bytes ([`Command::encode`]), so that no format can lose what this program does not know.
impl Serialize for Command {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.encode())
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| Self::decode(&bytes))
    }
}

fn with_head(kind: u8, size: usize, body: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(&[FORMAT, kind]);
    postcard::to_extend(body, out).expect("writing to memory")
}

fn exactly<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    postcard::take_from_bytes(bytes).ok().and_then(|(value, rest)| rest.is_empty().then_some(value))
}

fn op_size(op: &Op) -> usize {
    match op {
        Op::Create { object } | Op::Update { object, .. } => object.json().len() + 96,
        Op::Delete { .. } | Op::Check { .. } => 192,
        Op::Bind { claims, .. } => 256 + claims.len() * 128,
    }
}

/// Canonical JSON as bytes. (`&[u8]` alone is written one byte at a time.)
#[derive(Clone, Copy, Debug)]
pub(crate) struct Json<'a>(pub(crate) &'a [u8]);

impl Serialize for Json<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Self)
    }
}

#[derive(Serialize, Deserialize)]
struct WireTxn<'a> {
    #[serde(borrow)]
    request_id: &'a str,
    atomic: bool,
    ops: Vec<WireOp<'a>>,
    now: Timestamp,
}

/// The order of the variants is the format: append only, behind a feature level.
#[derive(Serialize, Deserialize)]
enum WireOp<'a> {
    Create {
        #[serde(borrow)]
        object: Json<'a>,
    },
    Update {
        #[serde(borrow)]
        object: Json<'a>,
        expect: Cow<'a, Expect>,
    },
    Delete {
        key: Cow<'a, ObjectKey>,
        expect: Cow<'a, Expect>,
    },
    Bind {
        pod: Cow<'a, ObjectKey>,
        expect: Cow<'a, Expect>,
        device: &'a str,
        claims: Cow<'a, [ObjectKey]>,
    },
    Check {
        key: Cow<'a, ObjectKey>,
        expect: Cow<'a, Expect>,
    },
}

impl<'a> WireTxn<'a> {
    fn of(txn: &'a Txn) -> Self {
        let ops = txn.ops.iter().map(WireOp::of).collect();
        Self { request_id: txn.request_id.as_str(), atomic: txn.atomic, ops, now: txn.now }
    }

    fn into_txn(self) -> Option<Txn> {
        let ops = self.ops.into_iter().map(WireOp::into_op).collect::<Option<_>>()?;
        Some(Txn { request_id: RequestId::from(self.request_id), atomic: self.atomic, ops, now: self.now })
    }
}

impl<'a> WireOp<'a> {
    fn of(op: &'a Op) -> Self {
        let borrowed = Cow::Borrowed;
        match op {
            Op::Create { object } => Self::Create { object: Json(object.json()) },
            Op::Update { object, expect } => Self::Update { object: Json(object.json()), expect: borrowed(expect) },
            Op::Delete { key, expect } => Self::Delete { key: Cow::Borrowed(key), expect: borrowed(expect) },
            Op::Bind { pod, expect, device, claims } => {
                Self::Bind { pod: Cow::Borrowed(pod), expect: borrowed(expect), device, claims: Cow::Borrowed(claims) }
            }
            Op::Check { key, expect } => Self::Check { key: Cow::Borrowed(key), expect: borrowed(expect) },
        }
    }

    fn into_op(self) -> Option<Op> {
        Some(match self {
            Self::Create { object } => Op::Create { object: Object::from_json(object.0).ok()? },
            Self::Update { object, expect } => {
                Op::Update { object: Object::from_json(object.0).ok()?, expect: expect.into_owned() }
            }
            Self::Delete { key, expect } => Op::Delete { key: key.into_owned(), expect: expect.into_owned() },
            Self::Bind { pod, expect, device, claims } => Op::Bind {
                pod: pod.into_owned(),
                expect: expect.into_owned(),
                device: device.to_owned(),
                claims: claims.into_owned(),
            },
            Self::Check { key, expect } => Op::Check { key: key.into_owned(), expect: expect.into_owned() },
        })
    }
}

#[cfg(test)]
mod tests {
    use hearth_types::{GroupKind, Revision, Uid};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn sample() -> Txn {
        let object = Object::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "n", "uid": "u"}, "x": "\u{0}ü", "big": u64::MAX}))
        .expect("an object");
        let key = ObjectKey::new(GroupKind::POD, "n", "a");
        let expect = Expect { revision: Some(Revision(7)), uid: Some(Uid::from("u")) };
        Txn {
            request_id: RequestId::from("r"),
            atomic: true,
            ops: vec![
                Op::Create { object: object.clone() },
                Op::Update { object, expect: expect.clone() },
                Op::Delete { key: key.clone(), expect: expect.clone() },
                Op::Bind {
                    pod: key.clone(),
                    expect: Expect::default(),
                    device: "nas".into(),
                    claims: vec![ObjectKey::new(GroupKind::PERSISTENT_VOLUME_CLAIM, "n", "c")],
                },
                Op::Check { key, expect },
            ],
            now: Timestamp(-5),
        }
    }

    fn samples() -> Vec<Command> {
        vec![
            Command::Initialize { incarnation: Incarnation::from("i"), now: Timestamp(3) },
            Command::Txn(sample()),
            Command::RaiseFeatureLevel { level: 2, now: Timestamp(4) },
            Command::Unknown(vec![FORMAT, 200, 1, 2].into()),
            Command::Unknown(vec![9, 9].into()),
        ]
    }

    #[test]
    fn commands_survive_their_bytes() {
        for command in samples() {
            assert_eq!(Command::decode(&command.encode()), command);
        }
    }

    #[test]
    fn an_operation_of_a_newer_program_is_unknown_and_keeps_its_bytes() {
        let mut bytes = Command::Txn(Txn { ops: vec![], ..sample() }).encode();
        // The count of operations is behind the head (2), the id (2) and the flag (1): one of variant 99.
        bytes[5] = 1;
        bytes.insert(6, 99);
        let command = Command::decode(&bytes);
        assert_eq!(command, Command::Unknown(bytes.clone().into()));
        assert_eq!(command.encode(), bytes);
    }

    #[test]
    fn bounds_are_told_before_anything_is_written() {
        let many = Txn { ops: vec![sample().ops[4].clone(); MAX_OPS + 1], ..sample() };
        assert_eq!(check_txn(&many), Err(Refusal::TooManyOps(MAX_OPS + 1)));
        let long = "x".repeat(MAX_REQUEST_ID_BYTES + 1);
        assert_eq!(check_txn(&Txn { request_id: long.into(), ..sample() }), Err(Refusal::RequestId(129)));
        assert_eq!(check_txn(&Txn { request_id: "".into(), ..sample() }), Err(Refusal::RequestId(0)));
        assert_eq!(check_txn(&sample()), Ok(()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), known in any::<bool>()) {
            if known && bytes.len() > 2 {
                bytes[0] = FORMAT;
                bytes[1] %= 4;
            }
            let _ = Command::decode(&bytes).encode();
        }

        #[test]
        fn damaged_commands_never_panic(which in 0_usize..5, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = samples()[which].encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Command::decode(&bytes);
            let _ = Command::decode(&bytes[..at]);
        }
    }
}
