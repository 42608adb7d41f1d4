#![allow(clippy::unwrap_used)]

mod random;

use std::{collections::HashMap, sync::Arc};

use hearth_types::{Object, Timestamp, Uid};
use serde_json::{Value, json};

use super::*;

const MI: u64 = 1 << 20;

fn device(name: &str, owner: &str) -> Device {
    Device {
        name: name.into(),
        owner: owner.into(),
        ready: true,
        ready_since: None,
        cordoned: false,
        taints: Vec::new(),
        labels: [("kubernetes.io/hostname".into(), name.into()), ("kubernetes.io/arch".into(), "amd64".into())].into(),
        allocatable: Resources { cpu_millis: 1000, memory_bytes: 1024 * MI, pods: 10, storage_bytes: 100 * MI },
        lends: None,
        hours: None,
        latency_millis: None,
        leases: true,
    }
}

fn pod(name: &str, owner: &str, cpu: u64, memory: u64) -> Pod {
    let requests = Resources { cpu_millis: cpu, memory_bytes: memory * MI, pods: 1, storage_bytes: 0 };
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": owner, "uid": format!("uid-{name}")}});
    let object = Object::from_value(object).unwrap();
    let mut pod = Pod::read(&object, &object.value());
    pod.shape.requests = requests;
    pod.shape.lent = requests;
    pod
}

fn snapshot(devices: Vec<Device>) -> Snapshot {
    Snapshot { devices: devices.into_iter().map(Arc::new).collect(), ..Snapshot::default() }
}

fn run(snapshot: &Snapshot, pods: Vec<Pod>) -> Plan {
    plan(snapshot, &pods.into_iter().map(Arc::new).collect::<Vec<_>>())
}

fn where_to(plan: &Plan) -> Vec<(String, String)> {
    plan.assignments.iter().map(|one| (one.pod.key.name.to_string(), one.device.to_string())).collect()
}

fn reason(snapshot: &Snapshot, pod: Pod) -> String {
    let plan = run(snapshot, vec![pod]);
    assert!(plan.assignments.is_empty(), "{:?}", where_to(&plan));
    plan.unplaced[0].why.summary.clone()
}

