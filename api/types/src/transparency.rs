//! Logs of Certificate Transparency, as an operator names them: where one is read, and the key by which its tree heads are verified.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::digest::{SHA256, digest};

use crate::acme::url;

/// What stands between a log's URL and its key.
const KEY: &str = ",key=";
/// The longest public key in bytes of DER: RSA of 8,192 bits has 1,062.
const MAX_KEY: usize = 1100;
/// A `SubjectPublicKeyInfo` of P-256 up to its point (RFC 5480 section 2).
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point of P-256 in bytes.
const POINT: usize = 65;
/// The `AlgorithmIdentifier` of RSA (RFC 3279 section 2.3.1).
const RSA: [u8; 15] = [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// A log that is watched. Its text is `URL`, or `URL,key=BASE64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Where it is read: an RFC 6962 log's URL, a static log's monitoring prefix. `https://`, or `http://` on this machine.
    pub url: String,
    /// By what its tree heads are verified; none: they are believed by the TLS of that URL.
    pub key: Option<LogKey>,
}

impl Log {
    /// Reads a text; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (at, key) = text.rsplit_once(KEY).map_or((text, None), |(at, key)| (at, Some(key)));
        // One on this machine may be asked without TLS.
        let here = at.starts_with("http://127.0.0.1:") || at.starts_with("http://localhost:");
        url("a log", at, if here { "http://" } else { "https://" })?;
        Ok(Self { url: at.to_owned(), key: key.map(LogKey::parse).transpose()? })
    }

    /// The URL without slashes at its end: what paths are put behind.
    pub fn base(&self) -> &str {
        self.url.trim_end_matches('/')
    }
}

/// A log's public key: ECDSA on P-256, or RSA (RFC 6962 section 2.1.4).
#[derive(Clone, PartialEq, Eq)]
pub struct LogKey {
    spki: Vec<u8>,
    public: Public,
}

/// The key itself, as signatures are verified by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Public {
    /// An uncompressed point.
    P256([u8; POINT]),
    /// An `RSAPublicKey` (RFC 8017 appendix A.1.1), DER.
    Rsa(Vec<u8>),
}

impl LogKey {
    /// Reads a `SubjectPublicKeyInfo` in base64, as `key` in the log lists of browsers.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || {
            format!("the log's key {text:?}: must be what log lists have as `key`, P-256 or RSA in base64 of its DER")
        };
        let spki = STANDARD.decode(text).ok().filter(|spki| spki.len() <= MAX_KEY).ok_or_else(bad)?;
        let public = p256(&spki).or_else(|| rsa(&spki)).ok_or_else(bad)?;
        Ok(Self { spki, public })
    }

    /// The key itself.
    pub fn public(&self) -> &Public {
        &self.public
    }

    /// The log's id (RFC 6962 section 3.2): `log_id` in log lists.
    pub fn log_id(&self) -> [u8; 32] {
        let mut id = [0; 32];
        id.copy_from_slice(digest(&SHA256, &self.spki).as_ref());
        id
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogKey").field(&STANDARD.encode(self.log_id())).finish()
    }
}

fn p256(spki: &[u8]) -> Option<Public> {
    let point: [u8; POINT] = spki.strip_prefix(&P256)?.try_into().ok()?;
    (point[0] == 4).then_some(Public::P256(point))
}

fn rsa(spki: &[u8]) -> Option<Public> {
    let rest = sized(spki, 0x30)?.strip_prefix(&RSA)?;
    let key = sized(rest, 0x03)?.strip_prefix(&[0])?;
    sized(key, 0x30)?;
    Some(Public::Rsa(key.to_vec()))
}

