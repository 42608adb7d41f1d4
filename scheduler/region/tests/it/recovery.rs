//! Copies that devices keep, and what a recovered region takes of what they hand in: and of a device that lies.

use hearth_proto::v1::{
    Copies, FinishRequest, HandInBegin, HandInBodies, HandInMessage, HandInResponse, hand_in_message::Message,
    recovery_client::RecoveryClient, region_message::Message as In,
};
use hearth_region::Timing;
use hearth_types::{
    DeviceKey, GroupKind, Object, Revision, Timestamp,
    recovery::{
        Digest, Entry, MAX_COPIES_BYTES, Manifest, PublicKey, Record, RecoveryKey, Signature, SigningKey, Statement,
        Trust, essence,
    },
};
use serde_json::{Value, json};

use crate::{
    group::three,
    support::{FakeDevice, PATIENCE, Rig, SIGNING_SEED, ZONE, hello},
};

fn operator() -> RecoveryKey {
    RecoveryKey { key: SigningKey::from_seed(&[1; 32]), rotations: Vec::new() }
}

/// The key of the region that is lost.
fn lost() -> SigningKey {
    SigningKey::from_seed(&[2; 32])
}

fn own_trust() -> Trust {
    operator().trust("test", ZONE, SigningKey::from_seed(&SIGNING_SEED).public())
}

fn lost_trust() -> Trust {
    operator().trust("test", ZONE, lost().public())
}

const GENERATION: u64 = 5;
const NAS: DeviceKey = DeviceKey([11; 32]);
const ATTIC: DeviceKey = DeviceKey([12; 32]);
const FOREIGN: DeviceKey = DeviceKey([13; 32]);

async fn set_record(rig: &Rig, recovered: bool) {
    let statement =
        Statement::new(&operator().key, ("test", ZONE), GENERATION, "test".into(), Digest::of(b""), Timestamp(0));
    let recovered = recovered.then(|| (statement, "PEM".to_owned()));
    let record = Record { trust: own_trust(), recovered, accept_until: Timestamp(i64::MAX) };
    rig.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}})).await;
    rig.create(record.write(None)).await;
    // Beyond what the lost region had.
    for number in 0..100 {
        rig.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("filler-{number}"), "namespace": "kube-system"}}))
            .await;
    }
}

async fn recovered() -> Rig {
    let rig = Rig::start().await;
    set_record(&rig, true).await;
    rig.until(GroupKind::CONFIG_MAP, "kube-system", "filler-99", "there", |_| true).await;
    rig
}

fn meta(name: &str, namespace: &str) -> Value {
    let mut meta =
        json!({"name": name, "uid": format!("u-{name}-{namespace}"), "creationTimestamp": "2026-01-01T00:00:00Z"});
    if !namespace.is_empty() {
        meta["namespace"] = json!(namespace);
    }
    meta
}

fn device(name: &str, owner: &str, key: DeviceKey) -> Value {
    json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device", "metadata": meta(name, ""),
        "spec": {"owner": owner, "keys": [key.to_string()]}})
}

fn secret(name: &str, namespace: &str, word: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta(name, namespace), "type": "Opaque", "data": {"k": word}})
}

fn claim() -> Value {
    let mut meta = meta("data", "alice");
    meta["annotations"] = json!({"hearth.dev/device": "nas"});
    meta["finalizers"] = json!(["hearth.dev/volume"]);
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta,
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("web", "alice"),
        "spec": {"nodeName": "nas", "containers": [{"name": "web", "image": "x"}]}})
}

fn household() -> Vec<(u64, Value)> {
    vec![
        (1, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta("alice", ""), "spec": {}})),
        (2, device("nas", "alice", NAS)),
        (3, device("attic", "alice", ATTIC)),
        (4, secret("word", "alice", "b25l")),
        (5, claim()),
        (6, pod()),
    ]
}

/// A list of copies with its objects, as the lost region signed it.
#[derive(Clone)]
struct Pages {
    trust: Trust,
    manifest: Manifest,
    bodies: Vec<Vec<u8>>,
}

