//! Disks that lose their power: a file system whose device can be copied as it is at one moment, in which only what was synced is sure to be.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::command;

/// Room for all copies together; they share what they have in common.
const OUTER_MIB: u64 = 16 * 1024;

/// A disk on which an instance lives, and copies of it. Dropping it removes all of them.
///
/// The disk is a file on a file system that clones files at once (XFS with reflinks): a clone has what the kernel had handed to the device by
/// then, in the order in which it did, and nothing that was still in memory alone.
#[derive(Debug)]
pub struct Disk {
    dir: TempDir,
    cuts: usize,
}

/// What was on a disk when its power was cut.
#[derive(Clone, Debug)]
pub struct Cut(PathBuf);

impl Disk {
    /// An ext4 file system of this size.
    pub fn new(mib: u64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hd").tempdir_in("/tmp").context("cannot make a directory")?;
        let disk = Self { dir, cuts: 0 };
        let place = disk.dir.path();
        nameless(&place.with_extension("outer"), OUTER_MIB, "mkfs.xfs -q -m reflink=1", place)?;
        File::create(disk.file())?.set_len(mib << 20)?;
        mkfs(EXT4, &disk.file())?;
        Ok(disk)
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Puts the disk into use at a directory. Whoever does so unmounts it.
    pub fn mount(&self, at: &Path) -> Result<()> {
        mount(&self.file(), at)
    }

    /// What would be left if the power were cut now.
    pub fn cut(&mut self) -> Result<Cut> {
        self.cuts += 1;
        let path = self.dir.path().join(format!("cut-{}", self.cuts));
        let copy = File::create(&path)?;
        rustix::fs::ioctl_ficlone(&copy, File::open(self.file())?).context("cannot clone the disk's file")?;
        Ok(Cut(path))
    }
}

impl Cut {
    /// Puts it into use at a directory, as after the power is back. Whoever does so unmounts it.
    pub fn mount(&self, at: &Path) -> Result<()> {
        mount(&self.0, at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: whatever still uses it must not keep it in the way.
        let _ = command::run("umount", ["--lazy", &self.dir.path().display().to_string()]);
    }
}

/// A new file of this size with a file system in it, put into use at a directory. The file has no name any more: the mount keeps it, and frees
/// it when it ends.
pub(crate) fn nameless(file: &Path, mib: u64, mkfs_with: &str, at: &Path) -> Result<()> {
    let made = (|| {
        File::create(file)?.set_len(mib << 20)?;
        mkfs(mkfs_with, file)?;
        mount(file, at)
    })();
    let _ = std::fs::remove_file(file);
    made
}

/// ext4 of which nothing is reserved: full is full for root too.
pub(crate) const EXT4: &str = "mkfs.ext4 -q -F -m 0";

fn mkfs(command: &str, file: &Path) -> Result<()> {
    let script = format!("PATH=$PATH:/usr/sbin:/sbin exec {command} \"$1\"");
    command::run("sh", ["-c", &script, "sh", &file.display().to_string()]).map(drop)
}

fn mount(file: &Path, at: &Path) -> Result<()> {
    command::run("mount", ["-o", "loop", &file.display().to_string(), &at.display().to_string()]).map(drop)
}
