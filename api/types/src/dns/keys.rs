//! The keys by which a zone is signed (DNSSEC, RFC 4034), and which of them does what at which time.
//!
//! All servers of a region have the same keys, since they are kept in the region's store; what each does with them follows from the keys'
//! times alone, so that nobody has to be told when a step of a rollover is due.
//!
//! # Rollovers
//!
//! - Of the zone-signing key by pre-publication (RFC 6781 section 4.1.1.1): the new key is in the DNSKEY set at once, signs after
//!   [`PREPUBLISH`], and the old one stays in the set for [`RETIRE`] after that.
//! - Of the key-signing key by a second DS (RFC 6781 section 4.1.2; RFC 7583 section 3.3.2): the new key's DS is asked for in CDS and CDNSKEY
//!   (RFC 7344). Once a person, or whoever looks at the parent, has seen it there, the new key takes the old one's place after the time for
//!   which resolvers may have the parent's old DS set in their caches; the old DS is no longer asked for once the old DNSKEY set is forgotten.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{GroupKind, ObjectKey, Timestamp, own_secret};

/// ECDSA on the curve P-256 with SHA-256 (RFC 6605).
pub const ALGORITHM: u8 = 13;
/// SHA-256, as the digest of a DS (RFC 4509).
pub const DS_DIGEST: u8 = 2;
/// How long the DNSKEY set may be cached.
pub const DNSKEY_TTL: Duration = Duration::from_hours(1);
/// How long any other record of the zone may be cached at most.
pub const MAX_RECORD_TTL: Duration = Duration::from_hours(1);
/// How far the clocks of servers and the reach of a change are allowed for.
pub const MARGIN: Duration = Duration::from_hours(1);
/// How long a new zone-signing key is shown before it signs: everybody then has a DNSKEY set with it.
pub const PREPUBLISH: Duration = Duration::from_hours(2);
/// How long an old key is shown after it stopped signing: nobody then has a signature by it, or a set with it.
pub const RETIRE: Duration = Duration::from_hours(2);
/// How long parents let their DS set be cached, where nobody says otherwise: what large registries use.
pub const PARENT_DS_TTL: Duration = Duration::from_hours(24);
/// Keys at once at most: two of each role, and one more of each that is about to be forgotten.
pub const MAX_KEYS: usize = 6;
/// The form in which they are stored.
const VERSION: u32 = 1;

/// What a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The DNSKEY, CDS and CDNSKEY sets. The parent's DS names it.
    Ksk,
    /// Everything else.
    Zsk,
}

impl Role {
    /// How it is called in RFC 6781.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ksk => "KSK",
            Self::Zsk => "ZSK",
        }
    }
}

/// A new key pair.
#[derive(Clone, PartialEq, Eq)]
pub struct NewKey {
    /// The public key, as in a DNSKEY (RFC 6605 section 4): x and y, 64 bytes.
    pub public: [u8; 64],
    /// The private key, sealed for the servers of the region.
    pub sealed: Vec<u8>,
}

/// A key with its times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneKey {
    /// What it signs.
    pub role: Role,
    /// x and y in Base64, as a DNSKEY has them in text.
    pub public: String,
    /// The private key, sealed, in Base64.
    pub sealed: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it begins to sign; `None` for a KSK whose DS nobody has seen at the parent yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Timestamp>,
    /// When the next key takes its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<Timestamp>,
}

/// What becomes of a key at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A KSK whose DS is asked for and was not seen at the parent.
    WaitsForDs,
    /// It does not sign yet: others have to forget what was before it.
    Published,
    /// It signs.
    Active,
    /// It no longer signs; others may still have what it signed.
    Retiring,
    /// Nobody needs it.
    Done,
}

impl Phase {
    /// A word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::WaitsForDs => "waits-for-ds",
            Self::Published => "published",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Done => "done",
        }
    }
}

impl ZoneKey {
    fn new(role: Role, key: &NewKey, created: Timestamp, active: Option<Timestamp>) -> Self {
        let (public, sealed) = (STANDARD.encode(key.public), STANDARD.encode(&key.sealed));
        Self { role, public, sealed, created, active, retired: None }
    }

