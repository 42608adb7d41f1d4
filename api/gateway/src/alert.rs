//! What a TLS caller is told whose connection cannot be passed on: one fatal alert (RFC 8446 section 6).
//!
//! An alert before any ServerHello is in plain text and needs no keys.

/// Why a caller is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alert {
    /// The hello cannot be read: `decode_error`.
    Malformed = 50,
    /// A device that is there cannot be reached, or its owner has too many connections: `internal_error`, which RFC 8446
    /// defines as an error "unrelated to the peer or the correctness of the protocol". `handshake_failure` would tell the
    /// caller to try other parameters, `access_denied` that it may not.
    Unreachable = 80,
    /// The hello has no server name: `missing_extension`, as RFC 8446 section 9.2 asks for.
    NoName = 109,
    /// Nobody serves the name now, since nobody has it or since its device is away: `unrecognized_name` (RFC 6066 section 3).
    /// One alert for both, at once, so that a stranger does not learn from it which names there are and when whose
    /// device is on.
    NotServed = 112,
}

impl Alert {
    /// The whole record: type alert, the version that RFC 8446 section 5.1 fixes, length 2, level fatal, description.
    pub fn record(self) -> [u8; 7] {
        [21, 3, 3, 0, 2, 2, self as u8]
    }
}
