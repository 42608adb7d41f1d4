//! The name relay: pods ask the gateway, and the gateway asks the host's own resolvers.

pub(crate) mod asking;
pub(crate) mod message;
pub(crate) mod policy;
pub(crate) mod relay;
pub(crate) mod resolv_conf;
