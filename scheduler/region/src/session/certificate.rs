//! Certificates for the names that lead to a device, and for no others.

use hearth_proto::v1::{Certificate, CertificateRequest, region_message::Message};

use super::{Session, desired};
use crate::hub::Hub;

/// Names of one certificate at most: the subject alternative names that clients commonly take.
const MAX_NAMES: usize = 100;
/// The largest request in bytes: a P-256 or RSA 4096 request with attributes fits many times.
const MAX_CSR: usize = 16 << 10;

/// Checks the names and has them signed.
pub(super) async fn answer(hub: &Hub, session: &Session, request: CertificateRequest) {
    let result = match check(hub, session, &request) {
        Ok(names) => hub.config.signer.sign(&request.csr_der, &names).await.map_err(|error| error.message),
        Err(why) => Err(why),
    };
    match result {
        Ok(chain) => {
            let answer = Certificate { id: request.id, chain_pem: chain.into(), error: String::new() };
            session.send(Message::Certificate(answer));
        }
        Err(why) => {
            tracing::info!(device = %session.device, error = why, "refused a certificate");
            refuse(session, request.id, &why);
        }
    }
}

/// Says no. Returns whether that could be sent.
pub(super) fn refuse(session: &Session, id: u64, why: &str) -> bool {
    session.send(Message::Certificate(Certificate { id, error: why.to_owned(), ..Certificate::default() }))
}

fn check(hub: &Hub, session: &Session, request: &CertificateRequest) -> Result<Vec<String>, String> {
    if request.names.is_empty() || request.names.len() > MAX_NAMES {
        return Err(format!("a certificate is for 1 to {MAX_NAMES} names, not for {}", request.names.len()));
    }
    if request.csr_der.is_empty() || request.csr_der.len() > MAX_CSR {
        return Err(format!("the certificate request has {} bytes; 1 to {MAX_CSR} can be", request.csr_der.len()));
    }
    let cache = hub.cache();
    let device = session.device.as_str();
    match request.names.iter().find(|name| !desired::leads_to(&cache, name, device)) {
        None => Ok(request.names.clone()),
        Some(name) => {
            let name: String = name.chars().take(253).collect();
            Err(format!("{name:?} is no hostname of a Route that leads to device {device}"))
        }
    }
}
