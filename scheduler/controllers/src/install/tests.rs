#![allow(clippy::unwrap_used)]

use hearth_types::condition;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::testing::{Pods, World, ZONE};

fn app() -> Value {
    json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "App", "metadata": {"name": "notes"}, "spec": {
        "containers": [{"name": "web", "image": "notes:1", "env": [{"name": "A", "value": "app"}, {"name": "B", "value": "app"}],
            "ports": [{"name": "http", "containerPort": 8080}], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "size": "1Gi"}, {"name": "tmp", "emptyDir": {}}],
        "ingress": {"port": "http"}}})
}

fn install() -> Value {
    json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Install", "metadata": {"name": "mynotes", "namespace": "alice"}, "spec": {"app": "notes"}})
}

fn look(world: &World, pods: &[SeenPod]) -> Reconciled {
    let (install, app) = (world.find("Install", "mynotes").unwrap(), world.find("App", "notes"));
    let (deployment, route) = (world.find("Deployment", "mynotes"), world.find("Route", "mynotes"));
    let claims = world.all("PersistentVolumeClaim").into_iter().map(|claim| (claim.name().to_owned(), claim)).collect();
    let inputs = Inputs {
        install: &install,
        app: app.as_ref(),
        deployment: deployment.as_ref(),
        route: route.as_ref(),
        claims: &claims,
        pods,
        zone: ZONE,
    };
    reconcile(inputs, world.now)
}

fn settle(world: &mut World, pods: &[SeenPod]) {
    world.apply(&look(world, pods));
    assert_eq!(look(world, pods).actions, [], "a second look asks for nothing");
}

fn world(app: Option<Value>, install: Value) -> World {
    let mut world = World { now: Timestamp(1_000_000), ..World::default() };
    if let Some(app) = app {
        world.create(app);
    }
    world.create(install);
    settle(&mut world, &[]);
    world
}

fn said(world: &World, kind: &str) -> (String, String) {
    let value = world.find("Install", "mynotes").unwrap().value();
    let found = condition::get(&value, kind).unwrap();
    (format!("{:?}", found.status), found.reason)
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.into(), reason.into())
}

fn template(world: &World) -> Value {
    world.find("Deployment", "mynotes").unwrap().value()["spec"]["template"].clone()
}

