//! Compiles the .proto files in Rust alone: no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 7] = [
    "hearth/v1/object.proto",
    "hearth/v1/resources.proto",
    "hearth/v1/pods.proto",
    "hearth/v1/devices.proto",
    "hearth/v1/region.proto",
    "hearth/v1/peers.proto",
    "hearth/v1/raft.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
