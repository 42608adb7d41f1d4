use std::{future::Future, pin::Pin, sync::atomic::Ordering, time::Duration};

use hearth_proto::v1::{self, exec_input::Input, exec_output::Output};
use hearth_types::{
    DeviceName,
    tunnel::{Dialer as _, IngressHeader, StreamKind},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_stream::StreamExt as _;

use crate::{device::Device, pressure::what_no_pod_misses_goes_before_any_pod_does, region::Region};

type Body = fn() -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! list {
    ($($name:ident),* $(,)?) => {
        pub fn all() -> Vec<(&'static str, Body)> {
            vec![$((stringify!($name), || Box::pin($name()))),*]
        }
    };
}

list!(
    joining_twice_is_harmless_and_as_another_is_refused,
    a_pod_runs_with_volumes_and_environment_and_answers_by_name,
    a_crashing_container_backs_off_and_tells_why,
    containers_survive_the_agent_and_its_zygote,
    a_device_brings_its_pods_up_without_a_region,
    another_incarnation_or_an_older_region_stops_nothing,
    a_claim_has_one_pod_at_a_time,
    statuses_are_sent_again_until_they_are_acknowledged,
    a_missing_image_is_waited_for_and_a_missing_secret_named,
    a_deleted_pod_stops_gracefully_and_its_claim_goes_when_marked,
    a_device_follows_the_leader_and_knows_the_servers_after_a_restart,
    what_no_pod_misses_goes_before_any_pod_does,
);

pub fn pod(name: &str, script: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "alice", "uid": format!("uid-{name}"), "labels": {"app": name}},
        "spec": {"nodeName": "nas", "restartPolicy": "Always", "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "main", "image": "busybox:1",
                "command": ["/bin/busybox", "sh", "-c", script]}]}})
}

fn claim(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "alice", "uid": format!("uid-{name}")},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
}

async fn start() -> (Region, Device) {
    let region = Region::start().await;
    let mut device = Device::new(&region).await;
    region.enroll(device.join(&region).await.unwrap().key);
    device.start(&region.address.to_string());
    region.heard("a hello", |heard| (!heard.hellos.is_empty()).then_some(())).await;
    (region, device)
}

pub async fn exec(region: &Region, pod: &str, command: &[&str], stdin: Option<&[u8]>) -> (String, i32) {
    let start = v1::ExecStart {
        namespace: "alice".into(),
        pod: pod.into(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        stdin: stdin.is_some(),
        ..v1::ExecStart::default()
    };
    let mut input = vec![Input::Start(start)];
    if let Some(stdin) = stdin {
        input.push(Input::Stdin(stdin.to_vec().into()));
        input.push(Input::StdinClosed(true));
    }
    let input: Vec<_> = input.into_iter().map(|one| v1::ExecInput { input: Some(one) }).collect();
    let mut door = region.door().await;
    let mut output = door.exec(tokio_stream::iter(input)).await.unwrap().into_inner();
    let mut text = Vec::new();
    loop {
        match output.next().await.unwrap().unwrap().output.unwrap() {
            Output::Stdout(data) | Output::Stderr(data) => text.extend_from_slice(&data),
            Output::ExitCode(code) => return (String::from_utf8(text).unwrap(), code),
            Output::Error(error) => panic!("{error}"),
        }
    }
}

async fn logs(region: &Region, request: v1::LogsRequest) -> Result<String, tonic::Status> {
    let mut chunks = region.door().await.logs(request).await?.into_inner();
    let mut text = Vec::new();
    while let Some(chunk) = chunks.next().await {
        text.extend_from_slice(&chunk?.data);
    }
    Ok(String::from_utf8(text).unwrap())
}

fn logs_of(pod: &str) -> v1::LogsRequest {
    v1::LogsRequest { namespace: "alice".into(), pod: pod.into(), ..v1::LogsRequest::default() }
}

/// The pid of the container that sleeps so many seconds.
fn pid_of(seconds: &str) -> Option<u32> {
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        (line == format!("/bin/busybox\0sleep\0{seconds}\0").into_bytes()).then_some(pid)
    })
}

pub async fn eventually<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = find() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), found).await.unwrap_or_else(|_| panic!("never: {what}"))
}

