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
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use dial::DialsService;
pub(crate) use dial::{Asked, Dialling, MAX_DEVICE_NAME};
use hearth_controllers::node::Contact;
use hearth_proto::v1::{Goodbye, RegionMessage, region_message::Message};
use hearth_types::{DeviceKey, DeviceName, Revision};
use outbox::Outbox;
pub use service::DevicesService;
pub(crate) use status::{StatusJob, write_statuses};
use tokio::{
    sync::{Notify, broadcast, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::config::Timing;

/// Status reports of all devices that wait to be written; a device whose report finds no room waits.
const STATUS_QUEUE: usize = 256;
/// How long a device that was told goodbye waits before it comes back.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Devices that are told at once to come back leave so much to chance, in milliseconds, so that a thousand do not come in one moment.
const RETRY_SPREAD_MILLIS: u64 = 500;
/// Changes of sessions that a server which follows them may be behind; one that is further behind begins anew.
const CHANGES: usize = 4096;
/// How many bits of a session's number count the sessions of one term; the rest is the term.
const COUNT_BITS: u32 = 32;

/// Who asks for a session.
pub(crate) struct Caller {
    pub(crate) device: DeviceName,
    pub(crate) key: DeviceKey,
    /// Where it comes from, where that is known.
    pub(crate) from: Option<IpAddr>,
}

/// One device's session, as others see it.
pub(crate) struct Session {
    /// No other session of the region has it: a term has one leader.
    pub(crate) id: u64,
    pub(crate) device: DeviceName,
    /// Whose the device was when the session began.
    pub(crate) owner: Box<str>,
    pub(crate) key: DeviceKey,
    /// Where it comes from, where that is known: most often its home's router.
    pub(crate) from: Option<IpAddr>,
    /// Whether its agent holds leases of volumes that move: one that does not gets no pods with such.
    pub(crate) leases: bool,
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
        self.end_with(Goodbye { reason: reason.to_owned(), retry_after_millis, ..Goodbye::default() });
    }

    fn end_with(&self, goodbye: Goodbye) {
        self.outbox.close(Some(Ok(RegionMessage { message: Some(Message::Goodbye(goodbye)) })));
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

/// A device has another session now, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionChange {
    pub(crate) device: DeviceName,
    pub(crate) session: Option<u64>,
}

/// What is known of devices' sessions in one time of leading.
#[derive(Default)]
struct Table {
    /// The term for which this server leads; sessions are opened for it alone.
    term: Option<u64>,
    places: HashMap<DeviceName, Place>,
    /// Counts the sessions that were opened. Begins anywhere and goes on in the next term, since a server may lead for one term twice.
    opened: u64,
    /// When this server began to lead.
    since: Option<Instant>,
    /// The revision at which it did: everything that former leaders told is not above.
    base: Revision,
}

/// The sessions, by device. Heartbeats end here: only a change of contact becomes a write.
pub(crate) struct Sessions {
    table: Mutex<Table>,
    /// The revision of what each device was told last in this term. Bounded by the number of devices.
    told: Mutex<HashMap<DeviceName, Revision>>,
    /// Devices that have seen more of the region than it has itself.
    ahead: Mutex<BTreeSet<DeviceName>>,
    timing: Timing,
    changes: broadcast::Sender<SessionChange>,
    pub(crate) statuses: mpsc::Sender<StatusJob>,
}

impl Sessions {
    pub(crate) fn new(timing: &Timing) -> (Self, mpsc::Receiver<StatusJob>) {
        let (statuses, inbox) = mpsc::channel(STATUS_QUEUE);
        let sessions = Self {
            table: Mutex::new(Table { opened: u64::from(chance()), ..Table::default() }),
            told: Mutex::default(),
            ahead: Mutex::default(),
            timing: *timing,
            changes: broadcast::Sender::new(CHANGES),
            statuses,
        };
        (sessions, inbox)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on devices have the time of a silence to come: what an earlier leader knew of them does not count. The store is at
    /// this revision.
    pub(crate) fn start(&self, term: u64, revision: Revision) {
        let mut table = self.table();
        let opened = table.opened;
        *table = Table { term: Some(term), since: Some(Instant::now()), base: revision, opened, ..Table::default() };
        drop(table);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What is known of a device's session, and when to ask again.
    pub(crate) fn contact(&self, device: &str) -> (Contact, Option<Duration>) {
        let table = self.table();
        let silent_from = match table.places.get(&DeviceName::from(device)) {
            Some(Place::Live(_)) => return (Contact::Connected, None),
            Some(Place::Away { silent_from }) => Some(*silent_from),
            None => table.since.map(|since| since + self.timing.silence),
        };
        let left = silent_from.map(|from| from.saturating_duration_since(Instant::now()));
        match left {
            Some(left) if left.is_zero() => (Contact::Silent, None),
            left => (Contact::Lately, left),
        }
    }

    /// A device's session, if it has one.
    pub(crate) fn get(&self, device: &DeviceName) -> Option<Arc<Session>> {
        self.table().live(device)
    }

    /// How long ago this server began to lead, of a device that has not had a session since.
    fn not_since(&self, device: &DeviceName) -> Option<Duration> {
        let table = self.table();
        if table.places.contains_key(device) { None } else { table.since.map(|since| since.elapsed()) }
    }

    /// Opens a session; one that the device had before is told goodbye. `None` where this server does not lead for this term.
    fn open(
        &self,
        term: u64,
        caller: Caller,
        owner: &str,
        leases: bool,
        outbox: Outbox,
    ) -> Result<Arc<Session>, Outbox> {
        let Caller { device, key, from } = caller;
        let mut table = self.table();
        if table.term != Some(term) {
            return Err(outbox);
        }
        table.opened += 1;
        let session = Arc::new(Session {
            id: (term << COUNT_BITS) | (table.opened & u64::from(u32::MAX)),
            device: device.clone(),
            owner: owner.into(),
            key,
            from,
            leases,
            outbox,
            dirty: Notify::new(),
            copies: Notify::new(),
            end: CancellationToken::new(),
            dials: Mutex::new(Dials::default()),
        });
        let old = table.places.insert(device.clone(), Place::Live(Arc::clone(&session)));
        self.tell(device, Some(session.id));
        drop(table);
        if let Some(Place::Live(old)) = old {
            old.goodbye("the device opened a newer session");
        }
        Ok(session)
    }

    /// A session is over. `silent`: the device said nothing for too long, so that no grace is left to it.
    /// Returns whether it was the device's last.
    pub(crate) fn close(&self, session: &Session, silent: bool) -> bool {
        let mut table = self.table();
        let last = table.live(&session.device).is_some_and(|current| current.id == session.id);
        if last {
            let grace = if silent { Duration::ZERO } else { self.timing.reconnect_grace };
            table.places.insert(session.device.clone(), Place::Away { silent_from: Instant::now() + grace });
            self.tell(session.device.clone(), None);
        }
        last
    }

    /// Under the table's lock, so that changes are told in their order.
    fn tell(&self, device: DeviceName, session: Option<u64>) {
        // Whether anybody listens does not matter.
        let _ = self.changes.send(SessionChange { device, session });
    }

    /// Every session that there is, and each change from then on.
    pub(crate) fn follow(&self) -> (Vec<SessionChange>, broadcast::Receiver<SessionChange>) {
        let table = self.table();
        let live = table.places.values().filter_map(|place| match place {
            Place::Live(session) => Some(SessionChange { device: session.device.clone(), session: Some(session.id) }),
            Place::Away { .. } => None,
        });
        (live.collect(), self.changes.subscribe())
    }

    /// What a device shall have may have changed.
    pub(crate) fn dirty(&self, device: &str) {
        if let Some(session) = self.get(&DeviceName::from(device)) {
            session.dirty.notify_one();
        }
    }

    /// The copies that devices keep may be others now, of the owners that `of` picks.
    pub(crate) fn copies_changed(&self, of: impl Fn(&str) -> bool) {
        for place in self.table().places.values() {
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

    /// Ends every session; none is opened until this server leads again.
    pub(crate) fn end_all(&self, goodbye: &Goodbye) {
        let ended = {
            let mut table = self.table();
            let opened = table.opened;
            std::mem::replace(&mut *table, Table { opened, ..Table::default() })
        };
        for place in ended.places.into_values() {
            if let Place::Live(session) = place {
                session.end_with(spread(goodbye));
            }
        }
    }
}

impl Table {
    fn live(&self, device: &DeviceName) -> Option<Arc<Session>> {
        match self.places.get(device) {
            Some(Place::Live(session)) => Some(Arc::clone(session)),
            _ => None,
        }
    }
}

/// A goodbye to one of many devices: with a pause of its own.
fn spread(goodbye: &Goodbye) -> Goodbye {
    let pause = u64::from(chance()) * RETRY_SPREAD_MILLIS / u64::from(u16::MAX);
    Goodbye { retry_after_millis: goodbye.retry_after_millis + pause, ..goodbye.clone() }
}

/// Any number.
fn chance() -> u16 {
    let [low, high, ..] = uuid::Uuid::new_v4().into_bytes();
    u16::from_le_bytes([low, high])
}
