//! Platforms: which of the images of an index runs on a device (OCI image spec, image-index.md "platform").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and a processor, in the words that Go uses and OCI took over (`linux`, `amd64`, `arm64`, `arm` with variant `v7`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system (GOOS); always `linux` on a device.
    pub os: String,
    /// Processor architecture (GOARCH).
    pub architecture: String,
    /// Variant of the processor, such as `v7` for 32-bit ARM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A text is not `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform {0:?} is not of the form os/architecture or os/architecture/variant, such as linux/arm64")]
pub struct PlatformError(String);

/// How well an image's platform suits a device: the order is the preference, best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fit(u8);

impl Platform {
    /// `linux` on `architecture`, without a variant.
    pub fn linux(architecture: &str) -> Self {
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// The platform this program was compiled for.
    pub fn host() -> Self {
        match std::env::consts::ARCH {
            "x86_64" => Self::linux("amd64"),
            "aarch64" => Self::linux("arm64"),
            "x86" => Self::linux("386"),
            "arm" => Self { variant: Some("v7".into()), ..Self::linux("arm") },
            "powerpc64" => Self::linux("ppc64le"),
            other => Self::linux(other),
        }
    }

    /// Whether an image of platform `had` runs on a device of this platform, and how well. `None`: not at all.
    ///
    /// 32-bit ARM runs its own variant and lower ones, the highest first; on other processors the variant only orders.
    pub(crate) fn fit(&self, had: &Self) -> Option<Fit> {
        if self.os != had.os || self.architecture != had.architecture {
            return None;
        }
        if self.architecture == "arm" {
            let level = |variant: &Option<String>| match variant.as_deref() {
                None => Some(7),
                Some(v) => v.strip_prefix('v').and_then(|n| n.parse::<u8>().ok()),
            };
            let (wanted, had) = (level(&self.variant)?, level(&had.variant)?);
            return (had <= wanted).then_some(Fit(had));
        }
        let exact = self.normal_variant() == had.normal_variant();
        // An image for a higher micro-architecture level (amd64/v3) may stop with an illegal instruction.
        if self.architecture == "amd64" && !exact && had.normal_variant().is_some() {
            return None;
        }
        Some(Fit(u8::from(exact)))
    }

    /// `arm64/v8` and `amd64/v1` are what `arm64` and `amd64` mean.
    fn normal_variant(&self) -> Option<&str> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", Some("v8" | "8")) | ("amd64", Some("v1")) | (_, Some("")) => None,
            (_, variant) => variant,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |w: &&str| {
            !w.is_empty() && w.len() <= 32 && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        match parts[..] {
            [os, architecture] | [os, architecture, _] if parts.iter().all(word) => Ok(Self {
                os: os.into(),
                architecture: architecture.into(),
                variant: parts.get(2).map(|v| (*v).into()),
            }),
            _ => Err(PlatformError(text.chars().take(80).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().expect("a platform")
    }

    #[test]
    fn platforms_read_back_as_they_were_written() {
        for text in ["linux/amd64", "linux/arm/v7", "linux/arm64/v8"] {
            assert_eq!(platform(text).to_string(), text);
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/../x", "Linux/amd64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_takes_the_best_image_that_it_can_run() {
        let fits = |wanted: &str, had: &str| platform(wanted).fit(&platform(had));
        assert!(fits("linux/amd64", "linux/amd64").is_some());
        assert!(fits("linux/amd64", "linux/arm64").is_none());
        assert!(fits("linux/amd64", "windows/amd64").is_none());
        assert!(fits("linux/amd64", "linux/amd64/v3").is_none());
        assert!(fits("linux/arm64", "linux/arm64/v8").is_some());
        assert!(fits("linux/arm/v7", "linux/arm/v6").is_some());
        assert!(fits("linux/arm/v6", "linux/arm/v7").is_none());
        assert!(fits("linux/arm/v7", "linux/arm/v7") > fits("linux/arm/v7", "linux/arm/v6"));
        assert!(fits("linux/arm/v7", "linux/arm64").is_none());
    }
}