fn pages(upto: u64, objects: &[(u64, Value)]) -> Pages {
    signed(upto, objects, &lost())
}

fn signed(upto: u64, objects: &[(u64, Value)], by: &SigningKey) -> Pages {
    let mut bodies = Vec::new();
    let mut entries = Vec::new();
    for (revision, value) in objects {
        let object = Object::from_value(value.clone()).unwrap();
        let body = essence(&object);
        entries.push(Entry {
            key: object.key().clone(),
            uid: object.uid().clone(),
            revision: Revision(*revision),
            sha256: Digest::of(&body),
        });
        bodies.push(body);
    }
    let kinds =
        ["Namespace", "Device.hearth.dev", "Secret", "PersistentVolumeClaim", "Pod", "ConfigMap", "Deployment.apps"];
    let manifest = Manifest {
        region: "test".into(),
        zone: ZONE.into(),
        incarnation: "lost".into(),
        generation: 0,
        owner: "alice".into(),
        upto: kinds.map(|kind| (kind.to_owned(), Revision(upto))).into(),
        entries,
        by: PublicKey([0; 32]),
        signature: Signature([0; 64]),
    };
    Pages { trust: lost_trust(), manifest: manifest.signed(by), bodies }
}

impl Pages {
    /// The same with another list, signed again.
    fn listing(mut self, change: impl Fn(&mut Manifest)) -> Self {
        change(&mut self.manifest);
        self.manifest = self.manifest.signed(&lost());
        self
    }

    fn messages(&self) -> Vec<Message> {
        let begin =
            HandInBegin { trust_json: self.trust.to_json().into(), manifest_json: self.manifest.to_json().into() };
        let bodies = self.bodies.iter().map(|body| body.clone().into()).collect();
        vec![Message::Begin(begin), Message::Bodies(HandInBodies { bodies })]
    }

    async fn hand_in(&self, rig: &Rig, key: DeviceKey) -> Result<HandInResponse, tonic::Status> {
        send(rig, Some(key), self.messages()).await
    }
}

async fn send(rig: &Rig, key: Option<DeviceKey>, messages: Vec<Message>) -> Result<HandInResponse, tonic::Status> {
    let mut client = RecoveryClient::connect(format!("http://{}", rig.address)).await.unwrap();
    let messages: Vec<_> = messages.into_iter().map(|message| HandInMessage { message: Some(message) }).collect();
    let mut request = tonic::Request::new(tokio_stream::iter(messages));
    if let Some(key) = key {
        request.metadata_mut().insert("key", key.to_string().parse().unwrap());
    }
    client.hand_in(request).await.map(tonic::Response::into_inner)
}

fn refusals(response: &HandInResponse) -> Vec<String> {
    response.refused.iter().map(|one| one.object.clone()).collect()
}

async fn word(rig: &Rig) -> Option<Value> {
    rig.get(GroupKind::SECRET, "alice", "word").await.map(|secret| secret["data"]["k"].clone())
}

#[tokio::test]
async fn what_a_device_hands_in_is_there_again_as_it_was_and_once() {
    let rig = recovered().await;
    let pages = pages(9, &household());
    let done = pages.hand_in(&rig, NAS).await.expect("taken");
    assert_eq!((done.restored, done.known, done.refused.len()), (6, 0, 0), "{done:?}");
    for (_, value) in household() {
        let object = Object::from_value(value).unwrap();
        let stored = rig.read(object.key()).await.expect("there");
        assert_eq!(stored.uid(), object.uid());
        assert!(stored.revision() > Revision(100));
    }
    let claim = rig.get(GroupKind::PERSISTENT_VOLUME_CLAIM, "alice", "data").await.unwrap();
    assert_eq!(claim["metadata"]["annotations"]["hearth.dev/device"], "nas");
    assert_eq!(rig.get(GroupKind::POD, "alice", "web").await.unwrap()["spec"]["nodeName"], "nas");
    // The device is known by its key, and has its pod again.
    let mut nas = FakeDevice::connect(rig.address, "nas", NAS).await;
    assert_eq!(nas.pod().await["metadata"]["uid"], "u-web-alice");
    let again = pages.hand_in(&rig, ATTIC).await.expect("taken");
    assert_eq!((again.restored, again.known), (0, 6), "{again:?}");
    // What a person deletes now does not come back.
    rig.delete(GroupKind::SECRET, "alice", "word").await;
    let again = pages.hand_in(&rig, NAS).await.expect("taken");
    assert_eq!((again.restored, word(&rig).await), (0, None));
}

