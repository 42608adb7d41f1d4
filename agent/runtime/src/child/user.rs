//! Who a program runs as: the image's user, looked up in the image's own files.

use std::{fs::File, io::Read, os::fd::BorrowedFd, path::Path};

use serde::{Deserialize, Serialize};

use super::invalid;
use crate::{error::StartError, sys};

/// Longest `/etc/passwd` or `/etc/group` that is read, in bytes; images have a few KiB.
const MAX_FILE: u64 = 1 << 20;
/// Most supplementary groups: NGROUPS_MAX is 65536, images have a handful.
const MAX_GROUPS: usize = 256;

/// Ids inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

impl Ids {
    /// Puts the program into more groups.
    pub(super) fn add(&mut self, groups: &[u32]) {
        for group in groups {
            if !self.groups.contains(group) {
                self.groups.push(*group);
            }
        }
    }
}

/// The text of a file of the image; empty where it is none, too long, or leads out of the root.
pub(super) fn read_in_root(root: BorrowedFd<'_>, path: &str) -> String {
    // Non-blocking: an image may have a FIFO there.
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let Ok(fd) = sys::open_in_root(root, Path::new(path), flags) else { return String::new() };
    let file = File::from(fd);
    if !file.metadata().is_ok_and(|m| m.is_file() && m.len() <= MAX_FILE) {
        return String::new();
    }
    let mut bytes = Vec::new();
    let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Looks up a user.
pub(super) fn resolve(
    root: BorrowedFd<'_>,
    user: &str,
    run_as: (Option<u32>, Option<u32>),
    id_count: u32,
) -> Result<Ids, StartError> {
    let passwd = read_in_root(root, "etc/passwd");
    let group = read_in_root(root, "etc/group");
    let ids = lookup(&passwd, &group, user, run_as)?;
    let too_large = |id: u32| id >= id_count;
    if too_large(ids.uid) || too_large(ids.gid) || ids.groups.iter().any(|g| too_large(*g)) {
        let (uid, gid) = (ids.uid, ids.gid);
        return Err(invalid("user", format!("{user:?} is uid {uid}, gid {gid}: a pod has ids 0 to {}", id_count - 1)));
    }
    Ok(ids)
}

/// The image's `User`: `uid`, `uid:gid`, `name`, `name:group`; ids need not be in the files, names must.
fn lookup(passwd: &str, group: &str, user: &str, run_as: (Option<u32>, Option<u32>)) -> Result<Ids, StartError> {
    let (name, group_name) = match user.split_once(':') {
        Some((u, g)) => (u, Some(g)),
        None => (user, None),
    };
    let entries = || passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 6);
    let by_uid = |uid: u32| entries().find(|f| f[2].parse() == Ok(uid));
    let (uid, entry) = match (run_as.0, name.parse::<u32>()) {
        (Some(uid), _) | (None, Ok(uid)) => (uid, by_uid(uid)),
        (None, Err(_)) if name.is_empty() => (0, by_uid(0)),
        (None, Err(_)) => {
            let entry = entries().find(|f| f[0] == name);
            let uid = entry.as_ref().and_then(|f| f[2].parse().ok());
            (uid.ok_or_else(|| StartError::NoSuchUser { user: name.to_owned() })?, entry)
        }
    };
    let primary = entry.as_ref().and_then(|f| f[3].parse().ok()).unwrap_or(0);
    let groups = || group.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 3);
    let named = group_name.filter(|_| run_as.0.is_none());
    let gid = match (run_as.1, named) {
        (Some(gid), _) => gid,
        (None, None | Some("")) => primary,
        (None, Some(g)) => match g.parse() {
            Ok(gid) => gid,
            Err(_) => groups()
                .find(|f| f[0] == g)
                .and_then(|f| f[2].parse().ok())
                .ok_or_else(|| StartError::NoSuchGroup { group: g.to_owned() })?,
        },
    };
    let mut supplementary = Vec::new();
    if let Some(entry) = entry.as_ref().filter(|_| group_name.is_none()) {
        let member = |f: &Vec<&str>| f.get(3).is_some_and(|m| m.split(',').any(|m| m == entry[0]));
        supplementary = groups().filter(member).filter_map(|f| f[2].parse().ok()).take(MAX_GROUPS).collect();
    }
    let home = entry.map(|f| f[5].to_owned()).filter(|h| h.starts_with('/')).unwrap_or_else(|| "/".to_owned());
    Ok(Ids { uid, gid, groups: supplementary, home })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/srv/app:/bin/sh\nbroken\nodd:x:no:no::/:\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nmedia:x:44:app,other\nvideo:x:45:other\nbroken\n";

    fn ids(uid: u32, gid: u32, groups: &[u32], home: &str) -> Ids {
        Ids { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn users_are_found_as_image_tools_mean_them() {
        let none = (None, None);
        for (user, run_as, expected) in [
            ("", none, ids(0, 0, &[], "/root")),
            ("app", none, ids(1000, 1001, &[44], "/srv/app")),
            ("1000", none, ids(1000, 1001, &[44], "/srv/app")),
            ("app:media", none, ids(1000, 44, &[], "/srv/app")),
            ("1000:7", none, ids(1000, 7, &[], "/srv/app")),
            ("4242", none, ids(4242, 0, &[], "/")),
            ("root", (Some(1000), None), ids(1000, 1001, &[44], "/srv/app")),
            ("app:media", (Some(7), Some(8)), ids(7, 8, &[], "/")),
        ] {
            assert_eq!(lookup(PASSWD, GROUP, user, run_as), Ok(expected), "{user}");
        }
    }

    #[test]
    fn names_that_are_not_there_are_errors() {
        let none = (None, None);
        assert_eq!(lookup(PASSWD, GROUP, "bob", none), Err(StartError::NoSuchUser { user: "bob".to_owned() }));
        assert_eq!(lookup(PASSWD, GROUP, "odd", none), Err(StartError::NoSuchUser { user: "odd".to_owned() }));
        assert_eq!(lookup(PASSWD, GROUP, "app:no", none), Err(StartError::NoSuchGroup { group: "no".to_owned() }));
    }

    proptest! {
        #[test]
        fn files_of_an_image_never_panic(passwd in ".{0,200}", group in ".{0,200}", user in ".{0,20}") {
            let _ = lookup(&passwd, &group, &user, (None, None));
        }
    }
}