#[test]
fn an_install_gets_its_claim_deployment_and_route() {
    let world = world(Some(app()), install());
    let claim = world.find("PersistentVolumeClaim", "mynotes-data").unwrap().value();
    assert!(claim["metadata"].get("ownerReferences").is_none(), "deleting the Install keeps the data");
    assert_eq!(claim["metadata"]["labels"]["hearth.dev/install"], "mynotes");
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "1Gi");
    let deployment = world.find("Deployment", "mynotes").unwrap().value();
    assert_eq!(deployment["spec"]["strategy"], json!({"type": "Recreate"}));
    assert_eq!(deployment["metadata"]["ownerReferences"][0]["kind"], "Install");
    let template = template(&world);
    assert_eq!(template["metadata"]["annotations"]["hearth.dev/internet"], "true");
    assert_eq!(template["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "mynotes-data");
    assert_eq!(template["spec"]["volumes"][1], json!({"name": "tmp", "emptyDir": {}}));
    let route = world.find("Route", "mynotes").unwrap().value();
    assert_eq!(route["spec"]["hostname"], "mynotes.alice.hearth.internal");
    assert_eq!(route["spec"]["target"]["port"], "http");
    let install = world.find("Install", "mynotes").unwrap().value();
    assert_eq!(install["status"]["hostname"], "mynotes.alice.hearth.internal");
    assert_eq!(install["status"]["observedGeneration"], 1);
    assert_eq!(said(&world, "Deployed"), is("True", "Deployed"));
    assert_eq!(said(&world, "Ready"), is("False", "Starting"));
}

#[test]
fn grants_placement_and_environment_reach_the_pods() {
    let mut wanted = install();
    wanted["spec"]["env"] = json!([{"name": "B", "value": "mine"}, {"name": "C", "value": "mine"}]);
    wanted["spec"]["grants"] =
        json!({"internet": false, "capabilities": ["NET_RAW", "CHOWN"], "services": ["db", "mail"]});
    wanted["spec"]["placement"] = json!({"device": "nas", "ownDevicesOnly": true});
    wanted["spec"]["imagePullSecrets"] = json!([{"name": "login"}]);
    let mut app = app();
    app["spec"]["permissions"] = json!({"capabilities": ["NET_RAW"], "services": ["db"]});
    let world = world(Some(app), wanted);
    let template = template(&world);
    let container = &template["spec"]["containers"][0];
    assert_eq!(
        container["env"],
        json!([{"name": "A", "value": "app"}, {"name": "B", "value": "mine"}, {"name": "C", "value": "mine"}])
    );
    assert_eq!(container["securityContext"]["capabilities"]["add"], json!(["NET_RAW"]), "asked for and granted");
    assert_eq!(template["metadata"]["annotations"]["hearth.dev/internet"], "false");
    assert_eq!(template["metadata"]["annotations"]["hearth.dev/services"], "db", "the same");
    assert_eq!(template["spec"]["imagePullSecrets"], json!([{"name": "login"}]));
    assert_eq!(template["spec"]["nodeSelector"], json!({"kubernetes.io/hostname": "nas", "hearth.dev/owner": "alice"}));
}

#[test]
fn a_directory_of_the_owners_comes_to_the_pods_only_if_it_is_granted() {
    let mut app = app();
    app["spec"]["volumes"] = json!([{"name": "data", "hostPath": {}}, {"name": "tmp", "emptyDir": {}}]);
    let mut world = world(Some(app), install());
    assert_eq!(said(&world, "PermissionsGranted"), is("False", "PermissionNotGranted"));
    assert!(world.find("Deployment", "mynotes").is_none());
    let why = condition::get(&world.find("Install", "mynotes").unwrap().value(), "Ready").unwrap().message;
    assert!(why.contains("a directory of yours as its volume \"data\" (spec.grants.hostPaths)"), "{why}");
    for (asks, grants, read_only) in
        [(false, false, Value::Null), (true, false, true.into()), (false, true, true.into())]
    {
        world.edit("App", "notes", |app| app["spec"]["volumes"][0]["hostPath"] = json!({"readOnly": asks}));
        let grant = json!({"hostPaths": [{"volume": "data", "path": "/srv/notes", "readOnly": grants}]});
        world.edit("Install", "mynotes", |install| install["spec"]["grants"] = grant);
        settle(&mut world, &[]);
        assert_eq!(said(&world, "PermissionsGranted"), is("True", "Granted"));
        let template = template(&world);
        let expected = json!({"name": "data", "hostPath": {"path": "/srv/notes", "type": "Directory"}});
        assert_eq!(template["spec"]["volumes"][0], expected);
        assert_eq!(template["spec"]["containers"][0]["volumeMounts"][0]["readOnly"], read_only, "{asks} {grants}");
    }
}

#[test]
fn what_becomes_of_it_on_a_silent_device_is_passed_on_without_a_rollout() {
    let mut stateless = app();
    stateless["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    let mut world = world(Some(stateless), install());
    let before = template(&world);
    let said_so = |world: &mut World, disconnect: Value| {
        world.edit("Install", "mynotes", |install| install["spec"]["placement"] = json!({"disconnect": disconnect}));
        settle(world, &[]);
        world.find("Deployment", "mynotes").unwrap().value()["metadata"]["annotations"].clone()
    };
    let annotations = said_so(&mut world, json!({"moveAfterSeconds": 60, "onReturn": "KeepReplacement"}));
    assert_eq!(annotations, json!({"hearth.dev/move-after-seconds": "60", "hearth.dev/on-return": "KeepReplacement"}));
    let annotations = said_so(&mut world, json!({"moveAfterSeconds": 90}));
    assert_eq!(annotations, json!({"hearth.dev/move-after-seconds": "90"}));
    assert_eq!(said_so(&mut world, Value::Null), Value::Null);
    assert_eq!(template(&world), before);
}

#[test]
fn its_bandwidth_is_passed_on_without_a_rollout() {
    let mut world = world(Some(app()), install());
    let before = template(&world);
    let mut said_so = |bandwidth: Value| {
        world.edit("Install", "mynotes", |install| install["spec"]["bandwidth"] = bandwidth);
        settle(&mut world, &[]);
        assert_eq!(template(&world), before);
        world.find("Deployment", "mynotes").unwrap().value()["metadata"]["annotations"].clone()
    };
    let annotations = said_so(json!({"ingress": "20M", "egress": "5M"}));
    let both = json!({"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "5M"});
    assert_eq!(annotations, both);
    assert_eq!(said_so(json!({"egress": "1M"})), json!({"kubernetes.io/egress-bandwidth": "1M"}));
    assert_eq!(said_so(Value::Null), Value::Null);
}

#[test]
fn an_app_that_keeps_data_stays_with_it_and_says_so() {
    let mut wanted = install();
    wanted["spec"]["placement"] = json!({"disconnect": {"moveAfterSeconds": 60}});
    let world = world(Some(app()), wanted);
    assert_eq!(world.find("Deployment", "mynotes").unwrap().value()["metadata"]["annotations"], Value::Null);
    let install = world.find("Install", "mynotes").unwrap().value();
    let deployed = condition::get(&install, "Deployed").unwrap();
    assert!(deployed.message.contains("keeps data, which has one home"), "{deployed:?}");
}

#[test]
fn what_initialises_an_app_comes_to_its_pods_with_the_owners_settings_and_grants() {
    let mut app = app();
    app["spec"]["initContainers"] = json!([{"name": "migrate", "image": "notes:1", "env": [{"name": "A", "value": "app"}]},
        {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always", "ports": [{"name": "door", "containerPort": 81}]}]);
    app["spec"]["permissions"] = json!({"capabilities": ["CHOWN"]});
    app["spec"]["ingress"]["port"] = json!("door");
    let mut install = install();
    install["spec"]["grants"] = json!({"capabilities": ["CHOWN"]});
    install["spec"]["env"] = json!([{"name": "A", "value": "owner"}]);
    let mut world = world(Some(app), install);
    let first = template(&world)["spec"]["initContainers"].clone();
    assert_eq!((&first[0]["name"], &first[1]["restartPolicy"]), (&json!("migrate"), &json!("Always")));
    assert_eq!(first[0]["env"], json!([{"name": "A", "value": "owner"}]));
    assert_eq!(first[0]["securityContext"]["capabilities"]["add"], json!(["CHOWN"]));
    assert_eq!(world.find("Route", "mynotes").unwrap().value()["spec"]["target"]["port"], "door");
    // The grant is taken back, also where nothing but what initialises the app has it.
    world.edit("Deployment", "mynotes", |deployment| {
        let main = &mut deployment["spec"]["template"]["spec"]["containers"][0];
        main.as_object_mut().unwrap().remove("securityContext");
    });
    world.edit("Install", "mynotes", |install| drop(install["spec"].as_object_mut().unwrap().remove("grants")));
    settle(&mut world, &[]);
    assert_eq!(world.find("Deployment", "mynotes").unwrap().value()["spec"]["replicas"], 0);
}

#[test]
fn internet_needs_the_app_to_ask_and_the_owner_not_to_refuse() {
    for (asks, grants, expected) in [
        (true, None, "true"),
        (true, Some(true), "true"),
        (true, Some(false), "false"),
        (false, Some(true), "false"),
        (false, None, "false"),
    ] {
        let (mut app, mut install) = (app(), install());
        app["spec"]["permissions"] = json!({"internet": asks});
        install["spec"]["grants"] = json!({"internet": grants});
        let world = world(Some(app), install);
        assert_eq!(template(&world)["metadata"]["annotations"]["hearth.dev/internet"], expected, "{asks} {grants:?}");
    }
}

#[test]
fn what_is_missing_is_told_and_nothing_is_deployed() {
    let no_app = world(None, install());
    assert_eq!(said(&no_app, "AppFound"), is("False", "AppNotFound"));
    assert_eq!(said(&no_app, "Ready"), is("False", "AppNotFound"));
    assert!(no_app.find("Deployment", "mynotes").is_none());

    let mut greedy = app();
    greedy["spec"]["permissions"] = json!({"capabilities": ["NET_RAW"], "services": ["db"]});
    let mut ungranted = world(Some(greedy), install());
    assert_eq!(said(&ungranted, "PermissionsGranted"), is("False", "PermissionNotGranted"));
    assert_eq!(said(&ungranted, "Ready"), is("False", "PermissionNotGranted"));
    assert!(ungranted.find("Deployment", "mynotes").is_none());
    ungranted.edit("Install", "mynotes", |one| one["spec"]["grants"] = json!({"capabilities": ["NET_RAW"]}));
    settle(&mut ungranted, &[]);
    assert_eq!(said(&ungranted, "Ready"), is("False", "PermissionNotGranted"), "not the Service");
    ungranted.edit("Install", "mynotes", |one| one["spec"]["grants"]["services"] = json!(["db"]));
    settle(&mut ungranted, &[]);
    assert_eq!(said(&ungranted, "Ready"), is("False", "Starting"));

    let mut many = install();
    many["spec"]["replicas"] = json!(2);
    let many = world(Some(app()), many);
    assert_eq!(said(&many, "Deployed"), is("False", "TooManyReplicas"));
    assert_eq!(said(&many, "Ready"), is("False", "TooManyReplicas"));

    let mut taken = World { now: Timestamp(0), ..World::default() };
    taken.create(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "mynotes", "namespace": "alice"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "x"}]}}}}),
    );
    let before = taken.find("Deployment", "mynotes");
    taken.create(app());
    taken.create(install());
    settle(&mut taken, &[]);
    assert_eq!(said(&taken, "Deployed"), is("False", "NameTaken"));
    assert_eq!(taken.find("Deployment", "mynotes"), before, "what is another's is left alone");
}

