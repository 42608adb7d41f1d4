//! What a gateway reads of strangers' bytes, on its own, for fuzzing: none of it may panic, whatever the bytes are, and what is said here must hold.

use jiff::Timestamp;

use crate::{
    opening::{Opening, inspect},
    records::Records,
    request::{Answer, MAX_HEAD},
};

/// The first bytes of a connection, of either kind: once they decide what it is, no byte more changes that, and they decide it within
/// [`MAX_HEAD`] or [`MAX_BYTES`](crate::client_hello::MAX_BYTES).
pub fn opening(bytes: &[u8]) {
    let whole = inspect(bytes);
    for end in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let part = inspect(&bytes[..end]);
        assert!(part.is_none() || part == whole, "{part:?} became {whole:?}");
    }
    match whole {
        None => assert!(bytes.len() < MAX_HEAD.max(crate::client_hello::MAX_BYTES), "it waits for ever"),
        Some(Opening::Http(request)) => {
            let (head_only, target) = (request.head_only, request.target);
            assert!(target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic()), "{target:?}");
            if let Some(host) = request.host {
                one_answer(&Answer::Redirect { host, port: 8443, target }, head_only);
            }
        }
        Some(Opening::BadHttp(answer)) => one_answer(&answer, false),
        Some(Opening::Tls(_) | Opening::Refuse(..)) => {}
    }
}

/// An answer is one: whatever of the request is in it ends no line and adds none.
fn one_answer(answer: &Answer, head_only: bool) {
    let text = String::from_utf8(answer.render(head_only, Timestamp::UNIX_EPOCH)).expect("an answer is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head ends");
    assert_eq!(body.is_empty(), head_only);
    let location = usize::from(matches!(answer, Answer::Redirect { .. }));
    assert_eq!(head.split("\r\n").count(), 6 + location, "{head}");
    assert!(!head.replace("\r\n", "").contains(['\r', '\n']), "{head}");
}

/// The records of one direction of a TLS connection: what is seen in them is the same however they were cut.
pub fn records(bytes: &[u8]) {
    let (mut pieces, mut seen) = (Records::default(), false);
    // Cut by the bytes themselves.
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        let (piece, after) = rest.split_at((usize::from(*first) % 9 + 1).min(rest.len()));
        seen |= pieces.feed(piece);
        rest = after;
    }
    assert_eq!(seen, Records::default().feed(bytes));
}

#[cfg(test)]
mod tests {
    /// What fuzzing begins with, and what it once found.
    #[test]
    fn seeds_of_fuzzing_are_read_as_they_must_be() {
        let mut read = 0;
        for target in ["client_hello", "request_head"] {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
            for file in std::fs::read_dir(folder).expect("seeds") {
                let bytes = std::fs::read(file.expect("a seed").path()).expect("a seed");
                super::opening(&bytes);
                super::records(&bytes);
                read += 1;
            }
        }
        assert!(read >= 2, "{read} seeds");
    }
}
