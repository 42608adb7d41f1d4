//! Proof with real processes, real containers and real clients.
