//! How a region orders certificates of a public authority by ACME (RFC 8555): its settings, which it keeps in a Secret for all servers, and
//! what its DNS answers for it.
//!
//! The region has the account, and orders with requests (PKCS #10) that devices make: keys stay where they were made. See
//! ARCHITECTURE.md, "Certificates of a public authority", for why it is not each device that orders.

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    GroupKind, Object, ObjectKey, Status,
    dns::record::{RecordKind, ZoneRecord, record_name},
    domains::is_custom,
    names::MAX_SUBDOMAIN,
    own_secret,
    transparency::Log,
};

/// Certificates in a week for one registered domain at most, unless the operator says otherwise: Let's Encrypt's limit of "New
/// Certificates per
/// Registered Domain".
pub const CERTIFICATES_PER_WEEK: u32 = 50;
/// Names of one Certificate at most: what public authorities take.
pub const MAX_NAMES: usize = 100;
/// The label below which names are proved (RFC 8555 section 8.4).
pub const CHALLENGE: &str = "_acme-challenge";
/// How long others may keep a proof, in seconds: no longer than an order takes.
const CHALLENGE_TTL: u32 = 1;
/// How long others may keep who may issue, in seconds.
const CAA_TTL: u32 = 300;
/// Where the settings are.
const NAMESPACE: &str = "kube-system";
const NAME: &str = "region-acme";
/// The Secret's one entry.
const FIELD: &str = "settings";
/// The form in which they are stored.
const VERSION: u32 = 1;
/// Bounds of what a person says.
const MAX_URL: usize = 512;
const MAX_CONTACTS: usize = 8;
const MAX_ROOTS: usize = 64 << 10;
const MAX_EAB_KEY: usize = 1024;
const MAX_ISSUERS: usize = 8;
const MAX_LOGS: usize = 16;

/// The object that has the settings. Without it, the region's own authority signs everything.
pub fn object_key() -> ObjectKey {
    ObjectKey::new(GroupKind::SECRET, NAMESPACE, NAME)
}

/// The region's settings. What is secret in them is sealed by the region's servers (see [`Vault`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// The form in which they are stored; [`Settings::new`] knows it.
    pub version: u32,
    /// The authority's directory (RFC 8555 section 7.1.1), `https://`.
    pub directory: String,
    /// Where the authority writes to, `mailto:` URLs.
    #[serde(default)]
    pub contacts: Vec<String>,
    /// The roots by which the directory's own TLS is verified, PEM; none: those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roots: Option<String>,
    /// External account binding (RFC 8555 section 7.3.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<Binding>,
    /// Certificates in a week at most, renewals not counted.
    pub certificates_per_week: u32,
    /// The authority's names in CAA records; none: those that its directory tells.
    #[serde(default)]
    pub issuers: Vec<String>,
    /// No CAA records.
    #[serde(default)]
    pub no_caa: bool,
    /// Logs of Certificate Transparency that are read for the zone's names, as texts of a [`Log`].
    #[serde(default)]
    pub logs: Vec<String>,
    /// The account, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
}

/// An external account binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// The key's name at the authority.
    pub kid: String,
    /// The HMAC key, sealed, base64.
    pub sealed: String,
}

/// The region's account at the authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// The directory that it is of.
    pub directory: String,
    /// Its URL, which CAA records name (RFC 8657).
    pub uri: String,
    /// Its private key and URL, sealed, base64.
    pub sealed: String,
    /// What the directory says of its names in CAA records (RFC 8555 section 9.7.6).
    #[serde(default)]
    pub issuers: Vec<String>,
}

/// Seals what the store alone must not give away: by a key that every server of the region derives from its CA's.
pub trait Vault: Send + Sync + 'static {
    /// Seals bytes.
    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, Status>;
    /// Opens what was sealed.
    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Status>;
}

/// Takes events about objects.
pub trait EventSink: Send + Sync + 'static {
    /// Tells people; `reason` is one CamelCase word.
    fn note(&self, regarding: &Object, warning: bool, reason: &str, message: String);
}