async fn joining_twice_is_harmless_and_as_another_is_refused() {
    let region = Region::start().await;
    let device = Device::without_image(&region).await;
    let first = device.join(&region).await.unwrap();
    let again = device.join(&region).await.unwrap();
    assert_eq!(first.key, again.key, "the key is made once");
    let other = Region::start().await;
    let mut token: hearth_types::token::JoinToken = other.token().parse().unwrap();
    token.server_name = "api.other".into();
    let refused = hearth_agent::join(hearth_agent::JoinOptions {
        token: token.to_string(),
        name: None,
        owner: None,
        data_dir: device.dir.clone(),
        server: None,
        now: crate::device::now(),
    })
    .await;
    assert!(matches!(refused, Err(hearth_agent::IdentityError::Joined { .. })), "{refused:?}");
    let identity = hearth_agent::Identity::load(&device.dir).unwrap().unwrap();
    assert_eq!((identity.device().as_str(), identity.owner(), identity.zone()), ("nas", "alice", "test"));
}

async fn a_pod_runs_with_volumes_and_environment_and_answers_by_name() {
    let (region, _device) = start().await;
    let script = "echo hello $GREETING; echo kept > /data/file; /bin/busybox mkdir -p /tmp/www; echo page > /tmp/www/index.html; \
                  /bin/busybox cat /etc/conf/a.txt; echo; exec /bin/busybox httpd -f -p 8080 -h /tmp/www";
    let mut web = pod("web", script);
    web["spec"]["containers"][0]["env"] = json!([{"name": "GREETING",
        "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "greeting"}}}]);
    web["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    web["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/data"}, {"name": "conf", "mountPath": "/etc/conf"}]);
    web["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "web-data"}},
        {"name": "conf", "configMap": {"name": "conf", "items": [{"key": "a", "path": "a.txt"}]}}]);
    let conf = |a: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "conf", "namespace": "alice", "uid": "uid-conf"},
            "data": {"greeting": "alice", "a": a}})
    };
    let route = json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Route",
        "metadata": {"name": "web", "namespace": "alice", "uid": "uid-route"},
        "spec": {"hostname": "web.alice.test", "target": {"selector": {"app": "web"}, "port": "http"}}});
    let objects = |a: &str| vec![web.clone(), claim("web-data"), conf(a), route.clone()];
    region.desire(objects("first")).await;
    let status = region.running("web").await;
    assert_eq!(status["phase"], "Running");
    assert!(status["podIP"].is_string(), "{status}");
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    region.status("web-data", "bound", |status| status["phase"] == "Bound").await;

    // Logs, with what kubectl can ask for.
    let expected = "hello alice\nfirst";
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let text = logs(&region, logs_of("web")).await.unwrap();
        if text.starts_with(expected) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let tail = v1::LogsRequest { tail: Some(1), timestamps: true, ..logs_of("web") };
    let text = logs(&region, tail).await.unwrap();
    assert!(text.contains("Z first") && !text.contains("hello"), "{text}");
    let missing = logs(&region, v1::LogsRequest { container: "x".into(), ..logs_of("web") }).await.unwrap_err();
    assert_eq!(missing.message(), "container x is not valid for pod web");

    // Exec, with input and an exit code.
    let (text, code) = exec(&region, "web", &["/bin/busybox", "cat", "/data/file"], None).await;
    assert_eq!((text.as_str(), code), ("kept\n", 0));
    let (text, code) =
        exec(&region, "web", &["/bin/busybox", "sh", "-c", "/bin/busybox cat; exit 7"], Some(b"to stdin")).await;
    assert_eq!((text.as_str(), code), ("to stdin", 7));

    // With a terminal of the size that was asked for; and a command whose client leaves is killed.
    let start = |command: &[&str], tty| v1::ExecInput {
        input: Some(Input::Start(v1::ExecStart {
            namespace: "alice".into(),
            pod: "web".into(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            tty,
            stdin: true,
            size: Some(v1::WindowSize { columns: 101, rows: 33 }),
            ..v1::ExecStart::default()
        })),
    };
    let stty = tokio_stream::once(start(&["/bin/busybox", "stty", "size"], true));
    let mut output = region.door().await.exec(stty.chain(tokio_stream::pending())).await.unwrap().into_inner();
    let mut text = String::new();
    loop {
        match output.next().await.unwrap().unwrap().output.unwrap() {
            Output::Stdout(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
            Output::ExitCode(code) => break assert_eq!(code, 0),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(text.trim(), "33 101");
    let (input, queue) = tokio::sync::mpsc::channel(1);
    input.send(start(&["/bin/busybox", "sleep", "135792"], false)).await.unwrap();
    let queue = tokio_stream::wrappers::ReceiverStream::new(queue);
    let output = region.door().await.exec(queue).await.unwrap().into_inner();
    eventually("the command", || pid_of("135792")).await;
    // Both directions, as a client's end is seen: HTTP/2 resets a stream once nobody holds either.
    drop((input, output));
    eventually("its end", || pid_of("135792").is_none().then_some(())).await;

    // A mounted ConfigMap changes while the container runs.
    region.desire(objects("second")).await;
    loop {
        let (text, _) = exec(&region, "web", &["/bin/busybox", "cat", "/etc/conf/a.txt"], None).await;
        if text == "second" {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline + Duration::from_secs(20), "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // A user's request: TLS ends on the device, with a certificate that the region signed for a key made there.
    let body = get(&region, "web.alice.test").await;
    assert!(body.contains("200 OK") && body.contains("page"), "{body}");
    let metrics = region.door().await.metrics(v1::MetricsRequest {}).await.unwrap().into_inner().text;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(metrics.contains("hearth_agent_ingress_requests_total{class=\"2xx\"} 1"), "{metrics}");
    assert!(metrics.contains("hearth_agent_session_up 1"), "{metrics}");
}

async fn get(region: &Region, host: &str) -> String {
    let device = DeviceName::from("nas");
    let mut stream = region.hub.dial(&device, StreamKind::Ingress).await.unwrap();
    let caller = "203.0.113.9:5000".parse().unwrap();
    stream.write_all(&IngressHeader { caller }.encode()).await.unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(region.ca.clone()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap();
    let mut tls = connector.connect(name, stream).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut body = Vec::new();
    // The end of the stream may come without TLS's own end.
    let _ = tokio::time::timeout(Duration::from_secs(20), tls.read_to_end(&mut body)).await.unwrap();
    String::from_utf8_lossy(&body).into_owned()
}

async fn a_crashing_container_backs_off_and_tells_why() {
    let (region, _device) = start().await;
    region.desire(vec![pod("crash", "echo attempt; exit 3")]).await;
    let status = region
        .status("crash", "backing off", |status| {
            status.pointer("/containerStatuses/0/state/waiting/reason") == Some(&json!("CrashLoopBackOff"))
        })
        .await;
    let container = &status["containerStatuses"][0];
    assert_eq!(container["restartCount"], 1, "the first restart is immediate");
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(container["lastState"]["terminated"]["reason"], "Error");
    let previous = v1::LogsRequest { previous: true, ..logs_of("crash") };
    assert_eq!(logs(&region, previous).await.unwrap(), "attempt\n");
    region.heard("BackOff", |heard| heard.events.iter().find(|one| one.reason == "BackOff").map(|_| ())).await;
    // It starts again after 10 s; a follower sees it.
    let follow = v1::LogsRequest { follow: true, ..logs_of("crash") };
    let mut chunks = region.door().await.logs(follow).await.unwrap().into_inner();
    let mut text = String::new();
    while text.matches("attempt").count() < 2 {
        let chunk = tokio::time::timeout(Duration::from_secs(20), chunks.next()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk.data).unwrap());
    }
}

async fn containers_survive_the_agent_and_its_zygote() {
    let (region, mut device) = start().await;
    let marker = format!("survivor-{}", device.instance);
    region.desire(vec![pod("live", &format!("echo {marker}; exec /bin/busybox sleep 987654"))]).await;
    region.running("live").await;
    let before = eventually("the container", || pid_of("987654")).await;
    device.kill();
    region
        .heard("the hello of the next agent", {
            device.start(&region.address.to_string());
            |heard| (heard.hellos.len() >= 2).then_some(())
        })
        .await;
    // The new agent knows it: exec works, and the process is the same.
    let (text, _) = exec(&region, "live", &["/bin/busybox", "cat", "/proc/1/cmdline"], None).await;
    assert!(text.contains("987654"), "{text}");
    assert_eq!(pid_of("987654"), Some(before));
    let status = region.running("live").await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0, "{status}");
    // Without its zygote, the agent executes itself again, in the same process.
    let agent = device.agent_pid();
    let zygote = children_of(agent).into_iter().next().expect("a zygote");
    kill(zygote);
    region.heard("a hello after that", |heard| (heard.hellos.len() >= 3).then_some(())).await;
    assert!(device.is_running());
    assert_eq!(device.agent_pid(), agent);
    let (_, code) = exec(&region, "live", &["/bin/busybox", "true"], None).await;
    assert_eq!(code, 0);
    assert_eq!(pid_of("987654"), Some(before));
}

fn children_of(parent: u32) -> Vec<i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let after = stat.rsplit_once(')')?.1;
            (after.split_whitespace().nth(1)?.parse::<u32>().ok()? == parent).then_some(pid)
        })
        .collect()
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

async fn a_device_brings_its_pods_up_without_a_region() {
    let (region, mut device) = start().await;
    let mut web = pod("kept", "echo up >> /data/starts; exec /bin/busybox sleep 876543");
    web["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    web["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "kept-data"}}]);
    region.desire(vec![web, claim("kept-data")]).await;
    region.running("kept").await;
    eventually("the first start", || pid_of("876543")).await;
    device.kill();
    // As a reboot does: all processes, links and cgroups are gone; the data stays.
    hearth_agent::teardown(&device.dir, &device.instance).unwrap();
    assert_eq!(pid_of("876543"), None);
    let begin = std::time::Instant::now();
    // A port where nobody listens.
    device.start("127.0.0.1:1");
    eventually("the pod without a region", || pid_of("876543")).await;
    eprintln!("serving {} ms after the agent's start, without a region", begin.elapsed().as_millis());
    let starts = std::fs::read_dir(device.paths().volumes().join("claims")).unwrap();
    assert!(starts.count() > 0);
    assert!(device.is_running());
    device.kill();
    // Back in reach, it tells what happened.
    let hellos = region.shared.heard.lock().unwrap().hellos.len();
    device.start(&region.address.to_string());
    region.heard("a hello", |heard| (heard.hellos.len() > hellos).then_some(())).await;
    let status = region
        .status("kept", "with its restart", |status| {
            status.pointer("/containerStatuses/0/restartCount") == Some(&json!(1))
        })
        .await;
    let last = &status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(255), &json!("ContainerStatusUnknown")));
    let (text, _) = exec(&region, "kept", &["/bin/busybox", "cat", "/data/starts"], None).await;
    assert_eq!(text, "up\nup\n", "its data was kept");
}

