//! OCI image layouts: a directory with `oci-layout`, `index.json` and `blobs/` (OCI image spec, image-layout.md).
//!
//! Every file is opened beneath the directory without following a link anywhere, so that a layout from outside cannot name files of the device.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Blob, BlobSource, Opened, not_an_image};
use crate::limits::MAX_MANIFEST_BYTES;
use crate::{Digest, ImageError};

struct Layout {
    path: PathBuf,
    directory: OwnedFd,
}

/// Why a file of a layout was not opened.
enum Refused {
    Missing,
    NotAFile(&'static str),
    Io(Errno),
}

pub(super) fn open(path: &Path) -> Result<Opened, ImageError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| ImageError::io("open image", path, error))?;
    let layout = Layout { path: path.to_owned(), directory };
    super::check_layout_version(&layout.document("oci-layout")?)?;
    let offers = super::offers_of_index(&layout.document("index.json")?)?;
    Ok(Opened { blobs: Box::new(layout), offers })
}

impl Layout {
    fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let (file, length) = self.file(name).map_err(|refused| match refused {
            Refused::Missing => {
                not_an_image(&self.path, &format!("the directory has no {name}, so it is no OCI image layout"))
            }
            Refused::NotAFile(found) => {
                not_an_image(&self.path, &format!("its {name} is {found}, not a file: links are not followed"))
            }
            Refused::Io(error) => ImageError::io("open", &self.path.join(name), error),
        })?;
        let too_large = |had| ImageError::DocumentTooLarge { document: name.into(), had, limit: MAX_MANIFEST_BYTES };
        if length > MAX_MANIFEST_BYTES {
            return Err(too_large(length));
        }
        let mut bytes = Vec::new();
        file.take(MAX_MANIFEST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| ImageError::io("read", &self.path.join(name), error))?;
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(too_large(bytes.len() as u64));
        }
        Ok(bytes)
    }

    fn file(&self, name: &str) -> Result<(File, u64), Refused> {
        // NONBLOCK, or a pipe in place of a file would stop the import for ever.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let fd = match rustix::fs::openat2(&self.directory, name, flags, Mode::empty(), resolve) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(Refused::Missing),
            Err(Errno::LOOP) => return Err(Refused::NotAFile("a symbolic link, or behind one")),
            Err(Errno::NOTDIR) => return Err(Refused::NotAFile("behind something that is not a directory")),
            Err(Errno::NXIO) => return Err(Refused::NotAFile("a socket or a device")),
            Err(error) => return Err(Refused::Io(error)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(Refused::Io)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok((File::from(fd), stat.st_size as u64)),
            FileType::Directory => Err(Refused::NotAFile("a directory")),
            FileType::Fifo => Err(Refused::NotAFile("a pipe")),
            _ => Err(Refused::NotAFile("a device")),
        }
    }
}

impl BlobSource for Layout {
    fn open(&self, digest: &Digest) -> Result<Blob<'_>, ImageError> {
        let name = format!("blobs/sha256/{}", digest.hex());
        match self.file(&name) {
            Ok((file, length)) => Ok(Blob { reader: Box::new(file), length: Some(length) }),
            Err(Refused::Missing) => Err(ImageError::MissingBlob { digest: *digest, path: self.path.clone() }),
            Err(Refused::NotAFile(found)) => {
                Err(ImageError::BlobNotAFile { digest: *digest, path: self.path.clone(), found })
            }
            Err(Refused::Io(error)) => Err(ImageError::io("open", &self.path.join(name), error)),
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
