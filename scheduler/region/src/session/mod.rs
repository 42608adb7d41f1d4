//! The table of device sessions.

mod certificate;
mod copies;
mod desired;
mod dial;
mod outbox;
mod restored;
mod run;
mod service;
mod status;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub(crate) use dial::Dialling;
use hearth_controllers::node::Contact;
use hearth_proto::v1::{Goodbye, RegionMessage, region_message::Message};
use hearth_types::{DeviceKey, DeviceName, Revision};
use outbox::Outbox;
pub use service::DevicesService;
pub(crate) use status::{StatusJob, write_statuses};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::config::Timing;

/// Status reports of all devices that wait to be written; a device whose report finds no room waits.
const STATUS_QUEUE: usize = 256;
/// How long a device that was told goodbye waits before it comes back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One device's session, as others see it.
pub(crate) struct Session {
    /// No other session of this server has it.
    pub(crate) id: u64,
    pub(crate) device: DeviceName,
    /// Whose the device was when the session began.
    pub(crate) owner: Box<str>,
    pub(crate) key: DeviceKey,
    outbox: Outbox,
    /// What the device shall have may have changed.
    pub(crate) dirty: Notify,
    /// The copies that the device keeps may be others now.
    pub(crate) copies: Notify,
    /// Ends the session.
    pub(crate) end: CancellationToken,
    /// Dial notices without an answer.
    dials: Mutex<Dials>,
}

#[derive(Default)]
struct Dials {
    next: u64,
    waiting: VecDeque<(u64, oneshot::Sender<String>)>,
}

impl Session {
    /// Sends without waiting. A device that reads too slowly loses its session.
    pub(crate) fn send(&self, message: Message) -> bool {
        let sent = self.outbox.send(RegionMessage { message: Some(message) });
        if !sent && !self.end.is_cancelled() {
            tracing::info!(device = %self.device, "the device reads too slowly or is gone; ending its session");
            self.outbox.abort(tonic::Status::resource_exhausted(
                "the device reads too slowly; come back and get everything anew",
            ));
            self.end.cancel();
        }
        sent
    }

    fn goodbye(&self, reason: &str) {
        let retry_after_millis = u64::try_from(RETRY_AFTER.as_millis()).unwrap_or(u64::MAX);
        let message = Message::Goodbye(Goodbye { reason: reason.to_owned(), retry_after_millis });
        self.outbox.close(Some(Ok(RegionMessage { message: Some(message) })));
        self.end.cancel();
    }

    fn dials(&self) -> MutexGuard<'_, Dials> {
        self.dials.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a device that had a session.
enum Place {
    Live(Arc<Session>),
    /// It counts as silent from then on.
    Away {
        silent_from: Instant,
    },
}

/// The sessions, by device. Heartbeats end here: only a change of contact becomes a write.
pub(crate) struct Sessions {
    places: Mutex<HashMap<DeviceName, Place>>,
    /// When devices that had no session since the start count as silent.
    patience: Mutex<Option<Instant>>,
    /// The revision at which this server started.
    base: OnceLock<Revision>,
    /// The revision of what each device was told last by this server. Bounded by the number of devices.
    told: Mutex<HashMap<DeviceName, Revision>>,
    /// Devices that have seen more of the region than it has itself.
    ahead: Mutex<BTreeSet<DeviceName>>,
    timing: Timing,
    next: AtomicU64,
    pub(crate) statuses: mpsc::Sender<StatusJob>,
}

impl Sessions {
    pub(crate) fn new(timing: &Timing) -> (Self, mpsc::Receiver<StatusJob>) {
        let (statuses, inbox) = mpsc::channel(STATUS_QUEUE);
        let sessions = Self {
            places: Mutex::new(HashMap::new()),
            patience: Mutex::new(None),
            base: OnceLock::new(),
            told: Mutex::default(),
            ahead: Mutex::default(),
            timing: *timing,
            next: AtomicU64::new(1),
            statuses,
        };
        (sessions, inbox)
    }

    fn places(&self) -> MutexGuard<'_, HashMap<DeviceName, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on devices have the time of a silence to come back. The store is at this revision.
    pub(crate) fn start(&self, revision: Revision) {
        // Once: the loops run once.
        let _ = self.base.set(revision);
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + self.timing.silence);
    }

    /// What is known of a device's session, and when to ask again.
    pub(crate) fn contact(&self, device: &str) -> (Contact, Option<Duration>) {
        let silent_from = match self.places().get(&DeviceName::from(device)) {
            Some(Place::Live(_)) => return (Contact::Connected, None),
            Some(Place::Away { silent_from }) => Some(*silent_from),
            None => *self.patience.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let left = silent_from.map(|from| from.saturating_duration_since(Instant::now()));
        match left {
            Some(left) if left.is_zero() => (Contact::Silent, None),
            left => (Contact::Lately, left),
        }
    }

    /// A device's session, if it has one.
    pub(crate) fn get(&self, device: &DeviceName) -> Option<Arc<Session>> {
        match self.places().get(device) {
            Some(Place::Live(session)) => Some(Arc::clone(session)),
            _ => None,
        }
    }

    /// Opens a session; one that the device had before is told goodbye.
    fn open(&self, device: DeviceName, owner: &str, key: DeviceKey, outbox: Outbox) -> Arc<Session> {
        let session = Arc::new(Session {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            device: device.clone(),
            owner: owner.into(),
            key,
            outbox,
            dirty: Notify::new(),
            copies: Notify::new(),
            end: CancellationToken::new(),
            dials: Mutex::new(Dials::default()),
        });
        if let Some(Place::Live(old)) = self.places().insert(device, Place::Live(Arc::clone(&session))) {
            old.goodbye("the device opened a newer session");
        }
        session
    }

    /// A session is over. `silent`: the device said nothing for too long, so that no grace is left to it.
    /// Returns whether it was the device's last.
    pub(crate) fn close(&self, session: &Session, silent: bool) -> bool {
        let mut places = self.places();
        let last = matches!(places.get(&session.device), Some(Place::Live(current)) if current.id == session.id);
        if last {
            let grace = if silent { Duration::ZERO } else { self.timing.reconnect_grace };
            places.insert(session.device.clone(), Place::Away { silent_from: Instant::now() + grace });
        }
        last
    }

    /// What a device shall have may have changed.
    pub(crate) fn dirty(&self, device: &str) {
        if let Some(session) = self.get(&DeviceName::from(device)) {
            session.dirty.notify_one();
        }
    }

    /// The copies that devices keep may be others now, of the owners that `of` picks.
    pub(crate) fn copies_changed(&self, of: impl Fn(&str) -> bool) {
        for place in self.places().values() {
            if let Place::Live(session) = place
                && of(&session.owner)
            {
                session.copies.notify_one();
            }
        }
    }

    /// A device's keys are these now: a session by another key ends at once.
    pub(crate) fn check_key(&self, device: &str, keys: &[DeviceKey]) {
        if let Some(session) = self.get(&DeviceName::from(device))
            && !keys.contains(&session.key)
        {
            session.goodbye("this key is no longer one of the device's");
        }
    }

    /// Ends every session.
    pub(crate) fn end_all(&self, reason: &str) {
        let live: Vec<Arc<Session>> = self
            .places()
            .values()
            .filter_map(|place| if let Place::Live(session) = place { Some(Arc::clone(session)) } else { None })
            .collect();
        for session in live {
            session.goodbye(reason);
        }
    }
}
