//! The state as bytes.
//!
//! # Format, version 1
//! `HEARTHST` (8 bytes), version (u32), the fields in postcard, their length in bytes (u64), CRC-32C of everything
//! before it (u32); integers little-endian. An object that several places point to is written once.

use std::{collections::HashMap, io, sync::Arc};

use hearth_types::{
    Incarnation, Object, RequestId, Revision, Timestamp,
    store::{OpError, TxnOutcome},
};
use imbl::Vector;
use serde::{Deserialize, Serialize};

use crate::{
    command::Json,
    duplicates::{Bounds, Duplicates},
    history::{Change, History},
    ops::Objects,
    state::State,
};

/// The first bytes of every snapshot.
pub const MAGIC: &[u8; 8] = b"HEARTHST";
/// The version that this program writes, and the only one it reads.
pub const VERSION: u32 = 1;
const HEAD: usize = MAGIC.len() + 4;
const TAIL: usize = 8 + 4;

/// Why bytes are no snapshot that this program can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Something else.
    #[error("not a snapshot of a region's state")]
    Magic,
    /// Of another program.
    #[error("the snapshot has format version {0}, this program reads {VERSION}; run the version that wrote it")]
    Version(u32),
    /// Cut off.
    #[error("the snapshot is cut off: {0} bytes")]
    Short(usize),
    /// Changed since it was written.
    #[error("the snapshot is damaged: its checksum is {found:08x}, that of its bytes {computed:08x}")]
    Checksum {
        /// What is written in it.
        found: u32,
        /// What its bytes have.
        computed: u32,
    },
    /// Intact, but not what this program would write.
    #[error("the snapshot contradicts itself: {0}")]
    Inconsistent(String),
}

#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    incarnation: Option<Incarnation>,
    revision: Revision,
    floor: Revision,
    clock: Timestamp,
    feature_level: u32,
    #[serde(borrow)]
    table: Vec<Json<'a>>,
    /// Places in `table`, in the order of keys.
    objects: Vec<u32>,
    history: Vec<(Option<u32>, u32, bool)>,
    duplicates: Vec<WireDuplicate>,
}

#[derive(Serialize, Deserialize)]
struct WireDuplicate {
    at: Timestamp,
    id: RequestId,
    revision: Revision,
    outcomes: Vec<Result<u32, OpError>>,
}

/// Gives every buffer a place, once.
#[derive(Default)]
struct Table<'a> {
    places: HashMap<&'a [u8], u32>,
    rows: Vec<Json<'a>>,
}

impl<'a> Table<'a> {
    fn place(&mut self, object: &'a Object) -> u32 {
        let rows = &mut self.rows;
        *self.places.entry(object.json()).or_insert_with(|| {
            rows.push(Json(object.json()));
            (rows.len() - 1) as u32
        })
    }
}

/// Passes bytes on and keeps their checksum.
struct Summing<W> {
    out: W,
    crc: u32,
    written: u64,
}

impl<W: io::Write> io::Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl State {
    /// Writes the state. Equal states write equal bytes.
    pub fn write_snapshot(&self, out: impl io::Write) -> io::Result<()> {
        use io::Write as _;
        let mut table = Table::default();
        let objects = self.objects.values().map(|object| table.place(object)).collect();
        let history = self.history.iter().map(|change| {
            (change.before.as_ref().map(|before| table.place(before)), table.place(&change.now), change.removed)
        });
        let history = history.collect();
        let duplicates = self.duplicates.iter().map(|one| WireDuplicate {
            at: one.at,
            id: one.id.clone(),
            revision: one.outcome.revision,
            outcomes: one
                .outcome
                .outcomes
                .iter()
                .map(|outcome| outcome.as_ref().map(|object| table.place(object)).map_err(Clone::clone))
                .collect(),
        });
        let duplicates = duplicates.collect();
        let wire = Wire {
            incarnation: self.incarnation.clone(),
            revision: self.revision(),
            floor: self.history.floor(),
            clock: self.clock,
            feature_level: self.feature_level,
            table: table.rows,
            objects,
            history,
            duplicates,
        };
        let mut out = Summing { out, crc: 0, written: 0 };
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        postcard::to_io(&wire, &mut out).map_err(|error| io::Error::other(format!("writing a snapshot: {error}")))?;
        let length = out.written - HEAD as u64;
        out.write_all(&length.to_le_bytes())?;
        let crc = out.crc;
        out.write_all(&crc.to_le_bytes())?;
        out.flush()
    }

