//! Secrets of the region that lie in the store: sealed by a key that is derived from the CA's, so that the store alone, or a look at the Secret,
//! gives nobody what is in them.

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom as _, SystemRandom},
};

use crate::{CertificateAuthority, ca::CaError};

/// Seals and opens the secrets of one purpose.
pub(crate) struct Seal {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Seal {
    /// `info` says what for (RFC 5869): no other purpose comes to the same key.
    pub(crate) fn new(ca: &CertificateAuthority, info: &[u8]) -> Result<Self, CaError> {
        // What is derived has the length of a key.
        let key = UnboundKey::new(&AES_256_GCM, &ca.derive(info)?).map_err(|_| CaError::Random)?;
        Ok(Self { key: LessSafeKey::new(key), random: SystemRandom::new() })
    }

    /// A secret, bound to what is public beside it: a nonce, and the sealed bytes. `None` where there is no randomness.
    pub(crate) fn seal(&self, secret: &[u8], beside: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut sealed = secret.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(unique, Aad::from(beside), &mut sealed).ok()?;
        Some([&nonce[..], &sealed].concat())
    }

    /// The secret again; `None` of what was sealed by another CA, beside something else, or is damaged.
    pub(crate) fn open(&self, sealed: &[u8], beside: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut bytes = sealed.to_vec();
        let opened =
            self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(beside), &mut bytes).ok()?;
        Some(opened.to_vec())
    }
}
