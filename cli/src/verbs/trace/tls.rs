//! The certificate that the name serves, and the ingress behind it: one connection, as a browser makes it.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use hearth_client::Unverified;
use hearth_types::{Timestamp, time::human_duration};
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{name::Subject, report::Step, within};
use crate::context::{Context, now};

/// How long the handshake may take: a tunnel may have to be dialled for it.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the app may take for its first page.
const PAGE: Duration = Duration::from_secs(10);
/// Of the page that much is read.
const MAX_PAGE: u64 = 64 << 10;
/// A certificate that ends sooner is told of: it should have been renewed by then.
const SOON: Duration = Duration::from_hours(7 * 24);
/// Where systems keep the certificates of public authorities, unless `SSL_CERT_FILE` says otherwise; as Go's crypto/x509 looks for them.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What came back to the request for the first page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing was asked, or nothing came.
    None,
    /// The ingress answered in the app's place: a word for programs, and a sentence.
    Outage { reason: String, message: String },
    /// The app answered with this status.
    App(u16),
}

/// A Route with a port of its own has neither.
pub(super) fn carried(port: u16) -> [Step; 2] {
    let says = format!("port {port} carries bytes as they are: there is no certificate of the region's");
    [
        Step::ok("certificate", says),
        Step::ok("ingress", "it passes the bytes on to the app; nobody is asked who they are"),
    ]
}

/// Makes the connection and the request.
pub(super) async fn look(
    context: &Context,
    subject: &Subject,
    gateway: Option<SocketAddr>,
    has_device: bool,
) -> (Answer, [Step; 2]) {
    let skipped = |why: &str| (Answer::None, [Step::unknown("certificate", why), Step::unknown("ingress", why)]);
    let Some(gateway) = gateway else { return skipped("no gateway is reached") };
    let Ok(name) = ServerName::try_from(subject.hostname.clone()) else { return skipped("the name is none of TLS") };
    let stream = match within(HANDSHAKE, connect(gateway, name.clone())).await {
        Some(Ok(stream)) => stream,
        Some(Err(error)) if !has_device => {
            let why = if subject.route.is_none() { "see the name" } else { "see the device" };
            return skipped(&format!("nobody is there to answer ({error}): {why}"));
        }
        Some(Err(error)) => {
            let step = Step::broken("certificate", format!("no TLS connection comes about: {error}"))
                .advise("the device may have no certificate yet: see its log, and `hearth events -n OWNER`");
            return (Answer::None, [step, Step::unknown("ingress", "there is no connection to it")]);
        }
        None => {
            let says = format!("no TLS connection comes about within {} s", HANDSHAKE.as_secs());
            return (
                Answer::None,
                [Step::broken("certificate", says), Step::unknown("ingress", "there is no connection to it")],
            );
        }
    };
    let chain: Vec<CertificateDer<'static>> =
        stream.get_ref().1.peer_certificates().into_iter().flatten().map(|one| one.clone().into_owned()).collect();
    let certificate =
        certificate(&chain, &name, &context.region_ca().unwrap_or_default(), &public_authorities(), now());
    let (answer, ingress) = page(stream, &subject.hostname).await;
    (answer, [certificate, ingress])
}

