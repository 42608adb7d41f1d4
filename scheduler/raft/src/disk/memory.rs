//! A disk in memory that loses what was not synced, and fails when told to. For tests and simulation.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Disk, DiskFile};

/// What a crash leaves of the bytes and names that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing.
    LoseAll,
    /// Everything: the kernel had written it all by itself.
    KeepAll,
    /// Some of each file's bytes, and some of the names, chosen by the number; the kept bytes may have a sector of zeros
    /// in them, as a file system leaves that extended the file before it wrote the data.
    Some(u64),
}

/// A fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Writing beyond so many bytes on the whole disk fails with `StorageFull`, after writing what fits.
    Full {
        /// The room in bytes.
        capacity: usize,
    },
    /// The sync after so many more fails with an input/output error, and the pages count as clean afterwards, as on
    /// Linux: the next one succeeds without having written them.
    Sync {
        /// How many syncs still succeed.
        after: usize,
    },
    /// Every change from the given number of changes on fails: the moment of a crash.
    Stop {
        /// How many changes (appends, syncs, names) still happen.
        after: usize,
    },
}

#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// A sync failed: what was written since is gone after a crash, whatever later syncs said.
    poisoned: bool,
}

#[derive(Default)]
struct Inner {
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Names after each change since the last sync of a directory.
    pending_names: Vec<BTreeMap<PathBuf, u64>>,
    faults: Vec<Fault>,
    changes: usize,
    locked: Vec<PathBuf>,
    /// Draws how long syncs take, up to a longest time; `None`: the disk is called on threads.
    pauses: Option<(Dice, Duration)>,
}

/// The disk; clones are the same disk.
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Inner>>);

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty disk that is called in place: a sync of the log takes up to `slowest`, drawn by `seed`.
    pub fn called_in_place(slowest: Duration, seed: u64) -> Self {
        let disk = Self::default();
        disk.inner().pauses = Some((Dice(seed), slowest));
        disk
    }

    /// Sets a fault to come.
    pub fn inject(&self, fault: Fault) {
        self.inner().faults.push(fault);
    }

    /// Takes back all faults: somebody made room, or changed the cable.
    pub fn heal(&self) {
        self.inner().faults.clear();
    }

    /// How many changes (appends, syncs, names) were made or tried: the possible moments of a crash.
    pub fn changes(&self) -> usize {
        self.inner().changes
    }

    /// The disk as a machine finds it after a power cut. This one is left as it is.
    #[must_use]
    pub fn after(&self, crash: Crash) -> Self {
        let inner = self.inner();
        let mut dice = Dice(match crash {
            Crash::Some(seed) => seed,
            _ => 0,
        });
        let names = match crash {
            Crash::LoseAll => inner.durable_names.clone(),
            Crash::KeepAll => inner.names.clone(),
            // Journals keep the order of names: a prefix of what was changed.
            Crash::Some(_) => match dice.below(inner.pending_names.len() + 1) {
                0 => inner.durable_names.clone(),
                kept => inner.pending_names[kept - 1].clone(),
            },
        };
        let inodes = inner.inodes.iter().map(|(id, inode)| {
            let content = match crash {
                Crash::LoseAll => inode.durable.clone(),
                Crash::KeepAll if inode.poisoned => inode.durable.clone(),
                Crash::KeepAll => inode.current.clone(),
                Crash::Some(_) => partly(inode, &mut dice),
            };
            (*id, Inode { durable: content.clone(), current: content, poisoned: false })
        });
        let inodes = inodes.collect();
        Self(Arc::new(Mutex::new(Inner {
            inodes,
            next: inner.next,
            durable_names: names.clone(),
            names,
            pauses: inner.pauses,
            ..Inner::default()
        })))
    }

    /// Changes the content of a file behind the store's back.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner();
        if let Some(id) = inner.names.get(path).copied()
            && let Some(inode) = inner.inodes.get_mut(&id)
        {
            change(&mut inode.current);
            inode.durable = inode.current.clone();
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_names(&self, change: impl FnOnce(&mut Inner) -> io::Result<()>) -> io::Result<()> {
        let mut inner = self.inner();
        inner.step()?;
        change(&mut inner)?;
        let names = inner.names.clone();
        inner.pending_names.push(names);
        Ok(())
    }

    fn file(&self, id: u64) -> Box<dyn DiskFile> {
        Box::new(MemoryFile { disk: self.clone(), id })
    }
}

