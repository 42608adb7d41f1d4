//! The files of a region in the folder of its server, beside its store: what a backup has to hold, and a restore to make.
//!
//! ```text
//! server/zone          the zone
//! server/ca/ca.key     the CA's key
//! server/ca/ca.pem     its certificate
//! server/tunnel.key    the seed of the key of its tunnels, by which it joined
//! server/member.json   what it is in its region; not in a backup, since a restored region begins with one server
//! server/raft/         the store
//! ```

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result};
use hearth_raft::{Keys, Owner};

use crate::data_dir::{DataDir, write_atomically};

/// Whose backup one of this data directory is.
pub(crate) fn owner(data: &DataDir, region: &str) -> Result<Owner> {
    let server = data.server();
    let text = |name: &str| {
        let path = server.join(name);
        fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}, which belongs into a backup", path.display()))
    };
    let tunnel = server.join("tunnel.key");
    let tunnel_key = match fs::read(&tunnel) {
        Ok(seed) => Some(seed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", tunnel.display())),
    };
    let keys = Keys { ca_key: text("ca/ca.key")?, ca_certificate: text("ca/ca.pem")?, tunnel_key };
    Ok(Owner { region: region.to_owned(), zone: text("zone")?.trim().to_owned(), keys })
}

/// Writes everything but the store into a folder that becomes the server's.
pub(crate) fn write(server: &Path, zone: &str, keys: &Keys) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let ca = server.join("ca");
    fs::DirBuilder::new().mode(0o700).create(&ca).with_context(|| format!("cannot make {}", ca.display()))?;
    write_atomically(&ca.join("ca.key"), keys.ca_key.as_bytes(), 0o600)?;
    write_atomically(&ca.join("ca.pem"), keys.ca_certificate.as_bytes(), 0o644)?;
    if let Some(seed) = &keys.tunnel_key {
        write_atomically(&server.join("tunnel.key"), seed, 0o600)?;
    }
    write_atomically(&server.join("zone"), zone.as_bytes(), 0o644)
}
