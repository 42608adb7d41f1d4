//! The directories of this machine that its owner gives to apps. They are named where the agent is started, and nowhere else: whatever
//! the region says, a pod gets no other. Pods of other owners get none.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use crate::files::{FileError, Format, chain};

const FORMAT: Format = Format { magic: "hearth-agent-host-paths", version: 1, max_bytes: 1 << 20 };
/// Trees of the kernel, which are no data.
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// A directory, or a file, that apps of the machine's owner may mount with what is below it: `PATH`, or `PATH:ro` where none may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPath {
    path: PathBuf,
    read_only: bool,
}

impl FromStr for HostPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = match text.rsplit_once(':') {
            Some((path, "ro")) => (path, true),
            Some((path, "rw")) => (path, false),
            _ => (text, false),
        };
        let path = plain(path).ok_or_else(|| format!("{path:?} must be an absolute path without '..'"))?;
        if path == Path::new("/") || KERNELS.iter().any(|tree| path.starts_with(tree)) {
            return Err(format!("{} cannot be given to apps; name a directory with data", path.display()));
        }
        Ok(Self { path, read_only })
    }
}

impl std::fmt::Display for HostPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.path.display(), if self.read_only { ":ro" } else { "" })
    }
}

/// An absolute path without `..`, and without what stands for nothing.
fn plain(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let known = |part: &Component<'_>| matches!(part, Component::RootDir | Component::Normal(_) | Component::CurDir);
    (path.is_absolute() && path.components().all(|part| known(&part))).then(|| path.components().collect())
}

/// What of a directory that is given a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The directory that is given.
    pub(crate) given: PathBuf,
    /// Below it; none for all of it.
    pub(crate) rest: Option<PathBuf>,
    pub(crate) read_only: bool,
}

/// Why a pod gets no directory of this machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostPathError {
    #[error(
        "hostPath {0:?} is not given to apps on this device; its owner gives it by starting the agent with --host-path {0}"
    )]
    NotGiven(String),
    #[error("hostPath {0:?} is another owner's: apps on lent devices get no directory of theirs")]
    Guest(String),
    #[error("hostPath {path:?}")]
    Missing {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("hostPath type check failed: {0:?} is not a {1}")]
    Type(PathBuf, &'static str),
    #[error(
        "hostPath {0:?} was on a disk of its own and is not any more: mount the disk; nothing is written to what is beneath"
    )]
    NotMounted(PathBuf),
    #[error("what is known of host paths cannot be kept")]
    File(#[from] FileError),
}

/// What is given, and where it was when it was first used.
#[derive(Debug)]
pub(crate) struct HostPaths {
    given: Vec<HostPath>,
    file: PathBuf,
    /// Whether each was on another file system than the root directory.
    apart: Mutex<BTreeMap<PathBuf, bool>>,
}

impl HostPaths {
    /// # Errors
    /// A directory that is given holds the agent's own data, or is in it.
    pub(crate) fn open(given: Vec<HostPath>, data_dir: &Path, file: PathBuf) -> Result<Self, String> {
        for one in &given {
            let real = fs::canonicalize(&one.path).unwrap_or_else(|_| one.path.clone());
            if [&real, &one.path].iter().any(|path| path.starts_with(data_dir) || data_dir.starts_with(path)) {
                return Err(format!(
                    "--host-path {one}: the data of Hearth itself, {}, must not be reached by it",
                    data_dir.display()
                ));
            }
        }
        let apart = FORMAT.read(&file).unwrap_or_else(|error| {
            tracing::error!(
                error = chain(&error),
                "it is not known any more which host paths are on disks of their own"
            );
            None
        });
        Ok(Self { given, file, apart: Mutex::new(apart.unwrap_or_default()) })
    }

    /// What of this machine a path stands for, by the closest directory that is given. Says nothing of whether it is there.
    pub(crate) fn part(&self, path: &str) -> Result<Part, HostPathError> {
        let not_given = || HostPathError::NotGiven(path.to_owned());
        let wanted = plain(path).ok_or_else(not_given)?;
        let around = self.given.iter().filter(|one| wanted.starts_with(&one.path));
        let closest = around.max_by_key(|one| one.path.components().count()).ok_or_else(not_given)?;
        let rest = wanted.strip_prefix(&closest.path).unwrap_or(Path::new(""));
        Ok(Part {
            given: closest.path.clone(),
            rest: (!rest.as_os_str().is_empty()).then(|| rest.to_owned()),
            read_only: closest.read_only,
        })
    }

    /// Whether a part is there, of the type that is asked for, and on the disk where it was. Blocks on the disk.
    pub(crate) fn check(&self, part: &Part, kind: &str) -> Result<(), HostPathError> {
        let path = part.rest.as_ref().map_or_else(|| part.given.clone(), |rest| part.given.join(rest));
        let missing = |path: &Path| {
            let path = path.to_owned();
            move |source| HostPathError::Missing { path, source }
        };
        let root = fs::metadata("/").map_err(missing(Path::new("/")))?;
        let given = fs::metadata(&part.given).map_err(missing(&part.given))?;
        self.stays_apart(&part.given, given.dev() != root.dev())?;
        let found = fs::metadata(&path).map_err(missing(&path))?;
        match kind {
            "Directory" if !found.is_dir() => Err(HostPathError::Type(path, "directory")),
            "File" if !found.is_file() => Err(HostPathError::Type(path, "file")),
            _ => Ok(()),
        }
    }

