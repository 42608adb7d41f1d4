//! The first bytes of a tunnel's stream: its kind, and of an ingress stream the gateway's header in either form. What is read of it ends where
//! the user's own bytes begin, in how many pieces soever they come; what follows is not touched.
#![no_main]

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use hearth_types::tunnel::{IngressHeader, StreamKind, proxy::ProxyHeader};
use tokio::io::{AsyncRead, ReadBuf};

/// The agent's own; all else of that crate would have to be built with it.
#[path = "../../agent/node/src/ingress/header.rs"]
mod header;

/// Gives so many bytes at a time.
struct Pieces<'a>(&'a [u8], usize);

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let (piece, rest) = self.0.split_at(self.1.min(self.0.len()).min(buffer.remaining()));
        buffer.put_slice(piece);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

/// What is read, and what is left.
fn read(bytes: &[u8], piece: usize) -> (Option<header::Call>, usize) {
    let mut pieces = Pieces(bytes, piece);
    let read = match pin!(header::read(&mut pieces)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(read) => read.ok(),
        Poll::Pending => panic!("it waits for bytes that are there"),
    };
    (read, pieces.0.len())
}

/// With the right sum where there is a place for one, so that what lies behind it is reached.
fn summed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let end = bytes.first_chunk().and_then(|prefix| ProxyHeader::length(prefix).ok()).unwrap_or(0).min(bytes.len());
    if let Some(at) = bytes[..end].windows(7).position(|some| some[..3] == [3, 0, 4]) {
        bytes[at + 3..at + 7].fill(0);
        let sum = crc32c::crc32c(&bytes[..end]);
        bytes[at + 3..at + 7].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let _ = StreamKind::from_byte(*kind).map(|kind| assert_eq!(kind as u8, bytes[0]));
    for bytes in [rest.to_vec(), summed(rest)] {
        let (call, left) = read(&bytes, usize::MAX);
        assert_eq!(read(&bytes, 1), (call.clone(), left));
        let (head, tail) = bytes.split_at(bytes.len() - left);
        // What follows decides nothing, but where all was read and more of it was to come.
        assert_eq!(read(head, usize::MAX), (call.clone(), 0));
        if call.is_some() || left > 0 {
            assert_eq!(read(&[head, b"more", tail].concat(), usize::MAX).0, call);
        }
        let Some(call) = call else { continue };
        let again = if head[0] == IngressHeader::VERSION {
            IngressHeader { caller: call.caller }.encode()
        } else {
            call.proxy_header()
        };
        assert_eq!(read(&again, usize::MAX), (Some(call), 0));
    }
});
