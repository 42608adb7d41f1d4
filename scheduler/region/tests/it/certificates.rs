//! Certificates by a device's session: for which names, and for whom.

use hearth_proto::v1::{CertificateRequest, device_message::Message as Out, region_message::Message as In};
use hearth_types::{GroupKind, admission::Part};
use serde_json::json;

use crate::{
    sessions::pod,
    support::{FakeDevice, PATIENCE, Rig},
};

#[tokio::test]
async fn certificates_are_for_names_that_lead_to_the_device() {
    let rig = Rig::start().await;
    let route = |name: &str, app: &str| {
        json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Route", "metadata": {"name": name, "namespace": "alice"},
            "spec": {"hostname": format!("{name}.alice.hearth.internal"), "target": {"selector": {"app": app}, "port": 80}}})
    };
    rig.create(route("mine", "mine")).await;
    rig.create(route("theirs", "theirs")).await;
    let mut nas = rig.connected("nas").await;
    let _attic = rig.connected("attic").await;
    for (name, device) in [("mine", "nas"), ("theirs", "attic")] {
        let mut pod = pod(name, device);
        pod["metadata"]["labels"] = json!({"app": name});
        rig.create(pod).await;
    }
    nas.until("its Route", |desired| desired.contains_key("Route/alice/mine")).await;
    assert!(!nas.desired.contains_key("Route/alice/theirs"));
    let host = |name: &str| format!("{name}.alice.hearth.internal");
    for (names, granted) in [
        (vec![host("mine")], true),
        // Its owner lets no name inside the home be told.
        (vec!["mine.lan.alice.hearth.internal".to_owned()], false),
        (vec![host("theirs")], false),
        (vec!["theirs.lan.alice.hearth.internal".to_owned()], false),
        (vec![host("mine"), host("theirs")], false),
        (vec!["hearth.internal".to_owned()], false),
        (vec![], false),
    ] {
        nas.send(Out::CertificateRequest(CertificateRequest {
            id: 5,
            csr_der: b"csr".as_slice().into(),
            names: names.clone(),
            certificate: String::new(),
        }))
        .await;
        let answer = loop {
            if let In::Certificate(answer) = nas.next().await.unwrap() {
                break answer;
            }
        };
        assert_eq!(answer.id, 5);
        assert_eq!(answer.error.is_empty(), granted, "{names:?}: {}", answer.error);
        assert_eq!(&answer.chain_pem[..], if granted { b"signed:csr".as_slice() } else { b"" });
    }
    assert_eq!(*rig.signer.0.lock().unwrap(), [vec![host("mine")]]);
}

#[tokio::test]
async fn a_device_asks_for_its_own_certificate_alone_and_no_proof_of_another_owners_name_is_told() {
    let rig = Rig::start().await;
    let settings = hearth_types::acme::Settings::new("https://ca.example/dir");
    rig.create(settings.write(None)).await;
    rig.create(
        json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Route", "metadata": {"name": "mine", "namespace": "alice"},
        "spec": {"hostname": "mine.alice.hearth.internal", "target": {"selector": {"app": "mine"}, "port": 80}}}),
    )
    .await;
    let mut nas = rig.connected("nas").await;
    let bobs = rig.device("tower", "bob").await;
    let mut tower = FakeDevice::connect(rig.address, "tower", bobs).await;
    let mut pod = pod("mine", "nas");
    pod["metadata"]["labels"] = json!({"app": "mine"});
    rig.create(pod).await;
    nas.until("its Certificate", |desired| desired.contains_key("Certificate/alice/nas")).await;
    let certificate = rig.get(GroupKind::CERTIFICATE, "alice", "nas").await.unwrap();
    let zone = "hearth.internal";
    assert_eq!(certificate["spec"]["dnsNames"], json!(hearth_types::acme::owner_names("alice", zone)));
    assert!(rig.get(GroupKind::CERTIFICATE, "bob", "tower").await.is_none(), "it serves nothing");
    let ask = |names: &[&str], certificate: &str| {
        Out::CertificateRequest(CertificateRequest {
            id: 7,
            csr_der: b"csr".as_slice().into(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            certificate: certificate.to_owned(),
        })
    };
    let answer = async |device: &mut FakeDevice, message| {
        device.send(message).await;
        loop {
            if let In::Certificate(answer) = device.next().await.unwrap() {
                return answer.error;
            }
        }
    };
    for refused in ["nas", "tower", "../alice/nas", "x"] {
        assert!(answer(&mut tower, ask(&[], refused)).await.contains("no Certificate"), "{refused}");
    }
    assert!(answer(&mut nas, ask(&["mine.bob.hearth.internal"], "nas")).await.contains("names none itself"));
    assert_eq!(answer(&mut nas, ask(&[], "nas")).await, "");
    assert_eq!(answer(&mut nas, ask(&[], "nas")).await, "", "the same once more changes nothing");
    let certificate = rig.get(GroupKind::CERTIFICATE, "alice", "nas").await.unwrap();
    assert_eq!(certificate["status"]["request"]["csr"], "Y3Ny");
    // What its order has the zone tell is of the Certificate's own names, whatever stands in its status.
    let challenge = |name: &str| json!({"dnsName": name, "value": "a".repeat(43)});
    rig.edit_part(Part::Status, (GroupKind::CERTIFICATE, "alice", "nas"), |value| {
        value["status"]["order"] = json!({"url": "u", "challenges":
            [challenge("alice.hearth.internal"), challenge("lan.alice.hearth.internal"), challenge("bob.hearth.internal")]});
    })
    .await;
    let routes = rig.handle.routes();
    let told = |name: &str| routes.records(&format!("_acme-challenge.{name}")).len();
    tokio::time::timeout(PATIENCE, async {
        while told("alice.hearth.internal") == 0 {
            routes.changed(routes.serial()).await;
        }
    })
    .await
    .unwrap();
    assert_eq!((told("lan.alice.hearth.internal"), told("bob.hearth.internal")), (1, 0));
    rig.edit_part(Part::Status, (GroupKind::CERTIFICATE, "alice", "nas"), |value| {
        value["status"].as_object_mut().unwrap().remove("order");
    })
    .await;
    tokio::time::timeout(PATIENCE, async {
        while told("alice.hearth.internal") > 0 {
            routes.changed(routes.serial()).await;
        }
    })
    .await
    .unwrap();
}