    /// A directory that was on a disk of its own when it was first used has to be on one ever after.
    fn stays_apart(&self, given: &Path, apart: bool) -> Result<(), HostPathError> {
        let mut known = self.apart.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(given) {
            Some(true) if !apart => Err(HostPathError::NotMounted(given.to_owned())),
            Some(before) if *before == apart => Ok(()),
            _ => {
                let mut next = known.clone();
                next.insert(given.to_owned(), apart);
                FORMAT.write(&self.file, &next, true)?;
                *known = next;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(list: &[&str], dir: &Path) -> HostPaths {
        let list = list.iter().map(|text| text.parse().expect("a path")).collect();
        HostPaths::open(list, Path::new("/data/hearth"), dir.join("host-paths.json")).expect("may be given")
    }

    #[test]
    fn what_is_given_is_written_as_docker_writes_it() {
        for (text, path, read_only) in [
            ("/srv/media", "/srv/media", false),
            ("/srv/media:ro", "/srv/media", true),
            ("/srv/./media//:rw", "/srv/media", false),
            ("/srv/a:b", "/srv/a:b", false),
        ] {
            assert_eq!(text.parse(), Ok(HostPath { path: path.into(), read_only }), "{text}");
        }
        for text in ["", "srv", "/", "//:ro", "/proc", "/sys/fs", "/dev/sda", "/srv/../etc"] {
            text.parse::<HostPath>().expect_err(text);
        }
        for text in ["/data", "/data/hearth", "/data/hearth/agent"] {
            let list = vec![text.parse().expect("a path")];
            let refused = HostPaths::open(list, Path::new("/data/hearth"), PathBuf::new()).expect_err(text);
            assert!(refused.contains(text) && refused.contains("/data/hearth"), "{refused}");
        }
    }

    #[test]
    fn a_pod_gets_what_is_given_and_what_is_below_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let paths = given(&["/srv:ro", "/srv/media"], dir.path());
        let part = |given: &str, rest: Option<&str>, read_only| Part {
            given: given.into(),
            rest: rest.map(PathBuf::from),
            read_only,
        };
        for (path, expected) in [
            ("/srv", Some(part("/srv", None, true))),
            ("/srv/", Some(part("/srv", None, true))),
            ("/srv/mediax", Some(part("/srv", Some("mediax"), true))),
            ("/srv/media/films", Some(part("/srv/media", Some("films"), false))),
            ("/srvx", None),
            ("/", None),
            ("/srv/../etc", None),
            ("srv", None),
        ] {
            assert_eq!(paths.part(path).ok(), expected, "{path}");
        }
        let why = paths.part("/etc").expect_err("not given").to_string();
        assert_eq!(
            why,
            "hostPath \"/etc\" is not given to apps on this device; its owner gives it by starting the agent with --host-path /etc"
        );
    }

    #[test]
    fn what_is_not_there_or_of_another_type_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let there = dir.path().join("there");
        fs::write(&there, "").expect("writes");
        let paths = given(&[&dir.path().display().to_string()], dir.path());
        let check = |path: &Path, kind| paths.check(&paths.part(&path.display().to_string()).expect("given"), kind);
        for (path, kind, expected) in [
            (dir.path().to_owned(), "Directory", None),
            (dir.path().to_owned(), "", None),
            (dir.path().to_owned(), "File", Some("is not a file")),
            (there.clone(), "File", None),
            (there, "Directory", Some("is not a directory")),
            (dir.path().join("none"), "", Some("none")),
        ] {
            let found = check(&path, kind).err().map(|error| error.to_string());
            assert_eq!(found.is_some(), expected.is_some(), "{path:?} {kind}: {found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()), "{path:?} {kind}");
        }
    }

    #[test]
    fn a_disk_that_is_away_is_not_taken_for_the_directory_beneath() {
        let dir = tempfile::tempdir().expect("a directory");
        let (disk, plain) = (Path::new("/mnt/disk"), Path::new("/srv"));
        let paths = given(&["/mnt/disk", "/srv"], dir.path());
        for (path, apart, fine) in [
            (plain, false, true),
            (disk, true, true),
            (disk, false, false),
            // A directory that was on the root's disk may get one of its own.
            (plain, true, true),
            (plain, false, false),
        ] {
            assert_eq!(paths.stays_apart(path, apart).is_ok(), fine, "{path:?} {apart}");
        }
        let again = given(&["/mnt/disk"], dir.path());
        let error = again.stays_apart(disk, false).expect_err("the agent knows it ever after").to_string();
        assert!(error.contains("mount the disk"), "{error}");
    }
}
