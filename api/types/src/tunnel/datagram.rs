//! Datagrams in a stream of a tunnel: each behind its length in two bytes, big-endian, as DNS over TCP has it (RFC 1035 section 4.2.2).

/// The longest datagram, in bytes: what is left of a UDP packet's 16 bits of length (RFC 768) behind its own header.
pub const MAX_BYTES: usize = u16::MAX as usize - 8;

/// Bytes before each datagram.
const PREFIX: usize = 2;

/// How much room is made for reading at least: a datagram of one packet.
const READ: usize = 2048;

/// An empty buffer above this is given back, so that one large datagram does not cost its stream memory for ever.
const KEEP: usize = 8192;

/// Appends a datagram. `false`, and nothing appended, where it is longer than [`MAX_BYTES`].
#[must_use]
pub fn push(out: &mut Vec<u8>, datagram: &[u8]) -> bool {
    if datagram.len() > MAX_BYTES {
        return false;
    }
    out.extend((datagram.len() as u16).to_be_bytes());
    out.extend(datagram);
    true
}

/// Takes datagrams out of a stream's bytes. Holds less than one datagram and one reading.
#[derive(Debug, Default)]
pub struct Datagrams {
    bytes: Vec<u8>,
    /// Where the next one begins.
    at: usize,
}

impl Datagrams {
    /// Where to append what is read, with room for it. To be called when [`Self::next`] has nothing more.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.bytes.drain(..self.at);
        self.at = 0;
        if self.bytes.is_empty() && self.bytes.capacity() > KEEP {
            self.bytes = Vec::new();
        }
        let missing = self.length().map_or(0, |length| (PREFIX + length).saturating_sub(self.bytes.len()));
        self.bytes.reserve(missing.max(READ));
        &mut self.bytes
    }

    /// The next datagram; `None` until it is whole.
    #[expect(clippy::should_implement_trait, reason = "it lends what it holds")]
    pub fn next(&mut self) -> Option<&[u8]> {
        let begin = self.at + PREFIX;
        let end = begin + self.length()?;
        let datagram = self.bytes.get(begin..end)?;
        self.at = end;
        Some(datagram)
    }

    fn length(&self) -> Option<usize> {
        let prefix = self.bytes.get(self.at..)?.first_chunk()?;
        Some(usize::from(u16::from_be_bytes(*prefix)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_longer_than_a_datagram_is_refused() {
        let mut out = Vec::new();
        assert!(push(&mut out, &vec![1; MAX_BYTES]) && push(&mut out, b""));
        assert_eq!(out.len(), MAX_BYTES + 2 * PREFIX);
        assert!(!push(&mut out, &vec![1; MAX_BYTES + 1]));
        assert_eq!(out.len(), MAX_BYTES + 2 * PREFIX);
    }

    proptest! {
        #[test]
        fn datagrams_survive_any_split_of_the_stream(
            sent in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5000), 0..8),
            size in 1_usize..4000,
        ) {
            let mut stream = Vec::new();
            for one in &sent {
                prop_assert!(push(&mut stream, one));
            }
            let (mut datagrams, mut got) = (Datagrams::default(), Vec::new());
            for piece in stream.chunks(size) {
                datagrams.buffer().extend(piece);
                while let Some(one) = datagrams.next() {
                    got.push(one.to_vec());
                }
            }
            prop_assert_eq!(got, sent);
            prop_assert!(datagrams.buffer().is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_are_not_hoarded(bytes in proptest::collection::vec(any::<u8>(), 0..70_000)) {
            let mut datagrams = Datagrams::default();
            for piece in bytes.chunks(1400) {
                datagrams.buffer().extend(piece);
                while datagrams.next().is_some() {}
                prop_assert!(datagrams.bytes.len() - datagrams.at < PREFIX + usize::from(u16::MAX));
            }
        }
    }
}