/// What is in an element of DER that is all there is, its length in two bytes: keys of 1,024 to 8,192 bits have no other.
fn sized(der: &[u8], tag: u8) -> Option<&[u8]> {
    let ([kind, 0x82, high, low], rest) = der.split_first_chunk::<4>()? else { return None };
    (*kind == tag && rest.len() == usize::from(u16::from_be_bytes([*high, *low]))).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made for these tests with openssl.
    const EC: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEhe4OK7UHbtitmxbt1kzFPFQ2s8+xdvuIZFPAP4lAJ2L/e1D+xLKKXEcXDG3HPdiOeT6YXmGA+txe37gdHC0ifg==";
    const RSA_2048: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAy/kG2e99FwgHmh9QxNg5V7uNA2xbrnhKj2nuU0sSFdBJYPYTONMKlwumwm+qgkXL61aeO8J8+M+dGrd+FSXcz/sOLJMkI4hvJfvq5iGzpzx6kAb+yNlJBHTtJZX1+f7DKqjmCgKBd9/BM0UPrgeW9f9vlapOTiSJVFd0vFJCDr2g3phRHstYKII7uKRN5mbouCtBITlM0CYjnppmH2nIWQaJJTQ2xorII0+xLIHCsckqZbHw6WXzN3RYg0MnN3FxPspz+Kmnr4qAWQrm/np71S1GJ8zuYV+GWTaDAMChn5w4zTPKFuU/ZyBY3TDfCCtqJmMxaQSHc7el1olRlRD8XQIDAQAB";
    const ED25519: &str = "MCowBQYDK2VwAyEAjIIKReE8Y9pRC3VNvoL6x0VXx17CUFlatJXnJWiuOn4=";
    const P384: &str = "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAECYdcG5zW13yFaUobpjZ6QkOyReo8NVNewsdm8wDtqs+wDS0+pZS/p72K1TAV3fC317k9MjDX4Yy+R42V49Zckf1E+eWqzhOhJ9mgfWaHpgM+x0NOePpRS+U0iEa7119G";

    #[test]
    fn a_log_is_a_url_or_a_url_with_a_key() {
        let plain = Log::parse("https://ct.example/2026h1/").expect("a log");
        assert_eq!((plain.base(), &plain.key), ("https://ct.example/2026h1", &None));
        assert!(Log::parse("http://127.0.0.1:80/log").is_ok() && Log::parse("http://localhost:80").is_ok());
        let keyed = Log::parse(&format!("https://ct.example/a,b/,key={EC}")).expect("a log");
        assert_eq!(keyed.url, "https://ct.example/a,b/");
        let key = keyed.key.expect("a key");
        assert!(matches!(key.public(), Public::P256(_)));
        // By `openssl dgst -sha256`.
        assert_eq!(STANDARD.encode(key.log_id()), "eG5UrvZymAH7EvSYck4LX0YGKFG43VK76+nReG+QavY=");
        let rsa = Log::parse(&format!("https://ct.example/,key={RSA_2048}")).expect("a log");
        assert!(matches!(rsa.key.expect("a key").public(), Public::Rsa(key) if key.len() == 270));
    }

    #[test]
    fn what_is_no_log_is_refused_with_a_word_on_what_is() {
        let half = &EC[..60];
        for (text, why) in [
            ("ct.example", "https://"),
            ("http://ct.example", "https://"),
            ("https://ct.example/ x", "https://"),
            ("https://ct.example,key=", "key"),
            ("https://ct.example,key=x", "key"),
            (&format!("https://ct.example,key={half}"), "key"),
            (&format!("https://ct.example,key={ED25519}"), "P-256 or RSA"),
            (&format!("https://ct.example,key={P384}"), "P-256 or RSA"),
            (&format!("https://ct.example,key={}", STANDARD.encode(vec![0x30; 5000])), "P-256 or RSA"),
        ] {
            let found = Log::parse(text).expect_err(text);
            assert!(found.contains(why), "{text}: {found}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_texts_and_keys_never_panic(
            text in ".{0,200}", bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
        ) {
            let _ = Log::parse(&text);
            let _ = LogKey::parse(&STANDARD.encode(&bytes));
            let _ = rsa(&[&[0x30, 0x82], &bytes[..]].concat());
        }
    }
}
