//! Which devices answer at the public addresses that their owners let be told. Nobody's word is taken for it, the device's own neither: whoever is
//! there has to prove the device's key.
//!
//! # Guarantees
//!
//! - An address counts for a device once a TLS handshake there proved one of its keys, and no longer than the next [`limits::PROBE_FAILURES`]
//!   tries: within a minute of its last answer, the name has the gateways' addresses again.
//! - A machine that passes connections on, such as a gateway, is not the device: devices answer to [`ALPN`] at their own addresses alone.
//! - Nothing but [`hearth_types::routes::RouteLookup::externals`] says where is asked, which has addresses of the internet alone. Nothing but a
//!   handshake is sent there, and what comes back is bounded by it.
//! - At most [`limits::EXTERNAL_AT_ONCE`] are asked at once, and no address twice at a time; those that do not answer are asked ever more rarely, and leave
//!   the others room.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hearth_types::{
    DeviceKey,
    external::{ALPN, External, key_of_spki},
    routes::RouteLookup,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring::default_provider, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::{DnsError, limits};

/// Which keys were proved at which addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answering(HashSet<(IpAddr, DeviceKey)>);

impl Answering {
    /// Those of a device's addresses at which it answers, in its order.
    pub fn of(&self, external: &External) -> Vec<IpAddr> {
        let answers = |ip: &IpAddr| external.keys.iter().any(|key| self.0.contains(&(*ip, *key)));
        external.addresses.iter().copied().filter(answers).collect()
    }
}

impl Answering {
    /// How many addresses and keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody answers anywhere.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(IpAddr, DeviceKey)> for Answering {
    fn from_iter<T: IntoIterator<Item = (IpAddr, DeviceKey)>>(all: T) -> Self {
        Self(all.into_iter().collect())
    }
}

/// Where is asked, and by the name of which owner: one owner's devices may be behind one router.
type Place = (IpAddr, String);

/// Where was asked, and which key was proved there.
type Asked = (Place, Option<DeviceKey>);

/// What is known of a place.
#[derive(Clone, Copy, Debug)]
struct Known {
    key: Option<DeviceKey>,
    /// Tries without an answer since the last one with.
    failures: u32,
    due: Instant,
    asking: bool,
}

impl Known {
    /// A new one, asked at once.
    fn new(now: Instant) -> Self {
        Self { key: None, failures: 0, due: now, asking: false }
    }

    /// After a try.
    fn tried(self, key: Option<DeviceKey>, now: Instant, random: u8) -> Self {
        if key.is_some() {
            return Self { key, failures: 0, due: now + spread(limits::EXTERNAL_EVERY, random), asking: false };
        }
        let failures = self.failures.saturating_add(1);
        let key = self.key.filter(|_| failures < limits::PROBE_FAILURES);
        let (first, last) = limits::EXTERNAL_RETRY;
        let pause = first.saturating_mul(1 << (failures - 1).min(16)).min(last);
        Self { key, failures, due: now + spread(pause, random), asking: false }
    }
}

/// A pause, an eighth of it longer or shorter: so that homes that came back together are not asked together for ever.
fn spread(pause: Duration, random: u8) -> Duration {
    pause * (224 + u32::from(random % 64)) / 256
}

/// Asks at all places again and again who is there, at this port, and tells. Ends with `shutdown`, or where TLS cannot be set up.
pub async fn watch_external(
    routes: Arc<dyn RouteLookup>,
    zone: String,
    port: u16,
    told: watch::Sender<Arc<Answering>>,
    shutdown: CancellationToken,
) -> Result<(), DnsError> {
    let asker = Asker { tls: connector().map_err(DnsError::Tls)?, zone: zone.into(), port };
    shutdown.run_until_cancelled(watch(routes, asker, told)).await;
    Ok(())
}

