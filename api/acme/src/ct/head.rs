//! Tree heads of logs: checkpoints (<https://c2sp.org/tlog-checkpoint>, signed notes by <https://c2sp.org/signed-note>), answers to `get-sth`
//! (RFC 6962 section 4.3), and the one signature that both have. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_types::transparency::{LogKey, Public};
use ring::signature::{ECDSA_P256_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;

use super::merkle::{Hash, MAX_SIZE, sha256};

/// Signatures of a note that are looked at, at most; the specification asks for 16.
const MAX_SIGNATURES: usize = 64;
/// The type of a note's signature that is a `TreeHeadSignature`.
const RFC6962: u8 = 5;
/// Bytes of a note's key id.
const KEY_ID: usize = 4;

/// What a log says of its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) size: u64,
    pub(crate) root: Hash,
    /// When it was signed, in milliseconds since 1970; known of those whose signature was verified.
    pub(crate) signed: Option<u64>,
}

/// Why a tree head is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("it is no signed note: {0}")]
    Note(&'static str),
    #[error("it is no checkpoint: {0}")]
    Checkpoint(&'static str),
    #[error("it is no signed tree head: {0}")]
    SignedTreeHead(String),
    #[error("it says to have {0} entries, and no log has more than 2^40")]
    Size(u64),
    #[error("it has no signature of the log's key: is the key another log's?")]
    NotSigned,
    #[error("its signature is not by the log's key")]
    Signature,
}

impl HeadError {
    /// Whether it can be read, and is just not the log's word.
    pub(crate) fn is_of_signature(&self) -> bool {
        matches!(self, Self::NotSigned | Self::Signature)
    }
}

/// Reads a checkpoint; where there is a key, its signature is verified.
pub(crate) fn checkpoint(bytes: &[u8], key: Option<&LogKey>) -> Result<Head, HeadError> {
    let note = Note::read(bytes)?;
    let checkpoint = Checkpoint::read(note.text)?;
    let mut head = Head { size: sized(checkpoint.size)?, root: checkpoint.root, signed: None };
    let Some(key) = key else { return Ok(head) };
    let id = key_id(key, checkpoint.origin);
    // All that are said to be by this key have to be.
    for signature in note.signatures.iter().filter(|one| one.name == checkpoint.origin && one.id == id) {
        if checkpoint.extended {
            return Err(HeadError::Checkpoint("it has lines that the log's signature does not cover"));
        }
        let (time, signature) = signature.body.split_first_chunk::<8>().ok_or(HeadError::Signature)?;
        let time = u64::from_be_bytes(*time);
        verify(key, time, &head, signature)?;
        head.signed = Some(time);
    }
    head.signed.is_some().then_some(head).ok_or(HeadError::NotSigned)
}

#[derive(Deserialize)]
struct SignedTreeHead {
    tree_size: u64,
    timestamp: u64,
    sha256_root_hash: String,
    tree_head_signature: String,
}

/// Reads an answer to `get-sth`; where there is a key, its signature is verified.
pub(crate) fn signed_tree_head(json: &[u8], key: Option<&LogKey>) -> Result<Head, HeadError> {
    let bad = |what: &str| HeadError::SignedTreeHead(what.to_owned());
    let read: SignedTreeHead = serde_json::from_slice(json).map_err(|error| bad(&error.to_string()))?;
    let root = STANDARD.decode(&read.sha256_root_hash).ok().and_then(|root| root.try_into().ok());
    let head =
        Head { size: sized(read.tree_size)?, root: root.ok_or_else(|| bad("its root is no hash"))?, signed: None };
    let Some(key) = key else { return Ok(head) };
    let signature = STANDARD.decode(&read.tree_head_signature).map_err(|_| bad("its signature is not base64"))?;
    verify(key, read.timestamp, &head, &signature)?;
    Ok(Head { signed: Some(read.timestamp), ..head })
}

fn sized(size: u64) -> Result<u64, HeadError> {
    if size <= MAX_SIZE { Ok(size) } else { Err(HeadError::Size(size)) }
}

/// The id of a log's key in notes: of an RFC 6962 signature by static-ct-api.
fn key_id(key: &LogKey, name: &str) -> [u8; KEY_ID] {
    let hash = sha256(&[name.as_bytes(), b"\n", &[RFC6962], &key.log_id()]);
    [hash[0], hash[1], hash[2], hash[3]]
}

/// What a log signs of its tree (RFC 6962 section 3.5): version 1, the type `tree_hash`, time, size, root.
pub(crate) fn signed_bytes(time: u64, size: u64, root: &Hash) -> Vec<u8> {
    [&[0, 1][..], &time.to_be_bytes(), &size.to_be_bytes(), root].concat()
}

/// Verifies a `TreeHeadSignature`: `digitally-signed` of TLS 1.2 (RFC 5246 section 4.7).
fn verify(key: &LogKey, time: u64, head: &Head, signature: &[u8]) -> Result<(), HeadError> {
    const SHA256: u8 = 4;
    let (algorithm, kind, public): (&dyn VerificationAlgorithm, u8, &[u8]) = match key.public() {
        Public::P256(point) => (&ECDSA_P256_SHA256_ASN1, 3, point),
        Public::Rsa(key) => (&RSA_PKCS1_2048_8192_SHA256, 1, key),
    };
    let by = signature.strip_prefix(&[SHA256, kind]).and_then(<[u8]>::split_first_chunk::<2>);
    let signature = by.filter(|(length, rest)| usize::from(u16::from_be_bytes(**length)) == rest.len());
    let (_, signature) = signature.ok_or(HeadError::Signature)?;
    let signed = signed_bytes(time, head.size, &head.root);
    UnparsedPublicKey::new(algorithm, public).verify(&signed, signature).map_err(|_| HeadError::Signature)
}

/// A signed note.
#[derive(Debug, PartialEq, Eq)]
struct Note<'a> {
    /// With the end of its last line.
    text: &'a str,
    signatures: Vec<NoteSignature<'a>>,
}

