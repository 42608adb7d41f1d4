//! The region's CA, as OpenSSL and rustls see it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, sync::Arc};

use hearth_api::{CertificateAuthority, SystemClock, ca::CaError};
use hearth_types::identity::CertificateSigner as _;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

use crate::region::ZONE;

fn ca(directory: &Path) -> CertificateAuthority {
    CertificateAuthority::load_or_create(directory, ZONE, Arc::new(SystemClock)).unwrap()
}

fn openssl(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("openssl").args(arguments).output().expect("openssl is installed");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn verify(directory: &Path, more: &[&str], leaf_pem: &str) -> (bool, String) {
    let path = directory.join("leaf.pem");
    fs::write(&path, leaf_pem).unwrap();
    let ca = directory.join("ca.pem");
    let arguments = [&["verify", "-x509_strict", "-CAfile", ca.to_str().unwrap()], more, &[path.to_str().unwrap()]];
    openssl(&arguments.concat())
}

#[test]
fn the_ca_is_constrained_to_its_zone_and_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let first = ca(directory.path());
    let again = ca(directory.path());
    assert_eq!((first.pem(), first.spki_hash()), (again.pem(), again.spki_hash()));
    let mode = fs::metadata(directory.path().join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let exported = directory.path().join("exported.pem");
    first.export(&exported).unwrap();
    let (_, text) = openssl(&["x509", "-noout", "-text", "-in", exported.to_str().unwrap()]);
    for expected in [
        "X509v3 Name Constraints: critical",
        "DNS:hearth.internal",
        "IP:0.0.0.0/0.0.0.0",
        "CA:TRUE, pathlen:0",
        "Certificate Sign",
        "prime256v1",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let other = CertificateAuthority::load_or_create(directory.path(), "other.internal", Arc::new(SystemClock));
    assert!(matches!(other.unwrap_err(), CaError::OtherZone { .. }));
    // A crash between the two files leaves the key: the same CA is completed.
    fs::remove_file(directory.path().join("ca.pem")).unwrap();
    assert_eq!(ca(directory.path()).spki_hash(), first.spki_hash());
    fs::remove_file(directory.path().join("ca.key")).unwrap();
    let lost = CertificateAuthority::load_or_create(directory.path(), ZONE, Arc::new(SystemClock)).unwrap_err();
    assert!(matches!(lost, CaError::KeyMissing(_)), "{lost}");
    fs::write(directory.path().join("ca.key"), "nonsense").unwrap();
    let bad = CertificateAuthority::load_or_create(directory.path(), ZONE, Arc::new(SystemClock)).unwrap_err();
    assert!(matches!(bad, CaError::Malformed { .. }), "{bad}");
}

#[test]
fn a_region_that_has_data_gets_no_new_ca() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("ca");
    let of_region = |exists| CertificateAuthority::for_region(&at, ZONE, Arc::new(SystemClock), exists);
    let lost = of_region(true).unwrap_err();
    assert!(matches!(&lost, CaError::Lost(path) if *path == at), "{lost}");
    assert!(lost.to_string().contains("backup"), "{lost}");
    assert!(!at.join("ca.key").exists());
    let first = of_region(false).unwrap();
    assert_eq!(of_region(true).unwrap().spki_hash(), first.spki_hash());
}

#[test]
fn openssl_accepts_our_leaves_for_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let ca = ca(directory.path());
    let server = ca.issue_server(&["api.hearth.internal".into()]).unwrap();
    for (purpose, name, good) in [
        ("sslserver", "api.hearth.internal", true),
        ("sslserver", "other.hearth.internal", false),
        ("sslclient", "api.hearth.internal", false),
    ] {
        let (accepted, text) =
            verify(directory.path(), &["-purpose", purpose, "-verify_hostname", name], &server.certificate_pem);
        assert_eq!(accepted, good, "{purpose} {name}: {text}");
    }
    let client = ca.issue_client("admin", &["system:masters"]).unwrap();
    let (accepted, text) = verify(directory.path(), &["-purpose", "sslclient"], &client.certificate_pem);
    assert!(accepted, "{text}");
    let (_, text) = openssl(&["x509", "-noout", "-text", "-in", directory.path().join("leaf.pem").to_str().unwrap()]);
    assert!(
        text.contains("O = system:masters, CN = admin") || text.contains("CN = admin, O = system:masters"),
        "{text}"
    );
    let again = ca.issue_client("admin", &["system:masters"]).unwrap();
    assert_ne!(again.certificate_pem, client.certificate_pem);
    assert!(ca.issue_server(&["example.com".into()]).is_err());
    assert!(ca.issue_server(&["evilhearth.internal".into()]).is_err());
    assert!(ca.issue_server(&["*.hearth.internal".into()]).is_err());
    assert!(ca.issue_server(&["127.0.0.1".into()]).is_err());
}

