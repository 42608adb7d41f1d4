//! `port-forward`: ports of this machine that lead to ports of a pod, also to those it listens on for itself alone.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::StreamExt as _;
use hearth_client::Client;
use hearth_proto::v1::{PortForwardInput, PortForwardStart, port_forward_input::Input, port_forward_output::Output};
use hearth_types::{Reason, Status};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;

use super::pod_of::{pod_of, service_of};
use crate::{
    args::PortForward,
    context::{Context, refusal},
    output,
};

/// Connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 128;
/// Bytes of one message.
const CHUNK: usize = 32 << 10;
/// Messages that wait to be sent: what a program sends is held back rather than piled up.
const QUEUE: usize = 8;
/// What `--address` means unless it says otherwise: both of the machine's loopbacks, of which one is enough.
const LOCALHOST: &str = "localhost";

/// A port here and the one in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    /// 0 is any free one.
    local: u16,
    remote: u16,
}

/// Runs the verb: it ends when the pod is gone, or by a signal.
pub(crate) async fn run(context: &Context, args: &PortForward) -> Result<()> {
    let service = service_of(context, &args.pod).await?;
    let pod = pod_of(context, &args.pod).await?;
    let value = pod.value();
    let read = |text: &String| match &service {
        Some(service) => pair(&through(text, service)?, &value),
        None => pair(text, &value),
    };
    let pairs = args.ports.iter().map(read).collect::<Result<Vec<_>>>()?;
    let phase = value["status"]["phase"].as_str().unwrap_or("Unknown");
    if phase != "Running" {
        bail!("unable to forward port because pod is not running. Current status={phase}");
    }
    let mut listeners = Vec::new();
    for pair in pairs {
        listeners.extend(listen(pair, &args.address).await?);
    }
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    for (listener, pair) in listeners {
        let forward = Forward {
            client: context.client()?.clone(),
            start: PortForwardStart {
                namespace: pod.namespace().to_owned(),
                pod: pod.name().to_owned(),
                port: pair.remote.into(),
            },
            pair,
        };
        output::line(&format!("Forwarding from {} -> {}", listener.local_addr()?, pair.remote));
        tasks.spawn(forward.serve(listener, Arc::clone(&connections)));
    }
    match tasks.join_next().await {
        Some(ended) => ended.context("a forwarded port broke")?,
        None => Ok(()),
    }
}

/// Reads `[LOCAL:]REMOTE`, where the remote port may be named as the pod's containers name it.
fn pair(text: &str, pod: &Value) -> Result<Pair> {
    let (local, remote) = text.split_once(':').map_or((None, text), |(local, remote)| (Some(local), remote));
    let remote = match remote.parse() {
        Ok(0) => bail!("invalid ports format {text:?}: the remote port must be > 0"),
        Ok(number) => number,
        Err(_) => named(pod, remote)
            .ok_or_else(|| anyhow!("invalid ports format {text:?}: the pod has no port named {remote:?}"))?,
    };
    let local = match local {
        None => remote,
        Some("") => 0,
        Some(number) => {
            number.parse().map_err(|_| anyhow!("error parsing local port {number:?}: a port is from 0 to 65535"))?
        }
    };
    Ok(Pair { local, remote })
}

/// The same ports where the remote one is a Service's, by number or name: that of its pods stands for it then.
fn through(text: &str, service: &Value) -> Result<String> {
    let (local, remote) = text.split_once(':').map_or((None, text), |(local, remote)| (Some(local), remote));
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let mut ports = ports.filter(|one| one["protocol"].as_str().unwrap_or("TCP") == "TCP");
    let is_meant =
        |one: &&Value| one["name"] == remote || one["port"].as_u64().is_some_and(|port| remote.parse() == Ok(port));
    let Some(found) = ports.find(is_meant) else {
        bail!(
            "Service {} does not have a service port {remote}",
            service["metadata"]["name"].as_str().unwrap_or_default()
        );
    };
    let target = match &found["targetPort"] {
        Value::String(name) => name.clone(),
        Value::Null => found["port"].to_string(),
        number => number.to_string(),
    };
    let local = local.map_or_else(|| found["port"].to_string(), str::to_owned);
    Ok(format!("{local}:{target}"))
}

/// The number of a TCP port that a container names.
fn named(pod: &Value, name: &str) -> Option<u16> {
    let lists = [&pod["spec"]["containers"], &pod["spec"]["initContainers"]];
    let containers = lists.into_iter().filter_map(Value::as_array).flatten();
    let mut ports = containers.filter_map(|one| one["ports"].as_array()).flatten();
    let port = ports.find(|port| port["name"] == name && port["protocol"].as_str().unwrap_or("TCP") == "TCP")?;
    u16::try_from(port["containerPort"].as_u64()?).ok()
}

/// Listens at each address; of the two that `localhost` means, one is enough.
async fn listen(mut pair: Pair, addresses: &[String]) -> Result<Vec<(TcpListener, Pair)>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let (ips, enough) = match address.as_str() {
            LOCALHOST => (vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)], 1),
            other => (vec![other.parse().map_err(|_| anyhow!("{other:?} is not a valid IP address"))?], 1),
        };
        let (mut made, mut errors) = (Vec::new(), Vec::new());
        for ip in ips {
            match TcpListener::bind(SocketAddr::new(ip, pair.local)).await {
                Ok(listener) => {
                    // The same port at each address, also where any will do.
                    pair.local = listener.local_addr()?.port();
                    made.push(listener);
                }
                Err(error) => errors.push(format!("{}: {error}", SocketAddr::new(ip, pair.local))),
            }
        }
        if made.len() < enough {
            bail!("unable to listen on port {}: {}", pair.local, errors.join("; "));
        }
        listeners.extend(made.into_iter().map(|listener| (listener, pair)));
    }
    Ok(listeners)
}