#[test]
fn objects_are_read_once_into_plain_structs() {
    let object = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "alice", "uid": "u", "creationTimestamp": "2023-11-14T22:13:20Z",
            "annotations": {"hearth.dev/architectures": "amd64, arm64,"},
            "ownerReferences": [{"kind": "ReplicaSet", "uid": "rs", "controller": true}]},
        "spec": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "k", "operator": "Exists"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "w", "hostPath": {"path": "/srv"}}],
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "1Mi"}}},
                {"name": "b", "resources": {"requests": {"memory": "2Mi", "ephemeral-storage": "3Mi"}}}]}});
    let object = Object::from_value(object).unwrap();
    let pod = Pod::read(&object, &object.value());
    assert_eq!(pod.shape.requests, Resources { cpu_millis: 100, memory_bytes: 2 * MI, pods: 1, storage_bytes: 3 * MI });
    assert_eq!(pod.shape.lent, Resources { cpu_millis: 200, memory_bytes: 3 * MI, pods: 1, storage_bytes: 3 * MI });
    assert_eq!(pod.shape.unlimited, Unlimited { cpu: true, memory: true }, "b has no limits");
    assert_eq!(pod.shape.architectures, ["amd64".into(), "arm64".into()]);
    assert_eq!((pod.shape.claims, pod.shape.host_path), (vec!["data".into()], true));
    assert_eq!(pod.shape.group, Some(Uid::from("rs")));
    assert_eq!(pod.created, Timestamp(1_700_000_000_000));
    let node = json!({"metadata": {"name": "nas", "labels": {"kubernetes.io/arch": "arm64"}},
        "spec": {"unschedulable": true, "taints": [{"key": "k", "effect": "NoSchedule"}, {"key": "l", "effect": "PreferNoSchedule"}]},
        "status": {"allocatable": {"cpu": "4", "memory": "1Gi", "pods": "20"}, "conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let device = json!({"metadata": {"name": "nas"}, "spec": {"owner": "alice", "lend": {"memory": "256Mi"}}});
    let read = Device::read(&device, &node);
    assert!(!read.ready && read.cordoned);
    assert_eq!(read.taints.len(), 1);
    assert_eq!(
        read.allocatable,
        Resources { cpu_millis: 4000, memory_bytes: 1024 * MI, pods: 20, storage_bytes: u64::MAX }
    );
    assert_eq!(
        read.lends,
        Some(Resources { cpu_millis: 0, memory_bytes: 256 * MI, pods: u64::MAX, storage_bytes: u64::MAX })
    );
    let nothing = Device::read(&json!({"spec": {"lend": {}}}), &Value::Null);
    assert_eq!(nothing.lends, Some(Resources::default()));
}

#[test]
fn a_device_lends_in_its_hours_alone_and_is_its_owners_at_all_times() {
    let device = |lend: Value| {
        let device = json!({"metadata": {"name": "nas"}, "spec": {"owner": "bob", "lend": lend}});
        let node = json!({"status": {"allocatable": {"cpu": "4", "memory": "1Gi"}, "conditions": [{"type": "Ready", "status": "True"}]}});
        Device::read(&device, &node)
    };
    let night = json!([{"from": "22:00", "to": "07:00"}]);
    let nights = device(json!({"cpu": "4", "memory": "1Gi", "timeZone": "Europe/Berlin", "hours": night}));
    let at = |device: &Device, text: &str| Snapshot {
        now: Timestamp::parse(text).unwrap(),
        ..snapshot(vec![device.clone()])
    };
    let placed = |snapshot: &Snapshot, owner: &str| run(snapshot, vec![pod("p", owner, 100, 1)]).assignments.len();
    let (noon, midnight) = (at(&nights, "2024-06-01T10:00:00Z"), at(&nights, "2024-06-01T22:00:00Z"));
    assert_eq!((placed(&noon, "alice"), placed(&noon, "bob")), (0, 1));
    assert_eq!((placed(&midnight, "alice"), placed(&midnight, "bob")), (1, 1));
    assert_eq!(
        reason(&noon, pod("p", "alice", 100, 1)),
        "0/1 devices can take it: 1 lends in other hours (again from 2024-06-01T20:00:00Z)"
    );
    // Hours of a version that knows more lend nothing, rather than always.
    let odd = device(json!({"cpu": "4", "memory": "1Gi", "hours": night}));
    assert_eq!((odd.lends, placed(&at(&odd, "2024-06-01T22:00:00Z"), "alice")), (Some(Resources::default()), 0));
}

#[test]
fn the_own_device_comes_before_a_better_one_that_lends() {
    let mut lender = device("big", "bob");
    lender.allocatable = Resources { cpu_millis: 64_000, memory_bytes: 1 << 40, pods: 100, storage_bytes: u64::MAX };
    lender.lends = Some(lender.allocatable);
    let snapshot = snapshot(vec![lender, device("nas", "alice")]);
    let pods = (0..6).map(|index| pod(&format!("p{index}"), "alice", 300, 1)).collect();
    let plan = run(&snapshot, pods);
    let devices: Vec<_> = where_to(&plan).into_iter().map(|(_, device)| device).collect();
    assert_eq!(devices, ["nas", "nas", "nas", "big", "big", "big"]);
}

#[test]
fn guests_get_no_more_than_is_lent() {
    let mut lender = device("pi", "bob");
    lender.lends = Some(Resources { cpu_millis: 500, memory_bytes: 100 * MI, pods: u64::MAX, storage_bytes: u64::MAX });
    let snapshot = snapshot(vec![lender]);
    let plan = run(&snapshot, vec![pod("a", "alice", 100, 60), pod("b", "carol", 100, 60)]);
    assert_eq!(plan.assignments.len(), 1);
    assert_eq!(
        plan.unplaced[0].why.summary,
        "0/1 devices can take it: 1 lends too little memory (needs 60Mi, 40Mi left)"
    );
    assert_eq!(plan.unplaced[0].why.devices[0].filter, Filter::LendMemory);
}

#[test]
fn no_guest_gets_a_directory_of_the_device() {
    let mut lender = device("pi", "bob");
    lender.lends = Some(lender.allocatable);
    let snapshot = snapshot(vec![lender]);
    let reading = |owner: &str| {
        let mut pod = pod("p", owner, 100, 60);
        pod.shape.host_path = true;
        pod
    };
    assert_eq!(run(&snapshot, vec![reading("bob")]).assignments.len(), 1);
    let plan = run(&snapshot, vec![reading("alice")]);
    let expected = "0/1 devices can take it: 1 lends none of its directories (hostPath) to other owners' pods";
    assert_eq!(plan.unplaced[0].why.summary, expected);
}

#[test]
fn what_is_asked_of_the_disk_counts_against_what_the_device_has() {
    let asks = |name: &str, mib: u64| {
        let mut pod = pod(name, "alice", 1, 1);
        pod.shape.requests.storage_bytes = mib * MI;
        pod
    };
    let snapshot = snapshot(vec![device("nas", "alice")]);
    let plan = run(&snapshot, vec![asks("a", 60), asks("b", 60), asks("c", 40)]);
    assert_eq!(where_to(&plan), [("a".into(), "nas".into()), ("c".into(), "nas".into())]);
    assert_eq!(
        plan.unplaced[0].why.summary,
        "0/1 devices can take it: 1 has too little ephemeral-storage (needs 60Mi, 40Mi free)"
    );
    assert_eq!(plan.unplaced[0].why.devices[0].filter, Filter::Storage);
}

#[test]
fn a_device_that_runs_short_of_memory_gets_no_pod_that_asks_for_none_and_one_short_of_disk_none_at_all() {
    let made = |resources: Value| {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "alice", "uid": "u"},
            "spec": {"containers": [{"name": "a", "resources": resources}]}});
        let object = Object::from_value(object).unwrap();
        Pod::read(&object, &object.value())
    };
    for (taint, resources, goes) in [
        ("memory-pressure", json!({}), false),
        ("memory-pressure", json!({"requests": {"memory": "1Mi"}}), true),
        ("disk-pressure", json!({}), false),
        ("disk-pressure", json!({"requests": {"memory": "1Mi"}}), false),
    ] {
        let mut short = device("nas", "alice");
        short.taints.push(Taint {
            key: format!("node.kubernetes.io/{taint}").into(),
            value: "".into(),
            effect: "NoSchedule".into(),
        });
        let plan = run(&snapshot(vec![short]), vec![made(resources.clone())]);
        assert_eq!(plan.assignments.len(), usize::from(goes), "{taint} {resources}");
    }
}