/// Somebody who stole the key is still held by the constraint.
#[test]
fn openssl_refuses_a_certificate_of_our_ca_for_another_zone() {
    let directory = tempfile::tempdir().unwrap();
    let ca = ca(directory.path());
    let key = KeyPair::from_pem(&fs::read_to_string(directory.path().join("ca.key")).unwrap()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(ca.certificate(), key).unwrap();
    let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    for (name, good) in
        [("x.hearth.internal", true), ("example.com", false), ("192.0.2.1", false), ("2001:db8::1", false)]
    {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        let leaf = params.signed_by(&leaf_key, &issuer).unwrap();
        let (accepted, text) = verify(directory.path(), &[], &leaf.pem());
        assert_eq!(accepted, good, "{name}: {text}");
        assert!(good || text.contains("subtree violation"), "{name}: {text}");
        let anchors = [webpki::anchor_from_trusted_cert(ca.certificate()).unwrap()];
        let now = rustls::pki_types::UnixTime::now();
        let leaf = webpki::EndEntityCert::try_from(leaf.der()).unwrap();
        let verified = leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &[],
            now,
            webpki::KeyUsage::server_auth(),
            None,
            None,
        );
        assert_eq!(verified.is_ok(), good, "{name}");
    }
}

#[tokio::test]
async fn requests_are_signed_for_the_names_that_were_checked_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let ca = ca(directory.path());
    let request = |algorithm, names: &[&str]| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        CertificateParams::new(names).unwrap().serialize_request(&key).unwrap().der().to_vec()
    };
    let names = vec!["notes.alice.hearth.internal".to_owned()];
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
        let signed = ca.sign(&request(algorithm, &["example.com"]), &names).await.unwrap();
        let signed = String::from_utf8(signed).unwrap();
        let (accepted, text) =
            verify(directory.path(), &["-purpose", "sslserver", "-verify_hostname", &names[0]], &signed);
        assert!(accepted, "{text}");
        let (_, text) =
            openssl(&["x509", "-noout", "-text", "-in", directory.path().join("leaf.pem").to_str().unwrap()]);
        assert!(!text.contains("example.com") && text.contains("CA:FALSE"), "{text}");
    }
    let good = request(&PKCS_ECDSA_P256_SHA256, &[]);
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    for (csr, names, expected) in [
        (forged, names.clone(), "refused"),
        (request(&PKCS_ECDSA_P384_SHA384, &[]), names.clone(), "neither P-256 nor Ed25519"),
        (b"nonsense".to_vec(), names.clone(), "refused"),
        (vec![0x30; 1 << 20], names.clone(), "larger than"),
        (good.clone(), vec![], "for no name"),
        (good.clone(), vec!["example.com".into()], "not in the zone"),
        (good, vec!["a.hearth.internal".into(); 100], "more than"),
    ] {
        let status = ca.sign(&csr, &names).await.unwrap_err();
        assert!(status.message.contains(expected), "{expected}: {status}");
    }
}
