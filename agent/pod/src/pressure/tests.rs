use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const NODEFS: Signal = Signal::NodefsAvailable;

fn at(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1000)
}

fn seen(signal: Signal, available: u64) -> [Observation; 1] {
    [Observation { signal, available, capacity: 1000 * MIB }]
}

fn said(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn settings(hard: &[(&str, &str)], reclaim: &[(&str, &str)]) -> Settings {
    Settings::default().with(&said(hard), &said(reclaim), Some("5m")).expect("settings")
}

fn pod(uid: &str, guest: bool, used: u64, request: u64) -> Candidate {
    let (used, request) = (used * MIB, request * MIB);
    let containers = vec![Part { name: "main".into(), used, request }];
    Candidate { uid: uid.into(), guest, used, request, containers, ..Candidate::default() }
}

fn shortage(signal: Signal, threshold: u64, available: u64) -> Shortage {
    Shortage { signal, threshold, available, missing: threshold - available }
}

#[test]
fn settings_are_the_kubelets_unless_something_else_is_said() {
    let default = Settings::default();
    for (signal, capacity, expected) in [
        (Signal::MemoryAvailable, 8 << 30, 100 << 20),
        (Signal::NodefsAvailable, 1000, 100),
        (Signal::NodefsInodesFree, 1000, 50),
        (Signal::ImagefsAvailable, 1000, 150),
        (Signal::ImagefsInodesFree, 1000, 50),
        (Signal::NodefsAvailable, 32 << 30, (32 << 30) / 10),
        (Signal::NodefsAvailable, 1 << 40, 5 << 30),
        (Signal::NodefsAvailable, u64::MAX, 5 << 30),
        (Signal::NodefsInodesFree, u64::MAX, u64::MAX / 20),
    ] {
        assert_eq!(default.threshold(signal, capacity), expected, "{signal:?}");
    }
    let own = settings(&[("nodefs.available", "0.5%"), ("memory.available", "1Gi")], &[]);
    assert_eq!(own.threshold(NODEFS, 1000), 5);
    assert_eq!(own.threshold(Signal::MemoryAvailable, 1), 1 << 30);
    assert_eq!(own.threshold(Signal::NodefsInodesFree, 1000), 50, "what is not said stays");
    for (hard, period, expected) in [
        (&[("pid.available", "1")], "5m", "\"pid.available\" is no eviction signal"),
        (&[("nodefs.available", "101%")], "5m", "\"nodefs.available\": \"101%\" is no amount"),
        (&[("nodefs.available", "-1%")], "5m", "\"nodefs.available\": \"-1%\" is no amount"),
        (&[("nodefs.available", "1Ki%")], "5m", "\"nodefs.available\": \"1Ki%\" is no amount"),
        (&[("nodefs.available", "")], "5m", "\"nodefs.available\": \"\" is no amount"),
        (&[("nodefs.available", "1%")], "5", "\"5\" is no duration"),
        (&[("nodefs.available", "1%")], "", "\"\" is no duration"),
        (&[("nodefs.available", "1%")], "m", "\"m\" is no duration"),
    ] {
        let error = Settings::default().with(&said(hard), &said(&[]), Some(period)).expect_err("refused").to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let period =
        |text: &str| Settings::default().with(&said(&[]), &said(&[]), Some(text)).map(|one| one.transition_period);
    assert_eq!(period("1h1m1s5ms"), Ok(Duration::from_millis(3_661_005)));
    assert_eq!(period("0s"), Ok(Duration::ZERO));
}

#[test]
fn a_condition_goes_on_at_once_and_off_after_its_period() {
    let settings = settings(&[], &[]);
    let mut monitor = Monitor::default();
    let mut look = |available: u64, seconds: i64| {
        let outlook = monitor.observe(&settings, &seen(NODEFS, available * MIB), at(seconds));
        (outlook.pressure.contains(&Pressure::Disk), !outlook.short.is_empty())
    };
    assert_eq!(look(100, 0), (false, false), "just enough");
    assert_eq!(look(99, 10), (true, true));
    assert_eq!(look(100, 20), (true, false));
    assert_eq!(look(900, 309), (true, false));
    assert_eq!(look(900, 310), (false, false), "five minutes later");
    assert_eq!(look(99, 320), (true, true));
    // Nor does a clock that was set back by an hour hold it for an hour.
    assert_eq!(look(900, -3600), (true, false));
    assert_eq!(look(900, -3300), (false, false));
}

#[test]
fn what_was_short_is_so_until_the_minimum_reclaim_is_free_too() {
    let settings = settings(&[], &[("nodefs.available", "50Mi")]);
    let mut monitor = Monitor::default();
    let mut missing = |available: u64| {
        let outlook = monitor.observe(&settings, &seen(NODEFS, available * MIB), at(0));
        outlook.short.first().map(|one| one.missing / MIB)
    };
    for (available, expected) in
        [(120, None), (99, Some(51)), (120, Some(30)), (149, Some(1)), (150, None), (120, None)]
    {
        assert_eq!(missing(available), expected, "{available} MiB");
    }
}

#[test]
fn memory_comes_first_and_what_is_not_seen_or_has_no_threshold_is_not_short() {
    let settings = settings(&[("nodefs.inodesFree", "0%")], &[]);
    let all = Signal::ALL.map(|signal| Observation { signal, available: 0, capacity: 1000 });
    let outlook = Monitor::default().observe(&settings, &all, at(0));
    let short: Vec<_> = outlook.short.iter().map(|one| one.signal).collect();
    let expected = [Signal::MemoryAvailable, NODEFS, Signal::ImagefsAvailable, Signal::ImagefsInodesFree];
    assert_eq!(short, expected);
    assert_eq!(outlook.pressure, Pressure::ALL.into());
    assert_eq!(Monitor::default().observe(&settings, &[], at(0)), Outlook::default());
}

#[test]
fn pods_go_in_the_kubelets_order_with_guests_before_the_owners_own() {
    let cases: [(&str, Vec<Candidate>, Option<&str>); 9] = [
        ("who exceeds, before who takes more", vec![pod("a", false, 50, 0), pod("b", false, 90, 100)], Some("a")),
        (
            "a guest within its request, after an own beyond",
            vec![pod("a", true, 50, 60), pod("b", false, 20, 10)],
            Some("b"),
        ),
        ("of two that exceed, the guest", vec![pod("a", false, 90, 0), pod("b", true, 20, 0)], Some("b")),
        ("of two guests, who takes more beyond", vec![pod("a", true, 60, 50), pod("b", true, 20, 0)], Some("b")),
        (
            "within requests, who is nearest to its own",
            vec![pod("a", false, 50, 90), pod("b", false, 40, 50)],
            Some("b"),
        ),
        ("of equals, always the same", vec![pod("b", false, 9, 0), pod("a", false, 9, 0)], Some("a")),
        (
            "nobody who takes too little to matter",
            vec![pod("a", true, 0, 0), Candidate { used: MIB - 1, ..pod("b", true, 0, 0) }],
            None,
        ),
        ("nobody who must stay", vec![Candidate { critical: true, ..pod("a", true, 90, 0) }], None),
        (
            "nobody who ends already",
            vec![Candidate { ending: true, ..pod("a", true, 90, 0) }, pod("b", false, 5, 0)],
            Some("b"),
        ),
    ];
    for (what, pods, expected) in cases {
        let chosen = Monitor::default().choose(&shortage(NODEFS, 100 * MIB, 7), &pods, at(0));
        assert_eq!(chosen.map(|one| one.uid).as_deref(), expected, "{what}");
    }
    let pods = [pod("a", true, 90, 0)];
    let images = shortage(Signal::ImagefsAvailable, 100 * MIB, 7);
    assert_eq!(Monitor::default().choose(&images, &pods, at(0)), None, "what it writes is not there");
}

#[test]
fn it_is_said_in_the_words_of_the_kubelet() {
    let mut noisy = pod("a", false, 90, 10);
    noisy.containers.push(Part { name: "quiet".into(), used: 5, request: 10 });
    let told = |signal, threshold, available| {
        let chosen = Monitor::default().choose(&shortage(signal, threshold, available), &[noisy.clone()], at(0));
        chosen.expect("one goes").message
    };
    assert_eq!(
        told(NODEFS, 100 * MIB, 3 * MIB),
        "The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: 3Mi. Container main was using 90Mi, \
         request is 10Mi, has larger consumption of ephemeral-storage. "
    );
    let inodes = told(Signal::NodefsInodesFree, 2048, 5);
    assert!(
        inodes.starts_with("The node was low on resource: inodes. Threshold quantity: 2048, available: 5. "),
        "{inodes}"
    );
    assert!(
        told(Signal::MemoryAvailable, 100 * MIB, 1)
            .contains("resource: memory. Threshold quantity: 100Mi, available: 1. ")
    );
}

#[test]
fn one_goes_at_a_time_and_one_that_does_not_end_holds_up_nobody_for_long() {
    let mut monitor = Monitor::default();
    let short = shortage(NODEFS, 100 * MIB, 0);
    let pods = [pod("a", false, 90, 0), pod("b", false, 50, 0)];
    let ending = [Candidate { ending: true, ..pods[0].clone() }, pods[1].clone()];
    let mut choose = |pods: &[Candidate], seconds| monitor.choose(&short, pods, at(seconds)).map(|one| one.uid);
    assert_eq!(choose(&pods, 0).as_deref(), Some("a"));
    assert_eq!(choose(&ending, 10), None);
    assert_eq!(choose(&ending, 30).as_deref(), Some("b"));
    assert_eq!(choose(&pods[..1], 31).as_deref(), Some("a"), "b is gone");
}

fn any_pod() -> impl Strategy<Value = Candidate> {
    (0..200_u64, 0..100_u64, any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
        |(used, request, guest, critical, ending)| Candidate { critical, ending, ..pod("", guest, used, request) },
    )
}

proptest! {
    /// A device whose pods go one after the other, with what they take, until nothing is short or nobody is left who may go.
    #[test]
    fn evictions_end_and_take_nobody_without_need_and_no_own_pod_before_a_guest_of_its_class(
        pods in proptest::collection::vec(any_pod(), 0..12),
        other in 0..1200_u64,
        reclaim in 0..100_u64,
    ) {
        let mut pods = pods;
        for (index, pod) in pods.iter_mut().enumerate() {
            pod.uid = format!("p{index}");
        }
        let settings = settings(&[], &[("nodefs.available", &format!("{reclaim}Mi"))]);
        let (threshold, goal) = (100 * MIB, (100 + reclaim) * MIB);
        let mut monitor = Monitor::default();
        let mut was_short = false;
        for round in 0..=pods.len() {
            let used: u64 = pods.iter().map(|pod| pod.used).sum::<u64>() + other * MIB;
            let available = (1000 * MIB).saturating_sub(used);
            let outlook = monitor.observe(&settings, &seen(NODEFS, available), at(round as i64));
            let must = available < threshold || (was_short && available < goal);
            prop_assert_eq!(must, !outlook.short.is_empty());
            prop_assert_eq!(must || was_short, outlook.pressure.contains(&Pressure::Disk));
            was_short |= must;
            let Some(short) = outlook.short.first() else { return Ok(()) };
            let may = |pod: &&Candidate| !pod.critical && !pod.ending && pod.used >= MIB;
            let Some(eviction) = monitor.choose(short, &pods, at(round as i64)) else {
                prop_assert!(!pods.iter().any(|pod| may(&pod)), "somebody could go");
                return Ok(());
            };
            let index = pods.iter().position(|pod| pod.uid == eviction.uid).expect("one of them");
            let gone = pods.remove(index);
            prop_assert!(may(&&gone));
            let class = |pod: &Candidate| pod.used > pod.request;
            for left in pods.iter().filter(may) {
                prop_assert!(class(&gone) || !class(left), "who exceeds goes first");
                prop_assert!(gone.guest || !left.guest || class(&gone) != class(left), "guests go first");
            }
        }
        prop_assert!(false, "it does not end");
    }

    #[test]
    fn arbitrary_settings_never_panic(name in ".{0,20}", amount in ".{0,12}", period in ".{0,12}", capacity: u64) {
        let said = BTreeMap::from([("nodefs.available".to_owned(), amount.clone())]);
        if let Ok(settings) = Settings::default().with(&said, &BTreeMap::new(), Some(&period)) {
            let _ = settings.threshold(NODEFS, capacity);
        }
        let _ = Settings::default().with(&BTreeMap::from([(name, amount)]), &BTreeMap::new(), None);
    }
}