#[tokio::test]
async fn in_whatever_order_devices_come_the_newest_prevails_and_what_was_deleted_stays_deleted() {
    let mut later = household();
    later[3] = (12, secret("word", "alice", "bmV3"));
    later.push((13, secret("late", "alice", "bmV3")));
    let mut before = household();
    before.push((4, secret("deleted", "alice", "b25l")));
    let (before, later) = (pages(9, &before), pages(20, &later));
    for newest_first in [true, false] {
        let rig = recovered().await;
        let order = if newest_first { [(&later, NAS), (&before, ATTIC)] } else { [(&before, ATTIC), (&later, NAS)] };
        for (pages, key) in order {
            let done = pages.hand_in(&rig, key).await.expect("taken");
            let expected: &[&str] =
                if newest_first && key == ATTIC { &["Secret/alice/deleted", "Secret/alice/word"] } else { &[] };
            assert_eq!(refusals(&done), expected, "newest first: {newest_first}");
        }
        assert_eq!(word(&rig).await, Some(json!("bmV3")), "newest first: {newest_first}");
        assert!(rig.get(GroupKind::SECRET, "alice", "deleted").await.is_none(), "newest first: {newest_first}");
        assert!(rig.get(GroupKind::SECRET, "alice", "late").await.is_some());
    }
}

#[tokio::test]
async fn what_runs_on_a_device_that_has_not_come_back_yet_is_kept() {
    let rig = recovered().await;
    let mut with = household();
    let mut guest = pod();
    guest["metadata"] = meta("guest", "alice");
    guest["spec"]["nodeName"] = json!("neighbours");
    with.push((7, guest.clone()));
    pages(9, &with).hand_in(&rig, NAS).await.expect("taken");
    // Its controller has looked at the pod: it looks at those in the order in which they came, and this one comes later.
    rig.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "orphan", "namespace": "alice"},
        "spec": {"containers": [{"name": "web", "image": "x"}]}}))
        .await;
    let scheduled = |pod: &Value| pod["status"]["conditions"].as_array().is_some_and(|all| !all.is_empty());
    rig.until(GroupKind::POD, "alice", "orphan", "looked at", scheduled).await;
    let kept = rig.get(GroupKind::POD, "alice", "guest").await.expect("kept");
    assert!(kept["metadata"].get("deletionTimestamp").is_none(), "{kept}");
}

#[tokio::test]
async fn what_may_still_be_handed_in_is_not_made_anew() {
    let rig = recovered().await;
    let template =
        json!({"metadata": {"labels": {"app": "site"}}, "spec": {"containers": [{"name": "web", "image": "x"}]}});
    let spec = json!({"replicas": 1, "selector": {"matchLabels": {"app": "site"}}, "template": template});
    let mut older = household();
    older.push((
        7,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("site", "alice"), "spec": spec}),
    ));
    let done = pages(9, &older).hand_in(&rig, ATTIC).await.expect("taken");
    assert_eq!(refusals(&done), [""; 0]);
    let sets = |name: &'static str| {
        move |sets: &[Object]| {
            let of_it = |set: &&Object| set.value()["metadata"]["ownerReferences"][0]["name"] == name;
            sets.iter().filter(of_it).count()
        }
    };
    // The newer one's controller looks after the older one's, and has what it asks for.
    rig.create(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "newer", "namespace": "alice"}, "spec": spec}))
        .await;
    rig.until_list(GroupKind::REPLICA_SET, "the newer one's", |all| sets("newer")(all) == 1).await;
    let _attic = FakeDevice::connect(rig.address, "attic", ATTIC).await;
    rig.until(GroupKind::NODE, "", "attic", "there", |_| true).await;
    assert_eq!(sets("site")(&rig.list(GroupKind::REPLICA_SET).await), 0, "the other device may have it");
    let _nas = FakeDevice::connect(rig.address, "nas", NAS).await;
    rig.until_list(GroupKind::REPLICA_SET, "nobody had it", |all| sets("site")(all) == 1).await;
}

