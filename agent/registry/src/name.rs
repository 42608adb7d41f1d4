//! Where the images of a name are: registry, repository, and tag or digest.

use hearth_image::{Digest, Reference};
use reqwest::Url;

use crate::PullError;
use crate::config::{ANY_HOST, Config};

/// What names without a domain mean.
pub(crate) const DOCKER_HUB: &str = "docker.io";
/// Where Docker Hub's registry answers.
const DOCKER_HUB_SERVER: &str = "registry-1.docker.io";

/// A reference, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    /// The registry's host, with its port where one was given; `docker.io` for Docker Hub.
    pub(crate) host: String,
    /// The repository: `library/x` for Docker Hub's own.
    pub(crate) repository: String,
    pub(crate) version: Version,
}

/// Which version of a repository's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Version {
    Tag(String),
    Digest(Digest),
}

/// One server that may have the image: a mirror, or the registry itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port, as the configuration or the image's name has it: for messages and pull secrets.
    pub(crate) host: String,
    /// The repository there.
    pub(crate) repository: String,
    /// `https://host/v2/<repository>/`.
    base: Url,
}

/// A host and its port, empty where there is none. An IPv6 address keeps its brackets.
pub(crate) fn host_and_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    }
}

impl Location {
    pub(crate) fn of(reference: &Reference) -> Result<Self, PullError> {
        let name = reference.name().ok_or_else(|| PullError::NoName(reference.to_string()))?;
        let version = match reference {
            Reference::Tag { tag, .. } => Version::Tag(tag.clone()),
            Reference::Digest { digest, .. } => Version::Digest(*digest),
        };
        let (host, repository) = match name.split_once('/') {
            // The one rule of what is a domain, as `Reference` applies it.
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
            Some(_) => (DOCKER_HUB, name.to_owned()),
            None => (DOCKER_HUB, format!("library/{name}")),
        };
        Ok(Self { host: host.to_owned(), repository, version })
    }

    /// The mirrors of the registry in their order, and last the registry itself.
    pub(crate) fn endpoints(&self, config: &Config) -> Result<Vec<Endpoint>, PullError> {
        if config.allow.as_ref().is_some_and(|allowed| !allowed.contains(&self.host)) {
            return Err(PullError::NotAllowed { host: self.host.clone() });
        }
        let mirrors = config.mirrors.get(&self.host).or_else(|| config.mirrors.get(ANY_HOST)).into_iter().flatten();
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for mirror in mirrors {
            let (host, prefix) = mirror.split_once('/').unwrap_or((mirror, ""));
            let prefix = prefix.trim_end_matches('/');
            let repository =
                if prefix.is_empty() { self.repository.clone() } else { format!("{prefix}/{}", self.repository) };
            endpoints.push(Endpoint::new(host, repository, config)?);
        }
        let own = Endpoint::new(&self.host, self.repository.clone(), config)?;
        // One may be its own mirror, which is how the files of other tools say that it speaks plain HTTP.
        endpoints.retain(|endpoint| *endpoint != own);
        endpoints.push(own);
        Ok(endpoints)
    }
}

impl Endpoint {
    fn new(host: &str, repository: String, config: &Config) -> Result<Self, PullError> {
        let scheme = if config.insecure.contains(host) { "http" } else { "https" };
        let server = if host == DOCKER_HUB { DOCKER_HUB_SERVER } else { host };
        let base = Url::parse(&format!("{scheme}://{server}/v2/{repository}/"))
            .map_err(|error| PullError::unreachable(host, format!("it is not the name of a host: {error}")))?;
        Ok(Self { host: host.to_owned(), repository, base })
    }

    /// Whether the configuration allows plain HTTP here.
    pub(crate) fn is_insecure(&self) -> bool {
        self.base.scheme() == "http"
    }

    pub(crate) fn manifest(&self, version: &Version) -> Url {
        match version {
            Version::Tag(tag) => self.url(&format!("manifests/{tag}")),
            Version::Digest(digest) => self.url(&format!("manifests/{digest}")),
        }
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Url {
        self.url(&format!("blobs/{digest}"))
    }

    /// Tags and digests consist of characters that stand for themselves in a path.
    fn url(&self, rest: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{rest}", self.base.path()));
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(reference: &str, config: &Config) -> Vec<String> {
        let location = Location::of(&reference.parse().expect("a reference")).expect("a name");
        let endpoints = location.endpoints(config).expect("hosts");
        endpoints.iter().map(|endpoint| endpoint.manifest(&location.version).to_string()).collect()
    }

    #[test]
    fn names_lead_to_their_registries() {
        let pin = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let config = Config { insecure: ["localhost:5000".into()].into(), ..Config::default() };
        for (reference, url) in [
            ("x", "https://registry-1.docker.io/v2/library/x/manifests/latest"),
            ("docker.io/library/x:1", "https://registry-1.docker.io/v2/library/x/manifests/1"),
            ("index.docker.io/a/b", "https://registry-1.docker.io/v2/a/b/manifests/latest"),
            ("a/b/c:2", "https://registry-1.docker.io/v2/a/b/c/manifests/2"),
            ("example.com/x", "https://example.com/v2/x/manifests/latest"),
            ("example.com:8443/a/b:1.0", "https://example.com:8443/v2/a/b/manifests/1.0"),
            ("localhost:5000/a", "http://localhost:5000/v2/a/manifests/latest"),
            ("localhost/a", "https://localhost/v2/a/manifests/latest"),
            ("127.0.0.1:5000/a", "https://127.0.0.1:5000/v2/a/manifests/latest"),
            ("[::1]:5000/a", "https://[::1]:5000/v2/a/manifests/latest"),
            (&format!("a@{pin}"), &format!("https://registry-1.docker.io/v2/library/a/manifests/{pin}")),
        ] {
            assert_eq!(urls(reference, &config), [url], "{reference}");
        }
        let bare = pin.parse().expect("a reference");
        assert!(matches!(Location::of(&bare), Err(PullError::NoName(_))));
    }

    #[test]
    fn mirrors_come_before_the_registry_in_their_order() {
        let mirrors = vec!["mirror.home:5000".into(), "cache.example/hub/".into()];
        let config = Config {
            insecure: ["mirror.home:5000".into()].into(),
            mirrors: [("docker.io".into(), mirrors)].into(),
            ..Config::default()
        };
        assert_eq!(
            urls("x:1", &config),
            [
                "http://mirror.home:5000/v2/library/x/manifests/1",
                "https://cache.example/v2/hub/library/x/manifests/1",
                "https://registry-1.docker.io/v2/library/x/manifests/1",
            ]
        );
        assert_eq!(urls("example.com/x:1", &config).len(), 1);
        let config = Config {
            mirrors: [("*".into(), vec!["any.example".into()]), ("own.example".into(), vec!["own.example".into()])]
                .into(),
            ..Config::default()
        };
        assert_eq!(urls("example.com/x:1", &config)[0], "https://any.example/v2/x/manifests/1");
        assert_eq!(urls("own.example/x:1", &config), ["https://own.example/v2/x/manifests/1"]);
    }

    #[test]
    fn only_registries_that_are_allowed_are_asked() {
        let config = Config {
            allow: Some(["example.com".into()].into()),
            mirrors: [("example.com".into(), vec!["mirror.home".into()])].into(),
            ..Config::default()
        };
        assert_eq!(urls("example.com/x:1", &config).len(), 2);
        let hub = Location::of(&"x:1".parse().expect("a reference")).expect("a name").endpoints(&config);
        assert!(matches!(hub, Err(PullError::NotAllowed { host }) if host == "docker.io"));
    }
}
