//! The TLS alerts with which connections are refused (RFC 8446 section 6, RFC 6066 section 3).

/// Why a connection is refused, with the alert's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Alert {
    /// The hello cannot be parsed.
    DecodeError = 50,
    /// The server cannot go on, for a reason that has nothing to do with the peer: the device cannot be reached.
    InternalError = 80,
    /// No server of this name is here.
    UnrecognizedName = 112,
}

impl Alert {
    /// The fatal alert as a plaintext record, which every client takes before keys are agreed. It says version 1.2 as
    /// all records after the first do.
    pub(crate) fn record(self) -> [u8; 7] {
        const ALERT: u8 = 21;
        const FATAL: u8 = 2;
        [ALERT, 3, 3, 0, 2, FATAL, self as u8]
    }
}
