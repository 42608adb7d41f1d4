//! The authoritative name server of a zone, over a snapshot of routes.
