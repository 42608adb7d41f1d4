//! What this device does for the day on which its region has lost everything: it pins the region's recovery key, keeps signed copies of its owner's
//! objects, believes a region that comes back by that key, and hands the copies in. Why that is sound is in
//! [`hearth_types::recovery`].
//!
//! Two files, each replaced whole: `recovery.json` is what is believed, and `copies.json` is what is kept. Nothing is written but when one of them
//! changes, which is when a person or a rollout changes something of the owner's.

mod copies;
mod hand_in;
mod trust;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_client::device::{self, Region};
use hearth_proto::v1;
use hearth_types::{Incarnation, Reason, Status, recovery::Distrust};
use tokio::{
    task::JoinSet,
    time::{Duration, sleep, timeout},
};
use tonic::transport::Channel;

use self::{copies::Kept, trust::Pinned};
use crate::{Paths, files::FileError, shared::blocking};

/// How long a server may take to say what the region is since it was recovered.
const LOOK: Duration = Duration::from_secs(10);
/// How long handing in may take, of a few megabytes over a slow line.
const HAND_IN: Duration = Duration::from_mins(2);
/// The pause in a session before copies are handed in again that the region could not take: so that thousands of devices get their turn.
const AGAIN: Duration = Duration::from_secs(15);

/// Why a word of a region is not believed, or not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("what the region says of its recovery key is not believed: {0}")]
    Distrust(#[from] Distrust),
    #[error("the copies that the region sends are not kept: {0}")]
    Copies(String),
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Debug, Default)]
struct State {
    pinned: Option<Pinned>,
    kept: Option<Kept>,
    /// The copies were handed in to the region as it is now.
    handed_in: bool,
}

/// A handle on what is believed and kept. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Recovery {
    paths: Paths,
    zone: Arc<str>,
    state: Arc<Mutex<State>>,
}

impl Recovery {
    /// Reads what is on the disk. What cannot be read is told and left alone. Blocks.
    pub(crate) fn open(paths: &Paths, zone: &str) -> Self {
        let told = |error: FileError| {
            tracing::error!(
                error = crate::files::chain(&error),
                "what this device keeps for a recovery of its region cannot be read"
            );
        };
        let state = State {
            pinned: Pinned::load(&paths.recovery()).unwrap_or_else(|error| {
                told(error);
                None
            }),
            kept: Kept::load(&paths.copies()).unwrap_or_else(|error| {
                told(error);
                None
            }),
            handed_in: false,
        };
        Self { paths: paths.clone(), zone: zone.into(), state: Arc::new(Mutex::new(state)) }
    }

    /// Begins anew for a device that joins: what its region says of its recovery key is the first word. Blocks.
    pub(crate) fn joined(paths: &Paths, zone: &str, trust_json: &[u8]) -> Result<(), Refusal> {
        crate::files::remove(&paths.recovery())?;
        let recovery = Self::open(paths, zone);
        if trust_json.is_empty() { Ok(()) } else { recovery.believe(trust_json) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The region as it is since it was recovered.
    pub(crate) fn of(&self, mut region: Region) -> Region {
        if let Some(recovered) = self.state().pinned.as_ref().and_then(|pinned| pinned.recovered.as_ref()) {
            region.ca_pem = recovered.ca_pem.clone().into_bytes();
        }
        region
    }

    /// The identity of the region's data since it was recovered.
    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        let state = self.state();
        Some(state.pinned.as_ref()?.recovered.as_ref()?.incarnation.clone())
    }

    /// What is kept, for the region to tell whether it is what it would send; empty where nothing is.
    pub(crate) fn content(&self) -> Vec<u8> {
        self.state().kept.as_ref().map(|kept| kept.manifest().content().0.to_vec()).unwrap_or_default()
    }

    /// The region says this of its recovery key. The first one is pinned.
    pub(crate) async fn told(&self, trust_json: bytes::Bytes) -> Result<(), Refusal> {
        if trust_json.is_empty() {
            return Ok(());
        }
        let this = self.clone();
        blocking(move || this.believe(&trust_json)).await
    }

    fn believe(&self, trust_json: &[u8]) -> Result<(), Refusal> {
        let trust = hearth_types::recovery::Trust::from_json(trust_json)?;
        let mut state = self.state();
        if state.pinned.as_ref().is_none_or(|pinned| pinned.trust != trust) {
            let pinned = Pinned::follow(state.pinned.as_ref(), trust.clone(), &self.zone)?;
            pinned.write(&self.paths.recovery())?;
            tracing::warn!(key = %trust.key, "pinned the region's recovery key");
            state.pinned = Some(pinned);
        }
        // The copies stay those of the key that signed them.
        if let Some(kept) = &mut state.kept
            && kept.vouch(&trust)
        {
            kept.write(&self.paths.copies())?;
        }
        Ok(())
    }

    /// Takes the copies that the region sends. Those of a region that is lost are kept until they were handed in.
    pub(crate) async fn take(&self, copies: v1::Copies) -> Result<(), Refusal> {
        let this = self.clone();
        blocking(move || {
            let mut state = this.state();
            let refused = |why: &str| Refusal::Copies(why.to_owned());
            let pinned = state.pinned.as_ref().ok_or_else(|| refused("it has no recovery key"))?;
            if state.owes().is_some() {
                return Err(refused("those of the lost region are not handed in yet"));
            }
            let kept = Kept::next(state.kept.as_ref(), &pinned.trust, &copies).map_err(Refusal::Copies)?;
            kept.write(&this.paths.copies())?;
            state.kept = Some(kept);
            Ok(())
        })
        .await
    }

    /// The server of this region at its address is not one that this device trusts: asks it whether the region was recovered. `true`: it was, and is believed
    /// from now on.
    pub(crate) async fn look(&self, region: &Region) -> bool {
        if self.state().pinned.is_none() {
            return false;
        }
        let answer = timeout(LOOK, device::statement(region)).await;
        let answer = match answer {
            Ok(Ok(answer)) if !answer.statement_json.is_empty() => answer,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the server does not say whether the region was recovered");
                return false;
            }
            Ok(Ok(_)) | Err(_) => return false,
        };
        let this = self.clone();
        let believed = blocking(move || {
            let mut state = this.state();
            let Some(pinned) = &state.pinned else { return Ok(None) };
            let pinned = pinned.recovered(&answer)?;
            pinned.write(&this.paths.recovery())?;
            let generation = pinned.generation();
            (state.pinned, state.handed_in) = (Some(pinned), false);
            Ok::<_, Refusal>(Some(generation))
        });
        match believed.await {
            Ok(Some(generation)) => {
                tracing::warn!(
                    generation,
                    "the region was recovered, by the recovery key that this device pinned: it is followed from now on"
                );
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::error!(
                    error = crate::files::chain(&error),
                    "a server says that the region was recovered, and is not believed"
                );
                false
            }
        }
    }