    /// What becomes of it at a time.
    pub fn phase(&self, now: Timestamp) -> Phase {
        match (self.active, self.retired) {
            (None, _) => Phase::WaitsForDs,
            (Some(active), _) if now < active => Phase::Published,
            (_, None) => Phase::Active,
            (_, Some(retired)) if now < retired => Phase::Active,
            (_, Some(retired)) if now < retired.plus(RETIRE) => Phase::Retiring,
            _ => Phase::Done,
        }
    }

    /// Whether it is in the DNSKEY set at a time.
    pub fn in_dnskey_set(&self, now: Timestamp) -> bool {
        match (self.role, self.phase(now)) {
            (Role::Zsk, phase) => phase != Phase::Done,
            (Role::Ksk, phase) => phase == Phase::Active,
        }
    }

    /// Whether the parent is asked for its DS at a time.
    pub fn in_cds_set(&self, now: Timestamp) -> bool {
        self.role == Role::Ksk && self.phase(now) != Phase::Done
    }

    /// The public key; `None` where what is stored is none.
    pub fn public_bytes(&self) -> Option<[u8; 64]> {
        STANDARD.decode(&self.public).ok()?.try_into().ok()
    }

    /// The sealed private key.
    pub fn sealed_bytes(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.sealed).ok()
    }

    /// The data of its DNSKEY record (RFC 4034 section 2.1).
    pub fn dnskey(&self) -> Option<Vec<u8>> {
        // Zone Key, and for a KSK also Secure Entry Point (RFC 3757).
        let flags: u16 = match self.role {
            Role::Ksk => 257,
            Role::Zsk => 256,
        };
        let mut data = flags.to_be_bytes().to_vec();
        data.extend([3, ALGORITHM]);
        data.extend(self.public_bytes()?);
        Some(data)
    }

    /// Its DS for a zone, as a record's data (RFC 4034 section 5.1): what the parent has, and what CDS asks for. `zone` is in lower case,
    /// without a dot at the end.
    pub fn ds(&self, zone: &str) -> Option<Vec<u8>> {
        let dnskey = self.dnskey()?;
        let mut signed = wire_name(zone);
        signed.extend(&dnskey);
        let mut data = key_tag(&dnskey).to_be_bytes().to_vec();
        data.extend([ALGORITHM, DS_DIGEST]);
        data.extend(digest::digest(&digest::SHA256, &signed).as_ref());
        Some(data)
    }

    /// Its DS as a line of the parent's zone file.
    pub fn ds_line(&self, zone: &str) -> Option<String> {
        use std::fmt::Write as _;
        let data = self.ds(zone)?;
        let mut line = format!("{zone}. IN DS {} {} {} ", u16::from_be_bytes([data[0], data[1]]), data[2], data[3]);
        for byte in &data[4..] {
            let _ = write!(line, "{byte:02X}");
        }
        Some(line)
    }

    /// Its key tag (RFC 4034 appendix B).
    pub fn tag(&self) -> Option<u16> {
        self.dnskey().map(|dnskey| key_tag(&dnskey))
    }
}

/// The tag of a DNSKEY's data (RFC 4034 appendix B).
pub fn key_tag(dnskey: &[u8]) -> u16 {
    let pairs = dnskey.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum: u32 = pairs.sum();
    (sum + (sum >> 16)) as u16
}

/// A name as DNS has it on the wire (RFC 1035 section 3.1); `.` or nothing is the root.
pub fn wire_name(name: &str) -> Vec<u8> {
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        wire.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    wire.push(0);
    wire
}

/// Why a rollover is not begun, or does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RolloverError {
    /// One is under way.
    #[error("a rollover of the {} is under way; it has to be done first (see `hearth region dnssec`)", .0.label())]
    UnderWay(Role),
    /// There is none whose DS is waited for.
    #[error("no new KSK waits for its DS at the parent; begin a rollover with `hearth region dnssec --roll ksk`")]
    NotWaiting,
    /// The keys of a region have one of each role.
    #[error("the region has no {} that signs; its stored keys are damaged: restore the region from a backup", .0.label())]
    Missing(Role),
}

/// The keys of a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeySet {
    version: u32,
    /// The keys, in the order in which they were made.
    pub keys: Vec<ZoneKey>,
}

const NAMESPACE: &str = "kube-system";
const NAME: &str = "region-dnssec";
const FIELD: &str = "keys";

