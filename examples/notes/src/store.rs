//! Notes on disk: one file a note.
//!
//! ```text
//! notes/<id>.json     {"format": "notes/1", "id", "text", "created"}
//! tmp/                files being written
//! lock                flock: one process a volume
//! ```
//!
//! # Guarantees
//! A note that was acknowledged is on the disk: written aside, synced, renamed, and its directory synced. One that was deleted stays deleted.
//! A file that is not a note is left alone.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Notes that a volume may hold: all of them are in memory and in one answer.
pub(crate) const MAX_NOTES: usize = 1000;
/// Bytes of a note's text: some pages.
pub(crate) const MAX_TEXT_BYTES: usize = 16 * 1024;
/// Bytes of a note's file: every character of the text may be escaped, as `\u0001` is.
const MAX_FILE_BYTES: u64 = 8 * MAX_TEXT_BYTES as u64;
const FORMAT: &str = "notes/1";

/// A note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) id: Uuid,
    pub(crate) text: String,
    /// Milliseconds since 1970.
    pub(crate) created: u64,
}

#[derive(Serialize, Deserialize)]
struct NoteFile {
    format: String,
    #[serde(flatten)]
    note: Note,
}

/// Why a note was not kept, found or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the note is empty: write something")]
    Empty,
    #[error("the note has {0} bytes: the limit is {MAX_TEXT_BYTES}")]
    TooLong(usize),
    #[error("there are {MAX_NOTES} notes, which is the limit: delete some first")]
    TooMany,
    #[error("there is no note {0}")]
    NotFound(Uuid),
    #[error("the volume is full: delete some notes first")]
    DiskFull,
    #[error("{path} is in use by another process: two must not write the same notes")]
    InUse { path: PathBuf },
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// The notes of one volume. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// By time, then id: the order of the list.
    notes: Mutex<BTreeMap<(u64, Uuid), Note>>,
    _lock: File,
}

impl Store {
    /// Reads the notes of `root`, which is made where there is none, and removes what an interrupted write left.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        for directory in ["notes", "tmp"] {
            let path = root.join(directory);
            std::fs::create_dir_all(&path).map_err(|error| failed("create", &path, error))?;
        }
        let lock = lock(&root.join("lock"))?;
        for path in list(&root.join("tmp"))? {
            std::fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
        }
        let mut notes = BTreeMap::new();
        for path in list(&root.join("notes"))? {
            match read(&path) {
                Ok(note) => drop(notes.insert((note.created, note.id), note)),
                Err(reason) => tracing::warn!(path = %path.display(), reason, "not a note: left alone"),
            }
        }
        sync_directory(root)?;
        Ok(Self { inner: Arc::new(Inner { root: root.to_owned(), notes: Mutex::new(notes), _lock: lock }) })
    }

    /// All notes, oldest first.
    pub(crate) fn list(&self) -> Vec<Note> {
        self.notes().values().cloned().collect()
    }

    /// Keeps a note. When this returns it is on the disk.
    pub(crate) fn add(&self, text: &str) -> Result<Note, StoreError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(StoreError::Empty);
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(StoreError::TooLong(text.len()));
        }
        let mut notes = self.notes();
        if notes.len() >= MAX_NOTES {
            return Err(StoreError::TooMany);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Never before the last one, whatever the device's clock does: the list keeps its order.
        let last = notes.last_key_value().map_or(0, |((created, _), _)| *created);
        let created = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(last.saturating_add(1));
        let note = Note { id: Uuid::new_v4(), text: text.to_owned(), created };
        self.write(&note)?;
        notes.insert((note.created, note.id), note.clone());
        Ok(note)
    }

    /// Removes a note. When this returns it is gone from the disk.
    pub(crate) fn remove(&self, id: Uuid) -> Result<(), StoreError> {
        let mut notes = self.notes();
        let key = notes.keys().find(|(_, had)| *had == id).copied().ok_or(StoreError::NotFound(id))?;
        let path = self.path(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path, error)),
            _ => {}
        }
        notes.remove(&key);
        sync_directory(&self.inner.root.join("notes"))
    }

    fn write(&self, note: &Note) -> Result<(), StoreError> {
        let temporary = self.inner.root.join("tmp").join(note.id.to_string());
        let path = self.path(note.id);
        let result = write_synced(&temporary, note)
            .map_err(|error| failed("write", &temporary, error))
            .and_then(|()| std::fs::rename(&temporary, &path).map_err(|error| failed("write", &path, error)))
            .and_then(|()| sync_directory(&self.inner.root.join("notes")));
        if result.is_err() {
            // Not acknowledged, so not to come back after a restart.
            let _ = std::fs::remove_file(&temporary);
            let _ = std::fs::remove_file(&path);
        }
        result
    }

    fn path(&self, id: Uuid) -> PathBuf {
        self.inner.root.join("notes").join(format!("{id}.json"))
    }

    /// The map changes only after the disk did, so a thread that panicked left it whole.
    fn notes(&self) -> MutexGuard<'_, BTreeMap<(u64, Uuid), Note>> {
        self.inner.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| failed("open", path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed("lock", path, error)),
    }
}

