//! TLS to a pod whose certificate is nobody's to check: what is asked is whether it answers, as under the kubelet.

use std::sync::{Arc, LazyLock};

use hearth_client::Unverified;
use rustls::{ClientConfig, crypto::ring};

/// The configuration; `None` where the provider has none to offer, which it has.
pub(super) fn config() -> Option<Arc<ClientConfig>> {
    static CONFIG: LazyLock<Option<Arc<ClientConfig>>> = LazyLock::new(|| {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().ok()?.dangerous();
        Some(Arc::new(builder.with_custom_certificate_verifier(Arc::new(Unverified::new())).with_no_client_auth()))
    });
    CONFIG.clone()
}