#[test]
fn replicas_are_spread_and_ties_go_by_name() {
    let snapshot = snapshot(vec![device("c", "alice"), device("a", "alice"), device("b", "alice")]);
    let pods = (0..4).map(|index| {
        let mut pod = pod(&format!("p{index}"), "alice", 10, 1);
        pod.shape.group = Some(Uid::from("rs"));
        pod
    });
    let devices: Vec<_> = where_to(&run(&snapshot, pods.collect())).into_iter().map(|(_, device)| device).collect();
    assert_eq!(devices, ["a", "b", "c", "a"]);
}

#[test]
fn the_score_compares_its_fields_in_the_order_of_the_policy() {
    let base = Score {
        own: false,
        data: 0,
        users: std::cmp::Reverse(9),
        reliability: Reliability::New,
        spread: std::cmp::Reverse(9),
        balance: 0,
        name: std::cmp::Reverse("b".into()),
    };
    let better = [
        Score { name: std::cmp::Reverse("a".into()), ..base.clone() },
        Score { balance: 1, ..base.clone() },
        Score { spread: std::cmp::Reverse(0), ..base.clone() },
        Score { reliability: Reliability::Steady, ..base.clone() },
        Score { users: std::cmp::Reverse(0), ..base.clone() },
        Score { data: 1, ..base.clone() },
        Score { own: true, ..base.clone() },
    ];
    assert!(base < better[0] && better.is_sorted());
}

#[test]
fn reliability_and_latency_prefer_the_steady_and_the_near() {
    let now = Timestamp(100_000_000_000);
    let mut steady = device("z", "alice");
    steady.ready_since = Some(Timestamp(1));
    let mut flapping = device("a", "alice");
    flapping.ready_since = Some(now);
    let mut two = snapshot(vec![steady.clone(), flapping.clone()]);
    two.now = now;
    assert_eq!(where_to(&run(&two, vec![pod("p", "alice", 1, 1)]))[0].1, "z");
    flapping.latency_millis = Some(5);
    let two = snapshot(vec![steady, flapping]);
    assert_eq!(where_to(&run(&two, vec![pod("p", "alice", 1, 1)]))[0].1, "a");
}