#[derive(Debug, PartialEq, Eq)]
struct NoteSignature<'a> {
    name: &'a str,
    id: [u8; KEY_ID],
    body: Vec<u8>,
}

impl<'a> Note<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, HeadError> {
        let bad = HeadError::Note;
        let note = std::str::from_utf8(bytes).map_err(|_| bad("it is no UTF-8"))?;
        if note.bytes().any(|byte| byte < b' ' && byte != b'\n') {
            return Err(bad("it has control characters"));
        }
        let split = note.rfind("\n\n").ok_or(bad("it has no empty line before its signatures"))?;
        let (text, lines) = (&note[..=split], &note[split + 2..]);
        let lines = lines.strip_suffix('\n').ok_or(bad("its last line has no end"))?;
        let mut signatures = Vec::new();
        for line in lines.split('\n') {
            if signatures.len() == MAX_SIGNATURES {
                return Err(bad("it has more than 64 signatures"));
            }
            signatures.push(NoteSignature::read(line).ok_or(bad("a line behind its text is no signature"))?);
        }
        Ok(Self { text, signatures })
    }
}

impl<'a> NoteSignature<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (name, signature) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
        if name.is_empty() || name.contains(|one: char| one.is_whitespace() || one == '+') {
            return None;
        }
        let bytes = STANDARD.decode(signature).ok()?;
        let (id, body) = bytes.split_first_chunk::<KEY_ID>()?;
        Some(Self { name, id: *id, body: body.to_vec() })
    }
}

/// What a checkpoint's text says.
struct Checkpoint<'a> {
    origin: &'a str,
    size: u64,
    root: Hash,
    /// Whether it has more lines.
    extended: bool,
}

impl<'a> Checkpoint<'a> {
    fn read(text: &'a str) -> Result<Self, HeadError> {
        let bad = HeadError::Checkpoint;
        let mut lines = text.strip_suffix('\n').ok_or(bad("its last line has no end"))?.split('\n');
        let origin = lines.next().filter(|origin| !origin.is_empty()).ok_or(bad("it has no origin"))?;
        let size = lines.next().and_then(decimal).ok_or(bad("its size is no number"))?;
        let root = lines.next().and_then(|line| STANDARD.decode(line).ok()?.try_into().ok());
        let root = root.ok_or(bad("its root is no hash"))?;
        let extensions: Vec<_> = lines.collect();
        if extensions.iter().any(|line| line.is_empty()) {
            return Err(bad("it has an empty line"));
        }
        Ok(Self { origin, size, root, extended: !extensions.is_empty() })
    }
}