#[test]
fn an_update_that_asks_for_more_is_held_back_and_a_revoked_grant_stops() {
    let mut install = install();
    install["spec"]["grants"] = json!({"capabilities": ["NET_RAW"]});
    let mut first = app();
    first["spec"]["permissions"] = json!({"capabilities": ["NET_RAW"]});
    let mut world = world(Some(first), install);
    let before = template(&world);
    world.edit("App", "notes", |app| {
        app["spec"]["permissions"]["capabilities"] = json!(["NET_RAW", "SYS_CHROOT"]);
        app["spec"]["containers"][0]["image"] = json!("notes:2");
    });
    settle(&mut world, &[]);
    assert_eq!(template(&world), before, "the granted version is kept");
    assert_eq!(said(&world, "Deployed"), is("False", "HeldBack"));
    world.edit("Install", "mynotes", |one| one["spec"]["grants"] = json!({}));
    settle(&mut world, &[]);
    assert_eq!(world.find("Deployment", "mynotes").unwrap().value()["spec"]["replicas"], 0);
}

#[test]
fn an_app_that_is_deleted_leaves_what_runs() {
    let mut world = world(Some(app()), install());
    let before = world.find("Deployment", "mynotes");
    let app = world.find("App", "notes").unwrap();
    world.delete(&app);
    let running = [Pods::named("p").on("nas").ready().seen(true)];
    settle(&mut world, &running);
    assert_eq!(world.find("Deployment", "mynotes"), before);
    assert!(world.find("Route", "mynotes").is_some() && world.find("PersistentVolumeClaim", "mynotes-data").is_some());
    assert_eq!(said(&world, "AppFound"), is("False", "AppNotFound"));
    assert_eq!(said(&world, "Available"), is("True", "Running"), "it does run");
    assert_eq!(said(&world, "Ready"), is("False", "AppNotFound"), "but nobody knows what it should be");
    world.edit("Install", "mynotes", |one| one["spec"]["stopped"] = json!(true));
    settle(&mut world, &[]);
    assert_eq!(
        world.find("Deployment", "mynotes").unwrap().value()["spec"]["replicas"],
        0,
        "its owner can still stop it"
    );
}