async fn watch(routes: Arc<dyn RouteLookup>, asker: Asker, told: watch::Sender<Arc<Answering>>) {
    let mut known: HashMap<Place, Known> = HashMap::new();
    let mut asking: JoinSet<Asked> = JoinSet::new();
    let (mut seen, mut looked) = (routes.serial(), Instant::now());
    follow(&mut known, places(&routes.externals()));
    loop {
        if routes.serial() != seen && looked + limits::EXTERNAL_SETTLE <= Instant::now() {
            (seen, looked) = (routes.serial(), Instant::now());
            follow(&mut known, places(&routes.externals()));
        }
        ask(&mut known, &mut asking, &asker);
        let answering = known.iter().filter_map(|((ip, _), one)| one.key.map(|key| (*ip, key))).collect();
        told.send_if_modified(|before| {
            let other = **before != answering;
            if other {
                *before = Arc::new(answering);
            }
            other
        });
        let next = known.values().filter(|one| !one.asking).map(|one| one.due).min();
        let changed = async {
            routes.changed(seen).await;
            sleep_until(looked + limits::EXTERNAL_SETTLE).await;
        };
        tokio::select! {
            () = changed => {}
            Some(asked) = asking.join_next(), if !asking.is_empty() => take(&mut known, asked),
            () = sleep_until(next.unwrap_or(looked)), if next.is_some() => {}
        }
        // What comes soon after is taken together with it.
        sleep(limits::EXTERNAL_TURN).await;
        while let Some(asked) = asking.try_join_next() {
            take(&mut known, asked);
        }
    }
}

/// What a try found; of one that broke nothing is known but that.
fn take(known: &mut HashMap<Place, Known>, asked: Result<Asked, JoinError>) {
    let Ok((place, key)) = asked else { return };
    if let Some(one) = known.get_mut(&place) {
        *one = one.tried(key, Instant::now(), random());
    }
}

/// Those that are there now, and no others; what is known of them stays.
fn follow(known: &mut HashMap<Place, Known>, places: HashSet<Place>) {
    known.retain(|place, _| places.contains(place));
    let now = Instant::now();
    for place in places {
        known.entry(place).or_insert_with(|| Known::new(now));
    }
}

fn places(externals: &[Arc<External>]) -> HashSet<Place> {
    let all = externals.iter().flat_map(|one| one.addresses.iter().map(|ip| (*ip, one.owner.clone())));
    all.take(limits::EXTERNAL_PLACES).collect()
}

/// Asks those that are due.
fn ask(known: &mut HashMap<Place, Known>, asking: &mut JoinSet<Asked>, asker: &Asker) {
    for place in choose(known, Instant::now()) {
        let asker = asker.clone();
        asking.spawn(async move {
            let key = timeout(limits::EXTERNAL_PATIENCE, asker.who(&place)).await.ok().flatten();
            (place, key)
        });
    }
}

/// Those that are to be asked now, the longest waiting first: while there is room, of which those that did not answer leave half to the others; and no
/// address twice at a time, however many owners say that it is theirs.
fn choose(known: &mut HashMap<Place, Known>, now: Instant) -> Vec<Place> {
    let mut busy: HashSet<IpAddr> = known.iter().filter(|(_, one)| one.asking).map(|((ip, _), _)| *ip).collect();
    let mut due: Vec<(&Place, &mut Known)> =
        known.iter_mut().filter(|(_, one)| !one.asking && one.due <= now).collect();
    due.sort_by_key(|(_, one)| one.due);
    let mut chosen = Vec::new();
    for (place, one) in due {
        let most = if one.failures == 0 { limits::EXTERNAL_AT_ONCE } else { limits::EXTERNAL_AT_ONCE / 2 };
        if busy.len() < most && busy.insert(place.0) {
            one.asking = true;
            chosen.push(place.clone());
        }
    }
    chosen
}

fn random() -> u8 {
    let mut byte = [0];
    // Without randomness all are asked a little early.
    let _ = SystemRandom::new().fill(&mut byte);
    byte[0]
}

#[derive(Clone)]
struct Asker {
    tls: TlsConnector,
    zone: Arc<str>,
    port: u16,
}

impl Asker {
    /// The key of who is at a place, proved by it just now.
    async fn who(&self, (ip, owner): &Place) -> Option<DeviceKey> {
        let name = ServerName::try_from(format!("{owner}.{}", self.zone)).ok()?;
        let stream = TcpStream::connect(SocketAddr::new(*ip, self.port)).await.ok()?;
        let stream = self.tls.connect(name, stream).await.ok()?;
        let (_, tls) = stream.get_ref();
        let shown = tls.peer_certificates().and_then(<[_]>::first).filter(|_| tls.alpn_protocol() == Some(ALPN))?;
        key_of_spki(shown)
    }
}

