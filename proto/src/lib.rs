//! The wire of Hearth: protobuf definitions and the code made from them, nothing else.

/// Version 1 of the protocol.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("hearth.v1");
}

/// The encoded `FileDescriptorSet` of every definition, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The version of the session protocol that this program speaks.
pub const SESSION_VERSION: u32 = 1;

/// The largest gRPC message in bytes: a page of a list has to fit.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