impl Settings {
    /// Settings for a directory, with all else as it is unless said.
    pub fn new(directory: &str) -> Self {
        Self {
            version: VERSION,
            directory: directory.to_owned(),
            certificates_per_week: CERTIFICATES_PER_WEEK,
            ..Self::default()
        }
    }

    /// What a Secret holds; the error says what is wrong with it.
    pub fn read(object: &Value) -> Result<Self, String> {
        let read: Self = own_secret::read(object, FIELD)?;
        own_secret::known_version(read.version, VERSION)?;
        Ok(read)
    }

    /// The Secret to be written: `old` with these settings, or a new one.
    pub fn write(&self, old: Option<&Value>) -> Value {
        own_secret::write(old, &object_key(), FIELD, self)
    }

    /// Holds what a person said against its bounds; the error says what and what to do.
    pub fn check(&self) -> Result<(), String> {
        url("the directory", &self.directory, "https://")?;
        if self.contacts.len() > MAX_CONTACTS {
            return Err(format!("at most {MAX_CONTACTS} contacts"));
        }
        for contact in &self.contacts {
            let plain = contact.strip_prefix("mailto:").is_some_and(|rest| rest.contains('@'));
            if !plain || contact.len() > MAX_URL || contact.bytes().any(|byte| byte <= b' ') {
                return Err(format!("contact {contact:?}: must be an address of mail, as admin@example.org"));
            }
        }
        if self.roots.as_ref().is_some_and(|roots| roots.len() > MAX_ROOTS) {
            return Err(format!("the roots have more than {MAX_ROOTS} bytes"));
        }
        if self.binding.as_ref().is_some_and(|binding| binding.kid.is_empty() || binding.kid.len() > MAX_URL) {
            return Err("the name of the external account's key has 1 to 512 characters".into());
        }
        if self.certificates_per_week == 0 {
            return Err("certificates per week: at least 1".into());
        }
        if self.issuers.len() > MAX_ISSUERS || self.logs.len() > MAX_LOGS {
            return Err(format!("at most {MAX_ISSUERS} names for CAA and {MAX_LOGS} logs"));
        }
        for issuer in &self.issuers {
            crate::names::dns_subdomain(issuer).map_err(|why| format!("the name for CAA {issuer:?}: {why}"))?;
        }
        self.logs.iter().try_for_each(|log| Log::parse(log).map(drop))
    }

    /// The account, where it is one of this directory.
    pub fn own_account(&self) -> Option<&Account> {
        self.account.as_ref().filter(|account| account.directory == self.directory)
    }

    /// Who may issue for the zone, as texts of CAA records: the authority, for this account alone, and by DNS alone (RFC 8659, RFC 8657).
    /// None before there is an account, and where nobody says the authority's name.
    pub fn caa(&self) -> Vec<String> {
        let Some(account) = self.own_account().filter(|_| !self.no_caa) else { return Vec::new() };
        let issuers = if self.issuers.is_empty() { &account.issuers } else { &self.issuers };
        let plain =
            |uri: &str| uri.bytes().all(|byte| (0x21..0x7f).contains(&byte) && !matches!(byte, b'"' | b'\\' | b';'));
        if !plain(&account.uri) {
            return Vec::new();
        }
        let text =
            |issuer: &String| format!("0 issue \"{issuer}; accounturi={}; validationmethods=dns-01\"", account.uri);
        issuers.iter().filter(|issuer| crate::names::dns_subdomain(issuer).is_ok()).map(text).collect()
    }

    /// The same as the zone's name server has them.
    pub fn caa_records(&self) -> Vec<ZoneRecord> {
        let data = self.caa().into_iter().filter_map(|text| RecordKind::Caa.parse(&text).ok());
        data.map(|data| ZoneRecord { kind: RecordKind::Caa, ttl: Some(CAA_TTL), data: data.into() }).collect()
    }
}

