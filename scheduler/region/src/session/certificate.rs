//! Certificates for the names that lead to a device, and for no others.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_proto::v1::{Certificate, CertificateRequest, region_message::Message};
use hearth_types::{GroupKind, ObjectKey, Timestamp, domains::is_custom};
use serde_json::{Value, json};

use super::{Session, desired};
use crate::{
    cache::{Entry, View},
    hub::Hub,
    writer,
};

/// Names of one certificate at most: the subject alternative names that clients commonly take.
const MAX_NAMES: usize = 100;
/// The largest request in bytes: a P-256 or RSA 4096 request with attributes fits many times.
const MAX_CSR: usize = 16 << 10;
/// The largest request for a Certificate object, which is stored: a P-256 request for all of its names fits.
const MAX_STORED_CSR: usize = 8 << 10;
/// How long between two requests for one Certificate at least, in milliseconds: each is a write.
const BETWEEN_REQUESTS: i64 = 10_000;
/// Tries to store a request, against others that write the object.
const TRIES: usize = 8;

/// Checks the names and has them signed.
pub(super) async fn answer(hub: &Arc<Hub>, session: &Session, request: CertificateRequest) {
    let id = request.id;
    let result = if request.certificate.is_empty() {
        match check(hub, session, &request) {
            Ok(names) => hub.config.signer.sign(&request.csr_der, &names).await.map_err(|error| error.message),
            Err(why) => Err(why),
        }
    } else {
        order(hub, session, &request).await.map(|()| Vec::new())
    };
    match result {
        Ok(chain) => {
            session.send(Message::Certificate(Certificate { id, chain_pem: chain.into(), error: String::new() }));
        }
        Err(why) => {
            tracing::info!(device = %session.device, error = why, "refused a certificate");
            refuse(session, id, &why);
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
    if let Some(name) = request.names.iter().find(|name| is_custom(name, &hub.config.zone)) {
        let name: String = name.chars().take(253).collect();
        return Err(format!(
            "{name:?} is outside of the region's zone, which is all that its CA may sign: a public authority is needed"
        ));
    }
    let cache = hub.cache();
    let device = session.device.as_str();
    match request.names.iter().find(|name| !desired::may_serve(&cache, name, device)) {
        None => Ok(request.names.clone()),
        Some(name) => {
            let name: String = name.chars().take(253).collect();
            Err(format!("{name:?} is no hostname of a Route that leads to device {device}"))
        }
    }
}

/// Stores a request for a Certificate of this device's; who orders sees it there. Which names it is for is said by the object, which no
/// device writes: so nobody gets a name of another owner's proved.
async fn order(hub: &Arc<Hub>, session: &Session, request: &CertificateRequest) -> Result<(), String> {
    if !request.names.is_empty() {
        return Err("a request for a Certificate names none itself".into());
    }
    if request.csr_der.is_empty() || request.csr_der.len() > MAX_STORED_CSR {
        return Err(format!(
            "the certificate request has {} bytes; 1 to {MAX_STORED_CSR} can be",
            request.csr_der.len()
        ));
    }
    let name: String = request.certificate.chars().take(253).collect();
    let key = ObjectKey::new(GroupKind::CERTIFICATE, &session.owner, &name);
    let csr = STANDARD.encode(&request.csr_der);
    for _ in 0..TRIES {
        let own = |entry: &&Entry| matches!(&entry.view, View::Certificate { device } if **device == *session.device.as_str());
        let base = hub.cache().get(&key).filter(own).map(|entry| entry.object.clone());
        let Some(base) = base else {
            return Err(format!("there is no Certificate {name:?} of device {}", session.device));
        };
        let mut value = base.value();
        if value.pointer("/status/request/csr").and_then(Value::as_str) == Some(&csr) {
            return Ok(());
        }
        let now = hub.now();
        let last = value.pointer("/status/request/time").and_then(Value::as_str).and_then(Timestamp::parse);
        if last.is_some_and(|last| now.0 - last.0 < BETWEEN_REQUESTS) {
            return Err("the last request for it came a moment ago".into());
        }
        if !value["status"].is_object() {
            value["status"] = json!({});
        }
        value["status"]["request"] = json!({"csr": csr, "time": now.to_string()});
        let action = hearth_controllers::Action::Update { base, value };
        match writer::execute(hub, &[action], "session").await {
            Ok(()) => return Ok(()),
            Err(writer::WriteError::Outdated(_)) => {
                let stored = hub.config.store.get(&key, hearth_types::store::Consistency::Linearizable).await;
                if let Some(stored) = stored.map_err(|error| error.message)? {
                    hub.observe_read(stored);
                }
            }
            Err(writer::WriteError::Refused(error)) => return Err(error.message),
        }
    }
    Err("the Certificate is changed by others all the time".into())
}