#[test]
fn volumes_hold_pods_to_their_device_also_within_one_plan() {
    let mut snapshot = snapshot(vec![device("a", "alice"), device("b", "alice")]);
    let claim = |device: Option<&str>, deleting| Claim { device: device.map(Into::into), deleting, ..Claim::default() };
    snapshot.claims = HashMap::from([
        (("alice".into(), "pinned".into()), claim(Some("b"), false)),
        (("alice".into(), "fresh".into()), claim(None, false)),
        (("alice".into(), "going".into()), claim(None, true)),
        (("alice".into(), "lost".into()), claim(Some("gone"), false)),
    ]);
    let with = |name: &str, claims: &[&str]| {
        let mut pod = pod(name, "alice", 300, 1);
        pod.shape.claims = claims.iter().map(|claim| (*claim).into()).collect();
        pod
    };
    let plan = run(&snapshot, vec![with("p1", &["pinned"]), with("p2", &["fresh"]), with("p3", &["fresh"])]);
    assert_eq!(where_to(&plan), [("p1", "b"), ("p2", "a")].map(|(pod, device)| (pod.to_owned(), device.to_owned())));
    assert_eq!(
        plan.unplaced[0].why.summary,
        "0/2 devices can take it: its volume fresh is in use by pod p2, which comes first: a volume has one writer"
    );
    snapshot.claims.insert(("alice".into(), "here".into()), claim(Some("a"), false));
    let two = run(&snapshot, vec![with("p", &["here", "pinned"])]).unplaced[0].why.clone();
    assert_eq!(
        two.devices.iter().map(|one| &*one.reason).collect::<Vec<_>>(),
        ["does not hold its volume pinned (it is on b)", "does not hold its volume here (it is on a)"]
    );
    assert_eq!(reason(&snapshot, with("p", &["none"])), "0/2 devices can take it: its claim none does not exist");
    assert_eq!(reason(&snapshot, with("p", &["going"])), "0/2 devices can take it: its claim going is being deleted");
    assert_eq!(
        reason(&snapshot, with("p", &["lost"])),
        "0/2 devices can take it: 2 do not hold its volume lost (it is on gone)"
    );
}

#[test]
fn a_claim_is_one_pods_until_that_pod_ended() {
    let mut snapshot = snapshot(vec![device("nas", "alice")]);
    let mut waiting = pod("new", "alice", 1, 1);
    waiting.shape.claims = vec!["data".into()];
    for (user, why) in [
        (Some(("old", true)), Some("its volume data is in use by pod old, which is stopping")),
        (Some(("old", false)), Some("its volume data is in use by pod old, which runs: a volume has one writer")),
        (None, None),
    ] {
        let user = user.map(|(pod, stopping)| User { pod: pod.into(), stopping });
        let claim = Claim { device: Some("nas".into()), deleting: false, user, ..Claim::default() };
        snapshot.claims.insert(("alice".into(), "data".into()), claim);
        let plan = run(&snapshot, vec![waiting.clone()]);
        let said = plan.unplaced.first().map(|one| one.why.summary.clone());
        assert_eq!(said, why.map(|why| format!("0/1 devices can take it: {why}")));
    }
}

#[test]
fn a_device_of_an_architecture_that_the_images_are_not_made_for_is_named() {
    let mut other = device("pi", "alice");
    other.labels.insert("kubernetes.io/arch".into(), "arm64".into());
    let mut mute = device("new", "alice");
    mute.labels.remove("kubernetes.io/arch");
    let mut snapshot = snapshot(vec![other, mute]);
    let mut wants = pod("p", "alice", 1, 1);
    wants.shape.architectures = vec!["amd64".into(), "riscv64".into()];
    let plan = run(&snapshot, vec![wants.clone()]);
    assert_eq!(
        plan.unplaced[0].why.text(),
        "0/2 devices can take it: 2 are of another architecture (needs amd64 or riscv64) \
         (new has not said its architecture (needs amd64 or riscv64); pi is arm64 (needs amd64 or riscv64))"
    );
    assert_eq!(plan.unplaced[0].why.devices[0].filter, Filter::Architecture);
    snapshot.devices.push(Arc::new(device("nas", "alice")));
    assert_eq!(where_to(&run(&snapshot, vec![wants]))[0].1, "nas");
}

