//! Public ingress: server name to route to tunnel, without ending TLS.