#[tokio::test]
async fn what_somebody_changed_or_made_since_stays() {
    let rig = recovered().await;
    rig.create(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "word", "namespace": "alice"}, "data": {"k": "aGVyZQ=="}}))
        .await;
    let mut with = household();
    with.push((7, secret("edited", "alice", "b25l")));
    with.push((7, secret("dropped", "alice", "b25l")));
    let done = pages(9, &with).hand_in(&rig, NAS).await.expect("taken");
    assert_eq!(refusals(&done), ["Secret/alice/word"]);
    for name in ["edited", "dropped"] {
        rig.edit(GroupKind::SECRET, "alice", name, |secret| secret["data"]["k"] = json!("aGVyZQ==")).await;
    }
    let mut later = household();
    later.push((12, secret("edited", "alice", "bmV3")));
    let done = pages(20, &later).hand_in(&rig, ATTIC).await.expect("taken");
    assert_eq!(refusals(&done), ["Secret/alice/edited"]);
    assert_eq!(word(&rig).await, Some(json!("aGVyZQ==")));
    for name in ["edited", "dropped"] {
        assert_eq!(rig.get(GroupKind::SECRET, "alice", name).await.unwrap()["data"]["k"], "aGVyZQ==", "{name}");
    }
}

#[tokio::test]
async fn a_device_that_lies_is_refused_and_changes_nothing() {
    let rig = recovered().await;
    let sound = pages(9, &household());
    let stranger = RecoveryKey { key: SigningKey::from_seed(&[9; 32]), rotations: Vec::new() };
    let forger = SigningKey::from_seed(&[8; 32]);
    let mut forged_key = sound.clone();
    forged_key.trust.endorsement.signing_key = forger.public();
    let mut changed = sound.clone();
    changed.manifest.entries[0].revision = Revision(99);
    let mut rotated = sound.clone();
    rotated.trust = stranger.trust("test", ZONE, lost().public());
    let mut elsewhere = sound.clone();
    elsewhere.trust = operator().trust("office", ZONE, lost().public());
    let lies: [(&str, Pages, DeviceKey, &str); 10] = [
        ("a list that nobody signed", signed(9, &household(), &forger), NAS, "not signed by the key"),
        ("a list that was changed", changed, NAS, "not signed by the key"),
        ("a signing key of its own", forged_key, NAS, "endorsement is not signed"),
        ("a recovery key of its own", rotated, NAS, "vouched for by the recovery key"),
        ("another region's word", elsewhere, NAS, "are of the region office"),
        (
            "another region's list",
            sound.clone().listing(|list| list.region = "office".into()),
            NAS,
            "of the region office",
        ),
        ("a list of now", sound.clone().listing(|list| list.generation = GENERATION), NAS, "of generation 5"),
        ("another owner's copies", sound.clone(), FOREIGN, "of no Device of theirs"),
        ("a list without its device", pages(9, &household()[..2]), ATTIC, "of no Device of theirs"),
        (
            "objects under another owner's name",
            sound.clone().listing(|list| list.owner = "bob".into()),
            NAS,
            "of no Device of theirs",
        ),
    ];
    for (what, pages, key, why) in lies {
        let status = pages.hand_in(&rig, key).await.expect_err(what);
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{what}: {status:?}");
        assert!(status.message().contains(why), "{what}: {status:?}");
    }
    assert!(rig.list(GroupKind::DEVICE).await.is_empty() && rig.list(GroupKind::SECRET).await.is_empty());
    // Objects that it made itself, among those that are signed.
    let mut among = sound.clone();
    among.bodies[3] = essence(&Object::from_value(secret("word", "alice", "Zm9yZ2Vk")).unwrap());
    among.bodies.push(b"nonsense".to_vec());
    among.bodies.push(essence(&Object::from_value(secret("word", "bob", "Zm9yZ2Vk")).unwrap()));
    let done = among.hand_in(&rig, NAS).await.expect("the rest is taken");
    assert_eq!(done.restored, 5);
    assert_eq!(refusals(&done), ["Secret/alice/word", "?", "Secret/bob/word"]);
    assert_eq!(word(&rig).await, None);
    // An event tells of it.
    rig.until_list(GroupKind::EVENT, "an event on the Device", |events| {
        events
            .iter()
            .map(Object::value)
            .any(|event| event["reason"] == "HandInRefused" && event["involvedObject"]["name"] == "nas")
    })
    .await;
    // What it left out, another has.
    assert_eq!(sound.hand_in(&rig, ATTIC).await.expect("taken").restored, 1);
    assert_eq!(word(&rig).await, Some(json!("b25l")));
}