fn partly(inode: &Inode, dice: &mut Dice) -> Vec<u8> {
    const SECTOR: usize = 512;
    let (durable, current) = (&inode.durable, &inode.current);
    if inode.poisoned || !current.starts_with(durable) {
        return if inode.poisoned || dice.below(2) == 0 { durable.clone() } else { current.clone() };
    }
    let mut content = current.clone();
    content.truncate(durable.len() + dice.below(current.len() - durable.len() + 1));
    if dice.below(2) == 0 && content.len() > durable.len() {
        let at = durable.len() + dice.below(content.len() - durable.len());
        let start = (at / SECTOR * SECTOR).max(durable.len());
        let end = (at / SECTOR * SECTOR + SECTOR).min(content.len());
        content[start..end].fill(0);
    }
    content
}

/// SplitMix64: enough for a choice, and the same everywhere.
#[derive(Clone, Copy)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

impl Inner {
    /// One more change: fails where the disk is to stop here.
    fn step(&mut self) -> io::Result<()> {
        self.changes += 1;
        let stopped = self.faults.iter().any(|fault| matches!(fault, Fault::Stop { after } if self.changes > *after));
        if stopped { Err(io::Error::other("the disk was stopped")) } else { Ok(()) }
    }

    fn used(&self) -> usize {
        self.inodes.values().map(|inode| inode.current.len()).sum()
    }

    fn room(&self) -> usize {
        let room = self.faults.iter().find_map(|fault| match fault {
            Fault::Full { capacity } => Some(capacity.saturating_sub(self.used())),
            _ => None,
        });
        room.unwrap_or(usize::MAX)
    }

    fn collect(&mut self) {
        let (names, durable, pending) = (&self.names, &self.durable_names, &self.pending_names);
        let named = |id: &u64| {
            names.values().chain(durable.values()).any(|one| one == id)
                || pending.iter().any(|names| names.values().any(|one| one == id))
        };
        let kept = self.inodes.iter().filter(|(id, _)| named(id)).map(|(id, inode)| (*id, inode.clone())).collect();
        self.inodes = kept;
    }
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.inner();
        let files = inner.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(files.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let inner = self.inner();
        let inode = inner.names.get(path).and_then(|id| inner.inodes.get(id));
        inode.map(|inode| inode.current.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn read_part(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let bytes = self.read(path)?;
        let start = (offset as usize).min(bytes.len());
        Ok(bytes[start..start.saturating_add(length).min(bytes.len())].to_vec())
    }

    fn size(&self, path: &Path) -> io::Result<u64> {
        self.read(path).map(|bytes| bytes.len() as u64)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut id = 0;
        self.change_names(|inner| {
            id = inner.next;
            inner.next += 1;
            inner.inodes.insert(id, Inode::default());
            inner.names.insert(path.to_owned(), id);
            Ok(())
        })?;
        Ok(self.file(id))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change_names(|inner| {
            let id = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            inner.names.insert(to.to_owned(), id);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change_names(|inner| inner.names.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into()))
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.step()?;
        inner.durable_names = inner.names.clone();
        inner.pending_names.clear();
        inner.collect();
        Ok(())
    }

    fn free(&self, _: &Path) -> io::Result<u64> {
        Ok(self.inner().room() as u64)
    }

    fn in_place(&self) -> bool {
        self.inner().pauses.is_some()
    }

    fn pause(&self) -> Duration {
        let drawn = |(dice, slowest): &mut (Dice, Duration)| dice.below(slowest.as_micros() as usize + 1);
        Duration::from_micros(self.inner().pauses.as_mut().map_or(0, drawn) as u64)
    }

    fn lock(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut inner = self.inner();
        if inner.locked.iter().any(|one| one == dir) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        inner.locked.push(dir.to_owned());
        Ok(Box::new(MemoryLock { disk: self.clone(), dir: dir.to_owned() }))
    }
}

struct MemoryLock {
    disk: MemoryDisk,
    dir: PathBuf,
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.disk.inner().locked.retain(|one| *one != self.dir);
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    id: u64,
}

impl DiskFile for MemoryFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.step()?;
        let fits = inner.room().min(bytes.len());
        if let Some(inode) = inner.inodes.get_mut(&self.id) {
            inode.current.extend_from_slice(&bytes[..fits]);
        }
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.step()?;
        let mut fails = false;
        inner.faults.retain_mut(|fault| match fault {
            Fault::Sync { after: 0 } => {
                fails = true;
                false
            }
            Fault::Sync { after } => {
                *after -= 1;
                true
            }
            _ => true,
        });
        let Some(inode) = inner.inodes.get_mut(&self.id) else {
            return Ok(());
        };
        if fails {
            inode.poisoned = true;
            return Err(io::Error::other("input/output error"));
        }
        if !inode.poisoned {
            inode.durable = inode.current.clone();
        }
        Ok(())
    }
}
