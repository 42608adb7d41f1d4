//! What a region keeps in its store of the recovery key and of its own recovery.

use serde_json::{Value, json};

use super::statements::{Statement, Trust};
use crate::{GroupKind, ObjectKey, Timestamp};

const NAMESPACE: &str = "kube-system";

/// The ConfigMap with the region's [`Record`].
pub fn record_key() -> ObjectKey {
    ObjectKey::new(GroupKind::CONFIG_MAP, NAMESPACE, "region-recovery")
}

/// The ConfigMap with the [`super::Ledger`] of an owner, or of what is nobody's.
pub fn ledger_key(owner: Option<&str>) -> ObjectKey {
    // A dot is in no owner's name.
    let name = owner.map_or_else(|| "region-recovered.shared".to_owned(), |owner| format!("region-recovered-{owner}"));
    ObjectKey::new(GroupKind::CONFIG_MAP, NAMESPACE, &name)
}

/// Whether an object is the region's own, of this module, which nobody else is to change or delete.
pub fn is_regions_own(key: &ObjectKey) -> bool {
    key.kind == GroupKind::CONFIG_MAP
        && *key.namespace == *NAMESPACE
        && ["region-recovery", "region-recovered-", "region-recovered."]
            .iter()
            .any(|prefix| key.name.starts_with(prefix))
}

/// What a region knows of its recovery key, and of its own recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The recovery key.
    pub trust: Trust,
    /// That the region was recovered, and the CA (PEM) that it has since; `None` where it never was.
    pub recovered: Option<(Statement, String)>,
    /// Until when devices may hand in what they have.
    pub accept_until: Timestamp,
}

impl Record {
    /// The region's generation: 0 where it never was recovered.
    pub fn generation(&self) -> u64 {
        self.recovered.as_ref().map_or(0, |(statement, _)| statement.generation)
    }

    /// Whether devices may hand in what they have.
    pub fn accepts(&self, now: Timestamp) -> bool {
        self.recovered.is_some() && now < self.accept_until
    }

    /// Reads one from its object; `None` where there is nothing in it that can be believed.
    pub fn read(object: &Value) -> Option<Self> {
        let text = |field: &str| object.get("data")?.get(field)?.as_str();
        let trust = Trust::from_json(text("trust")?.as_bytes()).ok()?;
        let recovered = match text("statement") {
            Some(statement) => {
                Some((Statement::from_json(statement.as_bytes()).ok()?, text("ca.pem").unwrap_or_default().to_owned()))
            }
            None => None,
        };
        let accept_until = Timestamp(text("accept-until").and_then(|text| text.parse().ok()).unwrap_or_default());
        Some(Self { trust, recovered, accept_until })
    }

    /// The object with this in it: `old`, or a new one without uid and times.
    pub fn write(&self, old: Option<&Value>) -> Value {
        let key = record_key();
        let mut object = old.cloned().unwrap_or_else(|| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": key.name, "namespace": key.namespace}})
        });
        let text = |json: Vec<u8>| String::from_utf8(json).unwrap_or_default();
        let mut data = json!({"trust": text(self.trust.to_json())});
        if let Some((statement, ca)) = &self.recovered {
            data["statement"] = json!(text(statement.to_json()));
            data["ca.pem"] = json!(ca);
            data["accept-until"] = json!(self.accept_until.0.to_string());
        }
        object["data"] = data;
        object
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    #[test]
    fn a_record_is_read_back_and_one_that_is_not_sound_is_none() {
        let key = RecoveryKey { key: SigningKey::from_seed(&[1; 32]), rotations: Vec::new() };
        let trust = key.trust("home", "z", PublicKey([2; 32]));
        let mut record = Record { trust, recovered: None, accept_until: Timestamp(0) };
        assert_eq!(Record::read(&record.write(None)), Some(record.clone()));
        assert_eq!((record.generation(), record.accepts(Timestamp(-1))), (0, false));
        let ca = Digest::of(b"ca");
        let statement = Statement::new(&key.key, ("home", "z"), 7, "new".into(), ca, Timestamp(5));
        (record.recovered, record.accept_until) = (Some((statement, "PEM".into())), Timestamp(9));
        let object = record.write(Some(&json!({"metadata": {"uid": "u"}, "data": {"old": "x"}})));
        assert_eq!((&object["metadata"]["uid"], object["data"].get("old")), (&json!("u"), None));
        assert_eq!(Record::read(&object), Some(record.clone()));
        assert_eq!((record.generation(), record.accepts(Timestamp(8)), record.accepts(Timestamp(9))), (7, true, false));
        for odd in [json!({}), json!({"data": {"trust": "{}"}}), json!({"data": {"trust": 3}}), json!(null)] {
            assert_eq!(Record::read(&odd), None, "{odd}");
        }
        assert_ne!(ledger_key(Some("shared")), ledger_key(None));
        let own = [record_key(), ledger_key(None), ledger_key(Some("alice"))];
        assert!(own.iter().all(is_regions_own));
        assert!(!is_regions_own(&ObjectKey::new(GroupKind::CONFIG_MAP, "alice", "region-recovery")));
    }
}