#[tokio::test]
async fn a_signed_list_brings_nothing_that_is_not_its_owners() {
    let rig = recovered().await;
    let mut odd = household();
    odd.push((7, secret("word", "bob", "b25l")));
    odd.push((7, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta("bob", ""), "spec": {}})));
    odd.push((7, device("bobs", "bob", FOREIGN)));
    odd.push((7, json!({"apiVersion": "v1", "kind": "Node", "metadata": meta("elsewhere", ""), "spec": {}})));
    odd.push((7, json!({"apiVersion": "v1", "kind": "Event", "metadata": meta("told", "alice")})));
    let done = pages(9, &odd).hand_in(&rig, NAS).await.expect("the rest is taken");
    let mut refused = refusals(&done);
    refused.sort();
    let foreign = ["Device.hearth.dev/bobs", "Event/alice/told", "Namespace/bob", "Node/elsewhere", "Secret/bob/word"];
    assert_eq!((refused, done.restored), (foreign.map(str::to_owned).to_vec(), 6));
}

#[tokio::test]
async fn a_device_that_was_removed_is_no_longer_believed_once_that_is_known() {
    let rig = recovered().await;
    let mut left = household();
    left.remove(1);
    let (old, new) = (pages(9, &household()), pages(20, &left));
    // By its own word it is one of the household.
    old.hand_in(&rig, NAS).await.expect("nobody knows better yet");
    assert!(rig.get(GroupKind::DEVICE, "", "nas").await.is_some());
    new.hand_in(&rig, ATTIC).await.expect("taken");
    assert!(rig.get(GroupKind::DEVICE, "", "nas").await.is_none());
    let status = old.hand_in(&rig, NAS).await.expect_err("it was removed");
    assert!(status.message().contains("was removed"), "{status:?}");
}

#[tokio::test]
async fn copies_are_taken_by_a_recovered_region_of_a_known_key_and_within_bounds() {
    let plain = Rig::start().await;
    set_record(&plain, false).await;
    let sound = pages(9, &household());
    let status = sound.hand_in(&plain, NAS).await.expect_err("never recovered");
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    let rig = recovered().await;
    let status = send(&rig, None, sound.messages()).await.expect_err("no key");
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    let bodies = Message::Bodies(HandInBodies::default());
    let begin = || sound.messages().remove(0);
    for (what, messages) in [
        ("nothing", vec![]),
        ("objects first", vec![bodies]),
        ("two beginnings", vec![begin(), begin()]),
        ("too much", {
            let large = Message::Bodies(HandInBodies { bodies: vec![vec![b'x'; 1 << 20].into()] });
            [vec![begin()], vec![large; (MAX_COPIES_BYTES >> 20) + 1]].concat()
        }),
    ] {
        let status = send(&rig, Some(NAS), messages).await.expect_err(what);
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{what}: {status:?}");
    }
    let future = pages(1 << 40, &household());
    let status = future.hand_in(&rig, NAS).await.expect_err("beyond what this region is at");
    assert!(status.code() == tonic::Code::Unavailable && status.message().contains("clock"), "{status:?}");
    assert!(rig.list(GroupKind::DEVICE).await.is_empty());
}

