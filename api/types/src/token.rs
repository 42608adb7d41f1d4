//! The join token: what an operator hands to a new device or server. One line of text that carries where the region
//! is, how to tell that it is the right one, and a secret that is good for one of them.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::names;

/// What every token of this version begins with.
const PREFIX: &str = "hearth1.";
/// The longest token in bytes that is read: far above the longest that is made.
pub const MAX_TOKEN_BYTES: usize = 4096;
/// Addresses in one token at most: the servers of a region, each by name, IPv4 and IPv6.
pub const MAX_TOKEN_ADDRESSES: usize = 16;
/// The longest secret part in bytes.
pub const MAX_SECRET_BYTES: usize = 128;

/// A join token, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The region's API servers, `host:port` each; never empty.
    pub addresses: Vec<String>,
    /// The name that the servers' certificate has: `api.<zone>`.
    pub server_name: String,
    /// SHA-256 of the SubjectPublicKeyInfo of the region's CA (as kubeadm's `discovery-token-ca-cert-hash`).
    pub ca_hash: [u8; 32],
    /// What is shown to the region: `<id>.<secret>`.
    pub secret: String,
}

/// Why a text is no join token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin as one.
    #[error("not a join token: one begins with {PREFIX:?}; make one with `hearth token create`")]
    Prefix,
    /// Longer than any token.
    #[error("not a join token: longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// Damaged.
    #[error("the join token is damaged ({0}); copy all of it, on one line")]
    Damaged(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    a: Vec<String>,
    n: String,
    h: String,
    s: String,
}

impl JoinToken {
    /// Checks what a token must have, so that who reads one can rely on it.
    fn check(self) -> Result<Self, TokenError> {
        let damaged = |why: &str| TokenError::Damaged(why.into());
        if self.addresses.is_empty() || self.addresses.len() > MAX_TOKEN_ADDRESSES {
            return Err(damaged("it has no address, or too many"));
        }
        if !self.addresses.iter().all(|address| is_address(address)) {
            return Err(damaged("an address is not host:port"));
        }
        names::dns_subdomain(&self.server_name).map_err(|_| damaged("the server's name is none"))?;
        let secret = self.secret.as_bytes();
        let graphic = secret.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'.');
        if secret.is_empty() || secret.len() > MAX_SECRET_BYTES || !graphic {
            return Err(damaged("the secret part is malformed"));
        }
        Ok(self)
    }
}

/// Whether a text is an address as tokens carry them: `host:port`, `address:port` or `[address]:port`, with a port above zero.
pub fn is_address(text: &str) -> bool {
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return address.port() != 0;
    }
    text.rsplit_once(':').is_some_and(|(host, port)| {
        names::dns_subdomain(host).is_ok() && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

impl fmt::Display for JoinToken {
    /// The whole token. It is a secret: print it once, to whom it is for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = Body {
            a: self.addresses.clone(),
            n: self.server_name.clone(),
            h: URL_SAFE_NO_PAD.encode(self.ca_hash),
            s: self.secret.clone(),
        };
        let json = serde_json::to_vec(&body).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl fmt::Debug for JoinToken {
    /// Everything but the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("addresses", &self.addresses)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|error| TokenError::Damaged(error.to_string()))?;
        let body: Body = serde_json::from_slice(&json).map_err(|error| TokenError::Damaged(error.to_string()))?;
        let hash = URL_SAFE_NO_PAD.decode(&body.h).map_err(|error| TokenError::Damaged(error.to_string()))?;
        let ca_hash = hash.try_into().map_err(|_| TokenError::Damaged("the CA's hash has not 32 bytes".into()))?;
        Self { addresses: body.a, server_name: body.n, ca_hash, secret: body.s }.check()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            addresses: vec!["192.0.2.1:7443".into(), "[2001:db8::1]:7443".into(), "home.example:7443".into()],
            server_name: "api.hearth.internal".into(),
            ca_hash: [7; 32],
            secret: "abcdef.0123456789abcdef".into(),
        }
    }

    #[test]
    fn a_token_survives_its_text_and_debug_hides_the_secret() {
        let text = token().to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains("0123456789"));
    }

    #[test]
    fn what_is_no_token_says_why() {
        assert_eq!("abc".parse::<JoinToken>(), Err(TokenError::Prefix));
        assert_eq!(format!("{PREFIX}{}", "a".repeat(5000)).parse::<JoinToken>(), Err(TokenError::TooLong));
        let text = token().to_string();
        assert!(matches!(text[..text.len() - 9].parse::<JoinToken>(), Err(TokenError::Damaged(_))));
        for bad in [
            JoinToken { addresses: vec![], ..token() },
            JoinToken { addresses: vec!["nowhere".into()], ..token() },
            JoinToken { addresses: vec!["192.0.2.1:0".into()], ..token() },
            JoinToken { server_name: "-".into(), ..token() },
            JoinToken { secret: "a b".into(), ..token() },
        ] {
            assert!(matches!(bad.to_string().parse::<JoinToken>(), Err(TokenError::Damaged(_))), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,80}") {
            let _ = text.parse::<JoinToken>();
            let _ = format!("{PREFIX}{text}").parse::<JoinToken>();
            let _ = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(text)).parse::<JoinToken>();
        }
    }
}