fn write_synced(path: &Path, note: &Note) -> io::Result<()> {
    let bytes = serde_json::to_vec(&NoteFile { format: FORMAT.into(), note: note.clone() })?;
    let mut file = File::create_new(path)?;
    file.write_all(&bytes)?;
    file.sync_all()
}

fn read(path: &Path) -> Result<Note, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err("it is too large".into());
    }
    let file: NoteFile = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if file.format != FORMAT {
        return Err(format!("its format is {:?}, not {FORMAT:?}", file.format));
    }
    if path.file_stem().and_then(|stem| stem.to_str()) != Some(file.note.id.to_string().as_str()) {
        return Err("its name is not its id".into());
    }
    Ok(file.note)
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let error = |error| failed("list", directory, error);
    std::fs::read_dir(directory).map_err(error)?.map(|entry| Ok(entry.map_err(error)?.path())).collect()
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|error| failed("sync", path, error))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull,
        _ => StoreError::Io { action, path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn texts(store: &Store) -> Vec<String> {
        store.list().into_iter().map(|note| note.text).collect()
    }

    #[test]
    fn notes_are_read_back_in_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        for text in ["one", "  two\n", "drei ✓ <b>\u{1}"] {
            store.add(text).unwrap();
        }
        let gone = store.add("gone").unwrap();
        store.remove(gone.id).unwrap();
        assert!(matches!(store.remove(gone.id), Err(StoreError::NotFound(_))));
        let before = store.list();
        drop(store);
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.list(), before);
        assert_eq!(texts(&store), ["one", "two", "drei ✓ <b>\u{1}"]);
    }

    #[test]
    fn a_note_is_neither_empty_nor_too_long() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(matches!(store.add(" \n"), Err(StoreError::Empty)));
        assert!(matches!(store.add(&"x".repeat(MAX_TEXT_BYTES + 1)), Err(StoreError::TooLong(_))));
        // The worst case of escaping still fits the bound on a file.
        store.add(&format!("x{}x", "\u{1}".repeat(MAX_TEXT_BYTES - 2))).unwrap();
        drop(store);
        assert_eq!(Store::open(directory.path()).unwrap().list().len(), 1);
    }

    #[test]
    fn leftovers_go_and_files_that_are_no_notes_stay() {
        let directory = tempfile::tempdir().unwrap();
        Store::open(directory.path()).unwrap().add("kept").unwrap();
        std::fs::write(directory.path().join("tmp/half"), "{").unwrap();
        let foreign = directory.path().join("notes/foreign.json");
        std::fs::write(&foreign, r#"{"format":"notes/9"}"#).unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(texts(&store), ["kept"]);
        assert!(foreign.exists() && !directory.path().join("tmp/half").exists());
    }

    #[test]
    fn two_processes_do_not_share_a_volume() {
        let directory = tempfile::tempdir().unwrap();
        let first = Store::open(directory.path()).unwrap();
        assert!(matches!(Store::open(directory.path()), Err(StoreError::InUse { .. })));
        drop(first);
        Store::open(directory.path()).unwrap();
    }

    #[test]
    fn there_is_a_limit_to_the_number_of_notes() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        for n in 0..MAX_NOTES as u64 {
            let note = Note { id: Uuid::new_v4(), text: "x".into(), created: n };
            store.notes().insert((n, note.id), note);
        }
        assert!(matches!(store.add("one more"), Err(StoreError::TooMany)));
    }
}