async fn copies(device: &mut FakeDevice) -> Copies {
    loop {
        if let In::Copies(copies) = device.next().await.expect("the session goes on") {
            return copies;
        }
    }
}

#[tokio::test]
async fn devices_keep_copies_of_their_owners_objects_and_of_no_others() {
    let rig = Rig::start().await;
    rig.create(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs", "namespace": "bob"}, "stringData": {"k": "v"}})).await;
    rig.create(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine", "namespace": "alice"}, "stringData": {"k": "v"}})).await;
    rig.app().await;
    rig.install("photos").await;
    let mut device = rig.connected("nas").await;
    assert!(device.hello.trust_json.is_empty());
    // The recovery key is made while the device is there.
    set_record(&rig, false).await;
    let told = loop {
        match device.next().await.expect("the session goes on") {
            In::Trust(told) => break told,
            In::Copies(_) => panic!("copies without the key that vouches for them"),
            _ => {}
        }
    };
    assert_eq!(Trust::from_json(&told.trust_json).expect("sound"), own_trust());
    let first = copies(&mut device).await;
    let list = Manifest::from_json(&first.manifest_json).expect("readable");
    list.check(SigningKey::from_seed(&SIGNING_SEED).public()).expect("signed");
    let names: Vec<String> = list.entries.iter().map(|entry| entry.key.to_string()).collect();
    for name in [
        "Device.hearth.dev/nas",
        "App.hearth.dev/notes",
        "Install.hearth.dev/alice/photos",
        "Secret/alice/mine",
        "Node/nas",
    ] {
        assert!(names.iter().any(|one| one == name), "{name}: {names:?}");
    }
    assert!(names.iter().all(|name| !name.contains("bob") && !name.contains("kube-system")), "{names:?}");
    assert_eq!(first.bodies.len(), list.entries.len());
    let mut list = list;
    // A change sends the list and what changed of it.
    rig.create(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "new", "namespace": "alice"}, "stringData": {"k": "w"}})).await;
    while list.entries.iter().all(|entry| &*entry.key.name != "new") {
        let next = copies(&mut device).await;
        let before = std::mem::replace(&mut list, Manifest::from_json(&next.manifest_json).expect("readable"));
        let news = list.entries.iter().filter(|entry| before.entries.iter().all(|old| old.sha256 != entry.sha256));
        assert_eq!(next.bodies.len(), news.count());
    }
    let key =
        rig.get(GroupKind::DEVICE, "", "nas").await.unwrap()["spec"]["keys"][0].as_str().unwrap().parse().unwrap();
    has_them_already(&rig, key, &list).await;
}

/// A device that has copies already gets none.
async fn has_them_already(rig: &Rig, key: DeviceKey, list: &Manifest) {
    assert!(copies_beyond(rig, key, list).await.is_none(), "it has them");
}

/// The list that a device gets which has copies already; `None` where what it is told next is its own heartbeat.
async fn copies_beyond(rig: &Rig, key: DeviceKey, list: &Manifest) -> Option<Manifest> {
    let known = hearth_proto::v1::DeviceHello { copies: list.content().0.to_vec().into(), ..hello() };
    let (out, inbound) = FakeDevice::open(rig.address, "nas", key, known).await;
    let mut inbound = inbound.expect("a session");
    let beat = hearth_proto::v1::Heartbeat { sequence: 7 };
    let beat =
        hearth_proto::v1::DeviceMessage { message: Some(hearth_proto::v1::device_message::Message::Heartbeat(beat)) };
    out.send(beat).await.expect("the session is open");
    let mut hello_seen = false;
    loop {
        match inbound.message().await.expect("no error").expect("a message").message {
            Some(In::Hello(hello)) => {
                hello_seen = true;
                assert_eq!(Trust::from_json(&hello.trust_json).expect("sound"), own_trust());
            }
            Some(In::Copies(copies)) => {
                return Some(Manifest::from_json(&copies.manifest_json).expect("readable"));
            }
            Some(In::HeartbeatAck(_)) => break,
            _ => {}
        }
    }
    assert!(hello_seen);
    None
}