/// What connections to one port become.
#[derive(Clone)]
struct Forward {
    client: Client,
    start: PortForwardStart,
    pair: Pair,
}

impl Forward {
    /// Serves connections until the pod is gone.
    async fn serve(self, listener: TcpListener, connections: Arc<Semaphore>) -> Result<()> {
        let mut tasks = JoinSet::new();
        loop {
            let permit = Arc::clone(&connections).acquire_owned();
            tokio::select! {
                accepted = async { (permit.await, listener.accept().await) } => {
                    let (permit, accepted) = accepted;
                    let Ok((stream, _)) = accepted else { continue };
                    output::line(&format!("Handling connection for {}", self.pair.local));
                    let forward = self.clone();
                    tasks.spawn(async move {
                        let _permit = permit;
                        forward.carry(stream).await
                    });
                }
                Some(done) = tasks.join_next() => match done.context("a connection broke")? {
                    Ok(()) => {}
                    Err(Failed::Here(error)) => self.tell(&error.to_string()),
                    Err(Failed::Pod(why)) => self.tell(&why),
                    Err(Failed::Region(status)) if status.reason == Reason::NotFound => {
                        self.tell(&refusal(&status).to_string());
                        bail!("lost connection to pod");
                    }
                    Err(Failed::Region(status)) => self.tell(&refusal(&status).to_string()),
                },
            }
        }
    }

    fn tell(&self, why: &str) {
        let Pair { local, remote } = self.pair;
        output::note(&format!("an error occurred forwarding {local} -> {remote}: {}", output::table::one_line(why)));
    }

    async fn carry(&self, stream: TcpStream) -> Result<(), Failed> {
        // What is typed goes at once.
        let _ = stream.set_nodelay(true);
        let (sender, receiver) = mpsc::channel(QUEUE);
        let begin = sender.send(message(Input::Start(self.start.clone()))).await;
        begin.map_err(|_| Failed::Here(io::ErrorKind::BrokenPipe.into()))?;
        let mut outputs = self.client.port_forward(ReceiverStream::new(receiver)).await.map_err(Failed::Region)?;
        let (from_program, mut to_program) = stream.into_split();
        let mut reading = std::pin::pin!(read(from_program, &sender));
        let mut reads = true;
        loop {
            tokio::select! {
                // A program that is gone takes the connection with it; one that has only said all may still read.
                done = &mut reading, if reads => {
                    done.map_err(Failed::Here)?;
                    reads = false;
                }
                output = outputs.next() => match output {
                    None => return Ok(()),
                    Some(Err(status)) => return Err(Failed::Region(status)),
                    Some(Ok(output)) => match output.output {
                        Some(Output::Data(data)) => to_program.write_all(&data).await.map_err(Failed::Here)?,
                        Some(Output::Closed(true)) => to_program.shutdown().await.map_err(Failed::Here)?,
                        Some(Output::Error(why)) => return Err(Failed::Pod(why)),
                        _ => {}
                    },
                },
            }
        }
    }
}

/// Why a connection ended before its time.
enum Failed {
    /// The program here.
    Here(io::Error),
    /// The pod, or its device.
    Pod(String),
    /// The way there.
    Region(Status),
}

fn message(input: Input) -> PortForwardInput {
    PortForwardInput { input: Some(input) }
}

async fn read(mut from: OwnedReadHalf, sender: &mpsc::Sender<PortForwardInput>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = from.read(&mut buffer).await?;
        let input = if count == 0 { Input::Closed(true) } else { Input::Data(buffer[..count].to_vec().into()) };
        if sender.send(message(input)).await.is_err() || count == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_read_as_kubectl_reads_them() {
        let pod = json!({"spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080},
            {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]}});
        for (text, local, remote) in [
            ("80", 80, 80),
            ("8080:80", 8080, 80),
            (":80", 0, 80),
            ("0:80", 0, 80),
            ("http", 8080, 8080),
            ("1:http", 1, 8080),
        ] {
            assert_eq!(pair(text, &pod).expect(text), Pair { local, remote }, "{text}");
        }
        for text in ["", "0", "80:0", "65536", "-1:80", "a:80", "dns", "80:80:80", "80:"] {
            assert!(pair(text, &pod).is_err(), "{text}");
        }
    }

    #[test]
    fn ports_of_a_service_stand_for_those_of_its_pods() {
        let service = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"name": "sql", "port": 5432, "targetPort": "pg"},
            {"name": "web", "port": 80, "targetPort": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]}});
        for (text, expected) in
            [("5432", "5432:pg"), ("sql", "5432:pg"), (":80", ":8080"), ("9000:web", "9000:8080"), ("80", "80:8080")]
        {
            assert_eq!(through(text, &service).expect(text), expected);
        }
        for text in ["8080", "53", "x", ""] {
            assert!(through(text, &service).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn localhost_is_both_loopbacks_at_one_port_and_another_word_is_refused() {
        let made = listen(Pair { local: 0, remote: 80 }, &["localhost".to_owned()]).await.expect("listens");
        let ports: Vec<_> = made.iter().map(|(listener, _)| listener.local_addr().expect("bound").port()).collect();
        assert!(!ports.is_empty() && ports.iter().all(|port| *port == ports[0] && *port != 0), "{ports:?}");
        let taken =
            listen(Pair { local: ports[0], remote: 80 }, &["127.0.0.1".to_owned()]).await.expect_err("is taken");
        assert!(taken.to_string().starts_with(&format!("unable to listen on port {}", ports[0])), "{taken}");
        let error = listen(Pair { local: 0, remote: 80 }, &["nowhere".to_owned()]).await.expect_err("no address");
        assert_eq!(error.to_string(), "\"nowhere\" is not a valid IP address");
    }
}
