//! Deleting what may be large: it is renamed away at once, so that its place is free, and deleted by a process that
//! nobody waits for.

use std::{
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{sys, title};

/// How names of trees that are being deleted begin. One that is left by a power cut goes with the directory it lies in.
pub(crate) const PREFIX: &str = ".gone.";
/// How many names are tried: others are left only by processes that were killed and had the same pid.
const MAX_TRIES: u32 = 1000;

/// Renames a tree to a name of its own beside it; none where there is none.
pub(crate) fn set_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    for _ in 0..MAX_TRIES {
        let mut aside =
            format!("{PREFIX}{}.{}.", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)).into_bytes();
        aside.extend_from_slice(name.as_bytes());
        let aside = path.with_file_name(std::ffi::OsString::from_vec(aside));
        match fs::rename(path, &aside) {
            Ok(()) => return Ok(Some(aside)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Deletes trees in a process of its own, which outlives its parent and has no deadline.
///
/// # Assumptions
/// Called by a helper, which has one thread.
pub(crate) fn delete_apart(trees: &[PathBuf]) {
    if trees.is_empty() {
        return;
    }
    let forked = sys::fork_child(|| {
        // What it inherits is the shim's: the end of a channel that the shim waits for, and the shim's own socket.
        // SAFETY: this process was just forked to delete files; it uses no descriptor it has.
        if unsafe { sys::close_all_but(&[]) }.is_err() {
            return 1;
        }
        // It names the data directory, as every process of an instance does: its shim's line says which.
        let line = fs::read("/proc/self/cmdline").unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let rest = line.trim_end_matches('\0').strip_prefix("hearth shim").unwrap_or_default();
        title::set(&format!("hearth sweep{rest}"), c"hearth sweep");
        delete(trees);
        0
    });
    if forked.is_err() {
        delete(trees);
    }
}

/// Deletes trees. What cannot be deleted stays until what it lies in is removed.
pub(crate) fn delete(trees: &[PathBuf]) {
    for tree in trees {
        let _ = fs::remove_dir_all(tree);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_is_set_aside_frees_its_place() {
        let base = tempfile::tempdir().expect("temporary directory");
        let place = base.path().join("3");
        assert_eq!(set_aside(&place).expect("nothing is there"), None);
        let mut aside = Vec::new();
        for round in ["a", "b"] {
            fs::create_dir_all(place.join(round)).expect("makes a tree");
            aside.push(set_aside(&place).expect("renames").expect("is there"));
            assert!(!place.exists());
        }
        assert!(aside[0].join("a").exists() && aside[1].join("b").exists(), "{aside:?}");
        delete(&aside);
        assert_eq!(fs::read_dir(base.path()).expect("lists").count(), 0);
    }
}
