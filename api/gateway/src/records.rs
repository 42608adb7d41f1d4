//! Where the handshake of a TLS connection ends, as far as it can be seen from outside.

/// The record type application_data: in TLS 1.3 all that is protected, in TLS 1.2 what comes after the handshake.
const APPLICATION_DATA: u8 = 23;
const HEADER: usize = 5;

/// Follows the records of one direction, fed in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct Records {
    header: [u8; HEADER],
    filled: usize,
    body_left: usize,
}

impl Records {
    /// Reads on, and says whether a record with application data was seen to begin.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> bool {
        let mut seen = false;
        loop {
            let skipped = self.body_left.min(bytes.len());
            self.body_left -= skipped;
            bytes = &bytes[skipped..];
            let part = bytes.len().min(HEADER - self.filled);
            if part == 0 {
                return seen;
            }
            self.header[self.filled..self.filled + part].copy_from_slice(&bytes[..part]);
            self.filled += part;
            bytes = &bytes[part..];
            if self.filled == HEADER {
                seen |= self.header[0] == APPLICATION_DATA;
                self.body_left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
                self.filled = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(kind: u8, length: u8) -> Vec<u8> {
        let mut out = vec![kind, 3, 3, 0, length];
        out.extend(std::iter::repeat_n(APPLICATION_DATA, usize::from(length)));
        out
    }

    #[test]
    fn application_data_is_found_behind_other_records_at_every_split() {
        let handshake = [record(22, 40), record(20, 1), record(22, 0)].concat();
        let mut all = handshake.clone();
        all.extend(record(APPLICATION_DATA, 9));
        for split in 0..=all.len() {
            let mut records = Records::default();
            let first = records.feed(&all[..split]);
            assert_eq!(first, split >= handshake.len() + HEADER, "split at {split}");
            assert_ne!(first, records.feed(&all[split..]), "split at {split}");
        }
        assert!(!Records::default().feed(&handshake));
    }

    proptest! {
        #[test]
        fn pieces_do_not_change_what_is_seen(bytes in proptest::collection::vec(any::<u8>(), 0..600), size in 1_usize..50) {
            let mut pieces = Records::default();
            let in_pieces = bytes.chunks(size).fold(false, |seen, piece| pieces.feed(piece) | seen);
            prop_assert_eq!(in_pieces, Records::default().feed(&bytes));
        }
    }
}