    /// The state as bytes, as [`State::write_snapshot`] writes them.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_snapshot(&mut out).expect("writing to memory");
        out
    }

    /// Reads a snapshot. Never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        if bytes.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(SnapshotError::Magic);
        }
        let number = |at: usize| bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes);
        let version = number(MAGIC.len()).ok_or(SnapshotError::Short(bytes.len()))?;
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        if bytes.len() < HEAD + TAIL {
            return Err(SnapshotError::Short(bytes.len()));
        }
        let end = bytes.len() - 4;
        let found = number(end).unwrap_or_default();
        let computed = crc32c::crc32c(&bytes[..end]);
        if found != computed {
            return Err(SnapshotError::Checksum { found, computed });
        }
        let body = &bytes[HEAD..end - 8];
        if bytes[end - 8..end] != (body.len() as u64).to_le_bytes() {
            return Err(SnapshotError::Short(bytes.len()));
        }
        let inconsistent = |why: String| SnapshotError::Inconsistent(why);
        match postcard::take_from_bytes::<Wire<'_>>(body) {
            Ok((wire, [])) => wire.into_state(),
            Ok(_) => Err(inconsistent("bytes are left over".into())),
            Err(error) => Err(inconsistent(error.to_string())),
        }
    }
}

/// The bytes of a snapshot with these fields, whatever they are: for fuzzing what is behind the checksum.
pub fn seal(fields: &[u8]) -> Vec<u8> {
    let length = (fields.len() as u64).to_le_bytes();
    let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes(), fields, &length].concat();
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

impl Wire<'_> {
    fn into_state(self) -> Result<State, SnapshotError> {
        let inconsistent = |why: &str| SnapshotError::Inconsistent(why.to_owned());
        let mut table = Vec::with_capacity(self.table.len());
        for Json(json) in self.table {
            let object = Object::from_json(json).map_err(|error| SnapshotError::Inconsistent(error.to_string()))?;
            if object.json() != json {
                return Err(inconsistent("an object is not canonical"));
            }
            table.push(object);
        }
        let row = |place: u32| table.get(place as usize).cloned().ok_or_else(|| inconsistent("a missing object"));
        let mut objects = Objects::new();
        for place in self.objects {
            let object = row(place)?;
            if objects.insert(Arc::new(object.key().clone()), object).is_some() {
                return Err(inconsistent("two objects of one key"));
            }
        }
        let mut changes = Vector::new();
        let mut last = self.floor;
        for (before, now, removed) in self.history {
            let change = Change { before: before.map(row).transpose()?, now: row(now)?, removed };
            if change.revision() < last || change.revision() > self.revision || change.revision() <= self.floor {
                return Err(inconsistent("the history is out of order"));
            }
            last = change.revision();
            changes.push_back(change);
        }
        let mut duplicates = Duplicates::default();
        for one in self.duplicates {
            let outcomes = one.outcomes.into_iter().map(|outcome| match outcome {
                Ok(place) => row(place).map(Ok),
                Err(error) => Ok(Err(error)),
            });
            let outcome = TxnOutcome { revision: one.revision, outcomes: outcomes.collect::<Result<_, _>>()? };
            if duplicates.get(&one.id).is_some() {
                return Err(inconsistent("two answers to one request"));
            }
            duplicates.remember(one.at, one.id, outcome, Bounds::at(self.feature_level));
        }
        Ok(State {
            incarnation: self.incarnation,
            objects,
            history: History::restored(self.floor, self.revision, changes),
            duplicates,
            clock: self.clock,
            feature_level: self.feature_level,
        })
    }
}
