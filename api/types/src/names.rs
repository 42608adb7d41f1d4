//! What names may look like (Kubernetes "Object Names and IDs"; RFC 1123, RFC 1035).

/// The longest DNS label in bytes (RFC 1035 section 2.3.4).
pub const MAX_LABEL: usize = 63;
/// The longest DNS name in bytes of text.
pub const MAX_SUBDOMAIN: usize = 253;

/// Namespaces that no owner may have, since hostnames of the zone or of Kubernetes mean something else.
pub const RESERVED_OWNERS: &[&str] = &[
    "api",
    "lan",
    "status",
    "gateway",
    "relay",
    "www",
    "ns",
    "ns1",
    "ns2",
    "default",
    "kube-system",
    "kube-public",
    "kube-node-lease",
    "hearth-system",
];

/// A DNS label: `a-z`, `0-9` and `-`, beginning and ending with a letter or digit.
pub fn dns_label(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > MAX_LABEL {
        return Err("must have 1 to 63 characters");
    }
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edge = |byte: u8| byte != b'-';
    let bytes = name.as_bytes();
    if bytes.iter().all(|byte| inner(*byte)) && edge(bytes[0]) && edge(bytes[bytes.len() - 1]) {
        Ok(())
    } else {
        Err(
            "must be a lowercase RFC 1123 label: letters a-z, digits and '-', beginning and ending with a letter or digit",
        )
    }
}

/// A DNS subdomain: labels joined by dots.
pub fn dns_subdomain(name: &str) -> Result<(), &'static str> {
    const WHY: &str = "must be a lowercase RFC 1123 subdomain: letters a-z, digits, '-' and '.', beginning and ending with a letter or digit";
    if name.is_empty() || name.len() > MAX_SUBDOMAIN {
        return Err("must have 1 to 253 characters");
    }
    if name.split('.').all(|label| dns_label(label).is_ok()) { Ok(()) } else { Err(WHY) }
}

/// Whether a text is `host:port`, `address:port` or `[address]:port`, with a port above zero.
pub fn is_address(text: &str) -> bool {
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return address.port() != 0;
    }
    text.rsplit_once(':')
        .is_some_and(|(host, port)| dns_subdomain(host).is_ok() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

/// The addresses of servers that are among the texts that somebody sent: each once, the first [`MAX_SERVERS`](crate::group::MAX_SERVERS).
pub fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for text in texts {
        if found.len() < crate::group::MAX_SERVERS && is_address(text) && !found.contains(text) {
            found.push(text.clone());
        }
    }
    found
}

/// A label or annotation key: an optional DNS prefix and `/`, then a name of at most 63 characters.
pub fn label_key(key: &str) -> Result<(), &'static str> {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            dns_subdomain(prefix)?;
            name
        }
        None => key,
    };
    if name.is_empty() {
        return Err("must not be empty");
    }
    qualified(name)
}

/// A label value: empty, or at most 63 characters of `A-Za-z0-9-_.`, beginning and ending alphanumeric.
pub fn label_value(value: &str) -> Result<(), &'static str> {
    if value.is_empty() { Ok(()) } else { qualified(value) }
}

fn qualified(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_LABEL {
        return Err("must have at most 63 characters");
    }
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if bytes.iter().all(inner) && bytes[0].is_ascii_alphanumeric() && bytes[bytes.len() - 1].is_ascii_alphanumeric() {
        Ok(())
    } else {
        Err("must be letters, digits, '-', '_' and '.', beginning and ending with a letter or digit")
    }
}

/// An environment variable's name: anything printable without `=`.
pub fn env_name(name: &str) -> Result<(), &'static str> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'=') {
        Ok(())
    } else {
        Err("must be printable ASCII characters other than '=' and space")
    }
}

/// A key of a ConfigMap or Secret, which becomes a file name.
pub fn config_key(key: &str) -> Result<(), &'static str> {
    if key.is_empty() || key.len() > MAX_SUBDOMAIN {
        return Err("must have 1 to 253 characters");
    }
    if key == "." || key.starts_with("..") {
        return Err("must not be '.' or begin with '..'");
    }
    if key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        Ok(())
    } else {
        Err("must be letters, digits, '-', '_' and '.'")
    }
}

/// Checks that a path can be a part of a volume, as Kubernetes checks `subPath`: relative, and without `..`.
pub fn sub_path_of_volume(path: &str) -> Result<(), &'static str> {
    if path.starts_with('/') {
        return Err("must be a relative path");
    }
    if path.split('/').any(|part| part == "..") {
        return Err("must not contain '..'");
    }
    if path.contains('\0') || path.len() > 4095 { Err("must be a path of up to 4095 bytes") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_held_to_the_rfcs() {
        for good in ["a", "a-b", "0", &"a".repeat(63)] {
            assert!(dns_label(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a.b", "a_b", "ä", "..", "a/b", &"a".repeat(64)] {
            assert!(dns_label(bad).is_err(), "{bad}");
        }
        assert!(dns_subdomain("a.b-c.d").is_ok());
        assert!(dns_subdomain("a..b").is_err());
        assert!(label_key("hearth.dev/install").is_ok());
        assert!(label_key("/x").is_err());
        assert!(label_key("").is_err());
        assert!(config_key("..data").is_err());
        assert!(config_key("a/b").is_err());
        assert!(env_name("A=B").is_err());
    }
}