#[test]
fn a_lent_device_takes_only_pods_with_limits() {
    let mut lender = device("pi", "bob");
    lender.lends = Some(Resources { cpu_millis: 500, memory_bytes: 100 * MI, pods: u64::MAX, storage_bytes: u64::MAX });
    let mut snapshot = snapshot(vec![lender]);
    let with = |resources: Value| {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "alice", "uid": "u"},
            "spec": {"containers": [{"name": "a", "resources": resources}, {"name": "b", "resources": {"limits": {"cpu": "1m", "memory": "1Mi"}}}]}});
        let object = Object::from_value(object).unwrap();
        Pod::read(&object, &object.value())
    };
    for (resources, what) in [
        (json!({}), "cpu and memory"),
        (json!({"requests": {"cpu": "100m", "memory": "1Mi"}}), "cpu and memory"),
        (json!({"limits": {"cpu": "100m"}}), "memory"),
        (json!({"limits": {"memory": "1Mi"}}), "cpu"),
    ] {
        let expected =
            format!("0/1 devices can take it: 1 lends only to pods with limits (set resources.limits for {what})");
        assert_eq!(reason(&snapshot, with(resources)), expected);
    }
    let bounded = with(json!({"limits": {"cpu": "100m", "memory": "1Mi"}}));
    assert_eq!(run(&snapshot, vec![bounded]).assignments.len(), 1);
    snapshot.devices.push(Arc::new(device("nas", "alice")));
    assert_eq!(where_to(&run(&snapshot, vec![with(json!({}))]))[0].1, "nas", "one's own asks for no limits");
}

#[test]
fn data_waits_for_an_own_device_that_is_only_away() {
    let mut lender = device("big", "bob");
    lender.lends = Some(lender.allocatable);
    let mut away = device("nas", "alice");
    away.ready = false;
    let mut keeps = pod("p", "alice", 100, 1);
    keeps.shape.claims = vec!["data".into()];
    let with = |own: &Device, home: Option<&str>| {
        let mut snapshot = snapshot(vec![lender.clone(), own.clone()]);
        let claim = Claim { device: home.map(Into::into), ..Claim::default() };
        snapshot.claims.insert(("alice".into(), "data".into()), claim);
        snapshot
    };
    assert_eq!(
        run(&with(&away, None), vec![keeps.clone()]).unplaced[0].why.text(),
        "0/2 devices can take it: 1 is not ready, 1 lends room, but its data would stay there while nas is only away \
         (big lends room, but its data would stay there while nas is only away; nas is not ready)"
    );
    let mut cordoned = device("nas", "alice");
    cordoned.cordoned = true;
    assert!(reason(&with(&cordoned, None), keeps.clone()).contains("only away"));
    let mut short = device("nas", "alice");
    let key = "node.kubernetes.io/disk-pressure".into();
    short.taints.push(Taint { key, value: "".into(), effect: "NoSchedule".into() });
    assert!(reason(&with(&short, None), keeps.clone()).contains("only away"), "it will have room again");
    let goes = |snapshot: &Snapshot, pod: &Pod| where_to(&run(snapshot, vec![pod.clone()]))[0].1.clone();
    assert_eq!(goes(&with(&away, None), &pod("q", "alice", 100, 1)), "big", "without data it moves back easily");
    assert_eq!(goes(&with(&away, Some("big")), &keeps), "big", "its data is there already");
    away.allocatable.cpu_millis = 10;
    assert_eq!(goes(&with(&away, None), &keeps), "big", "its own has no room also when it is back");
}

#[test]
fn the_text_of_an_explanation_has_a_bound_and_says_what_it_leaves_out() {
    let devices = (0..40).map(|index| {
        let mut device = device(&format!("{}-{index:02}", "d".repeat(40)), "alice");
        device.ready = false;
        device
    });
    let plan = run(&snapshot(devices.collect()), vec![pod("p", "alice", 1, 1)]);
    let text = plan.unplaced[0].why.text();
    let listed = text.matches("is not ready").count();
    assert!(text.len() <= 1024 && listed > 10, "{} bytes, {listed}", text.len());
    assert!(text.ends_with(&format!("; and {} more)", MAX_LISTED - listed)), "{text}");
}

