//! Streams of blobs: counted, hashed and decompressed, with every length bounded.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::limits::MAX_ZSTD_WINDOW_LOG;
use crate::source::BlobSource;
use crate::spec::Descriptor;
use crate::tarball::Skip;
use crate::{Digest, ImageError};

/// Bytes of a read from a blob.
const READ_BYTES: usize = 64 * 1024;
/// Bytes of a decompressed piece that is handed from thread to thread.
const PIECE_BYTES: usize = 128 * 1024;
/// Pieces under way between two threads: 1 MiB, enough to keep both busy.
const PIECES: usize = 8;

/// A blob's bytes, counted and hashed as they pass, never more than one beyond what its descriptor says.
pub(crate) struct Verifying<'a> {
    inner: io::Take<Box<dyn Read + Send + 'a>>,
    hasher: Sha256,
    count: u64,
}

impl<'a> Verifying<'a> {
    pub(crate) fn open(source: &'a dyn BlobSource, descriptor: &Descriptor) -> Result<Self, ImageError> {
        let blob = source.open(&descriptor.digest)?;
        if let Some(had) = blob.length.filter(|had| *had != descriptor.size) {
            return Err(ImageError::Size { digest: descriptor.digest, wanted: descriptor.size, had });
        }
        let inner = blob.reader.take(descriptor.size.saturating_add(1));
        Ok(Self { inner, hasher: Sha256::new(), count: 0 })
    }

    /// Reads what is left, and compares size and digest with the descriptor.
    pub(crate) fn finish(mut self, descriptor: &Descriptor, source: &dyn BlobSource) -> Result<(), ImageError> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::io("read", source.path(), error)),
            }
        }
        if self.count != descriptor.size {
            return Err(ImageError::Size { digest: descriptor.digest, wanted: descriptor.size, had: self.count });
        }
        let had = Digest::from_hasher(self.hasher);
        if had != descriptor.digest {
            return Err(ImageError::WrongDigest { wanted: descriptor.digest, had });
        }
        Ok(())
    }
}

impl Read for Verifying<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

/// Reads a whole document, verified. `name` is how messages call it.
pub(crate) fn read_document(
    source: &dyn BlobSource,
    descriptor: &Descriptor,
    limit: u64,
    name: &str,
) -> Result<Vec<u8>, ImageError> {
    if descriptor.size > limit {
        return Err(ImageError::DocumentTooLarge { document: name.into(), had: descriptor.size, limit });
    }
    let mut stream = Verifying::open(source, descriptor)?;
    let mut bytes = Vec::with_capacity(descriptor.size as usize);
    stream.read_to_end(&mut bytes).map_err(|error| ImageError::io("read", source.path(), error))?;
    stream.finish(descriptor, source)?;
    Ok(bytes)
}

/// A layer's blob, decompressed as its first bytes say.
enum Decoder<'a> {
    Plain(BufReader<Verifying<'a>>),
    Gzip(Box<MultiGzDecoder<BufReader<Verifying<'a>>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Verifying<'a>>>>),
}

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    Gzip,
    Zstd,
}

impl Encoding {
    /// By the magic numbers of RFC 1952 and RFC 8878. A tar archive has a path there, and no path of an image begins so.
    pub(crate) fn of(first_bytes: &[u8]) -> Self {
        match first_bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

impl<'a> Decoder<'a> {
    fn new(stream: Verifying<'a>) -> io::Result<Self> {
        let mut buffered = BufReader::with_capacity(READ_BYTES, stream);
        Ok(match Encoding::of(buffered.fill_buf()?) {
            Encoding::Plain => Self::Plain(buffered),
            Encoding::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(buffered))),
            Encoding::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(buffered)?;
                decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    fn raw_count(&self) -> u64 {
        match self {
            Self::Plain(reader) => reader.get_ref().count,
            Self::Gzip(decoder) => decoder.get_ref().get_ref().count,
            Self::Zstd(decoder) => decoder.get_ref().get_ref().count,
        }
    }

    fn into_raw(self) -> Verifying<'a> {
        match self {
            Self::Plain(reader) => reader.into_inner(),
            Self::Gzip(decoder) => decoder.into_inner().into_inner(),
            Self::Zstd(decoder) => decoder.finish().into_inner(),
        }
    }
}

impl Read for Decoder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// How much a layer may become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamLimits {
    pub(crate) bytes: u64,
    pub(crate) ratio: u64,
    pub(crate) ratio_free_bytes: u64,
}

/// How decompressing a layer ended, apart from what its reader made of it.
pub(crate) enum StreamEnd {
    /// All of it was read; the digest of the decompressed bytes.
    Complete(Digest),
    /// The reader stopped early.
    Stopped,
    /// It grew beyond a limit.
    TooLarge(String),
    /// The compressed stream is broken, with the decoder's words.
    Broken(String),
}

/// Decompresses and hashes on a thread of its own while `consume` works on the result, and verifies the blob in any case.
///
/// Flow: blob -> digest -> decoder -> diff id -> channel -> `consume`. The inner result is what `consume` returned, beside how the stream
/// ended; the outer error says that the blob is not what its descriptor promised, which goes before anything that was found inside.
pub(crate) fn stream_layer<T, F>(
    source: &dyn BlobSource,
    descriptor: &Descriptor,
    limits: StreamLimits,
    consume: F,
) -> Result<(StreamEnd, T), ImageError>
where
    F: FnOnce(PieceReader) -> T,
{
    let stream = Verifying::open(source, descriptor)?;
    let (sender, receiver) = sync_channel(PIECES);
    std::thread::scope(|scope| {
        let producer = std::thread::Builder::new()
            .name("layer-decoder".into())
            .spawn_scoped(scope, move || -> Result<StreamEnd, ImageError> {
                let mut decoder = Decoder::new(stream).map_err(|error| ImageError::io("read", source.path(), error))?;
                let end = decode(&mut decoder, limits, &sender);
                drop(sender);
                if !matches!(end, StreamEnd::TooLarge(_)) {
                    decoder.into_raw().finish(descriptor, source)?;
                }
                Ok(end)
            })
            .map_err(|error| ImageError::io("start a thread for", source.path(), error))?;
        let result = consume(PieceReader { receiver, piece: Vec::new(), at: 0 });
        let end = producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((end, result))
    })
}

fn decode(decoder: &mut Decoder<'_>, limits: StreamLimits, sender: &SyncSender<Vec<u8>>) -> StreamEnd {
    let mut hasher = Sha256::new();
    let mut total: u64 = 0;
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        if let Err(error) = decoder.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece) {
            return StreamEnd::Broken(error.to_string());
        }
        if piece.is_empty() {
            return StreamEnd::Complete(Digest::from_hasher(hasher));
        }
        total += piece.len() as u64;
        let raw = decoder.raw_count();
        if total > limits.bytes {
            return StreamEnd::TooLarge(format!(
                "the layer or its image becomes larger than the limit of {} bytes",
                limits.bytes
            ));
        }
        if total > limits.ratio_free_bytes && total > raw.saturating_mul(limits.ratio) {
            return StreamEnd::TooLarge(format!(
                "{raw} bytes of it became {total}: more than {} times is taken for a decompression bomb",
                limits.ratio
            ));
        }
        hasher.update(&piece);
        if sender.send(piece).is_err() {
            return StreamEnd::Stopped;
        }
    }
}

/// The decompressed bytes as they arrive from the other thread.
pub(crate) struct PieceReader {
    receiver: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len() {
            // A sender that is gone has nothing more to say: why is what it returned.
            self.piece = self.receiver.recv().unwrap_or_default();
            self.at = 0;
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl Skip for PieceReader {}
