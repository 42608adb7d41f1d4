//! Devices at public addresses of their own: who answers there, and what is told then.

use std::{net::IpAddr, sync::Arc};

use hearth_dns::{Answering, watch_external};
use hearth_types::{
    DeviceKey,
    external::{ALPN, External, key_of_spki},
};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType as T,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::{
    ServerConfig,
    crypto::ring::{default_provider, sign::any_eddsa_type},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::AlwaysResolvesServerRawPublicKeys,
    sign::CertifiedKey,
};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, Routes, Running, addresses, ask_udp, config, question};

const NAME: &str = "photos.alice.hearth.internal";

fn device(keys: Vec<DeviceKey>, ips: &[&str]) -> Arc<External> {
    Arc::new(External { device: "nas".into(), owner: "alice".into(), keys, addresses: addresses(ips) })
}

async fn told(server: &Running, name: &str, kind: T) -> Vec<String> {
    let bytes = question(&format!("{name}."), kind).to_vec().unwrap();
    let answer = Message::from_vec(&ask_udp(server.address, &bytes).await).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    answer.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn a_name_has_the_addresses_of_its_device_while_that_answers_there_and_else_the_gateways() {
    let (found, fed) = watch::channel(Arc::default());
    let server = Running::start_with(config(), |answerer| answerer.with_external(fed)).await;
    let publish = |ips: &[&str]| {
        let device = device(vec![DeviceKey([1; 32]), DeviceKey([2; 32])], ips);
        server.routes.external.lock().unwrap().insert(NAME.into(), device);
    };
    let answers_at = |key: u8, ips: &[&str]| {
        let all: Answering = addresses(ips).into_iter().map(|ip| (ip, DeviceKey([key; 32]))).collect();
        found.send_replace(Arc::new(all));
    };
    let (gateways4, gateways6) = (["192.0.2.1", "192.0.2.2"], ["2001:db8::1"]);
    publish(&["25.0.0.1", "2a00::1", "192.168.1.2", "127.0.0.1"]);
    assert_eq!(told(&server, NAME, T::A).await, gateways4, "nobody was found there yet");
    answers_at(3, &["25.0.0.1", "2a00::1"]);
    assert_eq!(told(&server, NAME, T::A).await, gateways4, "it is somebody else");
    answers_at(2, &["25.0.0.1", "2a00::1", "192.168.1.2", "127.0.0.1"]);
    assert_eq!(told(&server, NAME, T::A).await, ["25.0.0.1"]);
    assert_eq!(told(&server, NAME, T::AAAA).await, ["2a00::1"]);
    assert_eq!(told(&server, "notes.alice.hearth.internal", T::A).await, gateways4, "of another device");
    assert_eq!(told(&server, "hearth.internal", T::A).await, gateways4);
    answers_at(2, &["25.0.0.1"]);
    assert_eq!(told(&server, NAME, T::A).await, ["25.0.0.1"]);
    assert_eq!(told(&server, NAME, T::AAAA).await, [""; 0], "who has both would prefer the gateways");
    answers_at(2, &["2a00::1"]);
    assert_eq!(told(&server, NAME, T::A).await, gateways4, "for those who have no IPv6");
    assert_eq!(told(&server, NAME, T::AAAA).await, ["2a00::1"]);
    answers_at(2, &[]);
    assert_eq!(told(&server, NAME, T::AAAA).await, gateways6);
    answers_at(1, &["25.0.0.1"]);
    server.routes.external.lock().unwrap().clear();
    assert_eq!(told(&server, NAME, T::A).await, gateways4, "its owner changed their mind");
}

/// Shows a key, as a device does.
fn shows_key(seed: [u8; 32]) -> (DeviceKey, ServerConfig) {
    const PKCS8_PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let der = PrivatePkcs8KeyDer::from([PKCS8_PREFIX.as_slice(), &seed].concat());
    let signer = any_eddsa_type(&der).unwrap();
    let spki = signer.public_key().unwrap().to_vec();
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
    let key = key_of_spki(&spki).unwrap();
    assert_eq!(key.0, pair.public_key().as_ref());
    let certified = CertifiedKey::new(vec![CertificateDer::from(spki)], signer);
    let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::new(certified));
    (key, with_alpn(builder().with_cert_resolver(Arc::new(resolver))))
}

/// Shows a certificate, as everybody does.
fn shows_certificate() -> ServerConfig {
    let made = rcgen::generate_simple_self_signed(["alice.hearth.internal".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    with_alpn(builder().with_single_cert(vec![made.cert.der().clone()], key).unwrap())
}

fn builder() -> rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert> {
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth()
}

fn with_alpn(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

async fn serve(ip: &str, port: u16, config: ServerConfig) -> u16 {
    let listener = TcpListener::bind((ip, port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Who asks closes the connection when it knows.
            let _ = acceptor.accept(stream).await;
        }
    });
    port
}

#[tokio::test]
async fn a_device_is_found_by_its_key_and_nobody_else_in_its_place() {
    let (mine, own) = shows_key([1; 32]);
    let (_, others) = shows_key([2; 32]);
    let mut nameless = shows_key([1; 32]).1;
    nameless.alpn_protocols = Vec::new();
    let port = serve("127.0.0.1", 0, own).await;
    for (ip, config) in [("127.0.0.2", others), ("127.0.0.3", shows_certificate()), ("127.0.0.4", nameless)] {
        assert_eq!(serve(ip, port, config).await, port);
    }
    // Nobody listens at the fifth, and the sixth takes connections and says nothing.
    let _silent = TcpListener::bind(("127.0.0.6", port)).await.unwrap();
    let all = ["127.0.0.6", "127.0.0.5", "127.0.0.4", "127.0.0.3", "127.0.0.2", "127.0.0.1"];
    let (routes, device) = (Routes::of(&[NAME]), device(vec![mine], &all));
    routes.external.lock().unwrap().insert(NAME.into(), Arc::clone(&device));
    let (told, mut found) = watch::channel(Arc::default());
    let stop = CancellationToken::new();
    let watching = tokio::spawn(watch_external(routes.clone(), "hearth.internal".into(), port, told, stop.clone()));
    let two = |found: &Arc<Answering>| found.len() == 2;
    let found = timeout(PATIENCE, found.wait_for(two)).await.unwrap().unwrap().clone();
    assert_eq!(found.of(&device), [IpAddr::from([127, 0, 0, 1])], "{found:?}");
    stop.cancel();
    watching.await.unwrap().unwrap();
}