async fn another_incarnation_or_an_older_region_stops_nothing() {
    let (region, device) = start().await;
    let nas = |annotations: Value| {
        json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device",
            "metadata": {"name": "nas", "uid": "uid-nas", "annotations": annotations}})
    };
    region.desire(vec![pod("stays", "exec /bin/busybox sleep 765432"), nas(json!({}))]).await;
    region.running("stays").await;
    let pid = eventually("the container", || pid_of("765432")).await;
    for (incarnation, revision) in [("two", 1000), ("one", 3)] {
        let hellos = region.shared.heard.lock().unwrap().hellos.len();
        *region.shared.incarnation.lock().unwrap() = incarnation.into();
        region.shared.revision.store(revision, Ordering::SeqCst);
        // First of all, so that what follows is not said in the session of before.
        region.hang_up();
        // The region's disk is empty, but for the device.
        region.desire(vec![nas(json!({}))]).await;
        region.heard("another session", |heard| (heard.hellos.len() > hellos).then_some(())).await;
        eventually("the refusal", || device.log().contains("the region is not believed").then_some(())).await;
        // The device still serves what the region asks for over the tunnel.
        let (_, code) = exec(&region, "stays", &["/bin/busybox", "true"], None).await;
        assert_eq!(code, 0);
        assert_eq!(pid_of("765432"), Some(pid), "{incarnation} {revision}");
        let hello = region.heard("it", |heard| heard.hellos.last().cloned()).await;
        assert_eq!(hello.incarnation, "one");
    }
    // It runs from an old copy of its disk. When its counter has passed what it had been, that changes nothing.
    eventually("it was found out", || device.log().contains("the region has lost writes").then_some(())).await;
    region.shared.revision.store(5000, Ordering::SeqCst);
    let other = pod("other", "exec /bin/busybox sleep 765431");
    region.desire(vec![other.clone(), nas(json!({}))]).await;
    region.running("other").await;
    assert_eq!(pid_of("765432"), Some(pid));
    // The region is told, and an operator may decide.
    let told = |heard: &crate::region::Heard| {
        let event = heard.events.iter().find(|event| event.reason == "RegionLostState")?;
        event.message.split_once('=').map(|(_, seen)| seen.to_owned())
    };
    let seen = region.heard("an event", told).await;
    region.desire(vec![other, nas(json!({"hearth.dev/accept-restored-region": seen}))]).await;
    eventually("it is let go", || pid_of("765432").is_none().then_some(())).await;
    assert!(pid_of("765431").is_some());
}