/// The Secret that they are stored in.
pub fn object_key() -> ObjectKey {
    ObjectKey::new(GroupKind::SECRET, NAMESPACE, NAME)
}

impl KeySet {
    /// The first keys of a zone, which sign at once.
    pub fn first(ksk: &NewKey, zsk: &NewKey, now: Timestamp) -> Self {
        let new = |role, key| ZoneKey::new(role, key, now, Some(now));
        Self { version: VERSION, keys: vec![new(Role::Ksk, ksk), new(Role::Zsk, zsk)] }
    }

    /// What a Secret holds; the error says what is wrong with it.
    pub fn read(object: &Value) -> Result<Self, String> {
        let read: Self = own_secret::read(object, FIELD)?;
        own_secret::known_version(read.version, VERSION)?;
        if read.keys.len() > MAX_KEYS || read.keys.iter().any(|key| key.public_bytes().is_none()) {
            return Err("its keys are damaged".to_owned());
        }
        Ok(read)
    }

    /// The Secret to be written: `old` with these keys, or a new one.
    pub fn write(&self, old: Option<&Value>) -> Value {
        own_secret::write(old, &object_key(), FIELD, self)
    }

    /// The key of a role that signs at a time.
    pub fn active(&self, role: Role, now: Timestamp) -> Option<&ZoneKey> {
        self.keys.iter().rev().find(|key| key.role == role && key.phase(now) == Phase::Active)
    }

    /// Begins the rollover of a role's key, and forgets what nobody needs.
    pub fn roll(&mut self, role: Role, key: &NewKey, now: Timestamp) -> Result<(), RolloverError> {
        self.keys.retain(|key| key.phase(now) != Phase::Done);
        if self.keys.iter().filter(|key| key.role == role).count() > 1 {
            return Err(RolloverError::UnderWay(role));
        }
        let old = self.keys.iter_mut().find(|key| key.role == role && key.phase(now) == Phase::Active);
        let old = old.ok_or(RolloverError::Missing(role))?;
        let active = match role {
            Role::Zsk => Some(now.plus(PREPUBLISH)),
            Role::Ksk => None,
        };
        old.retired = active;
        self.keys.push(ZoneKey::new(role, key, now, active));
        Ok(())
    }

