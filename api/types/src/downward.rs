//! What a pod may be told of itself, in variables and files (Kubernetes' downward API): fields of its own object, and what its containers may use.

use std::fmt;

use crate::quantity;

/// A field of a pod. Its text is Kubernetes' path, as `metadata.labels['app']`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `metadata.name`.
    Name,
    /// `metadata.namespace`.
    Namespace,
    /// `metadata.uid`.
    Uid,
    /// `metadata.labels`: all of them, a line each; for files alone.
    Labels,
    /// `metadata.annotations`: likewise.
    Annotations,
    /// `metadata.labels['key']`.
    Label(String),
    /// `metadata.annotations['key']`.
    Annotation(String),
    /// `spec.nodeName`; for variables alone, as what follows.
    NodeName,
    /// `spec.serviceAccountName`.
    ServiceAccountName,
    /// `status.hostIP`.
    HostIp,
    /// `status.hostIPs`, separated by commas.
    HostIps,
    /// `status.podIP`.
    PodIp,
    /// `status.podIPs`, separated by commas.
    PodIps,
}

/// The fields by their paths.
const PATHS: [(&str, Field); 11] = [
    ("metadata.name", Field::Name),
    ("metadata.namespace", Field::Namespace),
    ("metadata.uid", Field::Uid),
    ("metadata.labels", Field::Labels),
    ("metadata.annotations", Field::Annotations),
    ("spec.nodeName", Field::NodeName),
    ("spec.serviceAccountName", Field::ServiceAccountName),
    ("status.hostIP", Field::HostIp),
    ("status.hostIPs", Field::HostIps),
    ("status.podIP", Field::PodIp),
    ("status.podIPs", Field::PodIps),
];

/// Why a path or an amount cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownwardError {
    /// There is no such field, or it is not told this way.
    #[error("{0:?} is not supported; must be one of {1}")]
    Field(String, String),
    /// There is no such amount.
    #[error("{0:?} is not supported; must be one of {1}")]
    Resource(String, String),
    /// The unit is none of this amount's.
    #[error("{0:?} is no unit of it; must be one of {1}")]
    Divisor(String, String),
}

impl Field {
    /// Reads a path.
    ///
    /// # Errors
    /// Names what may be said: in a variable, or in a file of a volume.
    pub fn parse(path: &str, file: bool) -> Result<Self, DownwardError> {
        let keyed =
            |map: &str| path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']").filter(|key| !key.is_empty());
        let found = if let Some(key) = keyed("metadata.labels") {
            Some(Self::Label(key.to_owned()))
        } else if let Some(key) = keyed("metadata.annotations") {
            Some(Self::Annotation(key.to_owned()))
        } else {
            PATHS.iter().find(|(known, _)| *known == path).map(|(_, field)| field.clone())
        };
        found.filter(|field| field.is_told(file)).ok_or_else(|| {
            let plain = PATHS.iter().filter(|(_, field)| field.is_told(file)).map(|(path, _)| *path);
            let all: Vec<&str> = plain.chain(["metadata.labels['<key>']", "metadata.annotations['<key>']"]).collect();
            DownwardError::Field(path.to_owned(), all.join(", "))
        })
    }

    fn is_told(&self, file: bool) -> bool {
        match self {
            Self::Name | Self::Namespace | Self::Uid | Self::Label(_) | Self::Annotation(_) => true,
            Self::Labels | Self::Annotations => file,
            _ => !file,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(key) => write!(f, "metadata.labels['{key}']"),
            Self::Annotation(key) => write!(f, "metadata.annotations['{key}']"),
            field => {
                let path = PATHS.iter().find(|(_, known)| known == field).map(|(path, _)| *path);
                f.write_str(path.unwrap_or_default())
            }
        }
    }
}

/// What a container may use, or asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `limits.cpu`; what the device has, where there is no limit.
    LimitsCpu,
    /// `limits.memory`; likewise.
    LimitsMemory,
    /// `requests.cpu`; nothing, where nothing is asked for.
    RequestsCpu,
    /// `requests.memory`; likewise.
    RequestsMemory,
    /// `limits.ephemeral-storage`; what the device has for pods, where there is no limit.
    LimitsStorage,
    /// `requests.ephemeral-storage`; nothing, where nothing is asked for.
    RequestsStorage,
}

const RESOURCES: [(&str, Resource); 6] = [
    ("limits.cpu", Resource::LimitsCpu),
    ("limits.memory", Resource::LimitsMemory),
    ("requests.cpu", Resource::RequestsCpu),
    ("requests.memory", Resource::RequestsMemory),
    ("limits.ephemeral-storage", Resource::LimitsStorage),
    ("requests.ephemeral-storage", Resource::RequestsStorage),
];

impl Resource {
    /// Reads its name.
    pub fn parse(name: &str) -> Result<Self, DownwardError> {
        let found = RESOURCES.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource);
        found.ok_or_else(|| DownwardError::Resource(name.to_owned(), RESOURCES.map(|(name, _)| name).join(", ")))
    }

    fn units(self) -> &'static [&'static str] {
        match self {
            Self::LimitsCpu | Self::RequestsCpu => &["1m", "1"],
            Self::LimitsMemory | Self::RequestsMemory | Self::LimitsStorage | Self::RequestsStorage => {
                &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"]
            }
        }
    }

    /// The size of a unit in thousandths; the amount itself, where none is said.
    pub fn divisor(self, text: &str) -> Result<i128, DownwardError> {
        let text = if matches!(text, "" | "0") { "1" } else { text };
        let thousandths = quantity::millis(text).ok().filter(|_| self.units().contains(&text));
        thousandths.ok_or_else(|| DownwardError::Divisor(text.to_owned(), self.units().join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_where_kubernetes_tells_them() {
        for (path, variable, file) in [
            ("metadata.name", true, true),
            ("metadata.labels", false, true),
            ("metadata.labels['app.kubernetes.io/name']", true, true),
            ("metadata.annotations['a']", true, true),
            ("metadata.labels['']", false, false),
            ("metadata.labels[app]", false, false),
            ("spec.nodeName", true, false),
            ("status.podIPs", true, false),
            ("spec.containers", false, false),
            ("", false, false),
        ] {
            assert_eq!(
                (Field::parse(path, false).is_ok(), Field::parse(path, true).is_ok()),
                (variable, file),
                "{path}"
            );
            if let Ok(field) = Field::parse(path, file) {
                assert_eq!(field.to_string(), path);
            }
        }
        let error = Field::parse("status.phase", false).expect_err("refused").to_string();
        assert!(error.contains("\"status.phase\" is not supported; must be one of metadata.name"), "{error}");
    }

    #[test]
    fn amounts_have_their_units() {
        for (resource, unit, thousandths) in [
            ("limits.cpu", "", Some(1000)),
            ("limits.cpu", "0", Some(1000)),
            ("requests.cpu", "1m", Some(1)),
            ("requests.cpu", "1Mi", None),
            ("limits.memory", "1Mi", Some(1000 << 20)),
            ("limits.memory", "2Mi", None),
            ("requests.memory", "1m", None),
            ("limits.ephemeral-storage", "1Mi", Some(1000 << 20)),
        ] {
            assert_eq!(Resource::parse(resource).expect("known").divisor(unit).ok(), thousandths, "{resource} {unit}");
        }
        assert!(Resource::parse("limits.hugepages-2Mi").is_err());
    }
}