async fn a_claim_has_one_pod_at_a_time() {
    let (region, mut device) = start().await;
    let with_data = |name: &str, script: &str| {
        let mut one = pod(name, script);
        one["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        one["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "single"}}]);
        one
    };
    // It is slow to stop: until it is told so.
    let slow = "echo > /data/in-use; trap 'while [ ! -e /data/stop ]; do /bin/busybox sleep 0.05; done; \
        /bin/busybox rm /data/in-use; exit 0' TERM; while :; do /bin/busybox sleep 0.05; done";
    let mut old = with_data("old", slow);
    old["spec"]["terminationGracePeriodSeconds"] = json!(60);
    region.desire(vec![old.clone(), claim("single")]).await;
    region.running("old").await;
    // Its successor is asked for, and the region has forgotten it already.
    let new = with_data("new", "test ! -e /data/in-use && exec /bin/busybox sleep 432109");
    region.desire(vec![new, claim("single")]).await;
    let reason = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == "VolumeInUse";
    let status = region.status("new", "for its volume", reason).await;
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("in use by pod \"old\""), "{status}");
    // Also after a restart of the agent.
    device.kill();
    let hellos = region.shared.heard.lock().unwrap().hellos.len();
    region.shared.heard.lock().unwrap().statuses.clear();
    device.start(&region.address.to_string());
    region.heard("the next agent", |heard| (heard.hellos.len() > hellos).then_some(())).await;
    region.status("new", "for its volume still", reason).await;
    let data = device.paths().volumes();
    std::fs::write(eventually("the volume", || find(&data, "in-use")).await.with_file_name("stop"), "").unwrap();
    let status = region.running("new").await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0, "it never saw the other: {status}");
}