#[test]
fn the_route_goes_with_the_door_and_claims_grow_and_never_shrink() {
    let mut world = world(Some(app()), install());
    world.edit("App", "notes", |app| {
        app["spec"].as_object_mut().unwrap().remove("ingress");
        app["spec"]["volumes"][0]["size"] = json!("2Gi");
    });
    settle(&mut world, &[]);
    assert!(world.find("Route", "mynotes").is_none());
    assert!(world.find("Install", "mynotes").unwrap().value()["status"].get("hostname").is_none());
    let size = |world: &World| {
        world.find("PersistentVolumeClaim", "mynotes-data").unwrap().value()["spec"]["resources"]["requests"]["storage"]
            .clone()
    };
    assert_eq!(size(&world), "2Gi");
    world.edit("App", "notes", |app| app["spec"]["volumes"] = json!([{"name": "data", "size": "1Gi"}]));
    settle(&mut world, &[]);
    assert_eq!(size(&world), "2Gi");
    world.edit("App", "notes", |app| {
        app["spec"]["volumes"] = json!([]);
        app["spec"]["containers"][0].as_object_mut().unwrap().remove("volumeMounts");
    });
    settle(&mut world, &[]);
    assert!(world.find("PersistentVolumeClaim", "mynotes-data").is_some(), "data is never deleted by an update");
    assert_eq!(world.find("Deployment", "mynotes").unwrap().value()["spec"]["strategy"]["type"], "RollingUpdate");
}