    /// The DS of the new KSK was seen at the parent, whose DS set may be cached for `ttl`: the new key signs after that.
    pub fn ds_seen(&mut self, ttl: Duration, now: Timestamp) -> Result<(), RolloverError> {
        let ksk = |key: &ZoneKey, phase| key.role == Role::Ksk && key.phase(now) == phase;
        let at = Some(now.plus(ttl).plus(MARGIN));
        let new = self.keys.iter().position(|key| ksk(key, Phase::WaitsForDs)).ok_or(RolloverError::NotWaiting)?;
        let old = self.keys.iter().position(|key| ksk(key, Phase::Active)).ok_or(RolloverError::Missing(Role::Ksk))?;
        (self.keys[new].active, self.keys[old].retired) = (at, at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HOUR: i64 = 3_600_000;

    fn key(fill: u8) -> NewKey {
        NewKey { public: [fill; 64], sealed: vec![fill] }
    }

    fn set() -> KeySet {
        KeySet::first(&key(1), &key(2), Timestamp(0))
    }

    /// The keys' phases at an hour, in the order in which they were made.
    fn phases(set: &KeySet, hour: i64) -> Vec<Phase> {
        set.keys.iter().map(|key| key.phase(Timestamp(hour * HOUR))).collect()
    }

    #[test]
    fn a_new_zone_signing_key_is_seen_before_it_signs_and_the_old_one_stays_until_nobody_needs_it() {
        use Phase::{Active, Done, Published, Retiring};
        let mut set = set();
        set.roll(Role::Zsk, &key(3), Timestamp(10 * HOUR)).expect("none is under way");
        for (hour, expected) in [
            (10, [Active, Active, Published]),
            (11, [Active, Active, Published]),
            (12, [Active, Retiring, Active]),
            (13, [Active, Retiring, Active]),
            (14, [Active, Done, Active]),
        ] {
            assert_eq!(phases(&set, hour), expected, "hour {hour}");
            let now = Timestamp(hour * HOUR);
            let signers = set.keys.iter().filter(|key| key.role == Role::Zsk && key.phase(now) == Active).count();
            assert_eq!(signers, 1, "hour {hour}");
            let shown = set.keys.iter().filter(|key| key.in_dnskey_set(now)).count();
            assert_eq!(shown, if hour < 14 { 3 } else { 2 }, "hour {hour}");
        }
        let again = |set: &mut KeySet, hour: i64| set.roll(Role::Zsk, &key(4), Timestamp(hour * HOUR));
        assert_eq!(again(&mut set, 11), Err(RolloverError::UnderWay(Role::Zsk)));
        assert_eq!(again(&mut set, 13), Err(RolloverError::UnderWay(Role::Zsk)));
        assert_eq!(again(&mut set, 14), Ok(()));
        assert_eq!(set.keys.len(), 3, "the first one is forgotten");
    }

    #[test]
    fn a_new_key_signing_key_waits_for_its_ds_and_never_are_two_in_the_dnskey_set() {
        use Phase::{Active, Done, Published, Retiring, WaitsForDs};
        let mut set = set();
        assert_eq!(set.ds_seen(PARENT_DS_TTL, Timestamp(0)), Err(RolloverError::NotWaiting));
        set.roll(Role::Ksk, &key(3), Timestamp(0)).expect("none is under way");
        assert_eq!(phases(&set, 100_000), [Active, Active, WaitsForDs], "for as long as it takes");
        assert_eq!(set.roll(Role::Ksk, &key(4), Timestamp(HOUR)), Err(RolloverError::UnderWay(Role::Ksk)));
        set.ds_seen(PARENT_DS_TTL, Timestamp(10 * HOUR)).expect("it waits");
        for (hour, expected) in [
            (10, [Active, Active, Published]),
            (34, [Active, Active, Published]),
            (35, [Retiring, Active, Active]),
            (36, [Retiring, Active, Active]),
            (37, [Done, Active, Active]),
        ] {
            assert_eq!(phases(&set, hour), expected, "hour {hour}");
            let now = Timestamp(hour * HOUR);
            let count = |is: fn(&ZoneKey, Timestamp) -> bool| {
                set.keys.iter().filter(|key| key.role == Role::Ksk && is(key, now)).count()
            };
            assert_eq!(count(ZoneKey::in_dnskey_set), 1, "hour {hour}");
            assert_eq!(count(ZoneKey::in_cds_set), if hour < 37 { 2 } else { 1 }, "hour {hour}");
        }
        assert_eq!(set.ds_seen(PARENT_DS_TTL, Timestamp(37 * HOUR)), Err(RolloverError::NotWaiting));
    }

    #[test]
    fn a_secret_gives_back_the_keys_and_what_is_damaged_or_newer_is_refused() {
        let set = set();
        let object = set.write(None);
        assert_eq!(KeySet::read(&object).expect("what was written"), set);
        let with = |keys: Value| KeySet::read(&json!({"data": {"keys": STANDARD.encode(keys.to_string())}}));
        assert!(with(json!({"version": 2, "keys": []})).expect_err("newer").contains("version 2"));
        let short = json!({"role": "ksk", "public": "AAAA", "sealed": "", "created": 0});
        assert!(with(json!({"version": 1, "keys": [short]})).is_err());
        assert!(KeySet::read(&json!({"data": {}})).is_err() && KeySet::read(&json!({"data": {"keys": "%"}})).is_err());
    }

    /// The example of RFC 6605 section 6.1.
    #[test]
    fn tag_and_ds_are_those_of_the_rfc() {
        let public = "GojIhhXUN/u4v54ZQqGSnyhWJwaubCvTmeexv7bR6edbkrSqQpF64cYbcB7wNcP+e+MAnLr+Wi9xMWyQLc8NAA==";
        let (created, active) = (Timestamp(0), None);
        let key =
            ZoneKey { role: Role::Ksk, public: public.into(), sealed: String::new(), created, active, retired: None };
        assert_eq!(key.tag(), Some(55_648));
        assert_eq!(
            key.ds_line("example.net").expect("a key"),
            "example.net. IN DS 55648 13 2 B4C8C1FE2E7477127B27115656AD6256F424625BF5C1E2770CE6D6E37DF61D17"
        );
    }
}