/// A file by its name, somewhere below.
fn find(dir: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    std::fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if entry.file_name() == name { Some(path) } else { path.is_dir().then(|| find(&path, name)).flatten() }
    })
}

async fn statuses_are_sent_again_until_they_are_acknowledged() {
    let (region, _device) = start().await;
    let mut told = pod("told", "exec /bin/busybox sleep 654321");
    region.desire(vec![told.clone()]).await;
    region.running("told").await;
    eventually("the container", || pid_of("654321")).await;
    region.shared.acknowledge.store(false, Ordering::SeqCst);
    told["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
    told["metadata"]["deletionGracePeriodSeconds"] = json!(0);
    region.desire(vec![told]).await;
    let finished = |heard: &crate::region::Heard| heard.statuses.get("told").filter(|(_, done)| *done).map(|_| ());
    region.heard("its end", finished).await;
    for acknowledged in [false, true] {
        region.shared.heard.lock().unwrap().statuses.clear();
        region.shared.acknowledge.store(acknowledged, Ordering::SeqCst);
        region.hang_up();
        region.heard("its end in another session", finished).await;
    }
    // Once it is acknowledged, another session does not hear of it: two heartbeats later, nothing came.
    region.heartbeats(2).await;
    region.shared.heard.lock().unwrap().statuses.clear();
    let hellos = region.shared.heard.lock().unwrap().hellos.len();
    region.hang_up();
    region.heard("another session", |heard| (heard.hellos.len() > hellos).then_some(())).await;
    region.heartbeats(2).await;
    assert!(region.shared.heard.lock().unwrap().statuses.is_empty());
}

async fn a_missing_image_is_waited_for_and_a_missing_secret_named() {
    let region = Region::start().await;
    let mut device = Device::without_image(&region).await;
    device.start(&region.address.to_string());
    let mut waits = pod("waits", "exec /bin/busybox sleep 543210");
    waits["spec"]["containers"][0]["env"] =
        json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "gone", "key": "k"}}}]);
    region.desire(vec![waits.clone()]).await;
    let reason = |want: &'static str| {
        move |status: &Value| status.pointer("/containerStatuses/0/state/waiting/reason") == Some(&json!(want))
    };
    let status = region.status("waits", "for its image", reason("ImagePullBackOff")).await;
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("busybox:1") && message.contains("hearth image import"), "{message}");
    device.import("busybox:1");
    let status = region.status("waits", "for its secret", reason("CreateContainerConfigError")).await;
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    assert_eq!(message, "secret \"gone\" not found");
    let secret = json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "gone", "namespace": "alice", "uid": "uid-gone"}, "data": {"k": "dg=="}});
    region.desire(vec![waits, secret]).await;
    let status = region.running("waits").await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
}