    /// Hands in again what is still to be handed in, every now and then, over a channel to the region as it is now. Nothing where there is nothing.
    pub(crate) fn hand_in_later(&self, channel: Channel) -> JoinSet<()> {
        let mut later = JoinSet::new();
        if self.state().owes().is_some() {
            let this = self.clone();
            later.spawn(async move {
                while this.state().owes().is_some() {
                    sleep(AGAIN).await;
                    let _ = this.hand_in(channel.clone()).await;
                }
            });
        }
        later
    }

    /// Hands in what is kept of a region that was lost, if there is anything, over a channel to the region as it is now. A failure is told and
    /// to be tried again: that server may not lead, and the one that leads refuses where many come at once. Returns the address of the one that
    /// leads, where that is another.
    pub(crate) async fn hand_in(&self, channel: Channel) -> Option<String> {
        let messages = self.state().owes()?;
        let answer = timeout(HAND_IN, device::hand_in(channel, tokio_stream::iter(messages))).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::new(Reason::Timeout, "the region takes too long")));
        let definite = match &answer {
            Ok(elsewhere) if !elsewhere.leader.is_empty() => {
                tracing::info!(
                    leader = elsewhere.leader,
                    "the copies of the owner's objects are for the server that leads"
                );
                return Some(elsewhere.leader.clone());
            }
            Ok(done) => {
                tracing::warn!(
                    restored = done.restored,
                    known = done.known,
                    refused = done.refused.len(),
                    "handed in the copies of the owner's objects"
                );
                for one in &done.refused {
                    tracing::info!(object = one.object, why = one.why, "a copy was not taken");
                }
                true
            }
            Err(error) if error.reason == Reason::ServiceUnavailable => {
                tracing::info!(%error, "the copies of the owner's objects are not handed in yet");
                false
            }
            Err(error) => {
                tracing::error!(%error, "the region does not take the copies of the owner's objects");
                matches!(error.reason, Reason::Forbidden | Reason::BadRequest)
            }
        };
        if !definite {
            return None;
        }
        let this = self.clone();
        blocking(move || {
            let mut state = this.state();
            if answer.is_err() {
                // Nobody else may have them: for a person to look at.
                let aside = this.paths.copies_refused();
                match std::fs::rename(this.paths.copies(), &aside) {
                    Ok(()) => tracing::error!(?aside, "the copies that the region refuses are kept there"),
                    Err(error) => tracing::error!(%error, ?aside, "cannot move the copies that the region refuses"),
                }
                state.kept = None;
            }
            state.handed_in = true;
        })
        .await;
        None
    }
}

impl State {
    /// What is to be handed in.
    fn owes(&self) -> Option<Vec<v1::HandInMessage>> {
        let generation = self.pinned.as_ref()?.recovered.as_ref()?.generation;
        let kept = self.kept.as_ref().filter(|kept| !self.handed_in && kept.manifest().generation < generation)?;
        Some(hand_in::messages(kept))
    }
}
