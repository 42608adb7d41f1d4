//! What a connection's first bytes ask for.

use crate::{
    alert::Alert,
    client_hello::{self, ServerName},
    metrics::Outcome,
    request::{self, Answer, Head, Request},
};

/// What is to be done with a connection, by its first bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// TLS for this name.
    Tls(String),
    /// TLS that cannot be passed on.
    Refuse(Alert, Outcome),
    /// A plain HTTP request.
    Http(Request),
    /// Something else, which gets an answer as if it were plain HTTP.
    BadHttp(Answer),
}

/// Reads the first bytes; `None` while they do not decide it. The first byte tells TLS from the rest: no HTTP method
/// begins with it.
pub(crate) fn inspect(bytes: &[u8]) -> Option<Opening> {
    match bytes.first() {
        None => None,
        Some(&client_hello::FIRST_BYTE) => match client_hello::server_name(bytes) {
            ServerName::Partial => None,
            ServerName::Found(name) => Some(Opening::Tls(name)),
            ServerName::None => Some(Opening::Refuse(Alert::NoName, Outcome::NoName)),
            ServerName::Malformed => Some(Opening::Refuse(Alert::Malformed, Outcome::Malformed)),
        },
        Some(_) => match request::parse(bytes) {
            Head::Partial => None,
            Head::Whole(request) => Some(Opening::Http(request)),
            Head::Malformed => Some(Opening::BadHttp(Answer::BadRequest)),
            Head::TooLong => Some(Opening::BadHttp(Answer::TooLong)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_tells_tls_from_plain_http() {
        assert_eq!(inspect(b""), None);
        assert_eq!(inspect(&[22, 3]), None);
        assert_eq!(inspect(&[22, 9]), Some(Opening::Refuse(Alert::Malformed, Outcome::Malformed)));
        assert_eq!(inspect(b"GET / HT"), None);
        assert!(matches!(inspect(b"GET / HTTP/1.1\r\nHost: a.b\r\n\r\n"), Some(Opening::Http(_))));
        assert_eq!(inspect(&[0x80, 0x2e, 1, 3, 1]), Some(Opening::BadHttp(Answer::BadRequest)), "an SSL 2 hello");
    }
}
