//! The servers of the device's region: which there are, and in what order they are tried.
//!
//! The region says which there are, in its sessions, and that is kept on disk, so that a device that starts while some of them are gone finds
//! another. What it says is bounded and checked, and never all that is tried: the addresses of the token by which the device joined stay.
//! A wrong address costs time alone: whoever answers there has to prove by a certificate of the region's CA that it is one of its servers.

use std::{collections::VecDeque, path::PathBuf};

use hearth_types::names;
use serde::{Deserialize, Serialize};

use crate::files::{FileError, Format};

const FORMAT: Format = Format { magic: "hearth-agent-servers", version: 1, max_bytes: 16 << 10 };

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    addresses: Vec<String>,
}

/// See the module.
pub(crate) struct Servers {
    path: PathBuf,
    /// Where a person said that the server is.
    fixed: Option<String>,
    /// Those that the region told of.
    told: Vec<String>,
    /// Those of the token.
    joined: Vec<String>,
    /// That of the last session.
    last: Option<String>,
}

impl Servers {
    /// The servers that are known. A list that cannot be read is as none: the region tells it again.
    pub(crate) fn load(path: PathBuf, fixed: Option<String>, joined: &[String]) -> Self {
        let stored = FORMAT.read::<Stored>(&path).unwrap_or_else(|error| {
            tracing::warn!(%error, "the list of the region's servers cannot be read; going by the join token's");
            None
        });
        let told = stored.map(|stored| names::addresses(&stored.addresses)).unwrap_or_default();
        Self { path, fixed, told, joined: joined.to_vec(), last: None }
    }

    /// Every server once, in the order in which to try them: first what a person said, and that of the last session.
    pub(crate) fn round(&self) -> VecDeque<String> {
        let mut round = VecDeque::new();
        for address in self.fixed.iter().chain(&self.last).chain(&self.told).chain(&self.joined) {
            if !round.contains(address) {
                round.push_back(address.clone());
            }
        }
        round
    }

    /// A session with this server begins: in the next start's first round it comes first.
    pub(crate) fn in_session(&mut self, address: &str) {
        self.last = Some(address.to_owned());
    }

    /// The session with this server broke: the others know soonest who leads now.
    pub(crate) fn lost(&mut self, address: &str) {
        self.last = None;
        // Last of those that the region told of, unless it is the only one.
        if let Some(index) = self.told.iter().position(|one| one == address) {
            let lost = self.told.remove(index);
            self.told.push(lost);
        }
    }

    /// The region says that its servers are these. `true`: that is new, and should be kept.
    pub(crate) fn learn(&mut self, texts: &[String]) -> bool {
        let addresses = names::addresses(texts);
        let same = addresses.len() == self.told.len() && addresses.iter().all(|one| self.told.contains(one));
        if addresses.is_empty() || same {
            return false;
        }
        self.told = addresses;
        true
    }

    /// What to write to disk, and where.
    pub(crate) fn keep(&self) -> impl FnOnce() -> Result<(), FileError> + Send + 'static {
        let (path, stored) = (self.path.clone(), Stored { addresses: self.told.clone() });
        move || FORMAT.write(&path, &stored, true)
    }
}

#[cfg(test)]
mod tests {
    use hearth_types::group::MAX_SERVERS;
    use proptest::prelude::*;

    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn what_the_region_told_is_there_after_a_restart_and_what_the_token_said_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("servers.json");
        let open = || Servers::load(path.clone(), None, &texts(&["10.0.0.1:1"]));
        let mut servers = open();
        assert_eq!(servers.round(), ["10.0.0.1:1"]);
        assert!(servers.learn(&texts(&["10.0.0.2:1", "nonsense", "10.0.0.3:1", "10.0.0.2:1"])));
        servers.keep()().expect("kept");
        assert!(!servers.learn(&texts(&["10.0.0.3:1", "10.0.0.2:1"])), "the same, in another order");
        assert!(!servers.learn(&[]), "silence is no news");
        assert_eq!(open().round(), ["10.0.0.2:1", "10.0.0.3:1", "10.0.0.1:1"]);
        std::fs::write(&path, "damaged").expect("written");
        assert_eq!(open().round(), ["10.0.0.1:1"]);
    }

    #[test]
    fn the_server_of_the_last_session_is_first_until_it_is_lost() {
        let mut servers = Servers::load("/nonexistent/servers.json".into(), None, &texts(&["a.b:1"]));
        assert!(servers.learn(&texts(&["a.b:1", "c.d:1", "e.f:1"])));
        servers.in_session("c.d:1");
        assert_eq!(servers.round(), ["c.d:1", "a.b:1", "e.f:1"]);
        servers.lost("c.d:1");
        assert_eq!(servers.round(), ["a.b:1", "e.f:1", "c.d:1"]);
        let fixed = Servers::load("/nonexistent/servers.json".into(), Some("g.h:1".into()), &texts(&["a.b:1"]));
        assert_eq!(fixed.round(), ["g.h:1", "a.b:1"]);
    }

    proptest! {
        #[test]
        fn whatever_a_region_tells_is_bounded_and_no_device_is_stranded(lists in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![".{0,40}", "[a-c]{1,3}:[0-9]{1,6}"], 0..20), 0..5)) {
            let mut servers = Servers::load("/nonexistent/servers.json".into(), None, &texts(&["a.b:1"]));
            for list in lists {
                servers.learn(&list);
                let round = servers.round();
                prop_assert!(round.len() <= MAX_SERVERS + 1 && round.contains(&"a.b:1".to_owned()));
                prop_assert!(round.iter().all(|one| names::is_address(one)));
            }
        }
    }
}