/// Checks an external account's HMAC key as the authority gives it (base64url), and decodes it.
pub fn binding_key(text: &str) -> Result<Vec<u8>, String> {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let text = text.trim().trim_end_matches('=');
    let standard: String = text
        .chars()
        .map(|one| {
            if one == '+' {
                '-'
            } else if one == '/' {
                '_'
            } else {
                one
            }
        })
        .collect();
    let bytes =
        URL_SAFE_NO_PAD.decode(standard).map_err(|_| "the external account's key must be base64url".to_owned())?;
    if bytes.is_empty() || bytes.len() > MAX_EAB_KEY {
        return Err(format!("the external account's key has 1 to {MAX_EAB_KEY} bytes"));
    }
    Ok(bytes)
}

pub(crate) fn url(what: &str, text: &str, scheme: &str) -> Result<(), String> {
    let plain = text.bytes().all(|byte| (0x21..0x7f).contains(&byte));
    if text.starts_with(scheme) && text.contains("://") && text.len() <= MAX_URL && plain {
        return Ok(());
    }
    Err(format!("{what} {text:?}: must be a URL that begins with {scheme}, of at most {MAX_URL} characters"))
}

/// The names of the certificate that a device gets for its owner: every app, and every app inside the home.
pub fn owner_names(owner: &str, zone: &str) -> Vec<String> {
    vec![format!("{owner}.{zone}"), format!("*.{owner}.{zone}"), format!("*.lan.{owner}.{zone}")]
}

/// Whether a Certificate of a namespace may be for a name: one of the owner's own, or one outside of the zone, which the authority sees
/// proved only where whoever has that name leads its proofs to this owner ([`challenge_name`]).
pub fn may_have(name: &str, namespace: &str, zone: &str) -> Result<(), String> {
    record_name(name)?;
    let plain = name.strip_prefix("*.").unwrap_or(name);
    crate::names::dns_subdomain(plain)?;
    let owner = format!("{namespace}.{zone}");
    if plain.strip_suffix(&owner).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) {
        return Ok(());
    }
    if is_custom(plain, zone) && plain.contains('.') && plain == name {
        return Ok(());
    }
    Err(format!("must be {owner} or end in .{owner}, or be a domain outside of {zone} without `*`"))
}

/// Where the zone proves a name (without `*.`): below the name itself where it is in the zone. A name elsewhere has a CNAME there that
/// leads to
/// `<name>._acme-challenge.<owner>.<zone>`, so that its zone is changed once and never again.
pub fn challenge_name(name: &str, owner: &str, zone: &str) -> Option<String> {
    let inside = name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let at = if inside { format!("{CHALLENGE}.{name}") } else { format!("{name}.{CHALLENGE}.{owner}.{zone}") };
    (at.len() <= MAX_SUBDOMAIN && record_name(&at).is_ok()).then_some(at)
}

