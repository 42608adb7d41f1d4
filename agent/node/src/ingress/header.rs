//! What the gateway says of a connection, ahead of the connection's own bytes: in the form of this release or the one before.

use std::net::SocketAddr;

use hearth_types::{
    routes::Transport,
    tunnel::{
        BadHeader, IngressHeader,
        proxy::{self, ProxyHeader},
    },
};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What the gateway says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) caller: SocketAddr,
    /// What comes in the stream.
    pub(super) transport: Transport,
    /// The hostname of the Route; `None` from a gateway of the release before.
    pub(super) name: Option<String>,
    /// The gateway's address that was called; `None` from a gateway of the release before.
    pub(super) called: Option<SocketAddr>,
}

impl Call {
    /// What an app is told that wants to know who calls.
    pub(super) fn proxy_header(&self) -> Vec<u8> {
        let Self { caller, transport, ref name, called } = *self;
        ProxyHeader { transport, caller, called: called.unwrap_or(caller), authority: name.clone() }.encode()
    }
}

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("the stream ended within it")]
    Short(#[source] std::io::Error),
    #[error(transparent)]
    Bad(#[from] BadHeader),
}

/// Reads the header, and no byte after it. Bounded in bytes ([`proxy::MAX_BYTES`]); the caller bounds the time.
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Call, HeaderError> {
    let mut bytes = vec![0; 2];
    fill(stream, &mut bytes).await?;
    // The first byte tells: neither form begins as the other does.
    if bytes[0] == IngressHeader::VERSION {
        let length = IngressHeader::length([bytes[0], bytes[1]])?;
        bytes.resize(length, 0);
        fill(stream, &mut bytes[2..]).await?;
        let IngressHeader { caller } = IngressHeader::decode(&bytes)?;
        return Ok(Call { caller, transport: Transport::Tcp, name: None, called: None });
    }
    if !proxy::SIGNATURE.starts_with(&bytes) {
        return Err(BadHeader.into());
    }
    let mut prefix = [0; proxy::PREFIX];
    prefix[..2].copy_from_slice(&bytes);
    fill(stream, &mut prefix[2..]).await?;
    let length = ProxyHeader::length(&prefix)?;
    bytes.splice(.., prefix);
    bytes.resize(length, 0);
    fill(stream, &mut bytes[proxy::PREFIX..]).await?;
    let ProxyHeader { transport, caller, called, authority } = ProxyHeader::decode(&bytes)?;
    Ok(Call { caller, transport, name: authority, called: Some(called) })
}

async fn fill<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut [u8]) -> Result<(), HeaderError> {
    stream.read_exact(bytes).await.map(drop).map_err(HeaderError::Short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxied(authority: &str) -> Vec<u8> {
        let (caller, called) =
            ("[2001:db8::1]:7".parse().expect("an address"), "[::1]:2222".parse().expect("an address"));
        ProxyHeader { transport: Transport::Udp, caller, called, authority: Some(authority.into()) }.encode()
    }

    #[tokio::test]
    async fn both_forms_are_read_up_to_their_last_byte_however_they_arrive() {
        let old = IngressHeader { caller: "[2001:db8::1]:7".parse().expect("an address") }.encode();
        for (header, name, port) in [(old, None, None), (proxied("a.b"), Some("a.b"), Some(2222))] {
            let all = [&header[..], b"rest"].concat();
            for split in 1..header.len() {
                let mut stream = all[..split].chain(&all[split..]);
                let call = read(&mut stream).await.expect("a header");
                assert_eq!(
                    (call.caller.to_string().as_str(), call.name.as_deref(), call.called.map(|called| called.port())),
                    ("[2001:db8::1]:7", name, port)
                );
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.expect("the rest");
                assert_eq!(rest, b"rest");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused_before_more_is_read() {
        let mut long = proxied("a.b");
        long[14] = 0xff;
        let mut bad_sum = proxied("a.b");
        *bad_sum.last_mut().expect("bytes") ^= 1;
        for (bytes, read_at_most) in
            [(&b"GET / HTTP/1.1"[..], 2), (&b"PROXY TCP4 1.2.3.4 "[..], 2), (&long, 16), (&bad_sum, bad_sum.len())]
        {
            let mut stream = bytes;
            assert!(matches!(read(&mut stream).await, Err(HeaderError::Bad(_))), "{bytes:?}");
            assert_eq!(bytes.len() - stream.len(), read_at_most, "{bytes:?}");
        }
        let header = proxied("a.b");
        for end in 0..header.len() {
            assert!(matches!(read(&mut &header[..end]).await, Err(HeaderError::Short(_))), "{end}");
        }
    }
}
