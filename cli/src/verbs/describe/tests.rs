use serde_json::json;

use super::*;

/// A minute after what the objects below say.
const NOW: Timestamp = Timestamp(1_700_000_060_000);
const THEN: &str = "2023-11-14T22:13:20Z";

fn text(kind: &str, object: &Value, around: &Around) -> String {
    describe(target::kind(kind).expect("a kind"), object, around, NOW).join("\n")
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing\n{text}");
    }
}

#[test]
fn a_pod_is_told_whole() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "a", "labels": {"x": "1", "y": "2"}, "creationTimestamp": THEN,
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {"nodeName": "nas", "restartPolicy": "Always", "nodeSelector": {"kubernetes.io/archType": "x"},
            "containers": [{"name": "c", "image": "i", "command": ["sh", "-c"], "workingDir": "/w",
                "ports": [{"containerPort": 80, "name": "http"}],
                "resources": {"limits": {"memory": "64Mi"}},
                "env": [{"name": "DB_HOST", "value": "db"}, {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": true}]}],
            "ephemeralContainers": [{"name": "debugger-1", "image": "busybox", "targetContainerName": "c", "stdin": true}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "claim"}}],
            "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "containerStatuses": [{"name": "c", "ready": false, "restartCount": 4, "imageID": "sha256:1",
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "finishedAt": THEN}}}],
            "ephemeralContainerStatuses": [{"name": "debugger-1", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 7, "reason": "Error"}}}],
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "no", "lastTransitionTime": THEN}]}});
    let event = json!({"type": "Warning", "reason": "BackOff", "message": "again\n", "count": 3,
        "lastTimestamp": THEN, "firstTimestamp": THEN, "source": {"component": "agent"}});
    let text = text("pod", &pod, &Around { events: vec![event], pods: None });
    contains(
        &text,
        &[
            "Name:           p",
            "Labels:         x=1\n                y=2",
            "Created:        2023-11-14T22:13:20Z (60s ago)",
            "Node:           nas",
            "IPs:            10.0.0.1, fd00::1",
            "Containers:\n  c:\n",
            "    Ports:          80/TCP (http)",
            "    Command:\n      sh\n      -c",
            "    State:          Waiting\n      Reason:         CrashLoopBackOff\n      Message:        back-off",
            "    Last State:     Terminated\n      Reason:         Error\n      Exit Code:      3",
            "    Restart Count:  4",
            "    Limits:\n      memory:         64Mi",
            "      DB_HOST:        db",
            "      KEY:            <set to the key 'k' in secret 's'>  Optional: false",
            "      /data from data (ro)",
            "    Working Dir:    /w",
            "Ephemeral Containers:\n  debugger-1:\n    Image:          busybox\n    State:          Terminated\n",
            "      Exit Code:      7",
            "    Target Container Name: c",
            "Volumes:\n  data:\n    Type:           Persistent Volume Claim\n    Claim Name:  claim",
            "Restart Policy: Always",
            "Node Selector:\n  kubernetes.io/archType:  x",
            "k:NoSchedule op=Exists",
            "Ready   False    ContainersNotReady   60s   no",
            "60s (x3 over 60s)",
        ],
    );
    assert!(!text.contains("last-applied"));
}

#[test]
fn what_people_named_stays_as_they_named_it() {
    let map = json!({"metadata": {"name": "m", "namespace": "a"},
        "data": {"file.txt": "one\n\ttwo\u{1b}[2J\n", "DB_HOST": "db"}, "binaryData": {"logo.png": "aHVudGVyMg=="}});
    let told = text("configmap", &map, &Around::default());
    contains(
        &told,
        &["Data\n====\nDB_HOST:\n----\ndb\n\nfile.txt:\n----\none\n\ttwo [2J\n", "BinaryData\n====\nlogo.png: 7 bytes"],
    );
    let secret =
        json!({"metadata": {"name": "s", "namespace": "a"}, "type": "Opaque", "data": {"passWord": "aHVudGVyMg=="}});
    let told = text("secret", &secret, &Around::default());
    contains(&told, &["passWord:  7 bytes"]);
    assert!(!told.contains("aHVudGVyMg"), "{told}");
    let route = json!({"metadata": {"name": "r", "namespace": "a"},
        "spec": {"hostname": "h", "target": {"selector": {"hearth.dev/appName": "webApp"}, "port": "http"}},
        "status": {"endpoints": [{"device": "nas", "pod": "p", "ready": true}, {"device": "attic"}]}});
    let told = text("route", &route, &Around::default());
    contains(
        &told,
        &[
            "    Selector:\n      hearth.dev/appName:  webApp",
            "  Endpoints:\n    - Device:  nas\n      Pod:  p\n      Ready:  true\n    - Device:  attic",
        ],
    );
}

#[test]
fn workloads_tell_their_replicas_template_and_pods() {
    let pod = json!({"metadata": {"name": "web-1", "namespace": "a", "creationTimestamp": THEN}, "spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running"}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "a"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
        "status": {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 1,
            "conditions": [{"type": "Available", "status": "False", "reason": "Few", "message": "m"}]}});
    let told = text("deployment", &deployment, &Around { events: Vec::new(), pods: Some(vec![pod]) });
    contains(
        &told,
        &[
            "Selector:       app=web",
            "3 desired | 2 updated | 2 total | 1 available | 2 unavailable",
            "Pod Template:\n  Labels:         app=web",
            "  Containers:\n    c:\n      Image:          i",
            "Available   False    Few",
            "a           web-1   0/1     Running",
            "Events:         <none>",
        ],
    );
}

#[test]
fn every_kind_can_be_described() {
    for info in hearth_types::registry::all() {
        let object = json!({"apiVersion": info.api_version(), "kind": info.kind, "metadata": {"name": "x"}});
        let told = describe(info, &object, &Around::default(), NOW).join("\n");
        assert!(told.starts_with("Name:           x"), "{told}");
    }
}
