//! Who this device is, and how it became that.

use std::path::Path;

use hearth_client::device::{DeviceIdentity, Region, join as enroll};
use hearth_types::{
    DeviceKey, DeviceName, Incarnation, Status, Timestamp,
    names::{MAX_LABEL, dns_label},
    token::{JoinToken, TokenError},
};
use serde::{Deserialize, Serialize};

use crate::{
    Paths,
    files::{self, FileError, Format},
    recovery::Recovery,
};

const FORMAT: Format = Format { magic: "hearth-agent-identity", version: 1, max_bytes: 64 << 10 };
/// Bytes of an Ed25519 seed (RFC 8032).
const SEED_BYTES: usize = 32;
/// Before this, a clock was never set: 2025-01-01. A device without a battery-backed clock starts in 1970.
const CLOCK_IS_SET_AFTER: Timestamp = Timestamp(1_735_689_600_000);

/// Why a device has no identity, or gets none.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Its files cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The token is none.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The key cannot be made or used.
    #[error("the device's key: {0}")]
    Key(String),
    /// The name is none.
    #[error("device name {name:?}: {why}; give one with --name")]
    Name {
        /// The name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// It has joined already, and not as this.
    #[error("this device has joined {zone} as {device}: it cannot join {wanted} too; use another data directory")]
    Joined {
        /// As whom.
        device: DeviceName,
        /// Where.
        zone: String,
        /// What was asked for.
        wanted: String,
    },
    /// The region refused, or was not reached.
    #[error("cannot join: {0}")]
    Refused(Status),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    device: DeviceName,
    owner: String,
    zone: String,
    incarnation: Incarnation,
    server_name: String,
    addresses: Vec<String>,
    ca_pem: String,
}

/// Who this device is: made when it joins, and the same for as long as its data directory lives.
pub struct Identity {
    stored: Stored,
    seed: [u8; SEED_BYTES],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the seed.
        f.debug_struct("Identity").field("device", &self.stored.device).finish_non_exhaustive()
    }
}

impl Identity {
    /// The identity of a data directory; `None` where the device has not joined yet.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let paths = Paths::new(data_dir);
        let Some(stored) = FORMAT.read::<Stored>(&paths.identity())? else { return Ok(None) };
        let seed = load_seed(&paths)?;
        let seed =
            seed.ok_or_else(|| FileError::damaged(&paths.seed(), "the device has joined, and its key is gone"))?;
        Ok(Some(Self { stored, seed }))
    }

    /// The device's name.
    pub fn device(&self) -> &DeviceName {
        &self.stored.device
    }

    /// Whose it is.
    pub fn owner(&self) -> &str {
        &self.stored.owner
    }

    /// The region's zone.
    pub fn zone(&self) -> &str {
        &self.stored.zone
    }

    /// The incarnation of the region that it joined.
    pub fn incarnation(&self) -> &Incarnation {
        &self.stored.incarnation
    }

    /// The seed of its key.
    pub(crate) fn seed(&self) -> [u8; SEED_BYTES] {
        self.seed
    }

    /// Its key, with a certificate that shows it.
    pub(crate) fn key(&self) -> Result<DeviceIdentity, IdentityError> {
        DeviceIdentity::from_seed(&self.seed).map_err(|error| IdentityError::Key(files::chain(&error)))
    }

    /// The addresses of the region's servers that the token named.
    pub(crate) fn addresses(&self) -> &[String] {
        &self.stored.addresses
    }

    /// Its region, at one of its servers. `has_others`: there are more to go to.
    pub(crate) fn region(&self, server: &str, has_others: bool, now: Timestamp) -> Region {
        Region {
            addresses: vec![server.to_owned()],
            server_name: self.stored.server_name.clone(),
            ca_pem: self.stored.ca_pem.clone().into_bytes(),
            ignore_validity: !is_clock_set(now),
            has_others,
        }
    }
}

/// Whether a clock shows a time at which this program can run.
pub(crate) fn is_clock_set(now: Timestamp) -> bool {
    now > CLOCK_IS_SET_AFTER
}

/// How to join.
#[derive(Clone)]
pub struct JoinOptions {
    /// The whole token, as `hearth token create` printed it.
    pub token: String,
    /// The device's name; that of the machine unless said.
    pub name: Option<String>,
    /// Whose it is; the token may say.
    pub owner: Option<String>,
    /// The instance's data directory.
    pub data_dir: std::path::PathBuf,
    /// Where the region's server is, `host:port`, instead of what the token says.
    pub server: Option<String>,
    /// The time.
    pub now: Timestamp,
}

