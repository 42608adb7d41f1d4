//! Where images come from: anything that has blobs by digest and says which images it holds.

mod archive;
mod docker;
mod layout;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::blob::Encoding;
use crate::limits::MAX_ARCHIVE_BYTES;
use crate::spec::{self, Descriptor};
use crate::{Digest, ImageError};

/// A blob that was opened. Nothing about it is verified yet.
pub(crate) struct Blob<'a> {
    pub(crate) reader: Box<dyn Read + Send + 'a>,
    /// Its length, where the source knows it beforehand.
    pub(crate) length: Option<u64>,
}

/// Blobs by digest: a directory, an archive, and later a registry.
pub(crate) trait BlobSource: Sync {
    /// Opens a blob. Its content is whatever the source has there.
    fn open(&self, digest: &Digest) -> Result<Blob<'_>, ImageError>;

    /// Where the blobs are, for messages.
    fn path(&self) -> &Path;
}

/// An image, or several for different platforms, under one name or none.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// The names that the source has for the descriptor, as written there: full references or bare tags.
    pub(crate) names: Vec<String>,
    /// A manifest or an index.
    pub(crate) descriptor: Descriptor,
}

/// An opened source.
pub(crate) struct Opened {
    pub(crate) blobs: Box<dyn BlobSource>,
    pub(crate) offers: Vec<Offer>,
}

/// Opens a layout directory or an archive. A compressed archive is decompressed into a nameless file in `scratch`.
pub(crate) fn open(path: &Path, scratch: &Path) -> Result<Opened, ImageError> {
    let metadata = std::fs::metadata(path).map_err(|error| ImageError::io("open image", path, error))?;
    if metadata.is_dir() {
        return layout::open(path);
    }
    if !metadata.is_file() {
        return Err(not_an_image(path, "it is neither a directory nor a file"));
    }
    let file = File::open(path).map_err(|error| ImageError::io("open image", path, error))?;
    let file = plain_archive(file, path, scratch)?;
    archive::open(file, path)
}

fn plain_archive(mut file: File, path: &Path, scratch: &Path) -> Result<File, ImageError> {
    let read = |error| ImageError::io("read image", path, error);
    let mut magic = Vec::new();
    (&mut file).take(4).read_to_end(&mut magic).map_err(read)?;
    file.seek(SeekFrom::Start(0)).map_err(read)?;
    let decoder: Box<dyn Read> = match Encoding::of(&magic) {
        Encoding::Plain => return Ok(file),
        Encoding::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Encoding::Zstd => {
            let mut decoder = zstd::Decoder::new(file).map_err(read)?;
            decoder.window_log_max(crate::limits::MAX_ZSTD_WINDOW_LOG).map_err(read)?;
            Box::new(decoder)
        }
    };
    let mut plain =
        tempfile::tempfile_in(scratch).map_err(|error| ImageError::io("create a file in", scratch, error))?;
    copy_bounded(decoder, &mut plain, path, scratch)?;
    plain.seek(SeekFrom::Start(0)).map_err(|error| ImageError::io("read", scratch, error))?;
    Ok(plain)
}

fn copy_bounded(mut from: Box<dyn Read>, to: &mut File, path: &Path, scratch: &Path) -> Result<(), ImageError> {
    use std::io::Write;
    let mut buffer = vec![0; 128 * 1024];
    let mut total: u64 = 0;
    loop {
        // A decoder's error is about the archive: it is damaged or cut off.
        let count = from
            .read(&mut buffer)
            .map_err(|error| not_an_image(path, &format!("it cannot be decompressed: {error}")))?;
        if count == 0 {
            return Ok(());
        }
        total += count as u64;
        if total > MAX_ARCHIVE_BYTES {
            return Err(not_an_image(path, &format!("it decompresses to more than {MAX_ARCHIVE_BYTES} bytes")));
        }
        to.write_all(&buffer[..count]).map_err(|error| ImageError::io("decompress the archive in", scratch, error))?;
    }
}

/// The images of an `index.json`: entries that are no images are left out.
fn offers_of_index(bytes: &[u8]) -> Result<Vec<Offer>, ImageError> {
    let descriptors = spec::parse_index("index.json", bytes)?;
    Ok(descriptors
        .into_iter()
        .filter(|descriptor| descriptor.target() != spec::Target::Other)
        .map(|descriptor| {
            let name =
                descriptor.annotations.get(spec::IMAGE_NAME).or_else(|| descriptor.annotations.get(spec::REF_NAME));
            Offer { names: name.cloned().into_iter().collect(), descriptor }
        })
        .collect())
}

fn check_layout_version(bytes: &[u8]) -> Result<(), ImageError> {
    #[derive(serde::Deserialize)]
    struct Layout {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    let layout: Layout =
        serde_json::from_slice(bytes).map_err(|error| spec::invalid("oci-layout", error.to_string()))?;
    if layout.version.starts_with("1.") {
        return Ok(());
    }
    Err(spec::invalid(
        "oci-layout",
        format!("layout version {:?} is not supported: only 1.x is", spec::clip(&layout.version)),
    ))
}

fn not_an_image(path: &Path, reason: &str) -> ImageError {
    ImageError::NotAnImage { path: path.to_owned(), reason: reason.into() }
}