/// The Deployment's controller has seen it, and `old` pods of former templates and `new` ones of this one are there.
fn deployment_has(world: &mut World, old: i64, new: i64) {
    world.edit("Deployment", "mynotes", |one| {
        one["status"] = json!({"observedGeneration": one["metadata"]["generation"], "replicas": old + new, "updatedReplicas": new});
    });
}

#[test]
fn an_install_is_not_ready_while_an_older_version_runs() {
    let mut world = world(Some(app()), install());
    let old = [Pods::named("old").on("nas").ready().seen(true)];
    deployment_has(&mut world, 0, 1);
    settle(&mut world, &old);
    assert_eq!(said(&world, "Ready"), is("True", "Running"));
    world.edit("App", "notes", |app| app["spec"]["containers"][0]["image"] = json!("notes:2"));
    let first = look(&world, &old);
    world.apply(&first);
    assert_eq!(said(&world, "Ready"), is("False", "Updating"), "at once, before its Deployment was looked at");
    settle(&mut world, &old);
    assert_eq!(said(&world, "Ready"), is("False", "Updating"));
    deployment_has(&mut world, 1, 1);
    let mut value = Pods::named("new").on("nas").view().object.value();
    value["status"] = json!({"phase": "Pending", "containerStatuses": [{"name": "web", "ready": false,
        "state": {"waiting": {"reason": "ImageNotPresent", "message": "import notes:2"}}}]});
    let new = Object::from_value(value).unwrap();
    let new =
        SeenPod { pod: std::sync::Arc::new(crate::PodView::read(&new, &new.value())), connected: true, since: None };
    let both = [old[0].clone(), new];
    settle(&mut world, &both);
    assert_eq!(said(&world, "Ready"), is("False", "Updating"));
    assert_eq!(said(&world, "Available"), is("True", "Running"));
    let ready = condition::get(&world.find("Install", "mynotes").unwrap().value(), "Ready").unwrap();
    assert_eq!(
        ready.message,
        "nas still runs what was asked for before; of what is asked for now: ImageNotPresent: import notes:2"
    );
    deployment_has(&mut world, 0, 1);
    settle(&mut world, &[Pods::named("new").on("nas").ready().seen(true)]);
    assert_eq!(said(&world, "Ready"), is("True", "Running"));
}

#[test]
fn the_architectures_of_an_app_come_to_its_pods() {
    let mut app = app();
    assert!(list(&app, "/spec/architectures").next().is_none());
    let found = |app: &Value| {
        let object = Object::from_value(install()).unwrap();
        let deployment = desired::deployment(&object, &install(), app, None);
        deployment
            .pointer("/spec/template/metadata/annotations")
            .unwrap()
            .get(hearth_types::kinds::ARCHITECTURES_ANNOTATION)
            .cloned()
    };
    assert_eq!(found(&app), None);
    app["spec"]["architectures"] = json!(["amd64", "arm64"]);
    assert_eq!(found(&app), Some(json!("amd64,arm64")));
}