/// A number as it is written: no sign, no zero before it.
fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
    };

    use super::*;

    /// `SubjectPublicKeyInfo` of P-256 up to its point.
    const P256: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
    pub(crate) const ORIGIN: &str = "ct.example/2026h1";
    const TIME: u64 = 1_767_139_200_000;

    /// A log that signs.
    pub(crate) struct Signer {
        pair: EcdsaKeyPair,
        pub(crate) key: LogKey,
    }

    impl Signer {
        pub(crate) fn new() -> Self {
            let (algorithm, random) = (&ECDSA_P256_SHA256_ASN1_SIGNING, SystemRandom::new());
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
            let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("the same key");
            let spki = [&hex::decode(P256).expect("hex")[..], pair.public_key().as_ref()].concat();
            Self { pair, key: LogKey::parse(&STANDARD.encode(spki)).expect("a key") }
        }

        /// `digitally-signed`.
        fn sign(&self, time: u64, size: u64, root: &Hash) -> Vec<u8> {
            let signature = self.pair.sign(&SystemRandom::new(), &signed_bytes(time, size, root)).expect("signed");
            let signature = signature.as_ref();
            [&[4, 3, 0, signature.len() as u8], signature].concat()
        }

        pub(crate) fn checkpoint(&self, time: u64, size: u64, root: &Hash) -> String {
            let line = self.line(ORIGIN, time, size, root);
            format!("{ORIGIN}\n{size}\n{}\n\n{line}", STANDARD.encode(root))
        }

        fn line(&self, name: &str, time: u64, size: u64, root: &Hash) -> String {
            let body = [&key_id(&self.key, name)[..], &time.to_be_bytes(), &self.sign(time, size, root)].concat();
            format!("\u{2014} {name} {}\n", STANDARD.encode(body))
        }

        pub(crate) fn sth(&self, time: u64, size: u64, root: &Hash) -> String {
            serde_json::json!({"tree_size": size, "timestamp": time, "sha256_root_hash": STANDARD.encode(root),
                "tree_head_signature": STANDARD.encode(self.sign(time, size, root))})
            .to_string()
        }
    }

    #[test]
    fn a_head_is_taken_by_its_signature() {
        let (signer, other, root) = (Signer::new(), Signer::new(), [9; 32]);
        let expected = Head { size: 300, root, signed: Some(TIME) };
        let (note, sth) = (signer.checkpoint(TIME, 300, &root), signer.sth(TIME, 300, &root));
        assert_eq!(checkpoint(note.as_bytes(), Some(&signer.key)), Ok(expected));
        assert_eq!(signed_tree_head(sth.as_bytes(), Some(&signer.key)), Ok(expected));
        // Without a key, what it says is believed, but not when it was signed.
        let unsigned = Head { signed: None, ..expected };
        assert_eq!(checkpoint(note.as_bytes(), None), Ok(unsigned));
        assert_eq!(signed_tree_head(sth.as_bytes(), None), Ok(unsigned));
        // Another log's key, and each part that the signature is over.
        assert_eq!(checkpoint(note.as_bytes(), Some(&other.key)), Err(HeadError::NotSigned));
        assert_eq!(signed_tree_head(sth.as_bytes(), Some(&other.key)), Err(HeadError::Signature));
        let changed =
            [note.replace("\n300\n", "\n301\n"), note.replace(&STANDARD.encode(root), &STANDARD.encode([8; 32]))];
        for note in changed {
            assert_eq!(checkpoint(note.as_bytes(), Some(&signer.key)), Err(HeadError::Signature), "{note}");
        }
        let sth = sth.replace("300", "301");
        assert_eq!(signed_tree_head(sth.as_bytes(), Some(&signer.key)), Err(HeadError::Signature));
        // A name that is not the origin's is another's.
        let text = note.split_once("\n\n").expect("a note").0;
        let named = format!("{text}\n\n{}", signer.line("ct.example/2026h2", TIME, 300, &root));
        assert_eq!(checkpoint(named.as_bytes(), Some(&signer.key)), Err(HeadError::NotSigned));
        // The same with the id of the log's own.
        let (_, own) = note.rsplit_once(' ').expect("a signature");
        let borrowed = format!("{text}\n\n\u{2014} ct.example/2026h2 {own}");
        assert_eq!(checkpoint(borrowed.as_bytes(), Some(&signer.key)), Err(HeadError::NotSigned));
        // What is not covered is not there.
        let extended = note.replacen("\n\n", "\nmore\n\n", 1);
        assert!(matches!(checkpoint(extended.as_bytes(), Some(&signer.key)), Err(HeadError::Checkpoint(_))));
        assert_eq!(checkpoint(extended.as_bytes(), None), Ok(unsigned));
    }

    #[test]
    fn signatures_of_others_are_passed_over_and_one_bad_one_of_the_log_is_enough() {
        let (signer, root) = (Signer::new(), [9; 32]);
        let note = signer.checkpoint(TIME, 300, &root);
        let witness = format!("\u{2014} witness.example/w {}\n", STANDARD.encode([5; 80]));
        let same_name = format!("\u{2014} {ORIGIN} {}\n", STANDARD.encode([5; 80]));
        let (text, own) = note.split_at(note.find("\n\n").expect("a note") + 2);
        let many = witness.repeat(20);
        let good = format!("{text}{witness}{same_name}{own}{many}");
        assert!(checkpoint(good.as_bytes(), Some(&signer.key)).is_ok());
        assert_eq!(
            checkpoint(format!("{text}{witness}{same_name}").as_bytes(), Some(&signer.key)),
            Err(HeadError::NotSigned)
        );
        let wrong = signer.line(ORIGIN, TIME, 301, &root);
        assert_eq!(checkpoint(format!("{good}{wrong}").as_bytes(), Some(&signer.key)), Err(HeadError::Signature));
        let most = format!("{text}{}", own.repeat(MAX_SIGNATURES + 1));
        assert!(
            matches!(checkpoint(most.as_bytes(), Some(&signer.key)), Err(HeadError::Note(why)) if why.contains("64"))
        );
    }

    #[test]
    fn a_key_of_rsa_signs_too() {
        let key = LogKey::parse(RSA_SPKI).expect("a key");
        let root = [3; 32];
        let signature = STANDARD.decode(RSA_SIGNATURE).expect("base64");
        let whole = [&[4, 1, 1, 0][..], &signature].concat();
        let sth = |signature: &[u8]| {
            serde_json::json!({"tree_size": 7, "timestamp": TIME, "sha256_root_hash": STANDARD.encode(root),
                "tree_head_signature": STANDARD.encode(signature)})
            .to_string()
        };
        assert!(signed_tree_head(sth(&whole).as_bytes(), Some(&key)).is_ok());
        // Said to be ECDSA, of another length, of another hash.
        for (at, byte) in [(1, 3), (3, 1), (0, 5), (9, whole[9] ^ 1)] {
            let mut bad = whole.clone();
            bad[at] = byte;
            assert_eq!(signed_tree_head(sth(&bad).as_bytes(), Some(&key)), Err(HeadError::Signature), "{at}");
        }
    }

    #[test]
    fn what_is_no_checkpoint_is_refused_with_the_reason() {
        let signature = format!("\u{2014} a {}\n", STANDARD.encode([0; 9]));
        let root = STANDARD.encode([1; 32]);
        let good = format!("a\n0\n{root}\n\n{signature}");
        assert_eq!(checkpoint(good.as_bytes(), None).map(|head| head.size), Ok(0));
        for (note, why) in [
            (String::new(), "empty line"),
            (format!("a\n0\n{root}\n"), "empty line"),
            (good.replace("a\n0", "a\r\n0"), "control characters"),
            (good.trim_end().to_owned(), "last line"),
            (format!("a\n0\n{root}\n\n"), "last line"),
            (good.replace("\u{2014} a ", "\u{2014} "), "no signature"),
            (good.replace("\u{2014} a ", "- a "), "no signature"),
            (good.replace("\u{2014} a ", "\u{2014} a+b "), "no signature"),
            (good.replace("AAAA", "A"), "no signature"),
            (format!("a\n0\n{root}\n\n\u{2014} a AAAA\n"), "no signature"),
            (format!("\n0\n{root}\n\n{signature}"), "no origin"),
            (good.replace("\n0\n", "\n00\n"), "no number"),
            (good.replace("\n0\n", "\n+1\n"), "no number"),
            (good.replace("\n0\n", "\n99999999999999999999\n"), "no number"),
            (good.replace("\n0\n", "\n1099511627777\n"), "2^40"),
            (good.replace(&root, "AAAA"), "no hash"),
            (format!("a\n0\n\n{signature}"), "no hash"),
            (format!("a\n0\n{root}\n\nmore\n\n{signature}"), "empty line"),
        ] {
            let found = checkpoint(note.as_bytes(), None).expect_err(why).to_string();
            assert!(found.contains(why), "{note:?}: {found}");
        }
        assert!(checkpoint(&[0xff], None).is_err());
        for json in [
            "",
            "{}",
            r#"{"tree_size":-1}"#,
            r#"{"tree_size":1,"timestamp":0,"sha256_root_hash":"","tree_head_signature":""}"#,
        ] {
            assert!(matches!(signed_tree_head(json.as_bytes(), None), Err(HeadError::SignedTreeHead(_))), "{json}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_heads_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "[a\u{2014}+0 =\n]{0,60}") {
            let _ = checkpoint(&bytes, None);
            let _ = checkpoint(text.as_bytes(), None);
            let _ = signed_tree_head(&bytes, None);
        }

        #[test]
        fn no_signature_is_made_up(bytes in prop::collection::vec(any::<u8>(), 0..90), size in 0..MAX_SIZE) {
            let (signer, root) = (Signer::new(), [9; 32]);
            let text = format!("{ORIGIN}\n{size}\n{}\n", STANDARD.encode(root));
            let body = [&key_id(&signer.key, ORIGIN)[..], &bytes].concat();
            let note = format!("{text}\n\u{2014} {ORIGIN} {}\n", STANDARD.encode(body));
            prop_assert_eq!(checkpoint(note.as_bytes(), Some(&signer.key)), Err(HeadError::Signature));
        }
    }

    /// Made for this test with openssl: `genpkey`, `dgst -sha256 -sign`.
    const RSA_SPKI: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAru7jRWJv/qVf2mIRuxBPGBGo7ZFFb60iPlKTr5hYXy4h/qPH9nDevS23dOohK2q9ymYb2If5+KaQ3tLTDuadEdN9qzxB9BaqnSrDESC6WhQx4Uc5I5tgBmHf0CGc48RnGunCNelmF5iKa+cjtr5xUUM39uIWVeL37cnP8ErhQQl457pSInZFcqOz+VFwg0Yc37eQplJCSClBC8+bTauNaaPIuHdJmrtSoG52fFV7cUaKDBAAvr7YO2KRG2djOIpGaEbBc/g8PQxfLxLx8fc0IyWUH4CFFHIBkT9rkJnBeHg7mkEyw8ZZnPjTAWTyCaLjdb5bFk1F2H8qIxSAkQ14NQIDAQAB";
    const RSA_SIGNATURE: &str = "e0D7oQGatAhha+QqxJ8wT+G0Y9yEZEWlH8FNugS/ggiVKCqHz2AqPBZPU24yz85XFsape01FK8F/GByx+EGopMYWJkxDF4mwpYVbgdXyJx3x3d9UEKnrHUujurQ36Fqni06+1jK/p+cmHxRcQ0EhM/C1lAaTdZ188QaOfi8xX+nsaE1sYPQi5I4PIW6nbxKTYpQyv+1sjCXic7Z9MZV/0KGnUdY1unp39hSCoThH5ZLij1aq090gPe6lrFCDte/hfMvG/pZ/PBdAUd9CdiKNMt6LerGQ+JrGE+y5VnI1xmeGSoWvp8v9hloICVgwC2rIHeWGPNhuMitB5cbMZ02WAA==";
}