fn connector() -> Result<TlsConnector, Error> {
    let provider = Arc::new(default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyDevice(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes every Ed25519 key that is proved: whose it is, is looked at afterwards.
#[derive(Debug)]
struct AnyDevice(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyDevice {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match key_of_spki(key) {
            Some(_) => Ok(ServerCertVerified::assertion()),
            None => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let (spki, algorithms) =
            (SubjectPublicKeyInfoDer::from(key.as_ref()), &self.0.signature_verification_algorithms);
        verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: DeviceKey = DeviceKey([7; 32]);

    #[test]
    fn a_device_counts_until_two_tries_in_a_row_had_no_answer_and_is_then_asked_ever_more_rarely() {
        let now = Instant::now();
        let after = |one: Known| one.due.duration_since(now);
        let middle = 32;
        let there = Known::new(now).tried(Some(KEY), now, middle);
        assert_eq!((there.key, after(there)), (Some(KEY), limits::EXTERNAL_EVERY));
        let once = there.tried(None, now, middle);
        assert_eq!((once.key, after(once)), (Some(KEY), limits::EXTERNAL_RETRY.0), "one lost packet is no failure");
        assert_eq!(once.tried(Some(KEY), now, middle).failures, 0);
        let other = DeviceKey([8; 32]);
        assert_eq!(once.tried(Some(other), now, middle).key, Some(other), "who is there now is who counts");
        let mut gone = once.tried(None, now, middle);
        assert_eq!(gone.key, None);
        let mut before = after(gone);
        for _ in 0..40 {
            gone = gone.tried(None, now, middle);
            assert!(after(gone) >= before && after(gone) <= limits::EXTERNAL_RETRY.1 && gone.key.is_none());
            before = after(gone);
        }
        assert_eq!(before, limits::EXTERNAL_RETRY.1);
        let worst = limits::EXTERNAL_EVERY * 9 / 8 + limits::EXTERNAL_PATIENCE * 2 + limits::EXTERNAL_RETRY.0 * 9 / 8;
        assert!(worst < Duration::from_mins(1), "what the documentation says: {worst:?}");
    }

    #[test]
    fn an_address_is_that_of_the_device_whose_key_was_proved_there() {
        let ip = |last: u8| IpAddr::from([25, 0, 0, last]);
        let external = External {
            device: "nas".into(),
            owner: "alice".into(),
            keys: vec![DeviceKey([1; 32]), KEY],
            addresses: vec![ip(1), ip(2), ip(3)],
        };
        let answering: Answering = [(ip(3), KEY), (ip(1), KEY), (ip(2), DeviceKey([9; 32]))].into_iter().collect();
        assert_eq!(answering.of(&external), [ip(1), ip(3)]);
        let rotated = External { keys: vec![DeviceKey([1; 32])], ..external };
        assert!(answering.of(&rotated).is_empty(), "a key that was removed proves nothing");
    }

    #[test]
    fn those_that_never_answer_leave_room_and_no_address_is_asked_twice_at_a_time() {
        let now = Instant::now();
        let place = |number: u32, owner: &str| (IpAddr::from((25 << 24 | number).to_be_bytes()), owner.to_owned());
        let most = limits::EXTERNAL_AT_ONCE as u32;
        let dead = Known { failures: 9, ..Known::new(now) };
        let mut known: HashMap<Place, Known> = (0..2 * most).map(|number| (place(number, "dead"), dead)).collect();
        let chosen = choose(&mut known, now);
        assert_eq!(chosen.len() as u32, most / 2);
        assert!(choose(&mut known, now).is_empty(), "there is no room");
        // As many others find their room.
        known.extend((0..2 * most).map(|number| (place(3 * most + number, "alive"), Known::new(now))));
        assert_eq!(choose(&mut known, now).len() as u32, most / 2);

        let later = now + Duration::from_secs(1);
        let mut known: HashMap<Place, Known> = ["a", "b", "c"].map(|owner| (place(1, owner), Known::new(now))).into();
        known.insert(place(2, "d"), Known::new(later));
        let chosen = choose(&mut known, now);
        assert_eq!((chosen.len(), chosen[0].0), (1, place(1, "").0));
        let next = choose(&mut known, later);
        assert_eq!(next, [place(2, "d")], "the first address is being asked");
        for one in known.values_mut() {
            *one = Known { due: later + Duration::from_secs(1), ..one.tried(None, now, 0) };
        }
        assert!(choose(&mut known, later).is_empty(), "nothing is due");
    }

    #[test]
    fn what_is_known_stays_with_its_place_and_goes_with_it() {
        let place = |last: u8| (IpAddr::from([25, 0, 0, last]), "alice".to_owned());
        let now = Instant::now();
        let mut known =
            HashMap::from([(place(1), Known::new(now).tried(Some(KEY), now, 0)), (place(2), Known::new(now))]);
        follow(&mut known, HashSet::from([place(1), place(3)]));
        assert_eq!(known.len(), 2);
        assert_eq!((known[&place(1)].key, known[&place(3)].key), (Some(KEY), None));
    }
}