/// Asks until the answer is as wanted: a server's caches may be a moment behind its store.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "never {what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn of_several_servers_the_one_that_leads_takes_copies_and_the_others_say_where_it_is() {
    let (cluster, [one, two, third]) = three(Timing::default()).await;
    set_record(&one, true).await;
    let pages = pages(9, &household());
    let mut follower = RecoveryClient::connect(format!("http://{}", two.address)).await.unwrap();
    // Whoever is asked answers for the region: nothing that it says is secret.
    let statement = until("said by a follower", async || {
        let said = follower.statement(hearth_proto::v1::StatementRequest {}).await.expect("answered").into_inner();
        Statement::from_json(&said.statement_json).ok()
    });
    assert_eq!(statement.await.generation, GENERATION);
    let elsewhere = pages.hand_in(&two, NAS).await.expect("told where to go");
    assert_eq!((elsewhere.restored, elsewhere.leader), (0, cluster.address(1)));
    let done = until("taken", async || pages.hand_in(&one, NAS).await.ok().filter(|done| done.leader.is_empty())).await;
    assert_eq!((done.restored, done.refused.len()), (6, 0), "{done:?}");

    // The next one knows what was taken.
    cluster.elect(Some(2));
    two.leading().await;
    let moved = pages.hand_in(&one, ATTIC).await.expect("told where to go");
    assert_eq!(moved.leader, cluster.address(2));
    let again = pages.hand_in(&two, ATTIC).await.expect("taken");
    assert_eq!((again.restored, again.known), (0, 6), "{again:?}");
    // A device has its session there, and keeps what the one after signs as well.
    let mut nas = FakeDevice::connect(two.address, "nas", NAS).await;
    let mut list = Manifest::from_json(&copies(&mut nas).await.manifest_json).expect("readable");
    // With what its controllers made of two Devices.
    while list.entries.iter().filter(|entry| entry.key.kind == GroupKind::NODE).count() < 2 {
        list = Manifest::from_json(&copies(&mut nas).await.manifest_json).expect("readable");
    }
    cluster.elect(Some(3));
    third.leading().await;
    // What its controllers still change comes; what it has, does not.
    let mut rounds = 0;
    while let Some(newer) = copies_beyond(&third, NAS, &list).await {
        assert!(newer.content() != list.content(), "it has them");
        list = newer;
        rounds += 1;
        assert!(rounds < 10, "there is always something new");
    }

    // An admin ends it at any of them.
    let mut request = tonic::Request::new(FinishRequest {});
    request.metadata_mut().insert("admin", "anna".parse().unwrap());
    follower.finish(request).await.expect("finished");
    let status = until("finished", async || pages.hand_in(&third, NAS).await.err()).await;
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status:?}");
}

#[tokio::test]
async fn anybody_may_ask_whether_the_region_was_recovered_and_nobody_but_an_admin_more() {
    let rig = recovered().await;
    let mut client = RecoveryClient::connect(format!("http://{}", rig.address)).await.unwrap();
    let said = client.statement(hearth_proto::v1::StatementRequest {}).await.expect("answered").into_inner();
    let statement = Statement::from_json(&said.statement_json).expect("readable");
    assert_eq!((statement.generation, said.ca_pem.as_ref()), (GENERATION, b"PEM".as_slice()));
    let refused = [
        client.describe(hearth_proto::v1::DescribeRecoveryRequest {}).await.map(drop),
        client.set_key(hearth_proto::v1::SetKeyRequest::default()).await.map(drop),
        client.finish(FinishRequest {}).await.map(drop),
    ];
    for one in refused {
        assert_eq!(one.expect_err("refused").code(), tonic::Code::PermissionDenied);
    }
}
