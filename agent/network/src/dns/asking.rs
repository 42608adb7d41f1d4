//! Who may ask the relay for names of the internet.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use crate::names::FIRST_POD_INDEX;

/// The pods that may, by number; and the host itself. Whoever is not known may not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asking(Arc<RwLock<HashSet<u16>>>);

impl Asking {
    pub(crate) fn new(pods: impl IntoIterator<Item = u16>) -> Self {
        Self(Arc::new(RwLock::new(pods.into_iter().collect())))
    }

    pub(crate) fn set(&self, pod: u16, internet: bool) {
        let mut pods = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if internet {
            pods.insert(pod);
        } else {
            pods.remove(&pod);
        }
    }

    pub(crate) fn may(&self, client: u16) -> bool {
        client < FIRST_POD_INDEX || self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&client)
    }
}
