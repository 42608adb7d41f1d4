#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use hearth_types::{Object, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{super::*, *};
use crate::testing::World;

const AFTER: i64 = 60;

/// A ReplicaSet, its pods, and devices that come and go.
struct House {
    world: World,
    /// Whether each device is in contact, and since when it is so.
    contact: BTreeMap<String, (bool, Timestamp)>,
}

impl House {
    fn new(replicas: usize, on_return: Option<&str>, claims: bool) -> Self {
        let volumes =
            if claims { json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]) } else { json!([]) };
        let mut annotations = json!({MOVE_AFTER_ANNOTATION: AFTER.to_string()});
        if let Some(on_return) = on_return {
            annotations[ON_RETURN_ANNOTATION] = json!(on_return);
        }
        let mut world = World { now: Timestamp(1_000_000_000), ..World::default() };
        world.create(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web", "namespace": "alice", "annotations": annotations},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"volumes": volumes, "containers": [{"name": "c", "image": "x"}]}}}}));
        let mut house = Self { world, contact: BTreeMap::new() };
        house.settle();
        house
    }

    fn look(&self) -> Reconciled {
        let set = self.world.find("ReplicaSet", "web").unwrap();
        let silent: Vec<&str> =
            self.contact.iter().filter(|(_, (connected, _))| !connected).map(|(name, _)| name.as_str()).collect();
        let mut pods = self.world.pods(&silent);
        for seen in &mut pods {
            seen.since = self.contact.get(&*seen.pod.device).map(|(_, since)| *since);
        }
        reconcile(Inputs { replica_set: &set, pods: &pods }, self.world.now)
    }

    fn settle(&mut self) {
        for _ in 0..8 {
            let out = self.look();
            if out.actions.is_empty() {
                return;
            }
            self.world.apply(&out);
        }
        panic!("it never settles: {:#?}", self.look());
    }

    fn pass(&mut self, seconds: i64) {
        self.world.now = Timestamp(self.world.now.0 + seconds * 1000);
        self.settle();
    }

    fn device(&mut self, name: &str, connected: bool) {
        self.contact.insert(name.to_owned(), (connected, self.world.now));
        self.settle();
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = self.world.find("Pod", name).unwrap().value();
        change(&mut value);
        self.world.put(&Object::from_value(value).unwrap());
    }

    fn ready(&mut self, name: &str, ready: bool) {
        let now = self.world.now.to_string();
        let status = if ready { "True" } else { "False" };
        self.change(name, |pod| {
            pod["status"] = json!({"phase": "Running",
                "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": now}]});
        });
        self.settle();
    }

    /// Binds the pods without device to this one, where they are ready at once.
    fn run_on(&mut self, device: &str) -> String {
        let waiting = |pod: &&Object| pod.value()["spec"].get("nodeName").is_none();
        let name = self.world.all("Pod").iter().find(waiting).unwrap().name().to_owned();
        self.change(&name, |pod| pod["spec"]["nodeName"] = json!(device));
        self.ready(&name, true);
        name
    }

    /// The pods that shall run, by the device that they are on.
    fn active(&self) -> Vec<String> {
        let active = self.world.pods(&[]).into_iter().filter(|seen| seen.pod.is_active());
        let mut devices: Vec<String> = active.map(|seen| seen.pod.device.to_string()).collect();
        devices.sort();
        devices
    }

    fn status(&self, field: &str) -> Value {
        self.world.find("ReplicaSet", "web").unwrap().value()["status"][field].clone()
    }

    /// A pod on `nas` that another one on `attic` stands for.
    fn replaced(on_return: Option<&str>) -> (Self, String, String) {
        let mut house = Self::new(1, on_return, false);
        house.device("nas", true);
        house.device("attic", true);
        let original = house.run_on("nas");
        house.pass(100);
        house.device("nas", false);
        house.pass(AFTER);
        let replacement = house.run_on("attic");
        house.pass(100);
        (house, original, replacement)
    }
}