#[test]
fn readiness_says_what_is_going_on() {
    let mut world = world(Some(app()), install());
    deployment_has(&mut world, 0, 1);
    let waiting = |reason: &str| {
        let mut pod = Pods::named("p").on("nas").view().object.value();
        pod["status"] = json!({"phase": "Pending", "containerStatuses": [{"name": "web", "ready": false,
            "state": {"waiting": {"reason": reason, "message": "it says why"}}}]});
        let object = Object::from_value(pod).unwrap();
        let pod = crate::PodView::read(&object, &object.value());
        SeenPod { pod: std::sync::Arc::new(pod), connected: true, since: None }
    };
    let unplaced = {
        let mut pod = Pods::named("p").view().object.value();
        pod["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 devices"}]});
        let object = Object::from_value(pod).unwrap();
        SeenPod {
            pod: std::sync::Arc::new(crate::PodView::read(&object, &object.value())),
            connected: false,
            since: None,
        }
    };
    for (pods, expected, device) in [
        (vec![unplaced], is("False", "Pending"), None),
        (vec![Pods::named("p").on("nas").seen(true)], is("False", "Starting"), Some("nas")),
        (vec![waiting("ContainerCreating")], is("False", "Starting"), Some("nas")),
        (vec![waiting("CrashLoopBackOff")], is("False", "CrashLoopBackOff"), Some("nas")),
        (vec![waiting("ImageNotPresent")], is("False", "ImageNotPresent"), Some("nas")),
        (vec![Pods::named("p").on("nas").ready().seen(true)], is("True", "Running"), Some("nas")),
        (vec![Pods::named("p").on("nas").ready().seen(false)], is("Unknown", "DeviceSilent"), Some("nas")),
        (vec![Pods::named("p").on("nas").phase("Failed").seen(true)], is("False", "Failed"), None),
        (vec![Pods::named("p").on("nas").deleting().seen(true)], is("False", "Restarting"), None),
    ] {
        settle(&mut world, &pods);
        assert_eq!(said(&world, "Ready"), expected);
        let value = world.find("Install", "mynotes").unwrap().value();
        assert_eq!(value["status"].get("device").and_then(Value::as_str), device);
    }
    world.edit("Install", "mynotes", |one| one["spec"]["stopped"] = json!(true));
    settle(&mut world, &[]);
    assert_eq!(said(&world, "Ready"), is("False", "Stopped"));
    assert_eq!(world.find("Route", "mynotes").unwrap().value()["spec"]["stopped"], true);
    world.edit("Install", "mynotes", |one| one["spec"]["stopped"] = json!(false));
    settle(&mut world, &[]);
    assert_eq!(world.find("Deployment", "mynotes").unwrap().value()["spec"]["replicas"], 1);
    assert!(world.find("Route", "mynotes").unwrap().value()["spec"].get("stopped").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_series_of_changes_settles_and_deploys_nothing_that_was_not_granted(
        steps in proptest::collection::vec((0..8_u8, any::<bool>()), 1..12),
    ) {
        let mut world = world(Some(app()), install());
        for (step, flag) in steps {
            if world.find("App", "notes").is_none() {
                world.create(app());
            }
            let caps = if flag { json!(["NET_RAW"]) } else { json!([]) };
            match step {
                0 => drop(world.edit("App", "notes", |app| app["spec"]["permissions"]["capabilities"] = caps)),
                1 => drop(world.edit("Install", "mynotes", |one| one["spec"]["grants"] = json!({"capabilities": caps}))),
                2 => drop(world.edit("Install", "mynotes", |one| one["spec"]["stopped"] = json!(flag))),
                3 => drop(world.edit("Install", "mynotes", |one| one["spec"]["replicas"] = json!(1 + i32::from(flag)))),
                4 => drop(world.edit("App", "notes", |app| if flag { app["spec"]["ingress"] = json!({"port": 8080}) } else { drop(app["spec"].as_object_mut().unwrap().remove("ingress")) })),
                5 => {
                    let app = world.find("App", "notes").unwrap();
                    world.delete(&app);
                }
                6 => drop(world.edit("App", "notes", |app| app["spec"]["containers"][0]["image"] = json!(format!("notes:{flag}")))),
                _ => drop(world.edit("Install", "mynotes", |one| one["spec"]["env"] = json!([{"name": "X", "value": flag.to_string()}]))),
            }
            settle(&mut world, &[]);
            let deployment = world.find("Deployment", "mynotes").unwrap().value();
            let install = world.find("Install", "mynotes").unwrap().value();
            let added = deployment.pointer("/spec/template/spec/containers/0/securityContext/capabilities/add").is_some_and(|add| add == &json!(["NET_RAW"]));
            let granted = install.pointer("/spec/grants/capabilities").is_some_and(|list| list == &json!(["NET_RAW"]));
            prop_assert!(!added || granted || deployment["spec"]["replicas"] == 0);
            prop_assert!(world.find("PersistentVolumeClaim", "mynotes-data").is_some());
        }
    }
}
