//! The gateway's port is the API's and the relay's too: what comes to it for their names is handed to them.

use std::net::SocketAddr;

use hearth_gateway::{Handed, OwnDoors};
use hearth_types::relay;
use rustls::server::{Accepted, Acceptor};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_rustls::server::StartHandshake;

use hearth_api::{peer_name, server_name, status_host};

/// Connections that wait for a door to take them. It takes them as they come, but for a moment at the start.
const QUEUE: usize = 64;

/// What a door takes: a connection whose hello was read, and who called.
type Begun = (StartHandshake<TcpStream>, SocketAddr);

/// The doors behind the gateway's port, and what they take their connections from.
pub(super) struct Shared {
    /// For the gateway.
    pub(super) doors: OwnDoors,
    /// For the API.
    pub(super) api: mpsc::Receiver<Begun>,
    /// For the relay, where the server has one.
    pub(super) relay: Option<mpsc::Receiver<Begun>>,
}

impl Shared {
    /// The doors of this server. The API's names are those in its certificate; the relay is known by the name of all relays, and by those
    /// of this gateway's addresses.
    pub(super) fn new(zone: &str, id: u64, relay_at: Option<&[SocketAddr]>) -> Self {
        let (sender, api) = door();
        let names = [server_name(zone), peer_name(id, zone), status_host(zone)];
        let mut doors = names.into_iter().fold(OwnDoors::default(), |doors, name| doors.with(name, &sender));
        let relay = relay_at.map(|addresses| {
            let (sender, relay) = door();
            let hosts = addresses.iter().map(|address| relay::host_at(address.ip(), zone));
            for name in hosts.chain([relay::server_name(zone)]) {
                doors = std::mem::take(&mut doors).with(name, &sender);
            }
            relay
        });
        Self { doors, api, relay }
    }
}

/// A door's two ends. What is between them ends once the gateway has.
fn door() -> (mpsc::Sender<Handed>, mpsc::Receiver<Begun>) {
    let (sender, mut handed) = mpsc::channel::<Handed>(QUEUE);
    let (begun, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        while let Some(Handed { socket, caller, hello }) = handed.recv().await {
            match accepted(&hello) {
                Ok(accepted) => {
                    let start = StartHandshake::from_parts(accepted, socket);
                    if begun.send((start, caller)).await.is_err() {
                        return;
                    }
                }
                Err(alert) => {
                    tracing::debug!(%caller, "a hello for this server itself is none");
                    // As much as the socket takes at once, which nothing was written to before.
                    let _ = socket.try_write(&alert);
                }
            }
        }
    });
    (sender, receiver)
}

/// The handshake that a whole hello begins, or what to say to one that begins none.
fn accepted(hello: &[u8]) -> Result<Accepted, Vec<u8>> {
    let (mut acceptor, mut rest) = (Acceptor::default(), hello);
    while !rest.is_empty() {
        // It reads as much as a record may have at once; a hello may be in several.
        if !matches!(acceptor.read_tls(&mut rest), Ok(1..)) {
            return Err(Vec::new());
        }
        match acceptor.accept() {
            // What came behind the hello would be lost. No client sends that before it was answered, but for early data, which is for
            // servers that gave a ticket before: these give none.
            Ok(Some(accepted)) => return if rest.is_empty() { Ok(accepted) } else { Err(Vec::new()) },
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut said = Vec::new();
                let _ = alert.write_all(&mut said);
                tracing::debug!(%error, "a hello for this server itself cannot be answered");
                return Err(said);
            }
        }
    }
    Err(Vec::new())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn hello(protocols: usize) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = (0..protocols).map(|number| format!("{number:0200}").into_bytes()).collect();
        let name = "api.example.test".try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut hello = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut hello).expect("a hello");
        }
        hello
    }

    #[test]
    fn a_whole_hello_begins_a_handshake_however_many_records_it_has() {
        for protocols in [0, 30] {
            let bytes = hello(protocols);
            let accepted = accepted(&bytes).unwrap_or_else(|_| panic!("accepted: {} bytes", bytes.len()));
            assert_eq!(accepted.client_hello().server_name(), Some("api.example.test"));
        }
        // The same in records of 100 bytes.
        let bytes = hello(10);
        let mut split = Vec::new();
        for fragment in bytes[5..].chunks(100) {
            split.extend([22, 3, 1, 0, fragment.len() as u8]);
            split.extend(fragment);
        }
        assert!(accepted(&split).is_ok(), "{} bytes", split.len());
        assert_eq!(accepted(&bytes[..bytes.len() - 1]).err(), Some(Vec::new()), "half a hello");
        let alert = accepted(&[22, 3, 1, 0, 4, 2, 0, 0, 0]).expect_err("refused");
        assert_eq!(alert.first(), Some(&21), "an alert: {alert:?}");
    }
}
