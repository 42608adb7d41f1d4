//! Archives: a tar file that holds an OCI image layout, or what `docker save` writes. Nothing is unpacked: the files are read where they are.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Blob, BlobSource, Opened, docker, not_an_image};
use crate::error::EntryProblem;
use crate::limits::{MAX_ARCHIVE_ENTRIES, MAX_MANIFEST_BYTES, MAX_PATH_BYTES};
use crate::tarball::{TarError, TarReader};
use crate::{Digest, ImageError};

/// What an archive has under one of its paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Member {
    /// A file: where its content is.
    File { offset: u64, length: u64 },
    /// A symbolic or hard link: older versions of Docker write a layer once and link to it.
    Link { target: String },
    /// Anything else: never read.
    Other,
}

/// An archive and where its members are.
pub(super) struct Archive {
    pub(super) path: PathBuf,
    file: File,
    members: HashMap<String, Member>,
}

pub(super) fn open(file: File, path: &Path) -> Result<Opened, ImageError> {
    let members = index(&file, path)?;
    let archive = Archive { path: path.to_owned(), file, members };
    if archive.members.contains_key("oci-layout") {
        super::check_layout_version(&archive.document("oci-layout")?)?;
        let offers = super::offers_of_index(&archive.document("index.json")?)?;
        return Ok(Opened { blobs: Box::new(archive), offers });
    }
    if archive.members.contains_key("manifest.json") {
        return docker::open(archive);
    }
    Err(not_an_image(path, "the archive has neither an oci-layout nor a manifest.json"))
}

fn index(file: &File, path: &Path) -> Result<HashMap<String, Member>, ImageError> {
    let clone = file.try_clone().map_err(|error| ImageError::io("read image", path, error))?;
    let mut reader = TarReader::new(BufReader::new(clone));
    let mut members = HashMap::new();
    while let Some(entry) = reader.next_entry().map_err(|error| refuse(error, path))? {
        if reader.headers() > MAX_ARCHIVE_ENTRIES as u64 {
            return Err(not_an_image(path, &format!("it has more than {MAX_ARCHIVE_ENTRIES} entries")));
        }
        let shown = entry.shown();
        let name =
            member_name(entry.path).map_err(|problem| not_an_image(path, &format!("entry {shown:?}: {problem}")))?;
        let member = match entry.kind {
            b'0' => {
                let offset = io::Seek::stream_position(reader.inner_mut())
                    .map_err(|error| ImageError::io("read image", path, error))?;
                Member::File { offset, length: entry.size }
            }
            b'1' | b'2' => Member::Link { target: String::from_utf8_lossy(&entry.link).into_owned() },
            _ => Member::Other,
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// A member's name without a leading `./`, refused where it climbs. Names that are not UTF-8 are none that is ever looked for.
fn member_name(path: Vec<u8>) -> Result<String, EntryProblem> {
    if path.len() > MAX_PATH_BYTES {
        return Err(EntryProblem::PathTooLong { had: path.len(), limit: MAX_PATH_BYTES });
    }
    let text = String::from_utf8_lossy(&path);
    if text.split('/').any(|part| part == "..") {
        return Err(EntryProblem::DotDot);
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(parts.join("/"))
}

fn refuse(error: TarError, path: &Path) -> ImageError {
    match error {
        TarError::Io(error) => ImageError::io("read image", path, error),
        TarError::Truncated { entry } => {
            not_an_image(path, &format!("the archive is truncated at or after entry {entry:?}"))
        }
        TarError::Header { after, reason } => not_an_image(path, &format!("after {after:?}: {reason}")),
        TarError::Entry { entry, problem } => not_an_image(path, &format!("entry {entry:?}: {problem}")),
    }
}

impl Archive {
    /// A whole file of the archive that no digest covers.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let Some(Member::File { offset, length }) = self.members.get(name) else {
            return Err(not_an_image(&self.path, &format!("the archive has no file {name}")));
        };
        if *length > MAX_MANIFEST_BYTES {
            return Err(ImageError::DocumentTooLarge {
                document: name.into(),
                had: *length,
                limit: MAX_MANIFEST_BYTES,
            });
        }
        let mut bytes = Vec::with_capacity(*length as usize);
        self.reader(*offset, *length)
            .read_to_end(&mut bytes)
            .map_err(|error| ImageError::io("read image", &self.path, error))?;
        Ok(bytes)
    }

    /// Where the file `name` is, through at most one link within the archive.
    pub(super) fn find(&self, name: &str) -> Option<(u64, u64)> {
        match self.members.get(name)? {
            Member::File { offset, length } => Some((*offset, *length)),
            Member::Link { target } => match self.members.get(&resolve(name, target)?)? {
                Member::File { offset, length } => Some((*offset, *length)),
                _ => None,
            },
            Member::Other => None,
        }
    }

    pub(super) fn reader(&self, offset: u64, length: u64) -> Section<'_> {
        Section { file: &self.file, offset, left: length }
    }
}

/// The name that a link leads to: relative to the link's directory for `../x`, else from the root of the archive.
fn resolve(link: &str, target: &str) -> Option<String> {
    let relative = target.starts_with("../") || target.starts_with("./");
    let mut parts: Vec<&str> = match link.rsplit_once('/') {
        Some((parent, _)) if relative => parent.split('/').collect(),
        _ => Vec::new(),
    };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

impl BlobSource for Archive {
    fn open(&self, digest: &Digest) -> Result<Blob<'_>, ImageError> {
        match self.members.get(&format!("blobs/sha256/{}", digest.hex())) {
            Some(Member::File { offset, length }) => {
                Ok(Blob { reader: Box::new(self.reader(*offset, *length)), length: Some(*length) })
            }
            Some(Member::Link { .. }) => {
                Err(ImageError::BlobNotAFile { digest: *digest, path: self.path.clone(), found: "a link" })
            }
            Some(Member::Other) => Err(ImageError::BlobNotAFile {
                digest: *digest,
                path: self.path.clone(),
                found: "a directory or a device",
            }),
            None => Err(ImageError::MissingBlob { digest: *digest, path: self.path.clone() }),
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// A piece of a file, read without moving the file's position: several may be read at once.
pub(super) struct Section<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (buffer.len() as u64).min(self.left) as usize;
        let count = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_within_the_archive_or_not_at_all() {
        for (link, target, result) in [
            ("a/layer.tar", "../b/layer.tar", Some("b/layer.tar")),
            ("a/layer.tar", "b/layer.tar", Some("b/layer.tar")),
            ("a/layer.tar", "../../b", None),
            ("a", "/etc/shadow", Some("etc/shadow")),
            ("a/b", "./c", Some("a/c")),
        ] {
            assert_eq!(resolve(link, target).as_deref(), result, "{link} -> {target}");
        }
    }
}
