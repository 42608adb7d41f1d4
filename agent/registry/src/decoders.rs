//! What reads bytes from outside, for the fuzzer: each is called with any bytes and must only not panic.

use crate::Credentials;
use crate::challenge;

/// The value of a `WWW-Authenticate` header. What is read must read back from how it is written.
pub fn www_authenticate(bytes: &[u8]) {
    if let Ok(challenges) = challenge::parse(bytes) {
        let text = challenges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        // Written out with quotes and spaces, it may have grown beyond the limit.
        match challenge::parse(text.as_bytes()) {
            Err(challenge::ChallengeError::TooLong(_)) => {}
            again => assert_eq!(again, Ok(challenges), "{text}"),
        }
    }
}

/// A pull secret, in either format.
pub fn pull_secret(bytes: &[u8]) {
    for read in [Credentials::from_docker_config_json(bytes), Credentials::from_docker_cfg(bytes)].into_iter().flatten()
    {
        let _ = read.lookup("registry.example:5000", "a/b");
    }
}