/// What the zone answers for a Certificate's order: proofs of names that the Certificate is for, and of no others.
pub fn challenge_records(certificate: &Value, zone: &str) -> Vec<(String, ZoneRecord)> {
    let owner = certificate.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    let list = |pointer: &str| certificate.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let wanted: Vec<&str> = list("/spec/dnsNames")
        .filter_map(Value::as_str)
        .filter(|name| may_have(name, owner, zone).is_ok())
        .map(|name| name.strip_prefix("*.").unwrap_or(name))
        .collect();
    list("/status/order/challenges")
        .take(MAX_NAMES)
        .filter_map(|one| {
            let (name, value) = (one["dnsName"].as_str()?, one["value"].as_str()?);
            let proof =
                value.len() <= 64 && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            let at = challenge_name(name, owner, zone).filter(|_| proof && wanted.contains(&name))?;
            let data = RecordKind::Txt.parse(value).ok()?.into();
            Some((at, ZoneRecord { kind: RecordKind::Txt, ttl: Some(CHALLENGE_TTL), data }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings() -> Settings {
        let account = Account {
            directory: "https://ca.example/dir".into(),
            uri: "https://ca.example/acct/1".into(),
            sealed: String::new(),
            issuers: vec!["ca.example".into()],
        };
        Settings {
            account: Some(account),
            contacts: vec!["mailto:a@b.example".into()],
            ..Settings::new("https://ca.example/dir")
        }
    }

    type Change = fn(&mut Settings);

    #[test]
    fn settings_are_kept_as_they_were_and_bad_ones_are_refused() {
        let kept = settings();
        assert_eq!(Settings::read(&kept.write(None)), Ok(kept.clone()));
        assert_eq!(kept.check(), Ok(()));
        let newer = Settings { version: 2, ..kept.clone() };
        assert!(Settings::read(&newer.write(None)).is_err_and(|why| why.contains("version 2")));
        let cases: [(Change, &str); 6] = [
            (|one| one.directory = "http://ca.example".into(), "https://"),
            (|one| one.contacts = vec!["mailto:nobody".into()], "address of mail"),
            (|one| one.certificates_per_week = 0, "at least 1"),
            (|one| one.issuers = vec!["A b".into()], "name for CAA"),
            (|one| one.logs = vec!["ftp://log".into()], "a log"),
            (|one| one.binding = Some(Binding { kid: String::new(), sealed: String::new() }), "external account"),
        ];
        for (change, part) in cases {
            let mut bad = kept.clone();
            change(&mut bad);
            let why = bad.check().expect_err(part);
            assert!(why.contains(part), "{why}");
        }
        assert_eq!(binding_key("-_8="), Ok(vec![0xfb, 0xff]));
        assert_eq!(binding_key("+/8"), Ok(vec![0xfb, 0xff]));
        assert!(binding_key("").is_err() && binding_key("*").is_err());
    }

    #[test]
    fn caa_names_the_authority_and_the_one_account() {
        let mut settings = settings();
        assert_eq!(
            settings.caa(),
            ["0 issue \"ca.example; accounturi=https://ca.example/acct/1; validationmethods=dns-01\""]
        );
        assert_eq!(settings.caa_records().len(), 1);
        settings.issuers = vec!["other.example".into()];
        assert!(settings.caa()[0].contains("other.example;"));
        settings.directory = "https://another.example/dir".into();
        assert!(settings.caa().is_empty(), "the account is another authority's");
        settings.directory = "https://ca.example/dir".into();
        settings.no_caa = true;
        assert!(settings.caa().is_empty());
    }

    #[test]
    fn a_name_is_proved_only_where_its_owner_has_it() {
        for (name, fits) in [
            ("alice.z.test", true),
            ("*.alice.z.test", true),
            ("*.lan.alice.z.test", true),
            ("bob.z.test", false),
            ("z.test", false),
            ("malice.z.test", false),
            ("_acme-challenge.alice.z.test", false),
            ("alice.z.test.", false),
            ("shop.example.org", true),
            ("*.example.org", false),
            ("org", false),
        ] {
            assert_eq!(may_have(name, "alice", "z.test").is_ok(), fits, "{name}");
        }
        let certificate = |challenges: Value| {
            json!({"metadata": {"namespace": "alice"}, "spec": {"dnsNames": ["*.alice.z.test", "bob.z.test"]},
                "status": {"order": {"url": "", "challenges": challenges}}})
        };
        let value = "a".repeat(43);
        let records = challenge_records(
            &certificate(json!([
                {"dnsName": "alice.z.test", "value": value},
                {"dnsName": "bob.z.test", "value": value},
                {"dnsName": "lan.alice.z.test", "value": value},
                {"dnsName": "alice.z.test", "value": "spaced \"text\""},
            ])),
            "z.test",
        );
        assert_eq!(records.len(), 1, "{records:?}");
        assert_eq!(records[0].0, "_acme-challenge.alice.z.test");
        assert_eq!(
            challenge_name("photos.example.org", "alice", "z.test").as_deref(),
            Some("photos.example.org._acme-challenge.alice.z.test")
        );
        assert_eq!(challenge_name("notz.test", "a", "z.test").as_deref(), Some("notz.test._acme-challenge.a.z.test"));
    }
}