async fn connect(gateway: SocketAddr, name: ServerName<'static>) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?
        .dangerous()
        // Whatever is shown is to be looked at.
        .with_custom_certificate_verifier(Arc::new(Unverified::new()))
        .with_no_client_auth();
    let stream = TcpStream::connect(gateway).await?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// The certificates of public authorities that this machine has.
fn public_authorities() -> Vec<u8> {
    let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let mut files = own.into_iter().chain(BUNDLES.iter().map(PathBuf::from));
    files.find_map(|path| std::fs::read(path).ok()).unwrap_or_default()
}

/// Whether a chain is good for a name by these authorities.
fn verify(
    chain: &[CertificateDer<'static>],
    name: &ServerName<'_>,
    authorities: &[u8],
    now: Timestamp,
) -> Result<(), rustls::Error> {
    let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
    let (leaf, intermediates) = chain.split_first().ok_or_else(unknown)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(authorities).filter_map(Result::ok));
    if roots.is_empty() {
        return Err(unknown());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(|_| unknown())?;
    let seconds = Duration::from_millis(now.0.max(0).unsigned_abs());
    verifier.verify_server_cert(leaf, intermediates, name, &[], UnixTime::since_unix_epoch(seconds)).map(drop)
}

fn certificate(
    chain: &[CertificateDer<'static>],
    name: &ServerName<'static>,
    region: &[u8],
    public: &[u8],
    now: Timestamp,
) -> Step {
    const STEP: &str = "certificate";
    let parsed = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
    let Some((_, leaf)) = parsed else { return Step::broken(STEP, "what is shown is no certificate") };
    let issuer =
        leaf.issuer().iter_common_name().next().and_then(|one| one.as_str().ok()).unwrap_or("somebody without a name");
    let until = Timestamp(leaf.validity().not_after.timestamp().saturating_mul(1000));
    let (own, other) = (verify(chain, name, region, now), verify(chain, name, public, now));
    let said = format!("signed by {issuer}, good until {until}");
    let by = if own.is_ok() {
        "Region"
    } else if other.is_ok() {
        "Public"
    } else {
        "Unknown"
    };
    let facts = json!({"issuer": issuer, "notAfter": until.to_string(), "authority": by});
    let step = match (own, other) {
        (_, Ok(())) => Step::ok(STEP, format!("{said}, by a public authority: browsers trust it")),
        (Ok(()), _) => {
            Step::ok(STEP, format!("{said}, by the region's own authority: browsers trust it where that was installed"))
        }
        (Err(own), Err(other)) => wrong(STEP, &said, &own, &other, &leaf),
    };
    let left = until.since(now);
    let step = if until > now && left < SOON {
        step.detail(format!("it ends in {}, and should have been renewed by now", human_duration(left)))
    } else {
        step
    };
    step.facts(facts)
}

/// What is wrong with a certificate. An error other than of its issuer is of the authority that knows it.
fn wrong(
    step: &'static str,
    said: &str,
    own: &rustls::Error,
    other: &rustls::Error,
    leaf: &X509Certificate<'_>,
) -> Step {
    let unknown =
        |error: &rustls::Error| matches!(error, rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
    let error = if unknown(own) { other } else { own };
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Step::broken(step, format!("it is over: {said}"))
                .advise("the device asks for another one while it has a session; see its log and its clock")
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Step::broken(step, format!("it is not good yet: {said}"))
            .advise("this machine's clock is behind, or the device's authority's was ahead"),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Step::broken(step, format!("it is for other names ({}): {said}", names(leaf)))
            .advise("something else answers at this address, as a router or a proxy that ends TLS"),
        error if unknown(error) => {
            Step::broken(step, format!("neither the region nor a public authority signed it: {said}"))
                .advise("something else answers at this address, as a router or a proxy that ends TLS")
        }
        error => Step::broken(step, format!("{said}; it is not good: {error}")),
    }
}

/// The names of a certificate, a few of them.
fn names(leaf: &X509Certificate<'_>) -> String {
    let mut text = String::new();
    let found = leaf.subject_alternative_name().ok().flatten();
    for (at, name) in found.iter().flat_map(|names| &names.value.general_names).take(4).enumerate() {
        let _ = write!(text, "{}{name}", if at == 0 { "" } else { ", " });
    }
    if text.is_empty() { "none".into() } else { text }
}

/// Asks for the first page.
async fn page(mut stream: TlsStream<TcpStream>, hostname: &str) -> (Answer, Step) {
    const STEP: &str = "ingress";
    // What the ingress says in the app's place is said to programs in JSON.
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {hostname}\r\nAccept: application/json, */*;q=0.1\r\nUser-Agent: hearth-trace\r\nConnection: close\r\n\r\n"
    );
    let mut bytes = Vec::new();
    let asked = async {
        stream.write_all(request.as_bytes()).await?;
        let mut limited = (&mut stream).take(MAX_PAGE);
        loop {
            // What was there before the connection broke counts.
            if limited.read_buf(&mut bytes).await? == 0 {
                return Ok::<_, std::io::Error>(());
            }
        }
    };
    let ended = within(PAGE, asked).await;
    if let Some((status, answer)) = read(&bytes) {
        (answer.clone(), told(status, &answer))
    } else {
        let why = match ended {
            Some(Ok(())) => "it closed the connection".to_owned(),
            Some(Err(error)) => error.to_string(),
            None => format!("no answer within {} s", PAGE.as_secs()),
        };
        (
            Answer::None,
            Step::broken(STEP, format!("the device took the connection and did not answer a request: {why}")),
        )
    }
}

/// Status and meaning of an answer.
fn read(bytes: &[u8]) -> Option<(u16, Answer)> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status: u16 = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let has = |field: &str| head.lines().any(|line| line.to_ascii_lowercase().starts_with(field));
    // An app that says the same in the same words is as well off.
    if matches!(status, 421 | 503 | 504) && has("cache-control: no-store") {
        let said: Value = body.lines().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        if let (Some(reason), Some(message)) = (said["reason"].as_str(), said["message"].as_str()) {
            return Some((status, Answer::Outage { reason: reason.to_owned(), message: message.to_owned() }));
        }
    }
    Some((status, Answer::App(status)))
}

fn told(status: u16, answer: &Answer) -> Step {
    const STEP: &str = "ingress";
    let facts = json!({"httpStatus": status});
    let step = match answer {
        Answer::Outage { message, .. } if status == 421 => {
            Step::broken(STEP, format!("the device does not serve this name: {message}"))
        }
        Answer::Outage { .. } => Step::ok(STEP, "it answers, in the app's place: see the app"),
        _ => match status {
            401 | 403 => Step::ok(STEP, format!("it answers, and asks who you are ({status})")),
            300..=399 => Step::ok(STEP, format!("it answers, and leads elsewhere ({status})")),
            _ => Step::ok(STEP, format!("it answers, and lets anybody in who knows the name ({status})")),
        },
    };
    step.facts(facts)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;
    use crate::verbs::trace::report::Verdict;

    #[test]
    fn an_answer_of_the_ingress_is_told_from_one_of_the_app() {
        let outage = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\r\n\
                      {\"message\":\"This app crashed. x\",\"reason\":\"Crashed\",\"status\":503}\n";
        let (status, answer) = read(outage.as_bytes()).expect("an answer");
        let Answer::Outage { reason, .. } = &answer else { panic!("{answer:?}") };
        assert_eq!((status, reason.as_str(), told(status, &answer).verdict), (503, "Crashed", Verdict::Ok));
        assert_eq!(read(b"HTTP/1.1 200 OK\r\n\r\nhello"), Some((200, Answer::App(200))));
        assert_eq!(read(b"HTTP/1.1 503 Oh\r\n\r\nhello"), Some((503, Answer::App(503))));
        for bad in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 x\r\n\r\n", "SSH-2.0\r\n\r\n"] {
            assert_eq!(read(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn who_signed_a_certificate_and_what_is_wrong_with_it_is_told() {
        let authority = |name: &str| {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(Vec::new()).expect("no names");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            let pem = params.self_signed(&key).expect("signed").pem();
            (Issuer::new(params, key), pem)
        };
        let ((region, region_pem), (public, public_pem)) = (authority("hearth CA"), authority("Public CA"));
        let now = now();
        let leaf = |name: &str, by: &Issuer<'_, KeyPair>, days: u64| {
            let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(1970, 1, 1)
                + Duration::from_millis(now.0.unsigned_abs())
                + Duration::from_hours(24 * days);
            let key = KeyPair::generate().expect("a key");
            vec![params.signed_by(&key, by).expect("signed").der().clone()]
        };
        let name = ServerName::try_from("a.b.test").expect("a name");
        let told = |chain: &[CertificateDer<'static>], later: u64| {
            let now = now.plus(Duration::from_hours(24 * later));
            certificate(chain, &name, region_pem.as_bytes(), public_pem.as_bytes(), now)
        };
        let good = told(&leaf("a.b.test", &region, 80), 0);
        assert_eq!((good.verdict, &good.facts["authority"]), (Verdict::Ok, &json!("Region")), "{}", good.says);
        assert!(good.says.contains("hearth CA"));
        let good = told(&leaf("a.b.test", &public, 5), 0);
        assert_eq!((good.verdict, &good.facts["authority"], good.details.len()), (Verdict::Ok, &json!("Public"), 1));
        for (chain, later, words) in [
            (leaf("a.b.test", &region, 80), 81, "it is over"),
            (leaf("c.b.test", &region, 80), 0, "other names"),
            (leaf("a.b.test", &authority("evil").0, 80), 0, "neither the region nor"),
            (Vec::new(), 0, "no certificate"),
        ] {
            let step = told(&chain, later);
            assert!(step.verdict == Verdict::Broken && step.says.contains(words), "{words}: {}", step.says);
        }
    }
}
