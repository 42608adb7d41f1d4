//! A device that speaks the session and runs nothing.

use std::{collections::BTreeMap, net::SocketAddr};

use hearth_proto::v1::{
    self, DeviceHello, DeviceMessage, ObjectRef, ObjectStatus, RegionMessage, StatusReport,
    device_message::Message as Out, devices_client::DevicesClient, region_message::Message as In,
};
use hearth_types::DeviceKey;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::PATIENCE;

/// `kind/namespace/name` of what the device shall have.
pub(crate) type Desired = BTreeMap<String, Value>;

pub(crate) struct FakeDevice {
    pub(crate) out: mpsc::Sender<DeviceMessage>,
    inbound: tonic::Streaming<RegionMessage>,
    pub(crate) desired: Desired,
    pub(crate) hello: v1::RegionHello,
    sequence: u64,
}

fn name_of(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}

pub(crate) fn hello() -> DeviceHello {
    let info = json!({"architecture": "amd64", "kernelVersion": "6.1", "osImage": "Debian", "agentVersion": "0.1.0",
        "cpuMillis": 4000, "memoryBytes": 8_u64 << 30, "pods": 110});
    DeviceHello { versions: vec![1], info_json: info.to_string().into_bytes().into(), ..DeviceHello::default() }
}

impl FakeDevice {
    pub(crate) async fn open(
        address: SocketAddr,
        name: &str,
        key: DeviceKey,
        hello: DeviceHello,
    ) -> (mpsc::Sender<DeviceMessage>, Result<tonic::Streaming<RegionMessage>, tonic::Status>) {
        let client = DevicesClient::connect(format!("http://{address}")).await.expect("connected");
        Self::open_by(client, name, key, hello).await
    }

    /// The same over a connection that is there.
    pub(crate) async fn open_by(
        mut client: DevicesClient<tonic::transport::Channel>,
        name: &str,
        key: DeviceKey,
        hello: DeviceHello,
    ) -> (mpsc::Sender<DeviceMessage>, Result<tonic::Streaming<RegionMessage>, tonic::Status>) {
        let (out, stream) = mpsc::channel(64);
        let mut request = tonic::Request::new(ReceiverStream::new(stream));
        request.metadata_mut().insert("device", name.parse().expect("ascii"));
        request.metadata_mut().insert("key", key.to_string().parse().expect("ascii"));
        out.send(DeviceMessage { message: Some(Out::Hello(hello)) }).await.expect("queued");
        let inbound = client.session(request).await.map(tonic::Response::into_inner);
        (out, inbound)
    }

    pub(crate) async fn connect(address: SocketAddr, name: &str, key: DeviceKey) -> Self {
        let (out, inbound) = Self::open(address, name, key, hello()).await;
        let mut inbound = inbound.expect("a session");
        let first = tokio::time::timeout(PATIENCE, inbound.message())
            .await
            .expect("in time")
            .expect("no error")
            .expect("a hello");
        let Some(In::Hello(hello)) = first.message else { panic!("the first message is a hello: {first:?}") };
        let mut device = Self { out, inbound, desired: Desired::new(), hello, sequence: 0 };
        let Some(In::Desired(first)) = device.next().await else { panic!("a desired comes next") };
        assert!(first.full, "the first desired is full");
        device
    }

    /// The next message; what is desired is kept on the way. `None`: the session is over.
    pub(crate) async fn next(&mut self) -> Option<In> {
        let message = tokio::time::timeout(PATIENCE, self.inbound.message()).await.expect("in time").ok()??.message?;
        if let In::Desired(desired) = &message {
            if desired.full {
                self.desired.clear();
            }
            for object in &desired.upserts {
                let value = serde_json::from_slice(&object.json).expect("json");
                self.desired.insert(name_of(&object.kind, &object.namespace, &object.name), value);
            }
            for gone in &desired.deletes {
                self.desired.remove(&name_of(&gone.kind, &gone.namespace, &gone.name));
            }
        }
        Some(message)
    }

    /// Takes messages until what is desired is as wanted.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&Desired) -> bool) {
        while !wanted(&self.desired) {
            let next = tokio::time::timeout(PATIENCE, self.next()).await;
            assert!(matches!(next, Ok(Some(_))), "{what} never came: {:?}", self.desired.keys());
        }
    }

    pub(crate) fn of_kind(&self, kind: &str) -> Vec<Value> {
        let prefix = format!("{kind}/");
        self.desired.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, value)| value.clone()).collect()
    }

    /// The one pod that it has.
    pub(crate) async fn pod(&mut self) -> Value {
        self.until("a pod", |desired| desired.keys().any(|name| name.starts_with("Pod/"))).await;
        let pods = self.of_kind("Pod");
        assert_eq!(pods.len(), 1, "{:?}", self.desired.keys());
        pods[0].clone()
    }

    pub(crate) async fn send(&self, message: Out) {
        self.out.send(DeviceMessage { message: Some(message) }).await.expect("the session is open");
    }

    /// Reports and waits until that is stored.
    pub(crate) async fn report(&mut self, object: &Value, status: &Value, finished: bool) {
        self.sequence += 1;
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let reference = ObjectRef {
            group: text("/apiVersion").split_once('/').map(|(group, _)| group.to_owned()).unwrap_or_default(),
            kind: text("/kind"),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
        };
        let item = ObjectStatus {
            r#ref: Some(reference),
            uid: text("/metadata/uid"),
            status_json: status.to_string().into_bytes().into(),
            finished,
        };
        self.send(Out::Status(StatusReport { sequence: self.sequence, items: vec![item] })).await;
        loop {
            match self.next().await {
                Some(In::StatusAck(ack)) if ack.sequence == self.sequence => return,
                Some(_) => {}
                None => panic!("the session ended before the report was stored"),
            }
        }
    }

    pub(crate) async fn run(&mut self, pod: &Value) {
        self.report(pod, &running(), false).await;
    }
}

pub(crate) fn running() -> Value {
    json!({"phase": "Running", "podIP": "10.0.0.2",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2023-11-14T22:13:20Z"}],
        "containerStatuses": [{"name": "web", "image": "notes:1", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2023-11-14T22:13:20Z"}}}]})
}