/// How a device joined.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Its name.
    pub device: DeviceName,
    /// Its key.
    pub key: DeviceKey,
    /// Whose it is.
    pub owner: String,
    /// The region's zone.
    pub zone: String,
}

/// Joins a region. The key is made on the device, before anything is sent, and kept: joining again with the same token is
/// harmless, also where the answer of the first time was lost.
pub async fn join(options: JoinOptions) -> Result<Joined, IdentityError> {
    let mut token: JoinToken = options.token.trim().parse()?;
    if let Some(server) = options.server {
        token.addresses = vec![server];
    }
    let paths = Paths::new(&options.data_dir);
    files::private_dir(paths.root())?;
    let before = Identity::load(&options.data_dir)?;
    let name = match (&options.name, &before) {
        (Some(name), _) => name.clone(),
        (None, Some(before)) => before.device().to_string(),
        (None, None) => machine_name(),
    };
    dns_label(&name).map_err(|why| IdentityError::Name { name: name.clone(), why })?;
    if let Some(before) = &before
        && (before.device().as_str() != name || before.stored.server_name != token.server_name)
    {
        return Err(IdentityError::Joined {
            device: before.device().clone(),
            zone: before.zone().to_owned(),
            wanted: format!("{} as {name}", token.server_name),
        });
    }
    let seed = match load_seed(&paths)? {
        Some(seed) => seed,
        None => make_seed(&paths)?,
    };
    let key = DeviceIdentity::from_seed(&seed).map_err(|error| IdentityError::Key(files::chain(&error)))?;
    let owner = options.owner.unwrap_or_default();
    let answer = enroll(&token, &key, &name, &owner, !is_clock_set(options.now)).await;
    let answer = answer.map_err(IdentityError::Refused)?;
    let stored = Stored {
        device: DeviceName::from(answer.device_name),
        owner: answer.owner,
        zone: answer.zone,
        incarnation: Incarnation::from(answer.incarnation),
        server_name: token.server_name,
        addresses: token.addresses,
        ca_pem: String::from_utf8(answer.ca_pem.to_vec())
            .map_err(|_| IdentityError::Key("the region's CA is no PEM".into()))?,
    };
    FORMAT.write(&paths.identity(), &stored, true)?;
    // The region as it is now is the one that was joined.
    Recovery::joined(&paths, &stored.zone, &answer.trust_json)
        .map_err(|error| IdentityError::Key(files::chain(&error)))?;
    Ok(Joined { device: stored.device, key: key.key(), owner: stored.owner, zone: stored.zone })
}

fn load_seed(paths: &Paths) -> Result<Option<[u8; SEED_BYTES]>, FileError> {
    let path = paths.seed();
    let Some(text) = files::read_bounded(&path, 1024)? else { return Ok(None) };
    let text = String::from_utf8(text).map_err(|error| FileError::damaged(&path, error))?;
    let mut seed = [0; SEED_BYTES];
    hex::decode_to_slice(text.trim(), &mut seed).map_err(|error| FileError::damaged(&path, error))?;
    Ok(Some(seed))
}

fn make_seed(paths: &Paths) -> Result<[u8; SEED_BYTES], IdentityError> {
    use ring::rand::SecureRandom as _;
    let mut seed = [0; SEED_BYTES];
    let filled = ring::rand::SystemRandom::new().fill(&mut seed);
    filled.map_err(|_| IdentityError::Key("the kernel gives no randomness".into()))?;
    files::replace(&paths.seed(), format!("{}\n", hex::encode(seed)).as_bytes(), true)?;
    Ok(seed)
}

/// The machine's host name, made fit for a label.
fn machine_name() -> String {
    let name = rustix::system::uname();
    fit_label(&name.nodename().to_string_lossy())
}

fn fit_label(name: &str) -> String {
    let first = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let fit: String = first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(MAX_LABEL).collect();
    let fit = fit.trim_matches('-');
    if fit.is_empty() { "device".into() } else { fit.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_becomes_a_label() {
        for (name, label) in [("Attic.home", "attic"), ("my_pi", "my-pi"), ("", "device"), ("-", "device")] {
            assert_eq!(fit_label(name), label);
            dns_label(&fit_label(name)).expect("a label");
        }
    }

    #[test]
    fn the_seed_is_for_root_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let paths = Paths::new(dir.path());
        files::private_dir(paths.root()).expect("made");
        let seed = make_seed(&paths).expect("made");
        assert_eq!(load_seed(&paths).expect("read"), Some(seed));
        let mode = std::fs::metadata(paths.seed()).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