#[test]
fn another_pod_comes_after_the_silence_that_was_said_and_the_first_stays_there() {
    let mut house = House::new(1, None, false);
    house.device("nas", true);
    house.run_on("nas");
    house.device("nas", false);
    assert_eq!(house.look().again, Some(Duration::from_secs(60)));
    house.pass(AFTER - 1);
    assert_eq!(house.active(), ["nas"]);
    house.pass(1);
    assert_eq!(house.active(), ["", "nas"]);
    house.pass(1000);
    assert_eq!(house.active(), ["", "nas"], "one stands for it, and no more come");
    house.run_on("attic");
    assert_eq!((house.status("replicas"), house.status("readyReplicas")), (json!(1), json!(1)));
    let told = house.world.events.iter().filter(|(reason, _)| reason == "DeviceSilent").count();
    assert_eq!(told, 1, "{:?}", house.world.events);
}

#[test]
fn a_short_silence_changes_nothing_and_data_has_one_home() {
    let mut house = House::new(1, None, false);
    house.device("nas", true);
    house.run_on("nas");
    for _ in 0..5 {
        house.device("nas", false);
        house.pass(AFTER - 1);
        house.device("nas", true);
        house.pass(1);
    }
    assert_eq!(house.active(), ["nas"]);
    let mut house = House::new(1, None, true);
    house.device("nas", true);
    house.run_on("nas");
    house.device("nas", false);
    house.pass(1_000_000);
    assert_eq!(house.active(), ["nas"]);
}

#[test]
fn which_one_stays_is_as_was_said() {
    for (said, restarted, stays) in [
        (None, false, "nas"),
        (Some("KeepOriginal"), true, "nas"),
        (Some("KeepReplacement"), false, "attic"),
        (Some("KeepLongestRunning"), false, "nas"),
        (Some("KeepLongestRunning"), true, "attic"),
    ] {
        let (mut house, original, _) = House::replaced(said);
        house.device("nas", true);
        assert_eq!(house.active(), ["attic", "nas"], "what the device says of its pods is on its way");
        if restarted {
            house.ready(&original, true);
        }
        house.pass(SETTLED.as_secs() as i64);
        assert_eq!(house.active(), [stays], "{said:?} {restarted}");
        house.pass(1000);
        assert_eq!(house.active(), [stays], "for good");
    }
}

#[test]
fn nobody_goes_before_the_one_that_stays_is_ready() {
    let (mut house, original, replacement) = House::replaced(None);
    house.device("nas", true);
    house.ready(&original, false);
    house.pass(1000);
    assert_eq!(house.active(), ["attic", "nas"], "the original is back, and not ready");
    assert_eq!(house.status("readyReplicas"), json!(1));
    house.ready(&original, true);
    assert_eq!(house.active(), ["nas"]);

    let (mut house, ..) = House::replaced(Some("KeepReplacement"));
    house.ready(&replacement, false);
    house.device("nas", true);
    house.pass(1000);
    assert_eq!(house.active(), ["attic", "nas"], "the replacement is not ready");
    assert_eq!(house.status("readyReplicas"), json!(1), "the original serves");
    house.ready(&replacement, true);
    assert_eq!(house.active(), ["attic"]);
}

#[test]
fn one_that_found_no_device_goes_when_the_first_is_back() {
    for said in ON_RETURN {
        let mut house = House::new(1, Some(said), false);
        house.device("nas", true);
        house.run_on("nas");
        house.device("nas", false);
        house.pass(AFTER);
        house.device("nas", true);
        house.pass(100);
        assert_eq!(house.active(), ["nas"], "{said}");
    }
}

#[test]
fn a_third_comes_where_the_second_is_silent_too() {
    let (mut house, ..) = House::replaced(None);
    house.device("attic", false);
    house.pass(AFTER);
    assert_eq!(house.active(), ["", "nas"], "of those on silent devices, as many are kept as are asked for");
    house.run_on("shed");
    house.device("shed", true);
    house.device("attic", true);
    house.pass(100);
    assert_eq!(house.active(), ["nas", "shed"]);
    house.device("nas", true);
    house.pass(100);
    assert_eq!(house.active(), ["nas"]);
}

#[test]
fn what_is_scaled_away_goes_on_silent_devices_too() {
    let (mut house, ..) = House::replaced(None);
    house.world.edit("ReplicaSet", "web", |set| set["spec"]["replicas"] = json!(0));
    house.settle();
    assert_eq!(house.active(), Vec::<String>::new());
}