#[test]
fn the_explanation_counts_every_device_and_lists_its_reason() {
    let mut cordoned = device("a", "alice");
    cordoned.cordoned = true;
    let mut small = device("b", "alice");
    small.allocatable.memory_bytes = 100 * MI;
    let mut silent = device("c", "alice");
    silent.ready = false;
    let mut snapshot = snapshot(vec![cordoned, small, silent]);
    let why = run(&snapshot, vec![pod("p", "alice", 1, 512)]).unplaced[0].why.clone();
    assert_eq!(
        why.summary,
        "0/3 devices can take it: 1 is cordoned, 1 has too little memory (needs 512Mi, 100Mi free), 1 is not ready"
    );
    let listed: Vec<_> = why.devices.iter().map(|one| (&*one.device, one.reason.as_str())).collect();
    assert_eq!(
        listed,
        [("a", "is cordoned"), ("b", "has too little memory (needs 512Mi, 100Mi free)"), ("c", "is not ready")]
    );
    snapshot.devices.push(Arc::new(device("x", "bob")));
    snapshot.devices.push(Arc::new(device("y", "bob")));
    assert!(reason(&snapshot, pod("p", "alice", 1, 512)).ends_with("2 belong to other owners and lend nothing"));
    assert_eq!(
        reason(&Snapshot::default(), pod("p", "alice", 1, 1)),
        "0/0 devices can take it: alice has no device and nobody lends one; add one with `hearth join`"
    );
}

#[test]
fn selectors_and_taints_filter() {
    let mut tainted = device("a", "alice");
    tainted.taints = vec![Taint { key: "gpu".into(), value: "yes".into(), effect: "NoSchedule".into() }];
    let snapshot = snapshot(vec![tainted]);
    let plain = pod("p", "alice", 1, 1);
    assert_eq!(
        reason(&snapshot, plain.clone()),
        "0/1 devices can take it: 1 has the taint gpu=yes:NoSchedule, which it does not tolerate"
    );
    for (key, value, effect, exists, tolerated) in [
        ("gpu", "yes", "NoSchedule", false, true),
        ("gpu", "yes", "", false, true),
        ("gpu", "no", "", false, false),
        ("gpu", "", "", true, true),
        ("", "", "", true, true),
        ("", "", "", false, false),
        ("gpu", "yes", "NoExecute", false, false),
    ] {
        let mut pod = plain.clone();
        pod.shape.tolerations =
            vec![Toleration { key: key.into(), value: value.into(), effect: effect.into(), exists }];
        assert_eq!(run(&snapshot, vec![pod]).assignments.len() == 1, tolerated, "{key} {value} {effect} {exists}");
    }
    let mut pod = plain;
    pod.shape.tolerations = vec![Toleration { key: "".into(), value: "".into(), effect: "".into(), exists: true }];
    pod.shape.node_selector = [("kubernetes.io/arch".into(), "arm64".into())].into();
    assert_eq!(
        reason(&snapshot, pod),
        "0/1 devices can take it: 1 does not match its node selector (kubernetes.io/arch=arm64)"
    );
}

/// Prints figures; run with `--ignored --nocapture` in release.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, clippy::print_stderr)]
fn placement_rate() {
    let devices = (0..5000).map(|index| device(&format!("d{index:04}"), "alice")).collect();
    let snapshot = snapshot(devices);
    let pods: Vec<_> = (0..20_000)
        .map(|index| {
            let mut pod = pod(&format!("p{index:05}"), "alice", 10, 10);
            pod.shape.group = Some(Uid::from(format!("g{}", index / 100)));
            Arc::new(pod)
        })
        .collect();
    let start = std::time::Instant::now();
    let plan = plan(&snapshot, &pods);
    let took = start.elapsed();
    assert_eq!(plan.assignments.len(), pods.len());
    eprintln!("{} pods on 5000 devices in {took:?}: {:.0} pods/s", pods.len(), pods.len() as f64 / took.as_secs_f64());
}