async fn a_deleted_pod_stops_gracefully_and_its_claim_goes_when_marked() {
    let (region, device) = start().await;
    let script = "trap 'echo stopping; exit 0' TERM; echo data > /data/file; while :; do /bin/busybox sleep 0.1; done";
    let mut web = pod("goes", script);
    web["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    web["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "goes-data"}}]);
    region.desire(vec![web.clone(), claim("goes-data")]).await;
    region.running("goes").await;
    // Marked while a pod uses it: nothing is deleted.
    let mut marked = claim("goes-data");
    marked["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
    region.desire(vec![web.clone(), marked.clone()]).await;
    let (_, code) = exec(&region, "goes", &["/bin/busybox", "test", "-d", "/data"], None).await;
    assert_eq!(code, 0);
    let finished = |name: &'static str| {
        move |heard: &crate::region::Heard| {
            heard.statuses.get(name).filter(|(_, done)| *done).map(|(one, _)| one.clone())
        }
    };
    assert!(finished("goes-data")(&region.shared.heard.lock().unwrap()).is_none());
    web["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
    web["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    region.desire(vec![web, marked.clone()]).await;
    let status = region.heard("the pod finished", finished("goes")).await;
    assert_eq!(status["phase"], "Succeeded", "{status}");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    region.heard("the claim's data deleted", finished("goes-data")).await;
    // And when the objects are gone, nothing of the pod is left on the device.
    region.desire(Vec::new()).await;
    let paths = device.paths();
    eventually("an empty device", || {
        let empty = |dir: std::path::PathBuf| std::fs::read_dir(dir).unwrap().next().is_none();
        (empty(paths.logs()) && empty(paths.scratch()) && empty(paths.pods())).then_some(())
    })
    .await;
}

async fn a_device_follows_the_leader_and_knows_the_servers_after_a_restart() {
    let mut region = Region::start().await;
    let (second, third) = (region.another().await, region.another().await);
    let mut device = Device::new(&region).await;
    region.enroll(device.join(&region).await.unwrap().key);
    let hellos = async |region: &Region, count: usize| {
        region.heard("another hello", |heard| (heard.hellos.len() >= count).then_some(())).await;
    };
    // A server that does not lead says which one does.
    device.start(&second.to_string());
    hellos(&region, 1).await;
    region.lead(1, false).await;
    hellos(&region, 2).await;
    // It knows them all by now: the first one, of which its token knows, is gone, and so is the one that led.
    let begin = tokio::time::Instant::now();
    region.lead(2, true).await;
    hellos(&region, 3).await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    device.kill();
    region.stop(0);
    // The last that is left is in no token and named by nobody.
    device.start(&second.to_string());
    hellos(&region, 4).await;
    assert!(std::fs::read_to_string(device.paths().servers()).unwrap().contains(&third.to_string()));
}