#[test]
fn what_is_no_longer_said_lets_the_first_come_back() {
    let (mut house, ..) = House::replaced(None);
    house.world.edit("ReplicaSet", "web", |set| {
        set["metadata"]["annotations"] = json!({"a": "b"});
    });
    house.pass(1000);
    assert_eq!(house.active(), ["attic", "nas"]);
    house.device("nas", true);
    house.pass(100);
    assert_eq!(house.active(), ["nas"]);
}

#[derive(Clone, Debug)]
enum Step {
    Device(usize, bool),
    Pass(i64),
    Ready(usize, bool),
    Bind(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_usize, any::<bool>()).prop_map(|(device, up)| Step::Device(device, up)),
        (1..90_i64).prop_map(Step::Pass),
        (0..6_usize, any::<bool>()).prop_map(|(pod, ready)| Step::Ready(pod, ready)),
        (0..4_usize).prop_map(Step::Bind),
    ]
}

proptest! {
    /// Whatever comes and goes: a pod that serves goes only where enough others serve, and when all are back there are as many as asked for.
    #[test]
    fn nobody_takes_the_last_that_serves(
        said in proptest::sample::select(&ON_RETURN[..]),
        replicas in 1..3_usize,
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        const DEVICES: [&str; 4] = ["a", "b", "c", "d"];
        let mut house = House::new(replicas, Some(said), false);
        for device in DEVICES {
            house.device(device, true);
        }
        let serving = |house: &House| {
            let up = |seen: &SeenPod| house.contact.get(&*seen.pod.device).is_some_and(|(connected, _)| *connected);
            house.world.pods(&[]).iter().filter(|seen| seen.pod.is_ready() && up(seen)).count()
        };
        let settle = |house: &mut House| {
            for _ in 0..8 {
                let before = serving(house);
                let out = house.look();
                if out.actions.is_empty() {
                    return Ok(());
                }
                house.world.apply(&out);
                prop_assert!(serving(house) >= before.min(replicas), "{before} served: {out:#?}");
            }
            Err(TestCaseError::fail(format!("it never settles: {:#?}", house.look())))
        };
        let everybody = |house: &House| house.world.pods(&[]).into_iter().filter(|seen| seen.pod.is_active());
        let bind = |house: &mut House, device: &str| {
            let waiting = everybody(house).find(|seen| !seen.pod.is_bound()).map(|seen| seen.pod.object.name().to_owned());
            if let Some(name) = waiting {
                house.change(&name, |pod| pod["spec"]["nodeName"] = json!(device));
            }
        };
        let set_ready = |house: &mut House, name: &str, ready: bool| {
            let (now, status) = (house.world.now.to_string(), if ready { "True" } else { "False" });
            house.change(name, |pod| pod["status"] = json!({"phase": "Running",
                "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": now}]}));
        };
        for step in steps {
            match step {
                Step::Device(device, up) => {
                    let now = house.world.now;
                    let was = house.contact[DEVICES[device]];
                    if was.0 != up {
                        house.contact.insert(DEVICES[device].to_owned(), (up, now));
                    }
                }
                Step::Pass(seconds) => house.world.now = Timestamp(house.world.now.0 + seconds * 1000),
                Step::Ready(index, ready) => {
                    let bound = everybody(&house).filter(|seen| seen.pod.is_bound());
                    if let Some(name) = bound.map(|seen| seen.pod.object.name().to_owned()).nth(index) {
                        set_ready(&mut house, &name, ready);
                    }
                }
                Step::Bind(device) if house.contact[DEVICES[device]].0 => bind(&mut house, DEVICES[device]),
                Step::Bind(_) => {}
            }
            settle(&mut house)?;
        }
        let now = house.world.now;
        for device in DEVICES {
            house.contact.insert(device.to_owned(), (true, now));
        }
        for _ in 0..8 {
            bind(&mut house, "a");
            let names: Vec<String> = everybody(&house)
                .filter(|seen| seen.pod.is_bound() && !seen.pod.is_ready())
                .map(|seen| seen.pod.object.name().to_owned())
                .collect();
            for name in &names {
                set_ready(&mut house, name, true);
            }
            house.world.now = Timestamp(house.world.now.0 + 20_000);
            settle(&mut house)?;
        }
        prop_assert_eq!(everybody(&house).count(), replicas);
    }
}
