//! What certificates and requests hold, as far as it matters here.

use std::collections::BTreeSet;

use hearth_types::Timestamp;
use instant_acme::CertificateIdentifier;
use rcgen::{CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType};
use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

/// Certificates of a chain at most.
const MAX_CHAIN: usize = 8;
/// The longest chain in bytes of PEM that is stored with its object.
const MAX_PEM: usize = 32 << 10;

/// What is wrong with what somebody sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FactsError {
    #[error("the device's request cannot be used: {0}")]
    Request(String),
    #[error("the authority's certificate cannot be used: {0}")]
    Chain(String),
}

/// A certificate.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Its DNS names, in lower case.
    pub(crate) names: BTreeSet<String>,
    /// SHA-256 of its SubjectPublicKeyInfo, hex.
    pub(crate) spki: String,
    /// Hex.
    pub(crate) serial: String,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// Its name in the authority's renewal information (RFC 9773 section 4.1), if it has what that is made of.
    pub(crate) id: Option<CertificateIdentifier<'static>>,
}

/// What a device asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) names: BTreeSet<String>,
    pub(crate) spki: String,
}

/// SHA-256, hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

/// Reads a request; its signature and its kind of key are checked, so that no order is spent on one that the authority refuses.
pub(crate) fn request(der: &[u8]) -> Result<Asked, FactsError> {
    let wrong = |why: &dyn std::fmt::Display| FactsError::Request(why.to_string());
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
        .map_err(|error| wrong(&error))?;
    let key = &request.public_key;
    if *key.algorithm() != PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != 65 {
        return Err(wrong(&"its key is not P-256"));
    }
    let mut names = BTreeSet::new();
    for name in &request.params.subject_alt_names {
        match name {
            SanType::DnsName(name) => drop(names.insert(name.as_str().to_ascii_lowercase())),
            other => return Err(wrong(&format!("it asks for {other:?}, which is no DNS name"))),
        }
    }
    Ok(Asked { names, spki: sha256(&key.subject_public_key_info()) })
}

/// Reads the first certificate of a chain.
pub(crate) fn chain(pem: &str) -> Result<Facts, FactsError> {
    let wrong = |why: &dyn std::fmt::Display| FactsError::Chain(why.to_string());
    if pem.len() > MAX_PEM {
        return Err(wrong(&format!("its chain has more than {MAX_PEM} bytes")));
    }
    let all: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(MAX_CHAIN + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(&error))?;
    let leaf = all.first().filter(|_| all.len() <= MAX_CHAIN);
    leaf.ok_or_else(|| wrong(&format!("its chain has {} certificates", all.len()))).and_then(leaf_of)
}

/// Reads a certificate.
pub(crate) fn leaf_of(der: &CertificateDer<'_>) -> Result<Facts, FactsError> {
    let wrong = |why: &dyn std::fmt::Display| FactsError::Chain(why.to_string());
    let (_, parsed) = X509Certificate::from_der(der).map_err(|error| wrong(&error))?;
    let time = |time: x509_parser::time::ASN1Time| Timestamp(time.timestamp().saturating_mul(1000));
    Ok(Facts {
        names: names_of(parsed.extensions()),
        spki: sha256(parsed.public_key().raw),
        serial: hex::encode(parsed.raw_serial()),
        not_before: time(parsed.validity().not_before),
        not_after: time(parsed.validity().not_after),
        id: CertificateIdentifier::try_from(der).ok().map(CertificateIdentifier::into_owned),
    })
}

/// The DNS names of a certificate's extensions, in lower case.
pub(crate) fn names_of(extensions: &[x509_parser::extensions::X509Extension<'_>]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for extension in extensions {
        if let ParsedExtension::SubjectAlternativeName(all) = extension.parsed_extension() {
            names.extend(all.general_names.iter().filter_map(|one| match one {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                _ => None,
            }));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};

    use super::*;

    #[test]
    fn a_request_says_its_names_and_key_and_must_be_signed_by_a_p256_key() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let names = vec!["*.a.test".to_owned(), "a.test".to_owned()];
        let csr = CertificateParams::new(names.clone()).expect("names").serialize_request(&key).expect("a request");
        let asked = request(csr.der()).expect("a good request");
        assert_eq!(asked.names, names.into_iter().collect());
        assert_eq!(asked.spki, sha256(&key.subject_public_key_info()));
        let mut bad = csr.der().to_vec();
        *bad.last_mut().expect("bytes") ^= 1;
        assert!(request(&bad).is_err(), "the signature is not its key's");
        let other = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let csr = CertificateParams::new(vec!["a.test".into()]).expect("names").serialize_request(&other).expect("one");
        assert!(request(csr.der()).expect_err("browsers refuse it").to_string().contains("P-256"));
    }

    #[test]
    fn a_certificate_says_its_names_and_key() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let cert = CertificateParams::new(vec!["A.test".into()]).expect("names").self_signed(&key).expect("one");
        let facts = chain(&cert.pem()).expect("a certificate");
        assert_eq!(facts.names, std::iter::once("a.test".to_owned()).collect());
        assert_eq!(facts.spki, sha256(&key.subject_public_key_info()));
        assert!(facts.not_before < facts.not_after && facts.id.is_none());
        assert!(chain("").is_err() && chain("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
        assert!(chain(&cert.pem().repeat(9)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            assert!(request(&bytes).is_err());
            assert!(leaf_of(&bytes.into()).is_err());
        }
    }
}
