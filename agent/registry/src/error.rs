//! Why a pull failed, in words for the person whose pod waits for it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_image::Platform;
use rustix::io::Errno;

/// Characters of text from a registry that a message repeats: messages end up in events and logs.
const SHOWN_CHARS: usize = 300;

/// Why an image was not pulled or resolved. No variant carries a password, a token or a query of an URL.
///
/// Whatever it is, what was downloaded and not found wrong stays, and the next pull goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference is a bare digest: no registry can be asked for it.
    #[error("image {0} names no repository: give a name such as example.com/app@{0}")]
    NoName(String),
    /// The configuration names the registries that may be asked, and this is none of them.
    #[error("images of {host} are not pulled on this device: its owner allows other registries only")]
    NotAllowed {
        /// The registry.
        host: String,
    },
    /// The registry, or where it redirected to, is in the device's own network and not named in the configuration.
    #[error(
        "{host} is at {address}, which is not on the internet: the device's owner has to name it as a registry of the home"
    )]
    NotPublic {
        /// The host.
        host: String,
        /// Its address.
        address: std::net::IpAddr,
    },
    /// The registry has no such image, or a part of it is missing there.
    #[error("{host} has no {what}: check the image's name and tag")]
    NotFound {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry wants other credentials than it was shown. Some say so of images that do not exist, too.
    #[error(
        "{host} refuses access to {what} ({reason}): check that the image exists and that the pull secret is for it"
    )]
    Unauthorized {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// What it said, or what was not done for safety.
        reason: String,
    },
    /// The registry cannot be reached, is too slow, or fails by its own account (5xx), after several tries.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable {
        /// The registry, or the host that it redirected to.
        host: String,
        /// The last failure.
        reason: String,
    },
    /// The registry asks for fewer requests.
    #[error("{host} allows no more requests for now: wait, or give it credentials with a higher limit")]
    TooManyRequests {
        /// The registry.
        host: String,
        /// How long it asks to wait, if it says.
        retry_after: Option<Duration>,
    },
    /// The registry refused for another reason.
    #[error("{host} refused {what}: {says}")]
    Refused {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// Its status and words, clipped.
        says: String,
    },
    /// Bytes are not what their digest and size say.
    #[error("{what} from {host} is damaged: {reason}")]
    Corrupt {
        /// The registry.
        host: String,
        /// The document or blob.
        what: String,
        /// What differs.
        reason: String,
    },
    /// A document or an answer is not what the specification says.
    #[error("{what} from {host} is not valid: {reason}")]
    Invalid {
        /// The registry.
        host: String,
        /// The document or answer.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image is for other kinds of machines.
    #[error("image {image} is for {had}, and this device needs {wanted}")]
    NoPlatform {
        /// The image.
        image: String,
        /// What this device needs.
        wanted: Platform,
        /// What the image offers.
        had: String,
    },
    /// The image is of a kind that is not supported: Docker's schema 1, layers that are kept elsewhere, artifacts.
    #[error("image {image} is not supported: {reason}")]
    Unsupported {
        /// The image.
        image: String,
        /// Why.
        reason: String,
    },
    /// The image is larger than a device takes.
    #[error("image {image} has {had} bytes to download: the limit is {limit}")]
    TooLarge {
        /// The image.
        image: String,
        /// Bytes of what is to be downloaded.
        had: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// There is no room for what is to be downloaded.
    #[error("the disk of {path:?} is full: {needed} bytes are needed and {free} are free; free some space")]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A system call failed.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl PullError {
    /// Whether the same pull fails until a person changes the image, its name, the pull secret or the configuration.
    ///
    /// The others (network, rate limits, damage on the way, the device's disk) may pass by themselves.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::NoName(_)
            | Self::NotAllowed { .. }
            | Self::NotPublic { .. }
            | Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Refused { .. }
            | Self::Invalid { .. }
            | Self::NoPlatform { .. }
            | Self::Unsupported { .. }
            | Self::TooLarge { .. } => true,
            Self::Unreachable { .. }
            | Self::TooManyRequests { .. }
            | Self::Corrupt { .. }
            | Self::DiskFull { .. }
            | Self::Io { .. } => false,
        }
    }

    /// Whether it is about the device and not about a registry: asking another one does not help.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::DiskFull { .. } | Self::Io { .. })
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let full = [Errno::NOSPC, Errno::DQUOT].iter().any(|errno| source.raw_os_error() == Some(errno.raw_os_error()));
        if full {
            return Self::DiskFull { path: path.to_owned(), needed: 1, free: 0 };
        }
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn unreachable(host: &str, reason: impl Into<String>) -> Self {
        Self::Unreachable { host: host.into(), reason: reason.into() }
    }

    pub(crate) fn corrupt(host: &str, what: &str, reason: impl Into<String>) -> Self {
        Self::Corrupt { host: host.into(), what: what.into(), reason: reason.into() }
    }

    pub(crate) fn invalid(host: &str, what: &str, reason: impl Into<String>) -> Self {
        Self::Invalid { host: host.into(), what: what.into(), reason: reason.into() }
    }

    pub(crate) fn unauthorized(host: &str, what: &str, reason: impl Into<String>) -> Self {
        Self::Unauthorized { host: host.into(), what: what.into(), reason: reason.into() }
    }
}

/// Text from outside for a message: bounded, and without control characters, which could forge lines of a log.
pub(crate) fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect()
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    clip(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        for (errno, is_full) in [(Errno::NOSPC, true), (Errno::DQUOT, true), (Errno::IO, false)] {
            let error = PullError::io("write", Path::new("/layout"), errno);
            assert_eq!(matches!(error, PullError::DiskFull { .. }), is_full, "{error}");
            assert!(error.is_local() && !error.is_permanent());
        }
    }

    #[test]
    fn words_from_outside_stay_in_one_line_and_bounded() {
        assert_eq!(clip("a\r\nb\u{1b}[31m"), "ab[31m");
        assert_eq!(clip(&"x".repeat(1000)).len(), SHOWN_CHARS);
        let error = PullError::io("write", Path::new("/layout"), Errno::IO);
        assert!(chain(&error).starts_with("cannot write \"/layout\": "), "{}", chain(&error));
    }
}
